"""An OPC UA server for a simulated device, with the nodes of its template, and faults on demand.

Its nodes, types and scales come from the template's file; the reading of node ids, paths and numbers here shares nothing with the
driver's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from asyncua import Server, ua
from asyncua.common.callback import CallbackType
from asyncua.common.node import Node
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.registers import template_of

logging.getLogger("asyncua").setLevel(logging.CRITICAL)

_VARIANTS = {
    "double": ua.VariantType.Double, "float": ua.VariantType.Float, "boolean": ua.VariantType.Boolean,
    "int16": ua.VariantType.Int16, "uint16": ua.VariantType.UInt16, "int32": ua.VariantType.Int32,
    "uint32": ua.VariantType.UInt32, "int64": ua.VariantType.Int64, "uint64": ua.VariantType.UInt64,
}  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class OpcUaFaults:
    """What goes wrong; it may be changed while the server runs."""

    missing: set[str] = field(default_factory=set)
    """Points and settings that have no node after the next start."""
    status: dict[str, int] = field(default_factory=dict)
    """Point → status code that its values have from the next refresh on."""
    frozen: bool = False
    """From the next refresh on no subscription publishes, while the connection lives and reads are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpcUaSecurity:
    """Certificate and key of the server, in DER; with it, it has an endpoint for each policy and mode, and none unsecured."""

    certificate: Path
    key: Path
    application_uri: str
    clients: tuple[Path, ...] = ()
    """Certificates in DER of the clients that it trusts; none: all."""


@dataclass(slots=True)
class _Variable:
    """One node and how its value is made from ours."""

    node: Node
    name: str
    kind: str
    scale: float
    offset: float

    def raw(self, value: float) -> ua.Variant:
        """In the node's type, at its limit where it does not fit."""
        number: float | int = (value - self.offset) / self.scale
        if self.kind == "boolean":
            number = bool(number)
        elif "int" in self.kind:
            bits, signed = int(self.kind.lstrip("uint")), not self.kind.startswith("u")
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
            number = min(max(round(number), low), high)
        return ua.Variant(number, _VARIANTS[self.kind])


