"""What producer and consumer share: the site's view of the coming day, and the battery policy that follows from it."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.control import GRID_CONNECTION, Bounds, Priority, Proposal
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import DemandResponseDispatch
from wattmesh_a2a.market import Order
from wattmesh_a2a.messages import Commitment, IntervalEnergy, MarketRules, Strategy
from wattmesh_a2a.plans import SitePlan
from wattmesh_a2a.tariff import Tariff, slot_start_ns

from wattmesh_edge.agents.planner import (
    Storage,
    ValueOfStorage,
    battery_policy,
    charge_level_w,
    expected_grid_wh,
    follow_band,
    value_of_storage,
)
from wattmesh_edge.agents.response import RETURN_NS, promised_wh
from wattmesh_edge.image import SiteImage

log = logging.getLogger(__name__)

SLOT_S = 900
SLOT_NS = SLOT_S * NS_PER_S
HORIZON_SLOTS = 96
_PROFILE_WEIGHT = 0.25
"""Of a new day in the seasonal profile: about a week of memory."""
_LEASE_PERIODS = 4
_DECILES = 2.563
"""Standard deviations of a normal distribution between its first and its last decile."""


@dataclass(slots=True, kw_only=True)
class Outlook:
    """What the agents know of the coming day; filled by messages and by the site's own meters."""

    tariff: Tariff
    storage: Storage
    trade: bool
    capacity_wh: Mapping[str, float] = field(default_factory=dict)
    """Of each battery that is steered; empty: all count alike."""
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    """Newest of each quantity from the cloud."""
    profile: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Own record: slot of the day (UTC) → mean load and PV, Wh; used when the cloud's forecast does not reach."""
    rules: MarketRules | None = None
    commitments: dict[int, Commitment] = field(default_factory=dict)
    """By start of slot."""
    traded: dict[int, dict[str, int]] = field(default_factory=dict)
    """Own trades that were told before their slot's commitment: start of slot → id → Wh, bought positive."""
    dispatches: dict[str, DemandResponseDispatch] = field(default_factory=dict)
    strategy: Strategy | None = None
    site_plan: SitePlan | None = None
    """Of the cloud or of the community; followed until it expires."""
    value: ValueOfStorage | None = None
    net_wh: tuple[float, ...] = ()
    import_ticks: tuple[int, ...] = ()
    """Prices of the same slots."""
    grid_wh: tuple[float, ...] = ()
    """Expected exchange with the grid of the slots from ``value.start_ns`` on."""
    source: str = "self-consumption"
    export_limit_w: float = 0.0
    """What the connection may export: how far a demand-response offer may go."""
    promised_wh: float = 0.0
    """Energy kept for what was promised for demand response; renewed each cycle."""

    def reserved(self) -> Storage:
        """The storage with the larger of the site's own reserve and the one that the strategy wishes (half of it at most).

        What was promised for demand response is kept on top of the site's own.
        """
        wished = self.strategy.reserve_soc_percent if self.strategy is not None else 0.0
        wished_wh = min(wished, 50.0) / 100 * self.storage.energy_wh
        kept_wh = self.storage.reserve_wh + self.promised_wh
        return replace(self.storage, reserve_wh=max(kept_wh, wished_wh))

    def expected_grid_w(self, slot_ns: int) -> float | None:
        """Expected exchange of a slot by the plan; none where it does not reach."""
        index = (slot_ns - self.value.start_ns) // SLOT_NS if self.value is not None else -1
        return self.grid_wh[index] * 3600 / SLOT_S if 0 <= index < len(self.grid_wh) else None

    def learn(self, interval: IntervalEnergy) -> None:
        """Take a finished slot into the seasonal profile."""
        if not interval.complete:
            return
        slot = interval.slot_start_ns // SLOT_NS % (86_400 // SLOT_S)
        load, pv = self.profile.get(slot, (float(interval.load_wh), float(interval.pv_wh)))
        self.profile[slot] = (
            load + _PROFILE_WEIGHT * (interval.load_wh - load),
            pv + _PROFILE_WEIGHT * (interval.pv_wh - pv),
        )

    def median(self, quantity: str, slot_ns: int) -> float | None:
        """The cloud's expected energy of a slot; none where its forecast does not reach."""
        forecast = self.forecasts.get(quantity)
        if forecast is None or forecast.slot_s != SLOT_S:
            return None
        index = (slot_ns - forecast.start_ns) // SLOT_NS
        if not 0 <= index < len(forecast.values):
            return None
        row = forecast.values[index]
        return row[min(range(len(row)), key=lambda level: abs(forecast.levels[level] - 0.5))]

    def expected_net_wh(self, slot_ns: int) -> tuple[float, str] | None:
        """Expected load less PV of a slot and where it comes from; none where nothing is known."""
        load, pv = self.median("load_wh", slot_ns), self.median("pv_wh", slot_ns)
        if load is not None and pv is not None:
            return load - pv, "plan"
        own = self.profile.get(slot_ns // SLOT_NS % (86_400 // SLOT_S))
        return None if own is None else (own[0] - own[1], "tariff")

    def spread_wh(self, slot_ns: int) -> float:
        """Standard deviation of a slot's net load by the cloud's quantiles (errors of load and PV independent); 0 for unknown."""
        widths = []
        for quantity in ("load_wh", "pv_wh"):
            forecast = self.forecasts.get(quantity)
            index = -1 if forecast is None else (slot_ns - forecast.start_ns) // SLOT_NS
            if forecast is None or forecast.slot_s != SLOT_S or not 0 <= index < len(forecast.values):
                return 0.0
            row, levels = forecast.values[index], forecast.levels
            if len(row) < 2 or (levels[0], levels[-1]) != (0.1, 0.9):
                return 0.0
            widths.append(max(0.0, row[-1] - row[0]) / _DECILES)
        return math.hypot(*widths)

    def net_of(self, slot_ns: int) -> float | None:
        """Expected load less PV of a slot; none where nothing is known."""
        found = self.expected_net_wh(slot_ns)
        return None if found is None else found[0]

    def plan(self, now_ns: int, stored_wh: float | None) -> None:
        """Value the battery for the coming day; without any expectation there is no plan and self-consumption stands."""
        start = slot_start_ns(now_ns, SLOT_S)
        expected = [self.expected_net_wh(start + index * SLOT_NS) for index in range(HORIZON_SLOTS)]
        known = list(_until_unknown(expected))
        if len(known) < 4 or stored_wh is None:
            self.value, self.net_wh, self.grid_wh, self.source = None, (), (), "self-consumption"
            return
        self.net_wh = tuple(net for net, _ in known)
        self.source = known[0][1]
        prices = [self.tariff.import_price_ticks(start + index * SLOT_NS) for index in range(len(known))]
        feed_in = self.tariff.feed_in_ticks()
        self.import_ticks = tuple(prices)
        spread = [self.spread_wh(start + index * SLOT_NS) for index in range(len(known))]
        self.value = value_of_storage(
            self.storage, self.net_wh, prices, feed_in, start_ns=start, slot_s=SLOT_S, spread_wh=spread
        )
        own = expected_grid_wh(self.storage, self.value, stored_wh, self.net_wh, prices, feed_in)
        if self.band_w(now_ns) is not None and self.site_plan is not None:  # what will be followed is what is ordered
            planned = [self.site_plan.expected_grid_w(start + index * SLOT_NS) for index in range(len(own))]
            own = [mine if w is None else w * SLOT_S / 3600 for mine, w in zip(own, planned, strict=True)]
        self.grid_wh = tuple(own)

    def band_w(self, now_ns: int) -> tuple[float, float] | None:
        """Between which exchanges the batteries rest by the plan that was sent; none without one that holds."""
        return None if self.site_plan is None else self.site_plan.band_w(now_ns)

    def followed(self, now_ns: int) -> str:
        """What the battery follows beside the market."""
        return self.source if self.band_w(now_ns) is None else "cloud"

    def stored_wh(self, image: SiteImage) -> float | None:
        """Energy in all batteries, each by its capacity; 0 at a site without any, none when a state of charge is unknown."""
        states = {name: battery.soc_percent for name, battery in image.batteries.items()}
        if self.capacity_wh:
            states = {name: states.get(name) for name in self.capacity_wh}
        weights = [self.capacity_wh.get(name, 1.0) for name in states]
        known = [soc for soc in states.values() if soc is not None]
        if len(known) != len(states):
            return None
        mean = sum(soc * weight for soc, weight in zip(known, weights, strict=True)) / (sum(weights) or 1.0)
        return mean / 100 * self.storage.energy_wh if states else 0.0

    def position_wh(self, slot_ns: int) -> int:
        """Energy bought (positive) or sold for a slot: its commitment, or what was told of its trades so far."""
        commitment = self.commitments.get(slot_ns)
        return commitment.net_wh if commitment is not None else sum(self.traded.get(slot_ns, {}).values())

    def charge_level_w(self, now_ns: int, stored_wh: float) -> float | None:
        """Grid power up to which the battery may be charged from the grid now; none without a plan."""
        if self.value is None:
            return None
        return charge_level_w(self.storage, self.value, now_ns, stored_wh, self.net_wh, self.import_ticks)

    def forget_before(self, now_ns: int) -> None:
        """Drop what is over."""
        self.commitments = {s: c for s, c in self.commitments.items() if s + 2 * SLOT_NS > now_ns}
        self.traded = {slot: trades for slot, trades in self.traded.items() if slot + 2 * SLOT_NS > now_ns}
        self.dispatches = {i: d for i, d in self.dispatches.items() if d.end_ns + RETURN_NS > now_ns}
        if self.strategy is not None and self.strategy.expires_ns <= now_ns:
            self.strategy = None
        if self.site_plan is not None and self.site_plan.expires_ns <= now_ns:
            self.site_plan = None


def _until_unknown(expected: Iterable[tuple[float, str] | None]) -> Iterable[tuple[float, str]]:
    for one in expected:
        if one is None:
            return
        yield one


class SiteAgent(ABC):
    """A producer or consumer agent: it proposes, and has no other power.

    Args:
        name: ``producer`` or ``consumer``.
        site_id: The site.
        outlook: What is known, shared with the other agent.
        period_s: Of the control cycle; proposals are leased for a few of them.
        peak_limit_w: Wished upper limit of import from the site file.
    """

    def __init__(
        self, name: str, site_id: str, outlook: Outlook, *, period_s: float, peak_limit_w: float | None = None
    ) -> None:
        self.name = name
        self.site_id = site_id
        self.outlook = outlook
        self._lease_ns = round(_LEASE_PERIODS * period_s * NS_PER_S)
        self._peak_limit_w = peak_limit_w
        self._bought_or_sold: dict[int, float] = {}

    def propose(self, image: SiteImage, traded_wh: float) -> list[Proposal]:
        """What this agent wants now.

        Args:
            image: The site.
            traded_wh: Grid energy of the running slot so far, from the meter.
        """
        self.outlook.promised_wh = promised_wh(self.outlook, image.time_ns)
        proposals = self._battery(image, traded_wh)
        proposals += self._demand_response(image)
        return proposals + self._peak_guard(image, traded_wh)

    def _peak_guard(self, image: SiteImage, traded_wh: float) -> list[Proposal]:
        """Keep the average import of the quarter hour, which is what is billed, below the limits.

        The site file's limit is the owner's standing word and ranks with what he sets by hand; the strategy's is a plan's. What
        was taken too much since the quarter hour began is made up for in what is left of it (not below a minute: no jolt at the
        end); what was saved is not spent, as a gateway that started in the middle does not know of all that was taken.
        """
        strategy = self.outlook.strategy
        wishes = (
            (Priority.MANUAL_OVERRIDE, self._peak_limit_w, "the owner's peak limit"),
            (Priority.PLAN, strategy.peak_limit_w if strategy else None, "the strategy's peak limit"),
        )
        slot = slot_start_ns(image.time_ns, SLOT_S)
        left_h = max(slot + SLOT_NS - image.time_ns, 60 * NS_PER_S) / 3.6e12
        proposals = []
        for rank, limit_w, reason in wishes:
            if limit_w is not None:
                left_w = max(0.0, (limit_w * SLOT_S / 3600 - traded_wh) / left_h)
                proposals.append(self._bounds(image, rank, -1e9, min(limit_w, left_w), reason))
        return proposals

    def _battery(self, image: SiteImage, traded_wh: float) -> list[Proposal]:
        """The battery policy around what was bought or sold for this slot."""
        rest, stored = image.rest_power_w, self.outlook.stored_wh(image)
        if rest is None or stored is None or not image.batteries:
            return []  # without a battery nothing here can be moved, and loads that can wait have their own agent
        rest += sum(
            power for power in image.loads.values() if power is not None
        )  # a battery may cover these as any other
        outlook, now = self.outlook, image.time_ns
        slot = slot_start_ns(now, SLOT_S)
        position_wh = outlook.position_wh(slot)
        committed_w = 0.0
        priority, source = Priority.PLAN, f"{self.name}:{outlook.followed(now)}"
        if position_wh:
            # What is still to be delivered, over the time that is left (not below a minute: no jolt at the end).
            left_h = max(slot + SLOT_NS - now, 60 * NS_PER_S) / 3.6e12
            committed_w = (position_wh - traded_wh) / left_h
            priority, source = Priority.MARKET_COMMITMENT, f"{self.name}:market"
        band = outlook.band_w(now)
        if band is not None and outlook.site_plan is not None:
            power = follow_band(rest - committed_w + outlook.site_plan.counted_w(now), band, stored, outlook.reserved())
        else:
            slope = outlook.value.slope_ticks(now, stored) if outlook.value is not None else None
            price, feed_in = outlook.tariff.import_price_ticks(now), outlook.tariff.feed_in_ticks()
            level = outlook.charge_level_w(now, stored)
            power = battery_policy(rest - committed_w, stored, outlook.reserved(), slope, price, feed_in, level)
        return [
            Proposal(
                asset_id=GRID_CONNECTION,
                priority=priority,
                source=source,
                expires_ns=image.monotonic_ns + self._lease_ns,
                target_w=rest + power,
            )
        ]

    def _demand_response(self, image: SiteImage) -> list[Proposal]:
        proposals = []
        for dispatch in self.outlook.dispatches.values():
            if dispatch.start_ns <= image.time_ns < dispatch.end_ns and dispatch.power_w:
                level = dispatch.baseline_w + dispatch.power_w
                low, high = (-1e9, float(level)) if dispatch.power_w < 0 else (float(level), 1e9)
                reason = f"demand response {dispatch.event_id}"
                proposals.append(self._bounds(image, Priority.GRID_INSTRUCTION, low, high, reason))
        return proposals

    def _bounds(self, image: SiteImage, priority: Priority, low: float, high: float, reason: str) -> Proposal:
        return Proposal(
            asset_id=GRID_CONNECTION,
            priority=priority,
            source=f"{self.name}:{reason}",
            expires_ns=image.monotonic_ns + self._lease_ns,
            bounds=Bounds(min_w=low, max_w=high, reason=reason),
        )

    @abstractmethod
    def orders(self, slot_ns: int, grid_wh: float) -> list[Order]:
        """Orders for a coming slot in which the site expects to exchange ``grid_wh`` with the grid."""

    def _order(self, slot_ns: int, **terms: object) -> Order:
        assert self.outlook.rules is not None
        return Order(
            client_order_id=f"{self.site_id}-{slot_ns // NS_PER_S}-{self.name}",
            participant_id=self.site_id,
            area_id=self.outlook.rules.area_id,
            slot_start_ns=slot_ns,
            **terms,  # type: ignore[arg-type]  # side, quantity and price, by the two callers
        )
