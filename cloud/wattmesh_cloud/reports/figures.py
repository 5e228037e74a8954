"""A report's figures, from metered quarter hours, settlements and events. Reads the store and blocks; changes nothing.

Baselines are stated with every figure: *no battery* is the metered load less the metered production, slot by slot, at the
retailer's prices; *self-consumption* lets a battery of the announced power and energy take every surplus and cover every need
(90 % round trip, 94.9 % each way, half full at the beginning), at the same prices. Slots whose reading is incomplete count in
neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT

from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView

EACH_WAY = math.sqrt(0.9)
_AMOUNTS = ("trade_units", "residual_units", "fee_units", "levy_units", "imbalance_units", "flexibility_units")
_ROWS = 9000
_POINTS = 62 * 24

BASELINES = {
    "no_battery": "the metered load less production, at the retailer's prices",
    "self_consumption": "a battery of the announced size that takes surplus and covers need, 90 % round trip, half full at first",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Energy of an hour or a day."""

    time_ns: int
    load_wh: int
    pv_wh: int
    import_wh: int
    export_wh: int


@dataclass(slots=True, kw_only=True)
class SiteFigures:
    """One site's figures. Money in the currency's unit, paid positive; power in watts, means of 15 min."""

    site_id: str
    slots: int = 0
    """Complete ones."""
    expected_slots: int = 0
    import_wh: int = 0
    export_wh: int = 0
    pv_wh: int = 0
    load_wh: int = 0
    charged_wh: int = 0
    discharged_wh: int = 0
    cost: float = 0.0
    settled_slots: int = 0
    cost_no_battery: float = 0.0
    cost_self_consumption: float = 0.0
    peak_import_w: int = 0
    peak_ns: int | None = None
    peak_no_battery_w: int = 0
    trades: int = 0
    traded_wh: int = 0
    trade_price_ticks: int | None = None
    flexibility: float = 0.0
    frequency_events: int = 0
    answered_events: int = 0
    detection_to_write_ms: float | None = None
    """Median."""
    largest_response_w: float = 0.0
    alarms: int = 0

    @property
    def availability(self) -> float:
        """Share of the expected quarter hours that were measured whole."""
        return self.slots / self.expected_slots if self.expected_slots else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A whole report."""

    title: str
    period: str
    start_ns: int
    end_ns: int
    time_zone: str
    currency: str
    sites: list[SiteFigures]
    bars: list[Bar] = field(default_factory=list)
    """Of all sites together: an hour each for a day or a week, else a day each."""
    demand_response: list[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        data = asdict(self)
        for row, site in zip(data["sites"], self.sites, strict=True):
            row["availability"] = site.availability
        return {**data, "baselines": BASELINES}


def span_of(period: str, day: str, zone: tzinfo) -> tuple[int, int]:
    """Start and end (UTC ns) of the day, the week (from Monday) or the month that a local day is in.

    Raises:
        InvalidMessageError: No such day.
    """
    try:
        given = date.fromisoformat(day)
        if not 2000 <= given.year <= 2200:
            raise ValueError("year")
    except ValueError as error:
        raise InvalidMessageError(f"start: {day!r} is no day; write 2022-09-01") from error
    if period == "day":
        first, last = given, given + timedelta(days=1)
    elif period == "week":
        first = given - timedelta(days=given.weekday())
        last = first + timedelta(days=7)
    else:
        first = given.replace(day=1)
        last = (first + timedelta(days=32)).replace(day=1)
    return _ns(first, zone), _ns(last, zone)


def _ns(day: date, zone: tzinfo) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * NS_PER_S


def build(view: CloudView, period: str, day: str, sites: Sequence[str], *, title: str) -> Figures:
    """The figures of some sites; a period that is not over yet has those of what is there."""
    tariff = view.market.engine.tariff
    zone = tariff.zone()
    start, end = span_of(period, day, zone)
    hours = 1 if period in {"day", "week"} else 24
    bars: dict[int, list[int]] = {}
    rows = [_site(view, site, start, end, bars, zone, hours) for site in sites]
    own = set(sites)
    return Figures(
        title=title,
        period=period,
        start_ns=start,
        end_ns=end,
        time_zone=view.market.config.time_zone,
        currency=view.market.config.currency,
        sites=rows,
        bars=[
            Bar(time_ns=time, load_wh=one[0], pv_wh=one[1], import_wh=one[2], export_wh=one[3])
            for time, one in sorted(bars.items())[:_POINTS]
        ],
        demand_response=_responses(view, own, start, end),
    )


def _site(
    view: CloudView, site: str, start: int, end: int, bars: dict[int, list[int]], zone: tzinfo, hours: int
) -> SiteFigures:
    market = view.markets.of_participant(site)
    slot_s, tariff = market.config.slot_s, market.engine.tariff
    now = min(end, view.clock.utc_ns())
    made = SiteFigures(site_id=site, expected_slots=max(0, (now - start) // (slot_s * NS_PER_S)))
    intervals: list[Any] = [
        row.data
        for row in view.store.query(Table.CONSUMER_METRICS, site, start, end, limit=_ROWS)
        if row.id == "interval"
    ]
    settled: dict[int, Any] = {
        row.time_ns: row.data
        for row in view.store.query(Table.TRADE_DATA, f"{site}#settlements", start, end, limit=_ROWS)
    }
    battery = _Battery.of(view, site)
    unit = MONEY_UNITS_PER_CURRENCY_UNIT
    feed_in = tariff.feed_in_ticks()
    for one in intervals:
        if not one["complete"]:
            continue
        slot = one["slot_start_ns"]
        price = tariff.import_price_ticks(slot)
        net = one["load_wh"] - one["pv_wh"]
        made.slots += 1
        made.import_wh += one["import_wh"]
        made.export_wh += one["export_wh"]
        made.pv_wh += one["pv_wh"]
        made.load_wh += one["load_wh"]
        made.charged_wh += one["battery_charge_wh"]
        made.discharged_wh += one["battery_discharge_wh"]
        made.cost_no_battery += _retail(net, price, feed_in) / unit
        made.cost_self_consumption += _retail(battery.after(net, slot_s), price, feed_in) / unit
        money = settled.get(slot)
        if money is None:
            made.cost += _retail(one["import_wh"] - one["export_wh"], price, feed_in) / unit
        else:
            made.settled_slots += 1
            made.cost += sum(money[name] for name in _AMOUNTS) / unit
            made.flexibility -= money["flexibility_units"] / unit
        power = round((one["import_wh"] - one["export_wh"]) * 3600 / slot_s)
        if power > made.peak_import_w:
            made.peak_import_w, made.peak_ns = power, slot
        made.peak_no_battery_w = max(made.peak_no_battery_w, round(net * 3600 / slot_s))
        bar = bars.setdefault(_bar(slot, zone, hours), [0, 0, 0, 0])
        for index, name in enumerate(("load_wh", "pv_wh", "import_wh", "export_wh")):
            bar[index] += one[name]
    _trades(view, site, start, end, made)
    _events(view, site, start, end, made)
    return made


def _retail(net_wh: float, price_ticks: int, feed_in_ticks: int) -> float:
    """Paid to the retailer for a slot, in units of the ledger."""
    return net_wh * price_ticks if net_wh > 0 else net_wh * feed_in_ticks


def _bar(slot_ns: int, zone: tzinfo, hours: int) -> int:
    moment = datetime.fromtimestamp(slot_ns // NS_PER_S, tz=UTC).astimezone(zone)
    begin = moment.replace(minute=0, second=0) if hours == 1 else moment.replace(hour=0, minute=0, second=0)
    return round(begin.timestamp()) * NS_PER_S


def _trades(view: CloudView, site: str, start: int, end: int, made: SiteFigures) -> None:
    area = view.markets.of_participant(site).config.area
    paid = 0
    for row in view.store.query(Table.TRADE_DATA, f"{area}#trades", start, end, limit=_ROWS):
        data: Any = row.data
        if site in {data["buyer_id"], data["seller_id"]}:
            made.trades += 1
            made.traded_wh += data["quantity_wh"]
            paid += data["quantity_wh"] * data["price_ticks"]
    made.trade_price_ticks = round(paid / made.traded_wh) if made.traded_wh else None


def _events(view: CloudView, site: str, start: int, end: int, made: SiteFigures) -> None:
    took = []
    for row in view.store.query(Table.GRID_METRICS, f"{site}#frequency", start, end, limit=_ROWS):
        data: Any = row.data
        made.frequency_events += 1
        made.largest_response_w = max(made.largest_response_w, abs(data["response_w"]))
        if data["detection_to_write_ns"] is not None:
            took.append(data["detection_to_write_ns"] / 1e6)
    made.answered_events = len(took)
    made.detection_to_write_ms = sorted(took)[len(took) // 2] if took else None
    made.alarms = len(view.store.query(Table.GRID_METRICS, f"{site}#alarms", start, end, limit=_ROWS))


def _responses(view: CloudView, own: set[str], start: int, end: int) -> list[dict[str, Any]]:
    events: list[Any] = view.grid.events()
    return [
        {
            "id": one["id"],
            "start_ns": one["start_ns"],
            "state": one["state"],
            "dispatched_w": sum(power for site, power in one["dispatched_w"].items() if site in own),
            "delivered_wh": sum(energy for site, energy in one["delivered_wh"].items() if site in own),
        }
        for one in events
        if start <= one["start_ns"] < end and own & {*one["offers"], *one["dispatched_w"]}
    ][:200]


@dataclass(slots=True)
class _Battery:
    """The baseline's battery."""

    power_w: float
    energy_wh: float
    stored_wh: float

    @classmethod
    def of(cls, view: CloudView, site: str) -> _Battery:
        assets = (view.announcements.get(site) or {}).get("assets", ())
        known = [one for one in assets if str(one.get("kind")) == "battery"]
        power = sum(one.get("rated_power_w") or 0.0 for one in known)
        energy = sum(one.get("rated_energy_wh") or 0.0 for one in known)
        return cls(power, energy, energy / 2)

    def after(self, net_wh: float, slot_s: int) -> float:
        """What the grid gives (positive) or takes after the battery has taken its part."""
        most = self.power_w * slot_s / 3600
        if net_wh < 0:
            taken = min(-net_wh, most, (self.energy_wh - self.stored_wh) / EACH_WAY)
            self.stored_wh += taken * EACH_WAY
            return net_wh + taken
        given = min(net_wh, most, self.stored_wh * EACH_WAY)
        self.stored_wh -= given / EACH_WAY
        return net_wh - given
