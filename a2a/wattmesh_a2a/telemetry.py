"""Telemetry batches: self-describing columns, compressed; and lines of JSON for records that are not samples.

Frame: magic ``WM1``, kind byte, zlib-compressed body. Body of columns (little endian): header length (u32), header as
JSON (site, session, stream, sequence, column names, row count, first time), then per row the time offset in ms (i32),
then column by column f64 values and quality bytes. Body of records: header the same way, then JSON lines.

The header's ``sequence`` with (site, stream) is the identity of a batch: it never repeats, whatever restarts.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wattmesh_a2a.errors import InvalidMessageError

MAGIC = b"WM1"
_COLUMNS, _RECORDS = b"C", b"R"
MAX_BODY_BYTES = 4_000_000
"""A frame that would inflate to more is refused (a compression bomb)."""
_MAX_ROWS, _MAX_COLUMNS = 100_000, 10_000


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
    parts = [struct.pack("<I", len(header)), header, offsets.tobytes()]
    for values, quality in zip(batch.values, batch.qualities, strict=True):
        parts.append(values.tobytes())
        parts.append(quality)
    return MAGIC + _COLUMNS + zlib.compress(b"".join(parts), 1)


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
        if frame[3:4] == _COLUMNS:
            return _decode_columns(identity, header, rest)
    except (zlib.error, struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"telemetry frame is damaged: {error}") from error
    raise InvalidMessageError("telemetry frame of an unknown kind")


class _Identity(NamedTuple):
    site: str
    session: str
    stream: str
    sequence: int


def _decode_columns(identity: _Identity, header: dict[str, object], rest: memoryview) -> ColumnBatch:
    names = header["columns"]
    if not isinstance(names, list) or len(names) > _MAX_COLUMNS:
        raise InvalidMessageError("telemetry frame has too many columns")
    columns = tuple(_text(name) for name in names)
    rows = _count(header["rows"], _MAX_ROWS)
    first = _count(header["first_ns"], 2**62)
    if len(rest) != rows * 4 + len(columns) * rows * 9:
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    offsets = array("i")
    offsets.frombytes(rest[: rows * 4])
    at = rows * 4
    values: list[array[float]] = []
    qualities: list[bytes] = []
    for _ in columns:
        column = array("d")
        column.frombytes(rest[at : at + rows * 8])
        at += rows * 8
        quality = bytes(rest[at : at + rows])
        at += rows
        if any(q > 2 for q in quality):
            raise InvalidMessageError("telemetry frame has an unknown quality")
        if any(math.isinf(v) for v in column):
            raise InvalidMessageError("telemetry frame has an infinite value")
        values.append(column)
        qualities.append(quality)
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
