"""The hardware of a fleet in one process: every home's devices, the grid they share, and the truth about their energy."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import Field
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.config_file import StrictModel

from wattmesh_simulators.grid import Grid
from wattmesh_simulators.modbus_server import ModbusServer
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home, Slots
from wattmesh_simulators.registers import RegisterMap, template_of

log = logging.getLogger(__name__)

_SAVE_EVERY_NS = 3600 * NS_PER_S


class DeviceModel(StrictModel):
    """One simulated device."""

    port: int = Field(ge=0, le=65535)
    template: str = "sunspec_inverter"


class BatteryModel(DeviceModel):
    """A simulated battery."""

    template: str = "sunspec_battery"
    initial_soc_percent: float = Field(default=20, ge=0, le=100)


class MeterModel(DeviceModel):
    """A simulated meter."""

    template: str = "sunspec_meter_203"


class HomeModel(StrictModel):
    """One home."""

    id: str
    home: str = Field(pattern=r"^b0[1-5]$")
    inverter: DeviceModel
    battery: BatteryModel
    meter: MeterModel


class GridModel(StrictModel):
    """The grid; a trace is played instead of the equation where one is named."""

    nominal_hz: float = 60.0
    base_w: float = Field(default=200_000.0, gt=0)
    trace: str | None = None
    trace_column: str = "f_hz"
    trace_step_s: float = Field(default=2.0, gt=0)


class DisturbanceModel(StrictModel):
    """Loss (negative) of generation at a simulated time; simulated time holds still meanwhile."""

    at: float = Field(ge=0, description="simulated seconds after the start")
    power_w: float
    hold_s: float = Field(default=6.0, ge=0, le=120, description="real seconds")


class FleetModel(StrictModel):
    """The simulators' file."""

    sites: tuple[HomeModel, ...] = Field(min_length=1)
    grid: GridModel = GridModel()
    disturbances: tuple[DisturbanceModel, ...] = ()
    seed: int = 1


class Fleet:
    """All devices of all homes.

    Args:
        model: The file.
        clock: Simulated (or the machine's) time.
        state: Folder of ``truth.json``; none keeps nothing.
    """

    def __init__(self, model: FleetModel, clock: Clock, state: Path | None) -> None:
        self._model = model
        self._clock = clock
        self._state = state
        self._moved = 0
        self.grid = Grid(
            nominal_hz=model.grid.nominal_hz,
            base_w=model.grid.base_w,
            seed=model.seed,
            batteries_w=lambda: sum(home.fast_power_w(clock.utc_ns()) for home in self.homes.values()),
        )
        self.homes = {
            site.id: Home(site.home, site.battery.initial_soc_percent, self.grid.frequency_hz) for site in model.sites
        }
        if model.grid.trace:
            self.grid.play_trace(model.grid.trace, model.grid.trace_column, model.grid.trace_step_s)
        self._pending = sorted(model.disturbances, key=lambda one: one.at)
        self._start_ns = clock.utc_ns()
        self.servers: dict[tuple[str, str], ModbusServer] = {}
        self._opcua: list[OpcUaServer] = []
        self._disturbed: list[dict[str, float]] = []

    async def start(self) -> None:
        """Listen on every port; raises :class:`wattmesh_a2a.errors.ConfigurationError` and then nothing listens."""
        try:
            for site in self._model.sites:
                for kind, device in (("inverter", site.inverter), ("battery", site.battery), ("meter", site.meter)):
                    await self._start_device(site.id, kind, device)
        except BaseException:
            await self.stop()
            raise

    async def _start_device(self, site: str, kind: str, device: DeviceModel) -> None:
        home = self.homes[site]

        def written(name: str, value: float) -> None:
            home.write(name, value, self._clock.utc_ns())

        if template_of(device.template)["protocol"] == "opcua":
            opcua = OpcUaServer(device.template, lambda: home.quantities(kind), written)
            await opcua.start(device.port)
            self._opcua.append(opcua)
            return
        registers = RegisterMap(device.template, lambda: home.quantities(kind), lambda: self._moved, written)
        server = ModbusServer(registers)
        await server.start(device.port)
        self.servers[site, kind] = server

    async def stop(self) -> None:
        """End all servers and write the truth."""
        for server in self.servers.values():
            await server.stop()
        for opcua in self._opcua:
            await opcua.stop()
        self.save()

    async def run(self, step_s: float) -> None:
        """Step all homes for ever; ``step_s`` is the longest step."""
        last = self._clock.utc_ns()
        saved = last
        with self._clock.runner():
            while True:
                await self._clock.sleep_until_ns(self._clock.monotonic_ns() + round(step_s * NS_PER_S))
                now = self._clock.utc_ns()
                for home in self.homes.values():
                    home.step(now, (now - last) / NS_PER_S)
                self._moved += 1
                last = now
                for opcua in self._opcua:
                    await opcua.refresh()
                await self._disturb(now)
                if now - saved >= _SAVE_EVERY_NS:
                    saved = now
                    self.save()

    async def _disturb(self, now_ns: int) -> None:
        """Play what is due in real time, inside this step: simulated time waits for it."""
        while self._pending and (now_ns - self._start_ns) / NS_PER_S >= self._pending[0].at:
            one = self._pending.pop(0)
            log.warning("disturbance: %.0f W for %.1f s", one.power_w, one.hold_s)
            self.grid.disturb(one.power_w)
            await asyncio.sleep(one.hold_s)
            self.grid.disturb(0.0)
            await asyncio.sleep(min(one.hold_s, 3.0))
            self._disturbed.append({"time_ns": now_ns, "power_w": one.power_w, "nadir_hz": self.grid.nadir_hz})

    def save(self) -> None:
        """Write ``truth.json``, whole or not at all."""
        if self._state is None:
            return
        self._state.mkdir(parents=True, exist_ok=True)
        target = self._state / "truth.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(self.truth()), encoding="ascii")
        draft.replace(target)

    def truth(self) -> dict[str, Any]:
        """What really flowed, for the report."""
        return {
            "sites": {name: _truth_of(home) for name, home in self.homes.items()},
            "disturbances": self._disturbed,
            "requests": sum(server.requests for server in self.servers.values()),
        }


def _truth_of(home: Home) -> dict[str, Any]:
    def slots(of: Slots) -> dict[str, list[float]]:
        return {"import_wh": of.import_wh, "export_wh": of.export_wh}

    return {
        "start_ns": home.actual.start_ns,
        "actual": slots(home.actual),
        "no_battery": slots(home.no_battery),
        "self_consumption": slots(home.self_consumption),
        "stored_wh": {
            "initial": home.initial_stored_wh,
            "actual": home.battery.stored_wh,
            "self_consumption": home.shadow.stored_wh,
        },
        "battery": {"charged_wh": home.battery.charged_wh, "discharged_wh": home.battery.discharged_wh},
        "load_wh": home.load_total_wh,
        "writes": home.writes,
        "setpoints_reverted": home.setpoint.reverted,
    }
