"""The native loop of the reflex: takes samples, measures, decides, writes; without the GIL and without Python.

Everything that comes in (samples, limits, the times of writes) is one input record after another, and nothing else decides what
comes out: live, fed by a test, or replayed, the same inputs give the same outputs, bit for bit.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

INPUT_SIZE: int
"""Bytes of one input record; see ``evidence.INPUT``."""
OUTPUT_SIZE: int
CORE_SIZE: int
"""Bytes of the whole state."""

class Kernel:
    """One source, one estimator, one set of watches, one response.

    Args:
        source: ``kind`` (register, push, play, stream, udp, pmu), ``period_ns``, ``realtime``, and what the kind needs; see
            ``sources``.
        estimator: ``nominal_hz``, ``nominal_v`` (0: not known), ``refresh_ns`` (register; 0: learned), ``rail_v``, ``m_class``.
        watches: ``knows_voltage`` and five ``watches``: kind, over, enter, leave, debounce_ns.
        response: Of a profile, with ``target`` (a register), ``rated_w``, ``min_change_w``, ``limits_age_ns``,
            ``slowest_ns``; none watches only.

    Raises:
        ValueError: Something does not fit (a rate, a register type, too many points).
    """

    def __init__(
        self,
        source: Mapping[str, Any],
        estimator: Mapping[str, Any],
        watches: Mapping[str, Any],
        response: Mapping[str, Any] | None = None,
    ) -> None: ...
    def run(self) -> None:
        """Loop until :meth:`stop`; the calling thread does not hold the GIL meanwhile."""

    def stop(self) -> None:
        """Ask the loop to end; it returns to the baseline first."""

    def close(self) -> None:
        """Give every descriptor back; only after :meth:`run` has returned."""

    def publish(
        self,
        baseline_w: float,
        min_w: float,
        max_w: float,
        safe_w: float = 0.0,
        out_wh: float = 1e12,
        in_wh: float = 1e12,
        now: int | None = None,
    ) -> None:
        """The arbiter's setpoint, limits and energies; handed over by a seqlock. ``now``: monotonic ns, for tests."""

    def written_by_others(self) -> None:
        """The register holds another value than the one written here: write again."""

    def push(self, frequency_hz: float, volts: float | None = None, t: int | None = None) -> bool:
        """A value for a push source; False where the loop has not taken the last 256."""

    def responding(self) -> float | None:
        """The setpoint that the loop holds now, or none when it is quiet."""

    def snapshot(self) -> dict[str, Any]:
        """Latest estimate, validity, counters, the histogram of lateness (bin i: up to 2**i µs), what the scheduler granted."""

    def drain_events(self) -> tuple[list[dict[str, Any]], int]:
        """News of events: each as it begins (``end_ns`` none) and when it is over; and how many were overwritten unseen."""

    def take_log(self) -> tuple[int, bytes, int, bytes, int]:
        """(index of the first input, inputs, index of the first output, outputs, how many were overwritten unseen)."""

    def checkpoints(self) -> list[tuple[int, int, bytes]]:
        """(index of the next input, of the next output, state) of the last checkpoints, oldest first."""

    def restore(self, state: bytes) -> None:
        """Begin from a checkpoint."""

    def replay(self, inputs: bytes) -> bytes:
        """Outputs of recorded inputs, in the recorded order."""

    def feed(self, t: int, values: float | Sequence[float] | None, now: int | None = None) -> float | None:
        """One poll through the same logic, without sockets; a setpoint counts as written at once.

        Args:
            t: Middle of its round trip, monotonic ns.
            values: Frequency, then volts; none for no answer.
            now: Time of the decision; default ``t``.

        Returns:
            The setpoint that is written, or none.
        """

    def feed_wave(self, samples: array[float], t: int) -> list[tuple[int, float]]:
        """Samples (interleaved) of which the first came in at ``t``; (time, setpoint) of what is written."""

    def feed_bad(self, cause: int, t: int) -> float | None:
        """The source says that its samples are not to be believed."""

    def feed_nothing(self, t: int) -> float | None:
        """Time passes, and nothing comes."""

    def end(self, t: int) -> None:
        """Close the events under way."""
