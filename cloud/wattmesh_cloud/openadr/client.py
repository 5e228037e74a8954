"""A VEN's side of the REST interface: OAuth2 client credentials, bounded answers, typed errors for all that goes wrong."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnauthorisedError, UnavailableError

from wattmesh_cloud.grid.config import OpenAdrConfig
from wattmesh_cloud.openadr.models import Event, OpenAdrModel, Program, Report, Subscription, Ven

_PAGE = 50
"""The specification's largest."""
_PAGES = 20
_LARGEST_BYTES = 4_000_000
_EARLY_S = 30
_SHORTEST_S, _LONGEST_S = 10, 86_400

M = TypeVar("M", bound=OpenAdrModel)


class VenClient:
    """See the module.

    Args:
        config: Where, and as whom.
        clock: Of the token's life.
        http: For tests; none: our own, which checks certificates.

    Raises:
        ConfigurationError: The secret cannot be read, or would travel in the clear beyond loopback.
    """

    def __init__(self, config: OpenAdrConfig, clock: Clock, http: httpx.AsyncClient | None = None) -> None:
        self._config, self._clock = config, clock
        self._base = config.url.rstrip("/")
        host = httpx.URL(self._base).host
        if self._base.startswith("http://") and host not in {"127.0.0.1", "localhost", "::1"}:
            raise ConfigurationError(f"grid.openadr.url: {self._base} would carry the secret in the clear; use https")
        self._secret = _secret(config.client_secret)
        self._http = http or httpx.AsyncClient(
            timeout=config.timeout_s, verify=_trust(config.ca), follow_redirects=False
        )
        self._token = ""
        self._token_ends_ns = 0

    async def close(self) -> None:
        """Release connections."""
        await self._http.aclose()

    # -- what a VEN does

    async def programs(self) -> list[Program]:
        """All programs that we may see."""
        return await self._all("/programs", Program)

    async def events(self, program_id: str) -> tuple[list[Event], list[str]]:
        """Events of a program that are well formed, and what is wrong with the others, one sentence each."""
        found, wrong = [], []
        for row in await self._rows("/events", {"programID": program_id}):
            try:
                found.append(Event.model_validate(row))
            except ValidationError as error:
                name = row.get("id") if isinstance(row, dict) else None
                wrong.append(f"event {str(name)[:64]!r}: {_first(error)}")
        return found, wrong

    async def enrol(self) -> Ven:
        """Ourselves at the VTN, made where it does not know us yet."""
        name = self._config.ven_name
        rows = await self._rows("/vens", {"venName": name})
        known = [_checked(Ven, row) for row in rows]
        mine = next((one for one in known if one.ven_name == name), None)
        return mine or await self._post("/vens", Ven(ven_name=name), Ven)

    async def report(self, report: Report) -> Report:
        """Tell what was done."""
        return await self._post("/reports", report, Report)

    async def subscribe(self, subscription: Subscription) -> Subscription:
        """Ask to be called."""
        return await self._post("/subscriptions", subscription, Subscription)

    # -- transport

    async def _all(self, path: str, kind: type[M]) -> list[M]:
        return [_checked(kind, row) for row in await self._rows(path, {})]

    async def _rows(self, path: str, query: Mapping[str, str]) -> Sequence[Any]:
        """Every page of a list; raises :class:`InvalidMessageError` where it has no end."""
        found: list[Any] = []
        for page in range(_PAGES):
            rows = await self._call("GET", path, query={**query, "skip": str(page * _PAGE), "limit": str(_PAGE)})
            if not isinstance(rows, list):
                raise InvalidMessageError(f"{path}: the VTN answered no list")
            found += rows
            if len(rows) < _PAGE:
                return found
        raise InvalidMessageError(f"{path}: more than {_PAGES * _PAGE} objects")

    async def _post(self, path: str, body: OpenAdrModel, kind: type[M]) -> M:
        return _checked(kind, await self._call("POST", path, body=body.wire()))

    async def _call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> Any:
        """One request; a token that is not taken any more is renewed once."""
        for attempt in (0, 1):
            token = await self._bearer()
            answer = await self._send(
                method, self._base + path, params=query, json=body, headers={"Authorization": f"Bearer {token}"}
            )
            if answer.status_code == 401 and attempt == 0:
                self._token = ""
                continue
            return _body(answer, path)
        raise AssertionError("two attempts, one result")

    async def _bearer(self) -> str:
        """A token that lasts, by OAuth2 client credentials (RFC 6749, section 4.4)."""
        if self._token and self._clock.utc_ns() < self._token_ends_ns:
            return self._token
        form = {"grant_type": "client_credentials", "client_id": self._config.client_id, "client_secret": self._secret}
        if self._config.scope is not None:
            form["scope"] = self._config.scope
        url = self._config.token_url or f"{self._base}/auth/token"
        if url.startswith("http://") and not self._base.startswith("http://"):
            raise ConfigurationError(f"grid.openadr.token_url: {url} would carry the secret in the clear; use https")
        row = _body(await self._send("POST", url, data=form), "token")
        token = row.get("access_token") if isinstance(row, dict) else None
        if not isinstance(token, str) or not 0 < len(token) < 10_000 or not token.isascii() or not token.isprintable():
            raise InvalidMessageError("token: the answer has no access_token")
        lasts = row.get("expires_in", 3600)
        if isinstance(lasts, bool) or not isinstance(lasts, int | float) or not lasts > 0:
            lasts = _SHORTEST_S
        lasts = min(max(lasts - _EARLY_S, _SHORTEST_S), _LONGEST_S)
        self._token, self._token_ends_ns = token, self._clock.utc_ns() + round(lasts * NS_PER_S)
        return token

    async def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """One request with a bounded answer."""
        try:
            async with self._http.stream(method, url, **options) as answer:
                size = 0
                parts = []
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > _LARGEST_BYTES:
                        raise InvalidMessageError(f"the VTN's answer has more than {_LARGEST_BYTES} bytes")
                    parts.append(part)
                return httpx.Response(answer.status_code, content=b"".join(parts))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(f"the VTN does not answer ({type(error).__name__}: {error})") from error


def _secret(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"grid.openadr.client_secret: {path} cannot be read ({type(error).__name__})"
        ) from error
    if not text:
        raise ConfigurationError(f"grid.openadr.client_secret: {path} is empty")
    return text


def _trust(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _body(answer: httpx.Response, what: str) -> Any:
    """The JSON of an answer; raises what the status means."""
    status = answer.status_code
    if status in {401, 403}:
        raise UnauthorisedError(f"{what}: the VTN refuses us ({status})")
    if status >= 500 or status == 429:
        raise UnavailableError(f"{what}: the VTN answered {status}")
    if not 200 <= status < 300:
        raise InvalidMessageError(f"{what}: the VTN answered {status}: {answer.text[:200]!r}")
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"{what}: the answer is no JSON") from error


def _checked(kind: type[M], row: Any) -> M:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        raise InvalidMessageError(f"{kind.__name__}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}"
