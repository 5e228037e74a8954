"""From a site file's words to a driver; a protocol's library is imported when a device speaks it."""

from __future__ import annotations

from pydantic import Field
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_drivers.driver import Driver
from wattmesh_drivers.template import Template


class ConnectionModel(StrictModel):
    """Where a device is: host, port and unit (Modbus), or url (OPC UA)."""

    host: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    unit: int = Field(default=1, ge=0, le=255)
    url: str | None = None


def create_driver(
    asset_id: str,
    template: Template,
    connection: ConnectionModel,
    clock: Clock,
    *,
    rated_power_w: float | None = None,
    rated_energy_wh: float | None = None,
) -> Driver:
    """The driver of a device; nothing is connected yet.

    Raises:
        ConfigurationError: The connection lacks what the template's protocol needs, or an extra is not installed.
    """
    if template.protocol == "opcua":
        if connection.url is None:
            raise ConfigurationError(f"{asset_id}: {template.id} needs connection.url (opc.tcp://host:port)")
        try:
            from wattmesh_drivers.opcua.driver import OpcUaDriver
        except ImportError as error:
            raise ConfigurationError(f"{asset_id}: {template.id} needs: pip install 'wattmesh[opcua]'") from error
        return OpcUaDriver(
            asset_id,
            template,
            connection.url,
            clock,
            rated_power_w=rated_power_w,
            rated_energy_wh=rated_energy_wh,
        )
    if connection.host is None:
        raise ConfigurationError(f"{asset_id}: {template.id} needs connection.host")
    from wattmesh_drivers.modbus.driver import ModbusDriver
    from wattmesh_drivers.modbus.link import ModbusLink

    needs = template.connection
    link = ModbusLink(
        connection.host,
        connection.port or 502,
        connection.unit,
        timeout_s=needs.timeout_ms / 1000,
        gap_s=needs.request_gap_ms / 1000,
        connect_delay_s=needs.connect_delay_ms / 1000,
    )
    return ModbusDriver(
        asset_id,
        template,
        link,
        clock,
        rated_power_w=rated_power_w,
        rated_energy_wh=rated_energy_wh,
    )
