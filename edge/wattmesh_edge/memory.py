"""What the cloud and the grid have told a gateway, kept over a restart: strategy, forecasts, dispatches, market rules."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

from wattmesh_a2a.codec import parse_record, record_line
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import Message

log = logging.getLogger(__name__)


@contextlib.contextmanager
def durably(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that a power cut after its end cannot undo, in a database whose other commits are not worth a sync each."""
    db.commit()  # the pragma is refused inside a transaction
    db.execute("PRAGMA synchronous=FULL")
    try:
        with db:
            yield
    finally:
        db.execute("PRAGMA synchronous=NORMAL")


class Memory:
    """Messages on disk, each under a name, until they are over.

    Args:
        db: The gateway's database.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS kept (kind TEXT, name TEXT, line BLOB NOT NULL, ends_ns INTEGER NOT NULL,"
                " PRIMARY KEY (kind, name)) WITHOUT ROWID"
            )

    def keep(self, kind: str, name: str, message: Message, ends_ns: int) -> None:
        """Keep a message in the place of an earlier one of the same name; durable on return, so that it may be acknowledged.

        Args:
            kind: What it is for whoever asks again.
            name: Which of its kind.
            message: The message.
            ends_ns: UTC from which on it says nothing.
        """
        with durably(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", (kind, name, record_line(message), ends_ns)
            )

    def recall(self, kind: str, now_ns: int) -> dict[str, Message]:
        """What is kept of a kind and not over, by name; what cannot be read any more (an older version's) is left out and said."""
        found: dict[str, Message] = {}
        for name, line in self._db.execute(
            "SELECT name, line FROM kept WHERE kind = ? AND ends_ns > ?", (kind, now_ns)
        ):
            try:
                found[name] = parse_record(bytes(line))
            except InvalidMessageError as error:
                log.warning("%s %s that was kept cannot be read (%s); the site goes on without it", kind, name, error)
        return found

    def prune(self, now_ns: int) -> None:
        """Forget what is over."""
        self._db.execute("DELETE FROM kept WHERE ends_ns <= ?", (now_ns,))
