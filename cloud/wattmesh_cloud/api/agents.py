"""The cloud's agents: what each does, and what it decided and why."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from fastapi import Path as InPath
from pydantic import Field

from wattmesh_cloud.access.commands import Asked, Commands, Kind
from wattmesh_cloud.access.model import Permission, Principal
from wattmesh_cloud.agents.approvals import ApprovalState
from wattmesh_cloud.agents.conversations import Turn, newest_of, turns_of
from wattmesh_cloud.agents.proposals import parse
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, After, HostOperator, HostReader, Limit, Reader, page
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.tools.base import OPERATOR, READER, Caller
from wattmesh_cloud.view import CloudView

ConversationId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_.:@-]{1,128}$")]
ApprovalId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_.:-]{1,150}$")]


def add_agent_commands(commands: Commands, view: CloudView) -> None:
    """The kill switch: off at once, on again with a second step."""

    async def off(who: Principal, wanted: SwitchReason, asked: Asked) -> str:
        await asyncio.to_thread(view.strategy.switch.off, who.actor, wanted.why, view.clock.utc_ns())
        return "no model has an effect from now on; the policies go on"

    async def on(who: Principal, wanted: SwitchReason, asked: Asked) -> str:
        await asyncio.to_thread(view.strategy.switch.on, who.actor, wanted.why, view.clock.utc_ns())
        return "models may refine again"

    operate = Permission.OPERATE
    commands.add(
        Kind(name="models.off", title="Switch all models off", permission=operate, arguments=SwitchReason, run=off)
    )
    commands.add(
        Kind(
            name="models.on",
            title="Switch models on",
            permission=operate,
            arguments=SwitchReason,
            run=on,
            steps="confirm",
        )
    )


class SwitchReason(m.Request):
    """Why, for the log."""

    why: Annotated[str, Field(max_length=200)] = ""


def _people_routes(routes: APIRouter, view: CloudView) -> None:
    strategy, clock = view.strategy, view.clock

    @routes.get("/switch")
    async def get_switch(who: Reader) -> m.SwitchAnswer:
        """Whether models may have an effect, and who said so."""
        state = await asyncio.to_thread(strategy.switch.state)
        name = strategy.reasoner.name if strategy.reasoner is not None else None
        return m.SwitchAnswer(on=state.on, actor=state.actor, reason=state.reason, time_ns=state.time_ns, model=name)

    @routes.get("/approvals")
    async def list_approvals(
        who: HostReader, waiting: bool = True, limit: Annotated[int, Query(ge=1, le=500)] = 100
    ) -> list[m.ApprovalRow]:
        """Proposals that wait for a person, or all of them; newest first."""
        state = ApprovalState.WAITING if waiting else None
        found = await asyncio.to_thread(
            lambda: strategy.approvals.requests(state=state, limit=limit, now_ns=clock.utc_ns())
        )
        return [m.ApprovalRow.model_validate(one.plain()) for one in found]

    @routes.post("/approvals/{approval_id}/approve")
    async def approve_proposal(who: HostOperator, approval_id: ApprovalId, wanted: m.ApprovalDecision) -> m.ApprovalRow:
        """Say yes; the effect follows at the agents' next look, after the guards have looked again."""
        found = await asyncio.to_thread(
            strategy.approvals.approve, approval_id, f"operator:{who.name}", clock.utc_ns(), wanted.note
        )
        return m.ApprovalRow.model_validate(found.plain())

    @routes.post("/approvals/{approval_id}/refuse")
    async def refuse_proposal(who: HostOperator, approval_id: ApprovalId, wanted: m.ApprovalDecision) -> m.ApprovalRow:
        """Say no."""
        found = await asyncio.to_thread(
            strategy.approvals.refuse, approval_id, f"operator:{who.name}", clock.utc_ns(), wanted.note
        )
        return m.ApprovalRow.model_validate(found.plain())

    @routes.post("/ask")
    async def ask_agents(who: Reader, wanted: m.Question) -> m.AgentAnswer:
        """A question in words, answered from records that it cites; what a role may not see is not in the answer."""
        roles = {READER} | ({OPERATOR} if who.may(Permission.OPERATE) else set())
        caller = Caller(id=f"operator:{who.name}", roles=frozenset(roles), sites=who.sites)
        answer = await strategy.ask(wanted.question, caller)
        return m.AgentAnswer.model_validate(answer.plain())

    @routes.post("/proposals", status_code=201)
    async def propose(who: HostOperator, wanted: m.NewProposal) -> m.AgentRecord:
        """Ask an agent for something: its guards have the word, and where they say so, a person."""
        proposal = parse({"rationale": "asked for by hand", **wanted.proposal})
        record = await strategy.propose(wanted.agent, wanted.about, proposal, f"operator:{who.name}")
        return m.AgentRecord.model_validate(record.plain())


