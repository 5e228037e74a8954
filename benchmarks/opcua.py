"""Cost of reading an OPC UA device, and what is known of its points after a restart.

usage: benchmarks/opcua.py [--json]

Peer: asyncua, on which the driver stands. Reading: CPU time of this process for one poll of 200 points, in turns with asyncua's
bare ``read`` of the same request, made beforehand as ours is, and with its ``read_attributes``, which makes the request anew and
asks for one time stamp of two; the best of several rounds each. The server is a process of its own. Restart: a server comes back
with 7 of 10 nodes; counted are the points that deliver or that somebody is told about, with the driver and with asyncua's own
subscription (``auto_reconnect``), which goes on with 7 and says nothing of 3.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import yaml
from asyncua import Client, ua
from wattmesh_a2a.clock import SystemClock
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.opcua.driver import OpcUaDriver
from wattmesh_drivers.template import Template
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.opcua_server import OpcUaServer

POINTS, ROUNDS, POLLS = 200, 9, 40
CHANGES_S = 4.0
Row = tuple[str, float, str, float | None, str | None, float | None]


def template(count: int, **fields: object) -> dict[str, object]:
    names = ["active_power_w", *(f"p{index}" for index in range(1, count))]
    points = [{"id": name, "node": f"s=Load.{name}", "type": "double", "scale": 0.1} for name in names]
    return {
        "template": 1, "id": "bench", "kind": "load", "manufacturer": "x", "products": ["x"], "protocol": "opcua",
        "namespace": "urn:bench", "points": points, "sources": ["x"], "connection": {"timeout_ms": 5000}, **fields,
    }  # fmt: skip


def server(folder: Path, data: dict[str, object], values: dict[str, float]) -> OpcUaServer:
    file = folder / "bench.yaml"
    file.write_text(yaml.safe_dump(data))
    return OpcUaServer(str(file), lambda: values, lambda _name, _value: None)


async def serve(port: int) -> None:
    """A server whose values all change every 50 ms, until its standard input ends."""
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        device = server(Path(folder), template(POINTS), values)
        await device.start(port)
        print("ready", flush=True)
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        step = 0
        while not ended.done():
            step += 1
            values |= {
                "active_power_w": float(step),
                **{f"p{index}": float(step + index) for index in range(1, POINTS)},
            }
            await device.refresh()
            await asyncio.wait({ended}, timeout=0.05)
        await device.stop()


@contextlib.asynccontextmanager
async def apart() -> AsyncIterator[int]:
    """The port of such a server in a process of its own."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", str(port), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        await process.stdout.readline()
        yield port
    finally:
        process.stdin.close()
        async with asyncio.timeout(20):
            await process.wait()


def driver_of(data: dict[str, object], port: int) -> OpcUaDriver:
    url = ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/")
    driver = create_driver("d", Template.model_validate(data), url, SystemClock())
    assert isinstance(driver, OpcUaDriver)
    return driver


async def cpu_s(ask: Callable[[], Awaitable[object]]) -> float:
    began = time.process_time()
    for _ in range(POLLS):
        await ask()
    return (time.process_time() - began) / POLLS


async def reading() -> list[Row]:
    async with apart() as port, Client(f"opc.tcp://127.0.0.1:{port}/", watchdog_intervall=60) as client:
        driver = driver_of(template(POINTS), port)
        await driver.connect()
        space = await client.get_namespace_index("urn:bench")
        names = [point.id for point in driver.asset.points]
        nodes = [ua.NodeId(f"Load.{name}", space) for name in names]
        call = ua.ReadParameters(
            TimestampsToReturn=ua.TimestampsToReturn.Both,
            NodesToRead=[ua.ReadValueId(NodeId=node, AttributeId=ua.AttributeIds.Value) for node in nodes],
        )
        ours, bare, theirs = [], [], []
        for _ in range(ROUNDS):
            ours.append(await cpu_s(driver.poll))
            bare.append(await cpu_s(lambda: client.uaclient.read(call)))
            theirs.append(await cpu_s(lambda: client.uaclient.read_attributes(nodes, ua.AttributeIds.Value)))
        assert driver.audit.delivered == POINTS
        await driver.close()
    poll, raw, usual = (min(times) * 1e6 / POINTS for times in (ours, bare, theirs))
    return [
        ("opcua.read_200_points_cpu_per_value_beyond_asyncua", poll - raw, "us", 6.0, "asyncua read", raw),
        ("opcua.read_200_points_cpu_per_value", poll, "us", None, "asyncua read_attributes", usual),
    ]


