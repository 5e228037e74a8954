"""Telemetry through a real broker into the durable store: records a second with acknowledgement after durability.

usage: benchmarks/ingest.py [--json] [--seconds 60] [--sites 50] [--rows 10] [--records-per-second 1000000]

Three processes on this machine share its cores: the broker (mosquitto where found), ingest as the cloud runs it (store, live
view, roll-ups and lake in the background), and a generator that sends frames of 100 points as gateways do: again what is not
acknowledged in time, and forgotten only by an acknowledgement. Frames are made beforehand. At the end every acknowledged
batch is looked for in the store. A record is one value of one point.
"""

import argparse
import asyncio
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
import uuid
from array import array
from collections import deque
from pathlib import Path

import psutil
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.codec import canonical, encode, to_fields, type_name
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, INGEST_AGENT, Address, Envelope
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.telemetry import ColumnBatch, encode_columns
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.base import Inbound
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.lake import Lake
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.store.dead import DeadLetters
from wattmesh_cloud.store.sqlite import SqliteStore
from wattmesh_simulators.demo_fleet import free_ports

ORG, POINTS, KEY = "bench", 100, b"k" * 32
GOAL, GOAL_MB, AGAIN_S = 200_000, 250, 5.0
NAMES = tuple(f"asset{index // 10}.point{index % 10}_w" for index in range(POINTS))


# -- the process that is measured


async def serve(url: str, state: Path, sites: int) -> None:
    """Ingest as in :class:`wattmesh_cloud.app.Cloud`, until its standard input ends."""
    clock = SystemClock()
    store, dead = SqliteStore(state / "store.sqlite"), DeadLetters(state / "dead.sqlite")
    address = Address(ORG, CLOUD_UNIT, INGEST_AGENT)
    keys = KeyRing({f"site-{index}": KEY for index in range(sites)})
    messenger = Delivery(MqttTransport(url, str(address)), address, clock, keys=keys)
    ingest, live, lake = Ingest(store, messenger, clock, ORG, dead=dead), LiveView(), Lake(state / "lake")
    ingest.register()
    ingest.on_columns(live.on_columns)
    await messenger.start()

    async def maintain() -> None:
        while True:
            await asyncio.sleep(10)
            await asyncio.to_thread(lake.catch_up, store, clock.utc_ns())
            await asyncio.to_thread(store.maintain, clock.utc_ns())

    tasks = [asyncio.create_task(ingest.run()), asyncio.create_task(maintain())]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    print("ready", flush=True)
    await ended.wait()
    for task in tasks:
        task.cancel()
    await ingest.stop()
    await messenger.stop()
    print(json.dumps(dict(ingest.counts)), flush=True)
    store.close()


# -- the gateways


class Fleet:
    """Frames made beforehand, what was sent and when, what was acknowledged."""

    def __init__(self, sites: int, rows: int, frames: int, start_ns: int) -> None:
        rng = random.Random(1)
        self.records, self.sites = POINTS * rows, sites
        self.waiting: deque[tuple[int, int, bytes]] = deque()
        self.sent: dict[tuple[int, int], tuple[float, bytes]] = {}
        self.acknowledged = 0
        self.latest_s: list[float] = []
        self.again = 0
        values = [
            tuple(array("d", (round(1000 + rng.gauss(0, 5), 1) for _ in range(rows))) for _ in NAMES) for _ in range(50)
        ]
        good = tuple(bytes(rows) for _ in NAMES)
        for number in range(frames):
            site, sequence = number % sites, number // sites
            times = array("q", [start_ns + (sequence * rows + row) * NS_PER_S for row in range(rows)])
            batch = ColumnBatch(
                site_id=f"site-{site}", session="bench", stream="points", sequence=sequence, columns=NAMES,
                times_ns=times, values=values[number % 50], qualities=good,
            )  # fmt: skip
            self.waiting.append((site, sequence, encode_columns(batch)))

    def take_ack(self, site: int, sequences: tuple[int, ...]) -> None:
        """Forget what is durable."""
        now = time.monotonic()
        for sequence in sequences:
            known = self.sent.pop((site, sequence), None)
            if known is not None:
                self.acknowledged += 1
                self.latest_s.append(now - known[0])

    def overdue(self) -> None:
        """Put what was not acknowledged in time first in the queue again."""
        now = time.monotonic()
        for key in [key for key, (at, _) in self.sent.items() if now - at > AGAIN_S]:
            _, frame = self.sent.pop(key)
            self.waiting.appendleft((*key, frame))
            self.again += 1


