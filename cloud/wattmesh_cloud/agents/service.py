"""The five agents at work: when each of them looks, what came of a day, and what a person has approved."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import Envelope
from wattmesh_a2a.errors import InvalidMessageError, UnauthorisedError
from wattmesh_a2a.messages import IntervalEnergy, Message
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.agents.approvals import ApprovalQueue
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.agents.contract import ModelOutcome, Reasoner, Record, Task
from wattmesh_cloud.agents.controls import Budget, BudgetLimits, KillSwitch
from wattmesh_cloud.agents.conversations import Conversations
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.desk import Desk, Look
from wattmesh_cloud.agents.effects import Services
from wattmesh_cloud.agents.feedback import Feedback
from wattmesh_cloud.agents.grid_optimisation.policy import peak_window, tomorrows_peak
from wattmesh_cloud.agents.guards import Guards
from wattmesh_cloud.agents.learning import PARAMETERS, Learner
from wattmesh_cloud.agents.looks import Looks, Sources
from wattmesh_cloud.agents.memory import LocalMemory, Memory, Mirror
from wattmesh_cloud.agents.proposals import CallResponse, Proposal, subject
from wattmesh_cloud.agents.questions import Answer, Citation, Questions
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table
from wattmesh_cloud.tools.base import OPERATOR, READER, Caller

_STEP_NS = 300 * NS_PER_S
_HOUR_NS = 3600 * NS_PER_S
_DAY_NS = 24 * _HOUR_NS
_OPINIONS, _OPINIONS_S = 2, 30.0
"""Sites that second opinions are asked about, and how long they may take."""


class AgentsService:
    """See the module.

    Args:
        config: The agents' section.
        sources: The running services.
        store: Gets every decision with its rationale.
        messenger: Serves the agents' addresses.
        clock: Of the decisions.
        state: Folder of the agents' memory.
        org: Of all addresses.
        audit: Gets what people decide.
        reasoner: A model; none for policies alone.
        remote: A memory elsewhere that gets every decision and what came of it, too; one that does not answer holds up nothing.
    """

    def __init__(
        self,
        config: AgentsConfig,
        sources: Sources,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        org: str,
        *,
        audit: AuditLog,
        reasoner: Reasoner | None = None,
        remote: Memory | None = None,
    ) -> None:
        model = config.model
        self.config = config
        self._store, self._clock = store, clock
        self.database = Database(state / "agents.sqlite")
        self._mirror = Mirror(remote) if remote is not None else None
        self.memory = LocalMemory(self.database, self._mirror)
        self.learner = Learner(self.database)
        self.approvals = ApprovalQueue(self.database, audit)
        self.switch = KillSwitch(self.database, audit)
        self.effects = Services(sources, messenger, clock, org)
        self.looks = Looks(sources, clock, self._settings, self.effects.in_force)
        self.looks.retrained = self.effects.retrained
        self.feedback = Feedback(self.memory, self.learner, sources)
        prices = (model.input_price, model.output_price) if model is not None else (0.0, 0.0)
        self.budget = Budget(
            self.database,
            model.limits() if model is not None else BudgetLimits(),
            input_price=prices[0],
            output_price=prices[1],
        )
        self.reasoner = reasoner
        self.desk = Desk(
            clock,
            Guards(self.database, config.approval),
            self.effects,
            self.memory,
            self.approvals,
            self.switch,
            self.budget,
            reasoner=reasoner,
            deadline_s=model.deadline_s if model is not None else 20.0,
            tokens=model.tokens if model is not None else 0,
            approval_s=config.approval_s,
        )
        self.conversations = Conversations(
            self.database,
            self.memory,
            messenger,
            clock,
            org,
            self.look_for,
            reasoner=reasoner,
            switch=self.switch,
            budget=self.budget,
        )
        area = sources.market_config
        self.questions = Questions(
            store,
            self.memory,
            self.approvals,
            self.learner,
            area=area.area,
            zone=area.tariff.tariff(area.time_zone).zone(),
            sites=[one.id for one in area.participants],
        )
        self._sources, self._messenger = sources, messenger
        self._tasks: set[asyncio.Task[None]] = set()
        self._known = {one.id for one in sources.market_config.participants}
        self._day = clock.utc_ns() // _DAY_NS
        if sources.grid is not None and config.demand_response:
            sources.grid.plans_days = False

    def _settings(self, about: str, agent: str) -> Mapping[str, float]:
        if not self.config.learning:
            return {name: one.default for name, one in PARAMETERS.items()}
        return self.learner.settings(about, agent, self._clock.utc_ns())

    def register(self) -> None:
        """Listen to alarms: their text is data for whoever looks."""
        self._messenger.on_event(Alarm, self._on_alarm)
        self.conversations.register()

    def _on_alarm(self, envelope: Envelope) -> None:
        alarm = envelope.data
        if isinstance(alarm, Alarm) and envelope.source.unit == alarm.site_id and alarm.site_id in self._known:
            self.looks.note(alarm.site_id, f"alarm {alarm.asset_id or alarm.site_id}", alarm.text)

    def on_record(self, site: str, message: Message) -> None:
        """Learn a site's usual load less PV, and what a day brought, from whole quarter hours."""
        if isinstance(message, IntervalEnergy) and message.site_id == site and message.complete:
            self.looks.interval(site, message)
            self.feedback.interval(site, message)

    # -- time

    async def run(self) -> None:
        """Market and grid every five minutes, each site once an hour, for ever."""
        with self._clock.runner():
            while True:
                mono = self._clock.monotonic_ns()
                due = mono - mono % _STEP_NS + _STEP_NS
                await self._clock.sleep_until_ns(due)
                await self.round(sites=due % _HOUR_NS == 0)

    async def round(self, *, sites: bool) -> None:
        """Everybody whose turn it is looks once."""
        await self._carry_out_approved()
        if self._sources.market is not None:
            record = await self.decide("market-supervisor", self.looks.market)
            if any(entry.outcome in ("done", "waiting") for entry in record.entries):
                self._spawn(self._second_opinions(record))
        if self._sources.grid is not None:
            await self.decide("grid-optimisation", self.looks.grid)
        if not sites:
            return
        for site in self.looks.sites():
            await self._site(site)
        now = self._clock.utc_ns()
        if now // _DAY_NS != self._day:
            self._day = now // _DAY_NS
            await asyncio.to_thread(self.feedback.day_over, now)
            await asyncio.to_thread(self.memory.forget, now)

    async def _second_opinions(self, record: Record) -> None:
        """What the other four know of it, beside a decision that is made already: for whoever looks at it later."""
        topics = [("grid-optimisation", "fleet", "What is the state of the grid and of the fleet?")]
        sites = [
            one for entry in record.entries if (one := str(entry.proposal.get("participant_id", ""))) in self._known
        ]
        for site in (sites or self.looks.sites())[:_OPINIONS]:
            topics += [
                (agent, site, "What do you see at this site?") for agent in ("forecasting", "producer", "consumer")
            ]
        await self.conversations.round("market-supervisor", topics, record.id, _OPINIONS_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _site(self, site: str) -> None:
        if self._sources.forecasting is not None:
            await self.decide("forecasting", lambda: self.looks.forecast(site))
        for agent in ("producer", "consumer"):
            await self.decide(agent, self._look_at(site, agent))
        self.effects.flush()

    def _look_at(self, site: str, agent: str) -> Look:
        return lambda: self.looks.site(site, agent)

    async def decide(self, agent: str, look: Look, *, session: str = "") -> Record:
        """One agent's decision, stored. What a model adds later is stored again under the same name."""
        record = await self.desk.decide(ROSTER[agent], look, session=session)
        if record.entries or record.model not in (ModelOutcome.ABSENT, ModelOutcome.REFINED):
            await asyncio.to_thread(self._store.put, Table.MARKET_DATA, [_row(record)])
        return record

    def look_for(self, agent: str, about: str) -> Look | None:
        """How an agent looks at a subject; none for what is not known."""
        if agent == "market-supervisor" and self._sources.market is not None:
            return self.looks.market
        if agent == "grid-optimisation" and self._sources.grid is not None:
            return self.looks.grid
        if about not in self._known:
            return None
        if agent == "forecasting":
            return (lambda: self.looks.forecast(about)) if self._sources.forecasting is not None else None
        return self._look_at(about, agent) if agent in ("producer", "consumer") else None

    async def _carry_out_approved(self) -> None:
        now = self._clock.utc_ns()
        await asyncio.to_thread(self.approvals.expire, now)
        for approval in await asyncio.to_thread(self.approvals.approved):
            look = self.look_for(approval.agent, subject(approval.proposal))
            await self.desk.carry_out(approval, ROSTER[approval.agent], look)
        self.effects.flush()

    async def propose(self, agent: str, about: str, proposal: Proposal, actor: str) -> Record:
        """What an operator asks an agent to do: through its guards, and where it needs one, before a person.

        Raises:
            InvalidMessageError: No such agent or subject.
        """
        look = self.look_for(agent, about) if agent in ROSTER else None
        if look is None:
            raise InvalidMessageError(f"{agent[:64]} knows nothing of {about[:64]}")
        session = f"{actor}/{self._clock.utc_ns() // _DAY_NS}"
        record = await self.desk.propose(ROSTER[agent], look, proposal, actor, session=session)
        self.effects.flush()
        return record

    async def ask(self, question: str, caller: Caller) -> Answer:
        """An operator's question: by records and templates, or prepared for a person; a model may word it better.

        Args:
            question: In words.
            caller: Who asks, as the login established it; what it may not see is not in the answer.
        """
        if not caller.roles & {READER, OPERATOR}:
            raise UnauthorisedError("questions are for readers and operators")
        prepared = await self._prepared(question, caller)
        if prepared is not None:
            return prepared
        now = self._clock.utc_ns()
        answer = await asyncio.to_thread(self.questions.answer, question, now, caller.sites)
        if self.reasoner is None or caller.sites is not None:
            return answer
        return await self._worded(answer, question)

    async def _prepared(self, question: str, caller: Caller) -> Answer | None:
        """Demand response that an operator wants: planned by the grid agent's own rules, and put before a person."""
        words = question.lower()
        if "demand response" not in words or not any(word in words for word in ("prepare", "plan", "call")):
            return None
        answer = Answer(question=question[:400], kind="prepare", text="")
        if OPERATOR not in caller.roles or caller.sites is not None:
            answer.text = "Preparing demand response is for operators."
            return answer
        if self._sources.grid is None:
            answer.text = "No grid service runs here."
            return answer
        situation = self.looks.grid()
        window = tomorrows_peak(situation, self.questions.zone) if "tomorrow" in words else peak_window(situation)
        if window is None:
            answer.text = "The forecasts show no peak that is worth an event."
            return answer
        start, mean, _ = window
        share = situation.settings["response_share"]
        proposal = CallResponse(
            start_ns=start,
            duration_s=situation.duration_s - situation.duration_s % 900,
            target_w=-max(1, round(mean * share)),
            price_ticks=situation.price_ticks,
            rationale=f"asked for by {caller.id}: expected peak of {mean / 1000:.1f} kW"[:400],
        )
        record = await self.propose("grid-optimisation", "fleet", proposal, caller.id)
        (entry,) = record.entries
        answer.citations.append(Citation(id=record.id, time_ns=record.time_ns))
        when = self.questions.when(start)
        told = f"{-proposal.target_w} W less for {proposal.duration_s // 60} min from {when}, {mean / 1000:.1f} kW expected"
        if entry.outcome == "waiting":
            waiting = await asyncio.to_thread(self.approvals.requests, now_ns=self._clock.utc_ns())
            answer.approval = next((one.id for one in waiting if one.decision == record.id), None)
            answer.text = f"Prepared: {told}. It waits for approval as {answer.approval}."
        else:
            answer.text = (
                f"Not prepared ({told}): {entry.outcome} by {entry.guard or 'the grid service'}: {entry.reason}."
            )
        return answer

    async def _worded(self, answer: Answer, question: str) -> Answer:
        """A model's words where it has read records; else the template's stand, and the answer says what became of the model."""
        assert self.reasoner is not None
        agent, look, now = ROSTER["market-supervisor"], self.look_for("market-supervisor", ""), self._clock.utc_ns()
        model = self.config.model
        if look is None or model is None:
            return answer
        state = await asyncio.to_thread(self.switch.state)
        over = await asyncio.to_thread(self.budget.reserve, agent.name, model.tokens, now) if state.on else None
        if not state.on or over is not None:
            answer.detail = ModelOutcome.OVER_BUDGET if over is not None else ModelOutcome.SWITCHED_OFF
            return answer
        task = Task(
            id=f"ask-{now}", agent=agent, situation=look(), proposed=(), deadline_s=model.deadline_s, tokens=model.tokens,
            question=question[:400],
        )  # fmt: skip
        used = (model.tokens, 0)
        try:
            async with asyncio.timeout(model.deadline_s):
                given = await self.reasoner.refine(task)
            used = (given.input_tokens, given.output_tokens)
            answer.detail = given.outcome
            if given.outcome is ModelOutcome.AGREED and given.cited and given.text.strip():
                answer.text, answer.source = given.text.strip()[:4000], "model"
                answer.citations += [Citation(id=one, time_ns=now) for one in dict.fromkeys(given.cited)][:20]
        except TimeoutError:
            answer.detail = ModelOutcome.LATE
        finally:
            await asyncio.to_thread(self.budget.settle, agent.name, model.tokens, *used, now)
        return answer

    async def finish(self) -> None:
        """End what is under way."""
        await self.desk.finish()
        tasks = [*self.effects.tasks, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.reasoner is not None:
            await self.reasoner.close()

    def close(self) -> None:
        """Release the memory's file, and the way to the one elsewhere."""
        if self._mirror is not None:
            self._mirror.close()
        self.database.close()

    @property
    def refused(self) -> int:
        """Proposals that a guard stopped, since the start."""
        return sum(count for name, count in self.desk.counts.items() if ".stopped" in name)

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        counts = self.desk.counts
        return {
            "refused": self.refused,
            "counts": dict(sorted(counts.items())),
            "model": self.reasoner.name if self.reasoner is not None else None,
            "models_on": self.switch.state().on,
            "strategies": {
                site: {"rationale": one.rationale, "peak_limit_w": one.peak_limit_w, "trade": one.trade}
                for site, one in self.effects.latest.items()
            },
        }


def _row(record: Record) -> Item:
    done = [entry for entry in record.entries if entry.outcome == "done"]
    limit = next((one.proposal["limit_w"] for one in done if one.proposal.get("kind") == "set_peak_limit"), None)
    data: dict[str, JsonValue] = {
        "id": record.id,
        "agent": record.agent,
        "site": record.subject,
        "rationale": "; ".join(str(entry.proposal.get("rationale", "")) for entry in record.entries)[:900],
        "peak_limit_w": limit,
        "model": str(record.model),
        "proposals": [
            {
                "kind": str(entry.proposal.get("kind", "")),
                "origin": entry.origin,
                "outcome": entry.outcome,
                "guard": entry.guard,
                "reason": entry.reason,
            }
            for entry in record.entries
        ],
    }
    return Item(partition="agents#decisions", time_ns=record.time_ns, id=f"{record.agent}-{record.subject}", data=data)
