"""Envelopes as JSON: attributes named as in CloudEvents 1.0, checked on the way in by pydantic."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import MESSAGE_TYPES, TYPE_NAMES, Message
from wattmesh_a2a.topics import MAX_PAYLOAD_BYTES

_MAX_NS = 2**63 - 1
# ``json.dumps`` with options makes an encoder anew for every message, which costs more than the message
_PLAIN = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(MESSAGE_TYPES[name])


def type_name(message: Message) -> str:
    """The versioned name of a message's type on the wire."""
    return TYPE_NAMES[type(message)]


def message_to_json(message: Message) -> Any:
    """A message as plain JSON values."""
    return _adapter(type_name(message)).dump_python(message, mode="json")


def message_to_bytes(message: Message) -> bytes:
    """A message as JSON text."""
    return _adapter(type_name(message)).dump_json(message)


def record_line(message: Message) -> bytes:
    """A message as one line of a record batch: ``{"type": …, "data": …}``."""
    return json.dumps({"type": type_name(message), "data": message_to_json(message)}, separators=(",", ":")).encode()


def parse_record(line: bytes) -> Message:
    """The message of a record line; raises :class:`InvalidMessageError`."""
    fields = _object(line)
    return message_from_json(_text(fields, "type"), fields.get("data"))


def message_from_json(name: str, data: object) -> Message:
    """The message of type ``name`` with these values; unknown fields are ignored, unknown types refused."""
    if name not in MESSAGE_TYPES:
        raise InvalidMessageError(f"unknown message type {name[:80]!r}")
    try:
        message: Message = _adapter(name).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidMessageError(f"{name}: {where}: {first['msg']}") from error
    return message


def to_fields(envelope: Envelope) -> dict[str, Any]:
    """The attributes and data of an envelope as they stand on the wire, without a signature."""
    fields: dict[str, Any] = {
        "specversion": "1.0",
        "id": envelope.id,
        "source": str(envelope.source),
        "type": envelope.type,
        "timens": envelope.time_ns,
        "session": envelope.session,
        "sequence": envelope.sequence,
        "expiresns": envelope.expires_ns,
        "data": message_to_json(envelope.data),
    }
    if envelope.not_before_ns:
        fields["notbeforens"] = envelope.not_before_ns
    if envelope.correlation_id is not None:
        fields["correlationid"] = envelope.correlation_id
    if envelope.traceparent is not None:
        fields["traceparent"] = envelope.traceparent
    return fields


def canonical(fields: dict[str, Any]) -> bytes:
    """The bytes that are signed: sorted keys, no spaces (RFC 8785 for what we send: integers, text, short decimals)."""
    plain = {key: value for key, value in fields.items() if key != "signature"}
    return _CANONICAL.encode(plain).encode()


def encode(envelope: Envelope, signature: str | None = None) -> bytes:
    """The payload of an envelope; raises :class:`InvalidMessageError` when it is too large for every transport."""
    fields = to_fields(envelope)
    if signature is not None:
        fields["signature"] = signature
    payload = _PLAIN.encode(fields).encode()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidMessageError(f"{envelope.type} of {len(payload)} bytes is over {MAX_PAYLOAD_BYTES}")
    return payload


def decode_fields(payload: bytes) -> dict[str, Any]:
    """The JSON object of a payload, bounded in size; raises :class:`InvalidMessageError`."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidMessageError(f"message of {len(payload)} bytes is over {MAX_PAYLOAD_BYTES}")
    return _object(payload)


def from_fields(fields: dict[str, Any], *, signed: bool = False) -> Envelope:
    """The envelope of decoded fields; raises :class:`InvalidMessageError`."""
    if fields.get("specversion") != "1.0":
        raise InvalidMessageError("specversion is not 1.0")
    name = _text(fields, "type")
    return Envelope(
        id=_text(fields, "id"),
        source=Address.parse(_text(fields, "source")),
        type=name,
        time_ns=_number(fields, "timens"),
        session=_text(fields, "session"),
        sequence=_number(fields, "sequence"),
        expires_ns=_number(fields, "expiresns"),
        not_before_ns=_number(fields, "notbeforens") if "notbeforens" in fields else 0,
        correlation_id=_text(fields, "correlationid") if "correlationid" in fields else None,
        traceparent=_text(fields, "traceparent") if "traceparent" in fields else None,
        data=message_from_json(name, fields.get("data")),
        signed=signed,
    )


def _object(payload: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(
            payload.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
        if b"\\u" in payload:  # an escape may hide half of a surrogate pair, which is no text and no store takes
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError("not JSON that we take") from error
    if not isinstance(fields, dict):
        raise InvalidMessageError("not a JSON object")
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _bounded(text: str) -> int:
    value = int(text) if len(text) <= 20 else _MAX_NS + 1
    if not -_MAX_NS <= value <= _MAX_NS:
        raise ValueError(f"{text[:20]} is too large")
    return value


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise InvalidMessageError(f"{key} is missing or no text of at most 200 characters")
    return value


def _number(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_NS:
        raise InvalidMessageError(f"{key} is missing or no whole number from 0 on")
    return value
