"""Banks of recency-weighted ridge regressions, one for each hour of the day, and conditional quantiles of what they miss.

A bank solves one small linear system an hour of the day from sums that all hours share: neighbouring hours lend each other their
rows with a Gaussian weight (a varying-coefficient model, Hastie and Tibshirani 1993). Quantiles come from the record of past
forecasts: the weighted distribution of what happened after a similar forecast at a similar hour (Nadaraya 1964, Watson 1964;
weighted conformal prediction, Tibshirani et al. 2019). NumPy and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Narrow = npt.NDArray[np.float32]
"""Features: half the memory."""
Numbers = npt.NDArray[np.int64]
HOURS = 24
_CLIP = 4.0
"""Standard deviations beyond which a feature is taken as extreme: no line is followed out there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Fitted coefficients."""

    mean: Array
    spread: Array
    coefficients: Array
    """24 × (features + 1); the last column is the constant."""

    def predict(self, features: Array | Narrow, hours: Numbers) -> Array:
        """Values for rows of features (n × f) at hours of the day (n)."""
        scaled = np.clip(np.nan_to_num((features - self.mean) / self.spread), -_CLIP, _CLIP)
        chosen = self.coefficients[hours]
        result: Array = np.einsum("nf,nf->n", scaled, chosen[:, :-1]) + chosen[:, -1]
        return result


def fit_bank(
    features: Array | Narrow,
    target: Array,
    weights: Array,
    hours: Numbers,
    *,
    bandwidth_h: float | None,
    penalty: float,
) -> Bank:
    """Solve for one regression an hour of the day.

    Args:
        features: n × f; NaN counts as the mean.
        target: n values; rows with NaN are left out.
        weights: n weights, not negative.
        hours: n hours of the day of the targets.
        bandwidth_h: How far hours of the day borrow from each other; none for one regression over all hours.
        penalty: Of the ridge, as a share of the rows' weight.
    """
    good = np.isfinite(target) & (weights > 0)
    features, target, weights, hours = features[good], target[good], weights[good], hours[good]
    count = features.shape[1] + 1
    if not len(features):
        return Bank(mean=np.zeros(count - 1), spread=np.ones(count - 1), coefficients=np.zeros((HOURS, count)))
    known = np.isfinite(features)
    sums = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, np.float32(0)).sum(axis=0, dtype=np.float64) / sums
    off = np.where(known, features - mean.astype(np.float32), np.float32(0))
    spread = np.sqrt((off * off).sum(axis=0, dtype=np.float64) / sums) + 1e-6
    scaled = np.empty((len(features), count), dtype=np.float32)
    scaled[:, :-1] = off / spread.astype(np.float32)
    scaled[:, -1] = 1.0
    products, sides = np.zeros((HOURS, count, count)), np.zeros((HOURS, count))
    for hour in range(HOURS):
        rows = hours == hour
        own = scaled[rows].astype(np.float64)
        weighted = own * weights[rows, None]
        products[hour] = own.T @ weighted
        sides[hour] = weighted.T @ target[rows]
    coefficients = np.zeros((HOURS, count))
    every = np.arange(HOURS)
    for hour in range(HOURS):
        apart = np.minimum((every - hour) % HOURS, (hour - every) % HOURS)
        lent = np.ones(HOURS) if bandwidth_h is None else np.exp(-0.5 * (apart / bandwidth_h) ** 2)
        product, side = np.tensordot(lent, products, 1), lent @ sides
        total = product[-1, -1]
        if total <= 1e-9:
            continue
        ridge = np.full(count, penalty * total)
        ridge[-1] = 1e-6 * total
        product[np.diag_indices(count)] += ridge
        coefficients[hour] = np.linalg.solve(product, side)
        if bandwidth_h is None:
            coefficients[:] = coefficients[hour]
            break
    return Bank(mean=mean, spread=spread, coefficients=coefficients)


def weighted_quantiles(values: Array, weights: Array, levels: Sequence[float]) -> Array:
    """Quantiles of a weighted sample, each value in the middle of its own weight; NaN for none."""
    if not len(values) or weights.sum() <= 0:
        return np.full(len(levels), np.nan)
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    centres = (np.cumsum(weights) - weights / 2) / weights.sum()
    return np.interp(levels, centres, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Similar:
    """Which past forecasts count for a new one."""

    days: int
    half_life_days: float
    bandwidth_h: float
    """Distance of the hour of the day; beyond 2 h nothing counts."""
    bandwidth: float | None = None
    """Distance of the forecast value; none counts all alike."""
    floor: float = 0.0
    """Weight left to forecasts that were not similar."""


def similar_weights(rule: Similar, age_h: Array, apart_h: Array, unlike: Array) -> Array:
    """Weights of past forecasts by age, hour of the day and value."""
    weights = 0.5 ** (age_h / 24 / rule.half_life_days) * np.exp(-0.5 * (apart_h / rule.bandwidth_h) ** 2)
    if rule.bandwidth is not None:
        weights = weights * (np.exp(-0.5 * (unlike / rule.bandwidth) ** 2) + rule.floor)
    return np.where((apart_h <= 2) & (age_h <= rule.days * 24), weights, 0.0)
