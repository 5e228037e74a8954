"""Requests whose outcome their sender must learn, whatever restarts: kept until then."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pending:
    """A durable request under way."""

    id: str
    destination: str
    payload: bytes
    """As it goes out each time: the same bytes, the same signature."""
    expires_ns: int


class OutgoingStore(Protocol):
    """Keeps :class:`Pending` requests."""

    def add(self, pending: Pending) -> None:
        """Before it is sent for the first time."""
        ...

    def remove(self, request_id: str) -> None:
        """After its outcome was handed over."""
        ...

    def pending(self) -> list[Pending]:
        """What is under way, the oldest first."""
        ...


class MemoryOutgoing:
    """For tests: survives what its owner survives."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}

    def add(self, pending: Pending) -> None:
        """See :class:`OutgoingStore`."""
        self._pending[pending.id] = pending

    def remove(self, request_id: str) -> None:
        """See :class:`OutgoingStore`."""
        self._pending.pop(request_id, None)

    def pending(self) -> list[Pending]:
        """See :class:`OutgoingStore`."""
        return list(self._pending.values())


class SqliteOutgoing:
    """On disk; survives a killed process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS outgoing (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL,"
            " destination TEXT NOT NULL, payload BLOB NOT NULL, expires_ns INTEGER NOT NULL)"
        )

    def add(self, pending: Pending) -> None:
        """See :class:`OutgoingStore`."""
        self._db.execute(
            "INSERT OR REPLACE INTO outgoing (id, destination, payload, expires_ns) VALUES (?, ?, ?, ?)",
            (pending.id, pending.destination, pending.payload, pending.expires_ns),
        )

    def remove(self, request_id: str) -> None:
        """See :class:`OutgoingStore`."""
        self._db.execute("DELETE FROM outgoing WHERE id = ?", (request_id,))

    def pending(self) -> list[Pending]:
        """See :class:`OutgoingStore`."""
        rows = self._db.execute("SELECT id, destination, payload, expires_ns FROM outgoing ORDER BY number")
        return [Pending(*row) for row in rows]

    def close(self) -> None:
        """Release the file."""
        self._db.close()
