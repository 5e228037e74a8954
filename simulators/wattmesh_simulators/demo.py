"""The main job in one command: starts a fleet's processes, keeps them alive, ends them, and reports.

Nothing here takes part in the fleet's work. Every process is the one an operator would start, from files an operator
would write (:mod:`wattmesh_simulators.demo_fleet`); this module hands out simulated time and watches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.errors import ConfigurationError, UnavailableError, WattmeshError

from wattmesh_simulators.demo_fleet import FleetFiles, data_span, default_start, free_ports, write_fleet
from wattmesh_simulators.processes import Child, Children
from wattmesh_simulators.report import build_report, print_report, write_report
from wattmesh_simulators.timeserver import TimeServer

log = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
_MARKER = "made-by-wattmesh-demo"
_READY_S = 60.0
_OVERTIME_S = 60
"""Simulated time after the end in which the last slot is metered and reported."""
_GATEWAY_STOP_S, _CLOUD_STOP_S, _HARDWARE_STOP_S = 45.0, 45.0, 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A ``kill -9`` of one process at a simulated time, to watch the recovery."""

    name: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for."""

    state: Path
    days: float | None
    report: Path | None
    speed: float | None
    """Simulated seconds a second; none for as fast as the machine can."""
    start: datetime
    homes: int
    broker: str | None
    http_port: int
    seed: int
    kills: tuple[Kill, ...]
    disturb: bool
    trace: bool
    verbose: bool


def main(argv: list[str]) -> int:
    """Run ``wattmesh demo`` and return its exit code."""
    options = parse(argv)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(name)s: %(message)s")
    try:
        return asyncio.run(run_demo(options))
    except KeyboardInterrupt:
        return 130


def parse(argv: list[str]) -> DemoOptions:
    """The options of a command line; leaves with a usage line on a mistake."""
    parser = argparse.ArgumentParser(prog="wattmesh demo", description="Run a small fleet on real data, end to end.")
    parser.add_argument("--days", type=float, help="stop after this many simulated days (headless)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write FILE (JSON) and a page beside it at the end")
    parser.add_argument("--speed", help="simulated seconds a second, or max; default: 60 live, max with --days")
    parser.add_argument("--start", help="simulated start, ISO 8601; default: a Thursday in September")
    parser.add_argument("--homes", type=int, default=5, choices=range(1, 6), help="how many of the five homes")
    parser.add_argument("--broker", metavar="URL", help="use this broker (mqtt://host:port) instead of an own one")
    parser.add_argument("--http-port", type=int, default=8080, help="port of API and console (0: any free one)")
    parser.add_argument("--state", type=Path, default=Path(".wattmesh/demo"), help="folder for everything written")
    parser.add_argument("--seed", type=int, default=1, help="seed of the simulators' noise")
    parser.add_argument("--kill", action="append", default=[], metavar="NAME@SECONDS", help="kill -9 a process then")
    parser.add_argument("--no-disturbance", action="store_true", help="leave the grid's frequency alone")
    parser.add_argument(
        "--iberia", action="store_true", help="play the recorded blackout of 2025-04-28 (50 Hz) as the grid"
    )
    parser.add_argument("--verbose", action="store_true", help="say more")
    arguments = parser.parse_args(argv)
    headless = arguments.days is not None
    if arguments.report and not headless:
        parser.error("--report needs --days N: the report is written when the run ends")
    if headless and not arguments.days > 0:
        parser.error("--days takes a number above 0")
    try:
        start = _start(arguments.start, headless=headless)
        speed = _speed(arguments.speed, headless=headless)
        kills = tuple(_kill(text) for text in arguments.kill)
    except ValueError as error:
        parser.error(str(error))
    return DemoOptions(
        state=arguments.state.resolve(),
        days=arguments.days,
        report=arguments.report.resolve() if arguments.report else None,
        speed=speed,
        start=start,
        homes=arguments.homes,
        broker=arguments.broker,
        http_port=arguments.http_port or free_ports(1)[0],
        seed=arguments.seed,
        kills=kills,
        disturb=not arguments.no_disturbance and not arguments.iberia,
        trace=arguments.iberia,
        verbose=arguments.verbose,
    )


def _start(text: str | None, *, headless: bool) -> datetime:
    if text is None:
        return default_start(daylight=not headless)
    start = datetime.fromisoformat(text)
    if start.tzinfo is None:
        start = start.replace(tzinfo=UTC)
    first, last = data_span()
    if not first <= start < last:
        raise ValueError(f"--start must lie in the recorded year, {first:%Y-%m-%dT%H:%MZ} to {last:%Y-%m-%dT%H:%MZ}")
    if start.timestamp() % 900:
        raise ValueError("--start must be a quarter of an hour")
    return start


def _speed(text: str | None, *, headless: bool) -> float | None:
    if text is None:
        return None if headless else 60.0
    if text == "max":
        return None
    value = float(text)
    if not value >= 1:
        raise ValueError("--speed takes max or a number from 1 on")
    return value


def _kill(text: str) -> Kill:
    name, _, at = text.partition("@")
    if not name or not at:
        raise ValueError("--kill takes NAME@SECONDS, for example home-2@7200 or cloud@7200")
    return Kill(name=name, at_s=float(at))


async def run_demo(options: DemoOptions) -> int:
    """Run the fleet; returns 0 when all that the report checks was met (live runs: when stopped in good order)."""
    began = time.monotonic()
    prepare_state(options.state)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        broker = await _broker(options, stack)
        step_s = 10 if options.speed is None or options.speed >= 10 else 1
        files = write_fleet(
            options.state,
            start=options.start,
            homes=options.homes,
            period_s=float(step_s),
            broker=broker,
            http_port=options.http_port,
            seed=options.seed,
            disturbances_at_s=_disturbances(options),
            hold_s=6.0,
            trace=options.trace,
        )
        names = {"hardware", "cloud", *files.sites}
        server = TimeServer(start_ns=files.start_ns, step_ns=step_s * NS_PER_S, speed=options.speed, expected=names)
        await stack.enter_async_context(_serving(server))
        children = await stack.enter_async_context(Children(options.state / "logs"))
        await _start_all(children, files, f"127.0.0.1:{server.port}", stop)
        if stop.is_set():
            say("stopped before the fleet was up")
            return 130
        await server.wait_joined(names, _READY_S)
        say(f"the fleet is up after {time.monotonic() - began:.0f} s")
        say(f"console: http://127.0.0.1:{files.http_port}/")
        say(f"files and logs: {options.state}")
        await _run(options, server, children, stop, files)
        interrupted = stop.is_set() and options.days is not None
        stopped_well = await _end_all(children, files)
        usage = children.usage()
    elapsed = time.monotonic() - began
    if options.days is None or interrupted:
        say("stopped" if stopped_well else "stopped, but not every process ended in good order; see the logs")
        return 130 if interrupted else 0 if stopped_well else 1
    report = build_report(options.state, files, days=options.days, elapsed_s=elapsed, usage=usage, step_s=step_s)
    if options.report:
        page = write_report(report, options.report)
        say(f"report: {options.report} and {page}")
    print_report(report)
    return 0 if report["met"] and stopped_well else 1


def say(text: str) -> None:
    """One line for the person who started the demo."""
    print(f"wattmesh: {text}", flush=True)


def prepare_state(state: Path) -> None:
    """An empty folder for this run; only a folder that an earlier demo made is emptied."""
    marker = state / _MARKER
    if state.exists() and any(state.iterdir()) and not marker.exists():
        raise ConfigurationError(f"--state {state} holds files that no demo made; name an empty or a new folder")
    if state.exists():
        shutil.rmtree(state)
    state.mkdir(parents=True)
    marker.touch()


async def _broker(options: DemoOptions, stack: contextlib.AsyncExitStack) -> str:
    if options.broker is not None:
        parts = urlsplit(options.broker)
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ConfigurationError(f"--broker {options.broker} is no address; write mqtt://host:port")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(parts.hostname, parts.port or 1883), 5)
        except (OSError, TimeoutError) as error:
            raise UnavailableError(
                f"no broker answers at {options.broker} ({error}); start it, or leave --broker out"
            ) from error
        writer.close()
        return options.broker
    process = provision_broker(options.state / "broker", free_ports(1)[0])
    await stack.enter_async_context(process)
    say(f"broker: {process.description}")
    return process.url


@contextlib.asynccontextmanager
async def _serving(server: TimeServer) -> AsyncIterator[None]:
    await server.serve()
    try:
        yield
    finally:
        await server.close()


def _disturbances(options: DemoOptions) -> tuple[float, ...]:
    """Simulated seconds after the start at which a generator trips: one a day, none in very short runs."""
    if not options.disturb:
        return ()
    if options.days is None:
        return tuple(float(at) for at in range(1800, 86_400 * 30, 7200))
    return tuple(at for day in range(8) if (at := (day + 0.55) * 86_400) < options.days * 86_400) or (
        (options.days * 43_200,) if options.days >= 1 / 24 else ()
    )


async def _start_all(children: Children, files: FleetFiles, time_server: str, stop: asyncio.Event) -> None:
    shared = ("--time-server", time_server)
    say(f"hardware: {len(files.sites)} homes, an inverter, a battery and a meter each")
    hardware = children.start(
        "hardware", ["simulate", str(files.fleet), *shared, "--state", str(files.state / "state" / "hardware")]
    )
    await _ready([hardware], stop)
    say("cloud: ingest, forecasts, market, grid, console")
    cloud = children.start("cloud", ["cloud", "run", str(files.cloud), *shared])
    await _ready([cloud], stop)
    say(f"gateways: {', '.join(files.sites)}")
    gateways = [children.start(name, ["gateway", "run", str(path), *shared]) for name, path in files.sites.items()]
    await _ready(gateways, stop)


async def _ready(waiting: list[Child], stop: asyncio.Event) -> None:
    deadline = time.monotonic() + _READY_S
    for child in waiting:
        while not child.ready.exists() and not stop.is_set():
            if child.ended:
                raise UnavailableError(f"{child.name} ended while starting: {child.last_words()}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{child.name} was not ready after {_READY_S:.0f} s; see {child.log}")
            await asyncio.sleep(0.05)


async def _run(
    options: DemoOptions, server: TimeServer, children: Children, stop: asyncio.Event, files: FleetFiles
) -> None:
    """Let time pass until the end, or until somebody stops the demo; restart what dies."""
    end_ns = None if options.days is None else files.start_ns + round((options.days * 86_400 + _OVERTIME_S) * NS_PER_S)
    kills = sorted(options.kills, key=lambda kill: kill.at_s)
    progress = _Progress(files.start_ns, end_ns)

    def on_step(now_ns: int) -> None:
        while kills and (now_ns - files.start_ns) / NS_PER_S >= kills[0].at_s:
            kill = kills.pop(0)
            say(f"kill -9 {kill.name}")
            children.kill(kill.name)
        progress.step(now_ns)

    clock = asyncio.create_task(server.run(end_ns, on_step), name="time")
    watch = asyncio.create_task(children.keep_alive(say), name="watch")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    done, _ = await asyncio.wait({clock, watch, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (clock, watch):
        task.cancel()
    stopped.cancel()
    await asyncio.gather(clock, watch, stopped, return_exceptions=True)
    for work in (clock, watch):
        if work in done:
            work.result()  # a failure of ours is not hidden


class _Progress:
    """A line now and then: at a terminal every few seconds, in a log every simulated six hours."""

    def __init__(self, start_ns: int, end_ns: int | None) -> None:
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._began = time.monotonic()
        self._next_ns = start_ns
        self._every_ns = 6 * 3600 * NS_PER_S if end_ns is not None else 3600 * NS_PER_S

    def step(self, now_ns: int) -> None:
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + self._every_ns
        real = max(time.monotonic() - self._began, 1e-3)
        speed = (now_ns - self._start_ns) / NS_PER_S / real
        stamp = datetime.fromtimestamp(now_ns // NS_PER_S, tz=UTC).strftime("%Y-%m-%d %H:%MZ")
        text = f"simulated {stamp}"
        if real > 1:
            text += f", {speed:.0f} times real time"
        if self._end_ns is not None and real > 1:
            text += f", {(now_ns - self._start_ns) / (self._end_ns - self._start_ns):.0%}"
        say(text)


async def _end_all(children: Children, files: FleetFiles) -> bool:
    """Gateways first (they hand over what they hold), then the cloud (it settles), then the hardware."""
    say("stopping: gateways hand over, the cloud settles")
    well = await children.stop(list(files.sites), _GATEWAY_STOP_S)
    well &= await children.stop(["cloud"], _CLOUD_STOP_S)
    well &= await children.stop(["hardware"], _HARDWARE_STOP_S)
    return well


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except WattmeshError as problem:
        sys.exit(f"wattmesh demo: {problem}")
