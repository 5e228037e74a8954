"""What stored energy is worth: backward dynamic programming over the state of charge.

The value of water in a reservoir, applied to a battery (Bellman 1957; Pereira and Pinto 1991 for hydro power): from expected net
load and prices of the coming slots, the cost to go V(t, s) for each state of charge s. Its slope is the value of the next
stored watt-hour, and the control cycle compares it with the price of the moment:

- charge from the grid when the price is below the slope times the efficiency,
- cover the site's own deficit when the price is above the slope divided by the efficiency,
- take surplus whenever it would otherwise be sold below the slope times the efficiency.

What the grid should add is drawn at one level over all the time that is as cheap (:func:`charge_level_w`), never at full power
before the expensive hours: the same energy at the same price, without a peak of its own.

Expected net load may come with its spread: the cost to go is then the mean over a low, a middle and a high slot, each with its own
best answer, as the battery will follow what is measured (stochastic dynamic programming with recourse).

So a wrong forecast costs little: what is done now follows what is measured now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

LEVELS = 33
_OFF = 1.2247448713915890
"""Three points of equal weight with the mean and variance of a normal distribution lie √1.5 standard deviations out."""
_FILL_H = 4.0
"""The last hours of the cheap time, over which the grid fills what is missing: waiting longer leaves more to the sun, and makes a
higher level."""
CYCLE_COST_TICKS = 100
"""Wear of the battery a kWh discharged, in ticks (1 ct): keeps it from trading for next to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """All batteries of a site taken together."""

    energy_wh: float
    power_w: float
    efficiency: float = 0.9486832980505138
    """One way."""
    reserve_wh: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueOfStorage:
    """Cost to go of each slot, by stored energy."""

    start_ns: int
    slot_ns: int
    step_wh: float
    efficiency: float
    cost: tuple[tuple[float, ...], ...]
    """One row a slot boundary, in tick · Wh; one column a level of stored energy."""

    def worth_wh(self, utc_ns: int, ticks: float) -> float | None:
        """Stored energy up to which the next watt-hour is worth more than ``ticks``; none outside the horizon."""
        if self.slope_ticks(utc_ns, 0.0) is None:
            return None
        low, high = 0.0, (len(self.cost[0]) - 1) * self.step_wh
        for _ in range(10):
            middle = (low + high) / 2
            slope = self.slope_ticks(utc_ns, middle)
            low, high = (middle, high) if slope is not None and slope > ticks else (low, middle)
        return low

    @property
    def end_ns(self) -> int:
        """UTC after which this says nothing."""
        return self.start_ns + (len(self.cost) - 1) * self.slot_ns

    def slope_ticks(self, utc_ns: int, stored_wh: float) -> float | None:
        """Value of the next stored watt-hour, in ticks; none outside the horizon."""
        index = (utc_ns - self.start_ns) // self.slot_ns
        if not 0 <= index < len(self.cost) - 1:
            return None
        row = self.cost[index + 1]
        at = min(max(stored_wh / self.step_wh, 0.0), len(row) - 1.001)
        level = int(at)
        # Slopes of the pieces below and above, blended by where we are: no jump of the value at a level's edge.
        here = (row[level] - row[level + 1]) / self.step_wh
        share = at - level
        if share < 0.5 and level > 0:
            below = (row[level - 1] - row[level]) / self.step_wh
            return here * (0.5 + share) + below * (0.5 - share)
        if share >= 0.5 and level + 2 < len(row):
            above = (row[level + 1] - row[level + 2]) / self.step_wh
            return here * (1.5 - share) + above * (share - 0.5)
        return here


