"""Commands: what people want done, in one step, with a typed confirmation, or with somebody else's approval.

Every command is kept with who asked, why, and what came of it; again with the same key it is the same command. A command that
waits for its second step expires; one that was under way as the process ended is told as failed, never done twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import (
    ConflictError,
    ExpiredError,
    InvalidMessageError,
    UnauthorisedError,
    WattmeshError,
)

from wattmesh_cloud.access.model import Permission, Principal
from wattmesh_cloud.audit import AuditLog

_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands(
  id TEXT PRIMARY KEY, number INTEGER UNIQUE, kind TEXT, arguments TEXT, reason TEXT, state TEXT, asked_by TEXT, tenant TEXT,
  asked_ns INTEGER, decided_by TEXT, decided_ns INTEGER, until_ns INTEGER, confirm TEXT, result TEXT, digest TEXT) WITHOUT ROWID;
"""
_WAIT_NS = {"confirm": 120 * NS_PER_S, "approve": 86_400 * NS_PER_S}
_WAITING_AT_MOST = 200

Steps = Literal["one", "confirm", "approve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who wanted a command, and why; with approval, somebody else than who carries it out."""

    by: str
    reason: str


Run = Callable[[Principal, Any, Asked], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of command."""

    name: str
    title: str
    permission: Permission
    arguments: type[BaseModel]
    run: Run
    """Does it; gives one line of what came of it."""
    steps: Steps = "one"
    host: bool = True
    """Whether it is the operator of the fleet's alone."""
    site: Callable[[Any], str] | None = None
    """The site it is about, which has to be the caller's."""
    check: Callable[[Any], None] | None = None
    """Refuses arguments that cannot be carried out as it is asked for; raises :class:`InvalidMessageError`."""
    wait_s: int | None = None
    """How long it waits for its second step (real time); two minutes for a typed word and a day for approval where none."""

    def until_ns(self, now_ns: int) -> int | None:
        """When its second step comes too late; none where it has none."""
        if self.steps == "one":
            return None
        return now_ns + (self.wait_s * NS_PER_S if self.wait_s is not None else _WAIT_NS[self.steps])


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command as it stands."""

    id: str
    kind: str
    steps: str
    arguments: Mapping[str, Any]
    reason: str
    state: str
    asked_by: str
    tenant: str
    asked_ns: int
    decided_by: str | None
    decided_ns: int | None
    expires_in_s: float | None
    confirm: str | None
    result: str | None


class Commands:
    """See the module.

    Args:
        path: Its SQLite file.
        audit: Every step is written there.
        fleet: The fleet's clock, for what is shown.
        real: The machine's, for how long a second step may wait.
    """

    def __init__(self, path: Path, audit: AuditLog, fleet: Clock, real: Clock) -> None:
        self._audit, self._fleet, self._real = audit, fleet, real
        self.kinds: dict[str, Kind] = {}
        self._lock = asyncio.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(
            "UPDATE commands SET state='failed', result='the process ended meanwhile; look whether it took effect' "
            "WHERE state='running'"
        )

    def add(self, kind: Kind) -> None:
        """Take commands of a kind."""
        self.kinds[kind.name] = kind

    async def ask(self, who: Principal, kind_name: str, arguments: Mapping[str, Any], reason: str, key: str) -> Command:
        """Ask for something; done at once where one step is enough.

        Raises:
            InvalidMessageError: An unknown kind or wrong arguments.
            UnauthorisedError: Not for this role, tenant or site.
            ConflictError: The key was used for something else.
        """
        kind = self._kind(kind_name)
        checked = self._checked(kind, who, arguments)
        plain = json.dumps(checked.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(f"{kind_name}\0{plain}\0{reason}".encode()).hexdigest()
        identity = hashlib.sha256(f"{who.tenant}\0{who.actor}\0{key}".encode()).hexdigest()[:20]
        async with self._lock:
            known = self._db.execute("SELECT * FROM commands WHERE id=?", (identity,)).fetchone()
            if known is not None:
                if known["digest"] != digest:
                    raise ConflictError("this idempotency key was used for something else")
                return self._command(known)
            self._expire()
            waiting = self._db.execute("SELECT COUNT(*) FROM commands WHERE state='waiting'").fetchone()[0]
            if kind.steps != "one" and waiting >= _WAITING_AT_MOST:
                raise ConflictError("too many commands wait for their second step; decide or let them expire first")
            confirm = None if kind.steps == "one" else _word(kind)
            until = kind.until_ns(self._real.utc_ns())
            await self._write(who, kind.name, "asked", plain, reason)
            self._db.execute(
                "INSERT INTO commands VALUES(?, (SELECT COALESCE(MAX(number), 0) + 1 FROM commands), ?, ?, ?, ?, ?, ?, ?, "
                "NULL, NULL, ?, ?, NULL, ?)",
                (
                    identity, kind.name, plain, reason, "running" if kind.steps == "one" else "waiting", who.actor, who.tenant,
                    self._fleet.utc_ns(), until, confirm, digest,
                ),
            )  # fmt: skip
        if kind.steps != "one":
            return self.get(who, identity)
        return await self._run(who, kind, identity, checked, Asked(by=who.actor, reason=reason))

    async def confirm(self, who: Principal, identity: str, text: str) -> Command:
        """The second step.

        Raises:
            InvalidMessageError: There is no such command, or the text is another one.
            UnauthorisedError: Not by this person.
            ExpiredError: Too late.
            ConflictError: It does not wait any more.
        """
        kind, row = self._for_decision(who, identity)
        if not secrets.compare_digest(text.encode(), str(row["confirm"]).encode()):
            raise InvalidMessageError(f"type {row['confirm']} to go on")
        async with self._lock:
            kind, row = self._for_decision(who, identity)
            checked = kind.arguments.model_validate_json(row["arguments"])
            await self._write(who, kind.name, "confirmed", row["arguments"], row["reason"])
            self._db.execute("UPDATE commands SET state='running' WHERE id=?", (identity,))
        return await self._run(who, kind, identity, checked, Asked(by=row["asked_by"], reason=row["reason"]))

    async def reject(self, who: Principal, identity: str) -> Command:
        """Let a waiting command be; whoever asked may, too."""
        async with self._lock:
            row = self._row(who, identity)
            kind = self._kind(row["kind"])
            if row["state"] != "waiting":
                raise ConflictError(f"this command does not wait any more: it is {row['state']}")
            if not who.may(kind.permission):
                raise UnauthorisedError(f"this needs the right to {kind.permission}")
            await self._write(who, kind.name, "refused", row["arguments"], row["reason"])
            self._done(who, identity, "refused", "not confirmed")
        return self.get(who, identity)

    def get(self, who: Principal, identity: str) -> Command:
        """One command; raises :class:`InvalidMessageError` where there is none of this tenant."""
        self._expire()
        return self._command(self._row(who, identity))

    def list(self, who: Principal, limit: int, before: int | None = None) -> tuple[list[Command], int | None]:
        """The newest of the tenant, the waiting ones among them, and the number before which the next page begins."""
        self._expire()
        rows = self._db.execute(
            "SELECT * FROM commands WHERE (tenant=? OR ?) AND number<? ORDER BY number DESC LIMIT ?",
            (who.tenant, who.host, before if before is not None else 2**62, limit + 1),
        ).fetchall()
        return [self._command(row) for row in rows[:limit]], rows[limit - 1]["number"] if len(rows) > limit else None

    # -- the inside

    def _kind(self, name: str) -> Kind:
        kind = self.kinds.get(name)
        if kind is None:
            raise InvalidMessageError(f"kind: there is no command {name!r}; there are: {', '.join(sorted(self.kinds))}")
        return kind

    def _checked(self, kind: Kind, who: Principal, arguments: Mapping[str, Any]) -> BaseModel:
        if not who.may(kind.permission):
            raise UnauthorisedError(f"this needs the right to {kind.permission}; you are {who.role}")
        if kind.host and not who.host:
            raise UnauthorisedError("this belongs to the operator of the fleet")
        try:
            checked = kind.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(["arguments", *map(str, first["loc"])])
            raise InvalidMessageError(f"{where}: {first['msg']}") from error
        if kind.site is not None and not who.sees(kind.site(checked)):
            raise InvalidMessageError(f"there is no site {kind.site(checked)!r}")
        if kind.check is not None:
            kind.check(checked)
        return checked

    def _row(self, who: Principal, identity: str) -> sqlite3.Row:
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM commands WHERE id=?", (identity,)).fetchone()
        if row is None or not (who.host or row["tenant"] == who.tenant):
            raise LookupError(identity)
        return row

    def _for_decision(self, who: Principal, identity: str) -> tuple[Kind, sqlite3.Row]:
        row = self._row(who, identity)
        kind = self._kind(row["kind"])
        if row["state"] == "waiting" and row["until_ns"] <= self._real.utc_ns():
            self._expire()
            raise ExpiredError("too late: the command waited too long; ask for it again")
        if row["state"] != "waiting":
            raise ConflictError(f"this command does not wait any more: it is {row['state']}")
        if not who.may(kind.permission):
            raise UnauthorisedError(f"this needs the right to {kind.permission}; you are {who.role}")
        if kind.steps == "approve" and row["asked_by"] == who.actor:
            raise UnauthorisedError("somebody else has to approve what you asked for")
        if kind.steps == "confirm" and row["asked_by"] != who.actor:
            raise UnauthorisedError("whoever asked for it has to confirm it")
        return kind, row

    async def _run(self, who: Principal, kind: Kind, identity: str, checked: BaseModel, asked: Asked) -> Command:
        try:
            result = await kind.run(who, checked, asked)
        except WattmeshError as error:
            state, result = ("failed" if error.retryable else "refused"), str(error)
        except BaseException:
            self._done(who, identity, "failed", "it ended in the middle; look whether it took effect")
            raise
        else:
            state = "done"
        self._done(who, identity, state, result)
        await self._write(who, kind.name, state, result, "")
        return self.get(who, identity)

    def _done(self, who: Principal, identity: str, state: str, result: str) -> None:
        self._db.execute(
            "UPDATE commands SET state=?, decided_by=?, decided_ns=?, confirm=NULL, until_ns=NULL, result=? WHERE id=?",
            (state, who.actor, self._fleet.utc_ns(), result[:500], identity),
        )

    def _expire(self) -> None:
        self._db.execute(
            "UPDATE commands SET state='expired', confirm=NULL, until_ns=NULL, result='nobody confirmed it in time' "
            "WHERE state='waiting' AND until_ns<=?",
            (self._real.utc_ns(),),
        )

    async def _write(self, who: Principal, kind: str, outcome: str, arguments: str, reason: str) -> None:
        detail = {"arguments": arguments, "reason": reason, "tenant": who.tenant}
        await asyncio.to_thread(self._audit.write, self._fleet.utc_ns(), who.actor, f"command.{kind}", outcome, detail)

    def _command(self, row: sqlite3.Row) -> Command:
        left = None if row["until_ns"] is None else max(0.0, (row["until_ns"] - self._real.utc_ns()) / NS_PER_S)
        names = (
            "id",
            "kind",
            "reason",
            "state",
            "asked_by",
            "tenant",
            "asked_ns",
            "decided_by",
            "decided_ns",
            "confirm",
            "result",
        )
        kind = self.kinds.get(row["kind"])
        return Command(
            **{name: row[name] for name in names}, arguments=json.loads(row["arguments"]), expires_in_s=left,
            steps="one" if kind is None else kind.steps,
        )  # fmt: skip

    def close(self) -> None:
        """Release the file."""
        self._db.close()


def _word(kind: Kind) -> str:
    """What has to be typed: the last word of the command's name, in capitals."""
    return kind.name.rpartition(".")[2].upper()
