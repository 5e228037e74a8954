"""The native loop of the reflex: polls a frequency register, detects, answers by droop, without the GIL and without Python."""

from collections.abc import Mapping

class Kernel:
    """Register mode: one Modbus register that holds the frequency, one that takes the setpoint.

    Args:
        source: Where the frequency is: host (IPv4), port, unit, function (3, 4), address, type, word_order, scale, sign.
        target: Where the setpoint goes (function 6 or 16), or none to watch only.
        period_ns: Between polls.
        nominal_hz: 50 or 60.
        low_hz: Below it an under-frequency event begins.
        high_hz: Above it an over-frequency event begins.
        exit_hz: An event ends this far inside its threshold.
        debounce_ns: A crossing shorter than this is no event.
        dead_band_hz: Of the droop.
        droop: Per unit.
        rated_w: Power that the droop refers to.
        min_change_w: A setpoint that would move less is not written.
        stale_ns: Without an answer for so long the measurement is invalid.
    """

    def __init__(
        self,
        source: Mapping[str, object],
        target: Mapping[str, object] | None,
        *,
        period_ns: int,
        nominal_hz: float,
        low_hz: float,
        high_hz: float,
        exit_hz: float,
        debounce_ns: int,
        dead_band_hz: float,
        droop: float,
        rated_w: float,
        min_change_w: float = ...,
        stale_ns: int = ...,
    ) -> None: ...
    def run(self) -> None:
        """Loop until :meth:`stop`; the calling thread does not hold the GIL meanwhile."""

    def stop(self) -> None:
        """Ask the loop to end; it returns to the baseline first."""

    def publish(self, baseline_w: float, min_w: float, max_w: float) -> None:
        """The arbiter's setpoint and limits, passive sign; handed over by a seqlock."""

    def responding(self) -> float | None:
        """The setpoint that the loop holds now, or none when it is quiet."""

    def feed(self, t: int, value: float | None) -> float | None:
        """One sample with its own time through the same logic, without sockets: for tests and replays.

        Returns:
            The setpoint that would be written, or none.
        """

    def snapshot(self) -> dict[str, float | int | None]:
        """Latest estimate and counters."""

    def drain_samples(self) -> tuple[list[tuple[int, float, float, int]], int]:
        """(monotonic ns, Hz, Hz/s, cause) since the last call, and how many were overwritten."""

    def drain_events(self) -> list[tuple[int, int, int, int, int, float, float, float]]:
        """Finished events: kind, start, end, confirming sample, write done (all monotonic ns), extremes, response in W."""