def value_of_storage(
    storage: Storage,
    net_wh: Sequence[float],
    import_ticks: Sequence[int],
    feed_in_ticks: int,
    *,
    start_ns: int,
    slot_s: int,
    spread_wh: Sequence[float] | None = None,
) -> ValueOfStorage:
    """Solve for the cost to go.

    Args:
        storage: The battery.
        net_wh: Expected load less PV of each slot; negative is surplus.
        import_ticks: Price of imported energy in each slot.
        feed_in_ticks: Price of exported energy.
        start_ns: UTC start of the first slot.
        slot_s: Length of a slot.
        spread_wh: Standard deviation of each slot's net load; none for a forecast taken as certain.
    """
    step = storage.energy_wh / (LEVELS - 1)
    reach = min(LEVELS - 1, max(1, int(storage.power_w * slot_s / 3600 / step)))
    one_way = storage.efficiency
    wear = CYCLE_COST_TICKS
    # Energy at the end is worth what it replaces at the cheapest hour: neither hoarded nor thrown away.
    last_worth = min(import_ticks) * one_way if import_ticks else 0.0
    after = [-level * step * last_worth for level in range(LEVELS)]
    rows = [tuple(after)]
    spreads = spread_wh if spread_wh is not None else [0.0] * len(net_wh)
    for net, price, spread in zip(reversed(net_wh), reversed(import_ticks), reversed(spreads), strict=True):
        befores = []
        for off in (-_OFF * spread, 0.0, _OFF * spread) if spread > 0 else (0.0,):
            costs = []
            for move in range(-reach, reach + 1):
                battery = move * step / one_way if move > 0 else move * step * one_way
                grid = net + off + battery
                worn = -battery * wear if move < 0 else 0.0
                costs.append((grid * price if grid > 0 else grid * feed_in_ticks) + worn)
            convex = price >= feed_in_ticks >= 0
            befores.append(_best_convex(costs, after, reach) if convex else _best(costs, after, reach))
        after = befores[0] if len(befores) == 1 else [sum(three) / 3 for three in zip(*befores, strict=True)]
        rows.append(tuple(after))
    return ValueOfStorage(
        start_ns=start_ns,
        slot_ns=slot_s * 1_000_000_000,
        step_wh=step,
        efficiency=one_way,
        cost=tuple(reversed(rows)),
    )


def _best(costs: Sequence[float], after: Sequence[float], reach: int) -> list[float]:
    """For each level the least cost of a move and what follows it: every move is tried."""
    before = []
    for level in range(LEVELS):
        low, high = max(-reach, -level), min(reach, LEVELS - 1 - level)
        before.append(
            min(map(float.__add__, costs[low + reach : high + reach + 1], after[level + low : level + high + 1]))
        )
    return before


def _best_convex(costs: Sequence[float], after: Sequence[float], reach: int) -> list[float]:
    """The same for convex costs: the least of a sum of two convex functions has both their slopes, in rising order.

    Costs are convex where energy is sold for no more than it is bought for and neither price is negative (Rockafellar, *Convex
    Analysis*, 1970, section 5: infimal convolution); some four times faster than trying every move.
    """
    slopes = [costs[at] - costs[at + 1] for at in range(2 * reach - 1, -1, -1)]
    slopes += [after[at + 1] - after[at] for at in range(LEVELS - 1)]
    slopes.sort()
    total = list(accumulate(slopes, initial=costs[2 * reach] + after[0]))
    return total[reach : reach + LEVELS]


def battery_policy(
    rest_w: float,
    stored_wh: float,
    storage: Storage,
    slope_ticks: float | None,
    import_ticks: int,
    feed_in_ticks: int,
    charge_level_w: float | None = None,
) -> float:
    """Battery power for the site's need of this moment.

    Args:
        rest_w: What the site takes beside its battery, less what it has bought and plus what it has sold for now.
        stored_wh: Energy in the battery.
        storage: The battery.
        slope_ticks: Value of stored energy; none means self-consumption.
        import_ticks: Price now.
        feed_in_ticks: What export brings now.
        charge_level_w: Level up to which the grid may be drawn on for charging; none for the battery's full power.

    Returns:
        Power, positive charging.
    """
    one_way = storage.efficiency
    if charge_level_w is None:
        if slope_ticks is not None and slope_ticks * one_way > import_ticks:
            return storage.power_w  # the grid is cheaper than what this will replace
    elif charge_level_w > max(0.0, rest_w):
        return min(storage.power_w, charge_level_w - rest_w)
    if rest_w <= 0:
        worth = slope_ticks is None or slope_ticks * one_way >= feed_in_ticks
        return min(-rest_w, storage.power_w) if worth else 0.0
    if stored_wh <= storage.reserve_wh:
        return 0.0
    if slope_ticks is not None and (slope_ticks + CYCLE_COST_TICKS) / one_way >= import_ticks:
        return 0.0  # worth more later
    return -min(rest_w, storage.power_w)


