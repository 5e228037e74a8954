"""Model-predictive control of one site: a linear programme over the coming slots, in a HiGHS model that is kept.

Battery with losses and degradation, PV that may be curtailed, tariff, feed-in and carbon price, a demand charge on an upper
quantile of the net load, connection limits, flexible loads with comfort, market commitments, and reserve for frequency response.
Between two plans only bounds, costs and right-hand sides change, and the simplex starts from the site's last basis (Huangfu and
Hall 2018, doi 10.1007/s12532-017-0130-5).

**Never infeasible.** What may have to give has a slack with a price far above any tariff: the import limit, the reserve, a load's
comfort. What gave is told in ``Plan.reasons``. Energies are in kWh and money in ct in the model: its numbers are near 1.

**The band.** A plan is for the mean; the gateway meets what really comes. So each slot also says between which exchanges the
battery stays at rest: it takes what would bring the exchange below ``min_grid_w``, and gives what would bring it above
``max_grid_w``. Self-consumption is (0, 0); waiting for a dearer hour is (0, peak); filling from the grid is (level, peak). The
band follows from the dual of the storage balance against the slot's prices, and from the plan where the optimum is a level.

``highspy`` is an optional extra (``wattmesh[optimise]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt

from wattmesh_cloud.planning.problem import Array, Battery, Plan, Situation

Numbers = npt.NDArray[np.integer[Any]]

LIMIT_CT = 5_000.0
"""A kWh above the import limit."""
RESERVE_CT = 500.0
"""A kWh and slot that the reserve is short."""
LEVEL_CT = 0.5
"""A kW of the horizon's highest slot, where no demand charge says more: of plans that cost the same, the even one."""
EARLY_CT = 0.05
"""A kWh exchanged with the grid at the begin of the horizon, over one at its end. Of plans that cost the same this chooses the one
that stores surplus before it is surely needed, and buys after more is known."""
_FEW = 1e-6
_REPAIRS = 6
_SOME_W = 20.0
_CHARGE, _DISCHARGE, _KEPT, _OVER, _UNDER, _IMPORT, _EXCESS, _EXPORT, _CURTAIL = range(9)
_BLOCKS = 9
_STEP, _TOTAL, _SHORT = range(3)


@dataclass(slots=True)
class _Data:
    """Bounds, costs and sides of one solve."""

    cost: Array
    lower: Array
    upper: Array
    low: Array
    high: Array


