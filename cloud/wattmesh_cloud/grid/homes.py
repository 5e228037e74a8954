"""The batteries of a community, each its own, planned together against what is *expected* of cost, carbon, ramps and peaks.

Import that is clipped at zero, a ramp and a peak are not linear in the load: their expectation is more than their value at the
mean. So each is taken at a few quantiles of the load's error and averaged: max(0, g + ε) over homes and over the sum, |Δg + ε| over
the sum. That is a sample average approximation of a two-stage problem whose first stage, the batteries' power, is fixed before the
hour (Shapiro, Dentcheva, Ruszczyński 2009, Lectures on Stochastic Programming, chapter 5). Where the power may follow the running
hour, its error is 0.

A kept HiGHS model: each hour right-hand sides and costs change, and the simplex starts from the last basis. ``highspy`` is an
optional extra.
"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is expected of the coming hours; homes × steps where nothing else is said, kWh an hour."""

    net: Array
    """Load less PV."""
    home_off: Array
    """Homes × steps × samples: equally likely errors of each home's net load."""
    total_off: Array
    """Steps × samples: the same of the sum."""
    ramp_off: Array
    """Steps × samples of the change from one hour to the next of the sum."""
    peak_off: Array
    """Steps: how far an upper quantile of the sum is above its mean; not negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """What counts how much; all in one unit, which one does not matter."""

    price: Array
    """Steps: a kWh that the community imports."""
    carbon: Array
    """Steps: a kWh that a home imports."""
    ramp: float
    """A kWh/h of change of the sum."""
    peak: float
    """A kWh/h of the sum above the billing period's highest."""
    day_peak: float
    """A kWh/h of the sum's highest hour of the horizon."""
    year_peak: float
    """A kWh/h of the sum above ``ratchet_kw`` in any hour: what was reached before costs nothing again. By the hour and not by
    the horizon's highest, under which other hours could be filled up for nothing."""
    worth: float
    """A kWh that is stored at the end."""


