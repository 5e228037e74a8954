"""What was already answered: the receiver's memory that turns at-least-once into exactly-once in effect."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Protocol


class DedupeStore(Protocol):
    """Answers by (requester, message id), kept until the request can no longer arrive."""

    def get(self, key: str) -> bytes | None:
        """The stored answer, or none."""
        ...

    def put(self, key: str, answer: bytes, expires_ns: int) -> None:
        """Keep an answer; it survives what the store survives."""
        ...

    def forget_before(self, now_ns: int) -> None:
        """Drop what expired before ``now_ns`` (UTC)."""
        ...


class MemoryDedupe:
    """For processes that need no memory across restarts, and for tests."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[bytes, int]] = {}

    def get(self, key: str) -> bytes | None:
        """See :class:`DedupeStore`."""
        found = self._answers.get(key)
        return found[0] if found else None

    def put(self, key: str, answer: bytes, expires_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._answers[key] = (answer, expires_ns)

    def forget_before(self, now_ns: int) -> None:
        """See :class:`DedupeStore`."""
        for key in [key for key, (_, expires) in self._answers.items() if expires < now_ns]:
            del self._answers[key]


class SqliteDedupe:
    """Survives a killed process (WAL, NORMAL: a power cut may forget the last answers; effects are idempotent below)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer BLOB NOT NULL, expires_ns INTEGER NOT NULL)"
            " WITHOUT ROWID"
        )

    def get(self, key: str) -> bytes | None:
        """See :class:`DedupeStore`."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row else None

    def put(self, key: str, answer: bytes, expires_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, answer, expires_ns))

    def forget_before(self, now_ns: int) -> None:
        """See :class:`DedupeStore`."""
        self._db.execute("DELETE FROM answers WHERE expires_ns < ?", (now_ns,))

    def close(self) -> None:
        """Release the file."""
        self._db.close()
