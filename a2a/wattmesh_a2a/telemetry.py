"""Telemetry batches: self-describing columns, compressed; and lines of JSON for records that are not samples.

Frame: magic ``WM1``, kind byte, zlib-compressed body. Body of columns (little endian): header length (u32), header as
JSON (site, session, stream, sequence, column names, row count, first time), then per row the time offset in ms (i32).
Kind ``C``, the older one: then column by column f64 values and quality bytes. Kind ``D``, which is sent: a code byte a
column, then what the codes say, column by column. Low bits of a code: 0 and 1, whole multiples of a step (step and first
value in thousandths, i64 each, then differences as i16 or i32 steps); 2, f32; 3, f64; 4, no value at all. Bit 4: a quality
byte a row follows the values; else bits 5 and 6 are the quality of all rows. What comes out is exactly what went in.
Body of records: header the same way, then JSON lines.

The header's ``sequence`` with (site, stream) is the identity of a batch: it never repeats, whatever restarts.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub
from typing import NamedTuple

from wattmesh_a2a.errors import InvalidMessageError

MAGIC = b"WM1"
_COLUMNS, _DELTAS, _RECORDS = b"C", b"D", b"R"
_I16, _I32, _F32, _F64, _NONE, _QUALITIES = 0, 1, 2, 3, 4, 0x10
_SCALE = 1000
_EXACT = 2**53
_LEVEL = 3
"""Of zlib: half the time of the default for 3 % more bytes."""
MAX_BODY_BYTES = 4_000_000
"""A frame that would inflate to more is refused (a compression bomb)."""
_MAX_ROWS, _MAX_COLUMNS, _MAX_VALUES = 100_000, 10_000, 1_000_000
_FIRST = struct.Struct("<qq")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnBatch:
    """Samples of many points at shared times."""

    site_id: str
    session: str
    stream: str
    sequence: int
    columns: tuple[str, ...]
    """``asset_id.point_id`` each."""
    times_ns: array[int]
    """UTC of each row (type ``q``), not descending."""
    values: tuple[array[float], ...]
    """One array (type ``d``) a column, one value a row; NaN where the quality is bad."""
    qualities: tuple[bytes, ...]
    """One byte a value: :class:`wattmesh_a2a.devices.Quality`."""

    @property
    def records(self) -> int:
        """How many values there are."""
        return len(self.columns) * len(self.times_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBatch:
    """Messages as JSON objects, each with its ``type`` name; for decisions, events, interval energies."""

    site_id: str
    session: str
    stream: str
    sequence: int
    lines: tuple[bytes, ...]
    """Each a JSON object ``{"type": …, "data": {…}}`` without line breaks."""

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.lines)


def encode_columns(batch: ColumnBatch) -> bytes:
    """The frame of a batch of samples."""
    first = batch.times_ns[0] if batch.times_ns else 0
    header = _header(batch, {"columns": batch.columns, "rows": len(batch.times_ns), "first_ns": first})
    offsets = array("i", [(t - first) // 1_000_000 for t in batch.times_ns])
    rows = len(batch.times_ns)
    whole = _whole(batch.values)
    codes, parts = bytearray(), []
    for at, (values, quality) in enumerate(zip(batch.values, batch.qualities, strict=True)):
        packed = _stepped(whole[at * rows : (at + 1) * rows]) if whole else _packed(values)
        code, body = packed or _raw(values)
        if quality and quality[0] <= 2 and quality.count(quality[0]) == rows:
            code |= quality[0] << 5
        else:
            code |= _QUALITIES
            body += quality
        codes.append(code)
        parts.append(body)
    head = struct.pack("<I", len(header)) + header + offsets.tobytes() + codes
    return MAGIC + _DELTAS + zlib.compress(head + b"".join(parts), _LEVEL)


def _whole(columns: Sequence[array[float]]) -> list[int]:
    """All values in thousandths, or nothing when they are not exactly that."""
    stored = b"".join(column.tobytes() for column in columns)
    numbers = array("d", stored)
    try:
        whole = [round(value * _SCALE) for value in numbers]
    except (ValueError, OverflowError):  # no value, or none that is finite
        return []
    if array("d", [value / _SCALE for value in whole]).tobytes() != stored:  # also tells −0 from 0
        return []
    return whole


def _stepped(whole: list[int]) -> tuple[int, bytes] | None:
    """A column as its first value and the differences in steps; none where these are too large."""
    if not whole or not -_EXACT < whole[0] < _EXACT:
        return None
    if whole.count(whole[0]) == len(whole):
        return _I16, _FIRST.pack(1, whole[0]) + bytes(2 * len(whole) - 2)
    deltas = list(map(sub, whole[1:], whole))
    step = math.gcd(*deltas)
    if step >= _EXACT:
        return None
    if step > 1:
        deltas = [delta // step for delta in deltas]
    for code, kind in ((_I16, "h"), (_I32, "i")):
        try:
            return code, _FIRST.pack(step, whole[0]) + array(kind, deltas).tobytes()
        except OverflowError:
            continue
    return None


def _packed(values: array[float]) -> tuple[int, bytes] | None:
    if values and all(map(math.isnan, values)):
        return _NONE, b""
    whole = _whole([values])
    return _stepped(whole) if whole else None


def _raw(values: array[float]) -> tuple[int, bytes]:
    """Single precision where nothing is lost by it, as with most registers."""
    try:
        single = array("f", values)
    except OverflowError:
        return _F64, values.tobytes()
    exact = array("d", single).tobytes() == values.tobytes()
    return (_F32, single.tobytes()) if exact else (_F64, values.tobytes())


def encode_records(batch: RecordBatch) -> bytes:
    """The frame of a batch of records."""
    header = _header(batch, {})
    return MAGIC + _RECORDS + zlib.compress(struct.pack("<I", len(header)) + header + b"\n".join(batch.lines), 1)


def decode(frame: bytes) -> ColumnBatch | RecordBatch:
    """The batch of a frame; raises :class:`InvalidMessageError` for anything that is not exactly one."""
    if frame[:3] != MAGIC or len(frame) < 5:
        raise InvalidMessageError("not a telemetry frame")
    try:
        inflate = zlib.decompressobj()
        body = inflate.decompress(frame[4:], MAX_BODY_BYTES)
        if not inflate.eof:
            raise InvalidMessageError("telemetry frame cut off or too large")
        (size,) = struct.unpack_from("<I", body)
        header = json.loads(body[4 : 4 + size])
        rest = memoryview(body)[4 + size :]
        identity = _Identity(
            _text(header["site"]), _text(header["session"]), _text(header["stream"]), _count(header["sequence"], 2**62)
        )
        if frame[3:4] == _RECORDS:
            lines = tuple(bytes(rest).split(b"\n")) if rest else ()
            return RecordBatch(
                site_id=identity.site, session=identity.session, stream=identity.stream,
                sequence=identity.sequence, lines=lines,
            )  # fmt: skip
        if frame[3:4] in {_COLUMNS, _DELTAS}:
            unpack = _unpacked if frame[3:4] == _DELTAS else _plain
            return _decode_columns(identity, header, rest, unpack)
    except (zlib.error, struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"telemetry frame is damaged: {error}") from error
    raise InvalidMessageError("telemetry frame of an unknown kind")


class _Identity(NamedTuple):
    site: str
    session: str
    stream: str
    sequence: int


_Unpack = Callable[[int, int, memoryview], tuple[list["array[float]"], list[bytes]]]


def _decode_columns(identity: _Identity, header: dict[str, object], rest: memoryview, unpack: _Unpack) -> ColumnBatch:
    names = header["columns"]
    if not isinstance(names, list) or len(names) > _MAX_COLUMNS:
        raise InvalidMessageError("telemetry frame has too many columns")
    columns = tuple(_text(name) for name in names)
    rows = _count(header["rows"], _MAX_ROWS)
    first = _count(header["first_ns"], 2**62)
    if len(columns) * rows > _MAX_VALUES:
        raise InvalidMessageError("telemetry frame has too many values")
    offsets = array("i")
    offsets.frombytes(_taken(rest, 0, rows * 4))
    values, qualities = unpack(len(columns), rows, rest[rows * 4 :])
    if any(quality.translate(None, b"\0\1\2") for quality in qualities):
        raise InvalidMessageError("telemetry frame has an unknown quality")
    return ColumnBatch(
        site_id=identity.site,
        session=identity.session,
        stream=identity.stream,
        sequence=identity.sequence,
        columns=columns,
        times_ns=array("q", [first + offset * 1_000_000 for offset in offsets]),
        values=tuple(values),
        qualities=tuple(qualities),
    )


def _plain(columns: int, rows: int, rest: memoryview) -> tuple[list[array[float]], list[bytes]]:
    """Kind ``C``."""
    if len(rest) != columns * rows * 9:
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    values: list[array[float]] = []
    qualities: list[bytes] = []
    for at in range(0, columns * rows * 9, rows * 9) if rows else [0] * columns:
        column = array("d")
        column.frombytes(rest[at : at + rows * 8])
        values.append(_finite(column))
        qualities.append(bytes(rest[at + rows * 8 : at + rows * 9]))
    return values, qualities


def _unpacked(columns: int, rows: int, rest: memoryview) -> tuple[list[array[float]], list[bytes]]:
    """Kind ``D``."""
    codes, at = bytes(_taken(rest, 0, columns)), columns
    values: list[array[float]] = []
    qualities: list[bytes] = []
    for code in codes:
        form = code & 0x0F
        if form in {_I16, _I32} and rows:
            step, first = _FIRST.unpack_from(_taken(rest, at, _FIRST.size))
            if not -_EXACT < first < _EXACT or not 0 < step < _EXACT:
                raise InvalidMessageError("telemetry frame has an impossible step")
            deltas = array("h" if form == _I16 else "i")
            at += _FIRST.size
            size = (rows - 1) * deltas.itemsize
            deltas.frombytes(_taken(rest, at, size))
            if deltas.count(0) == rows - 1:
                column = array("d", [first / _SCALE]) * rows
            else:
                whole = accumulate((delta * step for delta in deltas), initial=first)
                column = array("d", [value / _SCALE for value in whole])
        elif form in {_F32, _F64}:
            stored: array[float] = array("f" if form == _F32 else "d")
            size = rows * stored.itemsize
            stored.frombytes(_taken(rest, at, size))
            column = _finite(stored if form == _F64 else array("d", stored))
        elif form == _NONE:
            size, column = 0, array("d", [math.nan]) * rows
        else:
            raise InvalidMessageError("telemetry frame has an unknown form")
        at += size
        values.append(column)
        if code & _QUALITIES:
            qualities.append(bytes(_taken(rest, at, rows)))
            at += rows
        else:
            qualities.append(bytes([code >> 5]) * rows)
    if at != len(rest):
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    return values, qualities


def _finite(column: array[float]) -> array[float]:
    if any(map(math.isinf, column)):
        raise InvalidMessageError("telemetry frame has an infinite value")
    return column


def _taken(rest: memoryview, at: int, size: int) -> memoryview:
    if at + size > len(rest):
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    return rest[at : at + size]


def _header(batch: ColumnBatch | RecordBatch, more: dict[str, Sequence[str] | int]) -> bytes:
    fields = {"site": batch.site_id, "session": batch.session, "stream": batch.stream, "sequence": batch.sequence}
    return json.dumps({**fields, **more}, separators=(",", ":")).encode()


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise InvalidMessageError("telemetry header has a wrong text")
    return value


def _count(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidMessageError("telemetry header has a wrong number")
    return value
