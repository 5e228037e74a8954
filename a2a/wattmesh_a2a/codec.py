"""Envelopes as JSON: attributes named as in CloudEvents 1.0, checked on the way in by pydantic."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from wattmesh_a2a.envelope import Address, Envelope, TaskState
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import MESSAGE_TYPES, TYPE_NAMES, Message
from wattmesh_a2a.topics import MAX_MESSAGE_BYTES

_MAX_NS = 2**63 - 1
_LARGEST_EXACT = 1e16  # beyond it Python writes an exponent, and this one has its exact digits
_MAX_FLOAT = sys.float_info.max
_EXPONENT = re.compile(r"[:,\[]-?\d[\d.]*e")
"""Where Python may write a number otherwise than RFC 8785 (or a text only looks like one, which costs time and nothing else)."""
_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_dump_sorted = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True).encode
_address = lru_cache(maxsize=4096)(Address.parse)


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(MESSAGE_TYPES[name])


@cache
def _to_json(name: str) -> Callable[..., Any]:
    """A type's writer to plain values itself: what stands around it costs a fifth of a small message."""
    return partial(_adapter(name).serializer.to_python, mode="json")


@cache
def _to_bytes(name: str) -> Callable[[Any], bytes]:
    return _adapter(name).serializer.to_json


@cache
def _validate(name: str) -> Callable[[object], Any]:
    return _adapter(name).validator.validate_python


def type_name(message: Message) -> str:
    """The versioned name of a message's type on the wire."""
    return TYPE_NAMES[type(message)]


def message_to_json(message: Message) -> Any:
    """A message as plain JSON values."""
    return _to_json(type_name(message))(message)


def message_to_bytes(message: Message) -> bytes:
    """A message as JSON text."""
    return _to_bytes(type_name(message))(message)


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
        message: Message = _validate(name)(data)
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
    if envelope.destination is not None:
        fields["destination"] = str(envelope.destination)
    if envelope.correlation_id is not None:
        fields["correlationid"] = envelope.correlation_id
    if envelope.state is not None:
        fields["state"] = envelope.state.value
    if envelope.traceparent is not None:
        fields["traceparent"] = envelope.traceparent
    return fields


def canonical(fields: dict[str, Any]) -> bytes:
    """The bytes that are signed: RFC 8785 (sorted keys, no spaces, numbers as ECMAScript writes them).

    With one exception: whole numbers beyond 2⁵³ (nanoseconds) stand exactly, where RFC 8785 would round them.
    """
    plain = {key: _whole(value) for key, value in fields.items() if key != "signature"}
    text = _dump_sorted(plain)
    if not text.isascii() or ("e" in text and _EXPONENT.search(text)):
        text = _jcs(plain)
    return text.encode()


def _whole(value: Any) -> Any:
    """The same values with 5 for 5.0, as ECMAScript writes it."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is float:
        return int(value) if value.is_integer() and -_LARGEST_EXACT < value < _LARGEST_EXACT else value
    if kind is dict:
        return {key: _whole(one) for key, one in value.items()}
    if kind is list or kind is tuple:
        return [_whole(one) for one in value]
    return value


def _jcs(value: Any) -> str:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_jcs(value[key])}" for key in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_jcs, value)) + "]"
    if isinstance(value, float):
        return _ecmascript(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _ecmascript(value: float) -> str:
    """A number as ECMAScript writes it (ECMA-262, Number::toString): Python's digits, another layout."""
    if not math.isfinite(value):
        raise ValueError("no JSON number")
    if value == 0:
        return "0"
    text = repr(abs(value))
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        out = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        out = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        out = f"0.{'0' * -point}{digits}"
    else:
        power = point - 1
        out = f"{digits[0]}{'.' + digits[1:] if len(digits) > 1 else ''}e{'+' if power > 0 else '-'}{abs(power)}"
    return f"-{out}" if value < 0 else out


def encode(envelope: Envelope, signature: str | None = None) -> bytes:
    """The payload of an envelope; raises :class:`InvalidMessageError` when it is too large for every transport."""
    return encode_fields(to_fields(envelope), signature)


def encode_fields(fields: dict[str, Any], signature: str | None = None) -> bytes:
    """The payload of :func:`to_fields`, with its signature."""
    if signature is not None:
        fields["signature"] = signature
    payload = _written(fields)
    if len(payload) > MAX_MESSAGE_BYTES:
        raise InvalidMessageError(f"{fields['type']} of {len(payload)} bytes is over {MAX_MESSAGE_BYTES}")
    return payload


def _written(fields: dict[str, Any]) -> bytes:
    """JSON text, by the quick writer unless it may have met a number that is none: the strict one then refuses it."""
    try:
        payload = to_json(fields, inf_nan_mode="constants")
    except PydanticSerializationError:
        return _dump(fields).encode()
    return _dump(fields).encode() if b"NaN" in payload or b"Infinity" in payload else payload


def decode_fields(payload: bytes) -> dict[str, Any]:
    """The JSON object of a payload, bounded in size; raises :class:`InvalidMessageError`."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise InvalidMessageError(f"message of {len(payload)} bytes is over {MAX_MESSAGE_BYTES}")
    return _object(payload)


def from_fields(fields: dict[str, Any], *, signed: bool = False) -> Envelope:
    """The envelope of decoded fields; raises :class:`InvalidMessageError`."""
    head = attributes(fields)
    return Envelope(**head, data=message_from_json(head["type"], fields.get("data")), signed=signed)


def attributes(fields: dict[str, Any]) -> dict[str, Any]:
    """What stands around the data, checked; enough to answer a message whose data is not understood."""
    if fields.get("specversion") != "1.0":
        raise InvalidMessageError("specversion is not 1.0")
    return {
        "id": _text(fields, "id"),
        "source": _address(_text(fields, "source")),
        "type": _text(fields, "type"),
        "time_ns": _number(fields, "timens"),
        "session": _text(fields, "session"),
        "sequence": _number(fields, "sequence"),
        "expires_ns": _number(fields, "expiresns"),
        "not_before_ns": _number(fields, "notbeforens") if "notbeforens" in fields else 0,
        "destination": _address(_text(fields, "destination")) if "destination" in fields else None,
        "correlation_id": _text(fields, "correlationid") if "correlationid" in fields else None,
        "state": _state(fields) if "state" in fields else None,
        "traceparent": _text(fields, "traceparent") if "traceparent" in fields else None,
    }


def _state(fields: dict[str, Any]) -> TaskState:
    try:
        return TaskState(_text(fields, "state"))
    except ValueError as error:
        raise InvalidMessageError("state is no task state") from error


def _object(payload: bytes) -> dict[str, Any]:
    try:
        fields = from_json(payload, allow_inf_nan=False)
        _check_numbers(fields)
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError("not JSON that we take") from error
    if not isinstance(fields, dict):
        raise InvalidMessageError("not a JSON object")
    return fields


def _check_numbers(value: Any) -> None:
    """Refuse numbers that no store takes: whole ones beyond 64 bits, and what overflowed to infinity."""
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not list:
        value = (value,)
    for one in value:
        kind = type(one)
        if kind is int:
            if not -_MAX_NS <= one <= _MAX_NS:
                raise ValueError("a number is too large")
        elif kind is float:
            if not -_MAX_FLOAT <= one <= _MAX_FLOAT:
                raise ValueError("a number is too large")
        elif kind is dict or kind is list:
            _check_numbers(one)


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
