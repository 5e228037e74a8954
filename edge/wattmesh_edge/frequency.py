"""The gateway's side of the reflex: what it listens to and moves, when it is started, and what it tells."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Mapping

from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.grid import FrequencyEvent
from wattmesh_drivers.driver import Driver

from wattmesh_edge import reflex as fast
from wattmesh_edge.config import FrequencyModel, FrequencyResponseModel, FrequencySourceModel, Site
from wattmesh_edge.limits import BatteryLimits
from wattmesh_edge.reflex import sources

log = logging.getLogger(__name__)

_SOURCE_AGAIN_S = 10.0
"""Real time until a frequency source that was not there is asked for again."""


class FrequencyWatch:
    """Starts the reflex as soon as what it needs is known, and takes its events.

    Args:
        site: The site.
        drivers: By device.
        batteries: Limits of the battery that responds.
        db: The gateway's database: one row an event, for the report.
    """

    def __init__(
        self, site: Site, drivers: Mapping[str, Driver], batteries: Mapping[str, BatteryLimits], db: sqlite3.Connection
    ) -> None:
        self._site = site
        self._drivers = drivers
        self._batteries = batteries
        self._db = db
        self.reflex: fast.Reflex | None = None
        self.responding: dict[str, fast.Reflex] = {}
        """The reflex by the battery that it may move; the control cycle holds this very mapping."""
        self._response_missing = False
        self._source_task: asyncio.Task[Mapping[str, object]] | None = None
        self._source_due_s = 0.0
        self._starts = 0
        self._scheduling_told = 0
        self._events: list[FrequencyEvent] = []
        """Of a reflex that was stopped to be started anew, not yet taken."""
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY, data TEXT) WITHOUT ROWID")
        self.rows: list[dict[str, object]] = [
            json.loads(data) for (data,) in db.execute("SELECT data FROM events ORDER BY id")
        ]
        """Every event of this site, as the report tells it."""

    def start(self, utc_ns: int, session: str) -> None:
        """Start listening as soon as the source is known; begin to respond when the battery's register is, too."""
        model = self._site.model.frequency
        if model is None or (self.reflex is not None and (self.reflex.responds or not self._response_missing)):
            return
        response = None
        was_missing, self._response_missing = self._response_missing, False
        if model.response is not None and self._site.profile is not None:
            response = self._response(model.response)
            self._response_missing = response is None
            if response is None and self.reflex is not None and was_missing:
                return  # listening already, and the battery is still away
        if self.reflex is not None:
            self.reflex.stop()
            self._events += self.reflex.events(utc_ns, session, last=True)
            self.reflex = None
        config = self._config(model, response)
        if config is None:
            return  # its device is away: the next cycle asks again
        self._starts += 1
        label = "" if self._starts == 1 else f"{self._starts}."
        self.reflex = fast.Reflex(config, traces=self._site.state / "events", label=label)
        if self.reflex.responds and model.response is not None:
            self.responding[model.response.device] = self.reflex
        else:
            log.warning("frequency is only watched: %s", self.reflex.why_watching)
        self.reflex.start()

    def _response(self, model: FrequencyResponseModel) -> fast.Response | None:
        """What the reflex may move; none while the battery's registers are not known."""
        assert self._site.profile is not None
        control = self._site.templates[model.device].controls["active_power_w"]
        endpoint = self._endpoint(model.device, str(control.reflex), write=True)
        if endpoint is None:
            return None
        watchdog = control.watchdog
        return fast.Response(
            endpoint=endpoint,
            rated_power_w=model.power_w or self._batteries[model.device].rated_power_w,
            profile=self._site.profile,
            minimum_interval_ms=control.minimum_interval_ms,
            limits_age_s=min(60.0, watchdog.seconds) if watchdog is not None else 60.0,
        )

    def _config(self, model: FrequencyModel, response: fast.Response | None) -> fast.ReflexConfig | None:
        source = model.source
        listened: fast.Endpoint | Mapping[str, object] | None
        voltage, refresh_ms = None, 0.0
        if source.device is None:
            listened = self._sought_source(source)
        elif not self._polled_by_reflex(source.device):
            listened, refresh_ms = sources.push_source(), self._site.model.control.period_s * 1000
        else:
            listened = self._endpoint(source.device, source.point, write=False)
            if source.voltage is not None:
                voltage = self._endpoint(source.device, source.voltage, write=False)
            refresh_ms = self._site.templates[source.device].connection.refresh_ms or 0.0
        if listened is None:
            return None
        return fast.ReflexConfig(
            site_id=self._site.model.site,
            nominal_hz=model.nominal_hz,
            source=listened,
            voltage=voltage,
            poll_ms=source.poll_ms,
            refresh_ms=refresh_ms,
            nominal_v=model.nominal_v or 0.0,
            rail_v=source.rail_v,
            m_class=source.m_class,
            band_hz=model.band_hz,
            rocof_hz_per_s=model.rocof_hz_per_s,
            voltage_band_pu=model.voltage_band_percent / 100,
            realtime=model.realtime,
            response=response,
        )

    def _sought_source(self, model: FrequencySourceModel) -> Mapping[str, object] | None:
        """A source that is no device of the site, found off the loop: a handshake or a large file must not hold up a cycle."""
        task = self._source_task
        if task is None:
            if time.monotonic() >= self._source_due_s:
                self._source_task = asyncio.get_running_loop().create_task(asyncio.to_thread(_other_source, model))
            return None
        if not task.done():
            return None
        self._source_task = None
        try:
            return task.result()
        except (UnavailableError, ConfigurationError) as error:
            if not self._source_due_s:
                log.warning("frequency is not measured: %s", error)
            self._source_due_s = time.monotonic() + _SOURCE_AGAIN_S
            return None

    def _polled_by_reflex(self, device: str) -> bool:
        """Whether the reflex reads the device's register by itself; else it gets what the driver reads in each cycle."""
        connection = next(one.connection for one in self._site.model.devices if one.id == device)
        template = self._drivers[device].template
        return connection.plain_tcp and template.protocol != "opcua" and not template.connection.single_client

    def push(self) -> None:
        """A source that is no register: what the driver read in this cycle goes to the reflex."""
        model = self._site.model.frequency
        if self.reflex is None or model is None or model.source.device is None:
            return
        driver = self._drivers[model.source.device]
        if not self._polled_by_reflex(model.source.device):
            push_frequency(self.reflex, driver, model.source.point, model.source.voltage)

    def _endpoint(self, device: str, point: str, *, write: bool) -> fast.Endpoint | None:
        found = self._drivers[device].register_of(point)
        if found is None:
            return None
        return fast.Endpoint(
            host=found.host,
            port=found.port,
            unit=found.unit,
            function=found.write_function if write else found.function,
            address=found.address,
            type=found.type,
            word_order=found.word_order,
            scale=found.scale,
            sign=found.sign,
        )

    def events(self, utc_ns: int, session: str, *, last: bool = False) -> list[FrequencyEvent]:
        """What has begun or ended since the last call."""
        found, self._events = self._events, []
        if self.reflex is None:
            return found
        if self._starts != self._scheduling_told and (told := self.reflex.scheduling_told()) is not None:
            self._scheduling_told = self._starts
            if told:
                log.warning("%s", told)
        return [*found, *self.reflex.events(utc_ns, session, last=last)]

    def note(self, event: FrequencyEvent) -> None:
        """Keep a row of an event for the report."""
        took = event.detection_to_write_ns
        row: dict[str, object] = {
            "id": event.id,
            "kind": str(event.kind),
            "start_ns": event.start_ns,
            "extreme_hz": event.extreme_frequency_hz,
            "response_w": event.response_w,
            "response_ms": None if took is None else took / 1e6,
        }
        self.rows = [one for one in self.rows if one["id"] != event.id] + [row]
        self._db.execute("INSERT OR REPLACE INTO events VALUES (?, ?)", (event.id, json.dumps(row)))

    def stop(self) -> None:
        """End the native thread; its last events can be taken afterwards."""
        if self.reflex is not None:
            self.reflex.stop()


