"""The hardware of a fleet in one process: every home's devices, the grid they share, and the truth about their energy."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from operator import sub
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.device import asked_for
from wattmesh_simulators.grid import Grid
from wattmesh_simulators.modbus_server import ModbusServer
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home, Slots
from wattmesh_simulators.plant.vehicle import Car, Charger
from wattmesh_simulators.registers import RegisterMap, template_of
from wattmesh_simulators.waveform import WaveformStream

log = logging.getLogger(__name__)

_SAVE_EVERY_NS = 3600 * NS_PER_S
_SAVE_PAUSE_S = 2.0
"""Real time between two saves at least: a long fast run spends its time on physics."""
_RESUME = "resume.json"
_RESUME_WITHIN_NS = 2 * 86_400 * NS_PER_S
_HOLD_TICK_S = 0.1
_RECOVERY_S = 3.0
_CASES = ("actual", "no_battery", "self_consumption")


def _of_kind(kind: str) -> Callable[[str], str]:
    """A check that a template exists and is for such a device."""

    def check(name: str) -> str:
        try:
            found = template_of(name)["kind"]
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        if found != kind:
            raise ValueError(f"{name!r} is the template of a device of kind {found!r}; this is the {kind}")
        return name

    return check


class DeviceModel(StrictModel):
    """One simulated device; port 0 takes any free one."""

    port: int = Field(ge=0, le=65535)
    template: str


class InverterModel(DeviceModel):
    """A simulated PV inverter."""

    template: Annotated[str, AfterValidator(_of_kind("inverter"))] = "sunspec_inverter"


class BatteryModel(DeviceModel):
    """A simulated battery."""

    template: Annotated[str, AfterValidator(_of_kind("battery"))] = "sunspec_battery"
    initial_soc_percent: float = Field(default=20, ge=0, le=100)


class MeterModel(DeviceModel):
    """A simulated meter."""

    template: Annotated[str, AfterValidator(_of_kind("meter"))] = "sunspec_meter_203"


class ChargerModel(DeviceModel):
    """A simulated charging station with an electric car."""

    template: Annotated[str, AfterValidator(_of_kind("ev_charger"))] = "alfen_ng9xx"
    phases: Literal[1, 3] = 3
    energy_wh: float = Field(default=52_000, gt=0, description="of the car's battery")
    trip_wh: float = Field(default=12_000, ge=0, description="what is gone when it comes back")
    arrives: str = Field(default="18:00", pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="UTC")
    departs: str = Field(default="07:00", pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="UTC")

    def charger(self) -> Charger:
        """The station with its car, as it comes home."""
        arrives, departs = (int(at[:2]) * 3600 + int(at[3:]) * 60 for at in (self.arrives, self.departs))
        car = Car(
            energy_wh=self.energy_wh, stored_wh=max(0.0, self.energy_wh - self.trip_wh), phases=self.phases,
            trip_wh=self.trip_wh, arrives_s=arrives, departs_s=departs,
        )  # fmt: skip
        return Charger(car, phases=self.phases)


class HomeModel(StrictModel):
    """One home."""

    id: str = Field(min_length=1)
    home: str = Field(pattern=r"^b0[1-5]$")
    inverter: InverterModel
    battery: BatteryModel
    meter: MeterModel
    charger: ChargerModel | None = None

    def devices(self) -> list[tuple[str, DeviceModel]]:
        """Kind and model of each device it has."""
        all_of_them = (
            ("inverter", self.inverter), ("battery", self.battery), ("meter", self.meter), ("ev_charger", self.charger),
        )  # fmt: skip
        return [(kind, device) for kind, device in all_of_them if device is not None]


class GridModel(StrictModel):
    """The grid; a trace is played instead of the equation where one is named."""

    nominal_hz: float = Field(default=60.0, ge=45, le=65)
    base_w: float = Field(default=200_000.0, gt=0)
    trace: str | None = None
    trace_column: str = "f_hz"
    trace_step_s: float = Field(default=2.0, gt=0)
    trace_voltage: str | None = None
    waveform_udp: int | None = Field(default=None, ge=1, le=65535, description="loopback port that gets WMS1 datagrams")
    waveform_rate_hz: float = Field(default=4800.0, ge=400, le=20_000)


class DisturbanceModel(StrictModel):
    """Loss (negative) of generation at a simulated time; simulated time holds still meanwhile."""

    at: Annotated[float, Field(ge=0)] | AwareDatetime
    """Simulated seconds after the start, or a moment of simulated time with its zone."""
    power_w: float = Field(allow_inf_nan=False)
    hold_s: float = Field(default=6.0, ge=0, le=20)
    """Real seconds; longer than a time server's patience would let time run on."""

    def due_ns(self, start_ns: int) -> int:
        """When it begins, for a fleet that began at ``start_ns``."""
        if isinstance(self.at, datetime):
            return round(self.at.timestamp()) * NS_PER_S
        return start_ns + round(self.at * NS_PER_S)


