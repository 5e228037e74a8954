"""Plans of single homes: what they save on the recorded year, and what they take to make.

usage: benchmarks/planning.py [--json] [--days 7] [--first-days 35,125,215,305] [--homes b01,b02,b03,b04,b05] [--only solve,cost]

Hourly data of CityLearn 2022 (load within the hour constant), 15-minute control, the seasonal model's forecasts from what was
metered before each hour. ``cloud``: the site planner's band, followed as a gateway does. ``gateway``: the gateway alone, by value
of storage. Against no battery and against plain self-consumption with the same battery, each home on its own; and all homes behind
one meter, which is what a market without fees makes of them. Energy left in a battery counts at the cheapest price.

``solve``: one site, 48 h at 15 min with battery, PV, tariff, demand charge and limits, rolled on by 5 min with what a forecast
moves; and 100 sites each 5 min by one planner. Memory is the peak of a process of its own that plans one site.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from datetime import time as clock_time
from importlib import resources

import numpy as np
from wattmesh_a2a.tariff import Tariff, TariffPeriod
from wattmesh_cloud.forecasting.model import LEVELS, SeasonalQuantiles
from wattmesh_cloud.planning.inputs import envelope, mean_of
from wattmesh_cloud.planning.model import SitePlanner
from wattmesh_cloud.planning.problem import Battery, Situation
from wattmesh_edge.agents.planner import Storage, battery_policy, charge_level_w, follow_band, value_of_storage

FIRST_NS, SLOT_NS = 1_659_333_600 * 10**9, 900 * 10**9
SUMMER = (6, 7, 8, 9)
TARIFF = Tariff(
    default_price=0.21,
    feed_in_price=0.05,
    time_zone="Etc/GMT+7",
    periods=(
        TariffPeriod(price=0.54, months=SUMMER, days="weekday", start=clock_time(15), end=clock_time(20)),
        TariffPeriod(price=0.40, months=SUMMER, days="weekend", start=clock_time(15), end=clock_time(20)),
        TariffPeriod(price=0.22, months=SUMMER),
        TariffPeriod(price=0.50, start=clock_time(15), end=clock_time(20)),
    ),
)
STEPS, BEGIN_WH = 192, 1280.0
STORAGE = Storage(energy_wh=6400, power_w=5000)
BATTERY = Battery(energy_wh=6400, power_w=5000)
PRICES = [TARIFF.import_price_ticks(FIRST_NS + slot * SLOT_NS) for slot in range(96 * 370)]
FEED_IN = TARIFF.feed_in_ticks()

ALONE = """
import numpy as np
from wattmesh_cloud.planning.model import SitePlanner
from wattmesh_cloud.planning.problem import Battery, Situation
prices, flat = np.where(np.arange(192) % 96 < 60, 2000.0, 5000.0), np.full(192, 200.0)
planner = SitePlanner(192, 900)
for step in range(100):
    now = Situation(start_ns=0, stored_wh=40.0 * step, load_wh=flat + step, pv_wh=flat, spread_wh=flat, import_ticks=prices,
        feed_in_ticks=flat, import_limit_w=1e4, export_limit_w=1e4, demand_ticks=5e4)
    assert planner.plan(Battery(energy_wh=6400, power_w=5000), now) is not None
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


def column(name: str, home: str) -> np.ndarray:
    path = resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / f"{name}.csv"
    with path.open() as file:
        return np.array([float(row[home]) * 1000 for row in csv.DictReader(file)])


