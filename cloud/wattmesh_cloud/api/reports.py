"""Reports: figures for the page, files as jobs, and what was written by itself."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.access.jobs import Jobs, Progress
from wattmesh_cloud.access.model import Principal
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, Reader, known_site
from wattmesh_cloud.reports.figures import Figures, build, span_of
from wattmesh_cloud.reports.service import ReportService
from wattmesh_cloud.view import CloudView

_MOST_SITES = 500

Day = Annotated[
    str, Query(pattern=r"^\d{4}-\d{2}-\d{2}$", description="A day of the period, local time", examples=["2022-09-01"])
]
Site = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="All own sites where left out")]
Name = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_.-]{1,120}\.(pdf|json)$")]


class ReportSite(m.Answer):
    """A site's figures; money paid positive."""

    site_id: str
    slots: int
    expected_slots: int
    availability: float
    import_wh: int
    export_wh: int
    pv_wh: int
    load_wh: int
    charged_wh: int
    discharged_wh: int
    cost: float
    settled_slots: int
    cost_no_battery: float
    cost_self_consumption: float
    peak_import_w: int
    peak_ns: int | None
    peak_no_battery_w: int
    trades: int
    traded_wh: int
    trade_price_ticks: int | None
    flexibility: float
    frequency_events: int
    answered_events: int
    detection_to_write_ms: float | None
    largest_response_w: float
    alarms: int


class ReportBar(m.Answer):
    """Energy of an hour or a day."""

    time_ns: m.Time
    load_wh: int
    pv_wh: int
    import_wh: int
    export_wh: int


class ReportFigures(m.Answer):
    """A report as figures."""

    title: str
    period: m.ReportPeriod
    start_ns: m.Time
    end_ns: m.Time
    time_zone: str
    currency: str
    sites: list[ReportSite]
    bars: list[ReportBar]
    demand_response: list[dict[str, Any]]
    baselines: dict[str, str] = {}


class KeptReport(m.Answer):
    """A report that was written by itself."""

    name: str
    bytes: int
    written_s: float


def report_routes(view: CloudView, reports: ReportService | None, jobs: Jobs) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/reports", tags=["reports"], responses=PROBLEMS)

    def figures(who: Principal, period: str, start: str, site: str | None) -> Figures:
        sites = [known_site(view, who, site)] if site is not None else who.visible(view.site_ids())[:_MOST_SITES]
        return build(view, period, start, sites, title=f"{site or who.tenant}: report of a {period}")

    @routes.get("/figures")
    async def get_report(who: Reader, period: m.ReportPeriod, start: Day, site_id: Site = None) -> ReportFigures:
        """The figures of a day, week or month, of a site or of all own sites."""
        made = await asyncio.to_thread(figures, who, str(period), start, site_id)
        return ReportFigures.model_validate(made.plain())

    @routes.post("", status_code=201)
    async def make_report(who: Reader, wanted: m.NewReport) -> m.JobRow:
        """Write a report as PDF, CSV and JSON; a job, whose files are ready when it is done."""
        span_of(str(wanted.period), wanted.start, UTC)
        if wanted.site_id is not None:
            known_site(view, who, wanted.site_id)

        async def work(folder: Path, progress: Progress) -> None:
            progress(0.1, "reading the store")
            made = await asyncio.to_thread(figures, who, str(wanted.period), wanted.start, wanted.site_id)
            progress(0.6, "writing the files")
            await asyncio.to_thread(_write, made, folder)
            progress(1.0, made.title)

        return m.JobRow.model_validate(jobs.ask(who, "report", work))

    @routes.get("")
    async def list_reports(who: Reader) -> list[KeptReport]:
        """Reports that were written by themselves, newest first."""
        found = await asyncio.to_thread(reports.kept, who.tenant) if reports is not None else []
        return [KeptReport.model_validate(one) for one in found]

    @routes.get(
        "/{name}",
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}, "description": "The file"}},
    )
    async def get_report_file(who: Reader, name: Name) -> FileResponse:
        """One of them."""
        path = reports.file(who.tenant, name) if reports is not None else None
        if path is None:
            raise HTTPException(404, "there is no such report")
        return FileResponse(path, filename=name, media_type="application/octet-stream")

    return routes


def _write(made: Figures, folder: Path) -> None:
    try:
        from wattmesh_cloud.reports.document import write_csv, write_pdf
    except ModuleNotFoundError as error:
        raise ConfigurationError("PDF reports need ReportLab: pip install 'wattmesh[console]'") from error
    stamp = datetime.fromtimestamp(made.start_ns // 1_000_000_000, tz=UTC).strftime("%Y-%m-%d")
    write_pdf(made, folder / f"{made.period}-{stamp}.pdf")
    write_csv(made, folder / f"{made.period}-{stamp}.csv")
    (folder / f"{made.period}-{stamp}.json").write_text(json.dumps(made.plain()), encoding="utf-8")
