"""Lines: one TCP connection, TLS connection or serial port, with one queue for everybody who asks on it.

What comes back counts only where it is certainly the answer to what was asked. On TCP that is the transaction identifier, in
the order of the requests; an answer that comes after its time-out is known by its identifier and dropped. RTU has no
identifiers: the unit, the function and the checksum must fit, and after any doubt the line is listened to until the latest
possible answer has passed. Nothing is ever sent twice.

Sources: MODBUS Messaging on TCP/IP Implementation Guide 1.0b; MODBUS over Serial Line 1.02, 2.5.1; MODBUS/TCP Security
Protocol Specification v21.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import ssl
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.decode import crc16

log = logging.getLogger(__name__)

_MBAP = struct.Struct(">HHHB")
_MAX_PDU = 253
_PROBE_PAUSE = 9.0
"""After a probe that was in vain no other one for so many times as long: a tenth of a line's time at most."""
_SCRATCH = memoryview(bytearray(4096))
"""Where sockets put what they read, taken over before anybody else reads; one event loop has all lines of a process."""
_ABANDONED_AT_MOST = 64
_FEWEST_REQUESTS = 100_000.0
_CHARACTER_BITS = 11
"""Of RTU: start, 8 data, parity or a second stop, stop."""
_BURSTS_S = 0.05
"""How far apart a converter may give the parts of one frame."""
_DRAINS_AT_MOST = 100
_SILENCE_AT_LEAST_S = 0.00175
"""Between frames above 19200 baud (MODBUS over Serial Line 1.02, 2.5.1.1)."""

