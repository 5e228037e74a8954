"""One SQLite file for all that the agents remember: decisions, approvals, the switch, budgets, conversations, what was learned.

Other processes (the command line) may open the same file: every reader looks into it and nothing is cached, so a switch that is
thrown anywhere holds at the next look everywhere.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import UnavailableError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions(
  id TEXT PRIMARY KEY, time_ns INTEGER NOT NULL, agent TEXT NOT NULL, subject TEXT NOT NULL, session TEXT NOT NULL,
  record TEXT NOT NULL, outcome TEXT);
CREATE INDEX IF NOT EXISTS decisions_by_subject ON decisions(subject, time_ns);
CREATE INDEX IF NOT EXISTS decisions_by_time ON decisions(time_ns);
CREATE INDEX IF NOT EXISTS decisions_by_session ON decisions(session, time_ns);
CREATE TABLE IF NOT EXISTS approvals(
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, origin TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
  proposal TEXT NOT NULL, reason TEXT NOT NULL, made_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, state TEXT NOT NULL,
  decided_ns INTEGER, actor TEXT, note TEXT NOT NULL DEFAULT '', decision TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS approvals_by_state ON approvals(state, made_ns);
CREATE TABLE IF NOT EXISTS switch(
  name TEXT PRIMARY KEY, off INTEGER NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL, time_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spent(
  agent TEXT NOT NULL, day INTEGER NOT NULL, tokens INTEGER NOT NULL, cost_micros INTEGER NOT NULL, calls INTEGER NOT NULL,
  PRIMARY KEY(agent, day));
CREATE TABLE IF NOT EXISTS rates(key TEXT NOT NULL, time_ns INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS rates_by_key ON rates(key, time_ns);
CREATE TABLE IF NOT EXISTS turns(
  conversation TEXT NOT NULL, number INTEGER NOT NULL, time_ns INTEGER NOT NULL, speaker TEXT NOT NULL, listener TEXT NOT NULL,
  what TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY(conversation, number));
CREATE INDEX IF NOT EXISTS turns_by_time ON turns(time_ns);
CREATE TABLE IF NOT EXISTS arms(
  subject TEXT NOT NULL, parameter TEXT NOT NULL, value REAL NOT NULL, count INTEGER NOT NULL, mean REAL NOT NULL,
  squares REAL NOT NULL,  PRIMARY KEY(subject, parameter, value));
CREATE TABLE IF NOT EXISTS frozen(
  subject TEXT NOT NULL, parameter TEXT NOT NULL, actor TEXT NOT NULL, time_ns INTEGER NOT NULL,
  PRIMARY KEY(subject, parameter));
"""
_DAY_NS = 86_400 * 1_000_000_000


class Database:
    """A connection that threads may share; each write is one transaction.

    Args:
        path: The file; its folder is made.

    Raises:
        UnavailableError: By every method, where the disk or another process does not let it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.OperationalError as error:
                raise UnavailableError(f"the agents' memory: {error}") from error

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._open() as connection:
            return connection.execute(query, values).fetchall()

    def write(self, *statements: tuple[str, Sequence[Any]]) -> int:
        """Make changes, all or none; how many rows the last statement changed."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                changed = 0
                for statement, values in statements:
                    changed = connection.execute(statement, values).rowcount
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return changed

    def forget(self, now_ns: int, *, days: int, most: int) -> None:
        """Keep this many days of decisions, conversations and closed approvals, and at most so many of each."""
        before = now_ns - days * _DAY_NS
        self.write(
            ("DELETE FROM decisions WHERE time_ns < ?", (before,)),
            ("DELETE FROM turns WHERE time_ns < ?", (before,)),
            ("DELETE FROM approvals WHERE made_ns < ? AND state != 'waiting'", (before,)),
            ("DELETE FROM rates WHERE time_ns < ?", (now_ns - 2 * _DAY_NS,)),
            ("DELETE FROM spent WHERE day < ?", (before // _DAY_NS,)),
            (
                "DELETE FROM decisions WHERE time_ns < (SELECT time_ns FROM decisions ORDER BY time_ns DESC LIMIT 1 OFFSET ?)",
                (most,),
            ),
            (
                "DELETE FROM turns WHERE time_ns < (SELECT time_ns FROM turns ORDER BY time_ns DESC LIMIT 1 OFFSET ?)",
                (most,),
            ),
        )

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._connection.close()
