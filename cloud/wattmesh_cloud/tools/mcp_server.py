"""The tools as an MCP server, by the official SDK: streamable HTTP with tokens, or stdio for a model on the same machine."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from wattmesh_a2a.errors import ConfigurationError, UnauthorisedError, WattmeshError

from wattmesh_cloud.tools.base import Caller, Context, Tool, error_code
from wattmesh_cloud.tools.catalogue import CATALOGUE

_INSTRUCTIONS = (
    "Reads of an energy fleet (forecasts, history, market, grid) and a few actions on its market. Times are UTC nanoseconds, "
    "energy watt-hours, prices 0.01 ct/kWh. Positive power flows into a site. Actions need a role and an idempotency key."
)
_MOST_REQUEST_BYTES = 100_000


class TokenEntry(BaseModel):
    """One caller of the tokens' file, which holds no token but its hash."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9_.:@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    roles: list[str] = Field(min_length=1)
    sites: list[str] | None = None


class Tokens:
    """Callers by the hash of their token; an SDK token verifier.

    Args:
        file: JSON, a list of :class:`TokenEntry`.
    """

    def __init__(self, file: Path) -> None:
        try:
            entries = TypeAdapter(list[TokenEntry]).validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"{file}: {str(error).splitlines()[0]}") from error
        self._entries = entries

    def caller(self, token: str) -> Caller | None:
        """Who a token belongs to."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = [one for one in self._entries if hmac.compare_digest(one.sha256, digest)]
        if not found:
            return None
        sites = frozenset(found[0].sites) if found[0].sites is not None else None
        return Caller(id=found[0].id, roles=frozenset(found[0].roles), sites=sites)

    async def verify_token(self, token: str) -> AccessToken | None:
        """See ``mcp.server.auth.provider.TokenVerifier``."""
        caller = self.caller(token)
        return None if caller is None else AccessToken(token=token, client_id=caller.id, scopes=sorted(caller.roles))

    def current(self) -> Caller:
        """The caller of the request under way."""
        token = get_access_token()
        caller = self.caller(token.token) if token is not None else None
        if caller is None:
            raise UnauthorisedError("no valid token")
        return caller


def build_server(
    context: Context, who: Callable[[], Caller], *, tokens: Tokens | None = None, url: str = "http://127.0.0.1"
) -> MCPServer:
    """A server with every tool.

    Args:
        context: What the tools work on.
        who: Gives the caller of the request under way.
        tokens: Asked for by HTTP; without it nobody is asked (stdio).
        url: Where the server is reached.
    """
    auth = None
    if tokens is not None:
        auth = AuthSettings(issuer_url=url, resource_server_url=url, validate_token_resource=False)
    server = MCPServer("wattmesh", instructions=_INSTRUCTIONS, token_verifier=tokens, auth=auth)
    for tool in CATALOGUE:
        hints = ToolAnnotations(read_only_hint=not tool.action, idempotent_hint=True, open_world_hint=False)
        server.tool(
            name=tool.name,
            description=f"{tool.service}: {tool.description}",
            annotations=hints,
            structured_output=False,
        )(_face(tool, context, who))
    return server


def http_app(server: MCPServer) -> Any:
    """The server as an ASGI application at ``/mcp``: stateless, bounded requests; answers are streams, as progress needs."""
    return server.streamable_http_app(stateless_http=True, max_request_body_size=_MOST_REQUEST_BYTES)


def _face(tool: Tool, context: Context, who: Callable[[], Caller]) -> Callable[..., Any]:
    """The tool as a function of its arguments alone, as the SDK reads it."""

    async def call(**arguments: Any) -> str:
        plain = {name: _plain(value) for name, value in arguments.items()}
        try:
            return json.dumps(await tool.call(context, who(), plain))
        except WattmeshError as error:
            raise ToolError(f"{error_code(error)}: {error}") from error

    hints = inspect.get_annotations(tool.function, eval_str=True)
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in tool.parameters().items()
    ]
    call.__signature__ = inspect.Signature(parameters, return_annotation=str)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": str}
    call.__name__ = tool.function.__name__
    return call


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(one) for one in value] if isinstance(value, list) else value
