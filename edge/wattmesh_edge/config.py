"""The site file: what is there, what it may do, who it talks to. Every mistake names file, line and field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from wattmesh_a2a.config_file import StrictModel, load_yaml_model, place
from wattmesh_a2a.devices import AssetKind
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.tariff import Tariff
from wattmesh_a2a.tariff_file import TariffModel
from wattmesh_a2a.transports.choose import check_broker
from wattmesh_drivers.factory import ConnectionModel
from wattmesh_drivers.template import Template, load_template

from wattmesh_edge.reflex.profile import ResponseProfile, check_profile, load_profile

VOLTS = 230.0
"""Phase to neutral, nominal (IEC 60038)."""
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class GridConnectionModel(StrictModel):
    """Limits of the connection, positive magnitudes."""

    import_limit_w: float = Field(gt=0)
    export_limit_w: float = Field(ge=0, description="0 is zero export")
    phase_limit_w: float | None = Field(
        default=None, gt=0, description="of each phase, either way; needs a meter that tells them"
    )


class PlaneModel(StrictModel):
    """Where an inverter's modules stand and look: with it its yield is compared with a clear sky's."""

    latitude_deg: float = Field(ge=-66, le=66)
    longitude_deg: float = Field(ge=-180, le=180)
    tilt_deg: float = Field(default=30, ge=0, le=90)
    azimuth_deg: float = Field(default=180, ge=0, le=360, description="clockwise from north; 180 is south")


class DeviceModel(StrictModel):
    """One device and where it is."""

    id: str = Field(pattern=_NAME)
    template: str
    connection: ConnectionModel
    rated_power_w: float | None = Field(default=None, gt=0)
    rated_energy_wh: float | None = Field(default=None, gt=0)
    role: Literal["grid", "backup", "load"] | None = Field(
        default=None, description="the meter at the grid connection, a second one there, or one that sees consumption"
    )
    phase: Literal[1, 2, 3] | None = Field(default=None, description="of a device on one phase; none: over all three")
    ramp_w_per_s: float | None = Field(
        default=None, gt=0, description="how fast its power may grow; protection is never slowed"
    )
    idle_below_w: float = Field(default=0, ge=0, description="it cannot hold less than this but 0")
    plane: PlaneModel | None = Field(default=None, description="of an inverter's modules, for early warning")
    guaranteed_cycles: float | None = Field(
        default=None, gt=0, description="full cycles that a battery is guaranteed for; most of them made is told"
    )
    health_percent: float = Field(
        default=100, gt=0, le=100, description="of the rated energy that a battery still holds"
    )


class FlexibleModel(StrictModel):
    """What a load that can wait needs, and when."""

    device: str
    energy_wh: float = Field(gt=0, description="in each window")
    power_w: float = Field(gt=0, description="at which it runs")
    begins: str = Field(alias="from", pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="local time")
    ends: str = Field(
        alias="to", pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="local time; before from: the next day"
    )


class ChargingModel(StrictModel):
    """An electric car that has to have its energy by its departure."""

    device: str
    energy_wh: float = Field(gt=0, description="that it needs from the socket for each departure")
    departure: str = Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", description="local time")
    days: Literal["all", "weekday", "weekend"] = Field(default="all", description="of the departures")
    phases: Literal[1, 3] = 3
    max_current_a: float = Field(default=16, ge=6, le=80, description="of the cable, the fuse or the car, a phase")
    min_current_a: float = Field(default=6, ge=6, le=32, description="below it a car does not charge (IEC 61851-1)")

    @model_validator(mode="after")
    def _ordered(self) -> ChargingModel:
        if self.min_current_a > self.max_current_a:
            raise ValueError(f"min_current_a {self.min_current_a:g} is above max_current_a {self.max_current_a:g}")
        return self

    @property
    def power_w(self) -> float:
        """At the largest current and 230 V."""
        return self.max_current_a * VOLTS * self.phases

    @property
    def least_w(self) -> float:
        """At the least current."""
        return self.min_current_a * VOLTS * self.phases


class MarketModel(StrictModel):
    """The local market this site is a participant of."""

    area: str
    trade: bool = True


class ControlModel(StrictModel):
    """The control cycle."""

    period_s: float = Field(default=1.0, ge=0.1, le=60)
    reserve_soc_percent: float = Field(default=5.0, ge=0, le=100)
    peak_limit_w: float | None = Field(
        default=None,
        gt=0,
        description="upper limit of the import of a quarter hour: the owner's word, above market and plan",
    )
    meter_lag_s: float = Field(
        default=0, ge=0, le=30, description="by how much the grid meter tells an older time than the batteries do"
    )


class FrequencySourceModel(StrictModel):
    """Where the reflex listens: a device of this file, or one of ``file``, ``adc``, ``udp``, ``pmu``."""

    device: str | None = Field(
        default=None, description="a device of this file: its register is polled, its OPC UA item read"
    )
    point: str = "frequency_hz"
    voltage: str | None = Field(default="voltage_l1_v", description="point that tells a dead meter; null: none")
    poll_ms: int = Field(default=20, ge=5, le=1000)
    file: Path | None = Field(default=None, description="WAV or CSV with samples of the voltage, played once")
    adc: Path | None = Field(default=None, description="device file of an ADC, like /dev/iio:device0")
    udp: str | None = Field(default=None, description="HOST:PORT to listen on for WMS1 datagrams, loopback only")
    pmu: str | None = Field(default=None, description="HOST:PORT of an IEEE C37.118.2 unit")
    id_code: int = Field(default=1, ge=1, le=65534, description="of the PMU")
    rate_hz: float | None = Field(default=None, gt=0, le=60_000, description="samples a second")
    phases: Literal[1, 3] = 3
    columns: tuple[str, ...] = Field(default=(), description="of a CSV, one a phase")
    bits: Literal[16, 32] = Field(default=16, description="of an ADC's sample")
    shift: int = Field(default=0, ge=0, le=31)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="volts at the grid of one count")
    offset: float = Field(default=0.0, allow_inf_nan=False, description="counts")
    m_class: bool = Field(default=False, description="class M for a waveform: only watches")
    rail_v: float = Field(default=0.0, ge=0, description="largest voltage the source can give; 0: not known")

    @model_validator(mode="after")
    def _one_source(self) -> FrequencySourceModel:
        given = [name for name in ("device", "file", "adc", "udp", "pmu") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of device, file, adc, udp and pmu (found {', '.join(given) or 'none'})")
        if given[0] in {"adc", "udp"} and self.rate_hz is None:
            raise ValueError(f"{given[0]} needs rate_hz")
        return self


class FrequencyResponseModel(StrictModel):
    """What the reflex may move."""

    device: str
    profile: str
    power_w: float | None = Field(default=None, gt=0, description="contracted power; default: the battery's rating")


class FrequencyModel(StrictModel):
    """The reflex."""

    nominal_hz: Literal[50, 60] = 60
    nominal_v: float | None = Field(
        default=None, gt=0, description="phase to neutral; without it no voltage event is told"
    )
    band_hz: float = Field(default=0.2, gt=0, le=5)
    voltage_band_percent: float = Field(default=5.0, gt=0, le=50)
    rocof_hz_per_s: float = Field(default=1.0, gt=0, le=50)
    realtime: bool = Field(default=True, description="ask for SCHED_FIFO and locked memory")
    source: FrequencySourceModel
    response: FrequencyResponseModel | None = None


class LocalModel(StrictModel):
    """The site's own page and metrics, for whoever is on the gateway (or on the other end of a tunnel to it)."""

    host: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    port: int = Field(ge=0, le=65535, description="0: any free one, told in the log")


