"""One interface for the seven tables; SQLite embedded, DynamoDB on AWS."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns, encode_records

from wattmesh_cloud.frames import Samples

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


class Table(StrEnum):
    """The seven tables (SPEC C1)."""

    ENERGY_METRICS = "energy-metrics"
    MARKET_DATA = "market-data"
    FORECAST_DATA = "forecast-data"
    PRODUCER_METRICS = "producer-metrics"
    CONSUMER_METRICS = "consumer-metrics"
    GRID_METRICS = "grid-metrics"
    TRADE_DATA = "trade-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row. (table, partition, time_ns, id) is its identity; writing it again replaces it."""

    partition: str
    """What it is about: ``{site}`` or ``{site}#{aspect}`` or ``{area}#{aspect}``."""
    time_ns: int
    """UTC the row is about (a slot's start, an event's time)."""
    id: str
    """Distinguishes rows of the same time: a type name, a trade id."""
    data: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Samples of one point, as columns."""

    column: str
    times_ns: array[int]
    values: array[float]
    qualities: bytes


FrameRow = tuple[str, str, int, int, int, int, bytes]
"""Site, stream, sequence, first and last time (UTC ns), number of records, frame."""

Derived = Sequence[tuple[Table, Item]]
"""Rows that stand or fall with the frame they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long what is kept. The lake keeps all of it for good."""

    frames_s: int = 7 * 86_400
    """Samples as they were measured (1 s), and records as they were told."""
    minutes_s: int = 31 * 86_400
    quarters_s: int = 10 * 366 * 86_400
    """Means of 15 min."""
    lateness_s: int = 120
    """An hour is rolled up this long after its end; what comes later rolls it up again."""


def frame_row(batch: ColumnBatch | RecordBatch) -> FrameRow:
    """The row of a batch whose frame is not at hand."""
    if isinstance(batch, ColumnBatch):
        first, last = (min(batch.times_ns), max(batch.times_ns)) if batch.times_ns else (0, 0)
        return batch.site_id, batch.stream, batch.sequence, first, last, batch.records, encode_columns(batch)
    return batch.site_id, batch.stream, batch.sequence, 0, 0, batch.records, encode_records(batch)


class Followed(Protocol):
    """What a store adds for a process that hands on what others store."""

    def stored_since(self, cursor: int, limit: int) -> tuple[int, list[Samples | RecordBatch]]:
        """Batches that became durable after ``cursor``, in that order, at most ``limit``, and the cursor behind them."""
        ...

    def followed(self) -> int:
        """The cursor noted last; 0 at first."""
        ...

    def note_followed(self, cursor: int) -> None:
        """Keep the cursor, durable on return."""
        ...


class Store(Protocol):
    """Durable storage of the cloud. Calls block: callers on an event loop use a thread.

    Writing raises :class:`wattmesh_a2a.errors.UnavailableError` where trying again may help (nothing of the call is stored),
    and :class:`ValueError` for what can never be stored.
    """

    def append(self, batches: Sequence[ColumnBatch | RecordBatch], items: Mapping[Table, Sequence[Item]]) -> int:
        """Store batches and the rows derived from them in one transaction, durable on return.

        A batch whose (site, stream, sequence) is known is skipped, and so it counts once however often it arrives.

        Returns:
            How many of the batches were new.
        """
        ...

    def append_frames(self, frames: Sequence[tuple[FrameRow, Derived]]) -> list[bool]:
        """As :meth:`append`, for batches whose frames are at hand, each with the rows derived from it.

        Returns:
            For each frame whether it was new. One that was not changes nothing, its derived rows included.
        """
        ...

    def put(self, table: Table, items: Sequence[Item]) -> None:
        """Write or replace rows, all or none, durable on return."""
        ...

    def query(
        self,
        table: Table,
        partition: str,
        start_ns: int,
        end_ns: int,
        *,
        limit: int = 1000,
        newest_first: bool = False,
    ) -> list[Item]:
        """Rows of one partition with ``start_ns <= time_ns < end_ns`` in order of time and id."""
        ...

    def partitions(self, table: Table) -> list[str]:
        """All partitions that have rows."""
        ...

    def samples(
        self, site_id: str, columns: Sequence[str], start_ns: int, end_ns: int, *, step_s: int | None = None
    ) -> list[Series]:
        """Samples of a site's points; with ``step_s`` the mean of good values in each aligned step."""
        ...

    def sequences(self, site_id: str, stream: str) -> tuple[int, int]:
        """Number of stored batches and of stored records of a stream."""
        ...

    def streams(self) -> list[tuple[str, str]]:
        """Every (site, stream) that has batches."""
        ...

    def gaps(self, site_id: str, stream: str) -> list[tuple[int, int]]:
        """Ranges (first, last) of sequences that are missing between stored ones, oldest first, at most 1000."""
        ...

    def held(self, site_id: str, stream: str, first: int, last: int) -> list[int]:
        """Which sequences of a run (both ends with it) are stored, in order, at most 1000."""
        ...

    def maintain(self, now_ns: int) -> None:
        """Roll up closed hours and forget what the retention says; what a late batch has touched is done again.

        Samples whose day is still due for the lake (:meth:`days_due`) are not forgotten.
        """
        ...

    def days_due(self, before_ns: int) -> list[tuple[str, int, int]]:
        """Site, start and version of every day (UTC) over by ``before_ns`` whose samples the lake does not have."""
        ...

    def raw(self, site_id: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None) -> Iterator[Samples]:
        """Stored batches that touch a window, as they were measured; of all points or of some."""
        ...

    def day_done(self, site_id: str, day_ns: int, version: int) -> None:
        """The lake has this version of a day; one that a late batch has touched since stays due."""
        ...

    def record_days_due(self, before_ns: int) -> list[tuple[str, int, int]]:
        """As :meth:`days_due`, of records, by the day in which they came."""
        ...

    def raw_records(self, site_id: str, start_ns: int, end_ns: int) -> Iterator[tuple[int, RecordBatch]]:
        """Stored batches of records that came in a window, with the time at which they came, in order."""
        ...

    def record_day_done(self, site_id: str, day_ns: int, version: int) -> None:
        """As :meth:`day_done`, of records."""
        ...

    def close(self) -> None:
        """Release files; what was durable stays so."""
        ...


class FollowedStore(Store, Followed, Protocol):
    """A store with what :meth:`wattmesh_cloud.ingest.Ingest.follow` needs."""
