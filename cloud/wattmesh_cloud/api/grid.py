"""The grid's state and demand response."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from wattmesh_cloud.access.model import Principal
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, After, Limit, Reader, page
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView

_OF_SITES = ("offers", "dispatched_w", "delivered_wh")


def grid_routes(view: CloudView, nominal_hz: float) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/grid", tags=["grid"], responses=PROBLEMS)

    @routes.get("")
    async def get_grid(who: Reader) -> m.GridAnswer:
        """Status and frequency as the gateways see them."""
        return m.GridAnswer.model_validate({**view.grid.snapshot(), "nominal_hz": nominal_hz})

    @routes.get("/status")
    async def list_grid_status(who: Reader, limit: Limit = 50, after: After = None) -> m.Page[m.GridStatusRow]:
        """Changes of the grid's status, newest first."""
        found, more = await page(view, Table.GRID_METRICS, "fleet#grid", limit, after)
        rows = [m.GridStatusRow.model_validate({**one.data, "id": one.id, "time_ns": one.time_ns}) for one in found]
        return m.Page(rows=rows, next=more)

    @routes.get("/demand-response")
    async def list_demand_response(who: Reader) -> list[m.ResponseRow]:
        """Events: announced, under way, settled; the newest first."""
        events: Any = view.grid.snapshot()["demand_response"]
        return [_own(who, one) for one in sorted(events, key=lambda one: -one["start_ns"])[:500]]

    return routes


def _own(who: Principal, event: dict[str, Any]) -> m.ResponseRow:
    """An event without the other tenants' parts."""
    mine = {name: {site: value for site, value in event[name].items() if who.sees(site)} for name in _OF_SITES}
    return m.ResponseRow.model_validate({**event, **mine})
