"""Forecasts of what is not energy: the market's price, a site's flexibility, and how far the frequency may stray.

Each is a value a quarter hour, observed as it ends, and forecast by seasonal quantiles with error correction, as signed numbers.
The gateway could make the same; the learned models are not used here, for none of these has shown a pattern worth them yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.forecast import Forecast

from wattmesh_cloud.forecasting.model import LEVELS, SeasonalQuantiles
from wattmesh_cloud.forecasting.scores import Scores

PRICE = "price_ticks"
"""What a kWh traded at in the area."""
FLEXIBILITY_UP = "flexibility_up_w"
"""Power that a site's batteries could give for an hour."""
FLEXIBILITY_DOWN = "flexibility_down_w"
"""Power that they could take for an hour."""
FREQUENCY_RISK = "frequency_risk_mhz"
"""Largest distance of the frequency from its nominal value."""
_SIGNED = frozenset({PRICE})
_SLOT_S = 900
_SLOT_NS = _SLOT_S * NS_PER_S
_SLOTS_A_DAY = 96
_KEPT = 30 * _SLOTS_A_DAY
_SERIES_AT_MOST = 10_000
NAME = "seasonal-quantiles-28d"
PERSISTENCE = "persistence-24h"

Key = tuple[str, str]
"""A site or an area, and the quantity."""


class SideForecasts:
    """See the module."""

    def __init__(self) -> None:
        self._past: dict[Key, dict[int, float]] = {}
        self._model = SeasonalQuantiles()
        self.latest: dict[Key, Forecast] = {}
        self.scores: dict[Key, Scores] = {}

    def observe(self, slot_ns: int, values: Mapping[Key, float]) -> None:
        """What was true of a slot that is over; a value that is no number is a gap."""
        for key, value in values.items():
            if not np.isfinite(value) or (key not in self._past and len(self._past) >= _SERIES_AT_MOST):
                continue
            past = self._past.setdefault(key, {})
            self._score(key, slot_ns, float(value))
            past[slot_ns] = float(value)
            while len(past) > _KEPT:
                del past[min(past)]

    def _score(self, key: Key, slot_ns: int, value: float) -> None:
        forecast, before = self.latest.get(key), self._past[key].get(slot_ns - _SLOTS_A_DAY * _SLOT_NS)
        if forecast is None or before is None:
            return
        index = (slot_ns - forecast.start_ns) // _SLOT_NS
        if 0 <= index < len(forecast.values):
            middle = forecast.values[index][len(forecast.levels) // 2]
            self.scores.setdefault(key, Scores()).add(
                slot_ns, {NAME: abs(value - middle), PERSISTENCE: abs(value - before)}
            )

    def issue(self, now_ns: int, slots: int) -> tuple[Forecast, ...]:
        """Forecasts of every quantity with at least a day of record, from the running slot on."""
        start = now_ns - now_ns % _SLOT_NS
        found = []
        for (owner, quantity), past in sorted(self._past.items()):
            known = {slot: value for slot, value in past.items() if start - _KEPT * _SLOT_NS <= slot < start}
            if len(known) < _SLOTS_A_DAY:
                continue
            first = min(known)
            line = np.full((start - first) // _SLOT_NS, np.nan)
            for slot, value in known.items():
                line[(slot - first) // _SLOT_NS] = value
            table = self._model.predict(
                line, first // _SLOT_NS % _SLOTS_A_DAY, slots, _SLOTS_A_DAY, signed=quantity in _SIGNED
            )
            forecast = Forecast(
                site_id=owner,
                quantity=quantity,
                issued_ns=now_ns,
                start_ns=start,
                slot_s=_SLOT_S,
                levels=LEVELS,
                values=tuple(tuple(round(float(value), 1) for value in row) for row in table),
                model=NAME,
            )
            self.latest[owner, quantity] = forecast
            found.append(forecast)
        return tuple(found)

    def skill(self) -> dict[str, float]:
        """1 − absolute error over persistence's, by quantity; above 0 is better."""
        sums: dict[str, list[float]] = {}
        for (_, quantity), scores in self.scores.items():
            both = scores.common((NAME, PERSISTENCE))
            total = sums.setdefault(quantity, [0.0, 0.0])
            total[0] += sum(both[NAME])
            total[1] += sum(both[PERSISTENCE])
        return {quantity: round(1 - own / peer, 3) for quantity, (own, peer) in sorted(sums.items()) if peer > 0}