def _conversation_routes(routes: APIRouter, view: CloudView) -> None:
    database = view.strategy.database

    @routes.get("/conversations")
    async def list_conversations(
        who: Reader, limit: Annotated[int, Query(ge=1, le=200)] = 50
    ) -> list[m.ConversationRow]:
        """Agents that asked each other, the newest first; of other tenants' sites nothing is told."""
        found = await asyncio.to_thread(newest_of, database, limit, who.sites)
        return [m.ConversationRow.model_validate(one) for one in found]

    @routes.get("/conversations/{conversation_id}")
    async def get_conversation(who: Reader, conversation_id: ConversationId) -> list[m.TurnRow]:
        """The turns of a conversation in their order: what was asked, answered, refused, and from what."""
        found = await asyncio.to_thread(turns_of, database, conversation_id, who.sites)
        if not found:
            raise HTTPException(404, "there is no such conversation, or it is not about yours")
        return [_turn(one) for one in found]


def _turn(one: Turn) -> m.TurnRow:
    body = one.body
    text = body.get({"question": "question", "answer": "text"}.get(one.what, "error"), "")
    return m.TurnRow(
        number=one.number, time_ns=one.time_ns, speaker=one.speaker, listener=one.listener, what=one.what,
        subject=body.get("subject"), text=text, source=body.get("source"), citations=body.get("citations", []),
        situation=body.get("situation"),
    )  # fmt: skip


def agent_routes(view: CloudView) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/agents", tags=["agents"], responses=PROBLEMS)

    @routes.get("")
    async def list_agents(who: Reader) -> list[m.AgentRow]:
        """All agents with their figures."""
        strategies = view.strategy.snapshot()
        forecasting = {name: value for name, value in view.forecasting.snapshot().items() if name != "sites"}
        grid = view.grid.snapshot()
        market = view.market.snapshot()
        facts = {
            "market-supervisor": {
                name: market[name] for name in ("trades", "slots_cleared", "slots_settled", "halted")
            },
            "forecasting": forecasting,
            "grid-optimisation": {name: grid[name] for name in ("status", "reason", "frequency_events")},
            "producer": {"refused": strategies["refused"]},
            "consumer": {"refused": strategies["refused"]},
        }
        org = view.market.address.org
        return [m.AgentRow(id=name, address=f"{org}/cloud/{name}", facts=one) for name, one in facts.items()]

    @routes.get("/decisions")
    async def list_agent_decisions(who: Reader, limit: Limit = 100, after: After = None) -> m.Page[m.AgentDecisionRow]:
        """What the agents chose for the own sites, newest first."""
        found, more = await page(view, Table.MARKET_DATA, "agents#decisions", limit, after)
        rows = []
        for one in found:
            data = dict(one.data)
            site = data.pop("site", None)
            if (site is None and who.host) or (isinstance(site, str) and who.sees(site)):
                rows.append(
                    m.AgentDecisionRow(
                        id=one.id, time_ns=one.time_ns, agent=str(data.pop("agent", "")), site_id=site,
                        rationale=str(data.pop("rationale", "")), details=data,
                    )
                )  # fmt: skip
        return m.Page(rows=rows, next=more)

    @routes.get("/records")
    async def list_agent_records(
        who: Reader,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        agent: Annotated[str | None, Query(pattern=r"^[a-z-]{3,40}$")] = None,
        about: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = None,
    ) -> list[m.AgentRecord]:
        """Whole decisions, newest first: what an agent saw, proposed, was refused, did, and what came of it."""
        memory = view.strategy.memory
        if about is not None:
            found = await asyncio.to_thread(memory.recall, about, agent=agent, limit=limit)
        else:
            found = await asyncio.to_thread(memory.newest, 4 * limit, agent)
        own = [one for one in found if who.host or one["subject"] in (who.sites or ())]
        return [m.AgentRecord.model_validate(one) for one in own[:limit]]

    _people_routes(routes, view)
    _conversation_routes(routes, view)

    @routes.get("/registry")
    async def list_registry(
        who: HostReader,
        online: bool | None = None,
        takes: Annotated[str | None, Query(max_length=200, description="A type of request")] = None,
        limit: Limit = 1000,
    ) -> list[m.CardRow]:
        """Every agent that has shown a card: version, what it takes, whether it is there, when it was last heard."""
        return [m.CardRow.model_validate(one) for one in view.agents(online=online, takes=takes, limit=limit)]

    return routes
