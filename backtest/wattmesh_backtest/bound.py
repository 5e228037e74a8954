"""The perfect-foresight bound: what nobody who plans can get below, as a linear programme over the whole period.

It sees every coming hour, loses nothing to control, and its battery is not slowed near full or empty; prices that hold through an
hour let four quarter hours be one step, which can only help it. So it is a bound and no plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt
from wattmesh_simulators.plant.physics import ONE_WAY_EFFICIENCY

from wattmesh_backtest.data import Period, SiteData, prices
from wattmesh_backtest.site import INITIAL_SOC

Array = npt.NDArray[np.float64]
_TICK_WH = 1e7
"""Ticks · Wh a unit of the currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Least cost, in the currency's unit."""

    alone: dict[str, float]
    """Each site for itself."""
    together: float
    """All as one connection with all their batteries: what a market or a community could reach."""


def perfect(period: Period) -> Bound:
    """Both bounds of a period; raises AssertionError where a programme has no optimum (it always has one)."""
    alone = {one.id: _least(period, [one]) for one in period.sites}
    return Bound(alone=alone, together=_least(period, period.sites))


def _steps(period: Period) -> npt.NDArray[np.int64]:
    """Numbers of the slots that are played, in groups of an hour where prices hold through each hour; else one by one."""
    table = prices(period)["import"]
    whole = all(period.played) and period.slots % 4 == 0
    hourly = whole and all(len(set(table[at : at + 4])) == 1 for at in range(0, period.slots, 4))
    if hourly:
        return np.arange(period.slots, dtype=np.int64).reshape(-1, 4)
    return np.array([at for at in range(period.slots) if period.played[at]], dtype=np.int64).reshape(-1, 1)


def _least(period: Period, sites: Sequence[SiteData]) -> float:
    steps = _steps(period)
    hours = steps.shape[1] / 4
    table = prices(period)
    buy = np.array(table["import"], dtype=np.float64)[steps[:, 0]]
    sell = np.array(table["feed_in"], dtype=np.float64)[steps[:, 0]]
    load, pv = (
        np.sum([np.array(getattr(one, name))[steps].sum(axis=1) for one in sites], axis=0)
        for name in ("load_wh", "pv_wh")
    )
    net = load - pv
    energy, power = sum(one.battery_wh for one in sites), sum(one.battery_w for one in sites if one.battery_wh)
    if energy == 0:
        cost = np.where(net > 0, net * buy, net * sell).sum()
        return float(cost) / _TICK_WH
    return _solve(load, pv, buy, sell, energy, power * hours, INITIAL_SOC * energy) / _TICK_WH


def _solve(load: Array, pv: Array, buy: Array, sell: Array, energy: float, most: float, first: float) -> float:
    """Columns a step: charged, discharged, stored at its end, imported, exported (and curtailed, where exporting costs)."""
    net, count = load - pv, len(load)
    curtail = bool((sell < 0).any())
    kinds = 6 if curtail else 5
    cost = np.zeros(kinds * count)
    cost[3 * count : 4 * count], cost[4 * count : 5 * count] = buy, -sell
    lower = np.zeros(kinds * count)
    upper = np.zeros(kinds * count)
    upper[: 2 * count], upper[2 * count : 3 * count] = most, energy
    upper[3 * count : 4 * count], upper[4 * count : 5 * count] = load + most, pv + most
    if curtail:
        upper[5 * count :] = pv
    index: list[npt.NDArray[np.int64]] = []
    value: list[Array] = []
    step = np.arange(count, dtype=np.int64)
    stored_rows = np.stack([step, count + step, 2 * count + step, 2 * count + step - 1], axis=1)
    stored_values = np.tile([-ONE_WAY_EFFICIENCY, 1 / ONE_WAY_EFFICIENCY, 1.0, -1.0], (count, 1))
    balance = [3 * count + step, 4 * count + step, step, count + step]
    signs = [1.0, -1.0, -1.0, 1.0]
    if curtail:
        balance.append(5 * count + step)
        signs.append(-1.0)
    index += [stored_rows[0, :3], stored_rows[1:].ravel(), np.stack(balance, axis=1).ravel()]
    value += [stored_values[0, :3], stored_values[1:].ravel(), np.tile(signs, (count, 1)).ravel()]
    widths: npt.NDArray[np.int64] = np.array([3, *[4] * (count - 1), *[len(signs)] * count], dtype=np.int64)
    right: Array = np.concatenate([[first], np.zeros(count - 1), net])
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = kinds * count, 2 * count
    model.col_cost_, model.col_lower_, model.col_upper_ = cost, lower, upper
    model.row_lower_, model.row_upper_ = right, right
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(widths)])
    model.a_matrix_.index_ = np.concatenate(index)
    model.a_matrix_.value_ = np.concatenate(value)
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise AssertionError(f"the bound has no optimum: {solver.getModelStatus()}")
    found = float(solver.getInfo().objective_function_value)
    if not math.isfinite(found):
        raise AssertionError("the bound is not finite")
    return found
