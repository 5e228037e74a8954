"""What could not be understood, answered or delivered, kept within bounds until somebody looks at it.

Two directions: ``out``, a request of ours that expired without an answer; ``in``, a message that was dropped. Payloads are kept
whole up to a bound, so that ``wattmesh messages replay`` can send them again; a flood of wrong messages costs no more than a
few writes a second.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.lanes import TokenBucket

_PAYLOAD_AT_MOST = 100_000
_PER_S, _BURST = 5.0, 200.0
_COLUMNS = "number, time_ns, direction, cause, type, peer, topic, payload, replays"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them."""

    number: int
    time_ns: int
    direction: str
    """``in`` or ``out``."""
    cause: str
    type: str
    peer: str
    topic: str
    payload: bytes
    """Empty when it was too large to keep."""
    replays: int
    """How often it was sent again."""


class DeadLetters:
    """A bounded store on disk; the oldest make room.

    Args:
        path: The file.
        most: How many are kept.
        most_bytes: How large all payloads together may be.
    """

    def __init__(self, path: Path, *, most: int = 1000, most_bytes: int = 5_000_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._most, self._most_bytes = most, most_bytes
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS dead (number INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL,"
            " direction TEXT NOT NULL, cause TEXT NOT NULL, type TEXT NOT NULL, peer TEXT NOT NULL, topic TEXT NOT NULL,"
            " payload BLOB NOT NULL, replays INTEGER NOT NULL DEFAULT 0)"
        )
        count, size = self._db.execute("SELECT COUNT(*), COALESCE(SUM(LENGTH(payload)), 0) FROM dead").fetchone()
        self._count, self._size = int(count), int(size)
        self._pace: TokenBucket | None = None
        self.not_kept = 0
        """How many came too fast to be kept."""

    def keep(
        self, time_ns: int, direction: str, cause: str, *, type_name: str, peer: str, topic: str, payload: bytes
    ) -> None:
        """Keep one; what comes in faster than a few a second is only counted."""
        if self._pace is None:
            self._pace = TokenBucket(_PER_S, _BURST, asyncio.get_running_loop().time)
        if not self._pace.try_take():
            self.not_kept += 1
            return
        if len(payload) > _PAYLOAD_AT_MOST:
            payload = b""
        row = (time_ns, direction, cause[:200], type_name[:200], peer[:200], topic[:256], payload)
        self._db.execute(
            "INSERT INTO dead (time_ns, direction, cause, type, peer, topic, payload) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )
        self._count += 1
        self._size += len(payload)
        while self._count > self._most or self._size > self._most_bytes:
            number, size = self._db.execute("SELECT number, LENGTH(payload) FROM dead ORDER BY number").fetchone()
            self._db.execute("DELETE FROM dead WHERE number = ?", (number,))
            self._count -= 1
            self._size -= int(size)

    def all(self) -> list[DeadLetter]:
        """The newest first."""
        return [DeadLetter(*row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM dead ORDER BY number DESC")]  # noqa: S608

    def get(self, number: int) -> DeadLetter:
        """One of them; raises :class:`InvalidMessageError` when there is none of this number."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM dead WHERE number = ?", (number,)).fetchone()  # noqa: S608
        if row is None:
            raise InvalidMessageError(f"there is no dead letter {number}")
        return DeadLetter(*row)

    def replayed(self, number: int) -> None:
        """It was sent again."""
        self._db.execute("UPDATE dead SET replays = replays + 1 WHERE number = ?", (number,))

    def close(self) -> None:
        """Release the file."""
        self._db.close()