class Forecaster:
    """Mean and spread of load and PV on quarter hours, made anew each hour."""

    def __init__(self, load, pv):
        self._load, self._pv, self._model = load, pv, SeasonalQuantiles()

    def at(self, hour):
        found = []
        for values, edge in ((self._load, -1), (self._pv, 0)):
            first = max(0, hour - 28 * 24)
            table = self._model.predict(values[first:hour], first % 24, STEPS // 4 + 1, 24) / 4
            mean = mean_of(table, np.array(LEVELS))
            found.append((np.repeat(mean, 4), np.repeat(np.abs(table[:, edge] - mean), 4)))
        (load, load_off), (pv, pv_off) = found
        return load, pv, np.hypot(load_off, pv_off)


def run(home, first, days, policy, planner):
    """Exchange of each quarter hour, Wh, and what is left in the battery."""
    load, pv = column("load_kwh", home), column("pv_kwh", home)
    forecaster, stored, grid = Forecaster(load, pv), BEGIN_WH, []
    one_way = STORAGE.efficiency
    for slot in range(first * 96, (first + days) * 96):
        hour, now, rest = slot // 4, FIRST_NS + slot * SLOT_NS, load[slot // 4] - pv[slot // 4]
        if slot % 4 == 0 and policy in {"cloud", "gateway"}:
            expected = forecaster.at(hour)
        if policy == "none":
            power = 0.0
        elif policy == "self":
            power = battery_policy(rest, stored, STORAGE, None, PRICES[slot], FEED_IN)
        elif policy == "cloud":
            part = slice(slot % 4, slot % 4 + STEPS)
            plan = planner.plan(BATTERY, situation(*(one[part] for one in expected), slot, now, stored), key=home)
            power = follow_band(rest, (float(plan.min_grid_w[0]), float(plan.max_grid_w[0])), stored, STORAGE)
        else:
            part = slice(slot % 4, slot % 4 + 96)
            net, prices = list(expected[0][part] - expected[1][part]), PRICES[slot : slot + 96]
            spread = list(expected[2][part] / 1.2816)
            value = value_of_storage(STORAGE, net, prices, FEED_IN, start_ns=now, slot_s=900, spread_wh=spread)
            level = charge_level_w(STORAGE, value, now, stored, net, prices)
            slope = value.slope_ticks(now, stored)
            power = battery_policy(rest, stored, STORAGE, slope, PRICES[slot], FEED_IN, level)
        if power > 0:
            power = min(power, (STORAGE.energy_wh - stored) / one_way * 4)
            stored += power / 4 * one_way
        else:
            power = -min(-power, stored * one_way * 4)
            stored += power / 4 / one_way
        grid.append((rest + power) / 4)
    return np.array(grid), stored


def situation(load, pv, spread, slot, now, stored, **changes):
    base = {
        "start_ns": now, "stored_wh": stored, "load_wh": load, "pv_wh": pv, "spread_wh": spread,
        "import_ticks": np.array(PRICES[slot : slot + STEPS], dtype=float), "feed_in_ticks": np.full(STEPS, float(FEED_IN)),
        "import_limit_w": 12_000.0, "export_limit_w": 8_000.0,
    }  # fmt: skip
    return Situation(**(base | changes))


def money(grid, first, stored):
    """Currency; what is in the battery more than at the begin counts at the cheapest price."""
    prices = np.array(PRICES[first * 96 : first * 96 + len(grid)], dtype=float)
    return float((np.where(grid > 0, prices, FEED_IN) * grid).sum() - (stored - BEGIN_WH) * 2200 * 0.95) / 1e7


def costs(homes, firsts, days):
    planner = SitePlanner(STEPS, 900)
    alone, together = {}, {}
    for policy in ("none", "self", "gateway", "cloud"):
        results = {(home, first): run(home, first, days, policy, planner) for home in homes for first in firsts}
        for home in homes:
            alone[policy, home] = sum(
                money(*[results[home, first][0], first, results[home, first][1]]) for first in firsts
            )
        together[policy] = 0.0
        for first in firsts:
            grid = sum(results[home, first][0] for home in homes)
            left = sum(results[home, first][1] - BEGIN_WH for home in homes)
            together[policy] += money(grid, first, BEGIN_WH + left)
    for policy in ("gateway", "cloud"):
        for peer, goal in (("none", 0.75), ("self", 0.88)):
            name = "no_battery" if peer == "none" else "self_consumption"
            totals = [sum(alone[which, home] for home in homes) for which in (policy, peer)]
            yield f"planning.{policy}_cost_vs_{name}", totals[0] / totals[1], "ratio", goal, totals[1]
            value = together[policy] / together[peer]
            yield f"planning.{policy}_community_cost_vs_{name}", value, "ratio", goal, together[peer]
        for home in homes:
            value = alone[policy, home] / alone["self", home]
            yield f"planning.{policy}_cost_vs_self_consumption.{home}", value, "ratio", None, alone["self", home]


def solves():
    chance = np.random.default_rng(1)
    load, pv = column("load_kwh", "b01"), column("pv_kwh", "b01")
    forecaster = Forecaster(load, pv)

    def at(step, site, **changes):
        """The situation of a site at a step of 5 min; a forecast is new each hour, and moved a little each time."""
        slot, gone = 96 * 60 + step // 3, step % 3 * 300.0
        mean_load, mean_pv, spread = known[slot // 4]
        part = slice(slot % 4, slot % 4 + STEPS)
        factor = float(chance.uniform(0.97, 1.03)) * (1 + site / 200)
        return situation(
            mean_load[part] * factor, mean_pv[part], spread[part], slot, FIRST_NS + slot * SLOT_NS,
            1000.0 + 40 * (site % 100), gone_s=gone, demand_ticks=50_000.0, highest_w=2000.0, **changes,
        )  # fmt: skip

    known = {hour: forecaster.at(hour) for hour in range(24 * 60, 24 * 60 + 50)}
    planner, took = SitePlanner(STEPS, 900), []
    for step in range(500):
        now = at(step, 0)
        began = time.perf_counter()
        planner.plan(BATTERY, now, key="site")
        took.append(time.perf_counter() - began)
    yield "planning.solve_median", float(np.median(took[20:])) * 1000, "ms", 5.0, None
    yield "planning.solve_p99", float(np.quantile(took[20:], 0.99)) * 1000, "ms", None, None
    peak = float(subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True).stdout)
    yield "planning.memory_peak", peak, "MB", 60.0, None
    fleet, spent = SitePlanner(STEPS, 900), []
    for step in range(4):
        situations = [at(3 * step, site) for site in range(100)]
        began = time.process_time()
        for site, now in enumerate(situations):
            fleet.plan(BATTERY, now, key=str(site))
        spent.append(time.process_time() - began)
    yield "planning.hundred_sites_core_share", float(np.median(spent[1:])) / 300 * 100, "%", 25.0, None
    planner, took = SitePlanner(STEPS, 900, loads=2), []
    for step in range(150):
        start = 96 - step // 3
        windows = [(start - 96 + 92, start + 24, 8000.0), (start + 92, start + 120, 8000.0)]
        now = at(step, 0, loads=tuple(envelope(name, STEPS, 900, 7000.0, windows) for name in ("ev", "boiler")))
        began = time.perf_counter()
        planner.plan(BATTERY, now, key="site")
        took.append(time.perf_counter() - began)
    yield "planning.solve_median_with_two_flexible_loads", float(np.median(took[10:])) * 1000, "ms", None, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--first-days", default="35,125,215,305")
    parser.add_argument("--homes", default="b01,b02,b03,b04,b05")
    parser.add_argument("--only", default="solve,cost")
    arguments = parser.parse_args()
    rows = []
    if "solve" in arguments.only.split(","):
        rows.append(solves())
    if "cost" in arguments.only.split(","):
        firsts = [int(day) for day in arguments.first_days.split(",")]
        rows.append(costs(arguments.homes.split(","), firsts, arguments.days))
    for part in rows:
        for name, value, unit, goal, peer in part:
            row = {"name": name, "value": round(float(value), 4), "unit": unit}
            if goal is not None:
                row |= {"goal": goal, "met": bool(value <= goal)}
            if peer is not None:
                row |= {"peer": name.split("_vs_")[1].split(".")[0], "peer_value": round(float(peer), 2)}
            print(json.dumps(row) if arguments.json else row, flush=True)


if __name__ == "__main__":
    main()
