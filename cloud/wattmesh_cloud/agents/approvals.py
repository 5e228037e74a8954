"""Proposals that wait for a person: kept over restarts, expiring, decided once, every decision in the audit log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from wattmesh_a2a.errors import ConflictError, ExpiredError, InvalidMessageError

from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.proposals import Proposal, dump, parse, subject
from wattmesh_cloud.audit import AuditLog

MOST_WAITING = 200


class ApprovalState(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"
    APPROVED = "approved"
    """A person said yes; the effect is made at the next look of the agents."""
    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"
    STOPPED = "stopped"
    """Approved, but a guard stopped it afterwards: the world had changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One request."""

    id: str
    agent: str
    origin: str
    """``policy``, ``model`` or ``operator:NAME``: who made the proposal."""
    proposal: Proposal
    reason: str
    """Why a person is asked."""
    made_ns: int
    expires_ns: int
    state: ApprovalState
    decision: str
    """Id of the agent's decision it comes from."""
    decided_ns: int | None = None
    actor: str | None = None
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """For API and console."""
        row = {name: getattr(self, name) for name in self.__slots__ if name != "proposal"}
        return {**row, "proposal": dump(self.proposal), "subject": subject(self.proposal)}


class ApprovalQueue:
    """See the module. Calls block for a moment: callers on an event loop use a thread.

    Args:
        database: Keeps them.
        audit: Gets every change.
    """

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database, self._audit = database, audit

    def ask(
        self, agent: str, origin: str, proposal: Proposal, reason: str, *, decision: str, now_ns: int, valid_s: float
    ) -> Approval:
        """Put a proposal before a person. One that waits already with the same agent, kind and subject is replaced.

        Raises:
            ConflictError: Too many wait already.
        """
        kind, about = proposal.kind, subject(proposal)
        self.expire(now_ns)
        waiting = self._database.rows("SELECT count(*) FROM approvals WHERE state = 'waiting'")[0][0]
        if waiting >= MOST_WAITING:
            raise ConflictError(f"{waiting} proposals wait for a person already")
        number = self._database.rows("SELECT count(*) FROM approvals WHERE decision = ?", (decision,))[0][0]
        made = Approval(
            id=f"{decision}.{number}",
            agent=agent,
            origin=origin,
            proposal=proposal,
            reason=reason,
            made_ns=now_ns,
            expires_ns=now_ns + round(valid_s * 1e9),
            state=ApprovalState.WAITING,
            decision=decision,
        )
        self._database.write(
            (
                "UPDATE approvals SET state = 'expired', decided_ns = ?, note = 'replaced by a newer one'"
                " WHERE state = 'waiting' AND agent = ? AND kind = ? AND subject = ?",
                (now_ns, agent, kind, about),
            ),
            (
                "INSERT INTO approvals(id, agent, origin, kind, subject, proposal, reason, made_ns, expires_ns, state, decision)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting', ?)",
                (
                    *(made.id, agent, origin, kind, about, json.dumps(dump(proposal)), reason[:400]),
                    *(now_ns, made.expires_ns, decision),
                ),
            ),
        )
        self._audit.write(
            now_ns, f"agent:{agent}", f"approval.ask.{kind}", "waiting", {"id": made.id, "subject": about}
        )
        return made

    def requests(
        self, *, state: ApprovalState | None = ApprovalState.WAITING, limit: int = 100, now_ns: int
    ) -> list[Approval]:
        """Requests, newest first; all states with none."""
        self.expire(now_ns)
        where, values = ("WHERE state = ?", [str(state)]) if state is not None else ("", [])
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM approvals {where} ORDER BY made_ns DESC, id DESC LIMIT ?",  # noqa: S608 - constants
            [*values, min(limit, 1000)],
        )
        return [_approval(row) for row in rows]

    def get(self, approval_id: str) -> Approval:
        """One request.

        Raises:
            InvalidMessageError: There is none of this id.
        """
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM approvals WHERE id = ?", (approval_id,))  # noqa: S608
        if not rows:
            raise InvalidMessageError(f"no approval {approval_id[:64]!r}")
        return _approval(rows[0])

    def approve(self, approval_id: str, actor: str, now_ns: int, note: str = "") -> Approval:
        """Say yes. The effect follows at the agents' next look, after the guards have looked again.

        Args:
            approval_id: Whose.
            actor: ``operator:NAME``, as the login established it.
            now_ns: UTC.
            note: For the audit log.

        Raises:
            InvalidMessageError: There is none of this id, or no actor.
            ConflictError: Somebody decided it already.
            ExpiredError: It waited too long.
        """
        return self._decide(approval_id, ApprovalState.APPROVED, actor, now_ns, note)

    def refuse(self, approval_id: str, actor: str, now_ns: int, note: str = "") -> Approval:
        """Say no; as :meth:`approve`."""
        return self._decide(approval_id, ApprovalState.REFUSED, actor, now_ns, note)

    def _decide(self, approval_id: str, state: ApprovalState, actor: str, now_ns: int, note: str) -> Approval:
        if not actor.strip():
            raise InvalidMessageError("an approval needs the name of who decides")
        self.expire(now_ns)
        before = self.get(approval_id)
        if before.state is ApprovalState.EXPIRED:
            raise ExpiredError(f"{approval_id} expired")
        # Written down first: what cannot be written down is not done.
        detail = {"id": approval_id, "note": note, "subject": subject(before.proposal)}
        action = f"approval.{state}.{before.proposal.kind}"
        self._audit.write(now_ns, actor, action, "begun", detail)
        changed = self._database.write(
            (
                "UPDATE approvals SET state = ?, decided_ns = ?, actor = ?, note = ? WHERE id = ? AND state = 'waiting'",
                (str(state), now_ns, actor[:200], note[:400], approval_id),
            )
        )
        after = self.get(approval_id)
        self._audit.write(now_ns, actor, action, "done" if changed else "refused", detail)
        if not changed:
            raise ConflictError(f"{approval_id} is {after.state} by {after.actor or 'time'} already")
        return after

    def approved(self) -> list[Approval]:
        """Those whose effect is still to be made, oldest first."""
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM approvals WHERE state = 'approved' ORDER BY decided_ns, id LIMIT 100"  # noqa: S608
        )
        return [_approval(row) for row in rows]

    def close(self, approval_id: str, state: ApprovalState, note: str, now_ns: int) -> None:
        """What became of an approved one: done, or stopped by a guard."""
        found = self.get(approval_id)
        self._database.write(
            (
                "UPDATE approvals SET state = ?, note = ? WHERE id = ? AND state = 'approved'",
                (str(state), note[:400], approval_id),
            )
        )
        detail = {"id": approval_id, "approved_by": found.actor, "note": note}
        self._audit.write(now_ns, f"agent:{found.agent}", f"approval.effect.{found.proposal.kind}", str(state), detail)

    def expire(self, now_ns: int) -> None:
        """Close those that nobody decided in time."""
        self._database.write(
            (
                "UPDATE approvals SET state = 'expired', decided_ns = expires_ns WHERE state IN ('waiting') AND expires_ns <= ?",
                (now_ns,),
            )
        )


_COLUMNS = "id, agent, origin, proposal, reason, made_ns, expires_ns, state, decision, decided_ns, actor, note"


def _approval(row: tuple[Any, ...]) -> Approval:
    fields: dict[str, Any] = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Approval(**{**fields, "proposal": parse(json.loads(row[3])), "state": ApprovalState(row[7])})
