"""A small MQTT 5 broker for loopback: the demo's last resort where no mosquitto can be had.

What it has: QoS 0 and 1, wildcards, retained messages, wills, sessions with a bounded queue, message expiry, properties passed
through. What it has not: persistence over its own restarts, TLS, users, QoS 2, shared subscriptions. It binds 127.0.0.1 and
nothing else. Source: OASIS MQTT Version 5.0.

    python -m wattmesh_a2a.small_broker --port 1883
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field, replace

from wattmesh_a2a.transports.base import matches

log = logging.getLogger(__name__)

MAX_PACKET = 131_072
_QUEUE_AT_MOST = 10_000
_SESSIONS_AT_MOST = 1000
_RETAINED_AT_MOST = 10_000
_SUBSCRIPTIONS_AT_MOST = 200

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 10, 11, 12, 13, 14

_EXPIRY, _SESSION_EXPIRY, _TOPIC_ALIAS = 0x02, 0x11, 0x23
_KINDS = {
    0x01: "byte", 0x02: "u32", 0x03: "text", 0x08: "text", 0x09: "text", 0x0B: "varint", 0x11: "u32", 0x12: "text",
    0x13: "u16", 0x15: "text", 0x16: "text", 0x17: "byte", 0x18: "u32", 0x19: "byte", 0x1A: "text", 0x1C: "text",
    0x1F: "text", 0x21: "u16", 0x22: "u16", 0x23: "u16", 0x24: "byte", 0x25: "byte", 0x26: "pair", 0x27: "u32",
    0x28: "byte", 0x29: "byte", 0x2A: "byte",
}  # fmt: skip
"""Property identifiers and their types (MQTT 5, table 2-4)."""


class MalformedError(ValueError):
    """Bytes that are no MQTT 5 packet of ours; the connection ends."""


class Reader:
    """Takes fields from the front of a packet."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count < 0 or self.at + count > len(self.content):
            raise MalformedError("packet too short")
        self.at += count
        return self.content[self.at - count : self.at]

    def u8(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Two bytes."""
        return int.from_bytes(self.take(2), "big")

    def data(self) -> bytes:
        """Length-prefixed bytes."""
        return self.take(self.u16())

    def text(self) -> str:
        """Length-prefixed UTF-8."""
        try:
            return self.data().decode()
        except UnicodeDecodeError as error:
            raise MalformedError("not UTF-8") from error

    def varint(self) -> int:
        """A variable byte integer."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.u8()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise MalformedError("variable byte integer too long")

    def properties(self) -> tuple[bytes, dict[int, int]]:
        """The properties as they stand, and the whole-number ones by identifier."""
        raw = self.take(self.varint())
        inner, numbers = Reader(raw), {}
        while inner.at < len(raw):
            name = inner.u8()
            kind = _KINDS.get(name)
            if kind == "byte":
                numbers[name] = inner.u8()
            elif kind == "u16":
                numbers[name] = inner.u16()
            elif kind == "u32":
                numbers[name] = int.from_bytes(inner.take(4), "big")
            elif kind == "varint":
                numbers[name] = inner.varint()
            elif kind == "text":
                inner.data()
            elif kind == "pair":
                inner.data(), inner.data()
            else:
                raise MalformedError(f"unknown property {name}")
        return raw, numbers

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.content) - self.at)


def varint(value: int) -> bytes:
    """A variable byte integer."""
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A packet with its fixed header."""
    return bytes([kind << 4 | flags]) + varint(len(body)) + body


def _prefixed(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


@dataclass(frozen=True, slots=True)
class Message:
    """A publication on its way; ``properties`` without expiry and alias."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: bytes
    expires_at: float | None

    def encoded(self, qos: int, packet_id: int, *, retain: bool, duplicate: bool, now: float) -> bytes | None:
        """The packet for one receiver, or none when it has expired."""
        properties = self.properties
        if self.expires_at is not None:
            left = int(self.expires_at - now)
            if left <= 0:
                return None
            properties = bytes([_EXPIRY]) + struct.pack(">I", left) + properties
        body = _prefixed(self.topic.encode()) + (struct.pack(">H", packet_id) if qos else b"")
        return packet(
            PUBLISH, body + varint(len(properties)) + properties + self.payload, (duplicate << 3) | (qos << 1) | retain
        )