class MessagingModel(StrictModel):
    """The way to the cloud. Secrets are files."""

    broker: str
    signing_key: Path | None = None
    """The key shared with the cloud; without it commands are signed with the certificate below."""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    crl: Path | None = None
    prefix: str = "a2a/v1"
    things: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_$/.-]{1,128}$",
        description="topics of the device's shadow and jobs, without its name: $aws/things on AWS IoT Core, one's own elsewhere",
    )
    thing: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_:-]{1,128}$", description="its name there; default: the site's"
    )
    telemetry: Literal["live", "economy"] = Field(
        default="live",
        description="economy: batches of a minute, acknowledged together, a status every 10 min; for AWS IoT Core's prices",
    )
    telemetry_rule: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]{1,128}$",
        description="AWS IoT Core's rule that batches go to without passing the broker (Basic Ingest)",
    )


class SiteModel(StrictModel):
    """A site file."""

    version: Literal[1]
    site: str = Field(pattern=_NAME)
    org: str = Field(pattern=_NAME)
    time_zone: str = "UTC"
    currency: str = "EUR"
    connection: GridConnectionModel
    tariff: TariffModel
    devices: tuple[DeviceModel, ...] = Field(min_length=1)
    agents: tuple[Literal["producer", "consumer"], ...] = ("producer", "consumer")
    flexible: tuple[FlexibleModel, ...] = ()
    charging: tuple[ChargingModel, ...] = ()
    market: MarketModel | None = None
    control: ControlModel = ControlModel()
    frequency: FrequencyModel | None = None
    messaging: MessagingModel
    local: LocalModel | None = None
    state: Path

    @model_validator(mode="after")
    def _consistent(self) -> SiteModel:
        """What one field says has to fit the others."""
        names = [device.id for device in self.devices]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"devices: {name!r} stands twice")
        if sum(device.role == "grid" for device in self.devices) != 1:
            raise ValueError("devices: exactly one meter needs role: grid")
        taken: list[str] = []
        for section in ("flexible", "charging"):
            for index, need in enumerate(getattr(self, section)):
                where = f"{section}[{index}].device"
                if need.device not in names:
                    raise ValueError(f"{where}: {need.device!r} is none of the devices {', '.join(names)}")
                if need.device in taken:
                    raise ValueError(f"{where}: {need.device!r} has a need already; one each")
                taken.append(need.device)
        if self.frequency is not None:
            response = self.frequency.response
            listed = {"source": self.frequency.source.device, "response": response.device if response else None}
            for field, one in listed.items():
                if one is not None and one not in names:
                    raise ValueError(f"frequency.{field}.device: {one!r} is none of the devices {', '.join(names)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A checked site: the file, its templates, and paths that can be used."""

    model: SiteModel
    templates: dict[str, Template]
    tariff: Tariff
    state: Path
    signing_key: Path | None
    profile: ResponseProfile | None = None
    """How the reflex responds, where it does."""

    def meters_of(self, role: str) -> list[str]:
        """Devices with a role, in the file's order."""
        return [device.id for device in self.model.devices if device.role == role]

    @property
    def grid_meter(self) -> str:
        """The device at the grid connection."""
        return next(device.id for device in self.model.devices if device.role == "grid")

    def devices_of(self, kind: AssetKind) -> list[str]:
        """Devices of a kind."""
        return [name for name, template in self.templates.items() if template.kind is kind]


def load_site(path: Path, base: Path | None = None) -> Site:
    """The site of a file; raises :class:`ConfigurationError` naming file, line and field. Nothing is started by it.

    Args:
        path: The file.
        base: What paths in it are relative to; none: the file's folder.
    """
    model = load_yaml_model(path, SiteModel)
    templates: dict[str, Template] = {}
    for index, device in enumerate(model.devices):
        try:
            templates[device.id] = load_template(device.template)
        except ConfigurationError as error:
            raise ConfigurationError(f"{place(path, 'devices', index, 'template')}: {error}") from error
        template = templates[device.id]
        where = place(path, "devices", index)
        if template.protocol == "opcua" and device.connection.url is None:
            raise ConfigurationError(f"{where}.connection: {template.id} needs url (opc.tcp://host:port)")
        if template.protocol != "opcua" and device.connection.host is None and device.connection.serial is None:
            raise ConfigurationError(f"{where}.connection: {template.id} needs host, or serial")
        if (
            not template.monitor_only
            and template.kind is AssetKind.BATTERY
            and (device.rated_power_w is None or device.rated_energy_wh is None)
        ):
            raise ConfigurationError(f"{where}: a battery needs rated_power_w and rated_energy_wh")
        if "production_limit_percent" in template.controls and device.rated_power_w is None:
            raise ConfigurationError(f"{where}: an inverter needs rated_power_w, so that the export limit can be kept")
        for name, control in template.controls.items():
            if control.watchdog is not None and model.control.period_s > control.watchdog.seconds / 4:
                raise ConfigurationError(
                    f"{place(path, 'control', 'period_s')}: {device.id} falls back {control.watchdog.seconds:g} s after {name} "
                    f"was fed last; a period of {control.watchdog.seconds / 4:g} s at most feeds it in time"
                )
        if device.role is not None and template.kind is not AssetKind.METER:
            raise ConfigurationError(
                f"{where}.role: {device.role} is for a meter, and {template.id} is a {template.kind}"
            )
    _check_lines(path, model, templates)
    profile = None if model.frequency is None else _check_frequency(path, model, templates)
    try:
        check_broker(model.messaging.broker)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'messaging', 'broker')}: {error}") from error
    if model.messaging.signing_key is None and None in {
        model.messaging.ca,
        model.messaging.certificate,
        model.messaging.key,
    }:
        raise ConfigurationError(
            f"{place(path, 'messaging')}: give signing_key, or ca, certificate and key (wattmesh pki), to sign with"
        )
    _check_control(path, model, templates)
    tariff = model.tariff.tariff(model.time_zone)
    try:
        tariff.zone()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'time_zone')}: {error}") from error
    base = path.parent if base is None else base
    messaging = model.messaging
    if model.frequency is not None:
        source = model.frequency.source
        paths = {name: base / file for name in ("file", "adc") if (file := getattr(source, name)) is not None}
        model = model.model_copy(
            update={"frequency": model.frequency.model_copy(update={"source": source.model_copy(update=paths)})}
        )
    files = {
        name: base / file
        for name in ("ca", "certificate", "key", "crl")
        if (file := getattr(messaging, name)) is not None
    }
    devices = tuple(device.model_copy(update={"connection": device.connection.under(base)}) for device in model.devices)
    model = model.model_copy(update={"messaging": messaging.model_copy(update=files), "devices": devices})
    return Site(
        model=model,
        templates=templates,
        tariff=tariff,
        state=(base / model.state).resolve(),
        signing_key=None if messaging.signing_key is None else (base / messaging.signing_key).resolve(),
        profile=profile,
    )


