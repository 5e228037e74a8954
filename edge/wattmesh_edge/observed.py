"""What a gateway shows to a person who looks from afar: frequency while it is watched, traces of events, its devices.

Nothing here takes part in control; a question that cannot be answered costs the question.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattmesh_a2a.devices import Quality
from wattmesh_a2a.envelope import CLOUD_UNIT, Envelope
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnauthorisedError
from wattmesh_a2a.messages import Acknowledged, Message
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.observing import (
    DevicesQuery,
    DevicesReport,
    DeviceState,
    EventTraceQuery,
    EventTraceReport,
    FrequencySamples,
    FrequencyWatch,
    WriteBudget,
)
from wattmesh_drivers.driver import Driver

from wattmesh_edge.reflex import Reflex
from wattmesh_edge.reflex.evidence import load_trace

SAMPLE_S = 0.05
_BATCH = 10
_LEASE_MOST_S = 60
_TRACE_ROWS = 800


class Observed:
    """Answers the questions of :mod:`wattmesh_a2a.observing`.

    Args:
        site_id: The site.
        drivers: By device.
        reflex: Gives the reflex, where one runs.
        events: Folder of the events' traces.
        messenger: Serves the questions.
        spawn: Runs the sending beside everything else.
        flash: Gives a device's writes into flash: control → day (UTC) and writes.
        utc_ns: The gateway's clock.
        real_ms: Real time in milliseconds since 1970.
        pause: Waits in real time.
    """

    def __init__(
        self,
        site_id: str,
        drivers: Mapping[str, Driver],
        reflex: Callable[[], Reflex | None],
        events: Path,
        messenger: Messenger,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        flash: Callable[[str], Mapping[str, tuple[int, int]]] = lambda name: {},
        utc_ns: Callable[[], int] = time.time_ns,
        real_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._site_id, self._drivers, self._reflex, self._events = site_id, drivers, reflex, events
        self._messenger, self._spawn, self._real_ms, self._pause = messenger, spawn, real_ms, pause
        self._flash, self._utc_ns = flash, utc_ns
        self._until_ms = 0
        self._sending = False

    def register(self) -> None:
        """Begin to answer when the messenger starts."""
        self._messenger.on_request(FrequencyWatch, self._on_watch, idempotent=True)
        self._messenger.on_request(EventTraceQuery, self._on_trace, idempotent=True)
        self._messenger.on_request(DevicesQuery, self._on_devices, idempotent=True)

    async def _on_watch(self, envelope: Envelope) -> Message:
        wanted = envelope.data
        assert isinstance(wanted, FrequencyWatch)
        _from_cloud(envelope)
        if not 1 <= wanted.lease_s <= _LEASE_MOST_S:
            raise InvalidMessageError(f"lease_s is from 1 to {_LEASE_MOST_S}")
        if self._reflex() is None:
            return Acknowledged(detail="no frequency is measured here")
        self._until_ms = self._real_ms() + wanted.lease_s * 1000
        if not self._sending:
            self._sending = True
            self._spawn(self._send())
        return Acknowledged()

    async def _send(self) -> None:
        """20 samples a second, ten in a message, until nobody looks any more."""
        rows: list[tuple[int, float | None, float | None]] = []
        try:
            while (now := self._real_ms()) < self._until_ms and (reflex := self._reflex()) is not None:
                found = reflex.snapshot()
                valid = found.cause == "valid"
                rows.append((now, found.frequency_hz if valid else None, found.rocof_hz_per_s if valid else None))
                if len(rows) >= _BATCH:
                    times, hertz, rocof = zip(*rows, strict=True)
                    message = FrequencySamples(
                        site_id=self._site_id, times_ms=times, frequency_hz=hertz, rocof_hz_per_s=rocof
                    )
                    await self._messenger.emit(message, valid_for_s=60.0)
                    rows.clear()
                await self._pause(SAMPLE_S)
        finally:
            self._sending = False

    async def _on_trace(self, envelope: Envelope) -> Message:
        wanted = envelope.data
        assert isinstance(wanted, EventTraceQuery)
        _from_cloud(envelope)
        path = self._events / f"{Path(wanted.event_id).name}.trace.gz"
        return await asyncio.to_thread(trace_report, wanted.event_id, path)

    async def _on_devices(self, envelope: Envelope) -> Message:
        _from_cloud(envelope)
        day = self._utc_ns() // 86_400_000_000_000
        rows = [_device(name, one, self._flash(name), day) for name, one in self._drivers.items()]
        return DevicesReport(devices=tuple(rows))


def trace_report(event_id: str, path: Path) -> EventTraceReport:
    """A kept trace as columns, at most 800 rows, every extreme of the frequency among them; empty where there is none."""
    nothing = EventTraceReport(
        event_id=event_id, times_ms=(), frequency_hz=(), rocof_hz_per_s=(), setpoint_w=(), write_ms=None, end_ms=None
    )
    if not path.is_file():
        return nothing
    try:
        trace = load_trace(path)
    except ConfigurationError:
        return nothing
    begin = trace.event["start_ns"]
    rows = _thinned(list(trace.output_rows()))

    def after(moment: int) -> float | None:
        return round((moment - begin) / 1e6, 2) if moment else None

    return EventTraceReport(
        event_id=event_id,
        times_ms=tuple(round((row["time_ns"] - begin) / 1e6, 2) for row in rows),
        frequency_hz=tuple(_number(row["frequency_hz"]) if row["cause"] == 0 else None for row in rows),
        rocof_hz_per_s=tuple(_number(row["rocof_500"]) if row["cause"] == 0 else None for row in rows),
        setpoint_w=tuple(_number(row["target_w"]) for row in rows),
        write_ms=after(trace.event["write_ns"]),
        end_ms=after(trace.event["end_ns"]),
    )


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each stretch the rows with the lowest and the highest frequency, in order."""
    if len(rows) <= _TRACE_ROWS:
        return list(rows)
    size = math.ceil(len(rows) / (_TRACE_ROWS // 2))
    kept: list[dict[str, Any]] = []
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        low = min(part, key=lambda row: _or(row["frequency_hz"], math.inf))
        high = max(part, key=lambda row: _or(row["frequency_hz"], -math.inf))
        kept += [low] if low is high else sorted((low, high), key=lambda row: row["time_ns"])
    return kept


def _or(value: float, other: float) -> float:
    return value if math.isfinite(value) else other


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _device(name: str, driver: Driver, flash: Mapping[str, tuple[int, int]], day: int) -> DeviceState:
    counters = driver.counters
    return DeviceState(
        device_id=name,
        template=driver.template.id,
        state=driver.state.name.lower(),
        good=sum(quality == Quality.GOOD for quality in driver.qualities),
        points=len(driver.asset.points),
        polls=counters["polls"],
        failed_polls=counters["failed_polls"],
        writes=counters["writes"],
        budgets=tuple(
            WriteBudget(control=control, used=_used(flash.get(control), day), allowed=model.writes_per_day)
            for control, model in driver.template.controls.items()
            if model.writes_per_day is not None
        ),
    )


def _used(kept: tuple[int, int] | None, day: int) -> int:
    return kept[1] if kept is not None and kept[0] >= day else 0


def _from_cloud(envelope: Envelope) -> None:
    if envelope.source.unit != CLOUD_UNIT:
        raise UnauthorisedError(f"{envelope.source} is not the cloud")
