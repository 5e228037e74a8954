"""Memory, processor time and start of a gateway and of Node-RED with its Modbus nodes, side by side over the same devices.

usage: benchmarks/node_red.py FOLDER [--json] [--seconds 60]

FOLDER is one in which this was done (the override replaces a fork that is not on npm by what it was forked from):

    npm pkg set 'overrides.@openp4nr/modbus-serial=npm:modbus-serial@8.0.25'
    npm install --ignore-scripts --omit=optional node-red@4.1.1 node-red-contrib-modbus@5.60.2

Node-RED reads 23 registers of each of nine devices each second (207 values; one Modbus Read node a device), a function makes
numbers of them, and each second's values go as JSON into a file and, with QoS 1, to the broker. The gateway reads its 242 points of
twelve devices, those nine among them, decides and writes each second, keeps everything in SQLite until it is acknowledged, and has
the reflex running. So Node-RED has the smaller task. Both run at the same time on the same machine for the same seconds.
"""

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import yaml
from gateway import SETTLE_S, Site, batch_columns, ready, until
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.processes import Children

FIRST, COUNT = 40070, 23  # the registers after SunSpec's common model (header 2, common model 2 + 66)
TO_NUMBERS = (
    "msg.topic = 'node-red/' + msg.topic;"
    "msg.payload = {t: Date.now(), v: msg.payload.map(raw => (raw > 32767 ? raw - 65536 : raw) / 10)};"
    "return msg;"
)


def flow(devices: list[dict], broker: str, file: Path) -> list[dict]:
    """Node-RED's flow over `devices` (entries of a site file)."""
    address = urlsplit(broker)
    nodes: list[dict] = [
        {"id": "tab", "type": "tab", "label": "poll"},
        {"id": "broker", "type": "mqtt-broker", "broker": address.hostname, "port": str(address.port), "clientid": "node-red",
         "protocolVersion": "5", "keepalive": "60", "cleansession": True},
        {"id": "numbers", "type": "function", "z": "tab", "func": TO_NUMBERS, "outputs": 1, "wires": [["out", "file"]]},
        {"id": "out", "type": "mqtt out", "z": "tab", "topic": "", "qos": "1", "retain": "false", "broker": "broker", "wires": []},
        {"id": "file", "type": "file", "z": "tab", "filename": str(file), "filenameType": "str", "appendNewline": True,
         "overwriteFile": "false", "wires": [[]]},
    ]  # fmt: skip
    for number, device in enumerate(devices):
        connection = device["connection"]
        nodes.append(
            {"id": f"client{number}", "type": "modbus-client", "clienttype": "tcp", "bufferCommands": True,
             "tcpHost": connection["host"], "tcpPort": str(connection["port"]), "tcpType": "DEFAULT",
             "unit_id": str(connection["unit"]), "commandDelay": "1", "clientTimeout": "1000", "reconnectOnTimeout": True,
             "reconnectTimeout": "2000", "parallelUnitIdsAllowed": True}
        )  # fmt: skip
        nodes.append(
            {"id": f"read{number}", "type": "modbus-read", "z": "tab", "topic": device["id"], "unitid": str(connection["unit"]),
             "dataType": "HoldingRegister", "adr": str(FIRST), "quantity": str(COUNT), "rate": "1", "rateUnit": "s",
             "server": f"client{number}", "wires": [["numbers"], []]}
        )  # fmt: skip
    return nodes


