"""How long decisions of the cloud's agents take with 100 of them at once, beside a dead model too, and what the agents weigh.

usage: benchmarks/agents.py [--json] [--agents 100] [--rounds 20]

A decision: situation, policy, guards, effect, memory in SQLite. All agents decide at the same time; a latency is from the call to
the policy's effect written down. The figures with a model have one attached that never answers, in all of its places. Memory is
that of a process with the five agents, their services and 100 sites after a day of decisions.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_cloud.agents.approvals import ApprovalQueue
from wattmesh_cloud.agents.controls import Budget, BudgetLimits, KillSwitch
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.desk import Desk
from wattmesh_cloud.agents.evaluation import load
from wattmesh_cloud.agents.guards import Guards
from wattmesh_cloud.agents.memory import LocalMemory
from wattmesh_cloud.audit import AuditLog

NOW = 1_780_315_200 * NS_PER_S


class Effects:
    """Takes what passes."""

    done = 0

    async def apply(self, agent, proposal):
        self.done += 1


class Dead:
    """A model that never answers."""

    name = "dead"
    asked = 0

    async def refine(self, task):
        self.asked += 1
        await asyncio.Event().wait()

    async def close(self): ...


async def latencies(agents, rounds, model):
    """Milliseconds of every decision."""
    cases, took = load(), []
    with tempfile.TemporaryDirectory() as folder:
        database, audit = Database(Path(folder) / "agents.sqlite"), AuditLog(Path(folder) / "audit.log")
        budget = Budget(database, BudgetLimits(tokens=10**9, cost=1e6, calls=10**6), input_price=0, output_price=0)
        effects = Effects()
        desk = Desk(
            ManualClock(NOW), Guards(database), effects, LocalMemory(database), ApprovalQueue(database, audit),
            KillSwitch(database, audit), budget, reasoner=model, deadline_s=30.0, tokens=1000,
        )  # fmt: skip

        async def one(case):
            began = time.perf_counter()
            await desk.decide(case.agent, lambda: case.situation)
            took.append((time.perf_counter() - began) * 1000)

        for number in range(rounds):
            await asyncio.gather(*(one(cases[(number + index) % len(cases)]) for index in range(agents)))
        await desk.finish()
        database.close()
        audit.close()
    return sorted(took)


def weight():
    """Resident MB of a process with the five agents at work, and what it has imported of the heavy libraries."""
    answer = subprocess.run([sys.executable, __file__, "--weigh"], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


async def weigh():
    """In the process that is weighed."""
    import psutil
    from wattmesh_a2a.envelope import CLOUD_UNIT, INGEST_AGENT, Address
    from wattmesh_a2a.forecast import Forecast
    from wattmesh_a2a.messages import Acknowledged, IntervalEnergy
    from wattmesh_cloud.agents.config import AgentsConfig
    from wattmesh_cloud.agents.looks import Sources
    from wattmesh_cloud.agents.service import AgentsService
    from wattmesh_cloud.forecasting.config import ForecastingConfig
    from wattmesh_cloud.forecasting.service import ForecastingService
    from wattmesh_cloud.grid.config import GridConfig
    from wattmesh_cloud.grid.service import GridService
    from wattmesh_cloud.live import LiveView
    from wattmesh_cloud.market.config import MarketConfig
    from wattmesh_cloud.market.service import MarketService
    from wattmesh_cloud.store.sqlite import SqliteStore

    class Messenger:
        address, session = Address("demo", CLOUD_UNIT, INGEST_AGENT), "bench"

        async def request(self, *_, **__):
            return Acknowledged()

        async def emit(self, *_, **__): ...

        def on_request(self, *_, **__): ...

        def on_event(self, *_, **__): ...

    sites = [f"home-{number}" for number in range(100)]
    people = [{"id": one, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0} for one in sites]
    config = MarketConfig.model_validate(
        {"area": "area", "tariff": {"feed_in_price": 0.05, "default_price": 0.30}, "participants": people}
    )
    clock, messenger = ManualClock(NOW), Messenger()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        store, audit = SqliteStore(state / "store.sqlite"), AuditLog(state / "audit.log")
        common = (store, messenger, clock, state, "demo")
        rows = tuple((80.0, 100.0, 120.0) for _ in range(192))

        def forecasts():
            now = clock.utc_ns()
            start = now - now % (900 * NS_PER_S)
            return {
                site: {
                    name: Forecast(
                        site_id=site, quantity=name, issued_ns=now, start_ns=start, slot_s=900, levels=(0.1, 0.5, 0.9),
                        values=rows, model="bench",
                    )
                    for name in ("load_wh", "pv_wh")
                }
                for site in sites
            }  # fmt: skip

        async def pay(*_): ...

        latest = forecasts()
        sources = Sources(
            market_config=config, forecasts=lambda: latest, market=MarketService(config, *common),
            grid=GridService(GridConfig(), *common, forecasts=lambda: latest, pay=pay),
            forecasting=ForecastingService(ForecastingConfig(), *common), live=LiveView(),
        )  # fmt: skip
        service = AgentsService(AgentsConfig(), sources, *common, audit=audit)
        service.register()
        for site in sites:
            for back in range(672, 0, -1):
                reading = IntervalEnergy(
                    site_id=site, slot_start_ns=NOW - back * 900 * NS_PER_S, slot_s=900, import_wh=100, export_wh=0, pv_wh=0,
                    battery_charge_wh=0, battery_discharge_wh=0, load_wh=100 + back % 96, method="register", complete=True,
                )  # fmt: skip
                service.on_record(site, reading)
        for _ in range(6):
            clock.set_ns(clock.monotonic_ns() + 3600 * NS_PER_S)
            latest = forecasts()
            await service.round(sites=True)
        heavy = [name for name in ("strands", "boto3", "botocore", "openai", "mcp") if name in sys.modules]
        print(
            json.dumps({"mb": psutil.Process().memory_info().rss / 1e6, "heavy": heavy, "counts": service.desk.counts})
        )
        await service.finish()
        service.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--weigh", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.weigh:
        asyncio.run(weigh())
        return
    asyncio.run(latencies(10, 2, None))  # schemas are made at the first use
    alone = asyncio.run(latencies(arguments.agents, arguments.rounds, None))
    beside = asyncio.run(latencies(arguments.agents, arguments.rounds, Dead()))
    weighed = weight()
    rows = [
        ("agents.decision_median", alone[len(alone) // 2], "ms", 50.0, None),
        ("agents.decision_p99", alone[int(len(alone) * 0.99)], "ms", 2000.0, None),
        ("agents.decision_median_dead_model", beside[len(beside) // 2], "ms", 50.0, alone[len(alone) // 2]),
        (
            "agents.decision_p99_dead_model",
            beside[int(len(beside) * 0.99)],
            "ms",
            2000.0,
            alone[int(len(alone) * 0.99)],
        ),
        ("agents.memory", weighed["mb"], "MB", 200.0, None),
        ("agents.heavy_imports", len(weighed["heavy"]), "modules", 0, None),
    ]
    for name, value, unit, goal, peer in rows:
        row = {"name": name, "value": round(value, 2), "unit": unit, "goal": goal, "met": value <= goal}
        if peer is not None:
            row |= {"peer": "without a model", "peer_value": round(peer, 2), "ratio": round(value / peer, 3)}
        print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