class Ears:
    """All gateways' ends of the acknowledgements on one connection: each is taken and answered as a gateway would."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self._fleet, self._transport = fleet, MqttTransport(url, "bench/fleet/acks")
        self._keys = KeyRing({f"site-{index}": KEY for index in range(fleet.sites)})
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> None:
        """Listen for every site."""
        await self._transport.subscribe(f"{Topics().prefix}/request/{ORG}/+/{GATEWAY_AGENT}", self._take)
        await self._transport.start()
        await self._transport.wait_connected(10)

    def _take(self, inbound: Inbound) -> None:
        request = json.loads(inbound.payload)
        site = inbound.topic.split("/")[-2]
        self._fleet.take_ack(int(site.partition("-")[2]), request["data"]["sequences"])
        here, there = Address(ORG, site, GATEWAY_AGENT), Address(ORG, CLOUD_UNIT, INGEST_AGENT)
        reply = Envelope(
            id=uuid.uuid4().hex, source=here, destination=there, type=type_name(ACKNOWLEDGED),
            time_ns=request["timens"], session="bench", sequence=1, expires_ns=request["expiresns"],
            data=ACKNOWLEDGED, correlation_id=request["id"],
        )  # fmt: skip
        signature = self._keys.sign(here, there, canonical(to_fields(reply)))
        answer = self._transport.publish(
            inbound.response_topic, encode(reply, signature), correlation_data=inbound.correlation_data
        )
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Listen no more."""
        await self._transport.stop()


