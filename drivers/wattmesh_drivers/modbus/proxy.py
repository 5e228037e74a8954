"""A proxy: others read a device through us, where it serves one connection alone, or where a line has one queue for all.

Reads pass, one at a time and after everybody of the site; writes are refused, as nothing but the arbiter and the reflex writes
to a device. Every answer is checked before it is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.modbus.line import Line

log = logging.getLogger(__name__)

_MBAP = struct.Struct(">HHHB")
_CLIENTS_AT_MOST = 8
_ILLEGAL_FUNCTION, _ILLEGAL_VALUE, _NO_PATH, _NOBODY = 1, 3, 10, 11
_IDLE_S = 60.0


class ModbusProxy:
    """Modbus TCP in, a line out.

    Only the units that we ask ourselves can be asked through it, and one request of all its clients is on its way at once.

    Args:
        line: Of the device; it has to be open by whoever owns it.
        idle_s: A client that says nothing for so long makes room for another.
    """

    def __init__(self, line: Line, *, idle_s: float = _IDLE_S) -> None:
        self._line = line
        self._idle_s = idle_s
        self._one = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self.counters: Counter[str] = Counter()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; raises :class:`ConfigurationError` where the port cannot be used."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port)
        except OSError as error:
            raise ConfigurationError(
                f"the proxy for {self._line.endpoint.name} cannot listen at {host}:{port}: {error.strerror or error}"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
            for client in list(self._clients):
                client.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _CLIENTS_AT_MOST:
            self.counters["turned_away"] += 1
            writer.transport.abort()
            return
        self._clients.add(writer)
        try:
            while True:
                async with asyncio.timeout(self._idle_s):
                    header = await reader.readexactly(_MBAP.size)
                transaction, protocol, length, unit = _MBAP.unpack(header)
                if protocol != 0 or not 2 <= length <= 254:
                    return
                async with asyncio.timeout(self._idle_s):
                    pdu = await reader.readexactly(length - 1)
                answer = await self._answer(unit, pdu)
                writer.write(_MBAP.pack(transaction, 0, len(answer) + 1, unit) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):  # a time-out is one of them
            return
        finally:
            self._clients.discard(writer)
            writer.transport.abort()

    async def _answer(self, unit: int, pdu: bytes) -> bytes:
        function = pdu[0]
        self.counters["requests"] += 1
        if function not in {3, 4}:
            self.counters["refused"] += 1
            return bytes([function | 0x80, _ILLEGAL_FUNCTION])
        count = int.from_bytes(pdu[3:5], "big")
        if len(pdu) != 5 or not 1 <= count <= 125:
            return bytes([function | 0x80, _ILLEGAL_VALUE])
        if unit not in self._line.units:
            return bytes([function | 0x80, _NO_PATH])
        try:
            async with self._one:
                answer = (await self._line.ask(unit, (pdu,), self._line.timeout_s, probe=True))[0]
        except UnavailableError:
            answer = b""
        whole = len(answer) == 2 + 2 * count and answer[0] == function and answer[1] == 2 * count
        refusal = len(answer) == 2 and answer[0] == function | 0x80
        if not (whole or refusal):
            self.counters["unanswered"] += 1
            return bytes([function | 0x80, _NOBODY])
        return answer
