"""The community's planner over the sites of a backtest: once an hour one linear programme for all batteries, then shared out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from wattmesh_cloud.forecasting.model import SeasonalQuantiles
from wattmesh_cloud.grid.community import CommunityPlanner, Pool, Weights, share

from wattmesh_backtest.data import SLOT_NS, Period, prices

Array = npt.NDArray[np.float64]
_HOURS = 24
_HOUR_NS = 4 * SLOT_NS
_KEPT = 24 * 30
_RAMP, _DAY_PEAK = 0.02, 0.1
"""Weight of ramps and of the day's peak against a kWh at the mean price: cost first, without steps that cost nothing to avoid."""


class CommunityControl:
    """See the module. Batteries have to be alike, as its planner has one pool.

    Args:
        period: What is played.
    """

    def __init__(self, period: Period) -> None:
        self._period = period
        own = [one for one in period.sites if one.battery_wh]
        self._names = [one.id for one in own]
        self._one = Pool(energy_kwh=own[0].battery_wh / 1000, power_kw=own[0].battery_w / 1000) if own else None
        count = len(own)
        if self._one is not None:
            pool = Pool(energy_kwh=self._one.energy_kwh * count, power_kw=self._one.power_kw * count)
            self._planner = CommunityPlanner(pool, _HOURS)
        self._model = SeasonalQuantiles()
        table = prices(period)["import"]
        self._price = [table[at] / 1e4 for at in range(0, len(table), 4)]
        self._past: list[float] = []
        self._running = 0.0
        self._highest = 1.0
        self._before = 0.0
        self._planned = -1
        self._power_kw = 0.0

    def alike(self) -> bool:
        """Whether the planner can take these batteries together."""
        return len({(one.battery_wh, one.battery_w) for one in self._period.sites if one.battery_wh}) == 1

    def powers(self, index: int, net_w: Mapping[str, float], stored_wh: Mapping[str, float]) -> dict[str, float]:
        """Power of each battery for a slot.

        Args:
            index: Of the slot.
            net_w: What each site takes now, without its battery: measured.
            stored_wh: Energy in each battery.
        """
        if self._one is None:
            return {}
        hour = index // 4
        total_kw = sum(net_w.values()) / 1000
        stored = np.array([stored_wh[name] / 1000 for name in self._names])
        if hour != self._planned:
            self._plan(hour, total_kw, float(stored.sum()))
        net = np.array([net_w[name] / 1000 for name in self._names])
        found = share(self._power_kw, net, stored, self._one)
        return {name: float(power) * 1000 for name, power in zip(self._names, found, strict=True)}

    def _plan(self, hour: int, now_kw: float, stored_kwh: float) -> None:
        self._planned = hour
        past = np.array(self._past[-_KEPT:], dtype=np.float64)
        start = len(self._past) - len(past)
        if len(past) >= _HOURS:
            table = self._model.predict(past, start % _HOURS, _HOURS, _HOURS, signed=True)
            mean = (table[:, 1] + table[:, 2] + table[:, 3]) / 3
            upper = np.maximum(table[:, 4], mean)
        else:
            mean = upper = np.full(_HOURS, now_kw)
        mean, upper = mean.copy(), upper.copy()
        mean[0] = upper[0] = now_kw  # the running hour is measured
        ahead = [self._price[min(hour + step, len(self._price) - 1)] for step in range(_HOURS)]
        energy = np.array(ahead)
        scale = float(energy.mean())
        plan = self._planner.plan(
            mean, upper, stored_kwh=stored_kwh, grid_before_kw=self._before, highest_kw=self._highest,
            weights=Weights(energy=energy, ramp=_RAMP * scale, peak=0.0, day_peak=_DAY_PEAK * scale),
        )  # fmt: skip
        self._power_kw = float(plan.power_kw[0])

    def learn(self, index: int, net_wh: float, grid_w: float) -> None:
        """A slot is over: energy without batteries, and the exchange with them."""
        self._running += net_wh / 1000
        self._before = grid_w / 1000
        self._highest = max(self._highest, self._before)
        if index % 4 == 3:
            self._past.append(self._running)
            self._running = 0.0
