"""The cloud's agents: what each does, and what it decided and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, After, HostReader, Limit, Reader, page
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView


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
        return [
            m.AgentRow(id=name, address=f"{org}/cloud/{name}", stopped=None, facts=one) for name, one in facts.items()
        ]

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
