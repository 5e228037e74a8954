"""The bridge on a socket: loopback, or TLS with client certificates."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from uvicorn.protocols.http.h11_impl import H11Protocol
from wattmesh_a2a.cards import AgentRegistry
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.a2a_http.access import Authenticator, FirstOf, MachineTokens
from wattmesh_cloud.a2a_http.executor import BridgeMessenger
from wattmesh_cloud.a2a_http.server import A2aHttp, Wiring
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.config import A2aModel

_CONNECTIONS_AT_MOST = 500


def a2a_server(
    model: A2aModel,
    *,
    org: str,
    state: Path,
    messenger: BridgeMessenger,
    registry: AgentRegistry,
    clock: Clock,
    audit: AuditLog,
    keys: object,
    crl: Path | None = None,
    authenticator: Authenticator | None = None,
) -> uvicorn.Server:
    """A server that is ready to serve; raises :class:`ConfigurationError`.

    Args:
        model: The checked section of the cloud's file.
        org: Whose agents.
        state: Folder of the tasks.
        messenger: Asks the agents.
        registry: Knows them.
        clock: Of validity and times.
        audit: Gets every action that was asked for.
        keys: The cloud's signer; one with a certificate signs the cards too.
        crl: Client certificates that were revoked.
        authenticator: Says who calls, after the file of machines, if there is one.
    """
    scheme = "https" if model.certificate is not None else "http"
    wiring = Wiring(
        messenger=messenger,
        agents=registry.agents,
        agent=registry.get,
        clock=clock,
        authenticator=FirstOf(
            *([MachineTokens(model.tokens)] if model.tokens is not None else []),
            *([authenticator] if authenticator is not None else []),
        ),
        audit=lambda actor, action, outcome, detail: audit.write(clock.utc_ns(), actor, action, outcome, detail),
        org=org,
        url=model.url or f"{scheme}://{model.host}:{model.port}",
        state=state,
        signer=keys if hasattr(keys, "jws") else None,
        push_origins=tuple(model.push_origins),
        with_tls=model.client_ca is not None,
    )
    server = uvicorn.Server(_config(model, wiring, crl))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # signals are the command's
    return server


def _config(model: A2aModel, wiring: Wiring, crl: Path | None) -> uvicorn.Config:
    bridge = A2aHttp(wiring)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await bridge.aclose()

    config = uvicorn.Config(
        Starlette(routes=[Mount("/", app=bridge)], lifespan=lifespan),
        host=model.host,
        port=model.port,
        http=WithIdentity,
        log_level="warning",
        access_log=False,
        lifespan="on",
        limit_concurrency=_CONNECTIONS_AT_MOST,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    if model.certificate is not None:
        config.ssl_certfile, config.ssl_keyfile = str(model.certificate), str(model.key)
        if model.client_ca is not None:
            config.ssl_ca_certs, config.ssl_cert_reqs = str(model.client_ca), ssl.CERT_OPTIONAL
        try:
            config.load()
            if config.ssl is not None:
                config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
                if model.client_ca is not None and crl is not None:
                    config.ssl.load_verify_locations(crl)
                    config.ssl.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"a2a: certificate, key or authority cannot be used: {error}") from error
    return config


class WithIdentity(H11Protocol):
    """Puts the identity in the client's certificate, which TLS has verified, where the application finds it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "client_identity": identity_in(transport.get_extra_info("peercert"))}


def identity_in(certificate: dict[str, Any] | None) -> str | None:
    """The first URI among a certificate's alternative names, as ``wattmesh pki`` writes it."""
    names = (certificate or {}).get("subjectAltName", ())
    return next((value for kind, value in names if kind == "URI"), None)
