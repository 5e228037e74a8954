"""Interpreted twins of the estimators, written from their definitions and not from their code: the kernel has to agree with them.

They are for tests. The waveform's twin sums every window anew instead of running sums, so it also shows that those do not drift.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_TWO_PI = 2 * math.pi


def parabola(values: Sequence[float]) -> tuple[float, float]:
    """Slope and second derivative in the middle of a least-squares parabola through values one apart."""
    count = len(values)
    xs = [index - (count - 1) / 2 for index in range(count)]
    s2, s4 = sum(x * x for x in xs), sum(x**4 for x in xs)
    slope = sum(x * y for x, y in zip(xs, values, strict=True)) / s2
    sy, sxxy = sum(values), sum(x * x * y for x, y in zip(xs, values, strict=True))
    curve = (count * sxxy - s2 * sy) / (count * s4 - s2 * s2)
    return slope, 2 * curve


@dataclass(slots=True)
class WaveformTwin:
    """Class P from sampled voltage, without the guard against phase steps.

    Args:
        rate_hz: Samples a second; a whole number a cycle.
        nominal_hz: 50 or 60.
        phases: 1 or 3.
    """

    rate_hz: float
    nominal_hz: float
    phases: int = 3
    cycle: int = field(init=False)
    decimation: int = field(init=False)

    def __post_init__(self) -> None:
        """The grid of the estimates: about twenty a cycle."""
        self.cycle = round(self.rate_hz / self.nominal_hz)
        self.decimation = max(1, self.cycle // 20)

    def estimates(self, samples: Sequence[float]) -> list[tuple[float, float, float]]:
        """(time s, frequency, ROCOF) wherever every window is full."""
        rows = [tuple(samples[at : at + self.phases]) for at in range(0, len(samples), self.phases)]
        rotated = [self._rotated(row, index) for index, row in enumerate(rows)]
        triangle = [min(index + 1, 2 * self.cycle - 1 - index) / self.cycle**2 for index in range(2 * self.cycle - 1)]
        ends = range(self.decimation - 1, len(rows), self.decimation)
        # The middle of the window of 2n - 1 samples lies n - 1 samples back.
        smooth = {
            end: sum(weight * z for weight, z in zip(triangle, rotated[end - len(triangle) + 1 : end + 1], strict=True))
            for end in ends
            if end - len(triangle) + 1 >= 0
        }
        points = round(self.cycle / self.decimation * (1.0 if self.cycle >= 20 else 1.25))
        found = []
        frequency = self.rate_hz / self.cycle
        for end in list(smooth)[points - 1 :]:
            window = [end - (points - 1 - k) * self.decimation for k in range(points)]
            phasors = [self._unmixed(smooth[at], at, frequency) for at in window]
            turns = [cmath.phase(phasors[0]) / _TWO_PI]
            for one in phasors[1:]:
                step = cmath.phase(one) / _TWO_PI - turns[-1]
                turns.append(turns[-1] + step - round(step))
            slope, second = parabola(turns)
            per_point = self.rate_hz / self.decimation
            frequency = self.rate_hz / self.cycle + slope * per_point
            back = self.cycle - 1 + (points - 1) / 2 * self.decimation
            found.append(((end - back) / self.rate_hz, frequency, second * per_point**2))
        return found

    def _rotated(self, row: Sequence[float], index: int) -> complex:
        turn = cmath.exp(-1j * _TWO_PI * (index % self.cycle) / self.cycle)
        if self.phases == 1:
            return row[0] * turn
        a, b, c = row
        return complex((2 * a - b - c) / 3, (b - c) / math.sqrt(3)) * turn

    def _unmixed(self, y: complex, end: int, frequency: float) -> complex:
        """One phase is two rotations: y = h·u + r·conj(u)·q, solved for u at the frequency known so far."""
        if self.phases == 3:
            return y
        own = self.rate_hz / self.cycle
        h = self._response(frequency - own) ** 2
        r = self._response(-frequency - own) ** 2
        q = cmath.exp(-2j * _TWO_PI * (end - self.cycle + 1) / self.cycle)
        return (h * y - r * q * y.conjugate()) / (h * h - r * r)

    def _response(self, hertz: float) -> float:
        half = math.pi * hertz / self.rate_hz
        return math.sin(self.cycle * half) / (self.cycle * math.sin(half)) if half else 1.0


@dataclass(slots=True)
class RegisterTwin:
    """Frequency from a meter's register: repeats dropped, the renewal period learned, lines on the samples' own times.

    Args:
        nominal_hz: 50 or 60; what is more than 10 Hz away is no frequency of a grid.
        refresh_ns: 0: learned.
    """

    nominal_hz: float
    refresh_ns: int = 0
    cause: str = "warming up"
    _samples: list[tuple[int, float]] = field(default_factory=list)
    _intervals: list[int] = field(default_factory=list)
    _last: float | None = None
    _changed_ns: int = 0
    _sampled_ns: int = 0
    _answered_ns: int = 0
    _suspect: float | None = None

    def push(self, time_ns: int, value: float | None) -> bool:
        """One poll; whether it was a new sample."""
        if value is None:
            if not self._answered_ns or time_ns - self._answered_ns > self._stale_ns:
                self._bad("no answer")
            return False
        self._answered_ns = time_ns
        same = self._last is not None and (value == self._last or (math.isnan(value) and math.isnan(self._last)))
        first, self._last = self._last is None, value
        if not same:
            if not first:
                self._learn(time_ns - self._changed_ns)
            self._changed_ns = time_ns
        elif time_ns - self._changed_ns > max(20 * self.refresh_ns, 10_000_000_000):
            self._bad("stuck")
            return False
        elif not self.refresh_ns or time_ns - self._sampled_ns < self.refresh_ns + self.refresh_ns // 4:
            return False
        if not math.isfinite(value) or abs(value - self.nominal_hz) > 10.0:
            self._bad("out of range")
            return False
        if self._samples:
            width = 0.3 + 20.0 * (time_ns - self._samples[-1][0]) * 1e-9
            if abs(value - self._samples[-1][1]) > width:
                if self._suspect is None or abs(value - self._suspect) > width:
                    self._suspect, self._sampled_ns = value, time_ns
                    if time_ns - self._samples[-1][0] > self._stale_ns + 2 * self.refresh_ns:
                        self._bad("out of range")
                    return False
                self._samples.clear()
        self._suspect = None
        self._samples = [*self._samples[-63:], (time_ns, value)]
        self._sampled_ns = time_ns
        self.cause = "valid"
        return True

    @property
    def _stale_ns(self) -> int:
        return max(10 * self.refresh_ns, 200_000_000)

    def _learn(self, interval_ns: int) -> None:
        self._intervals = [*self._intervals[-15:], interval_ns]
        if len(self._intervals) >= 3:
            self.refresh_ns = sorted(self._intervals)[1]

    def _bad(self, cause: str) -> None:
        self.cause, self._suspect = cause, None
        self._samples.clear()

    def line(self, window_ns: int) -> tuple[float, float] | None:
        """(value at the newest sample, never beyond the samples; slope a second) within a window; none with fewer than three."""
        newest = self._samples[-1][0]
        rows = [((time - newest) * 1e-9, value) for time, value in self._samples if newest - time <= window_ns]
        if len(rows) < 3:
            return None
        count, sx, sy = len(rows), sum(x for x, _ in rows), sum(y for _, y in rows)
        sxx, sxy = sum(x * x for x, _ in rows), sum(x * y for x, y in rows)
        slope = (count * sxy - sx * sy) / (count * sxx - sx * sx)
        values = [value for _, value in rows]
        return min(max((sy - slope * sx) / count, min(values)), max(values)), slope

    @property
    def frequency_hz(self) -> float | None:
        """Now; none where it cannot be believed."""
        if self.cause != "valid":
            return None
        fit = self.line(100_000_000)
        return self._samples[-1][1] if fit is None else fit[0]