def _other_source(model: FrequencySourceModel) -> Mapping[str, object]:
    """A source that is no device of the site."""
    rate, phases = model.rate_hz or 0.0, model.phases
    if model.udp is not None:
        return sources.udp_source(model.udp, rate_hz=rate, phases=phases)
    if model.pmu is not None:
        return sources.pmu_source(model.pmu, id_code=model.id_code)
    if model.adc is not None:
        return sources.device_source(
            model.adc, rate_hz=rate, phases=phases, bits=model.bits, shift=model.shift, scale=model.scale,
            offset=model.offset,
        )  # fmt: skip
    assert model.file is not None
    return sources.file_source(model.file, rate_hz=model.rate_hz, columns=model.columns, scale=model.scale)


def push_frequency(reflex: fast.Reflex, driver: Driver, point: str, voltage: str | None) -> None:
    """What a driver read in this cycle, to a reflex that has no register to poll; nothing where it is not good."""
    frequency = _value_of(driver, point)
    if frequency is not None:
        reflex.push(frequency, _value_of(driver, voltage))


def _value_of(driver: Driver, point: str | None) -> float | None:
    """What a driver read of a point in this cycle; none where it is not good."""
    index = next((i for i, one in enumerate(driver.asset.points) if one.id == point), None)
    if index is None or driver.qualities[index] != Quality.GOOD:
        return None
    return driver.values[index]
