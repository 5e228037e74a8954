"""``wattmesh cloud``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path


def cloud(argv: list[str]) -> int:
    """``wattmesh cloud run|check CLOUD.yaml``."""
    parser = argparse.ArgumentParser(prog="wattmesh cloud")
    parser.add_argument("action", choices=("run", "check"))
    parser.add_argument("file", type=Path, help="the cloud's file")
    parser.add_argument("--time-server", metavar="HOST:PORT", help="take part in simulated time")
    parser.add_argument("--ready-file", type=Path, help="written when API and console answer")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    from wattmesh_cloud.config import load_cloud

    config = load_cloud(arguments.file)
    if arguments.action == "check":
        print(f"{arguments.file}: fine: {len(config.model.market.participants)} participants")
        return 0
    asyncio.run(_run(arguments.file, arguments.time_server, arguments.ready_file))
    return 0


async def _run(file: Path, time_server: str | None, ready: Path | None) -> None:
    from wattmesh_a2a.clock import open_clock

    from wattmesh_cloud.app import Cloud
    from wattmesh_cloud.config import load_cloud

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_clock("cloud", time_server) as clock:
        await Cloud(load_cloud(file), clock).run(stop, ready)
