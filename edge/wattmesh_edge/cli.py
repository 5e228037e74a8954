"""``wattmesh gateway`` and ``wattmesh why``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
from datetime import UTC, datetime
from pathlib import Path

from wattmesh_a2a.errors import ConfigurationError


def gateway(argv: list[str]) -> int:
    """``wattmesh gateway run|check|status SITE.yaml``."""
    parser = argparse.ArgumentParser(prog="wattmesh gateway")
    parser.add_argument("action", choices=("run", "check", "status"))
    parser.add_argument("file", type=Path, help="the site file")
    parser.add_argument("--time-server", metavar="HOST:PORT", help="take part in simulated time")
    parser.add_argument("--ready-file", type=Path, help="written when the gateway works")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    from wattmesh_edge.config import load_site

    site = load_site(arguments.file)
    if arguments.action == "check":
        print(f"{arguments.file}: {site.model.site} is fine: {len(site.model.devices)} devices")
        return 0
    if arguments.action == "status":
        report = site.state / "report.json"
        if not report.exists():
            raise ConfigurationError(f"{report} does not exist: the gateway has not run yet")
        print(json.dumps(json.loads(report.read_text(encoding="ascii")), indent=1))
        return 0
    asyncio.run(_run(arguments.file, arguments.time_server, arguments.ready_file))
    return 0


async def _run(file: Path, time_server: str | None, ready: Path | None) -> None:
    from wattmesh_a2a.clock import open_clock

    from wattmesh_edge.config import load_site
    from wattmesh_edge.gateway import run_gateway

    site = load_site(file)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_clock(site.model.site, time_server) as clock:
        await run_gateway(site, clock, stop, ready)


def why(argv: list[str]) -> int:
    """``wattmesh why SITE.yaml TIME``: which proposal, bound or fault decided the power at that time."""
    parser = argparse.ArgumentParser(prog="wattmesh why")
    parser.add_argument("file", type=Path, help="the site file")
    parser.add_argument("time", help="ISO 8601; without an offset it is UTC")
    arguments = parser.parse_args(argv)
    from wattmesh_edge.config import load_site
    from wattmesh_edge.trace import why as explain

    site = load_site(arguments.file)
    try:
        moment = datetime.fromisoformat(arguments.time)
    except ValueError as error:
        raise ConfigurationError(f"{arguments.time!r} is no time; write it like 2026-05-01T18:00:00") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    database = site.state / "gateway.sqlite"
    if not database.exists():
        raise ConfigurationError(f"{database} does not exist: the gateway has not run yet")
    lines = explain(database, int(moment.timestamp()) * 1_000_000_000)
    print("\n".join(lines) or "nothing had been decided by then")
    return 0 if lines else 1
