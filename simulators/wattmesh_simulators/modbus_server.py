"""A Modbus TCP server for simulated devices: several requests in one segment, split segments, faults on demand.

Written for the simulators alone (MODBUS Messaging on TCP/IP Implementation Guide 1.0b), so that the drivers' library is not
tested against itself; and fast, because one process serves all devices of a fleet.
"""

from __future__ import annotations

import asyncio
import struct

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.faults import Faults
from wattmesh_simulators.registers import ILLEGAL_ADDRESS, ILLEGAL_VALUE, RegisterMap

_MAX_FRAME = 260
ILLEGAL_FUNCTION = 1


class ModbusServer:
    """One device at one port of the loopback interface."""

    def __init__(self, registers: RegisterMap, *, unit: int = 1, faults: Faults | None = None) -> None:
        self.registers = registers
        self.unit = unit
        self.faults = faults or Faults()
        self.requests = 0
        self.writes_refused = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def start(self, port: int) -> None:
        """Listen; raises :class:`ConfigurationError` where the port is taken."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port)
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

    def answer(self, pdu: bytes) -> bytes:
        """The answer to one request without its header."""
        self.requests += 1
        function = pdu[0]
        if self.faults.exception:
            return bytes([function | 0x80, self.faults.exception])
        if function in {3, 4}:
            return self._read(function, pdu)
        if function == 6 and len(pdu) == 5:
            code = self.registers.write(int.from_bytes(pdu[1:3], "big"), pdu[3:5])
            return self._refused(function, code) if code else pdu
        if function == 16 and len(pdu) >= 8:
            address, count, size = struct.unpack(">HHB", pdu[1:6])
            if size != count * 2 or len(pdu) != 6 + size or not 1 <= count <= 123:
                return self._refused(function, ILLEGAL_VALUE)
            code = self.registers.write(address, pdu[6:])
            return self._refused(function, code) if code else pdu[:5]
        return self._refused(function, ILLEGAL_VALUE if function in {6, 16} else ILLEGAL_FUNCTION)

    def _refused(self, function: int, code: int) -> bytes:
        if function in {6, 16}:
            self.writes_refused += 1
        return bytes([function | 0x80, code])

    def _read(self, function: int, pdu: bytes) -> bytes:
        if len(pdu) != 5:
            return self._refused(function, ILLEGAL_VALUE)
        address, count = struct.unpack(">HH", pdu[1:])
        if not 1 <= count <= 125:
            return self._refused(function, ILLEGAL_VALUE)
        content = self.registers.read(function, address, count, fresh=not self.faults.frozen)
        if content is None:
            return self._refused(function, ILLEGAL_ADDRESS)
        if self.faults.short:
            content = content[:-2]
        if self.faults.wrong_function:
            function = 7 - function
        return bytes([function, len(content)]) + content


class _Connection(asyncio.Protocol):
    def __init__(self, server: ModbusServer) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._server.connections.discard(self)

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, content: bytes) -> None:
        self._buffer += content
        while len(self._buffer) >= 8:
            transaction, protocol, length, unit = struct.unpack(">HHHB", self._buffer[:7])
            if protocol != 0 or not 2 <= length <= _MAX_FRAME - 6:
                self.end()
                return
            if len(self._buffer) < 6 + length:
                return
            pdu, self._buffer = self._buffer[7 : 6 + length], self._buffer[6 + length :]
            self._take(transaction, unit, pdu)

    def _take(self, transaction: int, unit: int, pdu: bytes) -> None:
        faults = self._server.faults
        if unit != self._server.unit or faults.silent:
            return  # like a gateway with nobody behind it
        answer = self._server.answer(pdu)
        frame = struct.pack(
            ">HHHB",
            transaction + 1 & 0xFFFF if faults.wrong_transaction else transaction,
            0,
            len(answer) + 1,
            unit + 1 & 0xFF if faults.wrong_unit else unit,
        )
        if faults.drop:
            self._send(frame + answer[: len(answer) // 2])
            self.end()
        elif faults.delay_s:
            asyncio.get_running_loop().call_later(faults.delay_s, self._send, frame + answer)
        else:
            self._send(frame + answer)

    def _send(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)
