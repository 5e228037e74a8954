"""A gateway as a process, with simulated hardware and no cloud: ended in order, killed, started again."""

import json
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from wattmesh_a2a.telemetry import ColumnBatch, decode
from wattmesh_edge.outbox import Outbox
from wattmesh_simulators.demo_fleet import default_start, free_ports, write_fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

COMMAND = [sys.executable, "-c", "import sys; from wattmesh_a2a.cli import main; sys.exit(main())"]


class Home:
    """One home: hardware that stays, a gateway that comes and goes."""

    def __init__(self, folder: Path) -> None:
        broker, http, self.port = free_ports(3)
        files = write_fleet(
            folder, start=default_start(daylight=True), homes=1, period_s=1.0, broker=f"mqtt://127.0.0.1:{broker}",
            http_port=http, seed=1, disturbances_at_s=(), hold_s=0.0,
        )  # fmt: skip
        self.site = files.sites["home-1"]
        model = yaml.safe_load(self.site.read_text())
        model["local"] = {"port": self.port}
        self.site.write_text(yaml.safe_dump(model))
        self.state = (self.site.parent / model["state"]).resolve()
        self.log = (folder / "gateway.log").open("a")
        ready = folder / "hardware.ready"
        command = [*COMMAND, "simulate", str(files.fleet), "--state", str(folder / "hw"), "--ready-file", str(ready)]
        self.hardware = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.gateway: subprocess.Popen[bytes] | None = None
        until(ready.exists, 60)

    def start(self) -> float:
        """Seconds until the first complete cycle with every setpoint applied."""
        began = time.monotonic()
        self.gateway = subprocess.Popen([*COMMAND, "gateway", "run", str(self.site)], stdout=self.log, stderr=self.log)
        until(lambda: self.now().get("healthy", False), 60)
        return time.monotonic() - began

    def now(self) -> dict[str, object]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/now", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return {}

    def end(self, number: int) -> int:
        assert self.gateway is not None
        self.gateway.send_signal(number)
        return self.gateway.wait(60)


def until(what, seconds):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)  # a process of its own: there is nothing to await


@pytest.fixture
def home(tmp_path):
    one = Home(tmp_path)
    yield one
    for process in (one.gateway, one.hardware):
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(20)
    one.log.close()


def test_ended_in_order_the_site_is_safe_and_all_is_sealed(home):
    home.start()
    began = time.monotonic()
    assert home.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 10, "no broker is there: nobody is waited for"
    assert (home.state / "report.json").exists()
    done = subprocess.run(
        [*COMMAND, "gateway", "why", str(home.site), "2999-01-01"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "battery" in done.stdout


def test_killed_again_and_again_it_is_in_safe_control_within_five_seconds(home):
    rng, took = random.Random(3), []
    for _ in range(4):
        took.append(home.start())
        time.sleep(rng.uniform(0.2, 2.5))
        home.end(signal.SIGKILL)
    assert max(took) <= 10, (
        took
    )  # 5 s on a machine of its own; this one is shared: benchmarks/gateway.py has the figure
    took.append(home.start())
    assert home.end(signal.SIGTERM) == 0
    outbox = Outbox(home.state / "outbox", "home-1", "test", ())
    times = [
        moment
        for pending in outbox.pending(100_000)
        if isinstance(batch := decode(pending.frame), ColumnBatch)
        for moment in batch.times_ns
    ]
    assert len(times) == len(set(times)) > 5
    assert outbox.counters()["measured.points"] > 0
    outbox.close()
