"""One interface for the seven tables; SQLite embedded, DynamoDB on AWS."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch

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


class Store(Protocol):
    """Durable storage of the cloud. Calls block: callers on an event loop use a thread."""

    def append(self, batches: Sequence[ColumnBatch | RecordBatch], items: Mapping[Table, Sequence[Item]]) -> int:
        """Store batches and the rows derived from them in one transaction, durable on return.

        A batch whose (site, stream, sequence) is known is skipped, and so it counts once however often it arrives.

        Returns:
            How many of the batches were new.
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

    def close(self) -> None:
        """Release files; what was durable stays so."""
        ...
