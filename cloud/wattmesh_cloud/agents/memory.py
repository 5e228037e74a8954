"""What the agents remember: decisions with their reasons and what came of them, by subject and by session."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from wattmesh_cloud.agents.contract import Record
from wattmesh_cloud.agents.database import Database

_DAYS, _MOST = 90, 200_000


class Memory(Protocol):
    """Where decisions are kept. Calls block: callers on an event loop use a thread."""

    def remember(self, record: Record) -> None:
        """Keep a decision; again with the same id replaces it."""
        ...

    def outcome(self, decision: str, came_of_it: Mapping[str, Any]) -> bool:
        """Add what came of a decision; false where it is not known (any more)."""
        ...

    def recall(self, subject: str, *, agent: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """The newest decisions about a subject, newest first, each with its ``outcome``."""
        ...


class LocalMemory:
    """Decisions in SQLite.

    Args:
        database: Keeps them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember(self, record: Record) -> None:
        """See :class:`Memory`."""
        self._database.write(
            (
                "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, NULL) ON CONFLICT(id) DO UPDATE SET record = excluded.record",
                (
                    *(record.id, record.time_ns, record.agent, record.subject, record.session),
                    json.dumps(record.plain(), separators=(",", ":")),
                ),
            )
        )

    def outcome(self, decision: str, came_of_it: Mapping[str, Any]) -> bool:
        """See :class:`Memory`."""
        row = (json.dumps(dict(came_of_it), separators=(",", ":")), decision)
        return self._database.write(("UPDATE decisions SET outcome = ? WHERE id = ?", row)) > 0

    def recall(self, subject: str, *, agent: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """See :class:`Memory`."""
        more, values = ("AND agent = ?", [subject, agent]) if agent is not None else ("", [subject])
        return self._read(f"WHERE subject = ? {more} ORDER BY time_ns DESC LIMIT ?", [*values, min(limit, 1000)])

    def session(self, session: str, limit: int = 200) -> list[dict[str, Any]]:
        """A session's decisions, oldest first."""
        return self._read("WHERE session = ? ORDER BY time_ns LIMIT ?", [session, min(limit, 1000)])

    def newest(self, limit: int = 100, agent: str | None = None) -> list[dict[str, Any]]:
        """The newest decisions of all, or of one agent."""
        if agent is None:
            return self._read("ORDER BY time_ns DESC LIMIT ?", [min(limit, 1000)])
        return self._read("WHERE agent = ? ORDER BY time_ns DESC LIMIT ?", [agent, min(limit, 1000)])

    def get(self, decision: str) -> dict[str, Any] | None:
        """One decision."""
        return next(iter(self._read("WHERE id = ?", [decision])), None)

    def around(self, subject: str, time_ns: int, limit: int = 10) -> list[dict[str, Any]]:
        """The decisions about a subject up to a moment, newest first."""
        return self._read("WHERE subject = ? AND time_ns <= ? ORDER BY time_ns DESC LIMIT ?", [subject, time_ns, limit])

    def span(self, subject: str, agent: str, start_ns: int, end_ns: int) -> list[dict[str, Any]]:
        """An agent's decisions about a subject in a span of time, oldest first."""
        values = [subject, agent, start_ns, end_ns]
        return self._read(
            "WHERE subject = ? AND agent = ? AND time_ns >= ? AND time_ns < ? ORDER BY time_ns LIMIT 1000", values
        )

    def outcome_of(self, decisions: list[str], came_of_it: Mapping[str, Any]) -> int:
        """The same outcome for several decisions; how many there were."""
        if not decisions:
            return 0
        text = json.dumps(dict(came_of_it), separators=(",", ":"))
        self._database.write(*(("UPDATE decisions SET outcome = ? WHERE id = ?", (text, one)) for one in decisions))
        return len(decisions)

    def forget(self, now_ns: int) -> None:
        """Keep 90 days, and 200,000 decisions at most."""
        self._database.forget(now_ns, days=_DAYS, most=_MOST)

    def _read(self, where: str, values: list[Any]) -> list[dict[str, Any]]:
        rows = self._database.rows(f"SELECT record, outcome FROM decisions {where}", values)  # noqa: S608 - constants
        return [
            {**json.loads(record), "outcome": None if after is None else json.loads(after)} for record, after in rows
        ]
