"""What a gateway is made of, taken from its checked site file: drivers, limits, needs, storage, keys, messenger."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from datetime import time as clock_time

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.deadletters import DeadLetters
from wattmesh_a2a.dedupe import SqliteDedupe
from wattmesh_a2a.delivery import PEER_REQUESTS_PER_S, Delivery
from wattmesh_a2a.devices import AssetKind
from wattmesh_a2a.envelope import GATEWAY_AGENT, Address
from wattmesh_a2a.signing import KeyRing, Signer
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.base import Transport
from wattmesh_a2a.transports.choose import transport_for
from wattmesh_drivers.driver import Driver
from wattmesh_drivers.factory import create_driver
from wattmesh_drivers.modbus.line import LinePool

from wattmesh_edge.agents.flexible import Need
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.config import ChargingModel, DeviceModel, Site
from wattmesh_edge.flash import FLASH_TABLE, FlashWrites
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.sun import Plane

_DAYS = {"all": frozenset(range(7)), "weekday": frozenset(range(5)), "weekend": frozenset({5, 6})}


def open_database(site: Site) -> sqlite3.Connection:
    """The gateway's database with its common tables; other parts make their own."""
    site.state.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(site.state / "gateway.sqlite")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    with db:
        db.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        db.execute(FLASH_TABLE)
    return db


def make_drivers(site: Site, clock: Clock, db: sqlite3.Connection, lines: LinePool) -> dict[str, Driver]:
    """A driver a device."""
    return {
        device.id: create_driver(
            device.id,
            site.templates[device.id],
            device.connection,
            clock,
            lines=lines,
            flash_writes=FlashWrites(db, device.id),
            rated_power_w=device.rated_power_w,
            rated_energy_wh=device.rated_energy_wh,
        )
        for device in site.model.devices
    }


def make_transport(site: Site) -> Transport:
    """The way to the broker of the site file."""
    messaging = site.model.messaging
    return transport_for(
        messaging.broker,
        str(gateway_address(site)),
        ca=messaging.ca,
        certificate=messaging.certificate,
        key=messaging.key,
    )


def gateway_address(site: Site) -> Address:
    """Where a site's gateway takes its messages."""
    return Address(site.model.org, site.model.site, GATEWAY_AGENT)


def make_messenger(site: Site, transport: Transport, clock: Clock) -> Delivery:
    """Messages to and from the cloud, each in effect once."""
    return Delivery(
        transport,
        gateway_address(site),
        clock,
        topics=Topics(prefix=site.model.messaging.prefix, telemetry_rule=site.model.messaging.telemetry_rule),
        keys=make_keys(site),
        store=SqliteDedupe(site.state / "answers.sqlite"),
        dead=DeadLetters(site.state / "dead.sqlite"),
        figures=True,
        peer_requests_per_s=PEER_REQUESTS_PER_S,
    )


def make_keys(site: Site) -> Signer:
    """A key shared with the cloud, or the device's own with its certificate."""
    if site.signing_key is not None:
        return KeyRing.of_site(site.model.site, site.signing_key)
    from wattmesh_a2a.certificates import CertificateKeys  # an extra (pki): the gateway of a demo does without

    files = site.model.messaging
    assert files.certificate is not None
    assert files.key is not None
    assert files.ca is not None
    return CertificateKeys(files.certificate, files.key, files.ca, files.crl)


def site_limits(site: Site) -> SiteLimits:
    """What the connection carries."""
    connection = site.model.connection
    return SiteLimits(
        import_limit_w=connection.import_limit_w,
        export_limit_w=connection.export_limit_w,
        phase_limit_w=connection.phase_limit_w,
    )


