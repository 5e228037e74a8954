"""The reflex: frequency measured and answered on a native thread, without the interpreter."""

from __future__ import annotations

import importlib.resources
import logging
import math
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel, load_yaml_model
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.grid import FrequencyEvent, FrequencyEventKind

from wattmesh_edge.reflex.kernel import Kernel

log = logging.getLogger(__name__)

FINEST_HZ = 0.01
"""A register with coarser steps is too coarse to respond on; the site then only watches."""
CAUSES = ("valid", "no answer", "out of range", "warming up")
_KINDS = (FrequencyEventKind.UNDER_FREQUENCY, FrequencyEventKind.OVER_FREQUENCY)


class ResponseProfile(StrictModel):
    """How power follows frequency (``firmware_configs/responses``)."""

    profile: Literal[1]
    id: str
    nominal_hz: tuple[Literal[50, 60], ...]
    dead_band_hz: float = Field(ge=0, le=1)
    droop: float = Field(gt=0.005, le=0.2)
    source: str


def load_profile(name: str) -> ResponseProfile:
    """A profile by name; raises :class:`ConfigurationError` with the names there are."""
    folder = importlib.resources.files("firmware_configs") / "responses"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in names:
        raise ConfigurationError(f"there is no response profile {name!r}; there are: {', '.join(names)}")
    with importlib.resources.as_file(folder / f"{name}.yaml") as path:
        return load_yaml_model(path, ResponseProfile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A register on the wire; ``function`` reads (3, 4) or writes (6, 16) it."""

    host: str
    port: int
    unit: int
    function: int
    address: int
    type: str
    word_order: str
    scale: float
    sign: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the reflex may move."""

    endpoint: Endpoint
    rated_power_w: float
    profile: ResponseProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflexConfig:
    """Everything the native thread needs."""

    site_id: str
    nominal_hz: float
    source: Endpoint
    poll_ms: int = 20
    band_hz: float = 0.2
    """An event begins outside nominal ± this."""
    exit_hz: float = 0.02
    debounce_ms: int = 60
    response: Response | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflexSnapshot:
    """The latest estimate, and how well the loop keeps its time."""

    frequency_hz: float | None
    rocof_hz_per_s: float | None
    cause: str
    event_active: bool
    polls: int
    missed_deadlines: int
    failures: int
    lateness_p50_ms: float | None
    lateness_p99_ms: float | None
    lateness_max_ms: float


class Reflex:
    """Owns the native thread of one site.

    Args:
        config: What to listen to and what may be moved.

    Raises:
        ConfigurationError: The profile does not fit the grid, or the site only may watch (see ``why_watching``).
    """

    def __init__(self, config: ReflexConfig) -> None:
        self._config = config
        response = config.response
        self.why_watching: str | None = None
        if response is None:
            self.why_watching = "no response configured"
        elif config.source.type != "f32" and config.source.scale > FINEST_HZ * 1.001:
            self.why_watching = f"frequency has steps of {config.source.scale:g} Hz, too coarse to respond on"
            response = None
        if response is not None and config.nominal_hz not in response.profile.nominal_hz:
            raise ConfigurationError(f"response profile {response.profile.id} is not for {config.nominal_hz:g} Hz")
        self.responds = response is not None
        self._kernel = Kernel(
            asdict(_resolved(config.source)),
            asdict(_resolved(response.endpoint)) if response else None,
            period_ns=config.poll_ms * 1_000_000,
            nominal_hz=config.nominal_hz,
            low_hz=config.nominal_hz - config.band_hz,
            high_hz=config.nominal_hz + config.band_hz,
            exit_hz=config.exit_hz,
            debounce_ns=config.debounce_ms * 1_000_000,
            dead_band_hz=response.profile.dead_band_hz if response else 0.0,
            droop=response.profile.droop if response else 1.0,
            rated_w=response.rated_power_w if response else 0.0,
        )
        self._thread: threading.Thread | None = None
        self._events = 0

    def start(self) -> None:
        """Start the native thread."""
        self._thread = threading.Thread(target=self._kernel.run, name="reflex", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it goes back to the baseline first. Bounded by the loop's own time-outs."""
        if self._thread is not None:
            self._kernel.stop()
            self._thread.join(timeout=3.0)
            self._thread = None

    def publish(self, baseline_w: float, min_w: float, max_w: float) -> None:
        """The setpoint to respond around, and the limits of the response; passive sign."""
        self._kernel.publish(baseline_w, min_w, max_w)

    def responding(self) -> float | None:
        """The setpoint held now because of the frequency; none when quiet."""
        return self._kernel.responding()

    def snapshot(self) -> ReflexSnapshot:
        """The state now."""
        values = self._kernel.snapshot()
        return ReflexSnapshot(
            frequency_hz=values["frequency_hz"],
            rocof_hz_per_s=values["rocof_hz_per_s"],
            cause=CAUSES[int(values["cause"] or 0)],
            event_active=bool(values["active"]),
            polls=int(values["polls"] or 0),
            missed_deadlines=int(values["missed"] or 0),
            failures=int(values["failures"] or 0),
            lateness_p50_ms=values["lateness_p50_ms"],
            lateness_p99_ms=values["lateness_p99_ms"],
            lateness_max_ms=float(values["lateness_max_ms"] or 0.0),
        )

    def samples(self) -> tuple[list[tuple[int, float, float, int]], int]:
        """Samples since the last call (monotonic ns, Hz, Hz/s, cause), and how many were overwritten unseen."""
        return self._kernel.drain_samples()

    def events(self, utc_ns: int, session: str) -> list[FrequencyEvent]:
        """Events that ended since the last call, stamped by the site's clock.

        Args:
            utc_ns: The site's time now; the loop itself runs on real monotonic time.
            session: Makes the events' ids unique over restarts.
        """
        found = []
        now = time.monotonic_ns()
        for kind, start, end, sampled, written, extreme, rocof, response in self._kernel.drain_events():
            self._events += 1
            found.append(
                FrequencyEvent(
                    id=f"{self._config.site_id}-{session}-{self._events}",
                    site_id=self._config.site_id,
                    kind=_KINDS[kind],
                    start_ns=utc_ns - (now - start),
                    end_ns=utc_ns - (now - end),
                    extreme_frequency_hz=extreme,
                    extreme_rocof_hz_per_s=rocof if math.isfinite(rocof) else 0.0,
                    response_w=response,
                    detection_to_write_ns=written - sampled if written else None,
                )
            )
        return found


def _resolved(endpoint: Endpoint) -> Endpoint:
    """The endpoint with an IPv4 address: the native thread looks no names up."""
    try:
        host = socket.gethostbyname(endpoint.host)
    except OSError as error:
        raise ConfigurationError(f"reflex: host {endpoint.host!r} is not known ({error})") from error
    return Endpoint(**{**asdict(endpoint), "host": host})
