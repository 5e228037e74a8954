"""The grid's state, demand response, emergencies."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.tariff import price_ticks

from wattmesh_cloud.access.commands import Asked, Commands, Kind
from wattmesh_cloud.access.model import Permission, Principal
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, After, HostOperator, HostReader, Limit, Reader, page
from wattmesh_cloud.grid.emergency import Ask, Mode
from wattmesh_cloud.grid.records import EventPlan
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView

_OF_SITES = ("offers", "dispatched_w", "delivered_wh", "dispatched_wh", "measured_wh", "paid_units", "left_out")
_SLOT_NS = 900 * NS_PER_S
_APPROVAL_S = 900
"""An emergency that nobody approved for so long is another situation."""


class NewResponse(m.Request):
    """A demand-response event that an operator wants."""

    start_ns: m.Time | None = Field(default=None, description="A quarter hour; as soon as may be where left out")
    duration_s: Annotated[int, Field(ge=900, le=14_400, multiple_of=900)] = 3600
    target_w: Annotated[
        int, Field(ge=-(10**9), le=10**9, description="Change of grid power; negative asks for less import")
    ]
    price_ticks: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    area: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""


class OfEvent(m.Request):
    """An event."""

    event_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")]


class NewEmergency(m.Request):
    """The first of two steps: what would be done. Nothing is sent yet."""

    mode: Mode
    stage: Annotated[int, Field(ge=1, le=20)]
    area: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$", description="The first area where left out")] = ""
    drill: bool = Field(default=False, description="For practice: gateways answer what they would do")
    reason: m.Reason


class OfEmergency(m.Request):
    """An emergency that somebody else has to approve."""

    mode: Mode
    stage: Annotated[int, Field(ge=1, le=20)]
    area: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$", description="The first area where left out")] = ""


class EmergencyAsked(m.Answer):
    """What waits for the second step."""

    token: str
    confirm: str = Field(description="What has to be typed to confirm")
    mode: str
    stage: int
    area_id: str
    drill: bool
    expires_ns: m.Time
    preview: dict[str, dict[str, Any]] = Field(description="By site: power now, and the limits it would get")


class EmergencyConfirmation(m.Request):
    """The second step: its token, and its word typed."""

    token: Annotated[str, Field(min_length=4, max_length=100)]
    confirm: Annotated[str, Field(min_length=1, max_length=40)]


class EmergencyRelease(m.Request):
    """The end of what stands in an area."""

    area: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    reason: m.Reason


class EmergencyRow(m.Answer):
    """What stands, or stood."""

    id: str
    mode: str
    stage: int
    area_id: str
    drill: bool
    reason: str
    began_ns: m.Time
    ends_ns: m.Time


class EmergencyView(m.Answer):
    """Emergencies and drills."""

    standing: list[dict[str, Any]]
    waiting: list[dict[str, Any]]
    over: list[dict[str, Any]]
    stages: list[dict[str, Any]]


class AreaRow(m.Answer):
    """An area's balance now."""

    area_id: str
    sites: int
    known: int
    grid_w: float
    load_w: float
    pv_w: float
    battery_w: float
    rated_w: float | None
    loading: float | None


class WarningRow(m.Answer):
    """Something that will be outside its limit, by the forecasts."""

    id: str
    area_id: str
    kind: str
    element: str
    start_ns: m.Time
    end_ns: m.Time
    lead_s: int
    value: float
    limit: float
    level: str


