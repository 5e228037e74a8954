"""How situations are made of the running services: read, bounded, on the event loop, nothing changed."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.market import OrderStatus, Settlement
from wattmesh_a2a.messages import IntervalEnergy

from wattmesh_cloud.agents.situations import (
    SLOT_NS,
    SLOTS_A_DAY,
    Activity,
    ForecastSituation,
    GridSituation,
    KnownEvent,
    MarketSituation,
    Note,
    SiteSituation,
    Strategies,
)
from wattmesh_cloud.forecasting.service import ForecastingService, median_of
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.products import Slot
from wattmesh_cloud.market.service import MarketService

_HISTORY_SLOTS = 7 * SLOTS_A_DAY
_DAY_NS = SLOTS_A_DAY * SLOT_NS
_NOTES = 5
_TEXT = 300
Forecasts = Callable[[], Mapping[str, Mapping[str, Forecast]]]
Settings = Callable[[str, str], Mapping[str, float]]
"""(subject, agent) → learned parameters for today."""


@dataclass(slots=True, kw_only=True)
class Sources:
    """Where situations come from; a service that is none makes its agent stay at rest."""

    market_config: MarketConfig
    forecasts: Forecasts
    market: MarketService | None = None
    grid: GridService | None = None
    forecasting: ForecastingService | None = None
    live: LiveView | None = None
    announcements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    online: set[str] = field(default_factory=set)


class Looks:
    """Situations of every agent and subject.

    Args:
        sources: The running services.
        clock: Now.
        settings: Learned parameters.
        in_force: The strategy a site has.
    """

    def __init__(
        self, sources: Sources, clock: Clock, settings: Settings, in_force: Callable[[str], Strategies | None]
    ) -> None:
        self.sources, self._clock, self._settings, self._in_force = sources, clock, settings, in_force
        self._limits = {one.id: one.import_limit_w for one in sources.market_config.participants}
        self._credit = {one.id: one.credit_limit for one in sources.market_config.participants}
        self._net: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=_HISTORY_SLOTS))
        self._fleet: dict[int, list[int]] = {}
        """Slot → net load of each site that reported it."""
        self._activity: dict[int, dict[str, Activity]] = {}
        """Closed slots are counted once."""
        self.notes: dict[str, deque[Note]] = defaultdict(lambda: deque(maxlen=_NOTES))
        """Subject → newest text from outside."""
        self.retrained: dict[str, int] = {}

    def sites(self) -> list[str]:
        """Every site that may trade."""
        return sorted(self._limits)

    def interval(self, site: str, reading: IntervalEnergy) -> None:
        """Learn a site's load less PV from a whole quarter hour."""
        net = reading.load_wh - reading.pv_wh
        self._net[site].append(net)
        self._fleet.setdefault(reading.slot_start_ns, []).append(net)
        while len(self._fleet) > _HISTORY_SLOTS:
            del self._fleet[min(self._fleet)]

    def note(self, subject: str, source: str, text: str) -> None:
        """Keep text from outside: printable, short, a quotation."""
        clean = "".join(one for one in text if one.isprintable())[:_TEXT]
        self.notes[subject].append(Note(source=source[:64], text=clean))

    # -- one site

    def site(self, site: str, agent: str) -> SiteSituation:
        """Of the producer's and the consumer's agent."""
        now, config = self._clock.utc_ns(), self.sources.market_config
        tariff = config.tariff.tariff(config.time_zone)
        first = now - now % SLOT_NS
        net, pv, age = self._expected(site, first, now)
        announced = self.sources.announcements.get(site)
        live = self.sources.live.sites.get(site) if self.sources.live is not None else None
        traded = self._traded(site, now)
        return SiteSituation(
            site_id=site,
            now_ns=now,
            import_limit_w=self._limits[site],
            net_wh=tuple(self._net[site]),
            expected_net_wh=net,
            expected_pv_wh=pv,
            forecast_age_s=age,
            online=announced is None or site in self.sources.online,
            missing=() if live is None else _missing(announced, live.points),
            battery_wh=None if announced is None else _battery_wh(announced),
            soc_percent=None if live is None else live.flows.get("soc_percent"),
            import_ticks=tuple(
                tariff.import_price_ticks(first + index * SLOT_NS) for index in range(0, SLOTS_A_DAY, 4)
            ),
            feed_in_ticks=tariff.feed_in_ticks(),
            committed_wh=traded[0],
            missed_wh=traded[1],
            gain_units=traded[2],
            miss_cost_units=traded[3],
            grid_status=self._grid_status(),
            in_force=self._in_force(site),
            settings=self._settings(site, agent),
            notes=tuple(self.notes[site]),
        )

    def _expected(self, site: str, first: int, now: int) -> tuple[tuple[float, ...], tuple[float, ...], float | None]:
        forecasts = self.sources.forecasts().get(site, {})
        if "load_wh" not in forecasts or "pv_wh" not in forecasts:
            return (), (), None
        nets, pvs = [], []
        for slot in range(first, first + _DAY_NS, SLOT_NS):
            load, pv = median_of(forecasts["load_wh"], slot), median_of(forecasts["pv_wh"], slot)
            if load is not None and pv is not None:
                nets.append(load - pv)
                pvs.append(pv)
        age = (now - min(one.issued_ns for one in forecasts.values())) / 1e9
        return tuple(nets), tuple(pvs), age

    def _grid_status(self) -> str:
        return str(self.sources.grid.status) if self.sources.grid is not None else "normal"

    def _traded(self, site: str, now: int) -> tuple[int, int, int, int]:
        """Energy traded and missed in the last day, what trading brought and what missing it cost."""
        if self.sources.market is None:
            return 0, 0, 0, 0
        total = [0, 0, 0, 0]
        for slot in self._slots(now):
            settled = slot.settlements.get(site)
            if settled is not None and settled.committed_wh and slot.prices is not None:
                row = trade_result(settled, slot.prices.import_ticks, slot.prices.feed_in_ticks)
                total = [a + b for a, b in zip(total, row, strict=True)]
        return total[0], total[1], total[2], total[3]

    def _slots(self, now: int) -> list[Slot]:
        """The products of the last day, oldest first."""
        assert self.sources.market is not None
        slots, first = self.sources.market.engine.slots, now - now % SLOT_NS - _DAY_NS
        found = (slots.get(start) for start in range(first, now + SLOT_NS, self.sources.market_config.slot_s * 10**9))
        return [slot for slot in found if slot is not None]

    # -- the market

    def market(self) -> MarketSituation:
        """Of the market supervisor."""
        market, now, config = self.sources.market, self._clock.utc_ns(), self.sources.market_config
        assert market is not None
        engine, slots = market.engine, self._slots(self._clock.utc_ns())
        tariff = config.tariff.tariff(config.time_zone)
        issued = [one.issued_ns for site in self.sources.forecasts().values() for one in site.values()]
        late = now - (config.slot_s + config.substitute_after_s + 900) * 10**9
        return MarketSituation(
            area=config.area,
            now_ns=now,
            halts=dict(engine.halts),
            prices_ticks=tuple(
                slot.clearing.price_ticks
                for slot in slots
                if slot.clearing is not None and slot.clearing.price_ticks is not None
            ),
            feed_in_ticks=tariff.feed_in_ticks(),
            retail_ticks=tariff.import_price_ticks(now),
            forecast_age_s=(now - max(issued)) / 1e9 if issued else None,
            grid_status=self._grid_status(),
            participants=self._participants(slots, now),
            suspended=dict(engine.risk.suspended),
            slots_unsettled=sum(
                slot.start_ns < late and any(name not in slot.settlements for name in slot.trades_of) for slot in slots
            ),
            ledger_sum_units=engine.ledger.total(),
            settings=self._settings(config.area, "market-supervisor"),
            notes=tuple(self.notes[config.area]),
        )

    def _participants(self, slots: list[Slot], now: int) -> dict[str, Activity]:
        assert self.sources.market is not None
        risk = self.sources.market.engine.risk
        total = {name: [0, 0, 0, 0] for name in self._limits}
        for slot in slots:
            if slot.book is not None:
                continue  # still open: counted when it is closed
            if slot.start_ns not in self._activity:
                self._activity[slot.start_ns] = slot_activity(slot)
            for name, one in self._activity[slot.start_ns].items():
                row = total.setdefault(name, [0, 0, 0, 0])
                for index, value in enumerate((one.orders, one.cancelled, one.bought_wh, one.sold_wh)):
                    row[index] += value
        for start in [start for start in self._activity if start < now - _DAY_NS - SLOT_NS]:
            del self._activity[start]
        return {
            name: Activity(
                orders=row[0],
                cancelled=row[1],
                bought_wh=row[2],
                sold_wh=row[3],
                exposure_share=(risk.exposure.get(name, 0) + risk.owed(name)) / (self._credit.get(name, 1.0) * 1e7),
            )
            for name, row in total.items()
        }

    # -- the grid

    def grid(self) -> GridSituation:
        """Of the grid optimisation agent."""
        grid, now = self.sources.grid, self._clock.utc_ns()
        assert grid is not None
        forecasts, response = self.sources.forecasts(), grid.config.demand_response
        first = now - now % SLOT_NS
        expected = [0.0] * (2 * SLOTS_A_DAY)
        ages, reach = [], len(expected)
        for quantities in forecasts.values():
            if "load_wh" not in quantities or "pv_wh" not in quantities:
                continue
            ages.append((now - min(one.issued_ns for one in quantities.values())) / 1e9)
            load, pv = quantities["load_wh"], quantities["pv_wh"]
            for index in range(reach):
                made, used = median_of(pv, first + index * SLOT_NS), median_of(load, first + index * SLOT_NS)
                if made is None or used is None:
                    reach = index
                    break
                expected[index] += (used - made) * 4
        whole = [sum(row) * 4 for row in self._fleet.values() if len(row) >= max(1, len(forecasts))]
        announced = self.sources.announcements
        return GridSituation(
            now_ns=now,
            nominal_hz=float(grid.config.nominal_hz),
            status=str(grid.status),
            frequency_hz=dict(grid.frequency),
            quiet_s=grid.quiet_s(now),
            start_ns=first,
            expected_w=tuple(expected[:reach]) if ages else (),
            usual_peak_w=sorted(whole)[int(len(whole) * 0.95)] if len(whole) >= SLOTS_A_DAY else None,
            forecast_age_s=max(ages) if ages else None,
            sites=len(announced),
            online=sum(site in self.sources.online for site in announced),
            events=_events(grid, now),
            delivered_share=_delivered(grid),
            response_enabled=response.enabled,
            notice_s=response.notice_s,
            duration_s=response.duration_s,
            price_ticks=round(response.price * 10_000),
            share=response.share,
            percentile=response.peak_percentile,
            settings={**self._settings("fleet", "grid-optimisation")},
            notes=tuple(self.notes["fleet"]),
        )

    # -- forecasts

    def forecast(self, site: str) -> ForecastSituation:
        """Of the forecasting agent."""
        service, now = self.sources.forecasting, self._clock.utc_ns()
        assert service is not None
        known = service.health(site, now)
        last = self.retrained.get(site)
        return ForecastSituation(
            site_id=site,
            now_ns=now,
            issued_age_s=known.issued_age_s,
            reading_age_s=known.reading_age_s,
            error_wh=known.error_wh,
            losses=known.losses,
            scored_slots=known.scored_slots,
            in_charge=known.in_charge,
            widened=known.widened,
            retrained_s=None if last is None else (now - last) / 1e9,
            settings=self._settings(site, "forecasting"),
            notes=tuple(self.notes[site]),
        )


