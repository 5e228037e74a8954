"""The reflex: frequency measured and answered on a native thread, without the interpreter.

``kernel`` is the thread, ``estimators`` measure, ``decide`` makes events and setpoints, ``profile`` and ``sources`` say what and
from where, ``evidence`` keeps what happened. This module owns one site's thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.grid import FrequencyEvent, FrequencyEventKind

from wattmesh_edge.reflex.evidence import Recorder
from wattmesh_edge.reflex.kernel import Kernel
from wattmesh_edge.reflex.profile import FINEST_HZ, ResponseProfile, kernel_response, load_profile
from wattmesh_edge.reflex.sources import Endpoint, describe, register_source, resolved

__all__ = ["Endpoint", "Reflex", "ReflexConfig", "ReflexSnapshot", "Response", "alarm_of", "load_profile"]

log = logging.getLogger(__name__)

CAUSES = (
    "valid", "warming up", "no answer", "out of range", "low voltage", "phase step", "gap", "stuck", "railed", "time jumped back",
    "sampling rate changed", "the source says so",
)  # fmt: skip
"""Why a measurement is (not) valid, in the kernel's order."""
KINDS = (
    FrequencyEventKind.UNDER_FREQUENCY, FrequencyEventKind.OVER_FREQUENCY, FrequencyEventKind.ROCOF,
    FrequencyEventKind.UNDER_VOLTAGE, FrequencyEventKind.OVER_VOLTAGE, FrequencyEventKind.INVALID,
    FrequencyEventKind.PHASE_STEP, FrequencyEventKind.ISLANDING, FrequencyEventKind.TRIP,
)  # fmt: skip
_WATCHED = KINDS[:5]
_SMALLEST_SHARE = 0.002
"""Of the response's power: a setpoint that would move less is not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the reflex may move."""

    endpoint: Endpoint
    rated_power_w: float
    """What a share of 1 of the profile means."""
    profile: ResponseProfile
    minimum_interval_ms: float = 0.0
    """Of the device's register."""
    limits_age_s: float = 60.0
    """Without news from the arbiter for so long the setpoint goes to the safe state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflexConfig:
    """Everything the native thread needs."""

    site_id: str
    nominal_hz: float
    source: Endpoint | Mapping[str, Any]
    """The register that holds the frequency, or what ``sources`` made of something else."""
    voltage: Endpoint | None = None
    """Read beside the frequency's register, in the same request."""
    poll_ms: float = 20
    refresh_ms: float = 0
    """How often the register is renewed; 0: to be learned."""
    nominal_v: float = 0.0
    """Phase to neutral; 0: not known, then a waveform's level is followed and no voltage event is told."""
    rail_v: float = 0.0
    """Largest magnitude that the source can give; 0: not known."""
    band_hz: float = 0.2
    """An event begins outside nominal ± this."""
    exit_hz: float = 0.02
    debounce_ms: float | None = None
    """Default: the estimator's window (a waveform), 60 ms (a register)."""
    rocof_hz_per_s: float = 1.0
    """An event begins where 100 ms and 500 ms both show more."""
    voltage_band_pu: float = 0.05
    m_class: bool = False
    """Class M for a waveform: reports through interference, and too slow to respond on."""
    realtime: bool = True
    """Ask for locked memory and for SCHED_FIFO."""
    response: Response | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflexSnapshot:
    """The latest estimate, and how well the loop keeps its time."""

    frequency_hz: float | None
    rocof_hz_per_s: float | None
    """Over 500 ms, or 100 ms where the other is not known yet."""
    voltage_v: float | None
    sigma_hz: float | None
    age_ms: float | None
    """Of the estimate, from the moment it refers to."""
    cause: str
    """``valid``, or why not."""
    event_active: bool
    open_events: tuple[str, ...]
    tripped: bool
    fallen: bool
    """Gone to the safe setpoint, as the measurement or the arbiter's limits are gone."""
    inhibited: bool
    """The register is renewed too slowly for the profile: measured, not answered."""
    refresh_ms: float | None
    polls: int
    missed_deadlines: int
    failures: int
    writes: int
    write_failures: int
    scheduling: str
    """The class really in force: ``SCHED_FIFO``, ``SCHED_OTHER``, or ``not running``."""
    memory_locked: bool
    lateness_p50_ms: float | None
    lateness_p99_ms: float | None
    lateness_max_ms: float


