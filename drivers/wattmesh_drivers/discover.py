"""Finding devices: SunSpec maps, and devices whose registers say what only they would.

A device without an identity register is known by plausibility alone: frequency, voltages, charge state and temperatures at their
places, in their units, within what they can be. So every find says how sure it is, and what else it could be.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.devices import AssetKind, Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.signing import generate_key

from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.modbus import sunspec
from wattmesh_drivers.modbus.driver import ModbusDriver
from wattmesh_drivers.modbus.line import Endpoint, Line, SerialPort
from wattmesh_drivers.modbus.link import ModbusLink
from wattmesh_drivers.template import Template, load_template, template_ids

ResultT = TypeVar("ResultT")

HOSTS_AT_MOST = 4096
_AT_ONCE = 64
_MOMENT_S, _UNITS_AGAIN = 1.6, 3
_ENOUGH = 2.0
"""Evidence below which nothing is called found."""
_ENOUGH_OF_A_FAMILY = 0.2
"""And for what else is behind the unit of a device that was found: a battery has no frequency that would tell it."""
_IDENTITY_COUNTS = 3.0
_REASONS = 4

_RANGES: tuple[tuple[str, float, float], ...] = (
    (r"frequency_hz", 45.0, 65.0),
    (r"(dc_)?voltage_l\d_v", 80.0, 300.0),
    (r"soc_percent|soh_percent", 0.0, 100.0),
    (r"temperature_.*_degc", -40.0, 110.0),
    (r"(active|ac|dc|battery|load|import|export|charge|discharge)_power(_l\d)?_w", -200_000.0, 200_000.0),
    (r"current(_l\d)?_a|dc_current_a", -500.0, 500.0),
    (r"dc_voltage_v|string_\d_voltage_v", 0.0, 1500.0),
    (r"energy_.*_wh", 0.0, 1e12),
)
_TELLING = (r"frequency_hz", r"voltage_l\d_v")
"""What a wrong map would hardly show by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One device."""

    template: str
    kind: AssetKind
    endpoint: Endpoint
    unit: int
    evidence: str
    """Why it is taken for that, for people."""
    score: float
    url: str | None = None
    """Of an OPC UA server."""
    rated_power_w: float | None = None
    rated_energy_wh: float | None = None
    product: str = ""
    """Manufacturer, model and serial number, where it tells them."""
    others: tuple[str, ...] = field(default=())
    """Templates that fit as well."""


def targets(text: str, ports: Sequence[int], baud: int, parity: str) -> Iterator[Endpoint]:
    """Endpoints of a target: an address, ``host:port``, a network (``192.168.1.0/24``), or a serial port's path.

    Raises:
        ConfigurationError: It is none of these, or a network of too many addresses.
    """
    if text.startswith("/"):
        assert parity in {"N", "E", "O"}
        yield Endpoint(serial=SerialPort(path=text, baud=baud, parity=parity))  # type: ignore[arg-type]
        return
    if "/" in text:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise ConfigurationError(f"{text} is no network: {error}") from error
        if network.num_addresses > HOSTS_AT_MOST:
            raise ConfigurationError(
                f"{text} has {network.num_addresses} addresses; scan at most {HOSTS_AT_MOST} at once"
            )
        hosts = [str(host) for host in network.hosts()]
    else:
        host, colon, port = text.rpartition(":")
        if colon and port.isdigit() and "]" not in port:
            hosts, ports = [host.strip("[]")], [int(port)]
        else:
            hosts = [text]
    for host in hosts:
        for port_number in ports:
            yield Endpoint(host=host, port=port_number)


async def scan(
    endpoints: Sequence[Endpoint], units: Sequence[int] | None, clock: Clock, *, timeout_s: float
) -> AsyncIterator[Found]:
    """Devices at endpoints, as they are found.

    Args:
        endpoints: Where to look.
        units: Unit identifiers to ask for; none asks for those that templates call usual.
        clock: For the drivers.
        timeout_s: Longest wait for a connection or an answer.

    Raises:
        ConfigurationError: A serial port cannot be used.
    """
    gate = asyncio.Semaphore(_AT_ONCE)
    plain = [template for name in template_ids() if (template := load_template(name)).protocol == "modbus"]
    usual = sorted({1, *(template.connection.unit for template in plain)})

    async def look(endpoint: Endpoint) -> list[Found]:
        async with gate:
            return await _at_endpoint(endpoint, units or usual, plain, clock, timeout_s)

    running = [asyncio.create_task(look(endpoint)) for endpoint in endpoints]
    try:
        for done in asyncio.as_completed(running):
            for found in await done:
                yield found
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def opcua_at(url: str, clock: Clock, *, timeout_s: float) -> list[Found]:
    """Devices of an OPC UA server, by the namespaces of the templates; nobody logs in, and nothing is secured.

    Raises:
        ConfigurationError: The URL cannot be read, the server wants security or a login, or the extra is not installed.
        UnavailableError: Nobody answers.
    """
    try:
        from wattmesh_drivers.opcua.driver import OpcUaDriver
    except ImportError as error:
        raise ConfigurationError(f"{url}: needs: pip install 'wattmesh[opcua]'") from error
    found: list[Found] = []
    for name in template_ids():
        template = load_template(name)
        if template.protocol != "opcua":
            continue
        driver = OpcUaDriver("probe", template, url, clock, timeout_s=timeout_s)
        driver.quiet = True
        try:
            await driver.connect()
        except ConfigurationError as error:
            if "namespace" in str(error) or "none of the" in str(error):
                continue
            raise
        finally:
            await driver.close()
        told = driver.audit
        evidence = f"namespace {template.namespace}, {told.delivered} of {told.points} nodes"
        found.append(
            Found(
                template=name, kind=template.kind, endpoint=Endpoint(host=url), unit=0, url=url, evidence=evidence,
                score=5.0 * told.delivered / told.points, product=template.manufacturer,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: one.score, reverse=True)


async def _at_endpoint(
    endpoint: Endpoint, units: Sequence[int], plain: Sequence[Template], clock: Clock, timeout_s: float
) -> list[Found]:
    line = Line(endpoint)
    try:
        await line.open(timeout_s)
    except UnavailableError:
        return []
    found: list[Found] = []
    try:
        there = [unit for unit in units if await _at_unit(line, unit, timeout_s, _answers)]
        if not there and endpoint.serial is None:  # some gateways want a moment after the connection
            await asyncio.sleep(_MOMENT_S)
            there = [unit for unit in units[:_UNITS_AGAIN] if await _at_unit(line, unit, timeout_s, _answers)]
        for unit in there:
            found += await _at_unit(line, unit, timeout_s, lambda link: _known(link, plain, clock)) or []
    finally:
        line.release()
    return found


async def _at_unit(
    line: Line, unit: int, timeout_s: float, work: Callable[[ModbusLink], Awaitable[ResultT]]
) -> ResultT | None:
    """What comes of some work with a unit; none where it does not answer."""
    link = ModbusLink(line, unit, timeout_s=timeout_s)
    try:
        await link.open()
        return await work(link)
    except (UnavailableError, ConfigurationError):
        return None
    finally:
        link.close()


async def _known(link: ModbusLink, plain: Sequence[Template], clock: Clock) -> list[Found]:
    return await _sunspec(link) or await _plain(link, plain, clock)


async def _answers(link: ModbusLink) -> bool:
    """Whether anybody is there: an exception is an answer as well."""
    for function in (3, 4):
        try:
            await link.read(function, 0, 1)
        except ConfigurationError:
            return True
        except UnavailableError:
            continue
        return True
    return False


async def _sunspec(link: ModbusLink) -> list[Found]:
    try:
        models = await sunspec.discover(link)
    except ConfigurationError:
        return []
    product = await sunspec.product_of(link, models)
    make = await sunspec.make_of(link, models)
    fitting: list[tuple[int, Template]] = []
    for name in template_ids():
        template = load_template(name)
        needed = {point.model for point in (*template.points, *template.settings) if point.model is not None}
        made = not template.makes or sunspec.is_make(make, template.makes)
        if template.protocol == "sunspec" and needed <= set(models) and made:
            fitting.append((len(needed), template))
    fitting.sort(key=lambda one: (bool(one[1].makes), one[0]), reverse=True)  # a maker's own before the family
    evidence = f"SunSpec models {', '.join(map(str, sorted(models)))}"
    if not fitting:
        return []
    best = fitting[0][1]
    return [
        Found(
            rated_power_w=await _rating(link, models, best.kind),
            rated_energy_wh=await sunspec.rating_of(link, models, "WHRtg", 713, 802),
            template=best.id, kind=best.kind, endpoint=link.line.endpoint, unit=link.unit, evidence=evidence,
            score=10.0, product=product, others=tuple(template.id for _, template in fitting[1:]),
        )
    ]  # fmt: skip


async def _rating(link: ModbusLink, models: Mapping[int, sunspec.ModelAt], kind: AssetKind) -> float | None:
    """Power rating in watts, as the device tells it; of a battery the smaller of its two directions."""
    if kind is AssetKind.BATTERY:
        ways = [await sunspec.rating_of(link, models, f"{way}RteMaxRtg", 702) for way in ("WCha", "WDisCha")]
        known = [way for way in ways if way]
        if known:
            return min(known)
    return await sunspec.rating_of(link, models, "WMaxRtg", 702) or await sunspec.rating_of(link, models, "WRtg", 120)


async def _plain(link: ModbusLink, templates: Sequence[Template], clock: Clock) -> list[Found]:
    """The best fit of each manufacturer's family: a hybrid is an inverter, a battery and a meter at one unit."""
    scored: list[tuple[float, str, Template]] = []
    for template in templates:
        score, evidence = await _score(link, template, clock)
        if score >= _ENOUGH_OF_A_FAMILY:
            scored.append((score, evidence, template))
    scored.sort(key=lambda one: (one[0], one[2].id), reverse=True)
    if not scored or scored[0][0] < _ENOUGH:
        return []
    maker = scored[0][2].manufacturer
    found: list[Found] = []
    for kind in (AssetKind.INVERTER, AssetKind.BATTERY, AssetKind.METER):
        fitting = [one for one in scored if one[2].kind is kind]
        family = [one for one in fitting if one[2].manufacturer == maker]
        if not family:
            continue
        score, evidence, template = family[0]
        rest = tuple(other.id for value, _, other in fitting if other is not template and value >= 0.75 * score)
        found.append(
            Found(
                template=template.id, kind=kind, endpoint=link.line.endpoint, unit=link.unit, evidence=evidence,
                score=score, product=template.manufacturer, others=rest,
            )
        )  # fmt: skip
    return found


