"""A gateway as a process at a broker, with simulated hardware, changed from afar: configuration by shadow, software by a job.

The test is the fleet's manager: it plays the service that keeps shadows and jobs (AWS IoT's message shapes, on a plain broker).
"""

import asyncio
import functools
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_edge.changes import signed_content
from wattmesh_simulators.demo_fleet import default_start, free_ports, write_fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from wattmesh_a2a.cli import main; sys.exit(main())"]
THINGS = "fleet/v1/things/home-1"


class Manager:
    """The other end of shadow and jobs."""

    def __init__(self, url, keys):
        self.transport = MqttTransport(url, "demo/manager/one")
        self.keys, self.said = keys, []

    async def start(self):
        await self.transport.subscribe(f"{THINGS}/#", self._heard)
        await self.transport.start()
        await self.transport.wait_connected(20)

    def _heard(self, inbound):
        self.said.append((inbound.topic.removeprefix(f"{THINGS}/"), json.loads(inbound.payload)))

    async def say(self, topic, fields):
        await self.transport.publish(f"{THINGS}/{topic}", json.dumps(fields).encode())

    def sign(self, operation, version, content):
        digest = hashlib.sha256(content).hexdigest()
        cloud, gateway = Address("demo", "cloud", "configuration"), Address("demo", "home-1", "gateway")
        return self.keys.sign(cloud, gateway, signed_content(operation, "home-1", version, digest))

    async def desire(self, version, text):
        wanted = {"version": version, "text": text, "signature": self.sign("configure", version, text.encode())}
        await self.say("shadow/name/config/update/delta", {"version": 1, "state": {"configuration": wanted}})

    async def until(self, found, seconds=90):
        deadline = time.monotonic() + seconds
        while not (hit := [one for one in self.said if found(*one)]):
            assert time.monotonic() < deadline, self.said[-5:]
            await asyncio.sleep(0.05)
        return hit[-1][1]

    async def reported(self, version, seconds=90):
        def found(topic, fields):
            return (
                topic == "shadow/name/config/update"
                and fields["state"]["reported"]["configuration"]["version"] == version
            )

        return await self.until(found, seconds)

    async def job(self, name, status, seconds=120):
        return await self.until(
            lambda topic, fields: topic == f"jobs/{name}/update" and fields["status"] == status, seconds
        )


def launched(command, **streams):
    return subprocess.Popen(command, **streams)


def now(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/now", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return {}


async def healthy(port):
    deadline = time.monotonic() + 60
    while not (await asyncio.to_thread(now, port)).get("healthy"):
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.05)


def wheel(path, version, edit=lambda name, content: content):
    with zipfile.ZipFile(path, "w") as archive:
        for package in ("a2a/wattmesh_a2a", "drivers/wattmesh_drivers", "edge/wattmesh_edge", "firmware_configs"):
            for file in sorted((ROOT / package).rglob("*")):
                if file.is_file() and file.suffix not in {".pyc", ".c"}:
                    name = str(file.relative_to((ROOT / package).parent))
                    content = file.read_bytes()
                    if name == "wattmesh_a2a/__init__.py":
                        content = content.replace(b'"0.1.0"', f'"{version}"'.encode())
                    archive.writestr(name, edit(name, content))


def dies_in_its_first_cycle(name, content):
    return (
        content.replace(b'"""One cycle."""', b"import os; os._exit(9)") if name.endswith("edge/control.py") else content
    )


