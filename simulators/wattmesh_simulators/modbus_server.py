"""Modbus servers for simulated devices (TCP, RTU over TCP, RTU over a serial port or a pty), with faults on demand.

Written for the simulators alone (MODBUS Application Protocol 1.1b3; Messaging on TCP/IP Implementation Guide 1.0b; MODBUS over
Serial Line 1.02), so that the drivers' library is not tested against itself; and fast, because one process serves all devices
of a fleet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.faults import Faults
from wattmesh_simulators.registers import ILLEGAL_ADDRESS, ILLEGAL_VALUE, RegisterMap

_MAX_FRAME = 260
ILLEGAL_FUNCTION, BUSY = 1, 6
_READ_AT_MOST = 125
_SPEEDS = {baud: getattr(termios, f"B{baud}") for baud in (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200)}


class ModbusUnit:
    """One device behind a server: what it answers to a request without header and checksum.

    Args:
        registers: Its registers.
        faults: What it does wrong.
        max_registers: Longest read that it answers.
        monotonic: Real time, for values that are renewed slowly.
    """

    def __init__(
        self,
        registers: RegisterMap,
        faults: Faults | None = None,
        *,
        max_registers: int = _READ_AT_MOST,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registers = registers
        self.faults = faults or Faults()
        self.requests = 0
        self.writes = 0
        self.writes_refused = 0
        self._max_registers = max_registers
        self._monotonic = monotonic
        self._renewed_at = -1e9

    def answer(self, pdu: bytes) -> bytes:
        """The answer to one request."""
        self.requests += 1
        function = pdu[0]
        if self.faults.exception:
            return bytes([function | 0x80, self.faults.exception])
        if function in {3, 4}:
            return self._read(function, pdu)
        if function == 6 and len(pdu) == 5:
            code = self.registers.write(int.from_bytes(pdu[1:3], "big"), pdu[3:5])
            return self._written(function, code, pdu)
        if function == 16 and len(pdu) >= 8:
            address, count, size = struct.unpack(">HHB", pdu[1:6])
            if size != count * 2 or len(pdu) != 6 + size or not 1 <= count <= 123:
                return self._refused(function, ILLEGAL_VALUE)
            code = self.registers.write(address, pdu[6:])
            return self._written(function, code, pdu[:5])
        return self._refused(function, ILLEGAL_VALUE if function in {6, 16} else ILLEGAL_FUNCTION)

    def _refused(self, function: int, code: int) -> bytes:
        if function in {6, 16}:
            self.writes_refused += 1
        return bytes([function | 0x80, code])

    def _written(self, function: int, code: int, confirmation: bytes) -> bytes:
        if code:
            return self._refused(function, code)
        self.writes += 1
        if self.faults.short:
            return confirmation[:-2]
        return bytes([22 - function]) + confirmation[1:] if self.faults.wrong_function else confirmation

    def _read(self, function: int, pdu: bytes) -> bytes:
        if len(pdu) != 5:
            return self._refused(function, ILLEGAL_VALUE)
        address, count = struct.unpack(">HH", pdu[1:])
        if not 1 <= count <= self._max_registers:
            return self._refused(function, ILLEGAL_VALUE)
        content = self.registers.read(function, address, count, fresh=self._fresh())
        if content is None:
            return self._refused(function, ILLEGAL_ADDRESS)
        if self.faults.short:
            content = content[:-2]
        if self.faults.wrong_function:
            function = 7 - function
        return bytes([function, len(content)]) + content

    def _fresh(self) -> bool:
        """Whether values may move now."""
        if self.faults.frozen:
            return False
        if self.faults.refresh_s:
            now = self._monotonic()
            if now - self._renewed_at < self.faults.refresh_s:
                return False
            self._renewed_at = now
        return True


class Answering(Protocol):
    """A device as a server sees it."""

    faults: Faults
    requests: int

    def answer(self, pdu: bytes) -> bytes | None:
        """The answer to one request, without header and checksum; none where none comes."""
        ...


class ModbusServer:
    """One endpoint of the loopback interface, with one device or several.

    Args:
        registers: Of its first device, or that device itself.
        unit: Of its first device.
        faults: Of its first device.
        framing: ``rtu`` is what a plain serial converter passes on.
        max_registers: Longest read that its first device answers.
    """

    def __init__(
        self,
        registers: RegisterMap | Answering,
        *,
        unit: int = 1,
        faults: Faults | None = None,
        framing: Literal["tcp", "rtu"] = "tcp",
        max_registers: int = _READ_AT_MOST,
    ) -> None:
        self.unit = unit
        self._device: Answering = (
            ModbusUnit(registers, faults, max_registers=max_registers)
            if isinstance(registers, RegisterMap)
            else registers
        )
        self.units = {unit: self._device}
        self.port = 0
        self.connect_delay_s = 0.0
        """Requests that come sooner after the connection are not answered."""
        self._framing = framing
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    @property
    def device(self) -> ModbusUnit:
        """The first device, where it has registers of its own."""
        assert isinstance(self._device, ModbusUnit)
        return self._device

    @property
    def registers(self) -> RegisterMap:
        """Of the first device."""
        return self.device.registers

    @property
    def faults(self) -> Faults:
        """Of the first device."""
        return self._device.faults

    @property
    def requests(self) -> int:
        """Answered by the first device."""
        return self._device.requests

    @property
    def writes_refused(self) -> int:
        """By the first device."""
        return self.device.writes_refused

    async def start(self, port: int) -> None:
        """Listen; raises :class:`ConfigurationError` where the port is taken."""
        loop = asyncio.get_running_loop()
        kind = _TcpConnection if self._framing == "tcp" else _RtuConnection
        try:
            self._server = await loop.create_server(lambda: kind(self), "127.0.0.1", port)
        except OSError as error:
            raise ConfigurationError(
                f"port {port} cannot be used for a simulated device ({error.strerror}); end what uses it or choose another"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.end()
            await self._server.wait_closed()
            self._server = None

    async def go_down(self) -> None:
        """Lose power: nothing listens, and settings are forgotten."""
        await self.stop()
        for unit in self.units.values():
            if isinstance(unit, ModbusUnit):
                unit.registers.restart()

    async def come_up(self) -> None:
        """Listen again where it did."""
        await self.start(self.port)


class _Connection(asyncio.Protocol):
    """What both framings share."""

    def __init__(self, server: ModbusServer) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._made_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._made_at = asyncio.get_running_loop().time()
        if self._server.faults.single_client and self._server.connections:
            transport.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._server.connections.discard(self)

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, unit: int, pdu: bytes, transaction: int = 0) -> None:
        device = self._server.units.get(unit)
        early = asyncio.get_running_loop().time() - self._made_at < self._server.connect_delay_s
        if device is None or device.faults.silent or early:
            return  # like a gateway with nobody behind it
        answer = device.answer(pdu)
        if answer is None:
            return
        faults = device.faults
        frame = self._frame(unit + 1 & 0xFF if faults.wrong_unit else unit, answer, transaction, faults)
        if faults.drop:
            self._send(frame[: len(frame) - len(answer) // 2 - 1])
            self.end()
        elif faults.delay_s:
            asyncio.get_running_loop().call_later(faults.delay_s, self._send, frame)
        else:
            self._send(frame)

    def _frame(self, unit: int, answer: bytes, transaction: int, faults: Faults) -> bytes:
        raise NotImplementedError

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)


class _TcpConnection(_Connection):
    def data_received(self, content: bytes) -> None:
        self._buffer += content
        while len(self._buffer) >= 8:
            transaction, protocol, length, unit = struct.unpack(">HHHB", self._buffer[:7])
            if protocol != 0 or not 2 <= length <= _MAX_FRAME - 6:
                self._buffer = b""
                self.end()
                return
            if len(self._buffer) < 6 + length:
                return
            pdu, self._buffer = self._buffer[7 : 6 + length], self._buffer[6 + length :]
            self._take(unit, pdu, transaction)

    def _frame(self, unit: int, answer: bytes, transaction: int, faults: Faults) -> bytes:
        if faults.wrong_transaction:
            transaction = transaction + 1 & 0xFFFF
        return struct.pack(">HHHB", transaction, int(faults.corrupt), len(answer) + 1, unit) + answer


def request_length(buffer: bytes) -> int | None:
    """Length of the RTU request that begins a buffer, checksum included; none while that cannot be told."""
    if len(buffer) < 8:
        return None
    return 9 + buffer[6] if buffer[1] in {15, 16} else 8


def rtu_frame(unit: int, pdu: bytes, *, corrupt: bool = False) -> bytes:
    """A frame with its checksum."""
    body = bytes([unit]) + pdu
    return body + (checksum(body) ^ corrupt).to_bytes(2, "little")


class _RtuConnection(_Connection):
    def data_received(self, content: bytes) -> None:
        self._buffer += content
        while (length := request_length(self._buffer)) is not None and len(self._buffer) >= length:
            frame, self._buffer = self._buffer[:length], self._buffer[length:]
            if checksum(frame[:-2]) != int.from_bytes(frame[-2:], "little"):
                self._buffer = b""  # as after a silence: what follows begins a frame again
                return
            self._take(frame[0], frame[1:-2])

    def _frame(self, unit: int, answer: bytes, transaction: int, faults: Faults) -> bytes:
        del transaction
        return rtu_frame(unit, answer, corrupt=faults.corrupt)


class _Port(asyncio.Transport):
    """A serial port or the far end of a pty, as a transport."""

    def __init__(self, descriptor: int, connection: _RtuConnection) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._readable)
        connection.connection_made(self)

    def _readable(self) -> None:
        with contextlib.suppress(OSError):  # the other end of a pty is closed: it may come back
            self._connection.data_received(os.read(self._descriptor, 4096))
            return
        self._loop.remove_reader(self._descriptor)
        self._loop.call_later(0.05, self._resume)

    def _resume(self) -> None:
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._readable)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, as far as somebody listens."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, data)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._descriptor < 0

    def abort(self) -> None:
        """A line has no connection to end: the rest of a frame just does not come."""

    def close(self) -> None:
        """Let go of the port."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