def _check_control(path: Path, site: SiteModel, templates: dict[str, Template]) -> None:
    """What the arbiter is told to keep can be measured, and what it is told to move can be moved."""
    if site.connection.phase_limit_w is not None:
        for index, device in enumerate(site.devices):
            points = {point.id for point in templates[device.id].points}
            missing = [f"active_power_l{phase}_w" for phase in (1, 2, 3) if f"active_power_l{phase}_w" not in points]
            if device.role == "grid" and missing:
                raise ConfigurationError(
                    f"{place(path, 'connection', 'phase_limit_w')}: {templates[device.id].id} does not tell "
                    f"{', '.join(missing)}; leave it out or use a meter that does ({place(path, 'devices', index)})"
                )
    rated = {device.id: device.rated_power_w for device in site.devices}
    for index, need in enumerate(site.flexible):
        where = place(path, "flexible", index)
        if "active_power_w" not in templates[need.device].controls:
            raise ConfigurationError(f"{where}.device: {templates[need.device].id} cannot be told its power")
        if templates[need.device].kind is AssetKind.BATTERY:
            raise ConfigurationError(f"{where}.device: {need.device} is a battery; the plan has it already")
        if need.power_w > (rated[need.device] or 0.0):
            raise ConfigurationError(f"{where}.power_w: {need.power_w:g} is above the device's rated_power_w")
    for index, car in enumerate(site.charging):
        where = place(path, "charging", index)
        template = templates[car.device]
        if template.kind is not AssetKind.EV_CHARGER:
            raise ConfigurationError(f"{where}.device: {template.id} is a {template.kind} and no ev_charger")
        power = rated[car.device]
        if power is None or car.least_w > power:
            raise ConfigurationError(
                f"{where}: {car.device} needs a rated_power_w of {car.least_w:g} at least, which is {car.min_current_a:g} A"
            )
        device = next(one for one in site.devices if one.id == car.device)
        if car.phases == 1 and site.connection.phase_limit_w is not None and device.phase is None:
            raise ConfigurationError(
                f"{where}.phases: say on which phase {car.device} is ({place(path, 'devices')}: phase), for phase_limit_w"
            )