class Counting:
    """A handler of asyncua's that takes values down."""

    def __init__(self) -> None:
        self.values: dict[object, object] = {}
        self.count = 0

    def datachange_notification(self, node: object, value: object, data: object) -> None:
        """See asyncua's subscriptions."""
        del data
        self.values[node] = value
        self.count += 1


async def subscribing() -> list[Row]:
    """CPU of this process for a notification, 200 points that change every 50 ms."""
    async with apart() as port:
        driver = driver_of(template(POINTS, subscription={"sampling_ms": 50, "publishing_ms": 50}), port)
        await driver.connect()
        began, counted = time.process_time(), driver.counters["notifications"]
        await asyncio.sleep(CHANGES_S)
        ours = (time.process_time() - began) / (driver.counters["notifications"] - counted)
        await driver.close()
        async with Client(f"opc.tcp://127.0.0.1:{port}/", watchdog_intervall=60) as client:
            space = await client.get_namespace_index("urn:bench")
            handler = Counting()
            subscription = await client.create_subscription(50, handler)
            names = [point.id for point in driver.asset.points]
            nodes = [client.get_node(ua.NodeId(f"Load.{name}", space)) for name in names]
            await subscription.subscribe_data_change(nodes)
            began, counted = time.process_time(), handler.count
            await asyncio.sleep(CHANGES_S)
            theirs = (time.process_time() - began) / (handler.count - counted)
    return [("opcua.subscription_cpu_per_notification", ours * 1e6, "us", None, "asyncua", theirs * 1e6)]


async def restarting() -> list[Row]:
    """Share of 10 points of which somebody knows how they are after 3 have gone."""
    names = ["active_power_w", *(f"p{index}" for index in range(1, 10))]
    values = dict.fromkeys(names, 1.0)
    (port,) = free_ports(1)
    data = template(10, subscription={"sampling_ms": 50, "publishing_ms": 50})
    with tempfile.TemporaryDirectory() as folder:
        device = server(Path(folder), data, values)
        await device.start(port)
        driver = driver_of(data, port)
        await driver.connect()
        client = Client(f"opc.tcp://127.0.0.1:{port}/", auto_reconnect=True)
        await client.connect()
        handler = Counting()
        subscription = await client.create_subscription(50, handler)
        space = await client.get_namespace_index("urn:bench")
        nodes = [client.get_node(ua.NodeId(f"Load.{name}", space)) for name in names]
        await subscription.subscribe_data_change(nodes)
        device.faults.missing = {"p1", "p4", "p7"}
        await device.restart()
        handler.values.clear()
        await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            while not await driver.poll() or len(handler.values) < 7:
                await asyncio.sleep(0.1)
        handler.values.clear()
        values |= dict.fromkeys(names, 2.0)
        await device.refresh()
        await asyncio.sleep(1.0)
        await driver.poll()
        ours = driver.audit.accounted / driver.audit.points * 100
        theirs = len(handler.values) / len(nodes) * 100
        assert sum(value == value for value in driver.values) == 7
        await client.disconnect()
        await driver.close()
        await device.stop()
    return [("opcua.items_accounted_after_restart", ours, "%", 100.0, "asyncua", theirs)]


async def measured() -> list[Row]:
    return [*await reading(), *await subscribing(), *await restarting()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
        return
    for name, value, unit, goal, peer, peer_value in asyncio.run(measured()):
        row: dict[str, object] = {"name": name, "value": round(value, 3), "unit": unit}
        if goal is not None:
            row |= {"goal": goal, "met": value >= goal if unit == "%" else value <= goal}
        if peer_value is not None:
            row |= {"peer": peer, "peer_value": round(peer_value, 3), "ratio": round(value / peer_value, 3)}
        print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