class SerialServer(ModbusServer):
    """Devices on a serial line."""

    async def start_serial(self, path: str, baud: int = 9600) -> None:
        """Serve a port; raises :class:`ConfigurationError` where it cannot be used."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigurationError(f"serial port {path} cannot be used: {error.strerror}") from error
        speed = _SPEEDS.get(baud)
        if speed is None:
            os.close(descriptor)
            raise ConfigurationError(f"{baud} baud: there are {', '.join(map(str, _SPEEDS))}")
        try:
            tty.setraw(descriptor)
            settings = termios.tcgetattr(descriptor)
            settings[4] = settings[5] = speed
            termios.tcsetattr(descriptor, termios.TCSANOW, settings)
        except termios.error as error:
            os.close(descriptor)
            raise ConfigurationError(f"{path} is no serial port") from error
        self._port = _Port(descriptor, _RtuConnection(self))

    async def start_pty(self, link: Path) -> None:
        """Serve a pseudo-terminal, whose other end is at ``link``; a link that is there already is replaced."""
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        self._theirs = theirs  # kept open: the terminal stays when a client goes
        self._link = link
        with contextlib.suppress(FileNotFoundError):
            if link.is_symlink():
                link.unlink()
        try:
            link.symlink_to(os.ttyname(theirs))
        except OSError as error:
            os.close(ours)
            os.close(theirs)
            raise ConfigurationError(f"{link} cannot be made: {error.strerror}") from error
        self._port = _Port(ours, _RtuConnection(self))

    _port: _Port | None = None
    _theirs: int | None = None
    _link: Path | None = None

    async def stop(self) -> None:
        """Let go of the line."""
        if self._port is not None:
            self._port.close()
            self._port = None
        if self._theirs is not None:
            os.close(self._theirs)
            self._theirs = None
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link = None


def _checksums() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


_TABLE = _checksums()


def checksum(content: bytes) -> int:
    """CRC-16 of a frame (MODBUS over Serial Line 1.02, 6.2.2), sent low byte first."""
    crc = 0xFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc
