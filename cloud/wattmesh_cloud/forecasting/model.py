"""A seasonal profile with rolling quantiles and a fading correction by the last errors. NumPy and nothing else.

For each slot of the day the last 28 days give quantiles, the nearer days weighing more; what the last hours were off is carried
into the next ones and fades.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
DAYS = 28
_HALF_LIFE_DAYS = 10.0
_FADE_SLOTS = 8
"""Slots after which half of an error is forgotten."""
_ERROR_SLOTS = 4
_WIDEN = 1.5
"""Spread of a slot of the day with few days of data."""

Array = npt.NDArray[np.float64]


class Model(Protocol):
    """What a forecaster is: values of the past in, quantiles of the coming slots out."""

    name: str

    def predict(self, history: Array, first_slot: int, slots: int, slots_a_day: int) -> Array:
        """Quantiles (``slots`` × ``LEVELS``) of the slots that follow the history; NaN for all where nothing is known.

        Args:
            history: Energy of consecutive slots, Wh, NaN where it is missing; the last one just ended.
            first_slot: Slot of the day of ``history[0]``.
            slots: How many to predict.
            slots_a_day: Slots of a day.
        """
        ...


class SeasonalQuantiles:
    """See the module.

    Args:
        levels: Quantile levels, ascending, the middle one the median.
    """

    name = "seasonal-quantiles-28d"

    def __init__(self, levels: Sequence[float] = LEVELS) -> None:
        self._levels = tuple(levels)

    def predict(self, history: Array, first_slot: int, slots: int, slots_a_day: int, *, signed: bool = False) -> Array:
        """See :class:`Model`; ``signed`` is for quantities that may be negative."""
        start = len(history)
        out = np.full((slots, len(self._levels)), np.nan)
        for index in range(slots):
            values, weights = _same_slot(history, start + index, slots_a_day)
            if len(values):
                out[index] = _weighted_quantiles(values, weights, self._levels)
                if len(values) < 5:
                    middle = out[index][len(self._levels) // 2]
                    out[index] = middle + (out[index] - middle) * _WIDEN + _widening(middle, self._levels)
        _fill_unknown(out, history, self._levels)
        error = self._recent_error(history, slots_a_day)
        fade = 0.5 ** (np.arange(slots) / _FADE_SLOTS)
        out += error * fade[:, None] if signed else np.where(out > 0, error * fade[:, None], 0.0)
        quantiles: Array = np.sort(out, axis=1)
        return quantiles if signed else np.maximum(quantiles, 0.0)

    def _recent_error(self, history: Array, slots_a_day: int) -> float:
        """By how much the last slots were above their usual value."""
        errors = []
        for index in range(max(0, len(history) - _ERROR_SLOTS), len(history)):
            values, weights = _same_slot(history, index, slots_a_day)
            if len(values) and not np.isnan(history[index]):
                errors.append(history[index] - np.average(values, weights=weights))
        return float(np.mean(errors)) * 0.5 if errors else 0.0


def _same_slot(history: Array, index: int, slots_a_day: int) -> tuple[Array, Array]:
    """Values at the same slot of the days before ``index``, and their weights."""
    places = index - slots_a_day * np.arange(1, DAYS + 2)
    places = places[(places >= 0) & (places < len(history))][:DAYS]
    values = history[places]
    ages = (index - places) / slots_a_day
    known = ~np.isnan(values)
    return values[known], 0.5 ** (ages[known] / _HALF_LIFE_DAYS)


def _weighted_quantiles(values: Array, weights: Array, levels: Sequence[float]) -> Array:
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    centres = (np.cumsum(weights) - weights / 2) / np.sum(weights)
    return np.interp(levels, centres, values)


def _widening(middle: float, levels: Sequence[float]) -> Array:
    return (np.asarray(levels) - 0.5) * middle * 0.5


def _fill_unknown(out: Array, history: Array, levels: Sequence[float]) -> None:
    """Slots of the day never seen get the spread of everything seen; where nothing was ever seen they stay NaN, never 0."""
    unknown = np.isnan(out[:, 0])
    known = history[~np.isnan(history)]
    if unknown.any() and len(known):
        out[unknown] = np.quantile(known, levels)
