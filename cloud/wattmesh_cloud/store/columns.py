"""What every store does with samples: cut to a window, means of steps, and rolled-up chunks (count, sum, least, most a bucket)."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattmesh_cloud.frames import BAD, Samples
from wattmesh_cloud.store.base import Series

NS = 1_000_000_000
HOUR_NS, DAY_NS = 3600 * NS, 86_400 * NS

Floats = NDArray[np.float64]
Column = tuple[NDArray[np.int64], Floats, NDArray[np.uint8]]
"""Times, values and qualities of one point."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Buckets of one span of time; every matrix is columns × buckets, and a bucket without a good value counts 0."""

    start_ns: int
    step_s: int
    columns: tuple[str, ...]
    count: Floats
    total: Floats
    least: Floats
    most: Floats

    @property
    def buckets(self) -> int:
        """How many there are."""
        return int(self.count.shape[1])


def empty_chunk(start_ns: int, span_ns: int, step_s: int, columns: Sequence[str]) -> Chunk:
    """A chunk in which nothing is counted."""
    shape = (len(columns), span_ns // (step_s * NS))
    zero = np.zeros(shape)
    return Chunk(start_ns, step_s, tuple(columns), zero, zero.copy(), np.full(shape, np.inf), np.full(shape, -np.inf))


def roll(batches: Iterable[Samples], start_ns: int, span_ns: int, step_s: int) -> Chunk:
    """The chunk of one span from raw batches: good and uncertain values count, the same value of a time counts once."""
    columns, parts = _joined(batches, None, start_ns, start_ns + span_ns)
    chunk = empty_chunk(start_ns, span_ns, step_s, columns)
    for index, part in enumerate(parts):
        times, values, qualities = distinct(part)
        good = (qualities < BAD) & ~np.isnan(values)
        places, values = (times[good] - start_ns) // (step_s * NS), values[good]
        np.add.at(chunk.count[index], places, 1.0)
        np.add.at(chunk.total[index], places, values)
        np.minimum.at(chunk.least[index], places, values)
        np.maximum.at(chunk.most[index], places, values)
    return chunk


def merged(one: Chunk, two: Chunk) -> Chunk:
    """Both counted together; they have the same span and step."""
    names = list(dict.fromkeys([*one.columns, *two.columns]))
    whole = empty_chunk(one.start_ns, one.buckets * one.step_s * NS, one.step_s, names)
    for part in (one, two):
        rows = [names.index(name) for name in part.columns]
        whole.count[rows] += part.count
        whole.total[rows] += part.total
        whole.least[rows] = np.minimum(whole.least[rows], part.least)
        whole.most[rows] = np.maximum(whole.most[rows], part.most)
    return whole


def coarser(parts: Sequence[Chunk], start_ns: int, span_ns: int, step_s: int) -> Chunk:
    """One chunk of a larger step out of finer ones inside its span."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    whole = empty_chunk(start_ns, span_ns, step_s, names)
    for part in parts:
        rows = np.array([names.index(name) for name in part.columns], dtype=np.int64)[:, None]
        moments = part.start_ns + np.arange(part.buckets) * part.step_s * NS
        places = ((moments - start_ns) // (step_s * NS))[None, :]
        np.add.at(whole.count, (rows, places), part.count)
        np.add.at(whole.total, (rows, places), part.total)
        np.minimum.at(whole.least, (rows, places), part.least)
        np.maximum.at(whole.most, (rows, places), part.most)
    return whole


def pack(chunk: Chunk) -> Iterator[tuple[str, bytes]]:
    """Each point that counts anything, with its count, total, least and most as compressed doubles."""
    cube = np.stack((chunk.count, chunk.total, chunk.least, chunk.most), axis=1).astype("<f8")
    for index, name in enumerate(chunk.columns):
        if cube[index, 0].any():
            yield name, zlib.compress(cube[index].tobytes(), 1)


def unpack(start_ns: int, step_s: int, points: Iterable[tuple[str, bytes]]) -> Chunk:
    """The chunk of points as :func:`pack` made them."""
    held = [(name, np.frombuffer(zlib.decompress(data), dtype="<f8").reshape(4, -1)) for name, data in points]
    names, cube = tuple(name for name, _ in held), np.stack([one for _, one in held])
    return Chunk(start_ns, step_s, names, cube[:, 0], cube[:, 1], cube[:, 2], cube[:, 3])


def _joined(
    batches: Iterable[Samples], wanted: Sequence[str] | None, start_ns: int, end_ns: int
) -> tuple[tuple[str, ...], list[Column]]:
    """Per wanted column (all where none are named) what the batches hold of it in the window, in order of arrival."""
    held: dict[str, list[Column]] = {name: [] for name in wanted or ()}
    places: dict[tuple[str, ...], dict[str, int]] = {}
    for batch in batches:
        inside = (batch.times_ns >= start_ns) & (batch.times_ns < end_ns)
        if not inside.any():
            continue
        whole = bool(inside.all())
        times = batch.times_ns if whole else batch.times_ns[inside]
        where = places.setdefault(batch.columns, {name: index for index, name in enumerate(batch.columns)})
        for name in batch.columns if wanted is None else held:
            index = where.get(name)
            if index is not None:
                values, qualities = batch.values[index], batch.qualities[index]
                part = (times, values, qualities) if whole else (times, values[inside], qualities[inside])
                held.setdefault(name, []).append(part)
    return tuple(held), [concatenated(parts) for parts in held.values()]


def concatenated(parts: Sequence[Column]) -> Column:
    """One column after the other."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0), np.empty(0, np.uint8)
    return (
        np.concatenate([times for times, _, _ in parts]),
        np.concatenate([values for _, values, _ in parts]),
        np.concatenate([qualities for _, _, qualities in parts]),
    )


def distinct(column: Column) -> Column:
    """In order of time; what is there twice in all its parts is kept once."""
    times, values, qualities = column
    if len(times) < 2 or bool((np.diff(times) > 0).all()):
        return column
    bits = np.ascontiguousarray(values).view(np.int64)
    order = np.lexsort((qualities, bits, times))
    times, values, qualities, bits = times[order], values[order], qualities[order], bits[order]
    other = np.ones(len(times), dtype=bool)
    other[1:] = (np.diff(times) != 0) | (np.diff(bits) != 0) | (qualities[1:] != qualities[:-1])
    return times[other], values[other], qualities[other]


def raw_columns(batches: Iterable[Samples], wanted: Sequence[str], start_ns: int, end_ns: int) -> list[Column]:
    """Each wanted point's samples in the window, in order, without repeats."""
    return [distinct(part) for part in _joined(batches, wanted, start_ns, end_ns)[1]]


Sums = tuple[NDArray[np.int64], Floats, Floats]
"""Starts of steps, counts and totals."""


def sums_of(column: Column, step_s: int) -> Sums:
    """Count and total of the good values in each aligned step that has one."""
    times, values, qualities = column
    good = (qualities < BAD) & ~np.isnan(values)
    times, values = times[good], values[good]
    starts, inverse = np.unique(times - times % (step_s * NS), return_inverse=True)
    count: Floats = np.bincount(inverse, np.ones(len(values)), len(starts)).astype(np.float64)
    total: Floats = np.bincount(inverse, values, len(starts)).astype(np.float64)
    return starts, count, total


def added(parts: Sequence[Sums], step_s: int) -> Sums:
    """Sums of finer steps put together in steps of ``step_s``."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    times = np.concatenate([one[0] for one in parts])
    starts, inverse = np.unique(times - times % (step_s * NS), return_inverse=True)
    count: Floats = np.bincount(inverse, np.concatenate([one[1] for one in parts]), len(starts)).astype(np.float64)
    total: Floats = np.bincount(inverse, np.concatenate([one[2] for one in parts]), len(starts)).astype(np.float64)
    return starts, count, total


def packed_sums(parts: Sequence[tuple[int, bytes]], step_s: int, start_ns: int, end_ns: int) -> Sums:
    """One point's counted buckets that begin in the window, from the starts and the packed bytes of its chunks."""
    if not parts:
        return added([], step_s)
    cube = np.stack([np.frombuffer(zlib.decompress(data), dtype="<f8").reshape(4, -1) for _, data in parts])
    starts = np.array([start for start, _ in parts], dtype=np.int64)[:, None]
    moments = (starts + np.arange(cube.shape[2]) * step_s * NS).ravel()
    count, total = cube[:, 0].ravel(), cube[:, 1].ravel()
    kept = (count > 0) & (moments >= start_ns) & (moments < end_ns)
    return moments[kept], count[kept], total[kept]


def series_of(name: str, column: Column) -> Series:
    """Samples as the interface hands them out."""
    times, values, qualities = column
    return Series(
        column=name,
        times_ns=array("q", times.astype("<i8").tobytes()),
        values=array("d", values.astype("<f8").tobytes()),
        qualities=qualities.tobytes(),
    )


def mean_series(name: str, sums: Sums) -> Series:
    """Means of steps as the interface hands them out."""
    starts, count, total = sums
    return series_of(name, (starts, total / np.maximum(count, 1.0), np.zeros(len(starts), np.uint8)))
