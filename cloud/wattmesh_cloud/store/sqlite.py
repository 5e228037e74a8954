"""The seven tables in one SQLite file: durable on return (WAL, synchronous FULL), samples as packed batches.

A group of frames, the rows derived from them and the note which hours they touch are one transaction: a process killed at any
point has all of them or none. Everything else (means of a minute and of 15 min, the lake) is made from the frames afterwards,
again and again if need be, and so it never needs to be exact at the moment of a crash. Several processes may write.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch

from wattmesh_cloud.frames import Samples, decode_frame
from wattmesh_cloud.store import columns as col
from wattmesh_cloud.store.base import Derived, FrameRow, Item, Retention, Series, Table, frame_row

POINTS, RECORDS = "points", "records"
_MINUTE_S, _QUARTER_S = 60, 900
_SPANS = {_MINUTE_S: col.HOUR_NS, _QUARTER_S: col.DAY_NS}
_PRUNE_AT_ONCE = 2000
_MOST_ROWS = 10_000

_ROWS = "SELECT time_ns, id, data FROM items WHERE tbl = ? AND partition = ? AND time_ns >= ? AND time_ns < ?"
_OLDEST_FIRST = _ROWS + " ORDER BY time_ns, id LIMIT ?"
_NEWEST_FIRST = _ROWS + " ORDER BY time_ns DESC, id DESC LIMIT ?"
_INSERT = (
    "INSERT OR IGNORE INTO batches SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS"
    " (SELECT 1 FROM forgotten WHERE site = ?1 AND stream = ?2 AND first <= ?3 AND last >= ?3)"
)
_GAPS = (
    "WITH held AS (SELECT sequence AS first, sequence AS last FROM batches WHERE site = ?1 AND stream = ?2"
    " UNION ALL SELECT first, last FROM forgotten WHERE site = ?1 AND stream = ?2)"
    " SELECT last + 1, next - 1 FROM (SELECT last, LEAD(first) OVER (ORDER BY first) AS next FROM held)"
    " WHERE next > last + 1 ORDER BY 1 LIMIT 1000"
)
_TOUCH = "VALUES (?, ?, 1) ON CONFLICT (site, start) DO UPDATE SET version = version + 1"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS batches (site TEXT, stream TEXT, sequence INTEGER, first_ns INTEGER,"
    " last_ns INTEGER, records INTEGER, frame BLOB, PRIMARY KEY (site, stream, sequence))",
    "CREATE INDEX IF NOT EXISTS batches_by_time ON batches (site, stream, last_ns)",
    # Runs of sequences whose frames the retention has taken: they still count, and never come in again.
    "CREATE TABLE IF NOT EXISTS forgotten (site TEXT, stream TEXT, first INTEGER, last INTEGER, records INTEGER,"
    " PRIMARY KEY (site, stream, first)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS items (tbl TEXT, partition TEXT, time_ns INTEGER, id TEXT, data TEXT,"
    " PRIMARY KEY (tbl, partition, time_ns, id)) WITHOUT ROWID",
    # A point's buckets of one hour (of a minute each) or one day (of 15 min): a long window of few points is one scan.
    "CREATE TABLE IF NOT EXISTS chunks (site TEXT, step_s INTEGER, point TEXT, start INTEGER, data BLOB,"
    " PRIMARY KEY (site, step_s, point, start)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS chunks_by_start ON chunks (step_s, start, site)",
    # Hours to be rolled up and days to go to the lake, each with a count of the changes since.
    "CREATE TABLE IF NOT EXISTS hours (site TEXT, start INTEGER, version INTEGER, PRIMARY KEY (site, start)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS days (site TEXT, start INTEGER, version INTEGER, PRIMARY KEY (site, start)) WITHOUT ROWID",
    # Batches that came for hours whose frames are gone: added to the means instead of replacing them.
    "CREATE TABLE IF NOT EXISTS late (site TEXT, start INTEGER, sequence INTEGER, PRIMARY KEY (site, start, sequence))"
    " WITHOUT ROWID",
    # Days in which records came that have to go to the lake.
    "CREATE TABLE IF NOT EXISTS record_days (site TEXT, start INTEGER, version INTEGER, PRIMARY KEY (site, start))"
    " WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID",
)


class SqliteStore:
    """See :class:`wattmesh_cloud.store.base.Store`. A connection a thread, one writer at a time, also among processes.

    Args:
        path: The file; its folder is made.
        retention: How long what is kept.
    """

    def __init__(self, path: Path, retention: Retention | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._retention = retention or Retention()
        self._local = threading.local()
        self._writing = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        with self._transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)
            if not db.execute("SELECT 1 FROM marks WHERE name = 'noted'").fetchone():
                _note_all(db)
            if not db.execute("SELECT 1 FROM marks WHERE name = 'noted_records'").fetchone():
                _note_all_records(db)
        self._watermark = self._mark("watermark")

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            try:
                db = sqlite3.connect(self._path, timeout=30, check_same_thread=False, isolation_level=None)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
            except sqlite3.Error as error:
                raise UnavailableError(f"{self._path}: {error}") from error
            self._local.db = db
            self._connections.append(db)
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end; errors as :class:`wattmesh_cloud.store.base.Store` says."""
        with self._writing:
            db = self._connection()
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise UnavailableError(f"{self._path}: {error}") from error
            except (sqlite3.Error, OverflowError) as error:
                raise ValueError(f"cannot be stored: {error}") from error
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    # -- writing

    def append(self, batches: Sequence[ColumnBatch | RecordBatch], items: Mapping[Table, Sequence[Item]]) -> int:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._transaction() as db:
            new = sum(self._insert(db, [frame_row(batch) for batch in batches]))
            for table, members in items.items():
                _put(db, table, members)
        return new

    def append_frames(self, frames: Sequence[tuple[FrameRow, Derived]]) -> list[bool]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._transaction() as db:
            new = self._insert(db, [row for row, _ in frames])
            items: dict[Table, list[Item]] = defaultdict(list)
            for (_, derived), first in zip(frames, new, strict=True):
                for table, item in derived if first else ():
                    items[table].append(item)
            for table, members in items.items():
                _put(db, table, members)
        return new

    def _insert(self, db: sqlite3.Connection, rows: Sequence[FrameRow]) -> list[bool]:
        """Which were new; known ones are left as they are."""
        new = []
        hours: set[tuple[str, int]] = set()
        told: set[tuple[str, int]] = set()
        row = db.execute("SELECT value FROM marks WHERE name = 'watermark'").fetchone()
        self._watermark = int(row[0]) if row else 0  # another process may have moved it
        for row in rows:
            new.append(db.execute(_INSERT, row).rowcount == 1)
            site, stream, sequence, first, last, records, _ = row
            if new[-1] and stream == RECORDS and records:
                told.add((site, first - first % col.DAY_NS))
            if new[-1] and stream == POINTS and records:
                touched = range(first - first % col.HOUR_NS, last + 1, col.HOUR_NS)
                hours.update((site, hour) for hour in touched)
                late = [(site, hour, sequence) for hour in touched if hour < self._watermark]
                db.executemany("INSERT OR IGNORE INTO late VALUES (?, ?, ?)", late)
        _touch(db, hours)
        db.executemany(f"INSERT INTO record_days {_TOUCH}", sorted(told))
        return new

    def put(self, table: Table, items: Sequence[Item]) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._transaction() as db:
            _put(db, table, items)

    # -- reading

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
            (table, partition, start_ns, end_ns, max(0, min(limit, _MOST_ROWS))),
        )
        return [Item(partition=partition, time_ns=time, id=name, data=json.loads(data)) for time, name, data in rows]

    def partitions(self, table: Table) -> list[str]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        rows = self._connection().execute("SELECT DISTINCT partition FROM items WHERE tbl = ? ORDER BY 1", (table,))
        return [partition for (partition,) in rows]

    def samples(
        self, site_id: str, columns: Sequence[str], start_ns: int, end_ns: int, *, step_s: int | None = None
    ) -> list[Series]:
        """See :class:`wattmesh_cloud.store.base.Store`; a step without a good value has none (and no row).

        Steps of whole minutes come from the rolled-up chunks where there are any; the rest from the frames.
        """
        if step_s is None:
            found = col.raw_columns(self.raw(site_id, start_ns, end_ns, columns), columns, start_ns, end_ns)
            return [col.series_of(name, part) for name, part in zip(columns, found, strict=True)]
        tier = next((one for one in (_QUARTER_S, _MINUTE_S) if step_s % one == 0), None)
        sums: dict[str, list[col.Sums]] = {name: [] for name in columns}
        raw = [(start_ns, end_ns)]
        if tier is not None:
            unit = tier * col.NS
            low, high = -(-start_ns // unit) * unit, end_ns - end_ns % unit
            if low < high:
                raw = [(start_ns, low), *self._rolled(site_id, tier, low, high, sums), (high, end_ns)]
        for start, end in raw:
            if start < end:
                parts = col.raw_columns(self.raw(site_id, start, end, columns), columns, start, end)
                for name, part in zip(columns, parts, strict=True):
                    sums[name].append(col.sums_of(part, tier or step_s))
        return [col.mean_series(name, col.added(parts, step_s)) for name, parts in sums.items()]

    def _rolled(
        self, site: str, tier: int, low: int, high: int, sums: dict[str, list[col.Sums]]
    ) -> list[tuple[int, int]]:
        """Take what is rolled up into ``sums``; returns the spans that have to come from the frames."""
        db = self._connection()
        hours = db.execute(
            "SELECT start FROM hours WHERE site = ? AND start > ? AND start < ? ORDER BY start",
            (site, low - col.HOUR_NS, high),
        )
        open_hours = [hour for (hour,) in hours]
        fresh = np.array([hour for hour in open_hours if hour >= self._watermark], dtype=np.int64)
        for name, into in sums.items():
            rows = db.execute(
                "SELECT start, data FROM chunks WHERE site = ? AND step_s = ? AND point = ? AND start > ? AND start < ?",
                (site, tier, name, low - _SPANS[tier], high),
            )
            times, count, total = col.packed_sums(rows.fetchall(), tier, low, high)
            kept = ~np.isin(times - times % col.HOUR_NS, fresh)
            into.append((times[kept], count[kept], total[kept]))
        return _runs((max(low, hour), min(high, hour + col.HOUR_NS)) for hour in open_hours)

    def raw(self, site_id: str, start_ns: int, end_ns: int, columns: Sequence[str] | None = None) -> Iterator[Samples]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        wanted = None if columns is None else frozenset(columns)
        frames = self._connection().execute(
            "SELECT frame FROM batches WHERE site = ? AND stream = 'points' AND last_ns >= ? AND first_ns < ?"
            " ORDER BY first_ns",
            (site_id, start_ns, end_ns),
        )
        for (frame,) in frames:
            batch = decode_frame(frame, wanted)
            if isinstance(batch, Samples):
                yield batch

    def sequences(self, site_id: str, stream: str) -> tuple[int, int]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        row = self._connection().execute(
            "SELECT COALESCE(SUM(batches), 0), COALESCE(SUM(records), 0) FROM"
            " (SELECT COUNT(*) AS batches, SUM(records) AS records FROM batches WHERE site = ?1 AND stream = ?2"
            " UNION ALL SELECT SUM(last - first + 1), SUM(records) FROM forgotten WHERE site = ?1 AND stream = ?2)",
            (site_id, stream),
        )
        count, records = row.fetchone()
        return int(count), int(records)

    def streams(self) -> list[tuple[str, str]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        query = "SELECT site, stream FROM batches UNION SELECT site, stream FROM forgotten ORDER BY 1, 2"
        return self._connection().execute(query).fetchall()

    def gaps(self, site_id: str, stream: str) -> list[tuple[int, int]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        return self._connection().execute(_GAPS, (site_id, stream)).fetchall()

    def held(self, site_id: str, stream: str, first: int, last: int) -> list[int]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        runs = self._connection().execute(
            "SELECT sequence, sequence FROM batches WHERE site = ?1 AND stream = ?2 AND sequence BETWEEN ?3 AND ?4"
            " UNION ALL SELECT first, last FROM forgotten WHERE site = ?1 AND stream = ?2 AND last >= ?3 AND first <= ?4"
            " ORDER BY 1 LIMIT 1000",
            (site_id, stream, first, last),
        )
        spans = (range(max(low, first), min(high, last) + 1) for low, high in runs)
        return list(islice(chain.from_iterable(spans), 1000))

    # -- following

    def stored_since(self, cursor: int, limit: int) -> tuple[int, list[Samples | RecordBatch]]:
        """See :class:`wattmesh_cloud.store.base.Followed`; one writer at a time numbers rows in the order of their commits."""
        db = self._connection()
        (newest,) = db.execute("SELECT COALESCE(MAX(rowid), 0) FROM batches").fetchone()
        cursor = min(cursor, newest)  # the retention has taken everything: numbers begin again
        rows = db.execute(
            "SELECT rowid, frame FROM batches WHERE rowid > ? ORDER BY rowid LIMIT ?", (cursor, limit)
        ).fetchall()
        return (rows[-1][0] if rows else cursor), [decode_frame(frame) for _, frame in rows]

    def followed(self) -> int:
        """See :class:`wattmesh_cloud.store.base.Followed`."""
        return self._mark("followed")

    def note_followed(self, cursor: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Followed`."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO marks VALUES ('followed', ?)", (cursor,))

    # -- rolling up and forgetting

    def maintain(self, now_ns: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        due = now_ns - self._retention.lateness_s * col.NS - col.HOUR_NS
        hours = self._connection().execute(
            "SELECT site, start, version FROM hours WHERE start <= ? ORDER BY start", (due,)
        )
        for site, hour, version in hours.fetchall():
            self._roll_up(site, hour, version)
        self._prune(now_ns)

    def _roll_up(self, site: str, hour: int, version: int) -> None:
        """The frames are read and counted outside the transaction; what came in between leaves the hour due."""
        batches: Iterable[Samples] = self.raw(site, hour, hour + col.HOUR_NS)
        late: set[int] | None = None
        if hour < self._watermark:
            query = "SELECT sequence FROM late WHERE site = ? AND start = ?"
            late = {sequence for (sequence,) in self._connection().execute(query, (site, hour))}
            batches = [batch for batch in batches if batch.sequence in late]
        minutes = col.roll(batches, hour, col.HOUR_NS, _MINUTE_S)
        day = hour - hour % col.DAY_NS
        quarters = col.coarser([minutes], day, col.DAY_NS, _QUARTER_S)
        with self._transaction() as db:
            gone = db.execute("DELETE FROM hours WHERE site = ? AND start = ? AND version = ?", (site, hour, version))
            if gone.rowcount != 1:
                return
            old = _chunk(db, site, _MINUTE_S, hour)
            before = _chunk(db, site, _QUARTER_S, day)
            if before is not None:
                quarters = col.merged(before if late is not None else _without(before, hour), quarters)
            if late is not None:
                minutes = minutes if old is None else col.merged(old, minutes)
                merged = [(site, hour, sequence) for sequence in late]
                db.executemany("DELETE FROM late WHERE site = ? AND start = ? AND sequence = ?", merged)
            for step, chunk in ((_MINUTE_S, minutes), (_QUARTER_S, quarters)):
                rows = [(site, step, name, chunk.start_ns, data) for name, data in col.pack(chunk)]
                db.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?)", rows)

    def _prune(self, now_ns: int) -> None:
        keep = self._retention
        horizon = now_ns - keep.frames_s * col.NS
        db = self._connection()
        for query in ("SELECT MIN(start) FROM hours", "SELECT MIN(start) FROM days"):
            (oldest,) = db.execute(query).fetchone()
            horizon = horizon if oldest is None else min(horizon, oldest)
        horizon -= horizon % col.HOUR_NS
        if horizon > self._watermark:
            with self._transaction() as writing:
                writing.execute("INSERT OR REPLACE INTO marks VALUES ('watermark', ?)", (horizon,))
            self._watermark = horizon
        if not db.execute("SELECT 1 FROM hours WHERE start < ? LIMIT 1", (self._watermark,)).fetchone():
            for site, stream in self.streams():
                while stream == POINTS and self._forget(site, stream, self._watermark):
                    pass
        (oldest,) = db.execute("SELECT MIN(start) FROM record_days").fetchone()
        told = min(now_ns - keep.frames_s * col.NS, now_ns if oldest is None else oldest)
        for site, stream in self.streams():
            while stream == RECORDS and self._forget(site, stream, told):
                pass
        with self._transaction() as writing:
            for step, seconds in ((_MINUTE_S, keep.minutes_s), (_QUARTER_S, keep.quarters_s)):
                before = now_ns - seconds * col.NS - _SPANS[step]
                writing.execute("DELETE FROM chunks WHERE step_s = ? AND start < ?", (step, before))

    def _forget(self, site: str, stream: str, before_ns: int) -> bool:
        """Take frames of before a time away and keep their sequences as runs; whether there may be more."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT sequence, records FROM batches WHERE site = ? AND stream = ? AND last_ns < ?"
                " ORDER BY last_ns LIMIT ?",
                (site, stream, before_ns, _PRUNE_AT_ONCE),
            ).fetchall()
            db.executemany(
                "DELETE FROM batches WHERE site = ? AND stream = ? AND sequence = ?",
                [(site, stream, sequence) for sequence, _ in rows],
            )
            for sequence, records in sorted(rows):
                _remember(db, site, stream, sequence, records)
        return len(rows) == _PRUNE_AT_ONCE

    def days_due(self, before_ns: int) -> list[tuple[str, int, int]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        query = "SELECT site, start, version FROM days WHERE start <= ? ORDER BY start, site"
        return self._connection().execute(query, (before_ns - col.DAY_NS,)).fetchall()

    def day_done(self, site_id: str, day_ns: int, version: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._transaction() as db:
            db.execute("DELETE FROM days WHERE site = ? AND start = ? AND version = ?", (site_id, day_ns, version))

    def record_days_due(self, before_ns: int) -> list[tuple[str, int, int]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        query = "SELECT site, start, version FROM record_days WHERE start <= ? ORDER BY start, site"
        return self._connection().execute(query, (before_ns - col.DAY_NS,)).fetchall()

    def record_day_done(self, site_id: str, day_ns: int, version: int) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        with self._transaction() as db:
            query = "DELETE FROM record_days WHERE site = ? AND start = ? AND version = ?"
            db.execute(query, (site_id, day_ns, version))

    def raw_records(self, site_id: str, start_ns: int, end_ns: int) -> Iterator[tuple[int, RecordBatch]]:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        frames = self._connection().execute(
            "SELECT last_ns, frame FROM batches WHERE site = ? AND stream = 'records' AND last_ns >= ? AND last_ns < ?"
            " ORDER BY last_ns, sequence",
            (site_id, start_ns, end_ns),
        )
        for came, frame in frames:
            batch = decode_frame(frame)
            if isinstance(batch, RecordBatch):
                yield came, batch

    def _mark(self, name: str) -> int:
        row = self._connection().execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def backup(self, target: Path) -> None:
        """A consistent copy into a new file while others read and write."""
        copy = sqlite3.connect(target)
        try:
            self._connection().backup(copy)
        except sqlite3.Error as error:
            raise UnavailableError(f"{target}: {error}") from error
        finally:
            copy.close()

    def close(self) -> None:
        """See :class:`wattmesh_cloud.store.base.Store`."""
        for db in self._connections:
            db.close()
        self._connections.clear()
        self._local = threading.local()


def _note_all(db: sqlite3.Connection) -> None:
    """A file from before hours and days were noted: all of its samples are due."""
    rows = db.execute("SELECT site, first_ns, last_ns FROM batches WHERE stream = 'points' AND records > 0")
    hours = {
        (site, hour) for site, first, last in rows for hour in range(first - first % col.HOUR_NS, last + 1, col.HOUR_NS)
    }
    _touch(db, hours)
    db.execute("INSERT INTO marks VALUES ('noted', 1)")


def _note_all_records(db: sqlite3.Connection) -> None:
    """A file from before days of records were noted."""
    rows = db.execute("SELECT DISTINCT site, first_ns FROM batches WHERE stream = 'records' AND records > 0")
    days = {(site, first - first % col.DAY_NS) for site, first in rows}
    db.executemany(f"INSERT INTO record_days {_TOUCH}", sorted(days))
    db.execute("INSERT INTO marks VALUES ('noted_records', 1)")


def _touch(db: sqlite3.Connection, hours: set[tuple[str, int]]) -> None:
    db.executemany(f"INSERT INTO hours {_TOUCH}", sorted(hours))
    days = {(site, hour - hour % col.DAY_NS) for site, hour in hours}
    db.executemany(f"INSERT INTO days {_TOUCH}", sorted(days))


def _remember(db: sqlite3.Connection, site: str, stream: str, sequence: int, records: int) -> None:
    """Add one sequence to the runs; neighbours grow together."""
    here = (site, stream)
    low = db.execute(
        "SELECT first, records FROM forgotten WHERE site = ? AND stream = ? AND last = ?", (*here, sequence - 1)
    ).fetchone()
    high = db.execute(
        "SELECT last, records FROM forgotten WHERE site = ? AND stream = ? AND first = ?", (*here, sequence + 1)
    ).fetchone()
    first, records = (low[0], records + low[1]) if low else (sequence, records)
    last, records = (high[0], records + high[1]) if high else (sequence, records)
    if high:
        db.execute("DELETE FROM forgotten WHERE site = ? AND stream = ? AND first = ?", (*here, sequence + 1))
    db.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?, ?, ?)", (*here, first, last, records))


def _chunk(db: sqlite3.Connection, site: str, step: int, start: int) -> col.Chunk | None:
    rows = db.execute(
        "SELECT point, data FROM chunks WHERE step_s = ? AND start = ? AND site = ?", (step, start, site)
    ).fetchall()
    return col.unpack(start, step, rows) if rows else None


def _without(chunk: col.Chunk, hour: int) -> col.Chunk:
    """A day's chunk with one hour uncounted."""
    at = (hour - chunk.start_ns) // (chunk.step_s * col.NS)
    places = slice(at, at + 3600 // chunk.step_s)
    parts = [np.array(part) for part in (chunk.count, chunk.total, chunk.least, chunk.most)]
    for part, nothing in zip(parts, (0.0, 0.0, np.inf, -np.inf), strict=True):
        part[:, places] = nothing
    return col.Chunk(chunk.start_ns, chunk.step_s, chunk.columns, *parts)


def _runs(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, neighbours put together."""
    runs: list[tuple[int, int]] = []
    for start, end in spans:
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


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
