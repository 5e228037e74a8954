"""One connection to an OPC UA server: secure channel, session, and calls in chunks that the server takes.

asyncua does the protocol. Its own supervisor, which would connect again behind our back and ask the server every second, is
not started: a connection that is lost is lost, and the driver opens a new session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

from asyncua import Client, ua
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.driver import BusyError
from wattmesh_drivers.opcua.security import (
    Identity,
    Login,
    Security,
    check_server,
    is_loopback,
    load_identity,
    load_password,
    split_chain,
)

logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # every failure is reported once, by us

FAULTS = (OSError, ua.UaError, ValueError, TypeError, LookupError, struct.error)
"""What a connection that is gone, a refused service or an answer that cannot be read makes asyncua raise; time-outs are OSError."""

T = TypeVar("T")

_PORT = 4840
_MESSAGE_AT_MOST, _CHUNKS_AT_MOST = 16 * 1024 * 1024, 256
_SESSION_MS = 60_000
"""After so long without a call the server forgets a session: one that we left behind in a crash blocks no new one for an hour."""
_CHANNEL_MS = 3_600_000
_RENEW_SHARE = 0.75
"""Share of a channel's lifetime after which it is renewed (OPC 10000-4, 5.6.2.1)."""
_MODES = {"sign": ua.MessageSecurityMode.Sign, "sign_and_encrypt": ua.MessageSecurityMode.SignAndEncrypt}
_POLICIES = {
    "Basic256Sha256": security_policies.SecurityPolicyBasic256Sha256,
    "Aes128Sha256RsaOaep": security_policies.SecurityPolicyAes128Sha256RsaOaep,
    "Aes256Sha256RsaPss": security_policies.SecurityPolicyAes256Sha256RsaPss,
}
_LOGIN_REFUSED = (
    ua.uaerrors.BadUserAccessDenied, ua.uaerrors.BadIdentityTokenInvalid, ua.uaerrors.BadIdentityTokenRejected,
    ua.uaerrors.BadUserSignatureInvalid, ua.uaerrors.BadIdentityChangeNotSupported,
)  # fmt: skip
_CERTIFICATE_REFUSED = (
    ua.uaerrors.BadSecurityChecksFailed, ua.uaerrors.BadCertificateUntrusted, ua.uaerrors.BadCertificateInvalid,
    ua.uaerrors.BadCertificateTimeInvalid, ua.uaerrors.BadCertificateUriInvalid, ua.uaerrors.BadCertificateUseNotAllowed,
    ua.uaerrors.BadCertificateRevoked, ua.uaerrors.BadCertificateChainIncomplete, ua.uaerrors.BadSecurityPolicyRejected,
    ua.uaerrors.BadSecurityModeRejected, ua.uaerrors.BadCertificateRevocationUnknown,
    ua.uaerrors.BadCertificateHostNameInvalid,
)  # fmt: skip
_BUSY = {
    ua.StatusCodes.BadTimeout, ua.StatusCodes.BadNoCommunication, ua.StatusCodes.BadCommunicationError,
    ua.StatusCodes.BadDeviceFailure, ua.StatusCodes.BadOutOfService, ua.StatusCodes.BadResourceUnavailable,
    ua.StatusCodes.BadTooManyOperations, ua.StatusCodes.BadWaitingForInitialData, ua.StatusCodes.BadNotConnected,
    ua.StatusCodes.BadOutOfMemory, ua.StatusCodes.BadInvalidState,
}  # fmt: skip
"""Results of a write of which the next may be another, the connection being sound."""
_LIMIT_NODES = {
    "read": ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
    "monitor": ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
    "translate": ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerTranslateBrowsePathsToNodeIds,
}
_NO_SECURITY = security_policies.SecurityPolicyNone.URI