class LabModel(StrictModel):
    """The hardware lab's door, on the loopback interface."""

    port: int = Field(ge=0, le=65535)
    secret: Path
    """A file beside this one."""


class FleetModel(StrictModel):
    """The simulators' file."""

    lab: LabModel | None = None

    sites: tuple[HomeModel, ...] = Field(min_length=1)
    grid: GridModel = GridModel()
    disturbances: tuple[DisturbanceModel, ...] = ()
    seed: int = 1

    @model_validator(mode="after")
    def _no_doubles(self) -> FleetModel:
        names = [site.id for site in self.sites]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sites: {', '.join(doubles)} stands twice; every id must be another")
        devices = [device for site in self.sites for _, device in site.devices()]
        ports = [device.port for device in devices if device.port]
        if taken := sorted({port for port in ports if ports.count(port) > 1}):
            raise ValueError(f"sites: two devices want port {', '.join(map(str, taken))}; give each its own")
        return self


class Fleet:
    """All devices of all homes.

    Args:
        model: The file.
        clock: Simulated (or the machine's) time.
        state: Folder of ``truth.json``; none keeps nothing. What an earlier run left there is gone on from.
        monotonic: Real time, for what does not stand still while simulated time does.
        pause: Waits in real time.
    """

    def __init__(
        self,
        model: FleetModel,
        clock: Clock,
        state: Path | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._model = model
        self._clock = clock
        self._state = state
        self._monotonic = monotonic
        self._pause = pause
        self._moved = 0
        self.grid = Grid(
            nominal_hz=model.grid.nominal_hz,
            base_w=model.grid.base_w,
            seed=model.seed,
            batteries_w=lambda: sum(home.fast_power_w(clock.utc_ns()) for home in self.homes.values()),
            monotonic=monotonic,
        )
        self.homes = {
            site.id: Home(
                site.home,
                site.battery.initial_soc_percent,
                self.grid.frequency_hz,
                model.seed,
                self.grid.voltage_pu,
                None if site.charger is None else site.charger.charger(),
            )
            for site in model.sites
        }
        if model.grid.trace:
            self.grid.play_trace(
                model.grid.trace, model.grid.trace_column, model.grid.trace_step_s, model.grid.trace_voltage
            )
        self._start_ns = self._last_ns = clock.utc_ns()
        self._disturbed: list[dict[str, float]] = []
        self._restore()
        self._pending = sorted(
            (one for one in model.disturbances if one.due_ns(self._start_ns) >= clock.utc_ns()),
            key=lambda one: one.due_ns(self._start_ns),
        )
        self._asked: deque[DisturbanceModel] = deque(maxlen=16)
        self.disturbing = False
        """Whether a disturbance lasts."""
        self._saved_at = monotonic()
        self.servers: dict[tuple[str, str], ModbusServer] = {}
        self._opcua: list[OpcUaServer] = []
        self._waveform: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen on every port; raises :class:`wattmesh_a2a.errors.ConfigurationError` and then nothing listens."""
        try:
            for site in self._model.sites:
                for kind, device in site.devices():
                    await self._start_device(site.id, kind, device)
        except BaseException:
            await self.stop()
            raise
        if self._model.grid.waveform_udp is not None:
            stream = WaveformStream(
                self.grid, ("127.0.0.1", self._model.grid.waveform_udp), rate_hz=self._model.grid.waveform_rate_hz
            )
            self._waveform = asyncio.get_running_loop().create_task(stream.run())

    async def _start_device(self, site: str, kind: str, device: DeviceModel) -> None:
        home = self.homes[site]

        settings: dict[str, float] = {}

        def written(name: str, value: float) -> None:
            if kind != "ev_charger":
                home.write(name, value, self._clock.utc_ns())
                return
            settings[name] = value
            (control,) = template_of(device.template)["controls"].values()
            lasts_s = float(control.get("watchdog", {}).get("seconds", 0.0))
            home.command("active_power_w", asked_for(control, settings), lasts_s, self._clock.utc_ns(), kind)

        if template_of(device.template)["protocol"] == "opcua":
            opcua = OpcUaServer(device.template, lambda: home.quantities(kind), written, clock=self._clock)
            await opcua.start(device.port)
            self._opcua.append(opcua)
            return
        registers = RegisterMap(
            device.template, lambda: home.quantities(kind), lambda: self._moved, written,
            {"frequency_hz": home.frequency_hz, "voltage_l1_v": home.voltage_l1_v},
        )  # fmt: skip
        server = ModbusServer(registers)
        await server.start(device.port)
        self.servers[site, kind] = server

    async def stop(self) -> None:
        """End all servers and write the truth."""
        if self._waveform is not None:
            self._waveform.cancel()
            self._waveform = None
        for server in self.servers.values():
            await server.stop()
        for opcua in self._opcua:
            await opcua.stop()
        self.save()

    async def run(self, step_s: float) -> None:
        """Step all homes for ever; ``step_s`` is the longest step."""
        saved = self._last_ns
        with self._clock.runner():
            while True:
                await self._clock.sleep_until_ns(self._clock.monotonic_ns() + round(step_s * NS_PER_S))
                now = self._clock.utc_ns()
                await self._advance(0.0)
                while self._pending and now >= self._pending[0].due_ns(self._start_ns):
                    await self._disturb(self._pending.pop(0), now)
                if self._asked:
                    await self._disturb(self._asked.popleft(), now)
                if now - saved >= _SAVE_EVERY_NS and self._monotonic() - self._saved_at >= _SAVE_PAUSE_S:
                    saved = now
                    self.save()

    async def _advance(self, real_s: float) -> None:
        """Bring all plants up to the clock's time; where that stands still, let ``real_s`` pass for the batteries."""
        now = self._clock.utc_ns()
        for home in self.homes.values():
            if now > self._last_ns:
                home.step(now, (now - self._last_ns) / NS_PER_S)
            elif real_s > 0:
                home.hold(now, real_s)
        self._last_ns = max(now, self._last_ns)
        await self._show()

    async def _show(self) -> None:
        """Let every device's values follow the plants."""
        self._moved += 1
        for opcua in self._opcua:
            await opcua.refresh()

    def ask_disturbance(self, one: DisturbanceModel) -> None:
        """Play a disturbance with the next step, whatever its time says; raises :class:`ConfigurationError` where many wait."""
        if len(self._asked) == self._asked.maxlen:
            raise ConfigurationError("enough disturbances wait already; let some pass")
        self._asked.append(one)

    async def _disturb(self, one: DisturbanceModel, now_ns: int) -> None:
        """Play a disturbance in real time, inside this step: simulated time waits for it."""
        log.warning("disturbance: %.0f W for %.1f s", one.power_w, one.hold_s)
        self.disturbing = True
        self.grid.disturb(one.power_w)
        await self._hold(one.hold_s)
        self.grid.disturb(0.0)
        self.disturbing = False
        await self._hold(min(one.hold_s, _RECOVERY_S))
        self._disturbed.append({"time_ns": now_ns, "power_w": one.power_w, "nadir_hz": self.grid.nadir_hz})

    async def _hold(self, seconds: float) -> None:
        began = last = self._monotonic()
        while (left := began + seconds - last) > 0:
            await self._pause(min(_HOLD_TICK_S, left))
            self.grid.frequency_hz()  # the lowest frequency is found whether or not anybody asks
            now = self._monotonic()
            await self._advance(now - last)
            last = now

    def save(self) -> None:
        """Write ``truth.json``, whole or not at all."""
        if self._state is None:
            return
        self._state.mkdir(parents=True, exist_ok=True)
        for name, content in (("truth.json", self.truth()), (_RESUME, self._resume())):
            draft = (self._state / name).with_suffix(".draft")
            draft.write_text(json.dumps(content), encoding="ascii")
            draft.replace(self._state / name)
        self._saved_at = self._monotonic()

    def _resume(self) -> dict[str, Any]:
        return {
            "start_ns": self._start_ns,
            "last_ns": self._last_ns,
            "disturbed": self._disturbed,
            "homes": {name: {"home": home.home, **home.state()} for name, home in self.homes.items()},
        }

    def _restore(self) -> None:
        """Go on from the last save of the same homes; what happened since is made up for without setpoints."""
        path = self._state / _RESUME if self._state is not None else None
        if path is None or not path.exists():
            return
        try:
            kept = json.loads(path.read_text(encoding="ascii"))
            homes = {name: home["home"] for name, home in kept["homes"].items()}
            age_ns = self._last_ns - int(kept["last_ns"])
            if homes != {name: home.home for name, home in self.homes.items()} or not 0 <= age_ns <= _RESUME_WITHIN_NS:
                log.warning("%s is of another fleet or another time; starting anew", path)
                return
            for name, home in self.homes.items():
                home.restore(kept["homes"][name])
                home.step(self._last_ns, age_ns / NS_PER_S)
            self._start_ns, self._disturbed = int(kept["start_ns"]), list(kept["disturbed"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path} cannot be gone on from ({error!r}); remove it to start anew") from error

    def truth(self) -> dict[str, Any]:
        """What really flowed, for the report."""
        return {
            "sites": {name: self._truth_of(name, home) for name, home in self.homes.items()},
            "fleet_net_wh": {case: _netted([getattr(home, case) for home in self.homes.values()]) for case in _CASES},
            "disturbances": self._disturbed,
            "requests": sum(server.requests for server in self.servers.values()),
        }

    def _truth_of(self, name: str, home: Home) -> dict[str, Any]:
        def slots(of: Slots) -> dict[str, list[float]]:
            return {"import_wh": of.import_wh, "export_wh": of.export_wh}

        return {
            "start_ns": home.actual.start_ns,
            "actual": slots(home.actual),
            "no_battery": slots(home.no_battery),
            "self_consumption": slots(home.self_consumption),
            "peak_import_w": {case: max(getattr(home, case).import_wh, default=0.0) * 4 for case in _CASES},
            "stored_wh": {
                "initial": home.initial_stored_wh,
                "actual": home.battery.stored_wh,
                "self_consumption": home.shadow.stored_wh,
            },
            "battery": {
                "charged_wh": home.battery.charged_wh,
                "discharged_wh": home.battery.discharged_wh,
                "lost_wh": home.battery.lost_wh,
            },
            "charger": None
            if home.charger is None
            else {"charged_wh": home.charger.charged_wh, "missed_wh": home.charger.missed_wh},
            "load_wh": home.load_total_wh,
            "pv_wh": home.pv_total_wh,
            "curtailed_wh": home.curtailed_wh,
            "writes": home.writes,
            "writes_refused": sum(server.writes_refused for (site, _), server in self.servers.items() if site == name),
            "setpoints_reverted": home.setpoint.reverted,
        }


def _netted(homes: Sequence[Slots]) -> list[float]:
    """Import less export of all homes together, slot by slot."""
    return [sum(energies) for energies in zip(*(map(sub, of.import_wh, of.export_wh) for of in homes), strict=False)]