def follow_band(rest_w: float, band_w: tuple[float, float], stored_wh: float, storage: Storage) -> float:
    """Battery power that keeps the exchange inside a plan's band, whatever the site takes now.

    Args:
        rest_w: What the site takes beside its battery.
        band_w: Exchange below which the battery takes, and above which it gives.
        stored_wh: Energy in the battery.
        storage: The battery; nothing is given from its reserve.

    Returns:
        Power, positive charging; 0 inside the band.
    """
    low, high = band_w
    power = min(max(rest_w, low), max(low, high)) - rest_w
    if power < 0 and stored_wh <= storage.reserve_wh:
        return 0.0
    return min(max(power, -storage.power_w), storage.power_w)


def charge_level_w(
    storage: Storage,
    value: ValueOfStorage,
    utc_ns: int,
    stored_wh: float,
    net_wh: Sequence[float],
    import_ticks: Sequence[int],
) -> float:
    """The lowest constant grid power at which the energy worth buying is bought by the end of the time that is as cheap.

    Found by filling the expected net load of that time up to a level, as water fills a valley.

    Args:
        storage: The battery.
        value: Of stored energy.
        utc_ns: Now.
        stored_wh: Energy in the battery.
        net_wh: Expected net load of the slots from ``value.start_ns`` on.
        import_ticks: Prices of the same slots.
    """
    first = (utc_ns - value.start_ns) // value.slot_ns
    if not 0 <= first < len(net_wh):
        return 0.0
    price, hours = import_ticks[first], value.slot_ns / 3.6e12
    last = first + 1
    while last < len(net_wh) and import_ticks[last] <= price:
        last += 1
    begin = last - max(1, round(_FILL_H / hours))
    if first < begin:
        return 0.0  # the sun may still bring it
    # At the end of the cheap time: before it, a watt-hour is worth no more than buying it a little later costs.
    target = value.worth_wh(value.start_ns + (last - 1) * value.slot_ns, price / storage.efficiency)
    needed = 0.0 if target is None else (target - stored_wh) / storage.efficiency
    if needed <= 0:
        return 0.0
    left = 1 - (utc_ns - value.start_ns - first * value.slot_ns) / value.slot_ns
    nets = [(net_wh[at] / hours, hours * (max(left, 1 / 3) if at == first else 1.0)) for at in range(first, last)]
    low, high = 0.0, max(net for net, _ in nets) + storage.power_w
    for _ in range(14):
        middle = (low + high) / 2
        got = sum(min(storage.power_w, max(0.0, middle - net)) * length for net, length in nets)
        low, high = (middle, high) if got < needed else (low, middle)
    return high


def expected_grid_wh(
    storage: Storage,
    value: ValueOfStorage,
    stored_wh: float,
    net_wh: Sequence[float],
    import_ticks: Sequence[int],
    feed_in_ticks: int,
) -> list[float]:
    """Energy over the grid connection in each slot if the policy is followed and the forecast holds."""
    hours = value.slot_ns / 3.6e12
    result = []
    for index, (net, price) in enumerate(zip(net_wh, import_ticks, strict=True)):
        slope = value.slope_ticks(value.start_ns + index * value.slot_ns, stored_wh)
        now_ns = value.start_ns + index * value.slot_ns
        level = charge_level_w(storage, value, now_ns, stored_wh, net_wh, import_ticks)
        battery = battery_policy(net / hours, stored_wh, storage, slope, price, feed_in_ticks, level) * hours
        if battery > 0:
            battery = min(battery, (storage.energy_wh - stored_wh) / storage.efficiency)
            stored_wh += battery * storage.efficiency
        else:
            battery = -min(-battery, max(0.0, stored_wh - storage.reserve_wh) * storage.efficiency)
            stored_wh += battery / storage.efficiency
        result.append(net + battery)
    return result
