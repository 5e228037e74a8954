"""``wattmesh device`` and ``wattmesh discover``: the bench commands."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import ValidationError
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.control import Applied, Clamped
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.driver import Driver, as_mapping
from wattmesh_drivers.factory import ConnectionModel, SecurityModel, TlsModel, create_driver
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.template import Template, load_template, template_ids

_BAD = {Quality.BAD: "no data", Quality.UNCERTAIN: "uncertain"}


def device(argv: list[str]) -> int:
    """``wattmesh device read|write|watch|record|proxy|templates``: one device on the bench."""
    parser = argparse.ArgumentParser(prog="wattmesh device")
    actions = parser.add_subparsers(dest="action", required=True)
    read = actions.add_parser("read", help="every point once")
    write = actions.add_parser("write", help="one control, within its limits")
    write.add_argument("control", help="its name, like active_power_w")
    write.add_argument("value", type=float, help="in its unit; a battery's power is positive when it charges")
    write.add_argument("--rated-power-w", type=float, required=True, help="nothing is written without a limit")
    watch = actions.add_parser("watch", help="every point again and again")
    watch.add_argument("--every", type=_seconds, default=1.0, metavar="SECONDS")
    watch.add_argument("--times", type=int, default=0, help="end after so many; 0 goes on until Ctrl-C")
    record = actions.add_parser("record", help="the wire into a file that can be served and tested")
    record.add_argument("file", type=Path)
    record.add_argument("--polls", type=int, default=3)
    record.add_argument("--every", type=_seconds, default=1.0, metavar="SECONDS")
    record.add_argument("--grade", choices=("hardware", "peer", "simulated"), default="hardware")
    record.add_argument("--device", default="", help="product and firmware, in words")
    proxy = actions.add_parser("proxy", help="let others read a device that serves one client")
    proxy.add_argument("--listen", default="127.0.0.1:1502", metavar="HOST:PORT")
    for action in (read, write, watch, record, proxy):
        _add_connection(action)
    templates = actions.add_parser("templates", help="what can be named as --template")
    templates.add_argument("--table", action="store_true", help="the table of docs/devices.md")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if arguments.action == "templates":
        from wattmesh_drivers.supported import table

        print(table() if arguments.table else "\n".join(template_ids()))
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_ACTIONS[arguments.action](arguments))
    return 130


def _seconds(text: str) -> float:
    """A time span on the command line."""
    seconds = float(text)
    if not 0.01 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 86400 seconds")
    return seconds


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", required=True, help="a template's name, or a file")
    parser.add_argument("--host", help="Modbus TCP")
    parser.add_argument("--port", type=int)
    parser.add_argument("--unit", type=int, help="the template's usual one")
    parser.add_argument("--rtu", action="store_true", help="RTU frames over TCP, behind a plain serial converter")
    parser.add_argument("--serial", metavar="PATH", help="Modbus RTU")
    parser.add_argument("--baud", type=int)
    parser.add_argument("--parity", choices=("N", "E", "O"), default="N")
    parser.add_argument("--stop-bits", type=int, choices=(1, 2), default=1)
    parser.add_argument("--tls-ca", type=Path, help="Modbus Security: who may have signed the device's certificate")
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--url", help="OPC UA: opc.tcp://host:port")
    parser.add_argument("--policy", default="Basic256Sha256", help="OPC UA security policy, with --certificate")
    parser.add_argument("--certificate", type=Path, help="OPC UA: ours")
    parser.add_argument("--key", type=Path)
    parser.add_argument(
        "--trust", type=Path, action="append", default=[], help="OPC UA: a server's certificate, or a folder"
    )
    parser.add_argument("--user")
    parser.add_argument("--password-file", type=Path)


def _connection(arguments: argparse.Namespace) -> ConnectionModel:
    if (arguments.host is None) + (arguments.serial is None) + (arguments.url is None) != 2:
        raise ConfigurationError("say where the device is: one of --host, --serial and --url")
    try:
        return _connection_of(arguments)
    except ValidationError as error:  # pydantic's own text names the field and what is allowed
        first = error.errors()[0]
        field = "-".join(str(part) for part in first["loc"]) or "connection"
        raise ConfigurationError(f"--{field.replace('_', '-')}: {first['msg'].lower()}") from error


def _connection_of(arguments: argparse.Namespace) -> ConnectionModel:
    tls = security = None
    if arguments.tls_ca is not None:
        tls = TlsModel(ca=arguments.tls_ca, certificate=arguments.tls_certificate, key=arguments.tls_key)
    if arguments.certificate is not None:
        if arguments.key is None or not arguments.trust:
            raise ConfigurationError("--certificate goes with --key and --trust")
        security = SecurityModel(
            policy=arguments.policy, certificate=arguments.certificate, key=arguments.key, trust=tuple(arguments.trust)
        )
    return ConnectionModel(
        host=arguments.host, port=arguments.port, unit=arguments.unit, framing="rtu" if arguments.rtu else "tcp",
        tls=tls, serial=arguments.serial, baud=arguments.baud, parity=arguments.parity, stop_bits=arguments.stop_bits,
        url=arguments.url, security=security, user=arguments.user, password_file=arguments.password_file,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _connected(
    arguments: argparse.Namespace, lines: LinePool | None = None
) -> AsyncIterator[tuple[Driver, Template]]:
    template = load_template(arguments.template)
    rated = getattr(arguments, "rated_power_w", None)
    driver = create_driver("device", template, _connection(arguments), SystemClock(), lines=lines, rated_power_w=rated)
    await driver.connect()
    try:
        yield driver, template
    finally:
        await driver.close()


def _show(driver: Driver) -> None:
    units = {point.id: point.unit for point in driver.asset.points}
    for name, (value, quality) in as_mapping(driver).items():
        shown = "-" if quality == Quality.BAD else f"{value:.3f} {units[name]}"
        print(f"{name:<28}{shown:>20}  {_BAD.get(quality, '')}".rstrip())


async def _read(arguments: argparse.Namespace) -> int:
    async with _connected(arguments) as (driver, _):
        answered = await driver.poll()
        _show(driver)
    return 0 if answered else 1


async def _write(arguments: argparse.Namespace) -> int:
    async with _connected(arguments) as (driver, _):
        outcome = await driver.control(arguments.control, arguments.value)
    print(outcome)
    control = driver.template.controls.get(arguments.control)
    if isinstance(outcome, Applied | Clamped) and control is not None and control.watchdog is None:
        print("it has no dead-man: this stands until something else is written")
    return 0 if isinstance(outcome, Applied | Clamped) else 1


async def _watch(arguments: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    async with _connected(arguments) as (driver, _):
        done, due = 0, loop.time()
        while True:
            await driver.poll()
            print(f"--- {done + 1}")
            _show(driver)
            done += 1
            if done == arguments.times:
                return 0
            due += arguments.every
            await asyncio.sleep(max(0.0, due - loop.time()))


async def _record(arguments: argparse.Namespace) -> int:
    from wattmesh_drivers.recording import LineRecorder, NodeRecorder, Recorder

    template, connection = load_template(arguments.template), _connection(arguments)
    lines, clock = LinePool(), SystemClock()
    driver = create_driver("device", template, connection, clock, lines=lines)
    words = arguments.device or ", ".join(template.products)
    recorder: Recorder
    if template.protocol == "opcua":
        from wattmesh_drivers.opcua.driver import OpcUaDriver

        assert isinstance(driver, OpcUaDriver)
        recorder = NodeRecorder(arguments.file, driver, clock, grade=arguments.grade, device=words)
    else:
        line = lines.of(connection.endpoint(template))
        assert line is not None, "its driver has taken it"
        unit = template.connection.unit if connection.unit is None else connection.unit
        recorder = LineRecorder(
            arguments.file, line, clock, template=template.id, unit=unit, grade=arguments.grade, device=words
        )
    try:
        await driver.connect()
        for poll in range(max(1, arguments.polls)):
            if poll:
                await asyncio.sleep(arguments.every)
            if not await driver.poll():
                raise UnavailableError(f"{template.id}: no answer; nothing was recorded")
            recorder.polled()
        expected = {name: value for name, (value, _) in as_mapping(driver).items()}
    finally:
        await driver.close()
    count = recorder.finish(expected)
    print(f"{arguments.file}: {count} answers, {len(expected)} expected values")
    return 0


async def _proxy(arguments: argparse.Namespace) -> int:
    from wattmesh_drivers.modbus.proxy import ModbusProxy

    host, _, port = arguments.listen.rpartition(":")
    if not port.isdigit():
        raise ConfigurationError(f"--listen {arguments.listen}: it takes HOST:PORT")
    lines = LinePool()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _connected(arguments, lines) as (driver, template):
        line = lines.of(_connection(arguments).endpoint(template))
        assert line is not None, "its driver has taken it"
        proxy = ModbusProxy(line)
        await proxy.start(host or "127.0.0.1", int(port))
        print(f"{line.endpoint.name} can be read at {host}:{proxy.port}; Ctrl-C ends it", flush=True)
        while not stop.is_set():  # a poll now and then, so that a lost connection comes back
            await driver.poll()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 5.0)
        await proxy.stop()
    return 0


_ACTIONS = {"read": _read, "write": _write, "watch": _watch, "record": _record, "proxy": _proxy}


def discover(argv: list[str]) -> int:
    """``wattmesh discover TARGET``: what is there, and a site file for it."""
    parser = argparse.ArgumentParser(
        prog="wattmesh discover", description="Finds SunSpec and known Modbus and OPC UA devices. It only reads."
    )
    parser.add_argument(
        "target",
        nargs="+",
        help="an address, host:port, a network (192.168.1.0/24), a serial port, opc.tcp://host:port",
    )
    parser.add_argument("--ports", default="502", help="TCP ports, like 502,1502")
    parser.add_argument("--units", help="unit identifiers, like 1,3,100-110; the usual ones of all templates")
    parser.add_argument("--baud", type=int, default=9600)
    parser.add_argument("--parity", choices=("N", "E", "O"), default="N")
    parser.add_argument("--timeout", type=_seconds, default=1.0, metavar="SECONDS")
    parser.add_argument("--write", type=Path, metavar="SITE.yaml", help="a site file with what was found")
    parser.add_argument("--site", default="site-1", help="its name")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_discover(arguments))
    return 130


def _numbers(text: str, what: str, highest: int) -> list[int]:
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            if int(last or first) > highest:
                raise ConfigurationError(f"{what} {text!r}: numbers are from 0 to {highest}")
            found += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise ConfigurationError(f"{what} {text!r}: it takes numbers and ranges, like 1,3,100-110") from error
    if not found or min(found) < 0 or max(found) > highest:
        raise ConfigurationError(f"{what} {text!r}: numbers are from 0 to {highest}")
    return found


async def _discover(arguments: argparse.Namespace) -> int:
    from wattmesh_drivers.discover import Found, opcua_at, scan, targets, write_site

    ports = _numbers(arguments.ports, "--ports", 65535)
    units = _numbers(arguments.units, "--units", 247) if arguments.units else None
    urls = [target for target in arguments.target if target.startswith("opc.tcp://")]
    endpoints = [
        endpoint
        for target in arguments.target
        if target not in urls
        for endpoint in targets(target, ports, arguments.baud, arguments.parity)
    ]
    if units is None and any(endpoint.serial for endpoint in endpoints):
        units = list(range(1, 11))
    found: list[Found] = []
    for url in urls:
        for one in await opcua_at(url, SystemClock(), timeout_s=arguments.timeout):
            found.append(one)
            print(f"{url}: {one.kind} {one.template} ({one.product}; {one.evidence})")
    async for one in scan(endpoints, units, SystemClock(), timeout_s=arguments.timeout):
        found.append(one)
        print(
            f"{one.endpoint.name} unit {one.unit}: {one.kind} {one.template} ({one.product or 'no name'}; {one.evidence})"
        )
        if one.others:
            print(f"    it may also be: {', '.join(one.others)}")
    if not found:
        count = len(endpoints) + len(urls)
        print(f"nothing known at {count} endpoint{'s' if count != 1 else ''}")
        return 1
    if arguments.write is not None:
        found.sort(key=lambda one: (one.endpoint.name, one.unit))
        write_site(arguments.write, arguments.site, found)
        print(f"{arguments.write}: {len(found)} devices; go through what is marked CHECK, then run")
        print(f"    wattmesh gateway run {arguments.write}")
    return 0
