"""The cloud's learned forecasts for one site of a backtest, from nothing but the slots that are over."""

from __future__ import annotations

from datetime import tzinfo

from wattmesh_a2a.forecast import Forecast
from wattmesh_cloud.forecasting.learned import LearnedSite
from wattmesh_cloud.forecasting.model import LEVELS

from wattmesh_backtest.data import SLOT_NS

_SLOTS = 120
"""30 h: a day from the moment at which the next ones come."""
_KEPT = 96 * 5


class LearnedForecaster:
    """See the module.

    Args:
        zone: Of the site.
        issue_s: How often new forecasts come.
    """

    def __init__(self, zone: tzinfo, *, issue_s: int) -> None:
        self._model = LearnedSite(zone, _SLOTS // 4)
        self._issue_ns = issue_s * 1_000_000_000
        self._past: dict[int, tuple[float, float]] = {}

    def learn(self, slot_ns: int, load_wh: float, pv_wh: float) -> None:
        """A slot is over."""
        self._past[slot_ns] = (load_wh, pv_wh)
        if len(self._past) > _KEPT:
            del self._past[next(iter(self._past))]

    def issue(self, site: str, now_ns: int) -> list[Forecast] | None:
        """New forecasts when they are due and enough is known."""
        if now_ns % 3_600_000_000_000 == 0:
            self._model.learn(self._past, now_ns)
        if now_ns % self._issue_ns:
            return None
        found = self._model.predict(now_ns, _SLOTS)
        if found is None:
            return None
        return [
            Forecast(
                site_id=site, quantity=quantity, issued_ns=now_ns, start_ns=now_ns, slot_s=SLOT_NS // 1_000_000_000,
                levels=tuple(LEVELS), values=tuple(tuple(float(value) for value in row) for row in values),
                model=LearnedSite.name,
            )
            for quantity, values in found.items()
        ]  # fmt: skip
