"""The hourly forecaster of one site on the house's quarter hours: local calendar, late readings, shares inside the hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo

import numpy as np
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.tariff import local_time

from wattmesh_cloud.forecasting.hourly import HourlyForecaster
from wattmesh_cloud.forecasting.model import LEVELS
from wattmesh_cloud.forecasting.regression import Array

HOUR_NS = 3600 * NS_PER_S
SLOT_NS = 900 * NS_PER_S
_AMEND_H = 72
_SETTLED_NS = 2 * SLOT_NS
"""An hour with a reading missing is taken in, as a gap, when the reading has had so long to arrive."""

Past = Mapping[int, tuple[float, float]]
"""Start of a quarter hour → load and PV, Wh."""


class LearnedSite:
    """See the module. Not to be used from two threads at a time.

    Args:
        zone: Of the site: consumption follows the clock on the wall.
        horizon_h: Hours to forecast.
    """

    name = HourlyForecaster.name

    def __init__(self, zone: tzinfo, horizon_h: int) -> None:
        self._zone = zone
        self._model = HourlyForecaster(LEVELS, leads=horizon_h + 1)
        self._first_ns = 0
        self._refitted_ns = 0
        self.reasons: dict[str, tuple[str, ...]] = {}

    def learn(self, past: Past, now_ns: int) -> None:
        """Take in the hours that are over, and readings that came late."""
        complete = now_ns - now_ns % HOUR_NS
        if not self._model.known:
            begun = [slot for slot in past if slot < complete]
            if not begun:
                return
            self._first_ns = -(-min(begun) // HOUR_NS) * HOUR_NS
        end = self._first_ns + self._model.known * HOUR_NS
        for hour_ns in range(max(self._first_ns, end - _AMEND_H * HOUR_NS), min(end, complete), HOUR_NS):
            energy = _hour(past, hour_ns)
            if energy is not None:
                self._model.amend((hour_ns - self._first_ns) // HOUR_NS, *energy)
        waiting = (
            complete - HOUR_NS
            if _hour(past, complete - HOUR_NS) is None and now_ns - complete < _SETTLED_NS
            else complete
        )
        hours = range(end, waiting, HOUR_NS)
        values = np.array([_hour(past, hour_ns) or (np.nan, np.nan) for hour_ns in hours]).reshape(-1, 2)
        if len(values):
            self._model.add(values[:, 0], values[:, 1], *self._calendar(hours))

    def predict(self, start_ns: int, slots: int) -> dict[str, Array] | None:
        """Quantiles (``slots`` × levels) in Wh a quarter hour from ``start_ns`` on, by quantity; none while too little is known.

        A quantity that was not metered for weeks is left out.

        Energy of an hour is shared among its quarters along a line through its neighbours' medians.
        """
        first = self._first_ns + self._model.known * HOUR_NS
        skip = (start_ns - first) // SLOT_NS
        if skip < 0 or skip + slots > self._model.leads * 4:
            return None
        issued = self._model.issue(*self._calendar(range(first, first + self._model.leads * HOUR_NS, HOUR_NS)))
        if issued is None:
            return None
        self.reasons = {f"{name}_wh": quantiles.reasons for name, quantiles in issued.items()}
        self.reasons |= {f"{name}_wh": (why,) for name, why in self._model.unknown.items()}
        return {
            f"{name}_wh": quarters(issued[name].values * 1000)[skip : skip + slots]
            for name in ("load", "pv")
            if name in issued
        }

    def refit_soon(self, now_ns: int) -> bool:
        """Fit anew with the next forecast, at most once a day; whether it will."""
        if now_ns - self._refitted_ns < 24 * HOUR_NS:
            return False
        self._refitted_ns = now_ns
        self._model.refit_soon()
        return True

    def shares(self) -> dict[str, float]:
        """Share of the seasonal quantiles, by quantity."""
        return self._model.shares()

    def _calendar(self, hours: Sequence[int]) -> tuple[list[int], list[int]]:
        local = [local_time(hour_ns, self._zone) for hour_ns in hours]
        return [one.hour for one in local], [one.weekday() for one in local]


def _hour(past: Past, hour_ns: int) -> tuple[float, float] | None:
    """Load and PV of an hour, kWh; none unless all four quarters are known."""
    quarters = [past.get(hour_ns + step * SLOT_NS) for step in range(4)]
    if None in quarters:
        return None
    return sum(q[0] for q in quarters if q) / 1000, sum(q[1] for q in quarters if q) / 1000


def quarters(table: Array) -> Array:
    """Hours × levels to quarters × levels; each hour's energy is kept."""
    middle = table[:, table.shape[1] // 2]
    before, after = np.concatenate([middle[:1], middle[:-1]]), np.concatenate([middle[1:], middle[-1:]])
    slope = np.clip((after - before) / 2, -2 * middle, 2 * middle)
    places = np.array([-0.375, -0.125, 0.125, 0.375])
    safe = np.where(middle > 0, middle, 1.0)
    shares = 0.25 * (1 + np.where(middle > 0, slope / safe, 0.0)[:, None] * places)
    result: Array = (shares[:, :, None] * table[:, None, :]).reshape(-1, table.shape[1])
    return result