@dataclass(slots=True)
class _Clocks:
    """Where monotonic time stands against the site's clock."""

    utc_ns: int = 0
    monotonic_ns: int = 0

    def utc(self, monotonic_ns: int) -> int:
        return self.utc_ns - (self.monotonic_ns - monotonic_ns)


def kernel_settings(config: ReflexConfig) -> dict[str, Any]:
    """The four mappings a :class:`Kernel` is made of; a trace keeps them."""
    source, response = config.source, config.response
    if isinstance(source, Endpoint):
        points = [source] if config.voltage is None else [source, config.voltage]
        source = register_source(points, poll_ms=config.poll_ms)
        knows_voltage = len(source["pieces"]) > 1 and config.nominal_v > 0
    else:
        source = dict(source)
        knows_voltage = config.nominal_v > 0
    source["realtime"] = config.realtime
    waveform = "rate_hz" in source and source["kind"] != "pmu"
    # A waveform's fit sees one cycle: what is shorter than its window is not an event.
    window_ms = (1000 / config.nominal_hz) * (1.25 if source.get("rate_hz", 0) < 20 * config.nominal_hz else 1)
    debounce = config.debounce_ms if config.debounce_ms is not None else window_ms if waveform else 60.0
    settings: dict[str, Any] = {
        "source": source,
        "estimator": {
            "nominal_hz": config.nominal_hz,
            "nominal_v": config.nominal_v,
            "rail_v": config.rail_v,
            "m_class": config.m_class,
            "refresh_ns": round(config.refresh_ms * 1e6),
        },
        "watches": {"knows_voltage": knows_voltage, "watches": _watches(config, round(debounce * 1e6))},
        "response": None,
    }
    if response is not None:
        words = kernel_response(response.profile, config.nominal_hz)
        if waveform and source.get("channels") == 1:
            # One phase is noisier than three: a block waits until the crossing has stood for most of a cycle.
            for block in words["blocks"]:
                block["confirm_ns"] = max(block["confirm_ns"], round(0.75e9 / config.nominal_hz))
        low, high = response.profile.largest_shares(config.nominal_hz)
        settings["response"] = {
            **words,
            "target": {**asdict(response.endpoint), "host": resolved(response.endpoint.host)},
            "rated_w": response.rated_power_w,
            "min_change_w": max(10.0, _SMALLEST_SHARE * response.rated_power_w * max(-low, high)),
            "min_interval_ns": round(response.minimum_interval_ms * 1e6),
            "limits_age_ns": round(response.limits_age_s * 1e9),
            "slowest_ns": response.profile.slowest_refresh_ms * 1_000_000,
        }
    return settings


def _watches(config: ReflexConfig, debounce_ns: int) -> list[dict[str, Any]]:
    f0, band, exit_hz = config.nominal_hz, config.band_hz, config.exit_hz
    pu, slow_ns = config.voltage_band_pu, max(debounce_ns, 100_000_000)
    rows = (
        (False, f0 - band, f0 - band + exit_hz, debounce_ns),
        (True, f0 + band, f0 + band - exit_hz, debounce_ns),
        (True, config.rocof_hz_per_s, 0.8 * config.rocof_hz_per_s, 100_000_000),
        (False, 1 - pu, 1 - pu + 0.01, slow_ns),
        (True, 1 + pu, 1 + pu - 0.01, slow_ns),
    )
    return [
        {"kind": kind, "over": over, "enter": enter, "leave": leave, "debounce_ns": debounce}
        for kind, (over, enter, leave, debounce) in enumerate(rows)
    ]


def make_kernel(settings: Mapping[str, Any]) -> Kernel:
    """A kernel of these settings."""
    return Kernel(settings["source"], settings["estimator"], settings["watches"], settings["response"])


