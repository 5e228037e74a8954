"""From a site file's words to a driver; a protocol's library is imported when a device speaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, Unpack

from pydantic import Field, model_validator
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_drivers.driver import BaseOptions, Driver
from wattmesh_drivers.modbus.line import Endpoint, LinePool, SerialPort, Tls
from wattmesh_drivers.template import Template


class TlsModel(StrictModel):
    """Modbus Security: paths of PEM files."""

    ca: Path = Field(description="authorities that may sign the device's certificate")
    certificate: Path | None = Field(default=None, description="ours, where the device asks for one")
    key: Path | None = None
    server_name: str | None = Field(default=None, description="name in its certificate, where that is not the host")


class SecurityModel(StrictModel):
    """OPC UA: how messages are secured, whom we trust and who we are. Paths of DER or PEM files."""

    policy: Literal["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"] = "Basic256Sha256"
    mode: Literal["sign", "sign_and_encrypt"] = "sign_and_encrypt"
    certificate: Path
    key: Path
    trust: tuple[Path, ...] = Field(min_length=1, description="certificates of servers, or folders of them")


class ConnectionModel(StrictModel):
    """Where a device is: host (Modbus TCP), serial (Modbus RTU) or url (OPC UA); what is left out, its template knows."""

    host: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    unit: int | None = Field(default=None, ge=0, le=255)
    framing: Literal["tcp", "rtu"] = Field(default="tcp", description="rtu: a plain serial converter behind the host")
    tls: TlsModel | None = None
    serial: str | None = Field(default=None, description="a serial port, like /dev/ttyUSB0")
    baud: int | None = Field(default=None, ge=300, le=1_000_000, description="of the serial line")
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1
    timeout_ms: int | None = Field(default=None, ge=50, le=60_000)
    proxy_port: int | None = Field(
        default=None, ge=1, le=65535, description="Modbus TCP port for others who want to read the device through us"
    )
    proxy_host: str = Field(default="127.0.0.1", description="where the proxy listens")
    url: str | None = None
    security: SecurityModel | None = None
    user: str | None = None
    password_file: Path | None = None
    user_certificate: Path | None = None
    user_key: Path | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("host", "serial", "url") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"a device is reached one way; this says {' and '.join(ways)}")
        if self.tls is not None and (self.host is None or self.framing != "tcp"):
            raise ValueError("tls goes with host and the framing tcp (Modbus Security)")
        if self.serial is not None and self.unit == 0:
            raise ValueError("unit 0 of a serial line is everybody on it; a device has a unit from 1 to 247")
        if self.proxy_port is not None and self.url is not None:
            raise ValueError("proxy_port goes with Modbus devices")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        if (self.user_certificate is None) != (self.user_key is None):
            raise ValueError("user_certificate and user_key go together")
        if self.user is not None and self.user_certificate is not None:
            raise ValueError("a login is user or user_certificate, not both")
        return self

    @property
    def plain_tcp(self) -> bool:
        """Whether it is a host that speaks plain Modbus TCP, which the reflex speaks as well."""
        return self.host is not None and self.framing == "tcp" and self.tls is None

    def under(self, folder: Path) -> ConnectionModel:
        """The same with files below a folder, where their paths are relative."""

        def placed(model: StrictModel) -> dict[str, object]:
            found: dict[str, object] = {}
            for name in type(model).model_fields:
                value = getattr(model, name)
                if isinstance(value, Path):
                    found[name] = folder / value
                elif isinstance(value, tuple) and value and isinstance(value[0], Path):
                    found[name] = tuple(folder / one for one in value)
                elif isinstance(value, StrictModel):
                    found[name] = value.model_copy(update=placed(value))
            return found

        return self.model_copy(update=placed(self))

    def endpoint(self, template: Template) -> Endpoint:
        """The Modbus line; raises :class:`ConfigurationError` where the connection names none."""
        if self.serial is not None:
            baud = self.baud or template.connection.baud
            return Endpoint(
                serial=SerialPort(path=self.serial, baud=baud, parity=self.parity, stop_bits=self.stop_bits)
            )
        if self.host is None:
            raise ConfigurationError(f"{template.id} needs connection.host, or connection.serial")
        tls = None
        if self.tls is not None:
            tls = Tls(
                ca=self.tls.ca,
                certificate=self.tls.certificate,
                key=self.tls.key,
                server_name=self.tls.server_name,
            )
        port = self.port or (802 if tls is not None and template.connection.port == 502 else template.connection.port)
        return Endpoint(host=self.host, port=port, rtu=self.framing == "rtu", tls=tls)


def create_driver(
    asset_id: str,
    template: Template,
    connection: ConnectionModel,
    clock: Clock,
    *,
    lines: LinePool | None = None,
    **base: Unpack[BaseOptions],
) -> Driver:
    """The driver of a device; nothing is connected yet.

    Args:
        asset_id: Its name at the site.
        template: What it is.
        connection: Where it is.
        clock: For its readings and watchdogs.
        lines: Of the site, so that devices behind one endpoint share one queue; none makes a line for this device alone.
        base: See :class:`wattmesh_drivers.driver.BaseDriver`.

    Raises:
        ConfigurationError: The connection lacks what the template's protocol needs, or an extra is not installed.
    """
    if template.protocol == "opcua":
        if connection.url is None:
            raise ConfigurationError(f"{asset_id}: {template.id} needs connection.url (opc.tcp://host:port)")
        try:
            from wattmesh_drivers.opcua.driver import OpcUaDriver
            from wattmesh_drivers.opcua.security import Login, Security
        except ImportError as error:
            raise ConfigurationError(f"{asset_id}: {template.id} needs: pip install 'wattmesh[opcua]'") from error
        security = Security(**dict(connection.security)) if connection.security is not None else None
        login = None
        if connection.user is not None or connection.user_certificate is not None:
            login = Login(
                user=connection.user, password_file=connection.password_file,
                certificate=connection.user_certificate, key=connection.user_key,
            )  # fmt: skip
        timeout_s = connection.timeout_ms / 1000 if connection.timeout_ms is not None else None
        try:
            return OpcUaDriver(
                asset_id, template, connection.url, clock, security=security, login=login, timeout_s=timeout_s, **base
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"{asset_id}: {error}") from error
    from wattmesh_drivers.modbus.driver import ModbusDriver
    from wattmesh_drivers.modbus.link import ModbusLink

    try:
        endpoint = connection.endpoint(template)
    except ConfigurationError as error:
        raise ConfigurationError(f"{asset_id}: {error}") from error
    needs = template.connection
    line = (lines or LinePool()).line(
        endpoint,
        gap_s=needs.request_gap_ms / 1000,
        connect_delay_s=needs.connect_delay_ms / 1000,
        pipeline=needs.pipeline,
    )
    unit = needs.unit if connection.unit is None else connection.unit
    link = ModbusLink(line, unit, timeout_s=(connection.timeout_ms or needs.timeout_ms) / 1000)
    cost = endpoint.request_cost(needs.latency_ms / 1000, connection.baud)
    return ModbusDriver(asset_id, template, link, clock, request_cost=cost, **base)