def battery_limits(site: Site, *, with_response: bool) -> dict[str, BatteryLimits]:
    """Limits of each battery; ``with_response``: less the energy that is kept for the frequency response."""
    limits = {}
    for device in site.model.devices:
        template = site.templates[device.id]
        if template.kind is AssetKind.BATTERY and not template.monitor_only:
            energy = device.rated_energy_wh or 1.0
            out_wh, in_wh = _kept_for_response(site, device.id) if with_response else (0.0, 0.0)
            limits[device.id] = BatteryLimits(
                rated_power_w=device.rated_power_w or 0.0,
                rated_energy_wh=device.rated_energy_wh or 0.0,
                min_soc_percent=site.model.control.reserve_soc_percent + 100 * out_wh / energy,
                max_soc_percent=100 - 100 * in_wh / energy,
                safe_power_w=template.safe_state.get("active_power_w", 0.0),
                ramp_w_per_s=device.ramp_w_per_s or math.inf,
                idle_below_w=device.idle_below_w,
                phase=device.phase,
                health=device.health_percent / 100,
            )
    return limits


def load_limits(site: Site) -> dict[str, BatteryLimits]:
    """Limits of each load that can be steered."""
    cars = {car.device: car for car in site.model.charging}
    return {
        device.id: BatteryLimits(
            rated_power_w=_most_w(device, cars.get(device.id)),
            rated_energy_wh=0.0,
            ramp_w_per_s=device.ramp_w_per_s or math.inf,
            idle_below_w=max(device.idle_below_w, cars[device.id].least_w if device.id in cars else 0.0),
            phase=device.phase,
            stores=False,
        )
        for device in site.model.devices
        if (template := site.templates[device.id]).kind in {AssetKind.EV_CHARGER, AssetKind.LOAD}
        and "active_power_w" in template.controls
    }


def _most_w(device: DeviceModel, car: ChargingModel | None) -> float:
    rated = device.rated_power_w or 0.0
    return rated if car is None else min(rated, car.power_w)


def needs(site: Site) -> tuple[Need, ...]:
    """What the loads that can wait need."""
    rated = {device.id: device for device in site.model.devices}
    cars = tuple(
        Need(
            device=car.device,
            energy_wh=car.energy_wh,
            power_w=_most_w(rated[car.device], car),
            least_w=car.least_w,
            begins=clock_time.fromisoformat(car.departure),
            ends=clock_time.fromisoformat(car.departure),
            days=_DAYS[car.days],
        )
        for car in site.model.charging
    )
    return cars + tuple(
        Need(
            device=need.device,
            energy_wh=need.energy_wh,
            power_w=need.power_w,
            begins=clock_time.fromisoformat(need.begins),
            ends=clock_time.fromisoformat(need.ends),
        )
        for need in site.model.flexible
    )


def planes(site: Site) -> dict[str, Plane]:
    """Where each inverter's modules look, as far as the site file says it."""
    return {
        device.id: Plane(
            latitude_deg=device.plane.latitude_deg,
            longitude_deg=device.plane.longitude_deg,
            tilt_deg=device.plane.tilt_deg,
            azimuth_deg=device.plane.azimuth_deg,
        )
        for device in site.model.devices
        if device.plane is not None
    }


def guaranteed_cycles(site: Site) -> dict[str, float]:
    """Full cycles of each battery's guarantee, as far as the site file says it."""
    return {one.id: one.guaranteed_cycles for one in site.model.devices if one.guaranteed_cycles is not None}


def storage_of(batteries: Mapping[str, BatteryLimits]) -> Storage:
    """All batteries taken as one, as the plan sees them."""
    energy = sum(limits.rated_energy_wh * limits.max_soc_percent / 100 for limits in batteries.values())
    reserve = sum(limits.rated_energy_wh * limits.min_soc_percent / 100 for limits in batteries.values())
    return Storage(
        energy_wh=max(energy, 1.0),
        power_w=sum(limits.rated_power_w for limits in batteries.values()),
        reserve_wh=reserve,
    )


def _kept_for_response(site: Site, battery: str) -> tuple[float, float]:
    """Energy that the response's profile has to find in a battery: to discharge, and to charge."""
    model, profile = site.model.frequency, site.profile
    if model is None or model.response is None or profile is None or model.response.device != battery:
        return 0.0, 0.0
    device = next(one for one in site.model.devices if one.id == battery)
    return profile.energy_wh(model.nominal_hz, model.response.power_w or device.rated_power_w or 0.0)
