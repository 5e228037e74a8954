"""The console under 20 viewers of 100 sites: page ready, live update, CPU and memory of its process, queries.

The console's process holds API, pages and 100 sites that read once a second, each at its own moment; market and agents stand and
do not run, so that what is measured is the console. Twenty viewers follow the live events; a browser opens pages meanwhile.
"""

import argparse
import asyncio
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

import httpx
import psutil

SITES, VIEWERS, SECONDS = 100, 20, 30
NS = 1_000_000_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ("meter.active_power_w", "meter.energy_import_wh", "meter.frequency_hz", "battery.active_power_w", "battery.soc_percent",
         "inverter.active_power_w", "inverter.energy_produced_wh")  # fmt: skip


class Silent:
    """A messenger without a broker."""

    def __init__(self, address):
        self.address, self.session = address, "bench"

    def on_request(self, *_, **__): ...
    def on_event(self, *_, **__): ...
    def on_presence(self, *_): ...
    def on_telemetry(self, *_): ...
    def counters(self):
        return {}


def built(state: Path):
    from wattmesh_a2a.clock import SystemClock
    from wattmesh_a2a.envelope import Address
    from wattmesh_cloud.access.commands import Commands
    from wattmesh_cloud.access.door import Access
    from wattmesh_cloud.access.jobs import Jobs
    from wattmesh_cloud.access.model import Tenants
    from wattmesh_cloud.access.store import AccessStore
    from wattmesh_cloud.agents.config import AgentsConfig
    from wattmesh_cloud.agents.looks import Sources
    from wattmesh_cloud.agents.service import AgentsService
    from wattmesh_cloud.api import Services, create_api
    from wattmesh_cloud.audit import AuditLog
    from wattmesh_cloud.console import attach
    from wattmesh_cloud.forecasting.config import ForecastingConfig
    from wattmesh_cloud.forecasting.service import ForecastingService
    from wattmesh_cloud.grid.config import GridConfig
    from wattmesh_cloud.grid.service import GridService
    from wattmesh_cloud.ingest import Ingest
    from wattmesh_cloud.live import LiveView
    from wattmesh_cloud.market.areas import Markets
    from wattmesh_cloud.market.config import MarketConfig
    from wattmesh_cloud.store.sqlite import SqliteStore
    from wattmesh_cloud.view import CloudView

    clock, store = SystemClock(), SqliteStore(state / "store.sqlite")
    messenger = Silent(Address("bench", "cloud", "ingest"))
    sites = [f"home-{number:03d}" for number in range(SITES)]
    people = [{"id": one, "import_limit_w": 12000, "export_limit_w": 8000, "credit_limit": 200.0} for one in sites]
    config = MarketConfig.model_validate(
        {"area": "bench", "tariff": {"feed_in_price": 0.05, "default_price": 0.3}, "participants": people}
    )
    common = (store, messenger, clock, state, "bench")
    audit = AuditLog(state / "audit.log")
    forecasting, markets = ForecastingService(ForecastingConfig(), *common), Markets([config], *common)

    async def pay(*_): ...

    view = CloudView(
        clock=clock, store=store, live=LiveView(), ingest=Ingest(store, messenger, clock, "bench"), market=markets.first,
        markets=markets, forecasting=forecasting,
        grid=GridService(GridConfig(), *common, forecasts=lambda: forecasting.latest, pay=pay),
        strategy=AgentsService(
            AgentsConfig(), Sources(market_config=config, forecasts=lambda: forecasting.latest), *common, audit=audit
        ),
    )  # fmt: skip
    for site in sites:
        assets = [{"id": name, "kind": name, "template": "bench", "rated_power_w": 5000.0, "rated_energy_wh": 6400.0}
                  for name in ("meter", "battery", "inverter")]  # fmt: skip
        view.on_presence(site, {"site_id": site, "time_zone": "UTC", "import_limit_w": 12000.0, "assets": assets})
    access = Access(
        store=AccessStore(state / "access.sqlite", clock, Tenants(sites={}), idle_s=1800, longest_s=43_200), audit=audit,
        fleet=clock, demo=True, requests_per_s=10_000.0,
    )  # fmt: skip
    services = Services(
        view=view, access=access, commands=Commands(state / "commands.sqlite", audit, clock, clock),
        jobs=Jobs(state / "jobs", clock), audit=state / "audit.log",
    )  # fmt: skip
    app = create_api(services)
    attach(app)
    fill(store, sites)
    return app, view, sites


def fill(store, sites):
    """A day of ten-second samples of one site, and of every site a week of quarter hours and a hundred decisions."""
    from wattmesh_a2a.telemetry import ColumnBatch
    from wattmesh_cloud.store.base import Item, Table

    now = time.time_ns()
    rows = 8640
    times = array("q", [now - (rows - index) * 10 * NS for index in range(rows)])
    for at in range(0, rows, 360):
        part = times[at : at + 360]
        waves = [[1000 * math.sin(one / 3.6e12) + number for one in part] for number in range(len(NAMES))]
        values = tuple(array("d", wave) for wave in waves)
        store.append(
            [ColumnBatch(site_id=sites[0], session="s", stream="points", sequence=at // 360 + 1, columns=NAMES, times_ns=part,
                         values=values, qualities=tuple(bytes(len(part)) for _ in NAMES))], {},
        )  # fmt: skip
    slot = now - now % (900 * NS)
    for site in sites:
        base = {"site_id": site, "slot_s": 900, "import_wh": 500, "export_wh": 0, "pv_wh": 100, "battery_charge_wh": 0,
                "battery_discharge_wh": 0, "load_wh": 600, "method": "register", "complete": True}  # fmt: skip
        starts = [slot - back * 900 * NS for back in range(1, 673)]
        store.put(
            Table.CONSUMER_METRICS,
            [Item(partition=site, time_ns=one, id="interval", data={**base, "slot_start_ns": one}) for one in starts],
        )
        decision = {"target_w": 500.0, "decided_by": "producer:plan", "limited_by": None, "requested_w": 500.0,
                    "remaining_w": 0.0, "conflicts": []}  # fmt: skip
        store.put(
            Table.PRODUCER_METRICS,
            [Item(partition=f"{site}#decisions", time_ns=now - back * 10 * NS, id="battery",
                  data={**decision, "asset_id": "battery", "time_ns": now - back * 10 * NS}) for back in range(100)],
        )  # fmt: skip


