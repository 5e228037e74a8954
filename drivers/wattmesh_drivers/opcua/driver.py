"""OPC UA devices: one Read of all nodes a poll, typed writes, every node audited after each connect."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Unpack

from asyncua import Client, ua
from asyncua.common.node import Node
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.driver import BaseDriver, BaseOptions, RegisterLocation
from wattmesh_drivers.template import PointModel, Template

logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # every failure is reported once, by us

_VARIANTS = {
    "double": ua.VariantType.Double, "float": ua.VariantType.Float, "boolean": ua.VariantType.Boolean,
    "int16": ua.VariantType.Int16, "uint16": ua.VariantType.UInt16, "int32": ua.VariantType.Int32,
    "uint32": ua.VariantType.UInt32, "int64": ua.VariantType.Int64, "uint64": ua.VariantType.UInt64,
}  # fmt: skip


class OpcUaDriver(BaseDriver):
    """A device behind an OPC UA server.

    Args:
        asset_id: Its name at the site.
        template: Protocol ``opcua``.
        url: ``opc.tcp://host:port/…``.
        clock: Stamps readings that have no source time of their own.
        base: See :class:`wattmesh_drivers.driver.BaseDriver`.
    """

    def __init__(
        self,
        asset_id: str,
        template: Template,
        url: str,
        clock: Clock,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(asset_id, template, clock, **base)
        self._url = url
        self._timeout_s = template.connection.timeout_ms / 1000
        self._client: Client | None = None
        self._namespace = 0
        self._ids: list[ua.NodeId] = []

    async def _open(self) -> None:
        await self._shut()
        client = Client(self._url, timeout=self._timeout_s)
        try:
            await client.connect()
            self._client = client
            self._namespace = await client.get_namespace_index(str(self.template.namespace))
            self._ids = [self._node_id(point) for point in self.template.points]
            await self._audit(client)
        except ValueError as error:
            raise ConfigurationError(f"{self._url} has no namespace {self.template.namespace!r}") from error
        except (OSError, TimeoutError, ua.UaError) as error:
            raise UnavailableError(f"{self._url}: {error or type(error).__name__}") from error

    async def _audit(self, client: Client) -> None:
        """Every node has to exist: a server that came back with fewer is reported, not silently half-read."""
        wanted = self._ids + [self._node_id(setting) for setting in self.template.settings]
        results = await client.uaclient.read_attributes(wanted, ua.AttributeIds.Value)
        missing = [
            node.Identifier
            for node, result in zip(wanted, results, strict=True)
            if result.StatusCode is not None and result.StatusCode.value == ua.StatusCodes.BadNodeIdUnknown
        ]
        if missing:
            raise ConfigurationError(f"{self._url} lacks the nodes {', '.join(map(str, missing))}")

    def _node_id(self, model: PointModel) -> ua.NodeId:
        return ua.NodeId.from_string(f"ns={self._namespace};{model.node}")

    async def _shut(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                await asyncio.wait_for(client.disconnect(), self._timeout_s)
            except (OSError, TimeoutError, ua.UaError):
                return

    async def _read(self) -> None:
        client = self._connected()
        now = self._clock.utc_ns()
        try:
            results = await client.uaclient.read_attributes(self._ids, ua.AttributeIds.Value)
        except (OSError, TimeoutError, ua.UaError) as error:
            raise UnavailableError(f"{self._url}: {error or type(error).__name__}") from error
        for index, (model, result) in enumerate(zip(self.template.points, results, strict=True)):
            value = result.Value.Value if result.Value is not None else None
            good = result.StatusCode is None or result.StatusCode.is_good()
            scaled = float(value) * model.scale * model.sign if isinstance(value, int | float) else math.nan
            if good and math.isfinite(scaled):
                self.values[index] = scaled
                self.qualities[index] = Quality.GOOD
            else:
                self.values[index] = math.nan
                self.qualities[index] = Quality.BAD
            self.source_times_ns[index] = now

    async def _write(self, setting: PointModel, value: float) -> None:
        raw = value / (setting.scale * setting.sign)
        kind = _VARIANTS[str(setting.type)]
        typed = raw if setting.type in {"double", "float"} else bool(raw) if setting.type == "boolean" else round(raw)
        try:
            await self._node(setting).write_value(ua.DataValue(ua.Variant(typed, kind)))
        except (ua.uaerrors.BadUserAccessDenied, ua.uaerrors.BadNotWritable, ua.uaerrors.BadTypeMismatch) as error:
            raise ConfigurationError(f"{self._url} refuses to write {setting.node}: {error}") from error
        except (OSError, TimeoutError, ua.UaError) as error:
            raise UnavailableError(f"{self._url}: {error or type(error).__name__}") from error

    async def _read_setting(self, setting: PointModel) -> float:
        try:
            value = await self._node(setting).read_value()
        except (OSError, TimeoutError, ua.UaError) as error:
            raise UnavailableError(f"{self._url}: {error or type(error).__name__}") from error
        if not isinstance(value, int | float):
            raise UnavailableError(f"{self._url}: {setting.node} reads back as no number")
        return float(value) * setting.scale * setting.sign

    def _node(self, model: PointModel) -> Node:
        return self._connected().get_node(self._node_id(model))

    def _connected(self) -> Client:
        if self._client is None:
            raise UnavailableError(f"not connected to {self._url}")
        return self._client

    def _step_of(self, setting: PointModel) -> float:
        return 0.0 if setting.type in {"double", "float"} else setting.scale

    def register_of(self, point_id: str) -> RegisterLocation | None:
        """There are no registers here."""
        del point_id
        return None
