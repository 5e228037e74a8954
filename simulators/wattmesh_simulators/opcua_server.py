"""An OPC UA server for a simulated battery, with the nodes of its template."""

from __future__ import annotations

import logging
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
                else:
                    self._points.append((point["id"], node_id))
        server.subscribe_server_callback(CallbackType.PreWrite, self._taken)
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
        """Take the plant's values; to be called after each step."""
        values = self._quantities()
        now = datetime.now(tz=UTC)
        for name, node_id in self._points:
            value = ua.DataValue(ua.Variant(float(values[name]), ua.VariantType.Double), SourceTimestamp=now)
            await self._server.write_attribute_value(node_id, value)

    async def _taken(self, event: object, dispatcher: object = None) -> None:
        del dispatcher
        if not getattr(event, "is_external", True):
            return
        for write in event.request_params.NodesToWrite:  # type: ignore[attr-defined]  # untyped by asyncua
            name = self._settings.get(write.NodeId)
            if name is not None and write.AttributeId == ua.AttributeIds.Value:
                self._written(name, float(write.Value.Value.Value))
