"""One simulated device from its template, with the physics of a home behind it: what ``wattmesh simulate device`` serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.faults import Faults
from wattmesh_simulators.grid import Grid
from wattmesh_simulators.modbus_server import ModbusServer, SerialServer
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home
from wattmesh_simulators.plant.vehicle import Charger
from wattmesh_simulators.registers import RegisterMap, template_of

log = logging.getLogger(__name__)

_NAMED = {"wset_w", "setpoint_w", "limit_percent"}
"""Settings that the plant knows by name (SunSpec's, and our OPC UA battery's)."""


def asked_for(control: Mapping[str, Any], settings: Mapping[str, float]) -> float | None:
    """What a device makes of its settings: the target that a template's steps would have written so; none for no target.

    Args:
        control: As in the template: ``steps`` with ``setting`` and ``value``.
        settings: What the device holds, by name, in our sign and unit.
    """
    parts: dict[str, float] = {}
    direction = ""
    for step in control["steps"]:
        held, value = settings.get(step["setting"]), step["value"]
        if held is None:
            return None
        if isinstance(value, str):
            parts[value] = held
        elif isinstance(value, Mapping):
            found = [name for name, number in value.items() if number == held]
            if not found:
                return None
            direction = str(found[0])
        elif held != value:
            return None  # another mode, or not enabled
    if direction == "idle":
        return 0.0
    if "target" in parts:
        return parts["target"]
    if "magnitude" in parts:
        return -parts["magnitude"] if direction == "discharge" else parts["magnitude"]
    charge, discharge = parts.get("charge", 0.0), parts.get("discharge", 0.0)
    return charge if direction == "charge" else -discharge if direction == "discharge" else charge - discharge


class SimulatedDevice:
    """A device of any template.

    Args:
        template: Its name, or the path of a file (ending in ``.yaml``).
        clock: The plant's time.
        home: Whose recorded load and sun it has, ``b01`` to ``b05``.
        soc_percent: Of its battery, at first.
        strict: Refuse reads that touch registers without a meaning, and take the template's connection needs seriously.
        shift_s: The plant's time runs so far ahead of the clock: for sun at night.
        grid: Its frequency; none makes a quiet one.
    """

    def __init__(
        self,
        template: str,
        clock: Clock,
        *,
        home: str = "b01",
        soc_percent: float = 50.0,
        strict: bool = False,
        shift_s: float = 0.0,
        grid: Grid | None = None,
    ) -> None:
        self.data = template_of(template)
        self.kind: str = self.data["kind"]
        self._template = template
        self._clock = clock
        self._shift_ns = round(shift_s * NS_PER_S)
        self.grid = grid or Grid()
        charger = Charger(phases=1 if template.endswith("_1p") else 3) if self.kind == "ev_charger" else None
        self.home = Home(home, soc_percent, self.grid.frequency_hz, voltage_pu=self.grid.voltage_pu, charger=charger)
        self.settings: dict[str, float] = {}
        self.server: ModbusServer | OpcUaServer | None = None
        self._strict = strict
        self._moved = 0
        self._last_ns = self._now_ns()
        self.home.step(self._last_ns, 1.0)

    def _now_ns(self) -> int:
        return self._clock.utc_ns() + self._shift_ns

    @property
    def faults(self) -> Faults:
        """Switches of a Modbus device; raises :class:`ConfigurationError` for any other."""
        if not isinstance(self.server, ModbusServer):
            raise ConfigurationError(f"{self._template} is no Modbus device, and only these have faults on demand")
        return self.server.faults

    def written(self, name: str, value: float) -> None:
        """A setting was written over the wire."""
        self.settings[name] = value
        now = self._now_ns()
        for control_name, control in self.data.get("controls", {}).items():
            steps = {step["setting"] for step in control["steps"]}
            if name not in steps:
                continue
            if steps & _NAMED:
                self.home.write(name, value, now)
                continue
            watchdog = control.get("watchdog", {"setting": "", "seconds": 0.0})
            if watchdog["setting"] not in {"", name} and watchdog["setting"] not in self.settings:
                continue
            target = asked_for(control, self.settings)
            self.home.command(control_name, target, float(watchdog["seconds"]), now, self.kind)
        self._moved += 1

    def registers(self) -> RegisterMap:
        """Its registers, for a server of one's own."""
        registers = RegisterMap(
            self._template, lambda: self.home.quantities(self.kind), lambda: self._moved, self.written,
            {"frequency_hz": self.home.frequency_hz, "voltage_l1_v": self.home.voltage_l1_v},
        )  # fmt: skip
        registers.strict = self._strict
        return registers

    async def serve(
        self,
        *,
        port: int = 0,
        unit: int | None = None,
        framing: Literal["tcp", "rtu"] = "tcp",
        serial: str | None = None,
        pty: Path | None = None,
        baud: int | None = None,
    ) -> None:
        """Listen, at a port of the loopback interface (0 takes a free one), a serial port or a pty.

        Raises:
            ConfigurationError: The port cannot be used, or does not go with the template's protocol.
        """
        if self.data["protocol"] == "opcua":
            if serial or pty or framing == "rtu":
                raise ConfigurationError(f"{self._template} speaks OPC UA; it has no serial line")
            opcua = OpcUaServer(self._template, lambda: self.home.quantities(self.kind), self.written)
            await opcua.start(port)
            self.server = opcua
            return
        needs = self.data.get("connection", {})
        unit = needs.get("unit", 1) if unit is None else unit
        limit = needs.get("max_registers", 125) if self._strict else 125
        if serial or pty:
            line = SerialServer(self.registers(), unit=unit, framing="rtu", max_registers=limit)
            if serial:
                await line.start_serial(serial, baud or needs.get("baud", 9600))
            else:
                assert pty is not None
                await line.start_pty(pty)
            self.server = line
            return
        server = ModbusServer(self.registers(), unit=unit, framing=framing, max_registers=limit)
        if self._strict:
            server.connect_delay_s = needs.get("connect_delay_ms", 0) / 1000 * 0.9
            server.faults.single_client = bool(needs.get("single_client"))
        await server.start(port)
        self.server = server

    async def stop(self) -> None:
        """Stop listening."""
        if self.server is not None:
            await self.server.stop()

    async def restart(self, down_s: float = 0.0) -> None:
        """Lose power and come back: settings are gone, and clients with them."""
        if not isinstance(self.server, ModbusServer) or isinstance(self.server, SerialServer):
            raise ConfigurationError("only a device on TCP can be restarted; on a line use the fault 'silent'")
        await self.server.go_down()
        self.settings.clear()
        self.home.restart(self._now_ns())
        self._moved += 1
        await asyncio.sleep(down_s)
        await self.server.come_up()

    async def step(self) -> None:
        """Bring the plant up to the clock."""
        now = self._now_ns()
        if now > self._last_ns:
            self.home.step(now, (now - self._last_ns) / NS_PER_S)
            self._last_ns = now
        self._moved += 1
        if isinstance(self.server, OpcUaServer):
            await self.server.refresh()

    async def run(self, step_s: float = 1.0) -> None:
        """Step for ever."""
        while True:
            await self._clock.sleep_until_ns(self._clock.monotonic_ns() + round(step_s * NS_PER_S))
            await self.step()
