"""The HTTP face: ``/a2a/UNIT/AGENT/`` is an A2A agent (JSON-RPC and REST), ``/a2a/agents`` lists whom a caller may talk to."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from a2a.server.context import ServerCallContext
from a2a.server.jsonrpc_models import JSONParseError
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.tasks import BasePushNotificationSender
from a2a.utils.constants import A2A_JSON_MEDIA_TYPE
from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import ContentTypeNotSupportedError, InvalidRequestError
from starlette.applications import Starlette
from starlette.authentication import SimpleUser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from wattmesh_a2a import cards
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.lanes import TokenBucket

from wattmesh_cloud.a2a_http.access import Authenticator, may_see
from wattmesh_cloud.a2a_http.cards import CardSigner, http_card
from wattmesh_cloud.a2a_http.executor import Audit, BridgeExecutor, BridgeMessenger
from wattmesh_cloud.a2a_http.push import PushGuard, push_client
from wattmesh_cloud.a2a_http.tasks import AgentPushes, AgentTasks, Tasks
from wattmesh_cloud.tools.base import Caller

log = logging.getLogger(__name__)

BRIDGE_AGENT = "a2a-http"
_MOST_BODY = 1_000_000
_CARD_AGE = "private, max-age=60"
_AGENTS_AT_ONCE = 1000
_PER_S, _BURST = 50.0, 200.0
_CALLERS_AT_MOST = 5000
_ASKED_AGAIN_S = 300.0
_LISTED_AT_MOST = 5000
_OWN_TYPE = (b"content-type", A2A_JSON_MEDIA_TYPE.encode())


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What the bridge stands on."""

    messenger: BridgeMessenger
    agents: Callable[[], list[cards.AgentCard]]
    """All that are known."""
    agent: Callable[[Address], cards.AgentCard | None]
    clock: Clock
    authenticator: Authenticator
    audit: Audit
    org: str
    url: str
    """As clients see it, without the path: ``https://a2a.example.org``."""
    state: Path
    """Folder of the tasks."""
    signer: CardSigner | None = None
    push_origins: tuple[str, ...] = ()
    with_login: bool = True
    with_tls: bool = False


class _Context(DefaultServerCallContextBuilder):
    """Carries the caller to the executor."""

    def build(self, request: Request) -> ServerCallContext:
        context = super().build(request)
        context.state["caller"] = request.scope["caller"]
        return context


@dataclass(slots=True)
class _Served:
    app: ASGIApp
    handler: DefaultRequestHandlerV2
    card: cards.AgentCard