Tap = Callable[[str, int, bytes], None]
"""Called with ``request``, ``answer`` or ``silence``, the unit and the PDU; for recordings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialPort:
    """Settings of a serial port."""

    path: str
    baud: int = 9600
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1

    @property
    def silence_s(self) -> float:
        """3.5 characters: what tells one frame from the next."""
        return max(_SILENCE_AT_LEAST_S, 3.5 * _CHARACTER_BITS / self.baud)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Modbus Security. Paths; what is in them is never told."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """A context that trusts this authority alone.

        Raises:
            ConfigurationError: A file is missing or is not what it should be.
        """
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"tls.ca: {self.ca} is no certificate authority's file ({error})") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise ConfigurationError(
                    f"tls.certificate: {self.certificate} and its key cannot be used ({error})"
                ) from error
        return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and everything else would wait."""
    raise ValueError("the key has a password; give one without, readable only for us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a line goes: ``host`` and ``port``, or ``serial``."""

    host: str = ""
    port: int = 502
    serial: SerialPort | None = None
    rtu: bool = False
    """RTU frames; always on a serial port, and on TCP behind a plain serial converter."""
    tls: Tls | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.serial.path if self.serial is not None else f"{self.host}:{self.port}"

    def request_cost(self, latency_s: float, baud: int | None = None) -> float:
        """What one more request costs, in registers, for the poll planner.

        On a serial line: 8 characters of the request, 5 of the answer's frame and twice the silence between frames,
        and the device's latency, against 2 characters a register. Over TCP a register costs nothing that could be
        measured (facts: 70 µs of CPU a request, and a round trip): the fewest requests, then the fewest registers.

        Args:
            latency_s: Of the device, to the first character of its answer.
            baud: Of the serial line behind a TCP gateway, where it is known.
        """
        baud = self.serial.baud if self.serial is not None else baud
        if baud is None:
            return _FEWEST_REQUESTS
        character_s = _CHARACTER_BITS / baud
        overhead_s = 13 * character_s + 2 * max(_SILENCE_AT_LEAST_S, 3.5 * character_s)
        return (overhead_s + latency_s) / (2 * character_s)


@dataclass(slots=True)
class _Batch:
    """Requests of one unit that are answered together."""

    unit: int
    pdus: Sequence[bytes]
    answers: list[bytes]
    done: asyncio.Future[None]
    timeout_s: float
    deadline: float
    sent: int = 0


class Line(asyncio.BufferedProtocol):
    """One queue for one endpoint.

    Args:
        endpoint: Where it goes.
        gap_s: Pause the other end needs between two requests.
        connect_delay_s: Pause it needs after the connection is made.
        pipeline: Requests that may be under way at once; 1 for everything but a TCP server that is known to bear more.
    """

    def __init__(
        self, endpoint: Endpoint, *, gap_s: float = 0.0, connect_delay_s: float = 0.0, pipeline: int = 1
    ) -> None:
        self.endpoint = endpoint
        self.counters: Counter[str] = Counter()
        self.requests = 0
        self.tap: Tap | None = None
        self.took_s = 0.0
        """From the last request to its last answer."""
        self.timeout_s = 0.0
        """The longest that any unit of the line may take for an answer."""
        self.units: set[int] = set()
        """Units that somebody of ours asks for."""
        self.slowest_s = 0.0
        """The longest that a unit took which was heard."""
        self._probe_at = -math.inf
        self.shared = False
        """Whether somebody else waits while one is asked."""
        self._rtu = endpoint.rtu or endpoint.serial is not None
        self._gap_s = max(gap_s, endpoint.serial.silence_s if endpoint.serial is not None else 0.0)
        self._connect_delay_s = connect_delay_s
        self._pipeline = 1 if self._rtu or self._gap_s else pipeline
        self._transport: asyncio.WriteTransport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._users = 0
        self._hoping = 0
        """Who wait for the connection."""
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._probing: deque[asyncio.Future[None]] = deque()
        self._batch: _Batch | None = None
        self._buffer = b""
        self._transaction = 0
        self._oldest = 0
        """Identifier of the answer that has to come next."""
        self._abandoned: deque[int] = deque(maxlen=_ABANDONED_AT_MOST)
        self._free_at = 0.0
        self._drain_until = 0.0
        silence_s = endpoint.serial.silence_s if endpoint.serial is not None else _SILENCE_AT_LEAST_S
        self._quiet_s = silence_s + _BURSTS_S
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def widen(self, gap_s: float, connect_delay_s: float, pipeline: int) -> None:
        """Another device shares the line: its needs count as well."""
        self.shared = True
        self._gap_s = max(self._gap_s, gap_s)
        self._connect_delay_s = max(self._connect_delay_s, connect_delay_s)
        self._pipeline = 1 if self._gap_s else min(self._pipeline, pipeline)

    # -- connection

    async def open(self, timeout_s: float) -> None:
        """Take part in the line, connecting where nobody has yet.

        Raises:
            UnavailableError: Nothing answers there.
            ConfigurationError: The port or a certificate cannot be used.
        """
        if self._transport is None or self._connecting is not None:  # also in the pause after it was made
            if self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(
                    self._connect(timeout_s), name=f"line {self.endpoint.name}"
                )
                self._connecting.add_done_callback(self._connected)
            self._hoping += 1
            try:
                await asyncio.shield(self._connecting)
            finally:
                self._hoping -= 1
                if not self._hoping and not self._users and self._connecting is not None:
                    self._connecting.cancel()  # nobody wants it any more
        self._users += 1

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if task.cancelled() or task.exception() is not None:  # those who waited have it
            self.drop()

    async def _connect(self, timeout_s: float) -> None:
        loop = self._loop = asyncio.get_running_loop()
        endpoint = self.endpoint
        try:
            if endpoint.serial is not None:
                await self._connect_serial(endpoint.serial)
            else:
                context = endpoint.tls.context() if endpoint.tls is not None else None
                server_name = (endpoint.tls.server_name or endpoint.host) if endpoint.tls is not None else None
                async with asyncio.timeout(timeout_s):
                    await loop.create_connection(
                        lambda: self, endpoint.host, endpoint.port, ssl=context, server_hostname=server_name
                    )
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(f"{endpoint.name}: its certificate is refused: {error.verify_message}") from error
        except TimeoutError as error:
            raise UnavailableError(f"nothing answers at {endpoint.name} within {timeout_s:g} s") from error
        except (OSError, ssl.SSLError) as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or type(error).__name__
            raise UnavailableError(f"nothing answers at {endpoint.name} ({why})") from error
        if self._connect_delay_s:
            await asyncio.sleep(self._connect_delay_s)

    async def _connect_serial(self, port: SerialPort) -> None:
        try:
            from pymodbus.transport.serialtransport import create_serial_connection
            from serial import SerialException
        except ImportError as error:
            raise ConfigurationError(
                f"{port.path}: a serial port needs: pip install 'wattmesh[edge]' (pymodbus, pyserial)"
            ) from error
        try:
            await create_serial_connection(
                asyncio.get_running_loop(), lambda: self, port.path, baudrate=port.baud, bytesize=8, parity=port.parity,
                stopbits=port.stop_bits, timeout=0,
            )  # fmt: skip
        except (SerialException, OSError, ValueError) as error:
            raise ConfigurationError(f"serial port {port.path} cannot be used: {_cause(error)}") from error
        for _ in range(10):  # the transport is given in the loop's next round
            if self._transport is not None:
                return
            await asyncio.sleep(0)

    def release(self) -> None:
        """Take no part any more; the last one ends the connection, and with it every answer that may still come."""
        self._users = max(0, self._users - 1)
        if self._users == 0:
            self.drop()

    def drop(self, why: str = "the connection was ended") -> None:
        """End the connection; who waits for an answer is told."""
        transport, self._transport = self._transport, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._buffer = b""
        self._abandoned.clear()
        if transport is not None:
            transport.abort()
        self._fail(why)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._transaction = random.randrange(0x10000)
        if self._rtu:  # what was asked before may still be answered, by a converter or out of a port's buffer
            self._drain(self._quiet_s)
        self.counters["connections"] += 1

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        if self._transport is not None:
            self.drop(f"the connection was lost{f' ({error})' if error else ''}")

    # -- the queue

    async def _acquire(self, *, probe: bool) -> None:
        """Wait for one's turn; whoever ends hands the line on, so that nobody slips in between."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._probing if probe else self._waiting).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        for queue in (self._waiting, self._probing):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._busy = False

    async def ask(self, unit: int, pdus: Sequence[bytes], timeout_s: float, *, probe: bool = False) -> list[bytes]:
        """The answers to requests, in their order.

        Args:
            unit: Who is asked.
            pdus: Function code and what follows.
            timeout_s: Longest wait for one answer; it starts anew with every answer.
            probe: Everybody else goes first: whether somebody is back who did not answer.

        Raises:
            UnavailableError: An answer did not come, or something came that is not one.
        """
        if probe and self.shared:
            await self._patience()
        if self._busy:
            await self._acquire(probe=probe)
        self._busy = True
        try:
            if self._free_at > 0.0 or self._drain_until > 0.0:
                await self._pause()
            transport, loop = self._transport, self._loop
            if transport is None or loop is None:
                raise UnavailableError(f"not connected to {self.endpoint.name}")
            began = loop.time()
            done = loop.create_future()
            batch = self._batch = _Batch(unit, pdus, [], done, timeout_s, began + timeout_s)
            self._oldest = (self._transaction + 1) & 0xFFFF
            self._send(transport, batch)
            if self._timer is None:
                self._timer = loop.call_at(batch.deadline, self._watch, loop)
            elif batch.deadline < self._timer.when():
                self._timer.cancel()
                self._timer = loop.call_at(batch.deadline, self._watch, loop)
            try:
                await done
                self.took_s = loop.time() - began
                self.slowest_s = max(self.slowest_s, self.took_s / len(pdus))
            except asyncio.CancelledError:
                self._doubt(batch)
                raise
            finally:
                self._batch = None
                if probe and not (done.done() and not done.cancelled() and done.exception() is None):
                    self._probe_at = loop.time() + _PROBE_PAUSE * (loop.time() - began)
                if self._gap_s:
                    self._free_at = loop.time() + self._gap_s
            return batch.answers
        finally:
            self._release()

    async def _patience(self) -> None:
        """Units that do not answer have a small share of the line's time together."""
        loop = asyncio.get_running_loop()
        for _ in range(_DRAINS_AT_MOST):
            wait = self._probe_at - loop.time()
            if wait <= 0:
                return
            await asyncio.sleep(wait)

    async def _pause(self) -> None:
        """What the other end needs between requests, and what an answer that was not waited for may still take."""
        loop = asyncio.get_running_loop()
        for _ in range(_DRAINS_AT_MOST):
            wait = max(self._free_at, self._drain_until) - loop.time()
            if wait <= 0:
                self._drain_until = self._free_at = 0.0
                self._buffer = b"" if self._rtu else self._buffer
                return
            await asyncio.sleep(wait)
        raise UnavailableError(f"{self.endpoint.name} is never quiet: somebody else speaks on this line")

    def _send(self, transport: asyncio.WriteTransport, batch: _Batch) -> None:
        """As many of the batch as may be under way."""
        if len(batch.pdus) == 1 and not self._rtu:  # nearly always
            pdu = batch.pdus[0]
            batch.sent = 1
            self.requests += 1
            if self.tap is not None:
                self.tap("request", batch.unit, pdu)
            number = self._transaction = (self._transaction + 1) & 0xFFFF
            transport.write(_MBAP.pack(number, 0, len(pdu) + 1, batch.unit) + pdu)
            return
        frames = []
        while batch.sent < len(batch.pdus) and batch.sent - len(batch.answers) < self._pipeline:
            pdu = batch.pdus[batch.sent]
            batch.sent += 1
            self.requests += 1
            if self.tap is not None:
                self.tap("request", batch.unit, pdu)
            if self._rtu:
                body = bytes([batch.unit]) + pdu
                frames.append(body + crc16(body).to_bytes(2, "little"))
            else:
                number = self._transaction = (self._transaction + 1) & 0xFFFF
                frames.append(_MBAP.pack(number, 0, len(pdu) + 1, batch.unit) + pdu)
        if frames:
            transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all requests: most are answered long before, and a timer each would be half the work."""
        self._timer = None
        batch = self._batch
        if batch is None or batch.done.done():
            return  # the next request sets it anew
        if batch.deadline > loop.time():
            self._timer = loop.call_at(batch.deadline, self._watch, loop)
            return
        self.counters["timeouts"] += 1
        if self.tap is not None:
            self.tap("silence", batch.unit, b"")
        self._doubt(batch)
        batch.done.set_exception(UnavailableError(f"unit {batch.unit} at {self.endpoint.name}: no answer"))

    def _doubt(self, batch: _Batch) -> None:
        """An answer may still come: on TCP its identifiers are remembered, on RTU the line is listened to."""
        if self._rtu:
            self._drain(max(batch.timeout_s, self.timeout_s))
            return
        for offset in range(batch.sent - len(batch.answers)):
            self._abandoned.append((self._oldest + offset) & 0xFFFF)

    def _drain(self, seconds: float) -> None:
        """Listen for so long before the next request; bytes that come meanwhile are nobody's answer."""
        if self._loop is not None:
            self._drain_until = max(self._drain_until, self._loop.time() + seconds)

    def _fail(self, why: str) -> None:
        batch = self._batch
        if batch is not None and not batch.done.done():
            if self.tap is not None:
                self.tap("silence", batch.unit, b"")
            batch.done.set_exception(UnavailableError(f"unit {batch.unit} at {self.endpoint.name}: {why}"))

    # -- what comes

    def get_buffer(self, sizehint: int) -> memoryview:
        """See :class:`asyncio.BufferedProtocol`: asyncio's own takes 256 KiB anew for each of our small answers."""
        del sizehint
        return _SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self.data_received(_SCRATCH[:nbytes].tobytes())

    def data_received(self, data: bytes) -> None:
        """What came; a serial port's transport calls it so."""
        if self._rtu:
            self._rtu_received(data)
        else:
            self._tcp_received(data)

    def _tcp_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        while size - at >= 8:
            transaction, protocol, length, unit = _MBAP.unpack_from(buffer, at)
            if protocol != 0 or not 2 <= length <= _MAX_PDU + 1:
                self._wrong("something that is not Modbus")
                return
            end = at + 6 + length
            if size < end:
                break
            batch = self._batch
            if (
                batch is not None
                and transaction == self._oldest
                and len(batch.answers) < batch.sent
                and unit == batch.unit
            ):
                self._oldest = (self._oldest + 1) & 0xFFFF
                self._took(batch, buffer[at + 7 : end])
            elif transaction in self._abandoned:
                self._abandoned.remove(transaction)
                self.counters["late"] += 1
            else:
                self._wrong("an answer to another request")
                return
            at = end
        self._buffer = buffer[at:] if at < size else b""
        batch = self._batch
        if batch is not None and batch.sent < len(batch.pdus):
            self._go_on(batch)  # once for all that came: as many again

    def _rtu_received(self, data: bytes) -> None:
        batch = self._batch
        if batch is None or batch.done.done() or len(batch.answers) >= batch.sent:
            self.counters["late"] += 1
            self._drain(self._quiet_s)  # the rest of it may be on its way
            return
        buffer = self._buffer = self._buffer + data
        if len(buffer) < 5:
            return
        function = batch.pdus[len(batch.answers)][0]
        if buffer[0] != batch.unit or buffer[1] & 0x7F != function:
            self._wrong("an answer to another request")
            return
        need = 5 if buffer[1] & 0x80 else 8 if function in {5, 6, 15, 16} else 5 + buffer[2]
        if len(buffer) < need:
            return
        if len(buffer) > need or crc16(buffer[:need]) != 0:  # over a frame with its own checksum it is 0
            self._wrong("a frame with a wrong checksum or length")
            return
        self._buffer = b""
        self._took(batch, buffer[1 : need - 2])

    def _took(self, batch: _Batch, pdu: bytes) -> None:
        if self.tap is not None:
            self.tap("answer", batch.unit, pdu)
        batch.answers.append(pdu)
        assert self._loop is not None
        batch.deadline = self._loop.time() + batch.timeout_s
        if len(batch.answers) == len(batch.pdus):
            if not batch.done.done():
                batch.done.set_result(None)
        elif self._rtu:
            self._go_on(batch)

    def _go_on(self, batch: _Batch) -> None:
        """Send more of a batch, after the pause that the other end needs."""
        if self._gap_s and self._loop is not None:
            batch.deadline += self._gap_s
            self._loop.call_later(self._gap_s, self._send_more, batch)
        else:
            self._send_more(batch)

    def _send_more(self, batch: _Batch) -> None:
        loop = self._loop
        if self._rtu and loop is not None and (wait := self._drain_until - loop.time()) > 0:
            batch.deadline += wait
            loop.call_later(wait, self._send_more, batch)
            return
        if batch is self._batch and not batch.done.done() and self._transport is not None:
            self._send(self._transport, batch)

    def _wrong(self, what: str) -> None:
        """Something came that is no answer to what was asked: nothing on this line can be believed before it is quiet again."""
        self.counters["wrong"] += 1
        if self._rtu:
            self._buffer = b""
            if self._batch is not None:
                self._drain(max(self._batch.timeout_s, self.timeout_s))
            self._fail(what)
        else:
            self.drop(what)


def _cause(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    known = {2: "there is no such port", 13: "no permission (is the user in the group dialout?)", 16: "it is in use"}
    return known.get(number or 0, str(error))


class LinePool:
    """One line an endpoint, however many units are behind it."""

    def __init__(self) -> None:
        self._lines: dict[Endpoint, Line] = {}

    def of(self, endpoint: Endpoint) -> Line | None:
        """The line of an endpoint that somebody has taken; none else."""
        return self._lines.get(endpoint)

    def line(self, endpoint: Endpoint, *, gap_s: float = 0.0, connect_delay_s: float = 0.0, pipeline: int = 1) -> Line:
        """The line of an endpoint; of several that share it, the longest pauses and the fewest at once count."""
        line = self._lines.get(endpoint)
        if line is None:
            line = Line(endpoint, gap_s=gap_s, connect_delay_s=connect_delay_s, pipeline=pipeline)
            self._lines[endpoint] = line
        else:
            line.widen(gap_s, connect_delay_s, pipeline)
        return line
