"""The demo's fleet as files: five homes, their hardware, gateways and cloud, written into the demo's state folder.

The files are the ones an integrator would write by hand; everything the demo starts is started from them.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from wattmesh_simulators.plant.data import FIRST_NS, LAST_NS, history_rows, pv_peak_w
from wattmesh_simulators.plant.physics import AC_PER_DC

NS_PER_S = 1_000_000_000
HISTORY_DAYS = 31
"""How much of the past the cloud is given, as an operator would import it from the meters' data base."""

TIME_ZONE = "Etc/GMT+7"
"""Fixed UTC-7: the data's hours carry the labels of summer time and have no jump in November."""

METERS = ("sunspec_meter_203", "eastron_sdm630", "carlo_gavazzi_em340", "eastron_sdm630", "sunspec_meter_203")
BATTERIES = ("sunspec_battery", "sunspec_battery", "sunspec_battery", "sunspec_battery", "wattmesh_opcua_battery")
COARSE_FREQUENCY = frozenset({"carlo_gavazzi_em340"})
"""Meters whose 0.1 Hz are too coarse to respond on: the inverter's frequency register serves instead."""

TARIFF: Mapping[str, Any] = {
    "feed_in_price": 0.05,
    "default_price": 0.21,
    "periods": [
        {"months": [6, 7, 8, 9], "days": "weekday", "from": "15:00", "to": "20:00", "price": 0.54},
        {"months": [6, 7, 8, 9], "days": "weekend", "from": "15:00", "to": "20:00", "price": 0.40},
        {"months": [6, 7, 8, 9], "price": 0.22},
        {"from": "15:00", "to": "20:00", "price": 0.50},
    ],
}
"""The tariff of the data set (its README), with a feed-in price of our own: the source pays nothing for exports."""

IBERIA: Mapping[str, Any] = {
    "trace": "iberia_blackout_20250428_toledo_2s.csv",
    "trace_column": "f_hz",
    "trace_step_s": 2.0,
    "trace_voltage": "v_l1",
}
"""The blackout of 28 April 2025 as a grid analyser at Toledo saw it; see the data's README."""

PROFILES = {60: "ieee1547_2018_fast", 50: "en50549_1_lfsm"}
"""How the homes' batteries respond to frequency."""