@dataclass(slots=True)
class Session:
    """What outlives a connection."""

    client_id: str
    subscriptions: dict[str, int] = field(default_factory=dict)
    queue: deque[tuple[Message, int]] = field(default_factory=lambda: deque(maxlen=_QUEUE_AT_MOST))
    in_flight: dict[int, Message] = field(default_factory=dict)
    next_id: int = 1
    expiry_s: int = 0
    gone_at: float = 0.0
    connection: Connection | None = None


class Broker:
    """All sessions and retained messages."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, Message] = {}
        self.server: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        """Listen on loopback; returns the port. Raises OSError where it is taken."""
        self.server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", port)
        return int(self.server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        if self.server is not None:
            self.server.close()
        for session in self.sessions.values():
            if session.connection is not None:
                session.connection.close()

    def session(self, client_id: str, *, clean: bool) -> tuple[Session, bool]:
        """The session of a client, and whether it is an old one."""
        now = time.monotonic()
        for name in [n for n, s in self.sessions.items() if s.connection is None and now - s.gone_at > s.expiry_s]:
            del self.sessions[name]
        old = self.sessions.get(client_id)
        if old is not None and old.connection is not None:
            old.connection.close()  # the same client connects anew (MQTT-3.1.4-3)
        if old is not None and not clean:
            return old, True
        if len(self.sessions) >= _SESSIONS_AT_MOST:
            raise MalformedError("too many sessions")
        self.sessions[client_id] = Session(client_id)
        return self.sessions[client_id], False

    def publish(self, message: Message) -> None:
        """Keep what is retained and hand on to every session that wants it."""
        if message.retain:
            if not message.payload:
                self.retained.pop(message.topic, None)
            elif message.topic in self.retained or len(self.retained) < _RETAINED_AT_MOST:
                self.retained[message.topic] = message
        for session in self.sessions.values():
            wanted = [qos for pattern, qos in session.subscriptions.items() if matches(pattern, message.topic)]
            if wanted:
                self.send(session, message, min(max(wanted), message.qos), retain=False)

    def send(self, session: Session, message: Message, qos: int, *, retain: bool) -> None:
        """To one session: at once when it is connected, else later when it may wait."""
        if session.connection is None:
            if qos and session.expiry_s:
                session.queue.append((message, qos))
            return
        packet_id = 0
        if qos:
            packet_id = session.next_id
            session.next_id = packet_id % 65_535 + 1
            session.in_flight[packet_id] = message
            if len(session.in_flight) > _QUEUE_AT_MOST:
                del session.in_flight[next(iter(session.in_flight))]
        encoded = message.encoded(qos, packet_id, retain=retain, duplicate=False, now=time.monotonic())
        if encoded is None:
            session.in_flight.pop(packet_id, None)
        else:
            session.connection.write(encoded)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._will: Message | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone: its session waits, its will is published."""
        del error
        session = self._session
        if session is not None and session.connection is self:
            session.connection = None
            session.gone_at = time.monotonic()
            for message in session.in_flight.values():
                session.queue.append((message, 1))
            session.in_flight.clear()
            if session.expiry_s == 0:
                self._broker.sessions.pop(session.client_id, None)
        if self._will is not None:
            will, self._will = self._will, None
            self._broker.publish(will)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def write(self, content: bytes) -> None:
        """Send bytes, if there still is somebody."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(content)

    def data_received(self, content: bytes) -> None:
        """Take whole packets; what is malformed ends the connection and does nothing else."""
        self._buffer += content
        try:
            while (body := self._next()) is not None:
                self._take(*body)
        except MalformedError as error:
            log.info("a client sent no MQTT 5: %s", error)
            self.close()

    def _next(self) -> tuple[int, int, bytes] | None:
        if len(self._buffer) < 2:
            return None
        length, shift = 0, 0
        for at in range(1, 5):
            if at >= len(self._buffer):
                return None
            byte = self._buffer[at]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        else:
            raise MalformedError("length too long")
        if length > MAX_PACKET:
            raise MalformedError("packet too large")
        end = at + 1 + length
        if len(self._buffer) < end:
            return None
        first, body = self._buffer[0], bytes(self._buffer[at + 1 : end])
        del self._buffer[:end]
        return first >> 4, first & 15, body

    def _take(self, kind: int, flags: int, body: bytes) -> None:
        if kind == CONNECT and self._session is None:
            self._on_connect(Reader(body))
            return
        session = self._session
        if session is None:
            raise MalformedError("first packet is no CONNECT")
        match kind:
            case 3:
                self._on_publish(Reader(body), flags)
            case 4:
                session.in_flight.pop(Reader(body).u16(), None)
            case 8:
                self._on_subscribe(session, Reader(body))
            case 10:
                self._on_unsubscribe(session, Reader(body))
            case 12:
                self.write(packet(PINGRESP, b""))
            case 14:
                if not body or body[0] != 4:  # 4: disconnect with will
                    self._will = None
                self.close()
            case _:
                raise MalformedError(f"packet type {kind}")

    def _on_connect(self, reader: Reader) -> None:
        if reader.text() != "MQTT" or reader.u8() != 5:
            raise MalformedError("another protocol")
        flags = reader.u8()
        reader.u16()  # keep alive: loopback has no half-open connections
        _, numbers = reader.properties()
        client_id = reader.text()
        if flags & 4:
            raw, will_numbers = reader.properties()
            topic, payload = reader.text(), reader.data()
            self._will = _message(topic, payload, (flags >> 3) & 3, bool(flags & 32), raw, will_numbers)
        session, present = self._broker.session(client_id or f"auto-{id(self)}", clean=bool(flags & 2))
        session.expiry_s = numbers.get(_SESSION_EXPIRY, 0)
        session.connection = self
        self._session = session
        # Properties: maximum QoS 1, no shared subscriptions, maximum packet size.
        properties = bytes([0x24, 1, 0x2A, 0, 0x27]) + struct.pack(">I", MAX_PACKET)
        self.write(packet(CONNACK, bytes([present, 0]) + varint(len(properties)) + properties))
        waiting, session.queue = list(session.queue), deque(maxlen=_QUEUE_AT_MOST)
        for message, qos in waiting:
            self._broker.send(session, message, qos, retain=False)

    def _on_publish(self, reader: Reader, flags: int) -> None:
        qos = (flags >> 1) & 3
        topic = reader.text()
        packet_id = reader.u16() if qos else 0
        raw, numbers = reader.properties()
        if qos > 1 or not topic or "+" in topic or "#" in topic or _TOPIC_ALIAS in numbers:
            raise MalformedError("a publication we do not take")
        message = _message(topic, reader.rest(), qos, bool(flags & 1), raw, numbers)
        self._broker.publish(message)
        if qos:
            self.write(packet(PUBACK, struct.pack(">H", packet_id)))

    def _on_subscribe(self, session: Session, reader: Reader) -> None:
        packet_id = reader.u16()
        reader.properties()
        codes, new = bytearray(), []
        while reader.at < len(reader.content):
            pattern, options = reader.text(), reader.u8()
            fits = (
                bool(pattern)
                and not pattern.startswith("$share/")
                and len(session.subscriptions) < _SUBSCRIPTIONS_AT_MOST
            )
            codes.append(min(options & 3, 1) if fits else 0x97)
            if fits:
                session.subscriptions[pattern] = min(options & 3, 1)
                new.append(pattern)
        self.write(packet(SUBACK, struct.pack(">H", packet_id) + b"\0" + bytes(codes)))
        for pattern in new:
            for message in [m for topic, m in self._broker.retained.items() if matches(pattern, topic)]:
                self._broker.send(session, message, min(session.subscriptions[pattern], message.qos), retain=True)

    def _on_unsubscribe(self, session: Session, reader: Reader) -> None:
        packet_id = reader.u16()
        reader.properties()
        codes = bytearray()
        while reader.at < len(reader.content):
            codes.append(0 if session.subscriptions.pop(reader.text(), None) is not None else 0x11)
        self.write(packet(UNSUBACK, struct.pack(">H", packet_id) + b"\0" + bytes(codes)))


def _message(topic: str, payload: bytes, qos: int, retain: bool, raw: bytes, numbers: dict[int, int]) -> Message:
    """A publication; expiry is counted here and leaves the properties that are passed on."""
    expiry = numbers.get(_EXPIRY)
    message = Message(topic, payload, qos, retain, raw, None)
    if expiry is None:
        return message
    marker = bytes([_EXPIRY]) + struct.pack(">I", expiry)
    return replace(message, properties=raw.replace(marker, b"", 1), expires_at=time.monotonic() + expiry)


async def serve(port: int) -> int:
    """Run until SIGTERM; returns the exit code."""
    broker = Broker()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await broker.start(port)
    except OSError as error:
        print(f"small broker: port {port} cannot be used ({error.strerror}); choose another", file=sys.stderr)
        return 2
    await stop.wait()
    with contextlib.suppress(OSError):
        await broker.stop()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    sys.exit(asyncio.run(serve(parser.parse_args().port)))
