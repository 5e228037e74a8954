"""The site's side of a community's agreement: its exchange for a wish, and the plan that follows from the last round.

The cloud solves the sharing problem by ADMM (Boyd et al. 2011, section 7.3): each round it sends every site a wished exchange and a
weight, and the site answers with the exchange that costs it least when the distance from the wish is charged with its square. What
the site consumes, produces and stores never leaves it. Solved by backward dynamic programming over the state of charge, with
interpolation between its levels on the way forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.plans import CoordinationReply, CoordinationRound, SitePlan
from wattmesh_a2a.tariff import Tariff

from wattmesh_edge.agents.planner import CYCLE_COST_TICKS, Storage

_LEVELS = 49
_FINE = 9
_LONGEST_S = 86_400
"""No plan from elsewhere holds for longer."""
_SLOTS_AT_MOST = 1000
_SOME_W = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """What a site knows of itself for a round; never sent."""

    storage: Storage
    stored_wh: float
    net_wh: tuple[float, ...]
    """Expected load less PV of each slot of the round."""
    import_ticks: tuple[int, ...]
    feed_in_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What the site would do."""

    grid_wh: tuple[float, ...]
    battery_wh: tuple[float, ...]
    """AC side, positive charging."""
    stored_wh: tuple[float, ...]
    """At the end of each slot."""


def check_site_plan(plan: SitePlan, site_id: str, now_ns: int) -> None:
    """Refuse a plan that is another site's or cannot be followed; raises :class:`ConfigurationError`."""
    if plan.site_id != site_id:
        raise ConfigurationError(f"a plan of {plan.site_id} came to {site_id}")
    count = len(plan.grid_w)
    sizes = {len(plan.battery_w), len(plan.stored_wh), len(plan.min_grid_w), len(plan.max_grid_w)}
    sizes |= {len(load.power_w) for load in plan.loads} | ({len(plan.committed_w)} if plan.committed_w else set())
    if plan.slot_s <= 0 or not 0 < count <= _SLOTS_AT_MOST or sizes != {count}:
        raise ConfigurationError(f"a plan for {site_id} has rows of different lengths, or too many slots")
    if any(low > high for low, high in zip(plan.min_grid_w, plan.max_grid_w, strict=True)):
        raise ConfigurationError(f"a plan for {site_id} asks for more than at most and less than at least at a time")
    if plan.expires_ns > now_ns + _LONGEST_S * NS_PER_S:
        raise ConfigurationError(f"a plan for {site_id} holds for more than a day")


def view_of(
    wanted: CoordinationRound,
    storage: Storage,
    stored_wh: float | None,
    expected_wh: Callable[[int], float | None],
    tariff: Tariff,
    *,
    slot_s: int,
) -> SiteView | None:
    """What the site expects for a round's slots; none where it does not know enough to take part.

    Args:
        wanted: The round; its slots are whole multiples of ``slot_s``.
        storage: The battery.
        stored_wh: Energy in it; none where it is not known.
        expected_wh: Load less PV of the site's own slot that starts at a time.
        tariff: Prices.
        slot_s: Length of the site's own slots.
    """
    if stored_wh is None or wanted.slot_s % slot_s or not 0 < len(wanted.wish_w) <= _SLOTS_AT_MOST:
        return None
    net, prices = [], []
    for index in range(len(wanted.wish_w)):
        start = wanted.start_ns + index * wanted.slot_s * NS_PER_S
        parts = [expected_wh(start + step * NS_PER_S) for step in range(0, wanted.slot_s, slot_s)]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts):
            return None
        net.append(sum(known))
        prices.append(tariff.import_price_ticks(start))
    return SiteView(
        storage=storage,
        stored_wh=stored_wh,
        net_wh=tuple(net),
        import_ticks=tuple(prices),
        feed_in_ticks=tariff.feed_in_ticks(),
    )


def answer_round(
    wanted: CoordinationRound, site_id: str, view: SiteView | None, now_ns: int
) -> tuple[CoordinationReply, SitePlan | None]:
    """The answer, and with the last round the plan to follow."""
    if wanted.site_id != site_id:
        raise ConfigurationError(f"a round for {wanted.site_id} came to {site_id}")
    hours = wanted.slot_s / 3600
    if view is None:
        return _reply(wanted, ()), None
    found = best_exchange(view, [wish * hours for wish in wanted.wish_w], wanted.weight_ticks, wanted.slot_s)
    grid = tuple(round(energy / hours) for energy in found.grid_wh)
    plan = _plan_of(wanted, found, hours, now_ns) if wanted.final else None
    if plan is not None:
        check_site_plan(plan, site_id, now_ns)
    return _reply(wanted, grid), plan


