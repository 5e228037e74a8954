"""Telemetry frames straight into matrices: no Python object a record; checked as :func:`wattmesh_a2a.telemetry.decode` checks.

The format is described in :mod:`wattmesh_a2a.telemetry`. A gateway's column names are the same in every frame of a session,
so their checked tuple is kept by the bytes they are written as.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.telemetry import MAGIC, MAX_BODY_BYTES, MODES, RAW, ColumnBatch, RecordBatch, decode

_MAX_ROWS, _MAX_COLUMNS, _MAX_TEXT = 100_000, 10_000, 200
_COLUMNS_KEY = b'"columns":['
BAD = 2
"""The quality of a value that must not be used (:class:`wattmesh_a2a.devices.Quality`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A batch of samples as matrices; the counterpart of :class:`wattmesh_a2a.telemetry.ColumnBatch`."""

    site_id: str
    session: str
    stream: str
    sequence: int
    columns: tuple[str, ...]
    times_ns: NDArray[np.int64]
    """UTC of each row."""
    values: NDArray[np.float64]
    """Columns × rows; NaN where the quality is bad."""
    qualities: NDArray[np.uint8]
    """Columns × rows."""

    @property
    def records(self) -> int:
        """How many values there are."""
        return int(self.values.size)

    def span(self) -> tuple[int, int]:
        """Earliest and latest time; (0, 0) without rows."""
        if not len(self.times_ns):
            return 0, 0
        return int(self.times_ns.min()), int(self.times_ns.max())


def samples_of(batch: ColumnBatch) -> Samples:
    """A batch of arrays as matrices."""
    shape = (len(batch.columns), len(batch.times_ns))
    return Samples(
        batch.site_id,
        batch.session,
        batch.stream,
        batch.sequence,
        batch.columns,
        np.frombuffer(batch.times_ns.tobytes(), dtype=np.int64),
        np.frombuffer(b"".join(column.tobytes() for column in batch.values), dtype=np.float64).reshape(shape),
        np.frombuffer(b"".join(batch.qualities), dtype=np.uint8).reshape(shape),
    )


def decode_frame(frame: bytes, wanted: frozenset[str] | None = None) -> Samples | RecordBatch:
    """The batch of a frame; raises :class:`InvalidMessageError` for anything that is not exactly one.

    Args:
        frame: As it came.
        wanted: Points to take out of a batch of samples; the others are not looked at. Without it, all.
    """
    if frame[:4] not in _KINDS:
        batch = decode(frame)
        return samples_of(batch) if isinstance(batch, ColumnBatch) else batch
    try:
        inflate = zlib.decompressobj()
        body = inflate.decompress(memoryview(frame)[4:], MAX_BODY_BYTES)
        if not inflate.eof or inflate.unused_data:
            raise InvalidMessageError("telemetry frame cut off, too large, or followed by something")
        (size,) = struct.unpack_from("<I", body)
        header, columns = _header(body[4 : 4 + size])
        return _KINDS[frame[:4]](header, columns, memoryview(body)[4 + size :], wanted)
    except (zlib.error, struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"telemetry frame is damaged: {error}") from error


def identity_of(frame: bytes) -> tuple[str, str, int] | None:
    """Site, stream and sequence of a frame that arrived whole (zlib's checksum) and is wrong otherwise; else none."""
    try:
        inflate = zlib.decompressobj()
        body = inflate.decompress(memoryview(frame)[4:], MAX_BODY_BYTES)
        if not inflate.eof:
            return None
        (size,) = struct.unpack_from("<I", body)
        header = json.loads(body[4 : 4 + size])
        return _text(header["site"]), _text(header["stream"]), _count(header["sequence"], 2**62)
    except (zlib.error, struct.error, ValueError, KeyError, TypeError, RecursionError, InvalidMessageError):
        return None


def _header(raw: bytes) -> tuple[dict[str, object], tuple[str, ...]]:
    start = raw.find(_COLUMNS_KEY)
    end = raw.rfind(b"]")
    if start < 0 or end < start:
        raise InvalidMessageError("telemetry frame without columns")
    names = _names(raw[start + len(_COLUMNS_KEY) - 1 : end + 1])
    header = json.loads(raw[:start] + b'"columns":0' + raw[end + 1 :])
    if not isinstance(header, dict) or header.get("columns") != 0:
        raise InvalidMessageError("telemetry header is no object")
    return header, names


@lru_cache(maxsize=4096)
def _names(raw: bytes) -> tuple[str, ...]:
    names = json.loads(raw)
    if not isinstance(names, list) or len(names) > _MAX_COLUMNS:
        raise InvalidMessageError("telemetry frame has too many columns")
    if len(set(map(_text, names))) != len(names):
        raise InvalidMessageError("telemetry frame names a column twice")
    return tuple(names)


@lru_cache(maxsize=4096)
def _places(columns: tuple[str, ...], wanted: frozenset[str]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Which of the columns are wanted, and where they stand."""
    found = [(name, index) for index, name in enumerate(columns) if name in wanted]
    return tuple(name for name, _ in found), np.array([index for _, index in found], dtype=np.intp)


def _samples(
    header: dict[str, object], columns: tuple[str, ...], rest: memoryview, wanted: frozenset[str] | None
) -> Samples:
    """Kind ``D``: decimal columns as differences, the others as doubles."""
    rows = _count(header["rows"], _MAX_ROWS)
    decimal, raw, multiplied, factors = _modes(header["modes"], len(columns))
    count = len(columns)
    if len(rest) != rows * (4 + count + 4 * len(decimal) + 8 * len(raw)):
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    values = np.empty((count, rows))
    at = rows * 4
    qualities = np.frombuffer(rest[at : at + rows * count], dtype=np.uint8).reshape(count, rows)
    at += rows * count
    if rows and len(decimal):
        shuffled = np.frombuffer(rest[at : at + 4 * rows * len(decimal)], dtype=np.uint8).reshape(4, -1)
        differences = np.ascontiguousarray(shuffled.T).view("<i4").reshape(len(decimal), rows)
        numbers = differences.cumsum(axis=1, dtype=np.int32).astype(np.float64)
        values[decimal] = np.where(multiplied, numbers * factors, numbers / factors)
        at += 4 * rows * len(decimal)
        if qualities.max() == BAD:
            bad = qualities == BAD
            bad[raw] = False
            values[bad] = np.nan
    if rows and len(raw):
        values[raw] = np.frombuffer(rest[at:], dtype="<f8").reshape(len(raw), rows)
    taken = columns
    if wanted is not None:
        taken, places = _places(columns, wanted)
        values, qualities = values[places], qualities[places]
    return _checked(header, taken, rest, values, qualities)


@lru_cache(maxsize=4096)
def _modes(
    modes: object, count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_], NDArray[np.float64]]:
    """Where the decimal and the raw columns stand; of the decimal ones whether to multiply, and the factors."""
    if not isinstance(modes, str) or len(modes) != count or not set(modes) <= {*MODES, RAW}:
        raise InvalidMessageError("telemetry header has wrong modes")
    decimal = [index for index, mode in enumerate(modes) if mode != RAW]
    raw = [index for index, mode in enumerate(modes) if mode == RAW]
    rules = [MODES[modes[index]] for index in decimal]
    multiplied = np.array([[times] for times, _ in rules], dtype=np.bool_).reshape(-1, 1)
    factors = np.array([[factor] for _, factor in rules]).reshape(-1, 1)
    return np.array(decimal, dtype=np.intp), np.array(raw, dtype=np.intp), multiplied, factors


def _plain(
    header: dict[str, object], columns: tuple[str, ...], rest: memoryview, wanted: frozenset[str] | None
) -> Samples:
    """Kind ``C``, of the first version."""
    rows = _count(header["rows"], _MAX_ROWS)
    if len(rest) != rows * 4 + len(columns) * rows * 9:
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    taken = columns if wanted is None else _places(columns, wanted)[0]
    values = np.empty((len(taken), rows))
    qualities = np.empty((len(taken), rows), dtype=np.uint8)
    if values.size:
        block = np.frombuffer(rest[rows * 4 :], dtype=np.uint8).reshape(len(columns), rows * 9)
        if wanted is not None:
            block = block[_places(columns, wanted)[1]]
        values = np.ascontiguousarray(block[:, : rows * 8]).view("<f8")
        qualities = block[:, rows * 8 :]
    return _checked(header, taken, rest, values, qualities)


def _checked(
    header: dict[str, object],
    columns: tuple[str, ...],
    rest: memoryview,
    values: NDArray[np.float64],
    qualities: NDArray[np.uint8],
) -> Samples:
    if values.size:
        if qualities.max() > BAD:
            raise InvalidMessageError("telemetry frame has an unknown quality")
        if np.isinf(values).any():
            raise InvalidMessageError("telemetry frame has an infinite value")
    rows = values.shape[1]
    offsets = np.frombuffer(rest[: rows * 4], dtype="<i4").astype(np.int64)
    times = _count(header["first_ns"], 2**62) + offsets * 1_000_000
    if rows and int(times.min()) < 0:
        raise InvalidMessageError("telemetry frame has a time before 1970")
    site, session, stream = _text(header["site"]), _text(header["session"]), _text(header["stream"])
    return Samples(site, session, stream, _count(header["sequence"], 2**62), columns, times, values, qualities)


_KINDS = {MAGIC + b"C": _plain, MAGIC + b"D": _samples}


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise InvalidMessageError("telemetry header has a wrong text")
    return value


def _count(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidMessageError("telemetry header has a wrong number")
    return value