class A2aHttp:
    """An ASGI application; :meth:`aclose` ends it."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._tasks = Tasks(wiring.state / "a2a-tasks.sqlite")
        guard = PushGuard(wiring.push_origins)
        self._guard, self._client = guard, push_client(guard)
        self._served: OrderedDict[Address, _Served] = OrderedDict()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._app = Starlette(
            routes=[Route("/a2a/agents", self._list), Mount("/a2a/{unit}/{agent}", app=self._dispatch)]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            bounded = _Bounded(receive, send, Request(scope))
            await self._app(scope, bounded.receive, bounded.send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)

    async def aclose(self) -> None:
        """End what is under way and release files and connections."""
        for one in self._served.values():
            await one.handler.aclose()
        await self._client.aclose()
        self._tasks.close()

    # -- who, and whom

    def _caller(self, request: Request) -> Caller | Response:
        certificate = request.scope.get("state", {}).get("client_identity")
        caller = self._wiring.authenticator.caller(request.headers.get("authorization"), certificate)
        if caller is None:
            return JSONResponse({"error": "say who you are"}, 401, {"WWW-Authenticate": 'Bearer realm="wattmesh"'})
        if not self._bucket(caller.id).try_take():
            return JSONResponse({"error": "too many requests"}, 429, {"Retry-After": "1"})
        return caller

    def _bucket(self, name: str) -> TokenBucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            now = self._wiring.clock.monotonic_ns
            bucket = self._buckets[name] = TokenBucket(_PER_S, _BURST, lambda: now() / 1e9)
            if len(self._buckets) > _CALLERS_AT_MOST:
                self._buckets.popitem(last=False)
        return bucket

    async def _list(self, request: Request) -> Response:
        caller = self._caller(request)
        if isinstance(caller, Response):
            return caller
        found = [one for one in self._wiring.agents() if may_see(caller, one.address)][:_LISTED_AT_MOST]
        return JSONResponse(
            [
                {
                    "agent": str(one.address), "url": self._url(one.address), "version": one.version, "online": one.online,
                    "last_seen_ns": one.last_seen_ns, "requests": list(one.requests),
                }
                for one in found
            ]
        )  # fmt: skip

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        caller = self._caller(request)
        if isinstance(caller, Response):
            await caller(scope, receive, send)
            return
        served = self._agent(caller, request.path_params)
        if served is None:
            await JSONResponse({"error": "there is no such agent"}, 404)(scope, receive, send)
            return
        if request.method == "POST":
            if not _is_json(request):
                error = ContentTypeNotSupportedError(message="a request is application/json")
                await _refusal(scope, error, 415)(scope, receive, send)
                return
            try:
                body = await request.body()
            except _TooLargeError:
                await JSONResponse({"error": f"at most {_MOST_BODY} bytes"}, 413)(scope, receive, send)
                return
            if not _can_be_read(body):
                await _refusal(scope, JSONParseError(message="this is no JSON in UTF-8"), 400)(scope, receive, send)
                return
            receive = _again(body, receive)
        user = SimpleUser(caller.id)
        await served.app({**scope, "user": user, "caller": caller}, receive, send)

    def _agent(self, caller: Caller, names: dict[str, Any]) -> _Served | None:
        """The agent's own application, made when it is first asked for and anew when the agent's card changed."""
        try:
            address = Address(self._wiring.org, names["unit"], names["agent"])
        except InvalidMessageError:
            return None
        card = self._wiring.agent(address)
        if card is None or not may_see(caller, address):
            return None
        served = self._served.get(address)
        if served is None or (served.card.requests, served.card.version) != (card.requests, card.version):
            served = self._served[address] = self._made(card, served)
        self._served.move_to_end(address)
        while len(self._served) > _AGENTS_AT_ONCE:
            idle = next((one for one, kept in self._served.items() if not _busy(kept)), None)
            if idle is None:
                break
            del self._served[idle]
        return served

    def _made(self, card: cards.AgentCard, before: _Served | None) -> _Served:
        wiring, name = self._wiring, str(card.address)
        shown = http_card(
            card, self._url(card.address), signer=wiring.signer, with_login=wiring.with_login, with_tls=wiring.with_tls
        )
        if before is not None:  # tasks under way go on
            handler = before.handler
            handler._agent_card = shown
        else:
            pushes = AgentPushes(self._tasks, name)
            handler = DefaultRequestHandlerV2(
                BridgeExecutor(
                    wiring.messenger,
                    card.address,
                    Address(wiring.org, "cloud", BRIDGE_AGENT),
                    wiring.clock,
                    self._is_there,
                    wiring.audit,
                ),
                AgentTasks(self._tasks, name),
                shown,
                push_config_store=pushes,
                push_sender=BasePushNotificationSender(self._client, pushes, push_url_validator=self._guard.allows),
                push_url_validator=self._guard.allows,
                validate_input_modes=True,
                interrupted_task_timeout=_ASKED_AGAIN_S,
            )
        context = _Context()
        changed = format_datetime(datetime.fromtimestamp(wiring.clock.utc_ns() / 1e9, UTC), usegmt=True)
        routes: list[BaseRoute] = [
            *(
                _with_header(one, "Last-Modified", changed)
                for one in create_agent_card_routes(shown, cache_control=_CARD_AGE)
            ),
            *create_jsonrpc_routes(handler, "/", context_builder=context),
            *create_rest_routes(handler, context_builder=context),
        ]
        return _Served(Starlette(routes=routes), handler, card)

    def _is_there(self, address: Address) -> bool:
        card = self._wiring.agent(address)
        return card is not None and card.online

    def _url(self, address: Address) -> str:
        return f"{self._wiring.url}/a2a/{address.unit}/{address.agent}/"


def _with_header(route: Route, name: str, value: str) -> Route:
    async def endpoint(request: Request) -> Response:
        response: Response = await route.endpoint(request)
        response.headers[name] = value
        return response

    return Route(route.path, endpoint, methods=["GET"])


def _busy(served: _Served) -> bool:
    return bool(served.handler._active_task_registry._active_tasks)


class _TooLargeError(Exception):
    """The body is over the bound."""


class _Bounded:
    """A request whose body is bounded, and an answer in the media type that its client knows.

    A2A 1.0.1 has a type of its own for REST, which a client of 1.0.0 has never heard of: it gets it when it names it.
    """

    def __init__(self, receive: Receive, send: Send, request: Request) -> None:
        self._receive, self._send = receive, send
        named = f"{request.headers.get('accept', '')},{request.headers.get('content-type', '')}"
        self._plain = A2A_JSON_MEDIA_TYPE not in named
        self._size = 0

    async def receive(self) -> Message:
        """Of ASGI."""
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > _MOST_BODY:
            raise _TooLargeError
        return message

    async def send(self, message: Message) -> None:
        """Of ASGI."""
        if self._plain and message["type"] == "http.response.start":
            message["headers"] = [
                (name, b"application/json" if (name, value) == _OWN_TYPE else value)
                for name, value in message.get("headers", ())
            ]
        await self._send(message)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Operations without a body (cancelling by REST) need not say what theirs is.
    return kind in {"application/json", A2A_JSON_MEDIA_TYPE} or not kind


def _can_be_read(body: bytes) -> bool:
    """Whether a body is JSON, empty, or close enough to it for the SDK to say what is wrong."""
    try:
        json.loads(body.decode() or "null")
    except (UnicodeDecodeError, RecursionError):
        return False
    except ValueError:
        return True
    return True


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more."""
    given = False

    async def once_more() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once_more


def _refusal(scope: Scope, error: Any, status: int) -> Response:
    """A typed refusal in the form of the binding that was used."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path in {"", "/"}:
        return JSONResponse(build_error_response(None, error))
    if isinstance(error, JSONParseError):
        error = InvalidRequestError(message=error.message)
    return JSONResponse(build_rest_error_payload(error), status)
