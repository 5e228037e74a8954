"""The five agents at work: when each of them looks, what came of a day, and what a person has approved."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import Envelope
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import IntervalEnergy, Message
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.agents.approvals import ApprovalQueue
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.agents.contract import ModelOutcome, Reasoner, Record
from wattmesh_cloud.agents.controls import Budget, BudgetLimits, KillSwitch
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.desk import Desk, Look
from wattmesh_cloud.agents.effects import Services
from wattmesh_cloud.agents.feedback import Feedback
from wattmesh_cloud.agents.guards import Guards
from wattmesh_cloud.agents.learning import PARAMETERS, Learner
from wattmesh_cloud.agents.looks import Looks, Sources
from wattmesh_cloud.agents.memory import LocalMemory
from wattmesh_cloud.agents.proposals import Proposal, subject
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

_STEP_NS = 300 * NS_PER_S
_HOUR_NS = 3600 * NS_PER_S
_DAY_NS = 24 * _HOUR_NS


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
    ) -> None:
        model = config.model
        self.config = config
        self._store, self._clock = store, clock
        self.database = Database(state / "agents.sqlite")
        self.memory = LocalMemory(self.database)
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
        self._sources, self._messenger = sources, messenger
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
            await self.decide("market-supervisor", self.looks.market)
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

    async def finish(self) -> None:
        """End what is under way."""
        await self.desk.finish()
        tasks = list(self.effects.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.reasoner is not None:
            await self.reasoner.close()

    def close(self) -> None:
        """Release the memory's file."""
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