class SitePlanner:
    """See the module. Not to be used from two threads at a time.

    Args:
        steps: Slots to look ahead.
        slot_s: Length of a slot.
        loads: How many flexible loads a situation may have at most.
    """

    def __init__(self, steps: int = 192, slot_s: int = 900, loads: int = 0) -> None:
        self.steps, self.slot_s, self.loads = steps, slot_s, loads
        self._hours = slot_s / 3600
        self._peak = _BLOCKS * steps
        count = _BLOCKS * steps + 1 + 3 * loads * steps
        self._columns = np.arange(count, dtype=np.int32)
        self._rows = np.arange((3 + loads) * steps, dtype=np.int32)
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("threads", 1)
        self._efficiency = 0.0
        self._bases: dict[str, Any] = {}

    # -- the model

    def _columns_of(self, block: int) -> slice:
        return slice(block * self.steps, (block + 1) * self.steps)

    def _load_columns(self, load: int, part: int) -> slice:
        first = self._peak + 1 + (3 * load + part) * self.steps
        return slice(first, first + self.steps)

    def _build(self, efficiency: float) -> None:
        """The matrix; it depends on nothing but the efficiency."""
        steps = self.steps
        at = {block: np.arange(block * steps, (block + 1) * steps) for block in range(_BLOCKS)}
        rows: list[Numbers] = []
        columns: list[Numbers] = []
        values: list[Array] = []

        def put(row: Numbers, column: Numbers, value: float) -> None:
            rows.append(row)
            columns.append(column)
            values.append(np.full(len(row), value))

        step = np.arange(steps)
        for block, sign in ((_KEPT, 1.0), (_OVER, 1.0), (_UNDER, -1.0)):
            put(step, at[block], sign)
            put(step[1:], at[block][:-1], -sign)
        put(step, at[_CHARGE], -efficiency)
        put(step, at[_DISCHARGE], 1 / efficiency)
        for block, sign in (
            (_IMPORT, 1.0), (_EXCESS, 1.0), (_EXPORT, -1.0), (_CURTAIL, -1.0), (_CHARGE, -1.0), (_DISCHARGE, 1.0),
        ):  # fmt: skip
            put(steps + step, at[block], sign)
        put(2 * steps + step, np.full(steps, self._peak), 1.0)
        for block, sign in ((_IMPORT, -1.0), (_EXCESS, -1.0), (_EXPORT, 1.0)):
            put(2 * steps + step, at[block], sign / self._hours)
        for load in range(self.loads):
            parts = [np.arange(steps) + self._load_columns(load, part).start for part in range(3)]
            first = (3 + load) * steps
            put(steps + step, parts[_STEP], -1.0)
            put(first + step, parts[_STEP], -1.0)
            for part, sign in ((_TOTAL, 1.0), (_SHORT, -1.0)):
                put(first + step, parts[part], sign)
                put(first + step[1:], parts[part][:-1], -sign)
        row, column, value = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
        order = np.argsort(row, kind="stable")
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self._columns), len(self._rows)
        model.col_cost_ = model.col_lower_ = np.zeros(len(self._columns))
        model.col_upper_ = np.full(len(self._columns), highspy.kHighsInf)
        model.row_lower_ = model.row_upper_ = np.zeros(len(self._rows))
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(self._rows)))])
        model.a_matrix_.index_ = column[order].astype(np.int32)
        model.a_matrix_.value_ = value[order]
        self._solver.passModel(model)
        self._efficiency = efficiency
        self._bases.clear()

    def _data(self, battery: Battery, now: Situation, import_ct: Array, feed_in_ct: Array, committed: Array) -> _Data:
        """Everything that differs from one solve to the next."""
        steps, hours = self.steps, self._hours
        inf = highspy.kHighsInf
        left = np.ones(steps)
        left[0] = 1 - now.gone_s / self.slot_s
        cost, lower = np.zeros(len(self._columns)), np.zeros(len(self._columns))
        upper = np.full(len(self._columns), inf)
        up, down = (
            np.zeros(steps) if one is None else np.clip(one, 0.0, battery.power_w)
            for one in (now.reserve_up_w, now.reserve_down_w)
        )
        span = hours * left / 1000
        upper[self._columns_of(_CHARGE)] = (battery.power_w - down) * span
        # Nobody gives energy back while taking it is paid for; one battery cannot do both at a time.
        upper[self._columns_of(_DISCHARGE)] = np.where(import_ct < 0, 0.0, (battery.power_w - up) * span)
        full = battery.energy_wh / 1000
        least = np.clip((battery.keep_wh + up * now.reserve_h / battery.efficiency) / 1000, 0.0, full)
        most = np.clip(full - down * now.reserve_h * battery.efficiency / 1000, least, full)
        lower[self._columns_of(_KEPT)], upper[self._columns_of(_KEPT)] = least, most
        upper[self._columns_of(_OVER)], upper[self._columns_of(_UNDER)] = full - most, least
        upper[self._columns_of(_IMPORT)] = np.maximum(now.import_limit_w * span - committed, 0.0)
        upper[self._columns_of(_EXPORT)] = np.maximum(now.export_limit_w * span + committed, 0.0)
        pv = now.pv_wh * left / 1000
        upper[self._columns_of(_CURTAIL)] = pv
        cost[self._columns_of(_DISCHARGE)] = battery.wear_ticks / 100
        early = EARLY_CT * np.linspace(1, 0, steps)
        cost[self._columns_of(_IMPORT)], cost[self._columns_of(_EXPORT)] = import_ct + early, -feed_in_ct + early
        cost[self._columns_of(_EXCESS)] = LIMIT_CT
        cost[self._columns_of(_CURTAIL)] = 0.01
        cost[self._columns_of(_OVER)] = cost[self._columns_of(_UNDER)] = RESERVE_CT * hours
        worth = max(0.0, float(import_ct.min())) * battery.efficiency
        for block, sign in ((_KEPT, -1.0), (_OVER, -1.0), (_UNDER, 1.0)):
            cost[(block + 1) * steps - 1] += sign * worth
        cost[self._peak] = max(now.demand_ticks / 100, LEVEL_CT)
        low, high = np.zeros(len(self._rows)), np.zeros(len(self._rows))
        low[0] = high[0] = min(max(now.stored_wh / 1000, 0.0), full)
        low[steps : 2 * steps] = high[steps : 2 * steps] = now.load_wh * left / 1000 - pv - committed
        side = (committed + now.spread_wh * left / 1000) / hours - now.highest_w / 1000
        side[0] += now.taken_wh / 1000 / hours
        low[2 * steps : 3 * steps], high[2 * steps : 3 * steps] = side, inf
        for index in range(self.loads):
            self._load_data(index, now, span, cost, lower, upper)
        return _Data(cost=cost, lower=lower, upper=upper, low=low, high=high)

    def _load_data(self, index: int, now: Situation, span: Array, cost: Array, lower: Array, upper: Array) -> None:
        power, total, short = (self._load_columns(index, part) for part in range(3))
        if index >= len(now.loads):
            upper[power] = upper[total] = upper[short] = 0.0
            return
        load = now.loads[index]
        upper[power] = load.power_w * span
        least = np.maximum.accumulate(load.at_least_wh) / 1000
        lower[total] = least
        upper[total] = np.maximum(np.maximum.accumulate(load.at_most_wh) / 1000, least)
        upper[short] = least
        # What is short is paid once, where the need arises.
        cost[short] = np.where(np.diff(least, prepend=0.0) > 0, load.discomfort_ticks / 100, 0.0)

    # -- solving

    def plan(self, battery: Battery, now: Situation, *, key: str = "") -> Plan | None:
        """The plan with the least expected cost; none where the solver fails.

        Args:
            battery: Of the site.
            now: What is known. Arrays have ``steps`` values; a value that is not finite is an error of the caller.
            key: Of the site, so that its next plan starts from this one's basis.

        Raises:
            ValueError: For arrays of another length, values that are not finite, or too many loads.
        """
        _check(battery, now, self.steps, self.loads)
        if battery.efficiency != self._efficiency:
            self._build(battery.efficiency)
        reasons = list(now.notes)
        import_ct = now.import_ticks / 100
        if now.carbon_kg is not None:
            import_ct = import_ct + now.carbon_kg * now.carbon_ticks / 100
        if (now.feed_in_ticks / 100 > import_ct).any():
            reasons.append("feed-in above the import price: taken as the import price")
        feed_in_ct = np.minimum(now.feed_in_ticks / 100, import_ct)
        committed = np.zeros(self.steps) if now.committed_wh is None else now.committed_wh / 1000
        limits = np.array([-now.export_limit_w, now.import_limit_w]) * self._hours / 1000
        if ((committed < limits[0] - _FEW) | (committed > limits[1] + _FEW)).any():
            reasons.append("a commitment is beyond the connection: planned up to its limit")
            committed = np.clip(committed, *limits)
        committed = committed.copy()
        committed[0] *= 1 - now.gone_s / self.slot_s  # the rest of what was agreed, had it gone evenly
        data = self._data(battery, now, import_ct, feed_in_ct, committed)
        self._start_from(key)
        solution = self._solve(data)
        if solution is None:
            self._bases.pop(key, None)
            self._solver.clearSolver()
            return None
        self._bases[key] = self._solver.getBasis()
        found, duals = solution
        prices = import_ct, feed_in_ct
        return self._read(battery, now, data, found, duals, committed, prices, reasons)

    def _solve(self, data: _Data) -> tuple[Array, Array] | None:
        """Values of all columns and duals of the storage balance; none where the solver fails.

        Losing energy by charging and discharging at a time can pay in a linear programme (a reserve that has no room, a limit that
        is exceeded). Where it does, the lesser of both is forbidden, and the model solved again.
        """
        solver = self._solver
        solver.changeColsCost(len(data.cost), self._columns, data.cost)
        solver.changeRowsBounds(len(data.low), self._rows, data.low, data.high)
        for _ in range(_REPAIRS):
            solver.changeColsBounds(len(data.cost), self._columns, data.lower, data.upper)
            solver.run()
            if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
                return None
            solution = solver.getSolution()
            found = np.array(solution.col_value)
            charge, discharge = found[self._columns_of(_CHARGE)], found[self._columns_of(_DISCHARGE)]
            both = np.minimum(charge, discharge) > _FEW
            if not both.any():
                break
            data.upper[self._columns_of(_CHARGE)][both & (charge <= discharge)] = 0.0
            data.upper[self._columns_of(_DISCHARGE)][both & (charge > discharge)] = 0.0
        return found, np.array(solution.row_dual)[: self.steps]

    def _start_from(self, key: str) -> None:
        """Begin with the basis of this site's last plan."""
        if key in self._bases and len(self._bases) > 1:
            self._solver.setBasis(self._bases[key])

    def forget(self, key: str) -> None:
        """A site that is gone."""
        self._bases.pop(key, None)

    # -- reading

    def _read(
        self,
        battery: Battery,
        now: Situation,
        data: _Data,
        found: Array,
        duals: Array,
        committed: Array,
        prices: tuple[Array, Array],
        reasons: list[str],
    ) -> Plan:
        """The plan in a solution; ``prices`` of import and feed-in, ct."""
        import_ct, feed_in_ct = prices
        part = {block: found[self._columns_of(block)] for block in range(_BLOCKS)}
        hours = np.full(self.steps, self._hours)
        hours[0] *= 1 - now.gone_s / self.slot_s
        hours = np.maximum(hours, 1e-3)
        net = part[_IMPORT] + part[_EXCESS] - part[_EXPORT] + committed
        loads = {}
        for index, load in enumerate(now.loads):
            loads[load.name] = found[self._load_columns(index, _STEP)] / hours * 1000
            short = found[self._load_columns(index, _SHORT)] * (data.cost[self._load_columns(index, _SHORT)] > 0)
            if short.max(initial=0.0) > 1e-3:
                reasons.append(f"{load.name}: {short.max():.2f} kWh short of what it needs")
        if part[_EXCESS].max() > 1e-4:
            over = part[_EXCESS] / hours
            reasons.append(f"import limit exceeded by up to {over.max():.2f} kW in {int((over > 1e-3).sum())} slots")
        for block, what in ((_UNDER, "reserve not full"), (_OVER, "no room kept for over-frequency")):
            if part[block].max() > 1e-3:
                reasons.append(f"{what}: up to {part[block].max():.2f} kWh in {int((part[block] > 1e-3).sum())} slots")
        grid_w, battery_w = net / hours * 1000, (part[_CHARGE] - part[_DISCHARGE]) / hours * 1000
        base_w = committed / hours * 1000
        cost = float(import_ct @ (part[_IMPORT] + part[_EXCESS])) - float(feed_in_ct @ part[_EXPORT])
        cost += now.demand_ticks / 100 * float(found[self._peak])
        plan = Plan(
            start_ns=now.start_ns,
            slot_s=self.slot_s,
            grid_w=grid_w,
            battery_w=battery_w,
            stored_wh=(part[_KEPT] + part[_OVER] - part[_UNDER]) * 1000,
            curtailed_w=part[_CURTAIL] / hours * 1000,
            loads_w=loads,
            worth_ticks=-duals * 100,
            min_grid_w=base_w,
            max_grid_w=base_w,
            cost_ticks=cost * 100,
            reasons=tuple(reasons),
        )
        peak_w = max(now.highest_w + found[self._peak] * 1000, 0.0)
        return _with_band(plan, battery, now, base_w, peak_w, {"import": import_ct * 100, "feed_in": feed_in_ct * 100})