class HomesPlanner:
    """See the module.

    Args:
        homes: How many.
        energy_kwh: Of each home's battery.
        power_kw: Of each, AC side, either way.
        efficiency: One way.
        steps: Hours to look ahead.
        samples: Of the errors of homes and of their sum.
        ramp_samples: Of the errors of a change.
    """

    def __init__(
        self,
        homes: int,
        *,
        energy_kwh: float,
        power_kw: float,
        efficiency: float,
        steps: int = 24,
        samples: int = 3,
        ramp_samples: int = 3,
    ) -> None:
        self._homes, self._steps, self._samples, self._ramps = homes, steps, samples, ramp_samples
        sizes = {
            "charge": (homes, steps),
            "discharge": (homes, steps),
            "stored": (homes, steps),
            "own": (homes, steps, samples),
            "bought": (steps, samples),
            "total": (steps,),
            "ramp": (steps, ramp_samples),
            "peaks": (2,),
            "over": (steps,),
        }
        self._at, self._count = _numbered(sizes)
        self._build(energy_kwh, power_kw, efficiency)

    def _build(self, energy: float, power: float, one_way: float) -> None:
        at, homes, steps = self._at, self._homes, self._steps
        rows, count = _numbered(
            {
                "balance": (homes, steps),
                "sum": (steps,),
                "own": (homes, steps, self._samples),
                "bought": (steps, self._samples),
                "up": (steps, self._ramps),
                "down": (steps, self._ramps),
                "peak": (2, steps),
                "over": (steps,),
            }
        )
        self._row = rows
        entries: list[tuple[Whole, Whole, Array]] = []

        def put(row: Whole, column: Whole, value: float) -> None:
            row, column = np.broadcast_arrays(row, column)
            entries.append((row.ravel(), column.ravel(), np.full(row.size, value)))

        put(rows["balance"], at["stored"], 1.0)
        put(rows["balance"][:, 1:], at["stored"][:, :-1], -1.0)
        put(rows["balance"], at["charge"], -one_way)
        put(rows["balance"], at["discharge"], 1 / one_way)
        put(rows["sum"], at["total"], 1.0)
        put(rows["own"], at["own"], 1.0)
        for name, sign in (("charge", -1.0), ("discharge", 1.0)):
            put(np.broadcast_to(rows["sum"], (homes, steps)), at[name], sign)
            put(rows["own"], at[name][:, :, None], sign)
        put(rows["bought"], at["bought"], 1.0)
        put(rows["bought"], at["total"][:, None], -1.0)
        for name, sign in (("up", -1.0), ("down", 1.0)):
            put(rows[name], at["ramp"], 1.0)
            put(rows[name], at["total"][:, None], sign)
            put(rows[name][1:], at["total"][:-1, None], -sign)
        put(rows["peak"], at["peaks"][:, None], 1.0)
        put(rows["peak"], at["total"][None], -1.0)
        put(rows["over"], at["over"], 1.0)
        put(rows["over"], at["total"], -1.0)
        row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        order = np.argsort(row, kind="stable")
        infinity = highspy.kHighsInf
        lower, upper = np.zeros(self._count), np.full(self._count, infinity)
        upper[at["charge"]] = upper[at["discharge"]] = power
        upper[at["stored"]] = energy
        lower[at["total"]] = -infinity
        self._energy = energy
        self._low, self._high = np.zeros(count), np.full(count, infinity)
        self._high[rows["balance"]] = self._high[rows["sum"]] = 0.0
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self._count, count
        model.col_cost_, model.col_lower_, model.col_upper_ = np.zeros(self._count), lower, upper
        model.row_lower_, model.row_upper_ = self._low, self._high
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))]).astype(np.int32)
        model.a_matrix_.index_, model.a_matrix_.value_ = column[order].astype(np.int32), value[order]
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("threads", 1)
        self._solver.passModel(model)
        self._rows, self._columns = np.arange(count, dtype=np.int32), np.arange(self._count, dtype=np.int32)

    def plan(
        self,
        expected: Expected,
        charges: Charges,
        *,
        stored_kwh: Array,
        before_kw: float,
        highest_kw: float,
        ratchet_kw: float = 0.0,
    ) -> Array:
        """Power of each battery in the coming hours (homes × steps), positive charging.

        Where the solver finds nothing, or the input has a gap, batteries rest: there is no better guess of an unknown hour.

        Args:
            expected: See there.
            charges: See there.
            stored_kwh: In each battery.
            before_kw: Exchange of the community in the last hour.
            highest_kw: Highest hour of the billing period so far.
            ratchet_kw: Highest hour of the year so far, or what is not worth fighting below.
        """
        row, low, high = self._row, self._low, self._high
        known = (expected.net, expected.home_off, expected.total_off, expected.ramp_off, expected.peak_off)
        if not all(np.isfinite(one).all() for one in known):
            return np.zeros((self._homes, self._steps))
        low[row["balance"][:, 0]] = high[row["balance"][:, 0]] = np.clip(stored_kwh, 0.0, self._energy)
        low[row["sum"]] = high[row["sum"]] = expected.net.sum(axis=0)
        low[row["own"]] = expected.net[:, :, None] + expected.home_off
        low[row["bought"]] = expected.total_off
        before = np.zeros((self._steps, 1))
        before[0] = before_kw
        low[row["up"]], low[row["down"]] = expected.ramp_off - before, before - expected.ramp_off
        low[row["peak"]] = expected.peak_off[None] - np.array([[highest_kw], [0.0]])
        low[row["over"]] = expected.peak_off - ratchet_kw
        cost, at = np.zeros(self._count), self._at
        cost[at["own"]] = charges.carbon[None, :, None] / self._samples
        cost[at["bought"]] = charges.price[:, None] / self._samples
        cost[at["ramp"]] = charges.ramp / self._ramps
        cost[at["peaks"]] = charges.peak, charges.day_peak
        cost[at["over"]] = charges.year_peak
        cost[at["stored"][:, -1]] = -charges.worth
        self._solver.changeColsCost(self._count, self._columns, cost)
        self._solver.changeRowsBounds(len(low), self._rows, low, high)
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            self._solver.clearSolver()
            return np.zeros((self._homes, self._steps))
        found = np.array(self._solver.getSolution().col_value)
        result: Array = found[at["charge"]] - found[at["discharge"]]
        return result


def _numbered(sizes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Whole], int]:
    """Consecutive numbers in blocks of these shapes, and how many they are."""
    blocks, first = {}, 0
    for name, shape in sizes.items():
        size = int(np.prod(shape))
        blocks[name] = np.arange(first, first + size).reshape(shape)
        first += size
    return blocks, first
