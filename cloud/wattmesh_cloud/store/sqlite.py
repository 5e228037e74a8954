"""The seven tables in one SQLite file: durable on return (WAL, synchronous FULL), samples as packed batches."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, decode, encode_columns, encode_records

from wattmesh_cloud.store.base import Item, Series, Table

_NS = 1_000_000_000

FrameRow = tuple[str, str, int, int, int, int, bytes]
"""Site, stream, sequence, first and last time (UTC ns), number of records, frame."""

_ROWS = "SELECT time_ns, id, data FROM items WHERE tbl = ? AND partition = ? AND time_ns >= ? AND time_ns < ?"
_OLDEST_FIRST = _ROWS + " ORDER BY time_ns, id LIMIT ?"
_NEWEST_FIRST = _ROWS + " ORDER BY time_ns DESC, id DESC LIMIT ?"


class SqliteStore:
    """See :class:`wattmesh_cloud.store.base.Store`. One writer at a time, a connection a reading thread.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._local = threading.local()
        self._writing = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        db = self._connection()
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS batches (site TEXT, stream TEXT, sequence INTEGER, first_ns INTEGER,"
                " last_ns INTEGER, records INTEGER, frame BLOB, PRIMARY KEY (site, stream, sequence))"
            )
            db.execute("CREATE INDEX IF NOT EXISTS batches_by_time ON batches (site, stream, last_ns)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS items (tbl TEXT, partition TEXT, time_ns INTEGER, id TEXT, data TEXT,"
                " PRIMARY KEY (tbl, partition, time_ns, id)) WITHOUT ROWID"
            )

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            try:
                db = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
            except sqlite3.Error as error:
                raise UnavailableError(f"{self._path}: {error}") from error
            self._local.db = db
            self._connections.append(db)
        return db

    def append(self, batches: Sequence[ColumnBatch | RecordBatch], items: Mapping[Table, Sequence[Item]]) -> int:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._writing:
            db = self._connection()
            with db:
                new = sum(_insert(db, _row_of(batch)) for batch in batches)
                for table, members in items.items():
                    _put(db, table, members)
        return new

    def append_frames(self, frames: Sequence[tuple[FrameRow, Sequence[tuple[Table, Item]]]]) -> list[bool]:
        """As :meth:`append`, for batches whose frames are at hand, each with the rows derived from it.

        Returns:
            For each frame whether it was new. One that was not changes nothing, its derived rows included.
        """
        new = []
        with self._writing:
            db = self._connection()
            with db:
                items: dict[Table, list[Item]] = defaultdict(list)
                for row, derived in frames:
                    new.append(_insert(db, row))
                    if new[-1]:
                        for table, item in derived:
                            items[table].append(item)
                for table, members in items.items():
                    _put(db, table, members)
        return new

    def put(self, table: Table, items: Sequence[Item]) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._writing:
            db = self._connection()
            with db:
                _put(db, table, items)

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
        """See :class:`wattmesh_cloud.store.base.Store`."""
        rows = self._connection().execute(
            _NEWEST_FIRST if newest_first else _OLDEST_FIRST,
            (table, partition, start_ns, end_ns, limit),
        )
        return [Item(partition=partition, time_ns=time, id=name, data=json.loads(data)) for time, name, data in rows]

    def partitions(self, table: Table) -> list[str]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        rows = self._connection().execute("SELECT DISTINCT partition FROM items WHERE tbl = ? ORDER BY 1", (table,))
        return [partition for (partition,) in rows]

    def samples(
        self, site_id: str, columns: Sequence[str], start_ns: int, end_ns: int, *, step_s: int | None = None
    ) -> list[Series]:
        """See :class:`wattmesh_cloud.store.base.Store`; a step without a good value has none (and no row)."""
        frames = self._connection().execute(
            "SELECT frame FROM batches WHERE site = ? AND stream = 'points' AND last_ns >= ? AND first_ns < ?"
            " ORDER BY first_ns",
            (site_id, start_ns, end_ns),
        )
        found: dict[str, list[tuple[int, float, int]]] = {column: [] for column in columns}
        for (frame,) in frames:
            batch = decode(frame)
            if not isinstance(batch, ColumnBatch):
                continue
            places = {name: index for index, name in enumerate(batch.columns)}
            for column in columns:
                index = places.get(column)
                if index is not None:
                    found[column] += [
                        row
                        for row in zip(batch.times_ns, batch.values[index], batch.qualities[index], strict=True)
                        if start_ns <= row[0] < end_ns
                    ]
        return [_series(column, sorted(set(rows)), step_s) for column, rows in found.items()]

    def sequences(self, site_id: str, stream: str) -> tuple[int, int]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        row = self._connection().execute(
            "SELECT COUNT(*), COALESCE(SUM(records), 0) FROM batches WHERE site = ? AND stream = ?", (site_id, stream)
        )
        count, records = row.fetchone()
        return int(count), int(records)

    def streams(self) -> list[tuple[str, str]]:
        """Every (site, stream) that has batches."""
        return self._connection().execute("SELECT DISTINCT site, stream FROM batches ORDER BY 1, 2").fetchall()

    def close(self) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        for db in self._connections:
            db.close()
        self._connections.clear()
        self._local = threading.local()


def _insert(db: sqlite3.Connection, row: FrameRow) -> bool:
    """Whether the batch was new; a known one is left as it is."""
    return db.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount == 1


def _put(db: sqlite3.Connection, table: Table, items: Sequence[Item]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)",
        [
            (
                table,
                item.partition,
                item.time_ns,
                item.id,
                json.dumps(item.data, separators=(",", ":"), allow_nan=False),
            )
            for item in items
        ],
    )


def _row_of(batch: ColumnBatch | RecordBatch) -> FrameRow:
    if isinstance(batch, ColumnBatch):
        first, last = (batch.times_ns[0], batch.times_ns[-1]) if batch.times_ns else (0, 0)
        frame = encode_columns(batch)
    else:
        first = last = 0
        frame = encode_records(batch)
    return batch.site_id, batch.stream, batch.sequence, first, last, batch.records, frame


def _series(column: str, rows: Sequence[tuple[int, float, int]], step_s: int | None) -> Series:
    if step_s is None:
        return Series(
            column=column,
            times_ns=array("q", [time for time, _, _ in rows]),
            values=array("d", [value for _, value, _ in rows]),
            qualities=bytes(quality for _, _, quality in rows),
        )
    step = step_s * _NS
    sums: dict[int, tuple[float, int]] = {}
    for time, value, quality in rows:
        if quality < 2 and not math.isnan(value):
            total, count = sums.get(time - time % step, (0.0, 0))
            sums[time - time % step] = (total + value, count + 1)
    return Series(
        column=column,
        times_ns=array("q", sums),
        values=array("d", [total / count for total, count in sums.values()]),
        qualities=bytes(len(sums)),
    )
