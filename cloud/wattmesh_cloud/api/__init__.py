"""The HTTP API, version 1: typed, bounded, behind the door; JSON, CSV, Parquet and server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from wattmesh_a2a.errors import WattmeshError

from wattmesh_cloud.access.commands import Commands
from wattmesh_cloud.access.door import Access, Door
from wattmesh_cloud.access.jobs import Jobs
from wattmesh_cloud.access.oidc import Oidc
from wattmesh_cloud.api.agents import add_agent_commands, agent_routes
from wattmesh_cloud.api.deps import status_of
from wattmesh_cloud.api.examples import add_examples
from wattmesh_cloud.api.grid import add_grid_commands, grid_routes
from wattmesh_cloud.api.lab import lab_routes
from wattmesh_cloud.api.live import LiveHub, live_routes
from wattmesh_cloud.api.market import market_routes
from wattmesh_cloud.api.reports import report_routes
from wattmesh_cloud.api.sites import site_routes
from wattmesh_cloud.api.system import metrics_routes, system_routes
from wattmesh_cloud.api.who import who_routes
from wattmesh_cloud.api.work import add_market_commands, work_routes
from wattmesh_cloud.frequency_live import FrequencyLive
from wattmesh_cloud.lab import LabClient
from wattmesh_cloud.observer import SiteObserver
from wattmesh_cloud.reports.service import ReportService
from wattmesh_cloud.view import CloudView

PREFIX = "/api/v1"
_ABOUT = (
    "Sites, market, grid and agents of a fleet. Times are UTC nanoseconds; power in watts, positive into the component; prices "
    "0.01 ct/kWh. Programs send `Authorization: Bearer TOKEN`; browsers a session's cookie and, with every change, X-CSRF-Token."
)


@dataclass(kw_only=True)
class Services:
    """What the API stands on."""

    view: CloudView
    access: Access
    commands: Commands
    jobs: Jobs
    audit: Path
    nominal_hz: float = 60.0
    oidc: Oidc | None = None
    longest_s: int = 43_200
    frequency: FrequencyLive = field(default_factory=FrequencyLive)
    observer: SiteObserver | None = None
    lab: LabClient | None = None
    reports: ReportService | None = None
    facts: Callable[[], dict[str, Any]] = dict


class _Api(FastAPI):
    """An application whose description has an example for every answer."""

    def openapi(self) -> dict[str, Any]:
        """The description; made once."""
        fresh = self.openapi_schema is None
        description = super().openapi()
        if fresh:
            add_examples(description)
        return description


def create_api(
    services: Services, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None
) -> FastAPI:
    """The application over a running cloud, behind its door."""
    app = _Api(
        title="WattMesh",
        version="1",
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        swagger_ui_oauth2_redirect_url=None,
    )
    view = services.view
    hub = LiveHub(view, services.frequency)
    app.state.services, app.state.hub = services, hub
    if services.observer is not None:
        services.observer.wanted = hub.wants_frequency
    for add in (add_market_commands, add_grid_commands, add_agent_commands):
        add(services.commands, view)
    time_zone = view.market.config.time_zone
    for routes in (
        who_routes(services.access, services.oidc, time_zone, services.longest_s),
        site_routes(view, services.observer, services.frequency),
        market_routes(view),
        grid_routes(view, services.nominal_hz),
        agent_routes(view),
        lab_routes(services.lab),
        report_routes(view, services.reports, services.jobs),
        work_routes(view, services.commands, services.jobs),
        system_routes(view, services.facts, services.audit),
        live_routes(view, hub, services.access),
    ):
        app.include_router(routes, prefix=PREFIX)
    app.include_router(metrics_routes(view))
    app.add_exception_handler(WattmeshError, _ours)
    app.add_exception_handler(RequestValidationError, _wrong_field)
    app.add_middleware(Door, access=services.access)
    return app


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, WattmeshError)
    return JSONResponse({"detail": str(error)}, status_of(error))


async def _wrong_field(request: Request, error: Exception) -> JSONResponse:
    """One line a mistake: where, and what is allowed."""
    assert isinstance(error, RequestValidationError)
    lines = []
    for one in error.errors()[:5]:
        where = ".".join(str(part) for part in one["loc"][1:]) or str(one["loc"][0])
        lines.append(f"{where[:100]}: {one['msg']}")
    return JSONResponse({"detail": "; ".join(lines)}, 422)
