"""The batteries of a community planned as one: cost, carbon, ramps and peaks over the coming day, as a linear programme.

A kept HiGHS model (Huangfu and Hall 2018, doi 10.1007/s12532-017-0130-5): each hour only right-hand sides and costs change, and the
simplex starts from the last basis. Peaks are counted on an upper quantile of the net load, everything else on its mean. Peaks are
soft: there is always a plan. The plan says what all batteries do together; :func:`share` splits it so that homes cover their own
surplus and need first, which a site can do with nothing but the total.

``highspy`` is an optional extra: this module is imported by whoever plans with it, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Alike batteries taken together; AC side, one hour a step."""

    energy_kwh: float
    power_kw: float
    efficiency: float = 0.9486832980505138
    """One way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What a step is charged with; all in one unit, which one does not matter."""

    energy: Array
    """A kWh imported in each step: price and carbon."""
    ramp: float
    """A kWh/h of change between two steps."""
    peak: float
    """A kWh/h above the highest of the billing period."""
    day_peak: float
    """A kWh/h of the highest step of the horizon."""
    wear: float = 0.0
    """A kWh through the battery, either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunityPlan:
    """What to do; the first step is what counts."""

    power_kw: Array
    """Of all batteries, positive charging, one value a step."""
    grid_kw: Array
    solved: bool
    """Whether this is of the asked time, or the last good one moved on."""


class CommunityPlanner:
    """See the module.

    Args:
        pool: The batteries.
        steps: Hours to look ahead.
    """

    def __init__(self, pool: Pool, steps: int = 24) -> None:
        self._pool, self._steps = pool, steps
        self._last: CommunityPlan | None = None
        infinity = highspy.kHighsInf
        count = 6 * steps + 2
        lower, upper = np.zeros(count), np.full(count, infinity)
        upper[: 2 * steps] = pool.power_kw
        upper[2 * steps : 3 * steps] = pool.energy_kwh
        lower[3 * steps : 4 * steps] = -infinity
        charge, discharge, stored, grid, imported, ramp = (range(at * steps, (at + 1) * steps) for at in range(6))
        peak, day_peak = 6 * steps, 6 * steps + 1
        rows: list[dict[int, float]] = []
        one_way = pool.efficiency
        for step in range(steps):
            row = {stored[step]: 1.0, charge[step]: -one_way, discharge[step]: 1 / one_way}
            rows.append(row | ({stored[step - 1]: -1.0} if step else {}))
        rows += [{grid[step]: 1.0, charge[step]: -1.0, discharge[step]: 1.0} for step in range(steps)]
        rows += [{imported[step]: 1.0, grid[step]: -1.0} for step in range(steps)]
        for sign in (-1.0, 1.0):
            for step in range(steps):
                row = {ramp[step]: 1.0, grid[step]: sign}
                rows.append(row | ({grid[step - 1]: -sign} if step else {}))
        rows += [{column: 1.0, grid[step]: -1.0} for column in (peak, day_peak) for step in range(steps)]
        self._low = np.zeros(len(rows))
        self._high = np.concatenate([np.zeros(2 * steps), np.full(len(rows) - 2 * steps, infinity)])
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = count, len(rows)
        model.col_cost_, model.col_lower_, model.col_upper_ = np.zeros(count), lower, upper
        model.row_lower_, model.row_upper_ = self._low, self._high
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        model.a_matrix_.index_ = np.array([column for row in rows for column in row])
        model.a_matrix_.value_ = np.array([value for row in rows for value in row.values()])
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("threads", 1)
        self._solver.passModel(model)
        self._rows = np.arange(len(rows), dtype=np.int32)
        self._columns = np.arange(count, dtype=np.int32)

    def plan(
        self,
        net_kwh: Array,
        upper_net_kwh: Array,
        *,
        stored_kwh: float,
        grid_before_kw: float,
        highest_kw: float,
        weights: Weights,
    ) -> CommunityPlan:
        """Solve for the coming steps; where nothing comes out, the last good plan, and self-consumption after its end.

        Args:
            net_kwh: Expected load less PV of each step, for everybody together.
            upper_net_kwh: What it will hardly exceed.
            stored_kwh: Energy in all batteries.
            grid_before_kw: Exchange of the last step.
            highest_kw: Highest of the billing period so far.
            weights: What counts how much.
        """
        steps, low, high = self._steps, self._low, self._high
        if len(net_kwh) != steps or not (np.isfinite(net_kwh).all() and np.isfinite(upper_net_kwh).all()):
            return self._fallback(net_kwh)
        low[0] = high[0] = min(max(stored_kwh, 0.0), self._pool.energy_kwh)
        low[steps : 2 * steps] = high[steps : 2 * steps] = net_kwh
        low[3 * steps], low[4 * steps] = -grid_before_kw, grid_before_kw
        extra = np.maximum(upper_net_kwh - net_kwh, 0.0)
        low[5 * steps : 6 * steps], low[6 * steps : 7 * steps] = extra - highest_kw, extra
        cost = np.zeros(len(self._columns))
        cost[: 2 * steps] = weights.wear
        cost[3 * steps - 1] = -0.8 * self._pool.efficiency * float(weights.energy.mean())
        cost[4 * steps : 5 * steps] = weights.energy
        cost[5 * steps : 6 * steps] = weights.ramp
        cost[6 * steps], cost[6 * steps + 1] = weights.peak, weights.day_peak
        self._solver.changeColsCost(len(cost), self._columns, cost)
        self._solver.changeRowsBounds(len(low), self._rows, low, high)
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return self._fallback(net_kwh)
        found = np.array(self._solver.getSolution().col_value)
        power = found[:steps] - found[steps : 2 * steps]
        self._last = CommunityPlan(power_kw=power, grid_kw=found[3 * steps : 4 * steps], solved=True)
        return self._last

    def _fallback(self, net_kwh: Array) -> CommunityPlan:
        """The last good plan one step on; at its end, and before there was one, what covers the net load."""
        last = self._last
        if last is not None and len(last.power_kw) > 1:
            self._last = CommunityPlan(power_kw=last.power_kw[1:], grid_kw=last.grid_kw[1:], solved=False)
            return self._last
        need = np.nan_to_num(net_kwh) if len(net_kwh) else np.zeros(1)
        power = np.clip(-need, -self._pool.power_kw, self._pool.power_kw)
        return CommunityPlan(power_kw=power, grid_kw=need + power, solved=False)


def share(total_kw: float, net_kw: Sequence[float] | Array, stored_kwh: Array, one: Pool) -> Array:
    """Split the power of all batteries among homes with alike batteries, for one hour.

    Each home takes its own surplus and covers its own need first; then the rest is spread over what is left of everybody's battery;
    last, homes that still export charge what homes that still import give, which leaves the total as it is.

    Args:
        total_kw: Positive charging.
        net_kw: Load less PV of each home, as measured or expected.
        stored_kwh: Energy in each battery.
        one: A single home's battery.
    """
    net = np.asarray(net_kw, dtype=np.float64)
    room = np.minimum(one.power_kw, np.maximum(one.energy_kwh - stored_kwh, 0.0) / one.efficiency)
    left = np.minimum(one.power_kw, np.maximum(stored_kwh, 0.0) * one.efficiency)
    sign, limit = (1.0, room) if total_kw > 0 else (-1.0, left)
    wanted = abs(total_kw)
    first = np.minimum(limit, np.maximum(-sign * net, 0.0))
    if first.sum() >= wanted:
        power = sign * first * (wanted / first.sum() if first.sum() > 0 else 0.0)
    else:
        free = limit - first
        rest = min(wanted - float(first.sum()), float(free.sum()))
        power = sign * (first + free * (rest / free.sum() if free.sum() > 0 else 0.0))
    after = net + power
    can_take = np.where(power >= 0, room - power, -power)
    can_give = np.where(power <= 0, left + power, power)
    take = np.minimum(np.maximum(-after, 0.0), can_take)
    give = np.minimum(np.maximum(after, 0.0), can_give)
    moved = min(float(take.sum()), float(give.sum()))
    if moved > 1e-9:
        power = power + take * (moved / take.sum()) - give * (moved / give.sum())
    result: Array = power
    return result