def _check_lines(path: Path, site: SiteModel, templates: dict[str, Template]) -> None:
    """Devices on one serial port agree on how it is set."""
    ports: dict[str, tuple[str, object]] = {}
    for index, device in enumerate(site.devices):
        if device.connection.serial is None:
            continue
        settings = device.connection.endpoint(templates[device.id]).serial
        other, theirs = ports.setdefault(device.connection.serial, (device.id, settings))
        if theirs != settings:
            raise ConfigurationError(
                f"{place(path, 'devices', index)}.connection: {device.id} and {other} share {device.connection.serial} and "
                f"want it set in two ways; give both the same baud, parity and stop_bits"
            )


def _check_frequency(path: Path, site: SiteModel, templates: dict[str, Template]) -> ResponseProfile | None:
    """What the reflex needs is there, and its response stays within what the battery and the connection carry."""
    model = site.frequency
    assert model is not None
    if model.source.device is not None:
        source = templates[model.source.device]
        points = {point.id for point in source.points}
        if model.source.point not in points:
            raise ConfigurationError(
                f"{place(path, 'frequency', 'source', 'point')}: {source.id} has no {model.source.point!r}; "
                f"it has {', '.join(sorted(points))}"
            )
    if model.response is None:
        return None
    where = place(path, "frequency", "response", "device")
    target = templates[model.response.device]
    control = target.controls.get("active_power_w")
    if target.kind is not AssetKind.BATTERY or control is None or control.reflex is None:
        raise ConfigurationError(
            f"{where}: {target.id} has no register that the reflex may write; leave response out to watch only"
        )
    device = next(one for one in site.devices if one.id == model.response.device)
    if target.connection.single_client:
        raise ConfigurationError(
            f"{where}: {target.id} serves one connection, which the driver has; leave response out to watch only"
        )
    if not device.connection.plain_tcp:
        raise ConfigurationError(
            f"{where}: the reflex writes over plain Modbus TCP, and {device.id} is reached in another way; leave response out "
            f"to watch only"
        )
    try:
        profile = load_profile(model.response.profile)
        check_profile(
            profile,
            nominal_hz=model.nominal_hz,
            power_w=model.response.power_w or device.rated_power_w or 0.0,
            rated_power_w=device.rated_power_w or 0.0,
            rated_energy_wh=device.rated_energy_wh or 0.0,
            import_limit_w=site.connection.import_limit_w,
            export_limit_w=site.connection.export_limit_w,
            reserve_soc_percent=site.control.reserve_soc_percent,
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{place(path, 'frequency', 'response', 'profile')}: {error}") from error
    return profile