def _with_band(
    plan: Plan, battery: Battery, now: Situation, base_w: Array, peak_w: float, ticks: Mapping[str, Array]
) -> Plan:
    """Between which exchanges the battery rests; see the module."""
    worth, grid, power = plan.worth_ticks, plan.grid_w, plan.battery_w
    one_way = battery.efficiency
    cap = np.maximum(min(peak_w, now.import_limit_w), base_w)
    gives = (worth + battery.wear_ticks) / one_way < ticks["import"] - 1
    takes = worth * one_way > ticks["feed_in"] - 100 * EARLY_CT - 1
    high = np.where(gives, base_w, cap)
    low = np.where(takes, base_w, -now.export_limit_w)
    # Where the plan moves the battery and the exchange is not at rest, the optimum is a level.
    charging, discharging = power > _SOME_W, power < -_SOME_W
    low = np.where(charging, grid, low)
    high = np.where(discharging, grid, high)
    low = np.where(discharging, np.minimum(low, high), low)
    high = np.maximum(high, low)
    return replace(plan, min_grid_w=low, max_grid_w=high)


def _check(battery: Battery, now: Situation, steps: int, loads: int) -> None:
    if not (0 < battery.efficiency <= 1 and battery.energy_wh >= 0 and battery.power_w >= 0):
        raise ValueError(f"a battery with {battery} cannot be planned")
    if not 0 <= now.gone_s < 86_400 or not np.isfinite([now.stored_wh, now.taken_wh, now.highest_w]).all():
        raise ValueError("stored and taken energy, the highest slot and the time gone have to be finite")
    if len(now.loads) > loads:
        raise ValueError(f"{len(now.loads)} flexible loads, but the model has room for {loads}")
    arrays: list[tuple[str, Array | None]] = [
        (name, getattr(now, name))
        for name in (
            "load_wh", "pv_wh", "spread_wh", "import_ticks", "feed_in_ticks", "carbon_kg", "committed_wh", "reserve_up_w",
            "reserve_down_w",
        )
    ]  # fmt: skip
    for load in now.loads:
        arrays += [(f"{load.name}.{name}", getattr(load, name)) for name in ("power_w", "at_least_wh", "at_most_wh")]
    for name, values in arrays:
        if values is not None and (len(values) != steps or not np.isfinite(values).all()):
            raise ValueError(f"{name}: {steps} finite values are needed")