@dataclass(slots=True)
class Reflex:
    """Owns the native thread of one site.

    Args:
        config: What to listen to and what may be moved.
        traces: Folder for the traces of events; none keeps none.
        label: In the ids of its events: tells this thread from another one of the same session.

    Raises:
        ConfigurationError: The profile does not fit the grid, or a host is not known. A site that may only watch is no error
            (see ``why_watching``).
    """

    config: ReflexConfig
    traces: Path | None = None
    label: str = ""
    why_watching: str | None = field(init=False, default=None)
    responds: bool = field(init=False, default=False)
    kernel: Kernel = field(init=False)
    _recorder: Recorder | None = field(init=False, default=None)
    _thread: threading.Thread | None = field(init=False, default=None)
    _clocks: _Clocks = field(init=False, default_factory=_Clocks)
    _open: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Check what can be checked, and make the kernel."""
        config, response = self.config, self.config.response
        source = config.source
        self.why_watching = None
        if response is None:
            self.why_watching = "no response configured"
        elif not response.profile.moves:
            self.why_watching = f"profile {response.profile.id} moves nothing"
        elif isinstance(source, Endpoint) and source.type != "f32" and source.scale > FINEST_HZ * 1.001:
            self.why_watching = f"frequency has steps of {source.scale:g} Hz, too coarse to respond on"
        elif config.m_class:
            self.why_watching = "class M is for reporting: its estimate is too late to respond on"
        elif config.refresh_ms > response.profile.slowest_refresh_ms:
            self.why_watching = (
                f"frequency is renewed every {config.refresh_ms:g} ms, and profile {response.profile.id} needs "
                f"{response.profile.slowest_refresh_ms} ms or less"
            )
        if response is not None and config.nominal_hz not in response.profile.nominal_hz:
            raise ConfigurationError(f"response profile {response.profile.id} is not for {config.nominal_hz:g} Hz")
        if self.why_watching is not None and response is not None:
            config = replace(config, response=None)
        self.responds = config.response is not None
        settings = kernel_settings(config)
        self.kernel = make_kernel(settings)
        if self.traces is not None:
            kept = {**settings, "source": describe(settings["source"])}
            self._recorder = Recorder(self.kernel, self.traces, site_id=config.site_id, settings=kept)

    def start(self) -> None:
        """Start the native thread."""
        self._thread = threading.Thread(target=self.kernel.run, name="reflex", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it goes back to the baseline first. Bounded by the loop's own time-outs."""
        if self._thread is not None:
            self.kernel.stop()
            self._thread.join(timeout=3.0)
            if not self._thread.is_alive():
                self.kernel.close()
            self._thread = None

    def publish(
        self,
        baseline_w: float,
        min_w: float,
        max_w: float,
        *,
        safe_w: float = 0.0,
        out_wh: float = 1e12,
        in_wh: float = 1e12,
    ) -> None:
        """What to respond around and within.

        Args:
            baseline_w: The setpoint without a response, passive sign.
            min_w: Least power.
            max_w: Greatest power.
            safe_w: Where to go when nothing can be believed.
            out_wh: Energy that may still be discharged.
            in_wh: Energy that may still be charged.
        """
        self.kernel.publish(baseline_w, min_w, max_w, safe_w, out_wh, in_wh)

    def written_by_others(self) -> None:
        """The control cycle wrote the register in between: the reflex writes its setpoint again."""
        self.kernel.written_by_others()

    def push(self, frequency_hz: float, voltage_v: float | None = None) -> None:
        """A value of a source that Python reads."""
        self.kernel.push(frequency_hz, voltage_v)

    def responding(self) -> float | None:
        """The setpoint held now because of the frequency; none when quiet."""
        return self.kernel.responding()

    def snapshot(self) -> ReflexSnapshot:
        """The state now."""
        values = self.kernel.snapshot()
        rocof = values["rocof_500"] if values["rocof_500"] is not None else values["rocof_100"]
        fifo = values["fifo"]
        return ReflexSnapshot(
            frequency_hz=values["frequency_hz"],
            rocof_hz_per_s=rocof,
            voltage_v=values["voltage_v"],
            sigma_hz=values["sigma_hz"],
            age_ms=None if values["age_ns"] is None else values["age_ns"] / 1e6,
            cause=CAUSES[values["cause"]],
            event_active=bool(values["open"]),
            open_events=tuple(str(KINDS[kind]) for kind in values["open"]),
            tripped=values["tripped"] == 1,
            fallen=values["fallen"],
            inhibited=values["inhibited"],
            refresh_ms=values["refresh_ns"] / 1e6 if values["refresh_ns"] else None,
            polls=values["ticks"],
            missed_deadlines=values["missed"],
            failures=values["failures"],
            writes=values["writes"],
            write_failures=values["write_failures"],
            scheduling="not running" if fifo is None else "SCHED_FIFO" if fifo else "SCHED_OTHER",
            memory_locked=bool(values["locked"]),
            lateness_p50_ms=values["lateness_p50_ms"],
            lateness_p99_ms=values["lateness_p99_ms"],
            lateness_max_ms=values["lateness_max_ms"],
        )

    def scheduling_told(self) -> str | None:
        """What the system did not grant the thread, for people; empty where it has all, none before it runs."""
        values = self.kernel.snapshot()
        if values["fifo"] is None:
            return None
        lacks = [name for name, key in (("SCHED_FIFO", "fifo"), ("locked memory", "locked")) if not values[key]]
        if not lacks or not self.config.realtime:
            return ""
        return f"the reflex runs without {' and '.join(lacks)}: its tail is the scheduler's (docs/reflex.md says what to grant)"

    def events(self, utc_ns: int, session: str, *, last: bool = False) -> list[FrequencyEvent]:
        """Events that began or ended since the last call, stamped by the site's clock; keeps their traces.

        An event still under way is told once as it begins (without an end) and again, with the same id, when it is over.

        Args:
            utc_ns: The site's time now; the loop itself runs on real monotonic time.
            session: Makes the events' ids unique over restarts.
            last: The thread has ended: traces are written as far as they go.
        """
        self._clocks.utc_ns, self._clocks.monotonic_ns = utc_ns, time.monotonic_ns()
        rows, lost = self.kernel.drain_events()
        if lost:
            log.warning("%d news of frequency events were overwritten unseen", lost)
        ended = {row["number"] for row in rows if row["end_ns"] is not None}
        found: list[FrequencyEvent] = []
        names: dict[int, str] = {}
        for row in rows:
            number = row["number"]
            if row["end_ns"] is None:
                if number in ended or number in self._open:
                    continue
                self._open.add(number)
            else:
                self._open.discard(number)
            found.append(self._event(row, session))
            names[number] = found[-1].id
        if self._recorder is not None:
            self._recorder.collect(rows, names, self._clocks.utc, last=last)
        return found

    def _event(self, row: Mapping[str, Any], session: str) -> FrequencyEvent:
        sampled, written = row["sample_ns"], row["write_ns"]
        kind = KINDS[row["kind"]]
        rocof = row["extreme_rocof"]
        return FrequencyEvent(
            id=f"{self.config.site_id}-{session}-{self.label}{row['number']}",
            site_id=self.config.site_id,
            kind=kind,
            start_ns=self._clocks.utc(row["start_ns"]),
            end_ns=None if row["end_ns"] is None else self._clocks.utc(row["end_ns"]),
            extreme_frequency_hz=row["extreme_hz"],
            extreme_rocof_hz_per_s=rocof if rocof is not None and math.isfinite(rocof) else None,
            response_w=row["response_w"],
            detection_to_write_ns=written - sampled if written and sampled else None,
            extreme_voltage_pu=row["extreme_pu"],
            phase_step_deg=row["step_deg"]
            if kind in {FrequencyEventKind.PHASE_STEP, FrequencyEventKind.ISLANDING}
            else None,
            cause=CAUSES[row["cause"]] if kind is FrequencyEventKind.INVALID else None,
        )


def alarm_of(event: FrequencyEvent) -> Alarm | None:
    """What a person should know of: a measurement that cannot be believed, a trip, a suspicion of islanding."""
    texts = {
        FrequencyEventKind.INVALID: (Severity.WARNING, f"frequency is not measured: {event.cause}"),
        FrequencyEventKind.TRIP: (Severity.CRITICAL, "tripped: power is zero until service may be entered again"),
        FrequencyEventKind.ISLANDING: (Severity.CRITICAL, "a phase step and an excursion: the site may be islanded"),
    }
    if event.kind not in texts:
        return None
    severity, text = texts[event.kind]
    return Alarm(
        id=f"{event.id}-alarm", site_id=event.site_id, asset_id=None, severity=severity, text=text,
        raised_ns=event.start_ns, cleared_ns=event.end_ns,
    )  # fmt: skip