IMPORT_LIMIT_W, EXPORT_LIMIT_W = 12_000, 8_000
BATTERY_POWER_W, BATTERY_ENERGY_WH = 5_000, 6_400


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFiles:
    """Where everything is."""

    state: Path
    fleet: Path
    cloud: Path
    sites: Mapping[str, Path]
    start_ns: int
    http_port: int


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def write_fleet(
    state: Path,
    *,
    start: datetime,
    homes: int,
    period_s: float,
    broker: str,
    http_port: int,
    seed: int,
    disturbances_at_s: tuple[float, ...],
    hold_s: float,
    trace: bool = False,
) -> FleetFiles:
    """Write keys, site files, the cloud's file, the simulators' file and the history under ``state``.

    ``start`` is the aware simulated start; ``period_s`` the control period in simulated seconds. With ``trace`` the grid plays
    the recorded frequency of the Iberian blackout (50 Hz) instead of the swing equation.
    """
    start_ns = round(start.timestamp()) * NS_PER_S
    names = [f"home-{number}" for number in range(1, homes + 1)]
    lab_port, *device_ports = free_ports(3 * homes + 1)
    ports = iter(device_ports)
    for folder in ("keys", "sites", "history", "logs"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    nominal_hz = 50 if trace else 60
    grid: dict[str, Any] = {"nominal_hz": nominal_hz, **(IBERIA if trace else {})}
    site_files: dict[str, Path] = {}
    hardware: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        inverter, battery, meter = next(ports), next(ports), next(ports)
        _write_key(state / "keys" / f"{name}.key")
        site = _site(name, index, inverter, battery, meter, period_s=period_s, broker=broker)
        site["frequency"]["nominal_hz"] = nominal_hz
        if "response" in site["frequency"]:
            site["frequency"]["response"]["profile"] = PROFILES[nominal_hz]
        site_files[name] = _write_yaml(state / "sites" / f"{name}.yaml", site)
        hardware.append(
            {
                "id": name,
                "home": f"b{index + 1:02d}",
                "inverter": {"port": inverter},
                "battery": {"port": battery, "template": BATTERIES[index], "initial_soc_percent": 20},
                "meter": {"port": meter, "template": METERS[index]},
            }
        )
        _write_history(state / "history" / f"{name}.csv", f"b{index + 1:02d}", start_ns)
    _write_key(state / "lab.secret")
    disturbances = [{"at": at, "power_w": -15_000, "hold_s": hold_s} for at in disturbances_at_s]
    fleet = {"sites": hardware, "grid": grid, "disturbances": disturbances, "seed": seed}
    fleet["lab"] = {"port": lab_port, "secret": "lab.secret"}
    return FleetFiles(
        state=state,
        fleet=_write_yaml(state / "fleet.yaml", fleet),
        cloud=_write_yaml(
            state / "cloud.yaml",
            _cloud(names, broker=broker, http_port=http_port, nominal_hz=nominal_hz)
            | {"lab": {"port": lab_port, "secret": "lab.secret"}},
        ),
        sites=site_files,
        start_ns=start_ns,
        http_port=http_port,
    )


def _site(
    name: str, index: int, inverter: int, battery: int, meter: int, *, period_s: float, broker: str
) -> dict[str, Any]:
    template = BATTERIES[index]
    opcua = template == "wattmesh_opcua_battery"
    battery_connection: dict[str, Any] = (
        {"url": f"opc.tcp://127.0.0.1:{battery}/"} if opcua else {"host": "127.0.0.1", "port": battery, "unit": 1}
    )
    frequency: dict[str, Any] = {
        "nominal_hz": 60,
        "nominal_v": 240,
        "source": {
            "device": "inverter" if METERS[index] in COARSE_FREQUENCY else "meter",
            "point": "frequency_hz",
            "poll_ms": 20,
        },
    }
    if not opcua:  # the reflex writes registers: over OPC UA it only watches, and the control cycle answers
        frequency["response"] = {"device": "battery", "profile": PROFILES[60]}
    return {
        "version": 1,
        "site": name,
        "org": "demo",
        "time_zone": TIME_ZONE,
        "currency": "USD",
        "connection": {"import_limit_w": IMPORT_LIMIT_W, "export_limit_w": EXPORT_LIMIT_W},
        "tariff": dict(TARIFF),
        "devices": [
            {
                "id": "inverter",
                "template": "sunspec_inverter",
                "connection": {"host": "127.0.0.1", "port": inverter, "unit": 1},
                "rated_power_w": AC_PER_DC * pv_peak_w(f"b{index + 1:02d}"),
            },
            {
                "id": "battery",
                "template": template,
                "connection": battery_connection,
                "rated_power_w": BATTERY_POWER_W,
                "rated_energy_wh": BATTERY_ENERGY_WH,
            },
            {
                "id": "meter",
                "template": METERS[index],
                "connection": {"host": "127.0.0.1", "port": meter, "unit": 1},
                "role": "grid",
            },
        ],
        "agents": ["producer", "consumer"],
        "market": {"area": "demo-area", "trade": True},
        "control": {"period_s": period_s, "reserve_soc_percent": 5},
        "frequency": frequency,
        "messaging": {"broker": broker, "signing_key": f"../keys/{name}.key"},
        "state": f"../state/{name}",
    }


def _cloud(names: list[str], *, broker: str, http_port: int, nominal_hz: int) -> dict[str, Any]:
    limits = {"import_limit_w": IMPORT_LIMIT_W, "export_limit_w": EXPORT_LIMIT_W, "credit_limit": 200.0}
    return {
        "version": 1,
        "org": "demo",
        "state": "state/cloud",
        "broker": broker,
        "keys": "keys",
        "http": {"host": "127.0.0.1", "port": http_port},
        "access": {"demo": True},
        "reports": {"schedule": ["day"]},
        "history": "history",
        "market": {
            "area": "demo-area",
            "currency": "USD",
            "time_zone": TIME_ZONE,
            "slot_s": 900,
            "gate_open_s": 21_600,
            "gate_close_s": 300,
            "tariff": dict(TARIFF),
            "participants": [{"id": name, **limits} for name in names],
        },
        "forecasting": {"issue_every_s": 3600, "horizon_s": 172_800},
        "grid": {
            "nominal_hz": nominal_hz,
            "demand_response": {
                "enabled": True,
                "peak_percentile": 90,
                "price": 0.30,
                "notice_s": 3600,
                "duration_s": 3600,
            },
        },
    }


def _write_yaml(path: Path, data: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(data), sort_keys=False), encoding="utf-8")
    return path


def _write_key(path: Path) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(secrets.token_hex(32) + "\n", encoding="ascii")


def _write_history(path: Path, home: str, start_ns: int) -> None:
    first = max(FIRST_NS, start_ns - HISTORY_DAYS * 86_400 * NS_PER_S)
    with path.open("w", encoding="ascii") as file:
        file.write("slot_start_utc,load_wh,pv_wh\n")
        for slot_ns, load_wh, pv_wh in history_rows(home, first, start_ns):
            stamp = datetime.fromtimestamp(slot_ns // NS_PER_S, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            file.write(f"{stamp},{load_wh:.3f},{pv_wh:.3f}\n")


def default_start(*, daylight: bool) -> datetime:
    """Thursday 1 September of the data's year, local midnight, or ten o'clock for a demo that shows the sun."""
    midnight = datetime(2022, 9, 1, 7, 0, tzinfo=UTC)
    return midnight + timedelta(hours=10) if daylight else midnight


def data_span() -> tuple[datetime, datetime]:
    """First and last moment of the recorded year."""
    return (
        datetime.fromtimestamp(FIRST_NS // NS_PER_S, tz=UTC),
        datetime.fromtimestamp(LAST_NS // NS_PER_S, tz=UTC),
    )