def _reply(wanted: CoordinationRound, grid_w: tuple[int, ...]) -> CoordinationReply:
    return CoordinationReply(
        site_id=wanted.site_id, agreement_id=wanted.agreement_id, number=wanted.number, grid_w=grid_w
    )


def _plan_of(wanted: CoordinationRound, found: Exchange, hours: float, now_ns: int) -> SitePlan:
    """Surplus is taken and need is covered as agreed; where the battery rests, only what exceeds the agreed peak is."""
    grid = [energy / hours for energy in found.grid_wh]
    battery = [energy / hours for energy in found.battery_wh]
    peak = max(0.0, *grid)
    low = [level if power > _SOME_W else min(0.0, level) for level, power in zip(grid, battery, strict=True)]
    high = [level if power < -_SOME_W else max(peak, level) for level, power in zip(grid, battery, strict=True)]
    return SitePlan(
        site_id=wanted.site_id,
        issued_ns=now_ns,
        expires_ns=wanted.expires_ns,
        start_ns=wanted.start_ns,
        slot_s=wanted.slot_s,
        grid_w=tuple(round(level) for level in grid),
        battery_w=tuple(round(power) for power in battery),
        stored_wh=tuple(round(energy) for energy in found.stored_wh),
        min_grid_w=tuple(round(level) for level in low),
        max_grid_w=tuple(max(round(above), round(below)) for below, above in zip(low, high, strict=True)),
    )


def best_exchange(view: SiteView, wish_wh: Sequence[float], weight_ticks: float, slot_s: int) -> Exchange:
    """The exchange with the least cost to the site and charge for its distance from the wish.

    Args:
        view: Of the site.
        wish_wh: One a slot.
        weight_ticks: See :class:`wattmesh_a2a.plans.CoordinationRound`.
        slot_s: Length of a slot.
    """
    storage, hours = view.storage, slot_s / 3600
    one_way, full = storage.efficiency, max(storage.energy_wh, 1e-6)
    step = full / (_LEVELS - 1)
    most = storage.power_w * hours

    def cost(index: int, battery: float) -> float:
        """Of a slot, tick · Wh: energy, wear, distance."""
        grid = view.net_wh[index] + battery
        money = grid * view.import_ticks[index] if grid > 0 else grid * view.feed_in_ticks
        away = (grid - wish_wh[index]) / 1000 / hours
        return money + CYCLE_COST_TICKS * max(0.0, -battery) + 500 * weight_ticks * away * away * hours

    up, down = int(most * one_way / step), int(most / one_way / step)
    powers = [move * step / one_way if move > 0 else move * step * one_way for move in range(-down, up + 1)]
    worth = max(0.0, min(view.import_ticks, default=0)) * one_way
    after = [-level * step * worth for level in range(_LEVELS)]
    rows = [after]
    for index in reversed(range(len(view.net_wh))):
        costs = [cost(index, power) for power in powers]
        before = []
        for level in range(_LEVELS):
            low, high = max(-down, -level), min(up, _LEVELS - 1 - level)
            before.append(
                min(map(float.__add__, costs[low + down : high + down + 1], after[level + low : level + high + 1]))
            )
        after = before
        rows.append(after)
    rows.reverse()
    stored = min(max(view.stored_wh, 0.0), full)
    grid, batteries, energies = [], [], []
    for index, net in enumerate(view.net_wh):
        least = min(storage.reserve_wh, stored)
        battery = _best(index, stored, (least, full), most, one_way, rows[index + 1], step, cost)
        stored += battery * one_way if battery > 0 else battery / one_way
        stored = min(max(stored, 0.0), full)
        grid.append(net + battery)
        batteries.append(battery)
        energies.append(stored)
    return Exchange(grid_wh=tuple(grid), battery_wh=tuple(batteries), stored_wh=tuple(energies))


def _best(
    index: int,
    stored: float,
    limits: tuple[float, float],
    most: float,
    one_way: float,
    after: Sequence[float],
    step: float,
    cost: Callable[[int, float], float],
) -> float:
    """Battery energy of one slot: a search that is narrowed three times; cost to go between two levels is a line."""
    low = max(limits[0] - stored, -most / one_way)
    high = min(limits[1] - stored, most * one_way)
    high = max(high, low)

    def total(change: float) -> float:
        at = min(max((stored + change) / step, 0.0), _LEVELS - 1.001)
        level = int(at)
        later = after[level] + (at - level) * (after[level + 1] - after[level])
        return cost(index, change / one_way if change > 0 else change * one_way) + later

    best = 0.0 if low <= 0 <= high else low
    for pieces in (_LEVELS, _FINE, _FINE):
        width = (high - low) / pieces
        places = [low + width * number for number in range(pieces + 1)]
        best = min([*places, best], key=total)
        low, high = max(low, best - width), min(high, best + width)
    return best / one_way if best > 0 else best * one_way