async def drive(fleet: Fleet, transport: MqttTransport, seconds: float, rate: float, window: int) -> float:
    """Send at most ``rate`` records a second with at most ``window`` batches unacknowledged; returns the elapsed seconds."""
    topics, began, credit, last, checked = Topics(), time.monotonic(), 0.0, time.monotonic(), 0.0
    while (now := time.monotonic()) - began < seconds and (fleet.waiting or fleet.sent):
        credit = min(credit + (now - last) * rate / fleet.records, 0.2 * rate / fleet.records + 1)
        last = now
        if now - checked > 0.5:
            checked = now
            fleet.overdue()
        while credit >= 1 and len(fleet.sent) < window and fleet.waiting:
            site, sequence, frame = fleet.waiting.popleft()
            try:
                await transport.publish(topics.telemetry(ORG, f"site-{site}", "points"), frame)
            except UnavailableError:
                fleet.waiting.appendleft((site, sequence, frame))
                break
            fleet.sent[site, sequence] = (time.monotonic(), frame)
            credit -= 1
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def measure(seconds: float, sites: int, rows: int, most: float) -> list[dict[str, object]]:
    frames = round(most * (seconds + 6) / (POINTS * rows))
    start = time.time_ns() - 3 * 3600 * NS_PER_S
    fleet = Fleet(sites, rows, frames, start - start % NS_PER_S)
    with tempfile.TemporaryDirectory(prefix="wattmesh-ingest-") as folder:
        state = Path(folder)
        provided = provision_broker(state / "broker", free_ports(1)[0])
        without_persistence(state / "broker" / "mosquitto.conf")
        async with provided as broker:
            process = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--serve", broker.url, "--state", str(state), "--sites", str(sites),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=dict(os.environ),
            )  # fmt: skip
            assert process.stdout
            assert process.stdin
            assert (await process.stdout.readline()).strip() == b"ready"
            probe, memory = psutil.Process(process.pid), [0.0]
            acks = Ears(fleet, broker.url)
            await acks.start()
            transport = MqttTransport(broker.url, "bench/fleet/telemetry")
            await transport.start()
            await transport.wait_connected(10)

            async def watch() -> None:
                while True:
                    memory[0] = max(memory[0], probe.memory_info().rss / 1e6)
                    await asyncio.sleep(0.2)

            watching = asyncio.create_task(watch())
            own = psutil.Process()
            others = [own, *(one for one in own.children() if one.pid != process.pid)]
            cpu, before = probe.cpu_times(), [one.cpu_times() for one in others]
            took = await drive(fleet, transport, seconds, most, 6000)
            used, after = probe.cpu_times(), [one.cpu_times() for one in others]
            beside = [100 * (b.user + b.system - a.user - a.system) / took for a, b in zip(before, after, strict=True)]
            sustained = fleet.acknowledged * fleet.records / took
            latencies = sorted(fleet.latest_s)
            # The burst: five quiet seconds at a tenth, five at the full rate, and whatever it takes to have all acknowledged.
            while fleet.sent:
                await drive(fleet, transport, 0.5, 0.0, 0)
            first = fleet.acknowledged
            calm = sustained / 10
            fleet.latest_s.clear()
            await drive(fleet, transport, 5, calm, 10**6)
            await drive(fleet, transport, 5, 10 * calm, 10**6)
            in_burst = fleet.acknowledged + len(fleet.sent) - first
            fleet.waiting.clear()
            deadline = time.monotonic() + 60
            while (fleet.sent or fleet.waiting) and time.monotonic() < deadline:
                await drive(fleet, transport, 0.5, most, 10**6)
            lost_in_burst = len(fleet.sent) + len(fleet.waiting)
            watching.cancel()
            await transport.stop()
            await acks.stop()
            process.stdin.close()
            counts = json.loads((await process.stdout.read()).splitlines()[-1])
            await process.wait()
        db = sqlite3.connect(state / "store.sqlite")
        stored, records = db.execute("SELECT COUNT(*), SUM(records) FROM batches").fetchone()
        db.close()
    half, tail = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    share = 100 * (used.user + used.system - cpu.user - cpu.system) / took
    return [
        row("ingest.records", round(sustained), "records/s", GOAL, sustained >= GOAL),
        row("ingest.seconds", round(took, 1), "s", seconds, took >= seconds - 1),
        row("ingest.resident", round(memory[0], 1), "MB", GOAL_MB, memory[0] <= GOAL_MB),
        row("ingest.cpu", round(share, 1), "percent of a core", None, None),
        row("ingest.cpu.generator", round(beside[0], 1), "percent of a core", None, None),
        row("ingest.cpu.broker", round(sum(beside[1:]), 1), "percent of a core", None, None),
        row("ingest.acknowledged_after.p50", round(half, 3), "s", None, None),
        row("ingest.acknowledged_after.p99", round(tail, 3), "s", AGAIN_S, tail <= AGAIN_S),
        row("ingest.sent_again", fleet.again, "batches", None, None),
        row(
            "ingest.acknowledged_not_stored",
            max(0, fleet.acknowledged - stored),
            "batches",
            0,
            stored >= fleet.acknowledged,
        ),
        row("ingest.stored_twice", records - stored * fleet.records, "records", 0, records == stored * fleet.records),
        row("ingest.burst_of_ten.batches", in_burst, "batches", None, None),
        row("ingest.burst_of_ten.lost", lost_in_burst, "batches", 0, lost_in_burst == 0),
        row("ingest.refused_busy", counts.get("refused_busy", 0), "batches", None, None),
    ]


def without_persistence(file: Path) -> None:
    """Gateways keep what is not acknowledged, so telemetry need not be saved by the broker, which the demo's is at each change."""
    if file.exists():
        file.write_text(file.read_text().replace("persistence true", "persistence false"))


def row(name: str, value: float, unit: str, goal: float | None, met: bool | None) -> dict[str, object]:
    return {"name": name, "value": value, "unit": unit, "goal": goal, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    parser.add_argument("--sites", type=int, default=50, help="how many sites take part")
    parser.add_argument("--rows", type=int, default=10, help="rows of 100 points in a batch")
    parser.add_argument("--records-per-second", type=float, default=1_200_000, help="what the generator tries at most")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.state, arguments.sites))
        return
    rows = asyncio.run(measure(arguments.seconds, arguments.sites, arguments.rows, arguments.records_per_second))
    for one in rows:
        if arguments.json:
            print(json.dumps(one))
        else:
            verdict = "" if one["goal"] is None else f" (goal {one['goal']}, {'met' if one['met'] else 'missed'})"
            print(f"{one['name']}: {one['value']} {one['unit']}{verdict}")


if __name__ == "__main__":
    main()
