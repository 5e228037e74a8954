"""Change detection on a series of daily or rarer values: plain numbers in, a finding out.

A tabular CUSUM (Page 1954; Montgomery, Introduction to Statistical Quality Control, ch. 9) on values standardised by their own
first weeks: median and median absolute deviation, so that a few odd days of the beginning do no harm. Single values count for
:data:`CAP` deviations at most: no odd day raises an alarm by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

ALLOWANCE = 0.75
"""Deviations a value that are not counted: changes of twice this are found fastest."""
THRESHOLD = 8.0
CAP = 4.0
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How a healthy device behaves."""

    level: float
    spread: float
    """One deviation, not below the floor."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a CUSUM found."""

    index: int
    """Of the value at which it was certain."""
    began: int
    """Of the value from which on the sum grew: the best guess of when it happened."""
    level: float
    """Median of the values from there on."""
    before: float
    """The baseline's level."""


def baseline_of(values: Sequence[float], count: int, floor: float) -> Baseline | None:
    """The baseline of the first ``count`` values; none before there are so many. ``floor``: smallest deviation."""
    if len(values) < count:
        return None
    first = values[:count]
    level = median(first)
    spread = max(floor, _MAD_TO_SIGMA * median(abs(value - level) for value in first))
    return Baseline(level=level, spread=spread, count=count)


def find_change(values: Sequence[float], baseline: Baseline, *, down: bool, least: float) -> Change | None:
    """The first change for the worse after the baseline that still lasts at the series' end.

    Args:
        values: The series, with the baseline's part.
        baseline: From :func:`baseline_of`.
        down: Whether worse is less.
        least: Smallest change of the level that a person should hear of, in the values' unit.
    """
    total, began, found = 0.0, 0, None
    for index in range(baseline.count, len(values)):
        deviation = (values[index] - baseline.level) / baseline.spread * (-1 if down else 1)
        if total == 0.0:
            began = index
        total = max(0.0, total + min(CAP, deviation) - ALLOWANCE)
        total = min(total, 2 * THRESHOLD)  # so that a repaired device is healthy again after as few values as it took
        if total == 0.0:
            found = None
        elif total > THRESHOLD:
            level = median(values[max(began, index - 6) : index + 1])
            if (baseline.level - level if down else level - baseline.level) >= least and found is None:
                found = Change(index=index, began=began, level=level, before=baseline.level)
    return found


def values_between_false_alarms(allowance: float = ALLOWANCE, threshold: float = THRESHOLD) -> float:
    """Mean number of values between two false alarms of independent normal values with a known baseline.

    Siegmund's approximation (1985, Sequential Analysis, ch. 2): within some per cent for thresholds of 3 and more. A baseline
    that was estimated, and values that hang together, make it less: the simulated fleet's figure stands in docs/benchmarks.md.
    """
    reach = threshold + 1.166
    exponent = 2 * allowance * reach
    return (math.exp(exponent) - exponent - 1) / (2 * allowance**2)
