"""The gateway's figures: start, footprint, control cycle, step response, backlog; everything real but the hardware.

usage: benchmarks/gateway.py [--json] [--seconds 60] [--hours 72]

Starts the broker, simulated hardware of four homes, the cloud process, and one gateway that reads all twelve devices at 1 Hz with
MQTT, SQLite and the reflex. Then it is stopped, 72 hours of 200 points at 1 Hz are put into its outbox, and it is started again:
the drain is watched, and with it the latency of live batches (last row to arrival at a listener on the broker).
"""

import argparse
import asyncio
import json
import math
import random
import signal
import tempfile
import time
import urllib.request
from array import array
from pathlib import Path
from statistics import median

import psutil
import yaml
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.telemetry import ColumnBatch, decode
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_edge.outbox import Outbox
from wattmesh_simulators.demo_fleet import default_start, free_ports, write_fleet
from wattmesh_simulators.processes import Child, Children

POINTS, ROWS = 200, 10
SETTLE_S = 10.0


class Site:
    """One gateway over the hardware of four homes."""

    def __init__(self, state: Path, broker: str) -> None:
        http, self.port = free_ports(2)
        self.files = write_fleet(
            state, start=default_start(daylight=True), homes=4, period_s=1.0, broker=broker, http_port=http, seed=1,
            disturbances_at_s=(), hold_s=0.0,
        )  # fmt: skip
        self.file = self.files.sites["home-1"]
        model = yaml.safe_load(self.file.read_text())
        model["local"] = {"port": self.port}
        for number in (2, 3, 4):
            for device in yaml.safe_load(self.files.sites[f"home-{number}"].read_text())["devices"]:
                device["id"] = f"{device['id']}-{number}"
                device.pop("role", None)
                model["devices"].append(device)
        self.file.write_text(yaml.safe_dump(model))
        self.outbox = (self.file.parent / model["state"]).resolve() / "outbox"

    def get(self, path: str) -> str:
        """What the gateway's own server answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float | None:
        """A metric without labels; none while nobody answers."""
        try:
            lines = self.get("/metrics").splitlines()
        except OSError:
            return None
        return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), None)

    def started(self) -> bool:
        """Whether a control cycle was complete."""
        return bool(self.metric("wattmesh_cycles_total"))


async def ready(child: Child) -> None:
    deadline = time.monotonic() + 60
    while not child.ready.exists():
        if child.ended or time.monotonic() > deadline:
            raise SystemExit(f"{child.name} did not start: {child.last_words()}")
        await asyncio.sleep(0.05)


async def until(what, seconds: float) -> float:
    began = time.monotonic()
    while not await asyncio.to_thread(what):
        if time.monotonic() - began > seconds:
            raise SystemExit("it did not come in time")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def measure(seconds: float, hours: float) -> list[dict[str, object]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="wattmesh-gateway-") as folder:
        state = Path(folder)
        async with provision_broker(state / "broker", free_ports(1)[0]) as broker, Children(state / "logs") as children:
            site = Site(state, broker.url)
            await ready(children.start("hardware", ["simulate", str(site.files.fleet), "--state", str(state / "hw")]))
            await ready(children.start("cloud", ["cloud", "run", str(site.files.cloud)]))
            gateway = children.start("home-1", ["gateway", "run", str(site.file)])
            took = await until(site.started, 30)
            rows.append(row("start to first control cycle", round(took, 2), "s", 3.0, took <= 3.0))
            await asyncio.sleep(SETTLE_S)
            rows += await footprint(site, psutil.Process(gateway.process.pid), seconds)
            gateway.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(gateway.process.wait)
            gateway = children.start("again", ["gateway", "run", str(site.file)])
            took = await until(site.started, 30)
            rows.append(row("killed to safe control again", round(took, 2), "s", 5.0, took <= 5.0))
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(gateway.process.wait)
            rows.append(row("clean shutdown", round(time.monotonic() - began, 2), "s", 15.0, True))
            if hours:
                rows += await backlog(site, broker.url, children, hours)
    return rows


async def footprint(site: Site, probe: psutil.Process, seconds: float) -> list[dict[str, object]]:
    before, began, disk = probe.cpu_times(), time.monotonic(), probe.io_counters().write_bytes
    resident, cycles = 0.0, []
    while time.monotonic() - began < seconds:
        await asyncio.sleep(1)
        resident = max(resident, probe.memory_info().rss / 1e6)
        if (value := site.metric("wattmesh_cycle_seconds")) is not None:
            cycles.append(value * 1000)
    after, elapsed = probe.cpu_times(), time.monotonic() - began
    percent = 100 * (after.user + after.system - before.user - before.system) / elapsed
    written = (probe.io_counters().write_bytes - disk) / elapsed * 86_400 / 1e6
    columns = max((len(batch_columns(site)), 0))
    p99 = sorted(cycles)[min(len(cycles) - 1, math.ceil(0.99 * len(cycles)) - 1)]
    return [
        row("points", columns, "points at 1 Hz", 200, columns >= 200),
        row("resident", round(resident, 1), "MB", 60.0, resident <= 60),
        row("cpu", round(percent, 2), "% of a core", 5.0, percent <= 5),
        row("control cycle p50, 12 devices", round(median(cycles), 2), "ms", None, True),
        row("control cycle p99, 12 devices", round(p99, 2), "ms", 50.0, p99 <= 50),
        row("written to disk", round(written), "MB a day", None, True),
    ]


def batch_columns(site: Site) -> tuple[str, ...]:
    """Columns of the open segment's head."""
    head = (site.outbox / "open.segment").read_bytes()
    length = int.from_bytes(head[:4], "little")
    return tuple(json.loads(head[9 : 8 + length])["columns"])