async def feed(view, sites):
    """Every site reads once a second, at its own moment."""
    from wattmesh_a2a.telemetry import ColumnBatch

    sequence = 0
    begin = time.monotonic()
    while True:
        for number, site in enumerate(sites):
            due = begin + sequence + number / len(sites)
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            now = time.time_ns()
            values = [float(sequence % 900), 5.0, 50.0, -200.0, 50.0, -700.0, 9.0]
            view.live.on_columns(
                ColumnBatch(site_id=site, session="s", stream="points", sequence=sequence, columns=NAMES,
                            times_ns=array("q", [now]),
                            values=tuple(array("d", [one]) for one in values), qualities=tuple(b"\0" for _ in NAMES))
            )  # fmt: skip
        sequence += 1


async def serve(port: int, state: Path):
    import uvicorn

    app, view, sites = built(state)
    feeding = asyncio.create_task(feed(view, sites))
    await uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
    ).serve()
    feeding.cancel()


def follow(url, until, latencies, lock):
    """A viewer: the age of each reading as its event arrives, ms."""
    mine = []
    with (
        httpx.Client(timeout=30) as client,
        client.stream("GET", f"{url}/api/v1/live?topic=fleet&topic=market") as answer,
    ):
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: ") and name == "fleet":
                data, now = json.loads(line[6:]), time.time_ns()
                if not data["all"]:
                    mine += [(now - one["time_ns"]) / 1e6 for one in data["sites"]]
            if time.monotonic() > until:
                break
    with lock:
        latencies.extend(mine)


def pages(url):
    """Seconds from asking for a page until its data stand there, a fresh browser context each."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for path in ("/", "/site/home-000", "/market", "/", "/site/home-001", "/system", "/", "/devices"):
            page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
            began = time.monotonic()
            page.goto(url + path)
            page.wait_for_selector("body[data-ready]", timeout=20_000)
            found.append(time.monotonic() - began)
            page.context.close()
        browser.close()
    return found


def queries(url):
    """Milliseconds of list and chart queries."""
    now = time.time_ns()
    day = f"start_ns={now - 86_400 * NS}&end_ns={now}"
    asked = [
        "sites?limit=100", "sites/home-000", "sites/home-000/intervals?limit=672", "sites/home-000/decisions?limit=100",
        f"sites/home-000/readings?column={NAMES[0]}&column={NAMES[3]}&column={NAMES[4]}&step_s=300&{day}",
        f"sites/home-000/readings?column={NAMES[0]}&step_s=60&{day}", "sites/home-000/flows", "market/positions", "alarms",
        "sites/home-000/plan",
    ]  # fmt: skip
    found = []
    with httpx.Client(timeout=30) as client:
        for number in range(200):
            began = time.monotonic()
            answer = client.get(f"{url}/api/v1/{asked[number % len(asked)]}")
            found.append((time.monotonic() - began) * 1000)
            assert answer.status_code == 200, answer.text
    return found


def p95(values):
    return sorted(values)[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)] if values else math.nan


def measure():
    from socket import socket

    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, __file__, "--serve", str(port), folder])
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/api/v1/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            return watched(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(15)


def watched(url, probe):
    latencies, lock = [], threading.Lock()
    until = time.monotonic() + SECONDS
    viewers = [threading.Thread(target=follow, args=(url, until, latencies, lock)) for _ in range(VIEWERS)]
    for one in viewers:
        one.start()
    time.sleep(2)
    before, began = probe.cpu_times(), time.monotonic()
    opened = pages(url) if CHROMIUM else []
    asked = queries(url)
    for one in viewers:
        one.join()
    after, elapsed = probe.cpu_times(), time.monotonic() - began
    cores = (after.user + after.system - before.user - before.system) / elapsed
    memory = probe.memory_info().rss / 1e6
    return [
        ("page ready, longest of 8 while 20 look", max(opened, default=math.nan), "s", 1.5),
        ("page ready, median", sorted(opened)[len(opened) // 2] if opened else math.nan, "s", 1.5),
        (
            "live update behind the reading, p99 of all viewers",
            sorted(latencies)[int(0.99 * len(latencies))],
            "ms",
            1000,
        ),
        ("live update, longest", max(latencies), "ms", 1000),
        ("console process, CPU", cores, "cores", 1.0),
        ("console process, resident", memory, "MB", 300),
        ("list and chart queries, p95 of 200", p95(asked), "ms", 200),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "STATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(int(arguments.serve[0]), Path(arguments.serve[1])))
        return
    for name, value, unit, goal in measure():
        met = value <= goal
        if arguments.json:
            print(json.dumps({"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "met": met}))
        else:
            print(f"{name}: {value:.3f} {unit} (goal {goal}): {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
