"""What ingest could not take, kept to be looked at and tried again: bounded a site, so that nobody's garbage fills the disk."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wattmesh_a2a.errors import UnavailableError

_COLUMNS = "id, site, stream, sequence, kind, reason, first_ns, last_ns, times, payload"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One payload that was refused."""

    id: int
    site: str
    """Of the topic it came by."""
    stream: str
    sequence: int | None
    """Of the batch, where its header could be read and was the topic's."""
    kind: str
    """``frame``, or ``record``: one line of a batch that is stored."""
    reason: str
    first_ns: int
    last_ns: int
    times: int
    """How often it came."""
    payload: bytes


class DeadLetters:
    """A file of dead letters. Calls block.

    Args:
        path: The file; its folder is made.
        site_letters: Most letters of one site.
        site_bytes: Most bytes of one site.
    """

    def __init__(self, path: Path, *, site_letters: int = 1000, site_bytes: int = 16_000_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._site_letters, self._site_bytes = site_letters, site_bytes
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS letters (id INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT, stream TEXT,"
                " sequence INTEGER, kind TEXT, reason TEXT, first_ns INTEGER, last_ns INTEGER, times INTEGER,"
                " payload BLOB, digest BLOB, replay INTEGER DEFAULT 0, UNIQUE (site, stream, digest))"
            )
        except sqlite3.Error as error:
            raise UnavailableError(f"{path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise UnavailableError(f"dead letters: {error}") from error
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def keep(self, letters: Sequence[DeadLetter]) -> list[bool]:
        """Keep letters (their ``id`` and ``times`` are not looked at), durable on return; for each whether there was room.

        One that is there already only counts once more, and gets the newest reason.
        """
        kept = []
        with self._transaction() as db:
            for one in letters:
                digest = hashlib.sha256(one.payload).digest()
                known = db.execute(
                    "UPDATE letters SET times = times + 1, last_ns = ?, reason = ?, replay = 0"
                    " WHERE site = ? AND stream = ? AND digest = ?",
                    (one.last_ns, one.reason, one.site, one.stream, digest),
                ).rowcount
                count, size = db.execute(
                    "SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0) FROM letters WHERE site = ?", (one.site,)
                ).fetchone()
                room = count < self._site_letters and size + len(one.payload) <= self._site_bytes
                kept.append(bool(known) or room)
                if not known and room:
                    db.execute(
                        "INSERT INTO letters (site, stream, sequence, kind, reason, first_ns, last_ns, times, payload,"
                        " digest) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
                        (
                            one.site,
                            one.stream,
                            one.sequence,
                            one.kind,
                            one.reason,
                            one.first_ns,
                            one.last_ns,
                            one.payload,
                            digest,
                        ),
                    )
        return kept

    def letters(self, *, site: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """The newest letters."""
        where, values = ("WHERE site = ?", [site]) if site is not None else ("", [])
        return self._read(f"{where} ORDER BY id DESC LIMIT ?", [*values, max(0, min(limit, 10_000))])

    def marked(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest letters that somebody wants to be tried again."""
        return self._read("WHERE replay = 1 ORDER BY id LIMIT ?", [limit])

    def _read(self, rest: str, values: Sequence[object]) -> list[DeadLetter]:
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM letters {rest}", list(values)).fetchall()  # noqa: S608 - constants
        return [
            DeadLetter(
                id=name, site=site, stream=stream, sequence=sequence, kind=kind, reason=reason,
                first_ns=first, last_ns=last, times=times, payload=payload,
            )
            for name, site, stream, sequence, kind, reason, first, last, times, payload in rows
        ]  # fmt: skip

    def mark(self, ids: Sequence[int] | None = None, *, site: str | None = None) -> int:
        """Have these (else all of a site, else all) tried again by the running ingest; returns how many."""
        with self._transaction() as db:
            if ids is not None:
                cursor = db.executemany("UPDATE letters SET replay = 1 WHERE id = ?", [(name,) for name in ids])
            elif site is not None:
                cursor = db.execute("UPDATE letters SET replay = 1 WHERE site = ?", (site,))
            else:
                cursor = db.execute("UPDATE letters SET replay = 1")
            return cursor.rowcount

    def forget(self, ids: Sequence[int]) -> None:
        """Take letters away: they were taken at last, or somebody gave them up."""
        with self._transaction() as db:
            db.executemany("DELETE FROM letters WHERE id = ?", [(name,) for name in ids])

    def counts(self) -> dict[str, int]:
        """Letters a site."""
        with self._lock:
            return dict(self._db.execute("SELECT site, COUNT(*) FROM letters GROUP BY site ORDER BY site").fetchall())

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()
