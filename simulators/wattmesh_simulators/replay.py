"""A recording served as the device it was made of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.faults import Faults
from wattmesh_simulators.modbus_server import ILLEGAL_FUNCTION
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.registers import ILLEGAL_ADDRESS, ILLEGAL_VALUE, template_of

_MISSING = 0x80340000
"""BadNodeIdUnknown (OPC 10000-6, A.2)."""


def _lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def is_opcua(path: Path) -> bool:
    """Whether a recording is of an OPC UA device; raises :class:`ConfigurationError` where it is none at all."""
    try:
        return any("values" in line for line in _lines_of(path))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is no recording of a device ({error!r})") from error


class ReplayNodes:
    """What an OPC UA server told, poll by poll; the last stays.

    Args:
        path: The recording.
    """

    def __init__(self, path: Path) -> None:
        try:
            header, *lines = _lines_of(path)
            self.template = str(header["template"])
            points = {point["id"]: point for point in template_of(self.template)["points"]}
            self._polls: list[tuple[dict[str, float], dict[str, int]]] = []
            for line in lines:
                if "values" not in line:
                    continue
                values: dict[str, float] = {}
                status: dict[str, int] = {}
                for name, (raw, code) in line["values"].items():
                    point = points[name]
                    factor = float(point.get("scale", 1.0)) * point.get("sign", 1)
                    values[name] = float(raw or 0.0) * factor + float(point.get("offset", 0.0))
                    if code:
                        status[name] = int(code)
                self._polls.append((values, status))
            if not self._polls:
                raise ValueError("nothing was told")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ConfigurationError(f"{path}: is no recording of an OPC UA device ({error!r})") from error
        self._at = 0
        self.server = OpcUaServer(self.template, lambda: self._polls[self._at][0], lambda name, value: None)
        self._apply()

    def _apply(self) -> None:
        status = self._polls[self._at][1]
        self.server.faults.missing = {name for name, code in status.items() if code == _MISSING}
        self.server.faults.status = {name: code for name, code in status.items() if code != _MISSING}

    async def advance(self) -> bool:
        """Go on to the next poll; false at the end, where the last one stays."""
        if self._at + 1 >= len(self._polls):
            return False
        self._at += 1
        self._apply()
        await self.server.refresh()
        return True


class ReplayUnit:
    """Answers as the recording did.

    A request that was recorded gets its answers in their order, and the last one again and again. A read that was not is put
    together from registers that others read (a planner may cut its blocks in another way); what was never read is refused.

    Args:
        path: The recording.
    """

    def __init__(self, path: Path) -> None:
        self.faults = Faults()
        self.requests = 0
        self._answers: dict[bytes, list[bytes | None]] = {}
        self._registers: dict[tuple[int, int], bytes] = {}
        try:
            header, *exchanges = _lines_of(path)
            self.unit = int(header["unit"])
            self.template = str(header["template"])
            for exchange in exchanges:
                if "request" in exchange:
                    answer = exchange["answer"]
                    self._learn(bytes.fromhex(exchange["request"]), None if answer is None else bytes.fromhex(answer))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ConfigurationError(f"{path}: is no recording of a device ({error!r})") from error
        self._given: dict[bytes, int] = dict.fromkeys(self._answers, 0)

    def _learn(self, request: bytes, answer: bytes | None) -> None:
        self._answers.setdefault(request, []).append(answer)
        if request[0] in {3, 4} and answer is not None and answer[0] == request[0]:
            address = int.from_bytes(request[1:3], "big")
            for index in range(answer[1] // 2):
                at = 2 + index * 2
                self._registers.setdefault((request[0], address + index), answer[at : at + 2])

    def answer(self, pdu: bytes) -> bytes | None:
        """The answer to a request; none where the device did not give one."""
        self.requests += 1
        recorded = self._answers.get(pdu)
        if recorded is not None:
            index = self._given[pdu]
            self._given[pdu] = min(index + 1, len(recorded) - 1)
            return recorded[index]
        if pdu[0] not in {3, 4}:
            return bytes([pdu[0] | 0x80, ILLEGAL_ADDRESS if pdu[0] in {6, 16} else ILLEGAL_FUNCTION])
        if len(pdu) != 5:
            return bytes([pdu[0] | 0x80, ILLEGAL_VALUE])
        address, count = struct.unpack(">HH", pdu[1:])
        if not 1 <= count <= 125:
            return bytes([pdu[0] | 0x80, ILLEGAL_VALUE])
        parts = [self._registers.get((pdu[0], register)) for register in range(address, address + count)]
        if None in parts:
            return bytes([pdu[0] | 0x80, ILLEGAL_ADDRESS])
        content = b"".join(part for part in parts if part is not None)
        return bytes([pdu[0], len(content)]) + content