@pytest.fixture
async def site(tmp_path):
    """Broker, hardware and gateway of one home, its manager, and a shelf of artifacts."""
    http_port, port, broker_port = free_ports(3)
    async with provision_broker(tmp_path / "broker", broker_port) as broker:
        files = write_fleet(
            tmp_path, start=default_start(daylight=True), homes=1, period_s=0.25, broker=broker.url, http_port=http_port,
            seed=1, disturbances_at_s=(), hold_s=0.0,
        )  # fmt: skip
        file = files.sites["home-1"]
        model = yaml.safe_load(file.read_text())
        model["local"], model["messaging"]["things"] = {"port": port}, "fleet/v1/things"
        model["control"]["period_s"] = 0.25  # a trial of 120 cycles is half a minute
        file.write_text(yaml.safe_dump(model))
        log = (tmp_path / "processes.log").open("a")
        ready = tmp_path / "hardware.ready"
        hardware = launched(
            [*COMMAND, "simulate", str(files.fleet), "--state", str(tmp_path / "hw"), "--ready-file", str(ready)],
            stdout=log, stderr=log,
        )  # fmt: skip
        while not ready.exists():
            await asyncio.sleep(0.05)
        keys = KeyRing.of_site("home-1", (file.parent / model["messaging"]["signing_key"]).resolve())
        manager = Manager(broker.url, keys)
        await manager.start()
        gateway = launched([*COMMAND, "gateway", "run", str(file)], stdout=log, stderr=log)
        shelf = tmp_path / "shelf"
        shelf.mkdir()
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shelf))
        handler.log_message = None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            await healthy(port)
            yield {"manager": manager, "model": model, "port": port, "gateway": gateway, "shelf": shelf,
                   "url": f"http://127.0.0.1:{server.server_port}", "file": file, "log": tmp_path / "processes.log",
                   "command": [*COMMAND, "gateway", "run", str(file)], "out": log}  # fmt: skip
        finally:
            for process in (gateway, hardware):
                if process.poll() is None:
                    process.terminate()
                    process.wait(30)
            await manager.transport.stop()
            await asyncio.to_thread(server.shutdown)
            thread.join(5)
            server.server_close()
            log.close()


async def test_a_configuration_by_shadow_is_kept_and_one_that_is_worse_is_taken_back(site):
    manager, model = site["manager"], dict(site["model"])
    await manager.reported(0)
    model["control"] = {**model["control"], "reserve_soc_percent": 25}
    await manager.desire(1, yaml.safe_dump(model))
    told = await manager.reported(1)
    assert told["state"]["reported"]["configuration"]["last"] == {"version": 1, "outcome": "good"}
    assert site["gateway"].poll() is None, "the same process"
    worse = {**model, "devices": [one for one in model["devices"] if one["id"] != "battery"]}
    worse.pop("frequency", None)
    await manager.desire(2, yaml.safe_dump(worse))

    def taken_back(topic, fields):
        last = fields.get("state", {}).get("reported", {}).get("configuration", {}).get("last") or {}
        return topic == "shadow/name/config/update" and last.get("version") == 2 and "taken back" in last["outcome"]

    told = await manager.until(taken_back)
    reported = told["state"]["reported"]["configuration"]
    assert reported["version"] == 1
    assert "battery" in reported["last"]["outcome"]
    await healthy(site["port"])
    await manager.desire(1, yaml.safe_dump(model).replace("25", "26"))
    manager.said.clear()
    await manager.say("shadow/name/config/update/delta", {"state": {"configuration": {"version": 3, "text": "x"}}})

    def refused(topic, fields):
        return topic.endswith("config/update") and fields["state"]["reported"]["configuration"]["refused"] == 3

    told = await manager.until(refused)
    assert "not signed" in told["state"]["reported"]["configuration"]["reason"]


async def test_software_by_a_job_goes_on_in_the_same_process_and_one_that_dies_is_the_old_one_again(site):
    manager, gateway = site["manager"], site["gateway"]
    await manager.reported(0)

    async def order(name, version, edit=lambda n, c: c):
        path = site["shelf"] / f"{version}.whl"
        await asyncio.to_thread(wheel, path, version, edit)
        content = path.read_bytes()
        await manager.say("jobs/notify-next", {"timestamp": 1, "execution": {
            "jobId": name, "status": "QUEUED", "versionNumber": 1, "jobDocument": {
                "operation": "upgrade", "version": version, "signature": manager.sign("upgrade", version, content),
                "artifact": {"url": f"{site['url']}/{version}.whl", "sha256": hashlib.sha256(content).hexdigest()},
            },
        }})  # fmt: skip

    await order("up", "0.9.0")
    told = await manager.job("up", "SUCCEEDED")
    assert told["statusDetails"] == {"reason": "good", "version": "0.9.0"}
    assert gateway.poll() is None, "the same process: the service manager saw no end"
    await healthy(site["port"])
    await order("down", "0.9.1", dies_in_its_first_cycle)
    await manager.job("down", "IN_PROGRESS")
    assert await asyncio.to_thread(gateway.wait, 90) == 9, "it dies in its first cycle"
    again = launched(site["command"], stdout=site["out"], stderr=site["out"])  # as the service manager does
    try:
        told = await manager.job("down", "FAILED")
        assert "ended while it was on trial" in told["statusDetails"]["reason"]
        assert told["statusDetails"]["version"] == "0.9.0", "what ran before, not the installed software"
        await healthy(site["port"])
    finally:
        again.terminate()
        assert await asyncio.to_thread(again.wait, 30) == 0