def fill(site: Site, hours: float) -> int:
    """Days without the cloud, as the outbox would have kept them."""
    rng = random.Random(1)
    columns = [f"meter.p{index:03d}" for index in range(POINTS)]
    outbox = Outbox(site.outbox, "home-1", "backlog", columns, batch_rows=ROWS)
    outbox._db.execute("PRAGMA synchronous=OFF")  # filling is not what is measured
    now = time.time_ns() - round(hours * 3600e9)
    values = array("d", [rng.uniform(0, 5000) for _ in range(POINTS)])
    quality = bytes(POINTS)
    course = []
    for second in range(1000):
        for index in range(second % 10, POINTS, 10):  # a tenth of the points moves each second
            values[index] = round(values[index] + rng.gauss(0, 20))
        course.append(array("d", values))
    for second in range(round(hours * 3600)):
        outbox.add_row(now + second * 10**9, [course[second % len(course)]], [quality])
    outbox.close()
    return round(hours * 3600) // ROWS


async def backlog(site: Site, broker: str, children: Children, hours: float) -> list[dict[str, object]]:
    batches = await asyncio.to_thread(fill, site, hours)
    late: list[tuple[float, float]] = []

    def arrived(inbound) -> None:
        batch = decode(inbound.payload)
        if isinstance(batch, ColumnBatch) and batch.session != "backlog":
            age = (time.time_ns() - batch.times_ns[-1]) / 1e9
            if age < 60:
                late.append((time.monotonic(), age * 1000))

    listener = MqttTransport(broker, "bench/listener/one")
    await listener.subscribe("wattmesh/v1/telemetry/+/home-1/points", arrived)
    await listener.start()
    await listener.wait_connected(10)
    children.start("drain", ["gateway", "run", str(site.file)])
    await until(site.started, 60)
    began, cycles = time.monotonic(), []
    while (waiting := site.metric("wattmesh_outbox_batches")) is None or waiting > 3:
        if (value := site.metric("wattmesh_cycle_seconds")) is not None:
            cycles.append(value * 1000)
        if time.monotonic() - began > 1200:
            break
        await asyncio.sleep(0.45)
    took = time.monotonic() - began
    during = [age for at, age in late if at - began < took]
    await asyncio.sleep(45)
    after = [age for at, age in late if at - began > took + 5]
    await listener.stop()
    note = f" of {hours:g} h ({batches} batches)"
    live = (round(median(during), 1) if during else None, round(median(after), 1) if after else None)
    same = bool(during and after) and live[0] <= 1.25 * live[1]  # the same but for what a broker at work takes
    p99 = sorted(cycles)[min(len(cycles) - 1, math.ceil(0.99 * len(cycles)) - 1)]
    return [
        row(f"backlog{note} drained in", round(took, 1), "s", 600.0, took <= 600),
        row("live latency while draining, median", live[0], "ms", live[1], same),
        row("live batches heard while draining", len(during), "batches", None, True),
        row("live latency afterwards, median", live[1], "ms", None, bool(after)),
        row("control cycle while draining, p99", round(p99, 1), "ms", 50.0, p99 <= 50),
        row("control cycle while draining, longest", round(max(cycles), 1), "ms", None, True),
    ]


def row(name, value, unit, goal, met):
    return {"name": f"gateway.{name}", "value": value, "unit": unit, "goal": goal, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the footprint is measured")
    parser.add_argument("--hours", type=float, default=72.0, help="of backlog; 0: none")
    arguments = parser.parse_args()
    for one in asyncio.run(measure(arguments.seconds, arguments.hours)):
        if arguments.json:
            print(json.dumps(one))
        else:
            goal = "" if one["goal"] is None else f" (goal {one['goal']}, {'met' if one['met'] else 'missed'})"
            print(f"{one['name']}: {one['value']} {one['unit']}{goal}")


if __name__ == "__main__":
    main()
