"""The desk where decisions are made: the policy's answer takes effect at once; a model may refine it while its deadline runs.

Nothing of the policy's way waits for a model, a provider or a network. What a model proposes passes the same guards, against the
situation as it is when the answer is back, and only while the kill switch is on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import ConflictError, WattmeshError

from wattmesh_cloud.agents.approvals import Approval, ApprovalQueue, ApprovalState
from wattmesh_cloud.agents.contract import Entry, ModelOutcome, Reasoner, Record, Refinement, Task, summary
from wattmesh_cloud.agents.controls import Budget, KillSwitch
from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.guards import Guard, Guards, Origin, Verdict
from wattmesh_cloud.agents.memory import Memory
from wattmesh_cloud.agents.proposals import Proposal, dump
from wattmesh_cloud.agents.situations import Situation, plain, subject_of

log = logging.getLogger(__name__)

MODELS_AT_ONCE = 4
MOST_PROPOSALS = 10
"""Of one answer of a model."""
_MOVED_ON_NS = 900 * 1_000_000_000
"""Of the clock: an answer about a situation older than this is late, however fast the model was."""
_REMEMBERED = 5

Look = Callable[[], Situation]
"""The situation as it is now."""


class Effects(Protocol):
    """Makes what has passed all guards come true, through the services that are there for it."""

    async def apply(self, agent: AgentDefinition, proposal: Proposal) -> None:
        """Do it; raises :class:`WattmeshError` where it cannot be done."""
        ...


class Desk:
    """See the module.

    Args:
        clock: Of the decisions.
        guards: Of every proposal.
        effects: Of those that passed.
        memory: Keeps every decision.
        approvals: Where those wait that need a person.
        switch: Turns models off.
        budget: What models may use.
        reasoner: A model; none for policies alone.
        deadline_s: Real time that a model has.
        tokens: The most that one answer may use.
        approval_s: How long a proposal waits for a person, time of the clock.
    """

    def __init__(
        self,
        clock: Clock,
        guards: Guards,
        effects: Effects,
        memory: Memory,
        approvals: ApprovalQueue,
        switch: KillSwitch,
        budget: Budget,
        *,
        reasoner: Reasoner | None = None,
        deadline_s: float = 20.0,
        tokens: int = 8000,
        approval_s: float = 3600.0,
    ) -> None:
        self._clock = clock
        self.guards, self._effects, self._memory = guards, effects, memory
        self._approvals, self._switch, self._budget = approvals, switch, budget
        self._reasoner = reasoner
        self._deadline_s, self._tokens, self._approval_s = deadline_s, tokens, approval_s
        self._numbers = itertools.count()
        self.tasks: set[asyncio.Task[None]] = set()
        self.counts: dict[str, int] = {}
        """Outcomes of proposals and models since the start, by name."""

    async def decide(self, agent: AgentDefinition, look: Look, *, session: str = "") -> Record:
        """One decision; back as soon as the policy's part is done and written down.

        Args:
            agent: Whose.
            look: Gives the situation, now and again when a model's answer is back.
            session: What it belongs to; the day's session of agent and subject where nothing is said.
        """
        situation = look()
        about = subject_of(situation)
        record = Record(
            id=self._new_id(agent.name, situation.now_ns),
            time_ns=situation.now_ns,
            agent=agent.name,
            subject=about,
            session=session or f"{agent.name}/{about}/{situation.now_ns // 86_400_000_000_000}",
            situation=summary(plain(situation)),
        )
        began = time.perf_counter()
        judged = await asyncio.to_thread(self._judge, agent, situation)
        record.policy_ms = round((time.perf_counter() - began) * 1000, 2)
        for proposal, verdict in judged:
            record.entries.append(await self._effect(agent, proposal, verdict, Origin.POLICY, record))
        outcome = await self._may_ask(agent, situation)
        record.model, record.model_detail = outcome
        await asyncio.to_thread(self._memory.remember, record)
        if record.model == ModelOutcome.REFINED:  # it may be asked
            task = asyncio.get_running_loop().create_task(
                self._refine(agent, look, situation, tuple(proposal for proposal, _ in judged), record)
            )
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self._count(f"model.{record.model}")
        return record

    def _new_id(self, agent: str, now_ns: int) -> str:
        return f"{agent}-{now_ns // 1_000_000_000}-{next(self._numbers)}"

    def _judge(self, agent: AgentDefinition, situation: Situation) -> list[tuple[Proposal, Verdict]]:
        return [
            (proposal, self.guards.check(agent, proposal, situation, Origin.POLICY))
            for proposal in agent.policy(situation)
        ]

    async def _effect(
        self, agent: AgentDefinition, proposal: Proposal, verdict: Verdict, origin: Origin, record: Record
    ) -> Entry:
        entry = Entry(
            proposal=dump(proposal),
            origin=str(origin),
            outcome=verdict.outcome,
            guard=verdict.guard,
            reason=verdict.reason,
        )
        if verdict.outcome == "waiting":
            try:
                await asyncio.to_thread(self._ask_person, agent, proposal, verdict, origin, record)
            except ConflictError as error:
                entry.outcome, entry.reason = "stopped", str(error)
        elif verdict.passed:
            try:
                await self._effects.apply(agent, proposal)
                entry.outcome = "done"
            except WattmeshError as error:
                entry.outcome, entry.reason = "failed", str(error)[:300]
        self._count(f"{origin}.{entry.outcome}" + (f".{entry.guard}" if entry.guard else ""))
        return entry

    def _ask_person(
        self, agent: AgentDefinition, proposal: Proposal, verdict: Verdict, origin: Origin, record: Record
    ) -> None:
        self._approvals.ask(
            agent.name,
            str(origin),
            proposal,
            verdict.reason,
            decision=record.id,
            now_ns=self._clock.utc_ns(),
            valid_s=self._approval_s,
        )

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    # -- the model

    async def _may_ask(self, agent: AgentDefinition, situation: Situation) -> tuple[ModelOutcome, str]:
        """REFINED where a model will be asked (its tokens are then reserved), else why not."""
        if self._reasoner is None:
            return ModelOutcome.ABSENT, ""
        if len(self.tasks) >= MODELS_AT_ONCE:
            return ModelOutcome.BUSY, f"{len(self.tasks)} models are asked already"
        state, over = await asyncio.to_thread(self._allowed, agent.name, situation.now_ns)
        if state is not None:
            return ModelOutcome.SWITCHED_OFF, state
        if over is not None:
            return ModelOutcome.OVER_BUDGET, over
        return ModelOutcome.REFINED, ""

    def _allowed(self, agent: str, now_ns: int) -> tuple[str | None, str | None]:
        state = self._switch.state()
        if not state.on:
            return f"by {state.actor}: {state.reason}", None
        return None, self._budget.reserve(agent, self._tokens, now_ns)

    async def _refine(
        self, agent: AgentDefinition, look: Look, situation: Situation, proposed: tuple[Proposal, ...], record: Record
    ) -> None:
        given = Refinement(outcome=ModelOutcome.FAILED)
        try:
            given = await self._asked(agent, situation, proposed, record)
            record.model, record.model_detail = given.outcome, given.detail[:300]
            record.tools, record.tokens = given.tools, given.input_tokens + given.output_tokens
            record.revision += 1
            if given.outcome is ModelOutcome.REFINED:
                await self._take(agent, look, given, situation, record)
            self._count(f"model.{record.model}")
            await asyncio.to_thread(self._memory.remember, record)
        except WattmeshError as error:
            log.error("what a model did for %s could not be written down: %s", record.id, error)
        finally:
            used = (agent.name, self._tokens, given.input_tokens, given.output_tokens, situation.now_ns)
            await asyncio.to_thread(self._budget.settle, *used)

    async def _asked(
        self, agent: AgentDefinition, situation: Situation, proposed: tuple[Proposal, ...], record: Record
    ) -> Refinement:
        assert self._reasoner is not None
        try:
            async with asyncio.timeout(self._deadline_s):
                remembered = await asyncio.to_thread(
                    self._memory.recall, record.subject, agent=agent.name, limit=_REMEMBERED
                )
                task = Task(
                    id=record.id,
                    agent=agent,
                    situation=situation,
                    proposed=proposed,
                    deadline_s=self._deadline_s,
                    tokens=self._tokens,
                    remembered=tuple(remembered),
                )
                return await self._reasoner.refine(task)
        except TimeoutError:
            return Refinement(
                outcome=ModelOutcome.LATE, detail=f"no answer in {self._deadline_s:g} s", input_tokens=self._tokens
            )

    async def _take(
        self, agent: AgentDefinition, look: Look, given: Refinement, situation: Situation, record: Record
    ) -> None:
        """The proposals of an answer that came in time, one by one through the guards."""
        now = look()
        if now.now_ns - situation.now_ns > _MOVED_ON_NS:
            record.model = ModelOutcome.LATE
            record.model_detail = f"the situation was {(now.now_ns - situation.now_ns) / 1e9:.0f} s old"
            return
        if len(given.proposals) > MOST_PROPOSALS:
            record.model, record.model_detail = ModelOutcome.TOO_LARGE, f"{len(given.proposals)} proposals"
            return
        for raw in given.proposals:
            proposal, verdict = self.guards.read(raw)
            if proposal is None:
                record.entries.append(self._unreadable(raw, verdict))
                continue
            verdict = await asyncio.to_thread(self.guards.check, agent, proposal, now, Origin.MODEL)
            state = await asyncio.to_thread(self._switch.state)
            if not state.on:
                record.model, record.model_detail = ModelOutcome.SWITCHED_OFF, f"by {state.actor}: {state.reason}"
                return
            record.entries.append(await self._effect(agent, proposal, verdict, Origin.MODEL, record))

    def _unreadable(self, raw: object, verdict: Verdict) -> Entry:
        self._count(f"{Origin.MODEL}.stopped.{Guard.SCHEMA}")
        return Entry(
            proposal={"raw": repr(raw)[:300]},
            origin=Origin.MODEL,
            outcome="stopped",
            guard=verdict.guard,
            reason=verdict.reason,
        )

    # -- people

    async def propose(
        self, agent: AgentDefinition, look: Look, proposal: Proposal, actor: str, *, session: str
    ) -> Record:
        """A proposal that an operator asked for: through the same guards, in the name of an agent that may make it."""
        situation = look()
        record = Record(
            id=self._new_id(agent.name, situation.now_ns),
            time_ns=situation.now_ns,
            agent=agent.name,
            subject=subject_of(situation),
            session=session,
            situation=summary(plain(situation)) | {"asked_by": actor},
        )
        verdict = await asyncio.to_thread(self.guards.check, agent, proposal, situation, Origin.OPERATOR)
        record.entries.append(await self._effect(agent, proposal, verdict, Origin.OPERATOR, record))
        await asyncio.to_thread(self._memory.remember, record)
        return record

    async def carry_out(self, approval: Approval, agent: AgentDefinition, look: Look | None) -> ApprovalState:
        """The effect of what a person approved, after the guards have looked at the world as it is now."""
        state, note = await self._carried_out(approval, agent, look)
        await asyncio.to_thread(self._approvals.close, approval.id, state, note, self._clock.utc_ns())
        return state

    async def _carried_out(
        self, approval: Approval, agent: AgentDefinition, look: Look | None
    ) -> tuple[ApprovalState, str]:
        if look is None:
            return ApprovalState.STOPPED, "nothing is known of its subject any more"
        if approval.expires_ns <= self._clock.utc_ns():
            return ApprovalState.STOPPED, "it expired before it could take effect"
        if approval.origin == Origin.MODEL and not (await asyncio.to_thread(self._switch.state)).on:
            return ApprovalState.STOPPED, "models are switched off"
        origin = Origin(approval.origin)
        verdict = await asyncio.to_thread(self.guards.check, agent, approval.proposal, look(), origin, approved=True)
        if not verdict.passed:
            return ApprovalState.STOPPED, f"{verdict.guard}: {verdict.reason}"
        try:
            await self._effects.apply(agent, approval.proposal)
        except WattmeshError as error:
            return ApprovalState.STOPPED, str(error)
        return ApprovalState.DONE, ""

    async def finish(self) -> None:
        """End what is under way."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def snapshot(self) -> dict[str, Any]:
        """Figures for API and console."""
        return {"counts": dict(sorted(self.counts.items())), "asking": len(self.tasks)}
