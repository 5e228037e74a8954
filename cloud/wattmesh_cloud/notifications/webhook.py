"""Webhooks signed as Standard Webhooks 1.0 says, to receivers that a fleet's cloud may talk to and to nobody else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import httpx
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_cloud.notifications.config import WebhookModel

_TIMEOUT_S = 10.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Addresses of a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


def forbidden(address: str, *, private: bool, loopback: bool) -> str | None:
    """Why an address is not talked to (SSRF); none where it is."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return None if loopback else "it is this machine"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return "it is a link-local, multicast or reserved address"
    if not ip.is_global:
        return None if private else "it is on a private network (private: true allows it)"
    return None


def signature(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The ``webhook-signature`` header: HMAC-SHA-256 over id, time and body."""
    digest = hmac.new(secret, f"{message_id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


async def post(
    model: WebhookModel, secret: bytes, message_id: str, timestamp_s: int, body: bytes, *, resolver: Resolve = resolve
) -> None:
    """Deliver one message. The name is resolved once and the connection goes to that very address.

    Raises:
        ConfigurationError: The receiver must not be talked to, or refuses for good (4xx).
        UnavailableError: It does not take it now.
    """
    parts = urlsplit(model.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = await resolver(host, port)
    except OSError as error:
        raise UnavailableError(f"{host} has no address now") from error
    for address in addresses:
        if why := forbidden(address, private=model.private, loopback=model.loopback):
            raise ConfigurationError(f"webhook {parts.scheme}://{parts.netloc}: {address} is not talked to: {why}")
    if not addresses:
        raise UnavailableError(f"{host} has no address now")
    if parts.scheme != "https" and not ipaddress.ip_address(addresses[0]).is_loopback:
        raise ConfigurationError(f"webhook {parts.scheme}://{parts.netloc}: it has to be https")
    literal = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    target = parts._replace(netloc=f"{literal}:{port}").geturl()
    headers = {
        "host": parts.netloc,
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": signature(secret, message_id, timestamp_s, body),
        "user-agent": "WattMesh",
    }
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            answer = await client.post(target, content=body, headers=headers, extensions={"sni_hostname": host})
    except httpx.HTTPError as error:
        raise UnavailableError(f"webhook {parts.netloc}: {type(error).__name__}") from error
    if 400 <= answer.status_code < 500 and answer.status_code not in {408, 425, 429}:
        raise ConfigurationError(f"webhook {parts.netloc} refuses it: {answer.status_code}")
    if not 200 <= answer.status_code < 300:
        raise UnavailableError(f"webhook {parts.netloc} answers {answer.status_code}")
