"""``wattmesh device`` and ``wattmesh discover``: the bench commands."""

from __future__ import annotations

import argparse
import asyncio

from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.control import Applied, Clamped
from wattmesh_a2a.devices import Quality

from wattmesh_drivers.driver import Driver, as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template, template_ids


def device(argv: list[str]) -> int:
    """``wattmesh device read|write``: every point of a device once, or one control within its limits."""
    parser = argparse.ArgumentParser(prog="wattmesh device")
    parser.add_argument("action", choices=("read", "write", "templates"))
    parser.add_argument("control", nargs="?", help="for write: the control's name")
    parser.add_argument("value", nargs="?", type=float, help="for write: the value in the control's unit")
    parser.add_argument("--template", help="a template's name, or a file")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--unit", type=int, default=1)
    parser.add_argument("--url")
    parser.add_argument("--rated-power-w", type=float, help="limit of a write")
    arguments = parser.parse_args(argv)
    if arguments.action == "templates":
        print("\n".join(template_ids()))
        return 0
    if not arguments.template:
        parser.error(f"--template is needed; there are: {', '.join(template_ids())}")
    connection = ConnectionModel(host=arguments.host, port=arguments.port, unit=arguments.unit, url=arguments.url)
    driver = create_driver(
        "device",
        load_template(arguments.template),
        connection,
        SystemClock(),
        rated_power_w=arguments.rated_power_w,
    )
    if arguments.action == "read":
        return asyncio.run(_read(driver))
    if arguments.control is None or arguments.value is None:
        parser.error("write takes a control and a value")
    if arguments.rated_power_w is None:
        parser.error("write needs --rated-power-w: nothing is written without a limit")
    return asyncio.run(_write(driver, arguments.control, arguments.value))


async def _read(driver: Driver) -> int:
    await driver.connect()
    try:
        answered = await driver.poll()
        units = {point.id: point.unit for point in driver.asset.points}
        for name, (value, quality) in as_mapping(driver).items():
            shown = f"{value:>14.3f} {units[name]}" if quality != Quality.BAD else "             - no data"
            print(f"{name:<28}{shown}")
    finally:
        await driver.close()
    return 0 if answered else 1


async def _write(driver: Driver, control: str, value: float) -> int:
    await driver.connect()
    try:
        outcome = await driver.control(control, value)
    finally:
        await driver.close()
    print(outcome)
    return 0 if isinstance(outcome, Applied | Clamped) else 1


def discover(argv: list[str]) -> int:
    """``wattmesh discover HOST``: which templates a device at one address answers to."""
    parser = argparse.ArgumentParser(prog="wattmesh discover")
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=502)
    parser.add_argument("--unit", type=int, default=1)
    arguments = parser.parse_args(argv)
    return asyncio.run(_discover(arguments.host, arguments.port, arguments.unit))


async def _discover(host: str, port: int, unit: int) -> int:
    from wattmesh_a2a.errors import ConfigurationError

    from wattmesh_drivers.modbus.link import ModbusLink
    from wattmesh_drivers.modbus.sunspec import discover as find_models

    link = ModbusLink.tcp(host, port, unit, timeout_s=2.0)
    await link.open()
    try:
        models = await find_models(link)
    except ConfigurationError as error:
        print(f"{error}; a device without SunSpec has to be named by its template")
        return 1
    finally:
        link.close()
    print("SunSpec models: " + ", ".join(f"{model} at {found.address}" for model, found in models.items()))
    for name in template_ids():
        template = load_template(name)
        needed = {point.model for point in template.points if point.model is not None}
        if template.protocol == "sunspec" and needed <= set(models):
            print(f"template: {name}")
    return 0
