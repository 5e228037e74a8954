"""Reading the store: an hour at 1 s, a year of 15-minute means, the fleet at a glance.

usage: benchmarks/queries.py [--json] [--days 365]

The year is made of samples every 15 min of 100 points (a chunk's size does not depend on how many samples it counts) and rolled
up as in the cloud; the hour has samples of 200 points every second. Each figure is the median of 9 runs, the first one apart.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from array import array
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.telemetry import ColumnBatch
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.store.base import Retention
from wattmesh_cloud.store.sqlite import SqliteStore

DAY_S, START_NS = 86_400, 19_358 * 86_400 * NS_PER_S
KEPT = ("meter.active_power_w", "meter.energy_import_wh", "meter.frequency_hz")
HOUR_COLUMNS = ("meter.active_power_w", "pv.active_power_w", "battery.active_power_w", "battery.soc_percent")


def names(points: int) -> tuple[str, ...]:
    return (*KEPT, *HOUR_COLUMNS[1:], *(f"asset{index // 10}.point{index % 10}_w" for index in range(points - 6)))


def batch(site: str, sequence: int, start_ns: int, rows: int, step_s: int, columns: tuple[str, ...]) -> ColumnBatch:
    times = array("q", [start_ns + row * step_s * NS_PER_S for row in range(rows)])
    wave = array("d", [1000 * math.sin(time_ns / NS_PER_S / 7000) for time_ns in times])
    return ColumnBatch(
        site_id=site, session="bench", stream="points", sequence=sequence, columns=columns, times_ns=times,
        values=(wave,) * len(columns), qualities=(bytes(rows),) * len(columns),
    )  # fmt: skip


def timed(call) -> tuple[float, float]:
    """First run and the median of nine, in ms."""
    took = []
    for _ in range(10):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    return took[0], statistics.median(took[1:])


def measure(days: int, folder: Path) -> list[dict[str, object]]:
    store = SqliteStore(folder / "store.sqlite", Retention(minutes_s=31 * DAY_S))
    columns, end_ns = names(100), START_NS + days * DAY_S * NS_PER_S
    for first in range(0, days, 10):
        span = range(first, min(days, first + 10))
        store.append([batch("year", day, START_NS + day * DAY_S * NS_PER_S, 96, 900, columns) for day in span], {})
    wide = names(200)
    store.append([batch("hour", n, end_ns - 3600 * NS_PER_S + n * 10 * NS_PER_S, 10, 1, wide) for n in range(360)], {})
    began = time.perf_counter()
    store.maintain(end_ns + 60 * NS_PER_S)  # the last hour is still open
    rolled_s = time.perf_counter() - began
    hour = timed(lambda: store.samples("hour", HOUR_COLUMNS, end_ns - 3600 * NS_PER_S, end_ns, step_s=1))
    minutes = timed(lambda: store.samples("hour", HOUR_COLUMNS, end_ns - 3600 * NS_PER_S, end_ns, step_s=60))
    one = store.samples("year", KEPT[:1], START_NS, end_ns, step_s=900)[0]
    assert len(one.times_ns) == days * 96, len(one.times_ns)
    year = timed(lambda: store.samples("year", KEPT[:1], START_NS, end_ns, step_s=900))
    year_five = timed(lambda: store.samples("year", names(100)[:5], START_NS, end_ns, step_s=900))
    live = LiveView()
    for site in range(100):
        live.on_columns(batch(f"site-{site}", 1, end_ns, 10, 1, wide))
    fleet = timed(lambda: json.dumps({name: [one.time_ns, one.flows] for name, one in live.sites.items()}))
    store.close()
    return [
        row("queries.hour_at_1_s", hour[1], 50),
        row("queries.hour_at_1_s.first", hour[0], 50),
        row("queries.hour_at_1_min_open", minutes[1], None),
        row("queries.year_at_15_min", year[1], 200),
        row("queries.year_at_15_min.first", year[0], 200),
        row("queries.year_at_15_min.five_points", year_five[1], 200),
        row("queries.fleet_of_100", fleet[1], 100),
        row("queries.roll_up_of_one_hour", rolled_s * 1000 / (days * 24), None),
    ]


def row(name: str, value: float, goal: float | None) -> dict[str, object]:
    met = None if goal is None else value <= goal
    return {"name": name, "value": round(value, 2), "unit": "ms", "goal": goal, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--days", type=int, default=365, help="length of the year")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wattmesh-queries-") as folder:
        for one in measure(arguments.days, Path(folder)):
            if arguments.json:
                print(json.dumps(one))
            else:
                verdict = "" if one["goal"] is None else f" (goal {one['goal']}, {'met' if one['met'] else 'missed'})"
                print(f"{one['name']}: {one['value']} ms{verdict}")


if __name__ == "__main__":
    main()
