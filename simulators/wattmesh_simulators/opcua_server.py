"""An OPC UA server for a simulated battery, with the nodes of its template."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from asyncua import Server, ua
from asyncua.common.callback import CallbackType
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_simulators.registers import template_of

logging.getLogger("asyncua").setLevel(logging.CRITICAL)

_VARIANTS = {"double": ua.VariantType.Double, "uint32": ua.VariantType.UInt32}


class OpcUaServer:
    """One device at one port of the loopback interface; no security, as nothing leaves the machine.

    Args:
        template: Name of the device's template.
        quantities: All values of the device now, by point name, in our sign and unit.
        written: Called with each setting that a client wrote.
    """

    def __init__(
        self, template: str, quantities: Callable[[], Mapping[str, float]], written: Callable[[str, float], None]
    ) -> None:
        self._template = template_of(template)
        self._quantities = quantities
        self._written = written
        self._server = Server()
        self._points: list[tuple[str, ua.NodeId]] = []
        self._settings: dict[ua.NodeId, str] = {}
        self._variants: dict[ua.NodeId, ua.VariantType] = {}
        self._shown: dict[ua.NodeId, float] = {}

    async def start(self, port: int) -> None:
        """Listen; raises :class:`ConfigurationError` where the port is taken."""
        server = self._server
        await server.init()
        server.set_endpoint(f"opc.tcp://127.0.0.1:{port}/")
        server.set_server_name("WattMesh simulated battery")
        namespace = await server.register_namespace(self._template["namespace"])
        device = await server.nodes.objects.add_object(ua.NodeId("Battery", namespace), "Battery")
        values = self._quantities()
        for kind in ("points", "settings"):
            for point in self._template.get(kind, ()):
                identifier = point["node"].removeprefix("s=")
                node_id = ua.NodeId(identifier, namespace)
                variant = _VARIANTS[point["type"]]
                value = float(values[point["id"]])
                node = await device.add_variable(
                    node_id,
                    identifier.rpartition(".")[2],
                    ua.Variant(round(value) if variant.name == "UInt32" else value, variant),
                )
                if kind == "settings":
                    await node.set_writable()
                    self._settings[node_id] = point["id"]
                    self._variants[node_id] = variant
                    self._shown[node_id] = value
                else:
                    self._points.append((point["id"], node_id))
        server.subscribe_server_callback(CallbackType.PostWrite, self._taken)
        try:
            await server.start()
        except OSError as error:
            raise ConfigurationError(
                f"port {port} cannot be used for a simulated device ({error.strerror}); end what uses it or choose another"
            ) from error

    async def stop(self) -> None:
        """Stop listening."""
        await self._server.stop()

    async def refresh(self) -> None:
        """Take the plant's values, and what has become of the settings; to be called after each step."""
        values = self._quantities()
        now = datetime.now(tz=UTC)
        for name, node_id in self._points:
            value = ua.DataValue(ua.Variant(float(values[name]), ua.VariantType.Double), SourceTimestamp=now)
            await self._server.write_attribute_value(node_id, value)
        for node_id, name in self._settings.items():  # a setpoint that nobody renewed has fallen back
            if self._shown[node_id] != values[name]:
                self._shown[node_id] = values[name]
                kind = self._variants[node_id]
                raw = round(values[name]) if kind is ua.VariantType.UInt32 else values[name]
                value = ua.DataValue(ua.Variant(raw, kind), SourceTimestamp=now)
                await self._server.write_attribute_value(node_id, value)

    async def _taken(self, event: object, dispatcher: object = None) -> None:
        del dispatcher
        if not getattr(event, "is_external", True):
            return
        writes = event.request_params.NodesToWrite  # type: ignore[attr-defined]  # untyped by asyncua
        for write, status in zip(writes, event.response_params, strict=True):  # type: ignore[attr-defined]
            name = self._settings.get(write.NodeId)
            if name is None or write.AttributeId != ua.AttributeIds.Value or not status.is_good():
                continue
            self._shown[write.NodeId] = value = float(write.Value.Value.Value)
            if math.isfinite(value):  # any other is put right at the next step
                self._written(name, value)
