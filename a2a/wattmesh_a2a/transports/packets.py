"""PUBLISH of MQTT 5 in as few steps as it needs: paho's general code for properties costs more than all else of a message.

Source: OASIS MQTT Version 5.0, sections 2.2.2 and 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

_EXPIRY, _RESPONSE_TOPIC, _CORRELATION, _USER = 0x02, 0x08, 0x09, 0x26
_FIXED = {0x01: 1, 0x02: 4, 0x23: 2}
"""Properties of a PUBLISH of fixed length: payload format, expiry, topic alias."""
_TEXT_AT_MOST = 65_535


class Published(NamedTuple):
    """A PUBLISH that came in."""

    topic: str
    payload: bytes
    packet_id: int
    """0 with QoS 0."""
    response_topic: str | None
    correlation_data: bytes | None
    user_properties: tuple[tuple[str, str], ...]


class PackedProperties:
    """What paho asks of properties when it sends them, made once."""

    __slots__ = ("_packed",)

    def __init__(
        self,
        *,
        expiry_s: int | None,
        response_topic: str | None,
        correlation_data: bytes | None,
        user_properties: tuple[tuple[str, str], ...],
    ) -> None:
        body = b""
        if expiry_s is not None:
            body += b"\x02" + expiry_s.to_bytes(4, "big")
        if response_topic:
            body += b"\x08" + _prefixed(response_topic.encode())
        if correlation_data:
            body += b"\x09" + _prefixed(correlation_data)
        for name, value in user_properties:
            body += b"\x26" + _prefixed(name.encode()) + _prefixed(value.encode())
        self._packed = _varint(len(body)) + body

    def pack(self) -> bytes:
        """The bytes."""
        return self._packed


def read_publish(first: int, body: bytes) -> Published:
    """The PUBLISH with this first byte of the fixed header and this rest after its length; raises ``ValueError``."""
    topic_ends = 2 + _u16(body, 0)
    topic = body[2:topic_ends].decode()
    at, packet_id = topic_ends, 0
    if first & 0x06:
        packet_id = _u16(body, at)
        at += 2
    ends, at = _length(body, at)
    response_topic, correlation, users = None, None, []
    while at < ends:
        kind = body[at]
        at += 1
        if kind in _FIXED:
            at += _FIXED[kind]
        elif kind == 0x0B:  # subscription identifier
            _, at = _length(body, at, of=0)
        elif kind in {0x03, _RESPONSE_TOPIC, _CORRELATION}:
            value, at = _data(body, at)
            if kind == _RESPONSE_TOPIC:
                response_topic = value.decode()
            elif kind == _CORRELATION:
                correlation = value
        elif kind == _USER:
            name, at = _data(body, at)
            value, at = _data(body, at)
            users.append((name.decode(), value.decode()))
        else:
            raise ValueError(f"a PUBLISH with property {kind}")
    if at != ends or topic_ends > len(body):
        raise ValueError("a PUBLISH whose lengths do not fit")
    return Published(topic, body[ends:], packet_id, response_topic, correlation, tuple(users))


def _u16(body: bytes, at: int) -> int:
    if at + 2 > len(body):
        raise ValueError("a packet that is too short")
    return int.from_bytes(body[at : at + 2], "big")


def _data(body: bytes, at: int) -> tuple[bytes, int]:
    ends = at + 2 + _u16(body, at)
    if ends > len(body):
        raise ValueError("a packet that is too short")
    return body[at + 2 : ends], ends


def _length(body: bytes, at: int, *, of: int | None = None) -> tuple[int, int]:
    """Where what has this variable byte integer as its length ends, and where it begins."""
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(body):
            break
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            ends = at + value
            if of is None and ends > len(body):
                break
            return ends, at
    raise ValueError("a length that cannot be")


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, byte = value >> 7, value & 127
        out.append(byte | (128 if value else 0))
        if not value:
            return bytes(out)


def _prefixed(content: bytes) -> bytes:
    if len(content) > _TEXT_AT_MOST:
        raise ValueError("longer than a field of MQTT can be")
    return len(content).to_bytes(2, "big") + content
