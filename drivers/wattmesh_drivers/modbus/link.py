"""Registers of one unit on a line, with every answer checked against what was asked.

The line knows that an answer belongs to a request; that the function, the byte count and what a write confirms are right is
checked here. Nothing is repeated behind anybody's back.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from sys import byteorder

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.driver import BusyError
from wattmesh_drivers.modbus.line import Endpoint, Line

_ILLEGAL = {1: "function not supported", 2: "no such register", 3: "value refused"}
_BUSY = {5: "acknowledged and not done yet", 6: "busy"}
_FAILING = {
    4: "device failure",
    8: "memory parity error",
    10: "no path behind the gateway",
    11: "nobody behind the gateway",
}
_READ = struct.Struct(">BHH")
_SWAP = byteorder == "little"

_PROBE_AT_LEAST_S, _PROBE_TIMES, _IN_VAIN_AT_MOST = 0.05, 3.0, 16

Request = tuple[int, int, int]
"""Function, first register, number of registers."""


class RefusedError(ConfigurationError):
    """The device answered with an exception that asking again does not change.

    Attributes:
        code: The exception code of the Modbus application protocol, section 7.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ModbusLink:
    """Registers of one unit.

    Args:
        line: Where it is; several links may share one.
        unit: Unit identifier.
        timeout_s: Longest wait for one answer, in real time; on RTU also how long the line is listened to after one
            that did not come.
    """

    def __init__(self, line: Line, unit: int, *, timeout_s: float) -> None:
        self.line, self.unit = line, unit
        line.units.add(unit)
        line.timeout_s = max(line.timeout_s, timeout_s)
        self.timeout_s = timeout_s
        self._open = False
        self._slowest_s = 0.0
        self._in_vain = 0
        self.probing = False
        """Others on the line go first: it is not known whether this unit is there."""

    @classmethod
    def tcp(cls, host: str, port: int, unit: int, *, timeout_s: float, pipeline: int = 1) -> ModbusLink:
        """A link with a connection of its own."""
        return cls(Line(Endpoint(host=host, port=port), pipeline=pipeline), unit, timeout_s=timeout_s)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.line.endpoint.name} unit {self.unit}"

    @property
    def shared(self) -> bool:
        """Whether others wait on the line while this unit does not answer."""
        return self.line.shared

    @property
    def plain_tcp(self) -> tuple[str, int] | None:
        """Host and port, where it is plain Modbus TCP, which the reflex speaks as well."""
        endpoint = self.line.endpoint
        plain = endpoint.serial is None and not endpoint.rtu and endpoint.tls is None
        return (endpoint.host, endpoint.port) if plain else None

    async def open(self) -> None:
        """Connect; raises :class:`UnavailableError` or, for a port or certificate, :class:`ConfigurationError`."""
        self.close()
        await self.line.open(self.timeout_s)
        self._open = True

    def close(self) -> None:
        """Leave the line; the last one ends its connection, and with it every answer that may still come."""
        if self._open:
            self._open = False
            self.line.release()

    async def read(self, function: int, address: int, count: int) -> array[int]:
        """``count`` registers as an array of type ``H``.

        Raises:
            UnavailableError: No answer, or one that is not of this request.
            BusyError: The device asks for time.
            RefusedError: The device will not.
        """
        pdu = _READ.pack(function, address, count)
        if self.probing:
            answer = (await self._ask((pdu,)))[0]
        else:
            line = self.line
            answer = (await line.ask(self.unit, (pdu,), self.timeout_s))[0]
            self._slowest_s = max(self._slowest_s, line.took_s)
        return self._registers(answer, function, count)

    async def read_many(self, requests: Sequence[Request]) -> list[array[int] | RefusedError]:
        """Several reads in one turn of the line; one that is refused does not keep the others from their answers.

        Raises:
            UnavailableError: One was not answered; BusyError: One was put off. Nothing that was read counts then.
        """
        pdus = [_READ.pack(*request) for request in requests]
        answers = await self._ask(pdus)
        found: list[array[int] | RefusedError] = []
        for answer, (function, _, count) in zip(answers, requests, strict=True):
            try:
                found.append(self._registers(answer, function, count))
            except RefusedError as error:
                found.append(error)
        return found

    async def write(self, function: int, address: int, registers: Sequence[int]) -> None:
        """Write registers with function 6 (one) or 16; raises as :meth:`read` does."""
        content = b"".join(register.to_bytes(2, "big") for register in registers)
        if function == 6:
            pdu = struct.pack(">BH", 6, address) + content
            confirmed = pdu
        else:
            confirmed = struct.pack(">BHH", 16, address, len(registers))
            pdu = confirmed + bytes([len(content)]) + content
        answer = (await self.line.ask(self.unit, (pdu,), self.timeout_s))[0]
        self._refusal(answer, function)
        if answer != confirmed:
            raise UnavailableError(f"unit {self.unit} confirmed something other than the write of {address}")

    async def _ask(self, pdus: Sequence[bytes]) -> list[bytes]:
        """Ask for what can be asked again. Whoever is known to be slow is waited for, whoever is absent not for long."""
        line, timeout_s = self.line, self.timeout_s
        if self.probing and line.shared and line.slowest_s:  # longer each time in vain: it may be slower than it was
            short = _PROBE_AT_LEAST_S + _PROBE_TIMES * (self._slowest_s or line.slowest_s)
            timeout_s = min(timeout_s, short * 2**self._in_vain)
        try:
            answers = await line.ask(self.unit, pdus, timeout_s, probe=self.probing)
        except UnavailableError:
            self._in_vain = min(self._in_vain + 1, _IN_VAIN_AT_MOST) if self.probing else 0
            raise
        self._in_vain = 0
        self._slowest_s = max(self._slowest_s, line.took_s / len(pdus))
        return answers

    def _registers(self, answer: bytes, function: int, count: int) -> array[int]:
        if answer[0] != function or len(answer) != 2 + 2 * count or answer[1] != 2 * count:
            self._refusal(answer, function)
            raise UnavailableError(f"unit {self.unit} answered {len(answer) - 2} bytes instead of {2 * count}")
        registers = array("H", answer[2:])
        if _SWAP:
            registers.byteswap()
        return registers

    def _refusal(self, answer: bytes, function: int) -> None:
        """Raise what an exception answer means, or that the answer is another function's."""
        if answer[0] == function:
            return
        if answer[0] != function | 0x80 or len(answer) != 2:
            raise UnavailableError(f"unit {self.unit} gave an answer to another request")
        code = answer[1]
        if code in _ILLEGAL:
            raise RefusedError(code, f"unit {self.unit} refuses: {_ILLEGAL[code]} (exception {code})")
        if code in _BUSY:
            raise BusyError(f"unit {self.unit} is {_BUSY[code]} (exception {code})")
        raise UnavailableError(
            f"unit {self.unit} is failing: {_FAILING.get(code, 'unknown exception')} (exception {code})"
        )