def trade_result(settled: Settlement, import_ticks: int, feed_in_ticks: int) -> tuple[int, int, int, int]:
    """Energy traded, energy missed, gain of the trades against the retailer, cost of what was missed; Wh and tick · Wh.

    Bought energy that was not taken comes back at the feed-in price; sold energy that was not there is bought at the retail price.
    """
    traded = abs(settled.committed_wh)
    price = settled.trade_units / settled.committed_wh
    if settled.committed_wh > 0:
        missed = min(traded, max(0, settled.committed_wh - max(0, settled.metered_wh)))
        gain, lost = (import_ticks - price) * (traded - missed), max(0.0, price - feed_in_ticks) * missed
    else:
        missed = min(traded, max(0, min(0, settled.metered_wh) - settled.committed_wh))
        gain, lost = (price - feed_in_ticks) * (traded - missed), max(0.0, import_ticks - price) * missed
    return traded, missed, round(gain), round(lost + settled.imbalance_units)


def slot_activity(slot: Slot) -> dict[str, Activity]:
    """Who ordered, cancelled and traded what in a product."""
    orders: dict[str, list[int]] = {}
    for (name, _), entry in slot.entries.items():
        row = orders.setdefault(name, [0, 0])
        row[0] += 1
        row[1] += entry.status is OrderStatus.CANCELLED
    return {
        name: Activity(
            orders=orders.get(name, [0, 0])[0],
            cancelled=orders.get(name, [0, 0])[1],
            bought_wh=position.bought if position is not None else 0,
            sold_wh=position.sold if position is not None else 0,
        )
        for name in sorted({*orders, *slot.positions})
        for position in [slot.positions.get(name)]
    }


