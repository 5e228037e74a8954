"""What ``wattmesh agents`` does, beside a running cloud: it reads and writes the agents' memory, which the cloud looks into."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.agents.approvals import ApprovalQueue
from wattmesh_cloud.agents.controls import KillSwitch
from wattmesh_cloud.agents.conversations import advice_of, turns_of
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.learning import PARAMETERS, Learner
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.agents.situations import restored
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.config import load_cloud


class Hand:
    """See the module.

    Args:
        file: The cloud's.
        actor: Who acts, for the audit log.
    """

    def __init__(self, file: Path, actor: str) -> None:
        state = load_cloud(file).state
        self._actor, self._now = actor, SystemClock().utc_ns()
        self._database, self._audit = Database(state / "agents.sqlite"), AuditLog(state / "audit-agents.log")
        self._switch, self._learner = KillSwitch(self._database, self._audit), Learner(self._database)
        self._queue = ApprovalQueue(self._database, self._audit)

    def __enter__(self) -> Hand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._audit.close()
        self._database.close()

    def do(self, arguments: argparse.Namespace) -> Iterator[str]:
        """One action; lines for people."""
        match arguments.action:
            case "status":
                yield from self._status()
            case "off":
                self._switch.off(self._actor, arguments.reason, self._now)
                yield "all models are off: what they say has no effect from now on; the policies go on"
            case "on":
                self._switch.on(self._actor, arguments.reason, self._now)
                yield "models may refine again"
            case "approvals":
                for one in self._queue.requests(now_ns=self._now):
                    yield f"{one.id}\t{one.agent}\t{one.origin}\t{one.proposal.kind}\t{one.proposal.rationale}"
            case "approve" | "refuse":
                decide = self._queue.approve if arguments.action == "approve" else self._queue.refuse
                yield f"{arguments.id}: {decide(arguments.id, self._actor, self._now, arguments.note).state}"
            case "freeze" | "thaw":
                yield self._parameter(arguments)
            case _:
                yield from self._replay(arguments.conversation)

    def _status(self) -> Iterator[str]:
        state = self._switch.state()
        yield f"models: {'on' if state.on else f'off, by {state.actor}: {state.reason}'}"
        for agent, tokens, micros, calls in self._database.rows(
            "SELECT agent, sum(tokens), sum(cost_micros), sum(calls) FROM spent WHERE day = ? GROUP BY agent",
            (self._now // 86_400_000_000_000,),
        ):
            yield f"today {agent}: {tokens} tokens, {micros / 1e6:.2f}, {calls} calls"
        for subject, parameters in self._learner.report().items():
            for name, beliefs in parameters.items():
                told = ", ".join(
                    f"{one.value:g}: {one.mean:.3f} ± {one.spread:.3f} ({one.days:.0f} d)" for one in beliefs
                )
                yield f"learned {subject} {name} (default {PARAMETERS[name].default:g}): {told}"

    def _parameter(self, arguments: argparse.Namespace) -> str:
        name = arguments.parameter
        if name not in PARAMETERS:
            raise ConfigurationError(f"no parameter {name!r}; there are: {', '.join(PARAMETERS)}")
        if arguments.action == "freeze":
            self._learner.freeze(arguments.subject, name, self._actor, self._now)
        else:
            self._learner.thaw(arguments.subject, name)
        detail = {"parameter": name, "subject": arguments.subject}
        self._audit.write(self._now, self._actor, f"learning.{arguments.action}", "done", detail)
        return f"{name} of {arguments.subject}: {'the default' if arguments.action == 'freeze' else 'learned'}"

    def _replay(self, conversation: str) -> Iterator[str]:
        for turn in turns_of(self._database, conversation):
            said = turn.body.get("text") or turn.body.get("question") or turn.body.get("error")
            same = ""
            if turn.what == "answer" and turn.body["source"] == "policy":
                agent = ROSTER[turn.speaker]
                anew = advice_of(agent, restored(agent.situation, turn.body["situation"]))
                same = " [the same again]" if anew == turn.body["text"] else f" [now: {anew}]"
            yield f"{turn.number} {turn.speaker} → {turn.listener} {turn.what}: {said}{same}"
