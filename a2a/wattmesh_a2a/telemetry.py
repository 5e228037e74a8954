"""Telemetry batches: self-describing columns, compressed; and lines of JSON for records that are not samples.

Frame: magic ``WM1``, kind byte, zlib-compressed body. All bodies (little endian) begin with the header's length (u32) and the
header as JSON (site, session, stream, sequence). Body of records (``R``): JSON lines.

Body of columns (``D``): the header also has the row count, the first time, the column names and ``modes``, a letter a column.
Then per row the time offset in ms (i32); column by column the quality bytes; the decimal columns' values as whole numbers, as
differences from the row before (i32, the first from 0), the bytes of equal weight together; the other columns' values as f64.
Measured values are whole numbers times a power of ten, which a double hides from a compressor: modes ``0`` to ``4`` mean the
number divided by 10 to that power, ``a`` to ``d`` times 0.1 to 0.0001, ``x`` a double. A mode is taken only where it gives back
every value exactly; a value whose quality is bad is NaN in every mode.

Kind ``C``, of the first version, is still read: f64 values and quality bytes column by column, no modes.

The header's ``sequence`` with (site, stream) is the identity of a batch: it never repeats, whatever restarts.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wattmesh_a2a.errors import InvalidMessageError

try:
    from wattmesh_a2a import columnar
except ImportError:  # where nothing was compiled (a function's zip), the same in Python
    columnar = None  # type: ignore[assignment]

MAGIC = b"WM1"
_PLAIN, _COLUMNS, _RECORDS = b"C", b"D", b"R"
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


MODES: dict[str, tuple[bool, float]] = {
    **{str(power): (False, 10.0**power) for power in range(5)},
    "a": (True, 0.1),
    "b": (True, 0.01),
    "c": (True, 0.001),
    "d": (True, 0.0001),
}
"""Mode → whether to multiply (else divide), and by what."""
RAW = "x"
_BAD = 2
_MOST_NUMBER = 2.0**31 - 1


def encode_columns(batch: ColumnBatch) -> bytes:
    """The frame of a batch of samples."""
    first, rows = batch.times_ns[0] if batch.times_ns else 0, len(batch.times_ns)
    values, qualities = b"".join(batch.values), b"".join(batch.qualities)
    if columnar is not None and rows and len(values) == 8 * len(qualities) == 8 * rows * len(batch.columns):
        modes, shuffled, raw = columnar.pack(values, qualities, rows)
    else:
        modes, shuffled, raw = _pack(batch)
    more: dict[str, Sequence[str] | int] = {"columns": batch.columns, "rows": rows, "first_ns": first}
    header = _header(batch, {**more, "modes": modes})
    offsets = array("i", [(t - first) // 1_000_000 for t in batch.times_ns])
    parts = (struct.pack("<I", len(header)), header, offsets.tobytes(), qualities, shuffled, raw)
    return MAGIC + _COLUMNS + zlib.compress(b"".join(parts), 6)


def _pack(batch: ColumnBatch) -> tuple[str, bytes, bytes]:
    """As :func:`columnar.pack`."""
    rows, plain, raw = len(batch.times_ns), _plain_numbers(batch), []
    modes: list[str] = []
    numbers: list[int] = []
    for at, (values, quality) in enumerate(zip(batch.values, batch.qualities, strict=True)):
        found = plain[at] if plain else None
        if found is not None:
            modes.append("0")
            numbers += found
            continue
        mode, decimals = _whole(values) if _BAD not in quality else _decimal(values, quality)
        modes.append(mode)
        if mode == RAW:
            raw.append(values.tobytes())
        else:
            numbers += decimals
    flat = _differences(numbers, rows).tobytes()
    return "".join(modes), b"".join(flat[place::4] for place in range(4)), b"".join(raw)


def _plain_numbers(batch: ColumnBatch) -> list[list[int] | None]:
    """The numbers of each column that are whole as they stand, all columns in one go; empty where that is no way to look.

    Most columns are states, counters and whole watts, and a step for each of many short columns costs more than its numbers.
    """
    rows = len(batch.times_ns)
    if not rows or any(_BAD in quality for quality in batch.qualities):
        return []
    flat = array("d", b"".join(batch.values)).tolist()  # what fits end to end in memory is the values, one by one
    if len(flat) != rows * len(batch.values) or not -math.inf < sum(flat) < math.inf:
        return []
    if max(map(abs, flat), default=0.0) > _MOST_NUMBER:
        return []
    numbers = list(map(int, flat))
    return [
        found if (found := numbers[at : at + rows]) == flat[at : at + rows] else None
        for at in range(0, len(flat), rows)
    ]


def _whole(values: array[float]) -> tuple[str, list[int]]:
    """As :func:`_decimal` for a column of good values, a list at a time: nearly all columns are of this kind."""
    good = values.tolist()
    largest = max(map(abs, good), default=0.0)
    if not -math.inf < sum(good) < math.inf:
        return RAW, []
    for mode, (times, factor) in MODES.items():
        if (largest / factor if times else largest * factor) > _MOST_NUMBER:
            return _decimal(values, bytes(len(values)))
        if good and not _is_exact(good[0], times, factor):
            continue
        if factor == 1.0:
            numbers = list(map(round, good))
            again: list[Any] = numbers
        elif times:
            numbers = [round(value / factor) for value in good]
            again = [number * factor for number in numbers]
        else:
            numbers = [round(value * factor) for value in good]
            again = [number / factor for number in numbers]
        if again == good:
            return mode, numbers
    return RAW, []


def _is_exact(value: float, times: bool, factor: float) -> bool:
    number = round(value / factor if times else value * factor)
    return (number * factor if times else number / factor) == value


def _differences(numbers: list[int], rows: int) -> array[int]:
    """From the row before, the first of each column from 0; modulo 2³² where they are too large."""
    differences = [*numbers[:1], *map(operator.sub, numbers[1:], numbers)]
    for at in range(0, len(numbers), rows or 1):
        differences[at] = numbers[at]
    try:
        return array("i", differences)
    except OverflowError:
        return array("i", [(difference + 2**31) % 2**32 - 2**31 for difference in differences])


def _decimal(values: array[float], quality: bytes) -> tuple[str, list[int]]:
    """The mode that gives back every value exactly, with its whole numbers; :data:`RAW` where none does."""
    good = [value for value, bad in zip(values, quality, strict=True) if bad != _BAD]
    if len(good) < len(values) and any(
        bad == _BAD and value == value for value, bad in zip(values, quality, strict=True)
    ):
        return RAW, []
    for mode, (times, factor) in MODES.items():
        numbers = []
        for value in good:
            scaled = value / factor if times else value * factor
            if not -_MOST_NUMBER <= scaled <= _MOST_NUMBER:  # NaN and infinity neither
                return RAW, []
            number = round(scaled)
            if (number * factor if times else number / factor) != value:
                break
            numbers.append(number)
        else:
            if len(good) == len(values):
                return mode, numbers
            rest = iter(numbers)
            return mode, [0 if bad == _BAD else next(rest) for bad in quality]
    return RAW, []


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
        if frame[3:4] == _PLAIN:
            return _decode_plain(identity, header, rest)
    except (zlib.error, struct.error, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"telemetry frame is damaged: {error}") from error
    raise InvalidMessageError("telemetry frame of an unknown kind")


class _Identity(NamedTuple):
    site: str
    session: str
    stream: str
    sequence: int


def _shape(header: dict[str, object]) -> tuple[tuple[str, ...], int, int]:
    """Column names, rows and first time."""
    names = header["columns"]
    if not isinstance(names, list) or len(names) > _MAX_COLUMNS:
        raise InvalidMessageError("telemetry frame has too many columns")
    return tuple(_text(name) for name in names), _count(header["rows"], _MAX_ROWS), _count(header["first_ns"], 2**62)


def _decode_columns(identity: _Identity, header: dict[str, object], rest: memoryview) -> ColumnBatch:
    columns, rows, first = _shape(header)
    modes = _text_of_modes(header["modes"], len(columns))
    decimals = len(modes) - modes.count(RAW)
    if len(rest) != rows * (4 + len(columns) + 4 * decimals + 8 * (len(columns) - decimals)):
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    at = rows * 4
    qualities = tuple(bytes(rest[at + rows * index : at + rows * (index + 1)]) for index in range(len(columns)))
    at += rows * len(columns)
    shuffled = bytes(rest[at : at + 4 * rows * decimals])
    at += len(shuffled)
    measured = [quality for mode, quality in zip(modes, qualities, strict=True) if mode != RAW]
    kept, taken = _unpack(shuffled, measured, modes.replace(RAW, ""), rows), 0
    values: list[array[float]] = []
    for mode in modes:
        column = array("d")
        if mode == RAW:
            column.frombytes(rest[at : at + 8 * rows])
            at += 8 * rows
        else:
            column.frombytes(kept[taken : taken + 8 * rows])
            taken += 8 * rows
        values.append(column)
    return _batch(identity, columns, _times(first, rest[: rows * 4]), values, qualities)


def _unpack(shuffled: bytes, qualities: Sequence[bytes], modes: str, rows: int) -> bytes:
    """The doubles of the columns in decimal modes, end to end."""
    if columnar is not None:
        return columnar.unpack(shuffled, b"".join(qualities), modes, rows)
    flat = bytearray(len(shuffled))
    for place in range(4):
        flat[place::4] = shuffled[place * rows * len(modes) : (place + 1) * rows * len(modes)]
    differences = array("i")
    differences.frombytes(flat)
    column = array("d")
    for index, (mode, quality) in enumerate(zip(modes, qualities, strict=True)):
        column.extend(_measured(differences[index * rows : (index + 1) * rows], mode))
        for row, bad in enumerate(quality if _BAD in quality else b""):
            if bad == _BAD:
                column[index * rows + row] = math.nan
    return column.tobytes()


def _measured(differences: array[int], mode: str) -> Iterable[float]:
    """The values of a column in a decimal mode."""
    try:
        numbers = array("i", itertools.accumulate(differences))
    except OverflowError:  # a difference was too large for 32 bits
        wrapped = [(number + 2**31) % 2**32 - 2**31 for number in itertools.accumulate(differences)]
        numbers = array("i", wrapped)
    times, factor = MODES[mode]
    if factor == 1.0:
        return numbers.tolist()
    return [number * factor for number in numbers] if times else [number / factor for number in numbers]


def _decode_plain(identity: _Identity, header: dict[str, object], rest: memoryview) -> ColumnBatch:
    columns, rows, first = _shape(header)
    if len(rest) != rows * 4 + len(columns) * rows * 9:
        raise InvalidMessageError("telemetry frame's length does not fit its header")
    at = rows * 4
    values: list[array[float]] = []
    qualities: list[bytes] = []
    for _ in columns:
        column = array("d")
        column.frombytes(rest[at : at + rows * 8])
        at += rows * 8
        qualities.append(bytes(rest[at : at + rows]))
        at += rows
        values.append(column)
    return _batch(identity, columns, _times(first, rest[: rows * 4]), values, tuple(qualities))


def _times(first: int, raw: memoryview) -> array[int]:
    offsets = array("i")
    offsets.frombytes(raw)
    return array("q", [first + offset * 1_000_000 for offset in offsets])


def _batch(
    identity: _Identity,
    columns: tuple[str, ...],
    times: array[int],
    values: list[array[float]],
    qualities: tuple[bytes, ...],
) -> ColumnBatch:
    if any(quality and max(quality) > _BAD for quality in qualities):
        raise InvalidMessageError("telemetry frame has an unknown quality")
    # A sum is finite where every value is: one look at a column, two where values are bad.
    if any(not -math.inf < sum(column) < math.inf and any(map(math.isinf, column)) for column in values):
        raise InvalidMessageError("telemetry frame has an infinite value")
    return ColumnBatch(
        site_id=identity.site,
        session=identity.session,
        stream=identity.stream,
        sequence=identity.sequence,
        columns=columns,
        times_ns=times,
        values=tuple(values),
        qualities=qualities,
    )


def _text_of_modes(value: object, count: int) -> str:
    if not isinstance(value, str) or len(value) != count or not set(value) <= {*MODES, RAW}:
        raise InvalidMessageError("telemetry header has wrong modes")
    return value


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
