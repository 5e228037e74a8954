"""The web console: pages that stand on the API alone, so that whoever may not ask the API sees nothing here either.

Templates give a page's frame; its module in ``static/pages`` draws what the API and its live events tell. No build, no CDN, no
inline script: the content security policy allows this server's own files and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from wattmesh_cloud.access.door import principal_of
from wattmesh_cloud.access.model import PERMISSIONS, Permission, Principal
from wattmesh_cloud.api import Services

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class _Page:
    path: str
    module: str
    title: str
    icon: str
    """Name of a symbol in ``static/icons.svg``."""
    host: bool = False
    permission: Permission = Permission.READ


PAGES = (
    _Page("/", "fleet", "Fleet", "fleet"),
    _Page("/frequency", "frequency", "Frequency", "wave"),
    _Page("/market", "market", "Market", "market"),
    _Page("/grid", "grid", "Grid and demand response", "grid"),
    _Page("/agents", "agents", "Agents", "agents"),
    _Page("/lab", "lab", "Hardware lab", "lab", host=True, permission=Permission.ENGINEER),
    _Page("/devices", "devices", "Devices", "devices"),
    _Page("/reports", "reports", "Reports", "reports"),
    _Page("/system", "system", "System", "system"),
)


def attach(app: FastAPI) -> None:
    """Serve the console on ``app``, which :func:`wattmesh_cloud.api.create_api` made."""
    services: Services = app.state.services
    digest = _digest()
    console = _Console(services, f"/static/{digest}")
    app.mount(f"/static/{digest}", _Static(directory=_HERE / "static"), name="static")
    for page in PAGES:
        app.add_api_route(page.path, console.route(page), include_in_schema=False, response_class=HTMLResponse)
    site = _Page("/site/{site_id}", "site", "Site", "fleet")
    app.add_api_route(site.path, console.route(site), include_in_schema=False, response_class=HTMLResponse)
    app.add_api_route("/login", console.login, include_in_schema=False, response_class=HTMLResponse)
    app.add_exception_handler(404, console.missing)


class _Static(StaticFiles):
    """Files whose address changes with their contents: a browser may keep them for ever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["cache-control"] = "public, max-age=31536000, immutable"
        return answer


class _Console:
    def __init__(self, services: Services, static: str) -> None:
        self._services, self._static = services, static
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
        )

    def route(self, page: _Page) -> Any:
        """The handler of a page."""

        async def show(request: Request) -> Response:
            who = principal_of(request.scope)
            if who is None:
                return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
            cookie = None
            if who.kind == "demo" and who.session is None:
                access = self._services.access
                identity, who = access.store.open_session("demo", kind="demo", tenant=who.tenant, role=who.role)
                cookie = access.cookie_text(identity, longest_s=self._services.longest_s)
            answer = self._page(page, who, dict(request.path_params))
            if cookie is not None:
                answer.headers["set-cookie"] = cookie
            return answer

        show.__name__ = page.module
        return show

    async def login(self, request: Request) -> Response:
        """The page that asks who comes."""
        if self._services.access.demo:
            return RedirectResponse("/", 303)
        text = self._templates.get_template("login.html").render(
            static=self._static, oidc=self._services.oidc is not None
        )
        return HTMLResponse(text)

    async def missing(self, request: Request, error: Exception) -> Response:
        """404: JSON for programs, a page with a way back for people."""
        detail = error.detail if isinstance(error, HTTPException) else "not found"
        who = principal_of(request.scope)
        if request.url.path.startswith(("/api/", "/static/", "/metrics")) or who is None:
            return Response(json.dumps({"detail": detail}), 404, media_type="application/json")
        answer = self._page(_Page(request.url.path, "missing", "No such page", "fleet"), who, {})
        answer.status_code = 404
        return answer

    def _page(self, page: _Page, who: Principal, arguments: dict[str, str]) -> HTMLResponse:
        config = self._services.view.market.config
        boot = {
            "page": page.module,
            "title": page.title,
            "arguments": arguments,
            "static": self._static,
            "me": {
                "name": who.name, "kind": who.kind, "role": who.role, "tenant": who.tenant, "host": who.host,
                "permissions": sorted(PERMISSIONS[who.role]), "csrf": who.csrf,
            },
            "time_zone": config.time_zone,
            "currency": config.currency,
            "nominal_hz": self._services.nominal_hz,
            "slot_s": config.slot_s,
        }  # fmt: skip
        links = [one for one in PAGES if who.may(one.permission) and (who.host or not one.host)]
        text = self._templates.get_template("page.html").render(
            page=page, links=links, static=self._static, boot=_embedded(boot), me=who
        )
        return HTMLResponse(text)


def _embedded(data: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest() -> str:
    whole = hashlib.sha256()
    for path in sorted((_HERE / "static").rglob("*")):
        if path.is_file():
            whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:12]
