"""Push notifications go where they may, and nowhere else: no way into our own network through a webhook (SSRF)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import SplitResult, urlsplit

import httpx

_TIMEOUT_S = 5.0
_MOST_URL = 2000
_ANY_PORT = ":*"

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Addresses of a host."""


async def resolved(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver; none when it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(one[4][0]) for one in found]


class PushGuard:
    """Says where notifications may go: to public addresses by HTTPS, and to the origins that the cloud's file names.

    Args:
        origins: ``scheme://host[:port]`` of receivers of our own (``:*`` for any port); plain HTTP and private addresses are
            allowed for them alone.
        resolve: Addresses of a host, injected by tests.
    """

    def __init__(self, origins: Sequence[str] = (), resolve: Resolve = resolved) -> None:
        self._origins = {one if one.endswith(_ANY_PORT) else _origin(one) for one in origins}
        self._resolve = resolve

    async def allows(self, url: str) -> bool:
        """Whether a notification may be sent there, by what its name means now. Our own receivers may be away for a while."""
        return self._is_own(url) or await self.address(url) is not None

    async def address(self, url: str) -> str | None:
        """The address to connect to, or none where nothing may be sent.

        It is used as it was looked at: a name that means another one a moment later is of no use.
        """
        parts = _parts(url)
        if parts is None or parts.hostname is None:
            return None
        own = self._is_own(url)
        if not own and parts.scheme != "https":
            return None
        found = await self._resolve(parts.hostname, _port(parts))
        if not found or (not own and not all(map(_is_public, found))):
            return None
        return found[0]

    def _is_own(self, url: str) -> bool:
        parts = _parts(url)
        return parts is not None and bool(
            {_origin(url), f"{parts.scheme}://{parts.hostname}{_ANY_PORT}"} & self._origins
        )


class PinnedTransport(httpx.AsyncBaseTransport):
    """Connects to the very address that was looked at, with the name in Host and in TLS.

    Args:
        guard: Decides.
        inner: Sends.
    """

    def __init__(self, guard: PushGuard, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._guard = guard
        self._inner = inner or httpx.AsyncHTTPTransport(retries=0, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See ``httpx.AsyncBaseTransport``."""
        address = await self._guard.address(str(request.url))
        if address is None:
            raise httpx.ConnectError("this receiver is not allowed", request=request)
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.host},
        )
        return await self._inner.handle_async_request(pinned)

    async def aclose(self) -> None:
        """See ``httpx.AsyncBaseTransport``."""
        await self._inner.aclose()


def push_client(guard: PushGuard) -> httpx.AsyncClient:
    """The client of the SDK's sender: guarded, without redirects, proxies or long waits."""
    return httpx.AsyncClient(
        transport=PinnedTransport(guard), timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False
    )


def _parts(url: str) -> SplitResult | None:
    """A URL that can be one of a receiver, in its parts."""
    try:
        parts = urlsplit(url)
        _port(parts)
    except ValueError:
        return None
    strange = len(url) > _MOST_URL or not url.isprintable() or parts.username or parts.password
    return None if strange or not parts.hostname or parts.scheme not in {"http", "https"} else parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{_port(parts)}"


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.split("%", maxsplit=1)[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None:
            address = inner
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