async def _score(link: ModbusLink, template: Template, clock: Clock) -> tuple[float, str]:
    """How well a device's registers fit a template; 0 where one of them cannot be."""
    driver = ModbusDriver("probe", template, ModbusLink(link.line, link.unit, timeout_s=link.timeout_s), clock)
    driver.quiet = True
    try:
        await driver.connect()
        if not await driver.poll():
            return 0.0, ""
        values = as_mapping(driver)
    except (UnavailableError, ConfigurationError):
        return 0.0, ""
    finally:
        await driver.close()
    score, reasons, asked = 0.0, [], 0
    for name, (value, quality) in values.items():
        limits = next(((low, high) for pattern, low, high in _RANGES if re.fullmatch(pattern, name)), None)
        if limits is None:
            continue
        asked += 1
        if quality == Quality.BAD:
            continue
        if not limits[0] <= value <= limits[1]:
            return 0.0, ""
        if any(re.fullmatch(pattern, name) for pattern in _TELLING):
            score += 1.0
            reasons.append(f"{name} {value:.4g}")
        elif value:
            score += 0.25
            reasons.append(f"{name} {value:.4g}")
    good = sum(quality != Quality.BAD for _, quality in values.values())
    if good < 0.6 * len(values):
        return 0.0, ""
    if template.identity:
        score += _IDENTITY_COUNTS * len(template.identity)
        reasons.insert(0, "identity register")
    return score * good / len(values), ", ".join(reasons[:_REASONS])


