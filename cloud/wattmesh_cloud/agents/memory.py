"""What the agents remember: decisions with their reasons and what came of them, by subject and by session."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from wattmesh_a2a.errors import WattmeshError

from wattmesh_cloud.agents.contract import Record
from wattmesh_cloud.agents.database import Database

log = logging.getLogger(__name__)

_DAYS, _MOST = 90, 200_000
_WAITING, _ATTEMPTS = 2000, 3
"""Copies that a mirror holds at most, and how often it tries each. A day's outcomes of one site and agent are one."""


class Memory(Protocol):
    """Where decisions are kept. Calls block: callers on an event loop use a thread."""

    def remember(self, record: Record) -> None:
        """Keep a decision; again with the same id replaces it."""
        ...

    def outcome(self, decision: str, came_of_it: Mapping[str, Any]) -> bool:
        """Add what came of a decision; false where it is not known (any more).

        A memory elsewhere is told the decision's ``agent``, ``subject`` and ``time_ns`` beside the rest.
        """
        ...

    def recall(self, subject: str, *, agent: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """The newest decisions about a subject, newest first, each with its ``outcome``."""
        ...


class Mirror:
    """Copies what is remembered here to a memory elsewhere: in order, beside whoever writes, and never in their way.

    What cannot be delivered is tried again with whatever comes next, three times in all, then left out: it is here. The
    failure is logged once, and its end once.

    Args:
        remote: Where to.
        most: Copies on their way; past it the oldest are left out.
    """

    def __init__(self, remote: Memory, *, most: int = _WAITING) -> None:
        self._remote, self._most = remote, most
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._tried, self._down, self.left_out = 0, False, 0
        """``left_out``: copies that were never delivered, since the start."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agents-mirror")
        self._closed = False

    def remember(self, record: Record) -> None:
        """Copy a decision as it is now."""
        copy = replace(record, entries=list(record.entries))
        self._put(lambda: self._remote.remember(copy))

    def outcome_of(self, decisions: Sequence[Mapping[str, Any]], came_of_it: Mapping[str, Any]) -> None:
        """Copy what came of decisions (rows as :meth:`Memory.recall` gives them)."""
        keys = [{name: one[name] for name in ("id", "agent", "subject", "time_ns")} for one in decisions]

        def send() -> None:
            for key in keys:
                told = {name: value for name, value in key.items() if name != "id"}
                self._remote.outcome(str(key["id"]), {**came_of_it, **told})

        self._put(send)

    def _put(self, send: Callable[[], object]) -> None:
        with self._lock:
            if self._closed:
                return
            self._waiting.append(send)
            while len(self._waiting) > self._most:
                self._waiting.popleft()
                self.left_out, self._tried = self.left_out + 1, 0
            self._thread.submit(self._deliver)

    def _deliver(self) -> None:
        """Send all that waits, oldest first, up to the first that does not go."""
        while (first := self._first()) is not None:
            if self._sent(first) is not None:
                self._failed(first)
                return
            self._done(first)

    def _first(self) -> Callable[[], object] | None:
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def _done(self, first: Callable[[], object]) -> None:
        with self._lock:
            self._tried = 0
            if self._waiting and self._waiting[0] is first:
                self._waiting.popleft()

    def _failed(self, first: Callable[[], object]) -> None:
        with self._lock:
            self._tried += 1
            if self._tried >= _ATTEMPTS and self._waiting and self._waiting[0] is first:
                self._waiting.popleft()
                self.left_out, self._tried = self.left_out + 1, 0

    def _sent(self, send: Callable[[], object]) -> WattmeshError | None:
        try:
            send()
        except WattmeshError as error:
            if not self._down:
                log.warning("decisions are kept here alone: %s", error)
            self._down = True
            return error
        if self._down:
            log.warning("decisions are kept elsewhere again; %d copies were left out so far", self.left_out)
        self._down = False
        return None

    def flush(self) -> None:
        """Wait until what was under way is over. Blocks: for the end of a program, and for tests."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Send nothing more; one call that is under way ends by its own time limit."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)


class LocalMemory:
    """Decisions in SQLite.

    Args:
        database: Keeps them.
        mirror: Gets every decision, every later version of it and what came of it, too.
    """

    def __init__(self, database: Database, mirror: Mirror | None = None) -> None:
        self._database, self._mirror = database, mirror

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
        if self._mirror is not None:
            self._mirror.remember(record)

    def outcome(self, decision: str, came_of_it: Mapping[str, Any]) -> bool:
        """See :class:`Memory`."""
        found = self.get(decision)
        return found is not None and self.outcome_of([found], came_of_it) > 0

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

    def outcome_of(self, decisions: Sequence[Mapping[str, Any]], came_of_it: Mapping[str, Any]) -> int:
        """The same outcome for several decisions, as they were read; how many there were."""
        if not decisions:
            return 0
        text = json.dumps(dict(came_of_it), separators=(",", ":"))
        update = "UPDATE decisions SET outcome = ? WHERE id = ?"
        self._database.write(*((update, (text, one["id"])) for one in decisions))
        if self._mirror is not None:
            self._mirror.outcome_of(decisions, came_of_it)
        return len(decisions)

    def forget(self, now_ns: int) -> None:
        """Keep 90 days, and 200,000 decisions at most."""
        self._database.forget(now_ns, days=_DAYS, most=_MOST)

    def _read(self, where: str, values: list[Any]) -> list[dict[str, Any]]:
        rows = self._database.rows(f"SELECT record, outcome FROM decisions {where}", values)  # noqa: S608 - constants
        return [
            {**json.loads(record), "outcome": None if after is None else json.loads(after)} for record, after in rows
        ]
