"""The contract of a frequency estimator, and the register mode's in plain Python: the kernel's twin under the same tests.

Waveform estimators come behind the same contract. The twin is for tests and replays; the loop itself runs in ``kernel.pyx``.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

WINDOW_NS = 500_000_000
SAMPLES_AT_MOST = 64
LEAST_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of the frequency at one time."""

    time_ns: int
    """Monotonic."""
    frequency_hz: float | None
    """None where it cannot be believed."""
    rocof_hz_per_s: float | None
    """Least-squares slope over the last 500 ms; none where it cannot be believed."""
    cause: str
    """``valid``, or why not."""


class Estimator(Protocol):
    """Makes estimates of samples, one at a time."""

    def update(self, time_ns: int, value: float | None) -> Estimate:
        """Take a sample (a register's value in Hz, none for no answer) with its own time."""
        ...


class RegisterEstimator:
    """Frequency from a meter's register.

    Args:
        nominal_hz: 50 or 60; what is more than 10 Hz away is no frequency of a grid.
        stale_ns: Without an answer for so long nothing is known.
    """

    def __init__(self, nominal_hz: float, stale_ns: int = 200_000_000) -> None:
        self._nominal_hz = nominal_hz
        self._stale_ns = stale_ns
        self._samples: deque[tuple[int, float]] = deque(maxlen=SAMPLES_AT_MOST)
        self._last_ns = 0
        self._cause = "warming up"

    def update(self, time_ns: int, value: float | None) -> Estimate:
        """See :class:`Estimator`."""
        if value is None:
            if time_ns - self._last_ns > self._stale_ns:
                self._cause = "no answer"
        elif not math.isfinite(value) or abs(value - self._nominal_hz) > 10.0:
            self._cause = "out of range"
        else:
            self._last_ns = time_ns
            self._samples.append((time_ns, value))
            self._cause = "valid" if len(self._samples) >= LEAST_SAMPLES else "warming up"
        valid = self._cause == "valid"
        return Estimate(
            time_ns=time_ns,
            frequency_hz=self._samples[-1][1] if valid else None,
            rocof_hz_per_s=self._slope() if valid else None,
            cause=self._cause,
        )

    def _slope(self) -> float:
        newest = self._samples[-1][0]
        rows = [((time - newest) * 1e-9, value) for time, value in self._samples if newest - time <= WINDOW_NS]
        count = len(rows)
        sx, sy = sum(x for x, _ in rows), sum(y for _, y in rows)
        sxx, sxy = sum(x * x for x, _ in rows), sum(x * y for x, y in rows)
        spread = count * sxx - sx * sx
        return (count * sxy - sx * sy) / spread if count >= LEAST_SAMPLES and spread > 1e-9 else 0.0
