"""Memory and CPU of one gateway process at 1 Hz on the machine's own time: devices, MQTT, disk and reflex all running.

usage: benchmarks/footprint.py [--json] [--seconds 60]

Starts the broker, one simulated home (an inverter, a battery and a meter with 60 points or more), the cloud process and one
gateway, lets them settle and then measures the gateway alone.
"""

import argparse
import asyncio
import json
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from wattmesh_a2a.broker import provision_broker
from wattmesh_simulators.demo_fleet import default_start, free_ports, write_fleet
from wattmesh_simulators.processes import Child, Children

SETTLE_S = 15.0
GOAL_MB, GOAL_PERCENT, GOAL_POINTS = 60.0, 5.0, 60


async def ready(child: Child) -> None:
    """Wait until the process says that it works."""
    deadline = time.monotonic() + 60
    while not child.ready.exists():
        if child.ended or time.monotonic() > deadline:
            raise SystemExit(f"{child.name} did not start: {child.last_words()}")
        await asyncio.sleep(0.05)


def points_of(http_port: int) -> int:
    """How many points the cloud sees of the home: what the gateway really reads."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/api/v1/sites/home-1", timeout=10) as answer:
        return len(json.load(answer)["live"]["points"])


async def measure(seconds: float) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="wattmesh-footprint-") as folder:
        state = Path(folder)
        async with provision_broker(state / "broker", free_ports(1)[0]) as broker:
            files = write_fleet(
                state,
                start=default_start(daylight=True),
                homes=1,
                period_s=1.0,
                broker=broker.url,
                http_port=free_ports(1)[0],
                seed=1,
                disturbances_at_s=(),
                hold_s=0.0,
            )
            async with Children(state / "logs") as children:
                await ready(children.start("hardware", ["simulate", str(files.fleet), "--state", str(state / "hw")]))
                await ready(children.start("cloud", ["cloud", "run", str(files.cloud)]))
                gateway = children.start("home-1", ["gateway", "run", str(files.sites["home-1"])])
                await ready(gateway)
                await asyncio.sleep(SETTLE_S)
                probe = psutil.Process(gateway.process.pid)
                before, began = probe.cpu_times(), time.monotonic()
                resident = 0.0
                while time.monotonic() - began < seconds:
                    await asyncio.sleep(1)
                    resident = max(resident, probe.memory_info().rss / 1e6)
                after, elapsed = probe.cpu_times(), time.monotonic() - began
                percent = 100 * (after.user + after.system - before.user - before.system) / elapsed
                points = points_of(files.http_port)
    return [
        result("footprint.gateway.points", points, "points", GOAL_POINTS, points >= GOAL_POINTS),
        result("footprint.gateway.resident", round(resident, 1), "MB", GOAL_MB, resident <= GOAL_MB),
        result("footprint.gateway.cpu", round(percent, 2), "percent of a core", GOAL_PERCENT, percent <= GOAL_PERCENT),
    ]


def result(name: str, value: float, unit: str, goal: float, met: bool) -> dict[str, object]:
    return {"name": name, "value": value, "unit": unit, "goal": goal, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    arguments = parser.parse_args()
    for row in asyncio.run(measure(arguments.seconds)):
        if arguments.json:
            print(json.dumps(row))
        else:
            print(
                f"{row['name']}: {row['value']} {row['unit']} (goal {row['goal']}, {'met' if row['met'] else 'missed'})"
            )


if __name__ == "__main__":
    main()
