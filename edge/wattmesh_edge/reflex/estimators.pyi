"""Frequency, ROCOF and voltage from sampled voltage or from a meter's register.

Waveform, three phases: Clarke's transform, demodulation at the whole number of samples a cycle that is nearest to nominal, two
cascaded one-cycle boxcars as running integer sums (the triangular filter that IEC/IEEE 60255-118-1:2018, annex D, gives for class
P), phase, least-squares parabola over one cycle. One phase: the same, with the mirror image that a single phase has solved for
exactly. Class M: a Blackman window of seven reporting periods between the boxcars and the fit. Longer fits (33 ms of delay, 100 ms,
500 ms) report; the short one decides. Times are integer nanoseconds, monotonic; an estimate refers to the middle of its window.
"""

from array import array
from collections.abc import Sequence

FIELDS: tuple[str, ...]
"""Columns of a row: time_ns, made_ns, frequency_hz, rocof, … (see ``estimators.pxd``)."""

class WaveformEstimator:
    """The waveform's estimator alone.

    Args:
        rate_hz: Samples a second; 6 to 1023 a cycle.
        nominal_hz: 50 or 60.
        phases: 1 or 3.
        m_class: Filter out-of-band interference; slower.
        nominal_v: Phase to neutral, rms; 0: the level is followed.
        rail: Largest magnitude the source can give; 0: not known.
        guarded: Hold the estimate while the phase steps.
        report_hz: Reports a second (class M).

    Raises:
        ValueError: The rate does not fit.
    """

    def __init__(
        self,
        rate_hz: float,
        nominal_hz: float,
        phases: int = 3,
        *,
        m_class: bool = False,
        nominal_v: float = 0.0,
        rail: float = 0.0,
        guarded: bool = True,
        report_hz: float = 0.0,
    ) -> None: ...
    @property
    def delay_s(self) -> float:
        """From the time that a fast estimate refers to until its newest sample."""

    @property
    def decimation(self) -> int:
        """Samples from one estimate to the next."""

    def push(self, samples: array[float]) -> array[float]:
        """Rows of :data:`FIELDS`, one after another, for interleaved samples in volts."""

    def run(self, samples: array[float]) -> int:
        """The same without rows; how many estimates there were. For timing."""

    def gap(self) -> None:
        """Samples are missing here."""

class RegisterEstimator:
    """The register's estimator alone.

    Args:
        nominal_hz: 50 or 60.
        nominal_v: Phase to neutral; 0: not known.
        refresh_ns: How often the register is renewed; 0: learned.
    """

    def __init__(self, nominal_hz: float, nominal_v: float = 0.0, refresh_ns: int = 0) -> None: ...
    def push(self, time_ns: int, values: Sequence[float] | None) -> tuple[bool, list[float]]:
        """One poll (frequency, volts …; none: no answer). Whether it was a new sample, and the row."""

    @property
    def refresh_ns(self) -> int:
        """The renewal period as learned so far; 0 before."""