class OpcUaServer:
    """One device at one port of the loopback interface.

    Args:
        template: Name of the device's template, or the path of a file.
        quantities: All values of the device now, by point name, in our sign and unit; what it does not name is 0.
        written: Called with each setting that a client wrote.
        clock: Stamps the values; None: real time.
        security: None: unsecured, as nothing leaves the machine.
        users: Names and passwords that may log in; with these, or ``user_certificates``, nobody may without.
        user_certificates: Certificates in DER that may log in.
        limits: Operation limits that it names, like ``MaxNodesPerRead``; that of reading is kept.
    """

    def __init__(
        self,
        template: str,
        quantities: Callable[[], Mapping[str, float]],
        written: Callable[[str, float], None],
        *,
        clock: Clock | None = None,
        security: OpcUaSecurity | None = None,
        users: Mapping[str, str] | None = None,
        user_certificates: Collection[Path] = (),
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self._template = _read(template)
        self._quantities = quantities
        self._written = written
        self._clock = clock
        self._security = security
        self._users = dict(users or {})
        self._user_certificates = user_certificates
        self._limits = dict(limits or {})
        self.faults = OpcUaFaults()
        self.reads: list[int] = []
        """Nodes of each Read that a client sent."""
        self._server: Server | None = None
        self._port = 0
        self._points: list[_Variable] = []
        self._settings: dict[ua.NodeId, _Variable] = {}
        self._shown: dict[ua.NodeId, float] = {}
        self._stalled: dict[int, Any] = {}

    async def start(self, port: int) -> None:
        """Listen; raises :class:`ConfigurationError` where the port is taken."""
        self._port = port
        self._points.clear()
        self._settings.clear()
        server = Server(user_manager=_Users(self._users, self._user_certificates))
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/")
        server.set_server_name("WattMesh simulated device")
        await self._secure(server)
        namespace = await server.register_namespace(self._template["namespace"])
        await self._add_nodes(server, namespace)
        for name, limit in self._limits.items():
            node = getattr(ua.ObjectIds, f"Server_ServerCapabilities_OperationLimits_{name}")
            await server.get_node(ua.NodeId(node)).write_value(ua.Variant(limit, ua.VariantType.UInt32))
        server.subscribe_server_callback(CallbackType.PostWrite, self._taken)
        server.subscribe_server_callback(CallbackType.PreRead, self._asked)
        try:
            await server.start()
        except OSError as error:
            raise ConfigurationError(
                f"port {port} cannot be used for a simulated device ({error.strerror}); end what uses it or choose another"
            ) from error
        self._server = server

    async def stop(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is None:
            return
        ticking, server.iserver.time_task = server.iserver.time_task, None  # else its end takes a second
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        await server.stop()

    async def restart(self) -> None:
        """Stop, and start again at the same port, without the nodes that :attr:`faults` calls missing."""
        await self.stop()
        await self.start(self._port)

    async def refresh(self) -> None:
        """Take the plant's values, and what has become of the settings; to be called after each step."""
        server = self._server
        if server is None:
            return
        self._stall(server)
        values, now = self._quantities(), self._now()
        for point in self._points:
            status = ua.StatusCode(self.faults.status.get(point.name, ua.StatusCodes.Good))
            value = ua.DataValue(point.raw(values.get(point.name, 0.0)), StatusCode=status, SourceTimestamp=now)
            await server.write_attribute_value(point.node.nodeid, value)
        for node_id, setting in self._settings.items():  # a setpoint that nobody renewed has fallen back
            current = values.get(setting.name, self._shown[node_id])
            if self._shown[node_id] != current:
                self._shown[node_id] = current
                value = ua.DataValue(setting.raw(current), SourceTimestamp=now)
                await server.write_attribute_value(node_id, value)

    def _stall(self, server: Server) -> None:
        """Where subscriptions are to stand still, none of them finds a publish request that it could answer."""
        for number, subscription in server.iserver.subscription_service.subscriptions.items():
            if self.faults.frozen and number not in self._stalled:
                self._stalled[number] = subscription.pub_request_callback
                subscription.pub_request_callback = _no_request
            elif not self.faults.frozen and number in self._stalled:
                subscription.pub_request_callback = self._stalled.pop(number)

    def _now(self) -> datetime:
        if self._clock is None:
            return datetime.now(tz=UTC)
        return _EPOCH + timedelta(microseconds=self._clock.utc_ns() // 1000)

    async def _secure(self, server: Server) -> None:
        tokens: list[type] = []
        if self._users:
            tokens.append(ua.UserNameIdentityToken)
        if self._user_certificates:
            tokens.append(ua.X509IdentityToken)
        server.set_identity_tokens(tokens or [ua.AnonymousIdentityToken])
        if self._security is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            return
        await server.set_application_uri(self._security.application_uri)
        await server.load_certificate(self._security.certificate)
        await server.load_private_key(self._security.key)
        server.set_security_policy(
            [
                getattr(ua.SecurityPolicyType, f"{policy}_{mode}")
                for policy in ("Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss")
                for mode in ("Sign", "SignAndEncrypt")
            ]
        )
        trusted = [path.read_bytes() for path in self._security.clients]

        async def check(certificate: x509.Certificate, description: object) -> None:
            del description
            if trusted and certificate.public_bytes(Encoding.DER) not in trusted:
                raise ServiceError(ua.StatusCodes.BadCertificateUntrusted)

        server.set_certificate_validator(check)

    async def _add_nodes(self, server: Server, namespace: int) -> None:
        values, now = self._quantities(), self._now()
        device = str(self._template["kind"]).title()
        for kind in ("points", "settings"):
            for point in self._template.get(kind, ()):
                if point["id"] in self.faults.missing or "sum" in point:
                    continue
                if "path" in point:
                    steps = [await self._step(server, step, namespace) for step in _split(point["path"])]
                    node_id = ua.NodeId(0, namespace)  # the server gives it a number
                else:
                    name = str(point["node"]).partition("=")[2].rpartition(".")[2]
                    steps = [(namespace, device), (namespace, name)]
                    node_id = ua.NodeId.from_string(f"ns={namespace};{point['node']}")
                scale = float(point.get("scale", 1.0)) * int(point.get("sign", 1))
                variable = _Variable(
                    Node(None, node_id), point["id"], point["type"], scale, float(point.get("offset", 0.0))
                )
                value = float(values.get(point["id"], 0.0))
                variable.node = await self._add(server, steps, node_id, variable.raw(value))
                stamped = ua.DataValue(variable.raw(value), SourceTimestamp=now)
                await server.write_attribute_value(variable.node.nodeid, stamped)
                if kind == "settings":
                    await variable.node.set_writable()
                    self._settings[variable.node.nodeid] = variable
                    self._shown[variable.node.nodeid] = value
                else:
                    self._points.append(variable)

    @staticmethod
    async def _step(server: Server, step: tuple[str | None, str], namespace: int) -> tuple[int, str]:
        uri, name = step
        return (namespace if uri is None else await server.register_namespace(uri)), name

    @staticmethod
    async def _add(server: Server, steps: Sequence[tuple[int, str]], node_id: ua.NodeId, value: ua.Variant) -> Node:
        """A variable below its folders; one that is there already (read and written) is given as it is."""
        if node_id.Identifier != 0:
            found = server.get_node(node_id)
            if await _exists(found):
                return found
        parent = server.nodes.objects
        for index, name in steps[:-1]:
            browse_name = ua.QualifiedName(name, index)
            try:
                parent = await parent.get_child([browse_name])
            except ua.uaerrors.BadNoMatch:
                parent = await parent.add_object(ua.NodeId(0, index), browse_name)
        last = ua.QualifiedName(steps[-1][1], steps[-1][0])
        if node_id.Identifier == 0:
            try:
                return await parent.get_child([last])
            except ua.uaerrors.BadNoMatch:
                return await parent.add_variable(node_id, last, value)
        return await parent.add_variable(node_id, last, value)

    async def _asked(self, event: Any, dispatcher: object = None) -> None:
        del dispatcher
        if not event.is_external:
            return
        count = len(event.request_params.NodesToRead)
        self.reads.append(count)
        if 0 < self._limits.get("MaxNodesPerRead", 0) < count:
            raise ServiceError(ua.StatusCodes.BadTooManyOperations)

    async def _taken(self, event: Any, dispatcher: object = None) -> None:
        del dispatcher
        if not event.is_external:
            return
        for write, status in zip(event.request_params.NodesToWrite, event.response_params, strict=True):
            setting = self._settings.get(write.NodeId)
            if setting is None or write.AttributeId != ua.AttributeIds.Value or not status.is_good():
                continue
            value = float(write.Value.Value.Value) * setting.scale + setting.offset
            self._shown[write.NodeId] = value
            if math.isfinite(value):  # any other is put right at the next step
                self._written(setting.name, value)


class _Users:
    """Who may log in."""

    def __init__(self, users: Mapping[str, str], certificates: Collection[Path]) -> None:
        self._users = users
        self._certificates = [path.read_bytes() for path in certificates]

    def get_user(
        self,
        iserver: object,
        username: str | None = None,
        password: str | None = None,
        certificate: bytes | None = None,
    ) -> User | None:
        """See asyncua's user managers; none: refused."""
        del iserver
        user = User(role=UserRole.User)
        if username is not None:
            return user if username in self._users and self._users[username] == password else None
        if self._certificates:
            return user if certificate in self._certificates else None
        return user if not self._users else None


def _read(template: str) -> dict[str, Any]:
    if not template.endswith(".yaml"):
        return template_of(template)
    try:
        data: dict[str, Any] = yaml.safe_load(Path(template).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the template {template} cannot be read ({error})") from error
    return data


def _no_request(subscription: int) -> None:
    del subscription


async def _exists(node: Node) -> bool:
    try:
        await node.read_node_class()
    except ua.UaError:
        return False
    return True


def _split(path: str) -> list[tuple[str | None, str]]:
    """Names of a browse path with their namespaces, letter by letter."""
    steps: list[tuple[str | None, str]] = []
    uri: str | None = None
    name, rest = "", path
    while rest:
        letter, rest = rest[0], rest[1:]
        if letter == "{" and not name:
            uri, _, rest = rest.partition("}")
        elif letter == "&":
            name, rest = name + rest[0], rest[1:]
        elif letter == "/":
            steps.append((uri, name))
            uri, name = None, ""
        else:
            name += letter
    return [*steps, (uri, name)]
