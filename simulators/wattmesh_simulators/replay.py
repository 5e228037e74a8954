"""A recording served as the device it was made of."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.faults import Faults
from wattmesh_simulators.modbus_server import ILLEGAL_FUNCTION
from wattmesh_simulators.registers import ILLEGAL_ADDRESS, ILLEGAL_VALUE


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
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
            header, *exchanges = lines
            self.unit = int(header["unit"])
            self.template = str(header["template"])
            for exchange in exchanges:
                if "request" in exchange:
                    answer = exchange["answer"]
                    self._learn(bytes.fromhex(exchange["request"]), None if answer is None else bytes.fromhex(answer))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
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