def _quoted(host: str) -> str:
    """A host as YAML takes it for nothing else: ``on``, ``1.2`` and ``::1`` are other things there."""
    return host if re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", host) else json.dumps(host)


def site_file(site: str, found: Sequence[Found]) -> str:
    """A site file with the devices found, ready to run; what cannot be found is marked with a comment.

    Raises:
        ConfigurationError: There is no meter, and so no site.
    """
    meters = [one for one in found if one.kind is AssetKind.METER]
    if not meters:
        raise ConfigurationError("no meter was found, and a site needs one at its grid connection")
    names: dict[str, int] = {}
    lines = [
        "# Found by wattmesh discover; go through what is marked CHECK.",
        "version: 1",
        f"site: {json.dumps(site)}",
        "org: demo                      # CHECK",
        "time_zone: UTC                 # CHECK: IANA name, for the tariff",
        "currency: EUR",
        "connection: {import_limit_w: 10000, export_limit_w: 10000}   # CHECK: fuse or contract",
        "tariff: {feed_in_price: 0.08, default_price: 0.30}           # CHECK",
        "devices:",
    ]
    for one in found:
        count = names[one.kind] = names.get(one.kind, 0) + 1
        name = str(one.kind) if count == 1 else f"{one.kind}-{count}"
        endpoint = one.endpoint
        if one.url is not None:
            where = f"url: {json.dumps(one.url)}"
        elif endpoint.serial is not None:
            port = endpoint.serial
            where = f"serial: {json.dumps(port.path)}, baud: {port.baud}, parity: {port.parity}, unit: {one.unit}"
        else:
            where = f"host: {_quoted(endpoint.host)}, port: {endpoint.port}, unit: {one.unit}"
        template = load_template(one.template)
        more = ""
        if one is meters[0]:
            more = ", role: grid"
        if template.controls:
            more += f", rated_power_w: {one.rated_power_w or 5000:g}"
            if one.kind is AssetKind.BATTERY:
                more += f", rated_energy_wh: {one.rated_energy_wh or 5000:g}"
        note = f"   # {one.product}; {one.evidence}" if one.product else f"   # {one.evidence}"
        if template.controls:
            told = one.rated_power_w and (one.kind is not AssetKind.BATTERY or one.rated_energy_wh)
            note += f"; CHECK the ratings{', which the device told' if told else ''}"
        if one is meters[0] and len(meters) > 1:
            note += "; CHECK: is this the one at the grid connection?"
        if one.others:
            note += f"; CHECK: may also be {', '.join(one.others)}"
        note = "".join(letter for letter in note if letter.isprintable())  # a device's own words are in it
        lines.append(f"  - {{id: {name}, template: {one.template}, connection: {{{where}}}{more}}}{note}")
    lines += [
        "messaging:",
        "  broker: mqtt://127.0.0.1:1883  # CHECK",
        f"  signing_key: keys/{site}.key",
        f"state: state/{site}",
    ]
    return "\n".join(lines) + "\n"


def write_site(path: Path, site: str, found: Sequence[Found]) -> None:
    """Write the site file, and a signing key beside it where there is none yet.

    Raises:
        ConfigurationError: The file is there already, or there is no meter.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", site) or site.startswith("."):
        raise ConfigurationError(f"--site {site!r}: a site's name has letters, digits, _, . and -")
    content = site_file(site, found)
    key = path.parent / "keys" / f"{site}.key"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
        key.parent.mkdir(parents=True, exist_ok=True)
        if not key.exists():
            generate_key(key)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already; nothing was written") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
