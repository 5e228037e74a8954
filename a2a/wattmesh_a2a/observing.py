"""What a person who looks at a site asks its gateway: the frequency as it is measured, an event's trace, the devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyWatch:
    """Asks a gateway to send its frequency for a while (:class:`FrequencySamples`); asked again as long as somebody looks."""

    lease_s: int
    """Real seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencySamples:
    """Estimates of the reflex, ten a second or more; an event, sent while somebody looks. Nothing depends on it."""

    site_id: str
    times_ms: tuple[int, ...]
    """Real time, milliseconds since 1970: a simulation's clock may stand still meanwhile."""
    frequency_hz: tuple[float | None, ...]
    """None where the measurement is not valid."""
    rocof_hz_per_s: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTraceQuery:
    """Asks a gateway for what it kept around a frequency event."""

    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTraceReport:
    """Answer to :class:`EventTraceQuery`: columns over time, thinned for a plot; empty where nothing was kept."""

    event_id: str
    times_ms: tuple[float, ...]
    """From the event's beginning."""
    frequency_hz: tuple[float | None, ...]
    rocof_hz_per_s: tuple[float | None, ...]
    setpoint_w: tuple[float | None, ...]
    """What was decided; consumption positive."""
    write_ms: float | None
    """When the first setpoint's bytes went out."""
    end_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBudget:
    """A setting that is kept in a device's flash memory."""

    control: str
    used: int
    """Today (UTC)."""
    allowed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """A device as its driver sees it."""

    device_id: str
    template: str
    state: str
    good: int
    """Points whose value can be used."""
    points: int
    polls: int
    failed_polls: int
    writes: int
    budgets: tuple[WriteBudget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesQuery:
    """Asks a gateway for its devices. Answered by :class:`DevicesReport`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesReport:
    """Answer to :class:`DevicesQuery`."""

    devices: tuple[DeviceState, ...]
