"""``wattmesh simulate`` and ``wattmesh demo``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_FAULT = re.compile(r"(?P<name>[a-z_]+)(=(?P<value>[0-9.]+))?(@(?P<at>[0-9.]+))?(\+(?P<span>[0-9.]+))?")
REBOOT = "reboot"


def simulate(argv: list[str]) -> int:
    """``wattmesh simulate FLEET.yaml|device TEMPLATE|recording FILE``: serve a fleet's hardware, one device, or a recording."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    if argv[:1] == ["device"]:
        return _device(argv[1:])
    if argv[:1] == ["recording"]:
        return _recording(argv[1:])
    parser = argparse.ArgumentParser(
        prog="wattmesh simulate",
        epilog="wattmesh simulate device --help and wattmesh simulate recording --help tell of one device",
    )
    parser.add_argument("file", type=Path, help="the fleet's file, or the word device or recording")
    parser.add_argument("--time-server", metavar="HOST:PORT", help="take part in simulated time")
    parser.add_argument("--state", type=Path, help="folder for truth.json, and for going on after a restart")
    parser.add_argument("--ready-file", type=Path, help="written when all devices listen")
    arguments = parser.parse_args(argv)
    asyncio.run(_simulate(arguments.file, arguments.time_server, arguments.state, arguments.ready_file))
    return 0


async def _simulate(file: Path, time_server: str | None, state: Path | None, ready: Path | None) -> None:
    from wattmesh_a2a.clock import open_clock
    from wattmesh_a2a.config_file import load_yaml_model

    from wattmesh_simulators.fleet import Fleet, FleetModel
    from wattmesh_simulators.lab import Lab
    from wattmesh_simulators.timeserver import FIRST

    model = load_yaml_model(file, FleetModel)
    stop = _stop_event()
    async with open_clock(FIRST, time_server) as clock:
        with clock.runner():  # time waits while the devices start
            fleet = Fleet(model, clock, state)
            lab = None if model.lab is None else Lab(fleet, file.parent / model.lab.secret)
            await fleet.start()
            if lab is not None and model.lab is not None:
                await lab.start(model.lab.port)
        running = asyncio.create_task(fleet.run(1.0), name="fleet")
        try:
            await _until_ended(stop, [running], ready)
        finally:
            if lab is not None:
                await lab.stop()
            await fleet.stop()