def add_grid_commands(commands: Commands, view: CloudView) -> None:
    """What an operator may ask of the grid service in one step."""
    grid = view.grid

    async def event(who: Principal, wanted: NewResponse, asked: Asked) -> str:
        config = grid.config.demand_response
        now = view.clock.utc_ns()
        soonest = -(-(now + config.notice_s * NS_PER_S) // _SLOT_NS) * _SLOT_NS
        start = wanted.start_ns if wanted.start_ns is not None else soonest
        plan = EventPlan(
            start_ns=start,
            end_ns=start + wanted.duration_s * NS_PER_S,
            target_w=wanted.target_w,
            price_ticks=wanted.price_ticks if wanted.price_ticks is not None else price_ticks(config.price),
            reason=f"asked for by {who.actor}",
            area_id=wanted.area,
            source="operator",
        )
        made = grid.create_event(plan, who.actor)
        return f"event {made.id} is announced"

    async def cancel(who: Principal, wanted: OfEvent, asked: Asked) -> str:
        grid.cancel_event(wanted.event_id, "by hand", who.actor)
        return f"event {wanted.event_id} is cancelled"

    operate = Permission.OPERATE
    commands.add(
        Kind(
            name="grid.event",
            title="Call a demand-response event",
            permission=operate,
            arguments=NewResponse,
            run=event,
        )
    )
    commands.add(
        Kind(
            name="grid.cancel",
            title="Cancel an event",
            permission=operate,
            arguments=OfEvent,
            run=cancel,
            steps="confirm",
        )
    )

    _add_emergency_command(commands, view)


def _add_emergency_command(commands: Commands, view: CloudView) -> None:
    """An emergency with four eyes, whatever the file says of `two_persons`: nothing is sent until somebody else approves."""
    grid = view.grid

    def known(wanted: OfEmergency) -> None:
        stages = [one.id for one in grid.config.emergency.stages]
        if wanted.mode is not Mode.BLACK_START and wanted.stage not in stages:
            raise InvalidMessageError(f"arguments.stage: there is no stage {wanted.stage}; there are: {stages}")
        areas = [one.area_id for one in grid.areas()]
        if wanted.area and wanted.area not in areas:
            raise InvalidMessageError(f"arguments.area: there is no area {wanted.area!r}; there are: {areas}")

    async def declare(who: Principal, wanted: OfEmergency, asked: Asked) -> str:
        area = wanted.area or grid.areas()[0].area_id
        step = grid.declare_emergency(wanted.mode, wanted.stage, area_id=area, reason=asked.reason, by=asked.by)
        made = grid.confirm_emergency(step.token, who.actor)
        return f"{made.id}: stage {made.stage} ({made.mode}) is in force"

    commands.add(
        Kind(
            name="grid.emergency", title="Declare an emergency", permission=Permission.OPERATE, arguments=OfEmergency, run=declare,
            steps="approve", check=known, wait_s=_APPROVAL_S,
        )
    )  # fmt: skip


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
        events: list[Any] = view.grid.events()
        return [_own(who, one) for one in sorted(events, key=lambda one: -one["start_ns"])[:500]]

    @routes.get("/areas")
    async def list_grid_areas(who: HostReader) -> list[AreaRow]:
        """Load and production of every area now."""
        return [AreaRow.model_validate(one) for one in view.grid.areas()]

    @routes.get("/warnings")
    async def list_warnings(who: HostReader) -> list[WarningRow]:
        """What the forecasts put outside its limits in the coming day, the soonest first."""
        return [WarningRow.model_validate(one) for one in view.grid.warnings()]

    _emergency_routes(routes, view)
    return routes


def _emergency_routes(routes: APIRouter, view: CloudView) -> None:
    @routes.get("/emergencies")
    async def get_emergencies(who: HostReader) -> EmergencyView:
        """What stands, what waits for its second step, what was, and the stages there are."""
        return EmergencyView.model_validate(view.grid.emergency.view())

    @routes.post("/emergencies", status_code=201)
    async def ask_emergency(who: HostOperator, wanted: NewEmergency) -> EmergencyAsked:
        """The first step of an emergency or a drill: a token, and what would happen. Nothing does yet."""
        area = wanted.area or view.grid.areas()[0].area_id
        asked = view.grid.declare_emergency(
            wanted.mode, wanted.stage, area_id=area, reason=wanted.reason, by=who.actor, drill=wanted.drill
        )
        names = [one.name for one in dataclasses.fields(asked)]
        plain = {name: getattr(asked, name) for name in names}
        return EmergencyAsked.model_validate({**plain, "mode": str(asked.mode), "confirm": _word(asked)})

    @routes.post("/emergencies/confirm")
    async def confirm_emergency(who: HostOperator, wanted: EmergencyConfirmation) -> EmergencyRow:
        """The second step: it takes effect."""
        if wanted.confirm not in {"DRILL", *(one.name for one in Mode)}:
            raise InvalidMessageError("confirm: type the word that the first step gave")
        made = view.grid.confirm_emergency(wanted.token, who.actor)
        return EmergencyRow.model_validate(made)

    @routes.post("/emergencies/release")
    async def release_emergency(who: HostOperator, wanted: EmergencyRelease) -> m.Done:
        """End what stands in an area."""
        view.grid.release_emergency(wanted.area or view.grid.areas()[0].area_id, wanted.reason, who.actor)
        return m.Done(detail="released")


def _word(asked: Ask) -> str:
    return "DRILL" if asked.drill else asked.mode.name


def _own(who: Principal, event: dict[str, Any]) -> m.ResponseRow:
    """An event without the other tenants' parts."""
    mine = {name: {site: value for site, value in event.get(name, {}).items() if who.sees(site)} for name in _OF_SITES}
    return m.ResponseRow.model_validate({**event, **mine})
