"""Cost of the five homes under the gateway's policy with causal forecasts, against no battery and plain self-consumption.

usage: benchmarks/planning.py [--json] [--days 28] [--first-day 31]

Hourly data of CityLearn 2022, 15-minute control (load within the hour constant), seasonal forecasts made from the 14 days
before. Every home on its own: no market.
"""

import argparse
import csv
import json
import time
from datetime import time as clock_time
from importlib import resources

from wattmesh_a2a.tariff import Tariff, TariffPeriod
from wattmesh_edge.agents.planner import Storage, battery_policy, charge_level_w, value_of_storage

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


def column(name: str, home: str) -> list[float]:
    path = resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / f"{name}.csv"
    with path.open() as file:
        return [float(row[home]) * 1000 for row in csv.DictReader(file)]


def run(home: str, first: int, days: int, policy: str) -> tuple[float, list[float]]:
    load, pv = column("load_kwh", home), column("pv_kwh", home)
    storage = Storage(energy_wh=6400, power_w=5000, reserve_wh=320 if policy == "plan" else 0)
    stored, cost, feed = 1280.0, 0.0, TARIFF.feed_in_ticks()
    took: list[float] = []
    value = None
    for slot in range(first * 96, (first + days) * 96):
        hour, now = slot // 4, FIRST_NS + slot * SLOT_NS
        price = TARIFF.import_price_ticks(now)
        rest = load[hour] - pv[hour]
        if policy == "plan":
            began = time.perf_counter()
            expected = [
                sum(load[h - 24 * d] - pv[h - 24 * d] for d in range(1 + (h - hour) // 24, 15))
                / (14 - (h - hour) // 24)
                / 4
                for h in (hour + (slot % 4 + i) // 4 for i in range(96))
            ]
            prices = [TARIFF.import_price_ticks(now + i * SLOT_NS) for i in range(96)]
            solve = time.perf_counter()
            value = value_of_storage(storage, expected, prices, feed, start_ns=now, slot_s=900)
            took.append(time.perf_counter() - solve)
            del began
        slope = value.slope_ticks(now, stored) if value else None
        level = None if value is None else charge_level_w(storage, value, now, stored, expected, prices)
        power = 0.0 if policy == "none" else battery_policy(rest, stored, storage, slope, price, feed, level)
        if power > 0:
            power = min(power, (6400 - stored) / storage.efficiency * 4)
            stored += power / 4 * storage.efficiency
        else:
            power = -min(-power, max(0.0, stored - storage.reserve_wh) * storage.efficiency * 4)
            stored += power / 4 / storage.efficiency
        grid = (rest + power) / 4
        cost += grid * (price if grid > 0 else feed)
    return (cost - (stored - 1280.0) * 2200) / 1e7, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--first-day", type=int, default=31)
    arguments = parser.parse_args()
    homes = [f"b0{number}" for number in range(1, 6)]
    costs, took = {}, []
    for policy in ("none", "self", "plan"):
        results = [run(home, arguments.first_day, arguments.days, policy) for home in homes]
        costs[policy] = sum(cost for cost, _ in results)
        took += [second for _, times in results for second in times]
    took.sort()
    rows = [
        ("planning.cost_vs_no_battery", costs["plan"] / costs["none"], "ratio", 0.75, costs["none"]),
        ("planning.cost_vs_self_consumption", costs["plan"] / costs["self"], "ratio", 0.88, costs["self"]),
        ("planning.solve_median", took[len(took) // 2] * 1000, "ms", 10.0, None),
    ]
    for name, value, unit, goal, peer in rows:
        row = {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "met": value <= goal}
        if peer is not None:
            row |= {"peer": name.rpartition("_vs_")[2], "peer_value": round(peer, 2), "ratio": round(value, 4)}
        print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