class Session:
    """A connection that is opened once and closed once.

    Args:
        url: ``opc.tcp://host:port/…``.
        timeout_s: Longest wait for any one answer.
        security: None leaves the channel unsecured.
        login: None is anonymous.
        utc_ns: For the times of certificates.
        monotonic: Real time, s; for the channel's renewal.

    Raises:
        ConfigurationError: The URL is none, or carries credentials; or a login would go over an unsecured channel to another
            machine.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        security: Security | None,
        login: Login | None,
        utc_ns: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self.url, self._host = checked_url(url)
        if login is not None and security is None and not is_loopback(self._host):
            raise ConfigurationError(
                f"{self.url}: a login needs security, else anybody on the way can read or take it; give connection.security"
            )
        self._timeout_s = timeout_s
        self._security = security
        self._login = login
        self._utc_ns = utc_ns
        self._monotonic = monotonic
        self._client: Client | None = None
        self._renew_at = 0.0
        self._sound = True
        """Whether the last call was answered."""
        self.namespaces: list[str] = []
        """The server's URIs at their indices, which may be others after its next start."""
        self.limits: dict[str, int] = dict.fromkeys(_LIMIT_NODES, 0)
        """``read``, ``monitor``, ``translate`` → items that one call may have; 0: any."""

    async def open(self) -> None:
        """Connect, log in and learn the server's namespaces and limits.

        Raises:
            UnavailableError: It does not answer.
            ConfigurationError: We do not trust it, it refuses us, or a file of ours does not work.
        """
        client = self._client = Client(self.url, timeout=self._timeout_s)
        client.name = client.description = "WattMesh"
        client.product_uri = client.application_uri = "urn:wattmesh:gateway"
        client.max_messagesize, client.max_chunkcount = _MESSAGE_AT_MOST, _CHUNKS_AT_MOST
        client.session_timeout = _SESSION_MS
        client.secure_channel_timeout = _CHANNEL_MS
        now = datetime.fromtimestamp(self._utc_ns() / 1e9, tz=UTC)
        ours = None
        with self._errors():
            if self._security is not None:
                ours = await self._secure(client, self._security, now)
            password = self._prepare_login(client, now)
            try:
                await client.connect_socket()
                await client.send_hello()
                await self._open_channel(client)
                self._plan_renewal(client)
                await self._create_session(client)
                self._check_login(client, password)
                await client.activate_session(self._login and self._login.user, password, client.user_certificate)
            except _LOGIN_REFUSED as error:
                raise ConfigurationError(f"{self.url} refuses {self._who()} ({type(error).__name__})") from error
            except _CERTIFICATE_REFUSED as error:
                raise ConfigurationError(
                    f"{self.url} refuses our security ({type(error).__name__}); "
                    + (
                        f"make our certificate {ours} trusted at the server"
                        if ours
                        else "it may ask for connection.security"
                    )
                ) from error
            await self._learn(client)

    async def _secure(self, client: Client, security: Security, now: datetime) -> str:
        """Learn who the server says it is over a channel that carries nothing of ours, and go on only if we trust it."""
        identity = load_identity(security.certificate, security.key, now)
        uri = identity.application_uri
        endpoints = await client.connect_and_get_server_endpoints()
        policy, mode = _POLICIES[security.policy], _MODES[security.mode]
        fitting = [one for one in endpoints if one.SecurityMode == mode and one.SecurityPolicyUri == policy.URI]
        if not fitting:
            offers = sorted(
                {f"{one.SecurityPolicyUri.rpartition('#')[2]}/{one.SecurityMode.name}" for one in endpoints}
            )
            raise ConfigurationError(
                f"{self.url} has no endpoint with {security.policy} and {security.mode}; it offers {', '.join(offers)}"
            )
        chain = split_chain(fitting[0].ServerCertificate or b"")
        try:
            check_server(chain, security.trust, self._host, now)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.url}: {error}") from error
        client.application_uri = uri
        await client.set_security(
            policy,
            CertProperties(identity.certificate_der, "der"),
            CertProperties(identity.key_der, "der"),
            server_certificate=CertProperties(chain[0].public_bytes(Encoding.DER), "der"),
            mode=mode,
        )
        return str(security.certificate)

    async def _open_channel(self, client: Client) -> None:
        try:
            await client.open_secure_channel()
        except AssertionError as error:  # how asyncua says that the answer was a fault, whose code it does not keep
            raise ConfigurationError(
                f"{self.url} refuses our secure channel; make sure that it trusts our certificate, and that this has the "
                "key usages that OPC UA asks for (OPC 10000-6, 6.2.2)"
            ) from error

    async def _create_session(self, client: Client) -> None:
        """That the server holds the key of the certificate that we trusted is verified by asyncua (OPC 10000-4, 5.7.2)."""
        try:
            await client.create_session()
        except ua.UaStatusCodeError:
            raise
        except InvalidSignature as error:
            raise ConfigurationError(f"{self.url} does not hold the key of the certificate that it shows") from error
        except ua.UaError as error:  # the server's own list of endpoints has not ours, or another certificate
            hint = "" if self._security is not None else "; it may ask for connection.security"
            raise ConfigurationError(f"{self.url}: {cause_of(error)}{hint}") from error

    def _prepare_login(self, client: Client, now: datetime) -> str | None:
        """Put who we are into the client; gives the password."""
        login = self._login
        if login is None:
            return None
        if login.certificate is not None and login.key is not None:
            identity: Identity = load_identity(login.certificate, login.key, now)
            client.user_certificate = identity.certificate
            client.user_private_key = identity.key
            return None
        assert login.user is not None
        assert login.password_file is not None
        client.set_user(login.user)
        return load_password(login.password_file)

    def _check_login(self, client: Client, password: str | None) -> None:
        """A password goes encrypted, be it by its own policy or by the channel (OPC 10000-4, 7.40.4)."""
        if password is None or is_loopback(self._host):
            return
        encrypted = self._security is not None and self._security.mode == "sign_and_encrypt"
        if not encrypted and client.server_policy(ua.UserTokenType.UserName).SecurityPolicyUri in {
            None,
            "",
            _NO_SECURITY,
        }:
            raise ConfigurationError(
                f"{self.url} wants the password unencrypted; use the mode sign_and_encrypt, which encrypts all"
            )

    def _who(self) -> str:
        if self._login is None:
            return "a login without a name; give connection.user and password_file, or user_certificate and user_key"
        if self._login.certificate is not None:
            return f"the user certificate {self._login.certificate}"
        return f"the user {self._login.user!r} or its password"

    async def _learn(self, client: Client) -> None:
        ids = [ua.NodeId(ua.ObjectIds.Server_NamespaceArray), *(ua.NodeId(node) for node in _LIMIT_NODES.values())]
        uris, *limits = await client.uaclient.read_attributes(ids, ua.AttributeIds.Value)
        found = uris.Value.Value if uris.Value is not None else None
        if not isinstance(found, list):
            raise UnavailableError(f"{self.url} does not tell its namespaces")
        self.namespaces = [str(uri) for uri in found]
        for name, limit in zip(_LIMIT_NODES, limits, strict=True):
            value = limit.Value.Value if limit.Value is not None else None
            self.limits[name] = value if isinstance(value, int) else 0

    async def close(self) -> None:
        """End session and connection; never raises, and leaves no task behind."""
        client, self._client = self._client, None
        if client is None:
            return
        publishing = client.uaclient.session._publish_task  # asyncua ends it by itself only while the server answers
        if self._sound:  # one that does not answer would hold up the poll for another time-out
            with contextlib.suppress(*FAULTS):
                async with asyncio.timeout(self._timeout_s):
                    await client.disconnect()
        protocol = client.uaclient.protocol
        if protocol is not None and protocol.transport is not None:
            protocol.transport.abort()  # a plain close would wait for a peer that takes no more bytes
        with contextlib.suppress(*FAULTS):
            client.disconnect_socket()
        if publishing is not None:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    # -- calls

    def plan_read(self, nodes: Sequence[ua.NodeId]) -> list[ua.ReadParameters]:
        """Read calls for the values of nodes, each of as many as the server takes; to be used again and again."""
        return [
            ua.ReadParameters(
                TimestampsToReturn=ua.TimestampsToReturn.Both,
                NodesToRead=[ua.ReadValueId(NodeId=node, AttributeId=ua.AttributeIds.Value) for node in part],
            )
            for part in chunks(nodes, self.limits["read"])
        ]

    async def read(self, plan: Sequence[ua.ReadParameters]) -> list[ua.DataValue]:
        """Carry out what :meth:`plan_read` gave; values in the order of the nodes (OPC 10000-4, 5.11.2)."""
        client = self._connected()
        found: list[ua.DataValue] = []
        with self._errors():
            for call in plan:
                results = await client.uaclient.read(call)
                if len(results) != len(call.NodesToRead):
                    raise UnavailableError(
                        f"{self.url} answers {len(call.NodesToRead)} nodes with {len(results)} values"
                    )
                found += results
        return found

    async def translate(self, paths: Sequence[ua.BrowsePath]) -> list[ua.BrowsePathResult]:
        """TranslateBrowsePathsToNodeIds (OPC 10000-4, 5.9.4), in one call where the server takes it."""
        client = self._connected()
        found: list[ua.BrowsePathResult] = []
        with self._errors():
            for part in chunks(paths, self.limits["translate"]):
                found += await client.uaclient.translate_browsepaths_to_nodeids(list(part))
        if len(found) != len(paths):
            raise UnavailableError(f"{self.url} answers {len(paths)} browse paths with {len(found)}")
        return found

    async def write(self, node: ua.NodeId, value: ua.Variant) -> None:
        """Write one value, without times: many servers refuse a write that sets them (OPC 10000-4, 5.11.4).

        Raises:
            ConfigurationError: The server refuses.
            UnavailableError: It does not answer; :class:`~wattmesh_drivers.driver.BusyError` where it cannot just now.
        """
        client = self._connected()
        with self._errors():
            (status,) = await client.uaclient.write_attributes([node], [ua.DataValue(value)])
        if status.is_bad():
            refusal = f"{self.url} refuses to write {node.to_string()} ({status.name})"
            raise BusyError(refusal) if status.value in _BUSY else ConfigurationError(refusal)

    async def subscribe(
        self, wanted: ua.CreateSubscriptionParameters, told: Callable[[ua.PublishResult], None]
    ) -> ua.CreateSubscriptionResult:
        """CreateSubscription (OPC 10000-4, 5.14.2); ``told`` is called with each publish response."""
        client = self._connected()
        with self._errors():
            return await client.uaclient.create_subscription(wanted, told)

    async def monitor(
        self, subscription: int, items: Sequence[ua.MonitoredItemCreateRequest]
    ) -> list[ua.MonitoredItemCreateResult]:
        """CreateMonitoredItems (OPC 10000-4, 5.13.2), in calls of as many as the server takes."""
        client = self._connected()
        found: list[ua.MonitoredItemCreateResult] = []
        with self._errors():
            for part in chunks(items, self.limits["monitor"]):
                call = ua.CreateMonitoredItemsParameters()
                call.SubscriptionId = subscription
                call.TimestampsToReturn = ua.TimestampsToReturn.Both
                call.ItemsToCreate = list(part)
                found += await client.uaclient.create_monitored_items(call)
        if len(found) != len(items):
            raise UnavailableError(f"{self.url} answers {len(items)} monitored items with {len(found)}")
        return found

    async def keep(self) -> None:
        """To be called at each poll: raises :class:`UnavailableError` where the connection is gone, renews its channel when due."""
        client = self._connected()
        if client.uaclient.protocol is None or client.uaclient.protocol.is_closed:
            raise UnavailableError(f"{self.url}: the connection was closed")
        if self._monotonic() < self._renew_at:
            return
        with self._errors():
            try:
                await client.open_secure_channel(renew=True)
            except AssertionError as error:  # see _open_channel
                raise UnavailableError(f"{self.url} does not renew our secure channel") from error
            client.uaclient.revolve_security_token()
        self._plan_renewal(client)

    def _plan_renewal(self, client: Client) -> None:
        self._renew_at = self._monotonic() + client.secure_channel_timeout / 1000 * _RENEW_SHARE

    def _connected(self) -> Client:
        if self._client is None:
            raise UnavailableError(f"not connected to {self.url}")
        return self._client

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            self._sound = False
            raise UnavailableError(f"{self.url}: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """One line for people."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def checked_url(url: str) -> tuple[str, str]:
    """A server's URL with its port, and its host.

    Raises:
        ConfigurationError: It is no such URL, or carries credentials, which every message about it would show.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError as error:
        raise ConfigurationError(f"the url of an OPC UA server is wrong ({error})") from error
    if "@" in parts.netloc:
        raise ConfigurationError("the url of an OPC UA server carries no user; use connection.user and password_file")
    if parts.scheme != "opc.tcp" or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no url of an OPC UA server: opc.tcp://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"opc.tcp://{host}:{port}{parts.path}", parts.hostname


def chunks(items: Sequence[T], limit: int) -> Iterator[Sequence[T]]:
    """Parts of at most ``limit`` items; 0: all in one."""
    size = limit or len(items) or 1
    for start in range(0, len(items), size):
        yield items[start : start + size]
