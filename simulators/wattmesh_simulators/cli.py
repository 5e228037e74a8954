"""``wattmesh simulate`` and ``wattmesh demo``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path


def simulate(argv: list[str]) -> int:
    """``wattmesh simulate FLEET.yaml``: serve the simulated hardware of a fleet until ended."""
    parser = argparse.ArgumentParser(prog="wattmesh simulate")
    parser.add_argument("file", type=Path, help="the fleet's file")
    parser.add_argument("--time-server", metavar="HOST:PORT", help="take part in simulated time")
    parser.add_argument("--state", type=Path, help="folder for truth.json, and for going on after a restart")
    parser.add_argument("--ready-file", type=Path, help="written when all devices listen")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    asyncio.run(_simulate(arguments.file, arguments.time_server, arguments.state, arguments.ready_file))
    return 0


async def _simulate(file: Path, time_server: str | None, state: Path | None, ready: Path | None) -> None:
    from wattmesh_a2a.clock import open_clock
    from wattmesh_a2a.config_file import load_yaml_model

    from wattmesh_simulators.fleet import Fleet, FleetModel
    from wattmesh_simulators.timeserver import FIRST

    model = load_yaml_model(file, FleetModel)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_clock(FIRST, time_server) as clock:
        with clock.runner():  # time waits while the devices start
            fleet = Fleet(model, clock, state)
            await fleet.start()
        running = asyncio.create_task(fleet.run(1.0), name="fleet")
        stopping = asyncio.create_task(stop.wait())
        if ready is not None:
            ready.touch()
        try:
            done, _ = await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running in done:
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await fleet.stop()


def demo(argv: list[str]) -> int:
    """``wattmesh demo``: see :mod:`wattmesh_simulators.demo`."""
    from wattmesh_simulators.demo import main

    return main(argv)
