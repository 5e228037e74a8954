"""What stored energy is worth: backward dynamic programming over the state of charge.

The value of water in a reservoir, applied to a battery (Bellman 1957; Pereira and Pinto 1991 for hydro power): from expected net
load and prices of the coming slots, the cost to go V(t, s) for each state of charge s. Its slope is the value of the next
stored watt-hour, and the control cycle compares it with the price of the moment:

- charge from the grid when the price is below the slope times the efficiency,
- cover the site's own deficit when the price is above the slope divided by the efficiency,
- take surplus whenever it would otherwise be sold below the slope times the efficiency.

So a wrong forecast costs little: what is done now follows what is measured now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = 33
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
) -> ValueOfStorage:
    """Solve for the cost to go.

    Args:
        storage: The battery.
        net_wh: Expected load less PV of each slot; negative is surplus.
        import_ticks: Price of imported energy in each slot.
        feed_in_ticks: Price of exported energy.
        start_ns: UTC start of the first slot.
        slot_s: Length of a slot.
    """
    step = storage.energy_wh / (LEVELS - 1)
    reach = max(1, int(storage.power_w * slot_s / 3600 / step))
    one_way = storage.efficiency
    wear = CYCLE_COST_TICKS
    # Energy at the end is worth what it replaces at the cheapest hour: neither hoarded nor thrown away.
    last_worth = min(import_ticks) * one_way if import_ticks else 0.0
    after = [-level * step * last_worth for level in range(LEVELS)]
    rows = [tuple(after)]
    for net, price in zip(reversed(net_wh), reversed(import_ticks), strict=True):
        costs = []
        for move in range(-reach, reach + 1):
            battery = move * step / one_way if move > 0 else move * step * one_way
            grid = net + battery
            worn = -battery * wear if move < 0 else 0.0
            costs.append((grid * price if grid > 0 else grid * feed_in_ticks) + worn)
        before = []
        for level in range(LEVELS):
            low, high = max(-reach, -level), min(reach, LEVELS - 1 - level)
            before.append(
                min(map(float.__add__, costs[low + reach : high + reach + 1], after[level + low : level + high + 1]))
            )
        after = before
        rows.append(tuple(after))
    return ValueOfStorage(
        start_ns=start_ns,
        slot_ns=slot_s * 1_000_000_000,
        step_wh=step,
        efficiency=one_way,
        cost=tuple(reversed(rows)),
    )


def battery_policy(
    rest_w: float,
    stored_wh: float,
    storage: Storage,
    slope_ticks: float | None,
    import_ticks: int,
    feed_in_ticks: int,
) -> float:
    """Battery power for the site's need of this moment.

    Args:
        rest_w: What the site takes beside its battery, less what it has bought and plus what it has sold for now.
        stored_wh: Energy in the battery.
        storage: The battery.
        slope_ticks: Value of stored energy; none means self-consumption.
        import_ticks: Price now.
        feed_in_ticks: What export brings now.

    Returns:
        Power, positive charging.
    """
    one_way = storage.efficiency
    if slope_ticks is not None and slope_ticks * one_way > import_ticks:
        return storage.power_w  # the grid is cheaper than what this will replace
    if rest_w <= 0:
        worth = slope_ticks is None or slope_ticks * one_way >= feed_in_ticks
        return min(-rest_w, storage.power_w) if worth else 0.0
    if stored_wh <= storage.reserve_wh:
        return 0.0
    if slope_ticks is not None and (slope_ticks + CYCLE_COST_TICKS) / one_way >= import_ticks:
        return 0.0  # worth more later
    return -min(rest_w, storage.power_w)


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
        battery = battery_policy(net / hours, stored_wh, storage, slope, price, feed_in_ticks) * hours
        if battery > 0:
            battery = min(battery, (storage.energy_wh - stored_wh) / storage.efficiency)
            stored_wh += battery * storage.efficiency
        else:
            battery = -min(-battery, max(0.0, stored_wh - storage.reserve_wh) * storage.efficiency)
            stored_wh += battery / storage.efficiency
        result.append(net + battery)
    return result
