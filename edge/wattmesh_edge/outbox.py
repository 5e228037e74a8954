"""What was measured and is not yet known to be safe in the cloud, on disk.

Each cycle's row goes at once into an open segment file (one ``write``: a killed process loses nothing of it); every few rows
the segment becomes a batch in SQLite (WAL, synchronous FULL: a power cut loses at most the open segment, at most
``batch_rows`` cycles). A batch is forgotten when the cloud has acknowledged it, never before, but for the bounds.

Bounds, and what goes first: measurements older than ``keep_days`` than what is newest go, whatever room there is; past
``keep_bytes`` the oldest measurements go, and records (energies, decisions, events) only when no measurement is left, as they are
few and worth more. What goes is counted. Age is reckoned against the middle of the newest batches' own times: a clock that jumps,
or a gateway that starts without one, drops nothing.

What is acknowledged is deleted on a thread, with a connection of its own: its commits and checkpoints never hold up a cycle.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import struct
import threading
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns, encode_records

POINTS, RECORDS = "points", "records"
_DAY_NS = 86_400 * 1_000_000_000
_DROPPED_AT_ONCE = 100
_NEWEST = 101
"""Batches whose middle time says what is now."""
_OPEN_AT_MOST = 600
"""Rows that are kept in memory while the database takes none; their segment file has them all."""
_LOCK_S = 5.0
_ROW = struct.Struct("<II")
"""Length and CRC-32 of what follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A batch that waits for its acknowledgement."""

    stream: str
    sequence: int
    frame: bytes


class Outbox:
    """Durable queue of one gateway.

    Args:
        folder: Its files.
        site_id: Whose batches these are.
        session: Of the gateway, for the batches made from now on.
        columns: ``asset_id.point_id`` of each sample column.
        batch_rows: Rows of a batch.
        keep_bytes: Bound on disk.
        keep_days: Bound on age.
        sealed: Called after each new batch: something live waits.
    """

    def __init__(
        self,
        folder: Path,
        site_id: str,
        session: str,
        columns: Sequence[str],
        *,
        batch_rows: int = 10,
        keep_bytes: int = 2_000_000_000,
        keep_days: float = 30.0,
        sealed: Callable[[], None] = lambda: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._site = site_id
        self._session = session
        self._columns = tuple(columns)
        self._batch_rows = batch_rows
        self._keep_bytes = keep_bytes
        self._keep_ns = round(keep_days * _DAY_NS)
        self.on_sealed = sealed
        self._db = _open_database(folder / "outbox.sqlite")
        self._side = _open_side(folder / "outbox.sqlite")
        self._side_lock = threading.Lock()
        self._waiting = int(self._db.execute("SELECT COUNT(*) FROM batches").fetchone()[0])
        self._unsealed = 0
        self._lost_open = 0
        """Samples that went while the database took none, not yet counted in it."""
        self._rows: list[bytes] = []
        self._lines: list[bytes] = []
        self._segment_bytes = 0
        self.torn = 0
        self._sequence = {POINTS: self._count("next.points"), RECORDS: self._count("next.records")}
        self._recover()
        self._segment = os.open(folder / "open.segment", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._write_segment_head()

    # -- measuring

    def add_row(self, time_ns: int, values: Iterable[array[float]], qualities: Iterable[bytes | bytearray]) -> None:
        """Keep one cycle's samples; ``values`` and ``qualities`` come device by device, in the order of the columns."""
        body = struct.pack("<q", time_ns) + b"".join(map(bytes, values)) + b"".join(map(bytes, qualities))
        self._append(b"P" + body)
        self._rows.append(body)
        if len(self._rows) > _OPEN_AT_MOST:
            del self._rows[0]
            self._lost_open += len(self._columns)
        self._unsealed += 1
        if self._unsealed >= self._batch_rows:
            self._unsealed = 0  # where it fails, the next try comes after as many rows again
            self.seal()

    def add_record(self, line: bytes) -> None:
        """Keep one record (:func:`wattmesh_a2a.codec.record_line`)."""
        self._append(b"R" + line)
        self._lines.append(line)

    def _append(self, body: bytes) -> None:
        """One whole entry or none: a short write (disk full) is taken back, so that later entries stay readable."""
        entry = _ROW.pack(len(body), zlib.crc32(body)) + body
        written = os.write(self._segment, entry)
        if written != len(entry):
            os.ftruncate(self._segment, self._segment_bytes)
            raise OSError(errno.ENOSPC, "the disk took a part of an entry only")
        self._segment_bytes += written

    def seal(self) -> None:
        """Make batches of what is open, durable on return."""
        if not self._rows and not self._lines:
            return
        self._seal(self._columns, self._session, self._rows, self._lines)
        self._rows, self._lines, self._lost_open = [], [], 0
        os.ftruncate(self._segment, 0)
        self._segment_bytes = 0
        self._write_segment_head()
        self.on_sealed()

    def _seal(self, columns: tuple[str, ...], session: str, rows: list[bytes], lines: list[bytes]) -> None:
        """One transaction: the batches, the counters, and the sequence numbers that must never come again."""
        before = dict(self._sequence)
        try:
            self._seal_whole(columns, session, rows, lines)
        except BaseException:
            self._sequence = before  # nothing of it is there: the numbers are to be used
            raise
        self._waiting += sum(self._sequence.values()) - sum(before.values())

    def _seal_whole(self, columns: tuple[str, ...], session: str, rows: list[bytes], lines: list[bytes]) -> None:
        with self._db:
            if self._lost_open:
                self._set(f"dropped.{POINTS}", self._count(f"dropped.{POINTS}") + self._lost_open)
            for first in range(0, len(rows), self._batch_rows):
                some = rows[first : first + self._batch_rows]
                batch = _columns_of(self._site, session, self._sequence[POINTS], columns, some)
                self._insert(POINTS, encode_columns(batch), batch.records, batch.times_ns[-1])
            if lines:
                records = RecordBatch(
                    site_id=self._site,
                    session=session,
                    stream=RECORDS,
                    sequence=self._sequence[RECORDS],
                    lines=tuple(lines),
                )
                newest = struct.unpack_from("<q", rows[-1])[0] if rows else 0
                self._insert(RECORDS, encode_records(records), records.records, newest)
            # What the segment holds is in the database now: a crash before its truncation must not store it twice.
            self._set("segment.sealed", self._set_number + 1)

    def _insert(self, stream: str, frame: bytes, records: int, time_ns: int) -> None:
        sequence = self._sequence[stream]
        self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (stream, sequence, frame, records, time_ns))
        self._sequence[stream] = sequence + 1
        self._set(f"next.{stream}", sequence + 1)
        self._db.execute(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (f"measured.{stream}", records),
        )

    # -- the segment

    @property
    def _set_number(self) -> int:
        return self._count("segment.sealed")

    def _write_segment_head(self) -> None:
        head = {"number": self._set_number + 1, "columns": self._columns, "session": self._session}
        self._append(b"H" + json.dumps(head).encode())

    def _recover(self) -> None:
        """Seal what a crash left open; a torn tail is cut and counted."""
        path = self._folder / "open.segment"
        if not path.exists():
            return
        content = path.read_bytes()
        bodies, self.torn = _bodies(content)
        if not bodies or bodies[0][:1] != b"H":
            return
        head = json.loads(bodies[0][1:])
        if head["number"] != self._set_number + 1:
            return  # sealed already: the crash came before the truncation
        rows = [body[1:] for body in bodies if body[:1] == b"P"]
        lines = [body[1:] for body in bodies if body[:1] == b"R"]
        if rows or lines:
            self._seal(tuple(head["columns"]), head["session"], rows, lines)

    # -- delivering

    def pending(
        self, limit: int, newest_first: bool = True, skip: frozenset[tuple[str, int]] = frozenset()
    ) -> list[Pending]:
        """Batches that wait, live ones first, without those in ``skip``."""
        order = "DESC" if newest_first else "ASC"
        names = self._db.execute(
            f"SELECT stream, sequence, rowid FROM batches ORDER BY rowid {order} LIMIT ?",  # noqa: S608 - two constants
            (limit + len(skip),),
        ).fetchall()
        found = []
        for stream, sequence, rowid in [one for one in names if (one[0], one[1]) not in skip][:limit]:
            row = self._db.execute("SELECT frame FROM batches WHERE rowid = ?", (rowid,)).fetchone()
            if row is not None:  # acknowledged in this very moment
                found.append(Pending(stream=stream, sequence=sequence, frame=row[0]))
        return found

    def held(self, stream: str, first: int, last: int, limit: int = 1000) -> list[int]:
        """Which of a run of sequences wait here, at most ``limit``."""
        rows = self._db.execute(
            "SELECT sequence FROM batches WHERE stream = ? AND sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?",
            (stream, first, last, limit),
        )
        return [sequence for (sequence,) in rows]

    def acknowledge(self, stream: str, sequences: Iterable[int]) -> None:
        """Forget batches that are safe; unknown ones were forgotten before. Thread-safe: it may be run beside the event loop.

        Not synced: a power cut that undoes it makes a batch be sent again, which the cloud takes for what it is.
        """
        numbers = [(stream, number) for number in sequences]
        with self._side_lock:
            before = self._side.total_changes
            with self._side:
                self._side.executemany("DELETE FROM batches WHERE stream = ? AND sequence = ?", numbers)
            self._waiting -= self._side.total_changes - before

    def bound(self) -> int:
        """Drop what is beyond the bounds, a part at a time; returns how many batches, which are counted as dropped for good."""
        rows = self._beyond_age() or self._beyond_size()
        if not rows:
            return 0
        lost: Counter[str] = Counter()
        with self._db:
            for rowid, stream, records in rows:
                if self._db.execute("DELETE FROM batches WHERE rowid = ?", (rowid,)).rowcount:
                    lost[stream] += records
                    self._waiting -= 1
            for stream, records in lost.items():
                self._set(f"dropped.{stream}", self._count(f"dropped.{stream}") + records)
        return len(rows)

    def _beyond_age(self) -> list[tuple[int, str, int]]:
        """The oldest measurements, where they are too old; against a time that no jump of the clock moves."""
        newest = self._db.execute(
            "SELECT time_ns FROM batches WHERE stream = ? ORDER BY rowid DESC LIMIT ?", (POINTS, _NEWEST)
        ).fetchall()
        if len(newest) < _NEWEST:
            return []
        limit_ns = sorted(newest)[_NEWEST // 2][0] - self._keep_ns
        oldest = self._oldest(POINTS)
        return [row[:3] for row in oldest if 0 < row[3] < limit_ns]

    def _beyond_size(self) -> list[tuple[int, str, int]]:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        if (pages - free) * size <= self._keep_bytes:
            return []
        return [row[:3] for row in self._oldest(POINTS) or self._oldest(RECORDS)]

    def _oldest(self, stream: str) -> list[tuple[int, str, int, int]]:
        return self._db.execute(
            "SELECT rowid, stream, records, time_ns FROM batches WHERE stream = ? ORDER BY sequence LIMIT ?",
            (stream, _DROPPED_AT_ONCE),
        ).fetchall()

    # -- counting

    def waiting(self) -> int:
        """How many batches wait."""
        return self._waiting

    def counters(self) -> dict[str, int]:
        """Records measured and dropped a stream, since the gateway was installed."""
        rows = self._db.execute("SELECT name, value FROM counts WHERE name NOT LIKE 'next.%'")
        return {name: int(value) for name, value in rows}

    def _count(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM counts WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO counts VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Seal what is open and release the files."""
        self.seal()
        os.close(self._segment)
        with self._side_lock:
            self._side.close()
        self._db.close()


def _open_database(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=_LOCK_S)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=4000")  # else the other connection's matter: this one never waits for it
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS batches"
                " (stream TEXT, sequence INTEGER, frame BLOB, records INTEGER, time_ns INTEGER NOT NULL DEFAULT 0,"
                " UNIQUE (stream, sequence))"
            )
            if "time_ns" not in {row[1] for row in db.execute("PRAGMA table_info(batches)")}:  # of an older version
                db.execute("ALTER TABLE batches ADD COLUMN time_ns INTEGER NOT NULL DEFAULT 0")
            db.execute("CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID")
    except sqlite3.Error as error:
        raise UnavailableError(f"{path}: {error}") from error
    return db


def _open_side(path: Path) -> sqlite3.Connection:
    """The connection that deletes: used by one thread at a time, never by two."""
    db = sqlite3.connect(path, timeout=_LOCK_S, check_same_thread=False)
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA cache_size=-512")
    return db


def _bodies(content: bytes) -> tuple[list[bytes], int]:
    """Whole entries of a segment, and how many bytes of a torn one follow."""
    bodies, at = [], 0
    while at + _ROW.size <= len(content):
        length, crc = _ROW.unpack_from(content, at)
        body = content[at + _ROW.size : at + _ROW.size + length]
        if len(body) < length or zlib.crc32(body) != crc:
            break
        bodies.append(body)
        at += _ROW.size + length
    return bodies, len(content) - at


def _columns_of(site: str, session: str, sequence: int, columns: tuple[str, ...], rows: list[bytes]) -> ColumnBatch:
    """Rows of (time, values, qualities) turned into columns."""
    count = len(columns)
    times = array("q")
    flat = array("d")
    qualities = []
    for row in rows:
        times.frombytes(row[:8])
        flat.frombytes(row[8 : 8 + 8 * count])
        qualities.append(row[8 + 8 * count :])
    return ColumnBatch(
        site_id=site,
        session=session,
        stream=POINTS,
        sequence=sequence,
        columns=columns,
        times_ns=times,
        values=tuple(flat[index::count] for index in range(count)),
        qualities=tuple(bytes(row[index] for row in qualities) for index in range(count)),
    )