def _stop_event() -> asyncio.Event:
    """Set when somebody wants us to end."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _until_ended(stop: asyncio.Event, running: Sequence[asyncio.Task[None]], ready: Path | None) -> None:
    """Wait until somebody wants us to end, or something of ours has; then nothing of it is left running."""
    stopping = asyncio.create_task(stop.wait())
    if ready is not None:
        ready.touch()
    try:
        done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in (stopping, *running):
            task.cancel()
        await asyncio.gather(stopping, *running, return_exceptions=True)


class PlannedFault(NamedTuple):
    """A fault on the command line."""

    name: str
    value: str
    at_s: float
    span_s: float | None
    """None for ever."""


def planned_fault(text: str) -> PlannedFault:
    """``NAME[=VALUE][@SECONDS][+SECONDS]``, like ``silent@30+10`` or ``delay_s=0.5``."""
    found = _FAULT.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME[=VALUE][@START][+SECONDS], like silent@30+10")
    span = found["span"]
    return PlannedFault(
        found["name"], found["value"] or "1", float(found["at"] or 0.0), None if span is None else float(span)
    )


def _device(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="wattmesh simulate device")
    parser.add_argument("template", help="a template's name, or a file; wattmesh device templates lists them")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=0, help="TCP port of the loopback interface; 0 takes a free one")
    where.add_argument("--serial", metavar="PORT", help="serve a serial port (RTU)")
    where.add_argument("--pty", type=Path, metavar="LINK", help="make a pseudo-terminal and serve it (RTU)")
    parser.add_argument("--rtu", action="store_true", help="RTU frames over TCP, as behind a serial converter")
    parser.add_argument("--unit", type=int, help="unit identifier; the template's usual one")
    parser.add_argument("--baud", type=int, help="of the serial port")
    parser.add_argument("--home", default="b01", choices=[f"b0{number}" for number in range(1, 6)])
    parser.add_argument("--soc", type=float, default=50.0, help="state of charge at first, percent")
    parser.add_argument("--shift-hours", type=float, default=0.0, help="the plant is so far ahead: sun at night")
    parser.add_argument("--strict", action="store_true", help="insist on the template's connection needs; refuse holes")
    parser.add_argument(
        "--fault", action="append", type=planned_fault, default=[], metavar="NAME[=VALUE][@START][+SECONDS]",
        help="may be given several times; reboot+SECONDS is one as well",
    )  # fmt: skip
    parser.add_argument("--ready-file", type=Path, help="written when the device listens")
    arguments = parser.parse_args(argv)
    asyncio.run(_serve_device(arguments))
    return 0


async def _serve_device(arguments: argparse.Namespace) -> None:
    from wattmesh_a2a.clock import SystemClock

    from wattmesh_simulators.device import SimulatedDevice
    from wattmesh_simulators.faults import Faults, switch

    for fault in arguments.fault:
        if fault.name != REBOOT:
            switch(Faults(), fault.name, fault.value)  # a wrong name is told before anything listens
    device = SimulatedDevice(
        arguments.template, SystemClock(), home=arguments.home, soc_percent=arguments.soc, strict=arguments.strict,
        shift_s=arguments.shift_hours * 3600,
    )  # fmt: skip
    stop = _stop_event()
    await device.serve(
        port=arguments.port, unit=arguments.unit, framing="rtu" if arguments.rtu else "tcp", serial=arguments.serial,
        pty=arguments.pty, baud=arguments.baud,
    )  # fmt: skip

    async def play(fault: PlannedFault) -> None:
        await asyncio.sleep(fault.at_s)
        if fault.name == REBOOT:
            await device.restart(fault.span_s or 0.0)
            return
        switch(device.faults, fault.name, fault.value)
        if fault.span_s is not None:
            await asyncio.sleep(fault.span_s)
            switch(device.faults, fault.name, "0")

    place = arguments.serial or arguments.pty or f"127.0.0.1:{getattr(device.server, 'port', arguments.port)}"
    print(f"{arguments.template} at {place}; Ctrl-C ends it", flush=True)
    playing = [asyncio.create_task(play(fault)) for fault in arguments.fault]
    try:
        await _until_ended(stop, [asyncio.create_task(device.run())], arguments.ready_file)
    finally:
        for task in playing:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*playing, return_exceptions=True)
        await device.stop()


def _recording(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="wattmesh simulate recording")
    parser.add_argument("file", type=Path, help="made by wattmesh device record")
    parser.add_argument("--port", type=int, default=0, help="TCP port of the loopback interface; 0 takes a free one")
    parser.add_argument("--rtu", action="store_true", help="RTU frames over TCP, as behind a serial converter")
    parser.add_argument("--ready-file", type=Path, help="written when the device listens")
    arguments = parser.parse_args(argv)
    asyncio.run(_serve_recording(arguments))
    return 0


async def _serve_recording(arguments: argparse.Namespace) -> None:
    from wattmesh_simulators.modbus_server import ModbusServer
    from wattmesh_simulators.replay import ReplayNodes, ReplayUnit, is_opcua

    stop = _stop_event()
    if is_opcua(arguments.file):
        nodes = ReplayNodes(arguments.file)
        await nodes.server.start(arguments.port)
        print(f"{nodes.template} at opc.tcp://127.0.0.1:{arguments.port}/; Ctrl-C ends it", flush=True)

        async def go_on() -> None:
            while await nodes.advance():
                await asyncio.sleep(1.0)
            await asyncio.Event().wait()  # the last values stay

        try:
            await _until_ended(stop, [asyncio.create_task(go_on())], arguments.ready_file)
        finally:
            await nodes.server.stop()
        return
    device = ReplayUnit(arguments.file)
    server = ModbusServer(device, unit=device.unit, framing="rtu" if arguments.rtu else "tcp")
    await server.start(arguments.port)
    print(f"{device.template} at 127.0.0.1:{server.port} unit {device.unit}; Ctrl-C ends it", flush=True)
    try:
        await _until_ended(stop, [], arguments.ready_file)
    finally:
        await server.stop()


def demo(argv: list[str]) -> int:
    """``wattmesh demo``: see :mod:`wattmesh_simulators.demo`."""
    from wattmesh_simulators.demo import main

    return main(argv)
