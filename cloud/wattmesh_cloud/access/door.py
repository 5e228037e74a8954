"""The door that every request passes: address, size, pace, identity, forgery, and the headers of every answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import UnavailableError

from wattmesh_cloud.access.limits import Buckets
from wattmesh_cloud.access.model import HOST_TENANT, Principal, Role
from wattmesh_cloud.access.store import AccessStore
from wattmesh_cloud.audit import AuditLog

MOST_BODY = 1_000_000
CSRF_HEADER = "x-csrf-token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_LOGIN = "/api/v1/login"

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(kw_only=True)
class Access:
    """Everything the door needs to know.

    ``real`` is the machine's clock; ``fleet`` the fleet's, in which the audit log is written.
    """

    store: AccessStore
    audit: AuditLog
    fleet: Clock
    demo: bool = False
    secure: bool = False
    """Whether people come by TLS: cookies are for it alone."""
    hosts: frozenset[str] = _LOOPBACK
    """Names that a request may call us by."""
    requests_per_s: float = 50.0

    def __post_init__(self) -> None:
        """Make the buckets."""
        self.requests = Buckets(self.requests_per_s, 5 * self.requests_per_s)
        self.logins = Buckets(5 / 60, 5)

    @property
    def cookie(self) -> str:
        """Name of the session's cookie; the prefix binds it to TLS and to this very host (RFC 6265bis)."""
        return "__Host-wattmesh" if self.secure else "wattmesh"

    def cookie_text(self, identity: str, *, longest_s: int) -> str:
        """A ``Set-Cookie`` value."""
        secure = "; Secure" if self.secure else ""
        return f"{self.cookie}={identity}; Path=/; HttpOnly; SameSite=Lax; Max-Age={longest_s}{secure}"

    def identify(self, headers: Headers) -> Principal | None:
        """Who sends a request: a token, else a session, else, in the demo, the person at this machine."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind:
            return self.store.of_token(token.strip()) if kind.lower() == "bearer" else None
        cookies = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return self._visitor()
        morsel = cookies.get(self.cookie)
        found = self.store.of_session(morsel.value) if morsel is not None else None
        return found or self._visitor()

    def _visitor(self) -> Principal | None:
        return (
            Principal(name="demo", kind="demo", role=Role.ADMIN, tenant=HOST_TENANT, sites=None) if self.demo else None
        )

    async def note(self, who: str, action: str, outcome: str, **detail: str | float | bool | None) -> None:
        """Write into the audit log; raises :class:`UnavailableError` where the disk does not take it."""
        await asyncio.to_thread(self.audit.write, self.fleet.utc_ns(), who, action, outcome, detail)


class Door:
    """The ASGI middleware. The principal stands in ``scope["state"]["principal"]`` afterwards, or none does."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope.setdefault("state", {})
        answering = self._answering(scope, send)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            status, detail, more = refusal
            await _answer(answering, status, detail, more)
            return
        limit = MOST_BODY
        if int(headers.get("content-length") or 0) > limit:
            await _answer(answering, 413, f"the request is larger than {limit} bytes", {})
            return
        principal: Principal | None = scope["state"]["principal"]
        try:
            if scope["method"] in _SAFE or principal is None:
                await self._app(scope, _bounded(receive, limit), answering)
            else:
                await self._audited(scope, _bounded(receive, limit), answering, principal)
        except UnavailableError as error:
            await _answer(answering, 503, str(error), {"retry-after": "5"})

    async def _audited(self, scope: Scope, receive: Receive, send: Send, who: Principal) -> None:
        """A change: written down before it is done (where that fails it is not done), and what came of it afterwards."""
        action = f"http.{scope['method']} {scope['path']}"
        where = (scope.get("client") or ("?",))[0]
        await self._access.note(who.actor, action, "begun", tenant=who.tenant, role=str(who.role), address=where)
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            outcome = "done" if status < 400 else "refused" if status < 500 else "failed"
            await self._access.note(who.actor, action, outcome, tenant=who.tenant, status=status)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, Mapping[str, str]] | None:
        access = self._access
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15:
            return 400, "the content length is no number", {}
        host = urlsplit(f"//{headers.get('host', '')}").hostname if _plain(headers.get("host", "")) else None
        if host not in access.hosts:
            return 421, "this server is not called so; use its address or the public URL of its file", {}
        principal = access.identify(headers)
        scope["state"]["principal"] = principal
        scope["state"]["access"] = access
        client = (scope.get("client") or ("?",))[0]
        key = client if principal is None else principal.session or f"{principal.actor} {client}"
        wait = access.requests.take(key, time.monotonic()) if not scope["path"].startswith("/static/") else 0.0
        if wait:
            return 429, "too many requests; wait a little", {"retry-after": str(max(1, round(wait)))}
        if scope["method"] not in _SAFE and (forged := self._forged(scope, headers, principal)):
            return 403, forged, {}
        return None

    def _forged(self, scope: Scope, headers: Headers, principal: Principal | None) -> str | None:
        """Why a change may come from somebody else's page; none where it cannot (OWASP: token, origin, fetch metadata)."""
        if principal is not None and principal.kind == "token":
            return None
        origin = headers.get("origin")
        if origin is not None and (not _plain(origin) or urlsplit(origin).netloc != headers.get("host")):
            return "this request comes from another site's page"
        if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return "this request comes from another site's page"
        if scope["path"] == _LOGIN or principal is None:
            return None  # nobody's rights are used
        if principal.csrf is None or not secrets.compare_digest(
            headers.get(CSRF_HEADER, "").encode(), principal.csrf.encode()
        ):
            return "the page's token is missing or old; load the page again (programs: use a machine token)"
        return None

    def _answering(self, scope: Scope, send: Send) -> Send:
        """Adds the headers to every answer."""
        static = scope["path"].startswith("/static/")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "max-age=3600" if static else "no-store")
                if self._access.secure:
                    headers.setdefault("strict-transport-security", "max-age=31536000; includeSubDomains")
            await send(message)

        return sending


def _bounded(receive: Receive, limit: int) -> Receive:
    """A body without a length, or with a wrong one, ends where it is too large."""
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, f"the request is larger than {limit} bytes")
        return message

    return receiving


def _plain(text: str) -> bool:
    """Whether an address can be taken apart without surprises."""
    return (text.isascii() and text.isprintable() and not set(text) & set("\\@ []")) or text.startswith(
        ("[::1]", "http://[::1]")
    )


async def _answer(send: Send, status: int, detail: str, headers: Mapping[str, str]) -> None:
    body = json.dumps({"detail": detail}).encode()
    raw = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    raw += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def principal_of(scope: Mapping[str, Any]) -> Principal | None:
    """Who sends the request of a scope."""
    found = scope.get("state", {}).get("principal")
    return found if isinstance(found, Principal) else None
