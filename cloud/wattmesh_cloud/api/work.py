"""Commands with confirmation and approval, jobs, alarms that were seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, HTTPException
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from wattmesh_cloud.access.commands import Asked, Command, Commands, Kind
from wattmesh_cloud.access.jobs import Job, Jobs
from wattmesh_cloud.access.model import Permission, Principal
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, Limit, Operator, Reader, known_site
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.view import CloudView

Identity = Annotated[str, InPath(pattern=r"^[0-9a-f]{8,32}$")]
Before = Annotated[str | None, Field(pattern=r"^[0-9]{1,15}$")]
FileName = Annotated[str, InPath(pattern=r"^[\w.-]{1,100}$")]
AlarmId = Annotated[str, InPath(pattern=r"^[^/\x00-\x1f]{1,200}$")]


class OfArea(BaseModel):
    """A market area."""

    model_config = ConfigDict(extra="forbid")

    area: m.SiteName | None = Field(default=None, description="The first where it is left out")


class OfParticipant(BaseModel):
    """A participant of the market."""

    model_config = ConfigDict(extra="forbid")

    participant: m.SiteName


def add_market_commands(commands: Commands, view: CloudView) -> None:
    """What may be done to the market beside orders."""
    markets = view.markets

    async def halt(who: Principal, wanted: OfArea, asked: Asked) -> str:
        market = markets.area(wanted.area)
        await market.halt(f"{who.actor}: by hand")
        return f"{market.config.area} is halted: {market.engine.halted}"

    async def resume(who: Principal, wanted: OfArea, asked: Asked) -> str:
        market = markets.area(wanted.area)
        await market.resume()
        halted = market.engine.halted
        return f"{market.config.area} stays halted: {halted}" if halted else f"{market.config.area} takes orders again"

    async def suspend(who: Principal, wanted: OfParticipant, asked: Asked) -> str:
        taken = await markets.suspend(wanted.participant, f"{who.actor}: by hand")
        return f"{wanted.participant} is suspended, {taken} open orders taken back"

    async def reinstate(who: Principal, wanted: OfParticipant, asked: Asked) -> str:
        await markets.reinstate(wanted.participant)
        return f"{wanted.participant} may trade again"

    operate = Permission.OPERATE
    for kind in (
        Kind(name="market.halt", title="Halt the market", permission=operate, arguments=OfArea, run=halt),
        Kind(
            name="market.resume", title="Resume the market", permission=operate, arguments=OfArea, run=resume,
            steps="confirm",
        ),
        Kind(name="market.suspend", title="Suspend a participant", permission=operate, arguments=OfParticipant, run=suspend),
        Kind(
            name="market.reinstate", title="Reinstate a participant", permission=operate, arguments=OfParticipant,
            run=reinstate, steps="confirm",
        ),
    ):  # fmt: skip
        commands.add(kind)


def work_routes(view: CloudView, commands: Commands, jobs: Jobs) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["work"], responses=PROBLEMS)

    @routes.get("/commands/kinds")
    async def list_command_kinds(who: Reader) -> list[m.CommandKind]:
        """What I may ask for, with its arguments."""
        return [
            m.CommandKind(
                kind=one.name, title=one.title, permission=one.permission, steps=one.steps, host_only=one.host,
                arguments=one.arguments.model_json_schema(),
            )
            for _, one in sorted(commands.kinds.items())
            if who.may(one.permission) and (who.host or not one.host)
        ]  # fmt: skip

    @routes.get("/commands")
    async def list_commands(who: Reader, limit: Limit = 50, before: Before = None) -> m.Page[m.CommandRow]:
        """What was asked for, newest first; `next` goes into `before`."""
        found, more = commands.list(who, limit, None if before is None else int(before))
        return m.Page(rows=[_command(one) for one in found], next=None if more is None else str(more))

    @routes.post("/commands", status_code=201)
    async def ask_command(who: Reader, wanted: m.NewCommand) -> m.CommandRow:
        """Ask for something; where `state` is waiting, a second step is needed. Each kind needs its own right."""
        return _command(await commands.ask(who, wanted.kind, wanted.arguments, wanted.reason, wanted.idempotency_key))

    @routes.get("/commands/{command_id}")
    async def get_command(who: Reader, command_id: Identity) -> m.CommandRow:
        """One command."""
        async with _found():
            return _command(commands.get(who, command_id))

    @routes.post("/commands/{command_id}/confirm")
    async def confirm_command(who: Reader, command_id: Identity, wanted: m.Confirmation) -> m.CommandRow:
        """The second step: type what `confirm` says. Where it needs approval, somebody else does."""
        async with _found():
            return _command(await commands.confirm(who, command_id, wanted.confirm))

    @routes.post("/commands/{command_id}/reject")
    async def reject_command(who: Reader, command_id: Identity) -> m.CommandRow:
        """Let a waiting command be."""
        async with _found():
            return _command(await commands.reject(who, command_id))

    @routes.post("/sites/{site_id}/alarms/{alarm_id}/acknowledge")
    async def acknowledge_alarm(who: Operator, site_id: m.SiteName, alarm_id: AlarmId) -> m.AlarmRow:
        """Say that somebody has seen an alarm and looks after it."""
        site_id = known_site(view, who, site_id)
        alarm = view.alarms.acknowledge(site_id, alarm_id, who.name)
        if alarm is None:
            raise HTTPException(404, f"no such alarm stands at {site_id}; it may be over")
        row = Item(partition=f"{site_id}#seen", time_ns=alarm.raised_ns, id=alarm.id, data={"by": who.name})
        await asyncio.to_thread(view.store.put, Table.GRID_METRICS, [row])
        return m.AlarmRow.model_validate({**asdict(alarm), "acknowledged_by": who.name})

    _job_routes(routes, jobs)
    return routes


def _job_routes(routes: APIRouter, jobs: Jobs) -> None:
    @routes.get("/jobs")
    async def list_jobs(who: Reader) -> list[m.JobRow]:
        """Longer work, newest first."""
        return [m.JobRow.model_validate(one) for one in jobs.list(who)]

    @routes.get("/jobs/{job_id}")
    async def get_job(who: Reader, job_id: Identity) -> m.JobRow:
        """One job."""
        return m.JobRow.model_validate(_job(jobs, who, job_id))

    @routes.get(
        "/jobs/{job_id}/files/{name}",
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "The file"}},
    )
    async def get_job_file(who: Reader, job_id: Identity, name: FileName) -> FileResponse:
        """A result of a job."""
        path = jobs.file(_job(jobs, who, job_id), name)
        if path is None or not path.is_file():
            raise HTTPException(404, "this job has no such file")
        return FileResponse(path, filename=name, media_type="application/octet-stream")


def _job(jobs: Jobs, who: Principal, identity: str) -> Job:
    job = jobs.get(who, identity)
    if job is None:
        raise HTTPException(404, "there is no such job, or it is not yours")
    return job


@asynccontextmanager
async def _found() -> AsyncIterator[None]:
    try:
        yield
    except LookupError:
        raise HTTPException(404, "there is no such command, or it is not yours") from None


def _command(one: Command) -> m.CommandRow:
    return m.CommandRow.model_validate(one)
