"""The hardware lab's door into a simulated fleet: faults of devices and disturbances of the grid, asked for while it runs.

Lines of JSON over a loopback socket, each answered with one; the first names the shared secret of the lab's file. Only hardware
that is simulated can be reached by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from wattmesh_a2a.errors import ConfigurationError, WattmeshError

from wattmesh_simulators.faults import switch
from wattmesh_simulators.fleet import DisturbanceModel, Fleet

log = logging.getLogger(__name__)

_LINE = 10_000
_CLIENTS = 8

SCENARIOS: dict[str, dict[str, Any]] = {
    "generator_trip": {"title": "A generator of 15 kW trips", "disturb": {"power_w": -15_000.0, "hold_s": 6.0}},
    "large_generator_trip": {"title": "A generator of 30 kW trips", "disturb": {"power_w": -30_000.0, "hold_s": 8.0}},
    "load_loss": {"title": "A load of 15 kW is lost", "disturb": {"power_w": 15_000.0, "hold_s": 6.0}},
    "meter_silent": {
        "title": "A meter stops answering for 20 s",
        "fault": {"device": "meter", "name": "silent", "value": "1", "for_s": 20.0},
    },
    "meter_frozen": {
        "title": "A meter repeats old values for 30 s",
        "fault": {"device": "meter", "name": "frozen", "value": "1", "for_s": 30.0},
    },
    "battery_refuses": {
        "title": "A battery answers everything with an exception for 20 s",
        "fault": {"device": "battery", "name": "exception", "value": "4", "for_s": 20.0},
    },
    "inverter_slow": {
        "title": "An inverter answers a second late for 30 s",
        "fault": {"device": "inverter", "name": "delay_s", "value": "1", "for_s": 30.0},
    },
}
"""What can be started by its name; faults need a site."""

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _State(_Strict):
    do: Literal["state"]


class _Fault(_Strict):
    do: Literal["fault"]
    site: _Name
    device: Literal["inverter", "battery", "meter"]
    name: _Name
    value: str = Field(max_length=20)
    for_s: float = Field(gt=0, le=3600)


class _Disturb(_Strict):
    do: Literal["disturb"]
    power_w: float = Field(ge=-1e6, le=1e6)
    hold_s: float = Field(gt=0, le=20)


class _Clear(_Strict):
    do: Literal["clear"]


_REQUEST: TypeAdapter[_State | _Fault | _Disturb | _Clear] = TypeAdapter(
    Annotated[_State | _Fault | _Disturb | _Clear, Field(discriminator="do")]
)


class Lab:
    """See the module.

    Args:
        fleet: What it reaches.
        secret: A file with the shared secret.
        later: Calls something after so many real seconds; injected by tests.
    """

    def __init__(
        self, fleet: Fleet, secret: Path, later: Callable[[float, Callable[[], None]], Any] | None = None
    ) -> None:
        try:
            self._secret = secret.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{secret}: cannot be read: {error}") from error
        if len(self._secret) < 16:
            raise ConfigurationError(f"{secret}: the lab's secret needs 16 characters or more")
        self._fleet = fleet
        self._later = later or (lambda seconds, work: asyncio.get_running_loop().call_later(seconds, work))
        self._until: dict[tuple[str, str, str], int] = {}
        self._count = 0
        self._server: asyncio.Server | None = None
        self._clients = 0
        self.port = 0

    async def start(self, port: int) -> None:
        """Listen on the loopback interface."""
        self._server = await asyncio.start_server(self._client, "127.0.0.1", port, limit=_LINE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > _CLIENTS:
                return
            async with asyncio.timeout(10.0):
                line = await reader.readline()
            if not hmac.compare_digest(line.strip(), self._secret.encode()):
                writer.write(b'{"error": "this is not the lab\'s secret"}\n')
                return
            while line := await reader.readline():
                writer.write(json.dumps(self.answer(line)).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            log.debug("a client of the lab went away")
        finally:
            self._clients -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Do what one line asks for, and say how things stand, or what is wrong with it."""
        try:
            wanted = _REQUEST.validate_json(line)
            match wanted:
                case _Fault():
                    self._fault(wanted)
                case _Disturb():
                    self._fleet.ask_disturbance(DisturbanceModel(at=0.0, power_w=wanted.power_w, hold_s=wanted.hold_s))
                case _Clear():
                    for site, device, name in list(self._until):
                        self._end(site, device, name)
                case _State():
                    pass
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return {"error": f"{'.'.join(map(str, first['loc'])) or 'request'}: {first['msg']}"}
        except WattmeshError as error:
            return {"error": str(error)}
        return self.state()

    def _fault(self, wanted: _Fault) -> None:
        server = self._fleet.servers.get((wanted.site, wanted.device))
        if server is None:
            raise ConfigurationError(
                f"the {wanted.device} of {wanted.site} is no simulated Modbus device of this fleet"
            )
        switch(server.faults, wanted.name, wanted.value)
        key = (wanted.site, wanted.device, wanted.name)
        self._count += 1
        mine = self._until[key] = self._count

        def over() -> None:
            if self._until.get(key) == mine:  # a later order of the same fault has its own end
                self._end(*key)

        self._later(wanted.for_s, over)

    def _end(self, site: str, device: str, name: str) -> None:
        self._until.pop((site, device, name), None)
        switch(self._fleet.servers[site, device].faults, name, "0")

    def state(self) -> dict[str, Any]:
        """Devices with their faults, and the grid."""
        return {
            "devices": [
                {
                    "site": site,
                    "device": device,
                    "faults": {name: value for name, value in asdict(server.faults).items() if value},
                    "requests": server.requests,
                }
                for (site, device), server in sorted(self._fleet.servers.items())
            ],
            "frequency_hz": self._fleet.grid.frequency_hz(),
            "nadir_hz": self._fleet.grid.nadir_hz,
            "disturbed": self._fleet.disturbing,
            "scenarios": [
                {
                    "id": name,
                    "title": one["title"],
                    **({"fault": one["fault"]} if "fault" in one else {"disturb": one["disturb"]}),
                }
                for name, one in SCENARIOS.items()
            ],
        }
