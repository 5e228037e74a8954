"""What was already answered: the receiver's memory that turns at-least-once into exactly-once in effect.

Three ways for a handler, by what a crash between its effect and its stored answer may do:

- *idempotent*: a repetition is handled again; nothing is stored.
- *recorded*: ``begin`` is written before the handler runs and the answer after it. A repetition that finds a beginning
  without an answer comes after a crash: the handler's ``after_crash`` says what became of it.
- *transactional*: effect and answer are one commit in this store's database (:meth:`DedupeStore.transaction`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from wattmesh_a2a.clock import NS_PER_S

KEEP_AFTER_EXPIRY_NS = 86_400 * NS_PER_S
"""Answers are kept this long beyond their request's expiry: a sender that was away may still ask what became of it."""


class DedupeStore(Protocol):
    """Answers by (requester, message id), kept until nobody can ask for them any more."""

    def get(self, key: str) -> bytes | None:
        """The stored answer, or none."""
        ...

    def begun(self, key: str) -> bool:
        """Whether a handler began this request and no answer was stored: the process ended in between."""
        ...

    def begin(self, key: str, expires_ns: int) -> None:
        """Say, durably, that a handler begins."""
        ...

    def put(self, key: str, answer: bytes, expires_ns: int) -> None:
        """Keep an answer; it survives what the store survives."""
        ...

    def transaction(self) -> AbstractContextManager[sqlite3.Connection | None]:
        """Everything in the body, :meth:`put` included, is committed together or not at all."""
        ...

    def latest(self, stream: str) -> tuple[str, int, int] | None:
        """Session, sequence and time of the newest message of a stream that took effect."""
        ...

    def set_latest(self, stream: str, session: str, sequence: int, time_ns: int) -> None:
        """See :meth:`latest`."""
        ...

    def forget_before(self, now_ns: int) -> None:
        """Drop what expired before ``now_ns`` (UTC)."""
        ...

    async def settled(self, *, at_once: bool = False) -> None:
        """Return when all that was put so far survives what the store survives.

        With ``at_once`` nothing else is about to be put, so that waiting for company is of no use.
        """
        ...


class MemoryDedupe:
    """For processes that need no memory across restarts, and for tests."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[bytes | None, int]] = {}
        self._latest: dict[str, tuple[str, int, int]] = {}

    def get(self, key: str) -> bytes | None:
        """See :class:`DedupeStore`."""
        found = self._answers.get(key)
        return found[0] if found else None

    def begun(self, key: str) -> bool:
        """See :class:`DedupeStore`."""
        found = self._answers.get(key)
        return found is not None and found[0] is None

    def begin(self, key: str, expires_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._answers.setdefault(key, (None, expires_ns))

    def put(self, key: str, answer: bytes, expires_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._answers[key] = (answer, expires_ns)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See :class:`DedupeStore`; undoes what the body stored here when it raises."""
        answers, latest = dict(self._answers), dict(self._latest)
        try:
            yield None
        except BaseException:
            self._answers, self._latest = answers, latest
            raise

    def latest(self, stream: str) -> tuple[str, int, int] | None:
        """See :class:`DedupeStore`."""
        return self._latest.get(stream)

    def set_latest(self, stream: str, session: str, sequence: int, time_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._latest[stream] = (session, sequence, time_ns)

    async def settled(self, *, at_once: bool = False) -> None:
        """See :class:`DedupeStore`."""

    def forget_before(self, now_ns: int) -> None:
        """See :class:`DedupeStore`."""
        for key in [key for key, (_, expires) in self._answers.items() if expires < now_ns]:
            del self._answers[key]


class SqliteDedupe:
    """Survives a killed process.

    What is put in one turn of the event loop is committed together (:meth:`settled`): with many requests at once a commit is most
    of what each of them costs. Outside a loop each is committed at once.

    Args:
        path: The file; a handler's own tables may stand in it (:meth:`transaction`).
        durable: Also survives a power cut (``synchronous=FULL``: a wait for the disk an answer). Without it a power cut may
            forget the last answers, and their transactional effects with them.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._group: asyncio.Future[None] | None = None
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS outcomes (key TEXT PRIMARY KEY, answer BLOB, expires_ns INTEGER NOT NULL)"
            " WITHOUT ROWID"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS outcomes_expire ON outcomes (expires_ns)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS latest (stream TEXT PRIMARY KEY, session TEXT NOT NULL, sequence INTEGER NOT NULL,"
            " time_ns INTEGER NOT NULL) WITHOUT ROWID"
        )

    @property
    def connection(self) -> sqlite3.Connection:
        """For a handler's own tables."""
        return self._db

    def get(self, key: str) -> bytes | None:
        """See :class:`DedupeStore`."""
        row = self._db.execute("SELECT answer FROM outcomes WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row and row[0] is not None else None

    def begun(self, key: str) -> bool:
        """See :class:`DedupeStore`."""
        row = self._db.execute("SELECT answer IS NULL FROM outcomes WHERE key = ?", (key,)).fetchone()
        return bool(row and row[0])

    def _begin_group(self) -> None:
        """Commit at the next turn of the loop what is written from here on."""
        if self._group is not None or self._db.in_transaction:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._group = loop.create_future()
        loop.call_soon(self._end_group, self._group)

    def _end_group(self, group: asyncio.Future[None] | None = None) -> None:
        """Commit; whoever waits for it learns of a failure, too."""
        found = self._group
        if found is None or (group is not None and group is not found):
            return
        self._group = None
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if not found.done():
                found.set_exception(error)
            found.exception()  # looked at, also where nobody waits
            return
        if not found.done():
            found.set_result(None)

    async def settled(self, *, at_once: bool = False) -> None:
        """See :class:`DedupeStore`; raises ``sqlite3.Error`` when the disk did not take it."""
        group = self._group
        if group is not None:
            if at_once:
                self._end_group()
            await asyncio.shield(group)

    def begin(self, key: str, expires_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._begin_group()
        self._db.execute("INSERT OR IGNORE INTO outcomes VALUES (?, NULL, ?)", (key, expires_ns))

    def put(self, key: str, answer: bytes, expires_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._begin_group()
        self._db.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (key, answer, expires_ns))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """See :class:`DedupeStore`."""
        self._end_group()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def latest(self, stream: str) -> tuple[str, int, int] | None:
        """See :class:`DedupeStore`."""
        row = self._db.execute("SELECT session, sequence, time_ns FROM latest WHERE stream = ?", (stream,)).fetchone()
        return (str(row[0]), int(row[1]), int(row[2])) if row else None

    def set_latest(self, stream: str, session: str, sequence: int, time_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._begin_group()
        self._db.execute("INSERT OR REPLACE INTO latest VALUES (?, ?, ?, ?)", (stream, session, sequence, time_ns))

    def forget_before(self, now_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._db.execute("DELETE FROM outcomes WHERE expires_ns < ?", (now_ns,))

    def close(self) -> None:
        """Release the file."""
        self._end_group()
        self._db.close()