class Process:
    """Processor time and memory of one process and of its children."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.resident = 0.0
        self.began_s = self.spent()

    def all(self) -> list[psutil.Process]:
        """It and its children."""
        return [self.root, *self.root.children(recursive=True)]

    def spent(self) -> float:
        """Seconds of processor time so far."""
        return sum(sum(one.cpu_times()[:2]) for one in self.all())

    def look(self) -> None:
        """Keep the most memory that was seen."""
        self.resident = max(self.resident, sum(one.memory_info().rss for one in self.all()) / 1e6)


def start_peer(folder: Path, home: Path, log: Path) -> subprocess.Popen:
    """Node-RED with the flow in `home`."""
    return subprocess.Popen(
        ["node", str(folder / "node_modules/node-red/red.js"), "--userDir", str(home), "--port", str(free_ports(1)[0]),
         "-D", f"nodesDir={folder / 'node_modules'}", "-D", "uiHost=127.0.0.1", str(home / "flows.json")],
        stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=folder,
    )  # fmt: skip


async def measure(folder: Path, seconds: float) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="wattmesh-node-red-") as temporary:
        state = Path(temporary)
        async with provision_broker(state / "broker", free_ports(1)[0]) as broker, Children(state / "logs") as children:
            site = Site(state, broker.url)
            devices = [
                one
                for one in yaml.safe_load(site.file.read_text())["devices"]
                if one["template"].startswith("sunspec_")
            ]
            await ready(children.start("hardware", ["simulate", str(site.files.fleet), "--state", str(state / "hw")]))
            await ready(children.start("cloud", ["cloud", "run", str(site.files.cloud)]))
            gateway = children.start("home-1", ["gateway", "run", str(site.file)])
            took = await until(site.started, 30)
            heard: dict[str, int] = {}

            def count(inbound) -> None:
                values = json.loads(inbound.payload)["v"]
                heard[inbound.topic] = heard.get(inbound.topic, 0) + len(values)

            listener = MqttTransport(broker.url, "bench/listener/one")
            await listener.subscribe("node-red/#", count)
            await listener.start()
            await listener.wait_connected(10)
            home = state / "node-red"
            home.mkdir()
            (home / "flows.json").write_text(json.dumps(flow(devices, broker.url, state / "values.jsonl")))
            peer = start_peer(folder, home, state / "logs" / "node-red.txt")
            try:
                peer_took = await until(lambda: len(heard) == len(devices), 60)
            except (SystemExit, TimeoutError):
                peer.kill()
                print((state / "logs" / "node-red.txt").read_text())
                raise
            try:
                await asyncio.sleep(SETTLE_S)
                heard.clear()
                ours, theirs = Process(gateway.process.pid), Process(peer.pid)
                start = time.monotonic()
                while time.monotonic() - start < seconds:
                    await asyncio.sleep(1)
                    ours.look()
                    theirs.look()
                elapsed = time.monotonic() - start
                spent = [100 * (one.spent() - one.began_s) / elapsed for one in (ours, theirs)]
                values, points = sum(heard.values()) / elapsed, len(await until_some(lambda: batch_columns(site)))
            finally:
                peer.terminate()
                await asyncio.to_thread(peer.wait, 20)
                await listener.stop()
    return [
        row("values a second", points, "1/s", round(values)),
        row("resident", round(ours.resident, 1), "MB", round(theirs.resident, 1)),
        row("cpu", round(spent[0], 2), "% of a core", round(spent[1], 2)),
        row("start to first values", round(took, 2), "s", round(peer_took, 2)),
    ]


async def until_some(what) -> tuple[str, ...]:
    """What is in the outbox's open segment, which is away for a moment when it is sealed."""
    for _ in range(100):
        try:
            return what()
        except FileNotFoundError:
            await asyncio.sleep(0.02)
    raise SystemExit("the gateway keeps no open segment")


def row(name: str, value: float, unit: str, peer: float) -> dict[str, object]:
    return {
        "name": f"node_red.{name}", "value": value, "unit": unit, "goal": None, "met": True,
        "peer": "Node-RED 4.1 with node-red-contrib-modbus", "peer_value": peer, "ratio": round(value / peer, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where Node-RED was installed by npm")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    arguments = parser.parse_args()
    if not (arguments.folder / "node_modules/node-red/red.js").exists():
        raise SystemExit(f"{arguments.folder} holds no node_modules/node-red; see the head of {__file__}")
    for line in asyncio.run(measure(arguments.folder.resolve(), arguments.seconds)):
        if arguments.json:
            print(json.dumps(line))
        else:
            print(
                f"{line['name']}: {line['value']} {line['unit']}; {line['peer']}: {line['peer_value']}; ratio {line['ratio']}"
            )


if __name__ == "__main__":
    main()