def _battery_wh(announced: Mapping[str, Any]) -> float:
    assets = announced.get("assets", ())
    return float(sum(one.get("rated_energy_wh") or 0.0 for one in assets if one.get("kind") == "battery"))


def _missing(announced: Mapping[str, Any] | None, points: Mapping[str, float | None]) -> tuple[str, ...]:
    """Announced assets of whose points none has a value."""
    if announced is None or not points:
        return ()
    alive = {name.partition(".")[0] for name, value in points.items() if value is not None and not math.isnan(value)}
    return tuple(str(one.get("id")) for one in announced.get("assets", ()) if one.get("id") not in alive)[:20]


def _events(grid: GridService, now: int) -> tuple[KnownEvent, ...]:
    """Events under way, and those that were settled in the last two days."""
    over = [
        KnownEvent(
            id=str(row["id"]),
            start_ns=int(str(row["start_ns"])),
            end_ns=int(str(row["end_ns"])),
            target_w=int(str(row["target_w"])),
            state=str(row["state"]),
        )
        for row in grid.settled[-20:]
    ]
    running = [
        KnownEvent(
            id=one.event.id,
            start_ns=one.event.start_ns,
            end_ns=one.event.end_ns,
            target_w=one.event.target_w,
            state=str(one.event.state),
        )
        for one in grid.running.values()
    ]
    return tuple(one for one in (*over, *running) if one.end_ns > now - 2 * _DAY_NS)


def _delivered(grid: GridService) -> float | None:
    """Of the last ten events that are settled."""
    asked = got = 0.0
    for row in grid.settled[-10:]:
        dispatched: Any = row["dispatched_w"]
        delivered: Any = row["delivered_wh"]
        hours = (int(str(row["end_ns"])) - int(str(row["start_ns"]))) / 3.6e12
        asked += sum(-watts for watts in dispatched.values()) * hours
        got += sum(delivered.values())
    return got / asked if asked > 0 else None
