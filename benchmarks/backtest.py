"""A year of five homes through planner, agents, market and settlement: how long it takes, and what it saves.

usage: benchmarks/backtest.py [--json] [--days 365] [--controllers market,gateway,community]

Data: CityLearn 2022, five homes, quarter hours, tariff of the data set with 0.05 for exports, two workers. Nothing was
tuned to it: the controllers are the house's as they are. Cost of the community is netted behind one connection, as is its bound.
"""

import argparse
import json
import resource

from wattmesh_backtest.bound import perfect
from wattmesh_backtest.controllers import controller_of
from wattmesh_backtest.data import load_period
from wattmesh_backtest.figures import figures
from wattmesh_backtest.runner import play


def _cpu_s() -> float:
    """Of this process and of the workers that have ended: what a busy machine does not blur."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--controllers", default="market,gateway,community")
    arguments = parser.parse_args()

    def tell(name, value, unit, goal=None, **more):
        row = {"name": f"backtest.{name}", "value": round(value, 4), "unit": unit} | more
        if goal is not None:
            row |= {"goal": goal, "met": bool(value <= goal)}
        print(json.dumps(row) if arguments.json else row, flush=True)

    period = load_period("citylearn_2022", days=arguments.days)
    names = [*arguments.controllers.split(","), "none", "selfconsumption"]
    rows, cpu = {}, {}
    for name in names:
        began = _cpu_s()
        rows[name] = figures(period, play(period, controller_of(name)), name)
        cpu[name] = _cpu_s() - began
        if name == "market":
            year = 365 / arguments.days
            tell("seconds", rows[name].seconds * year, "s", goal=180.0)
            tell("cpu_seconds_of_two_cores", cpu[name] / 2 * year, "s")
    bound = perfect(period)
    none, own = rows["none"], rows["selfconsumption"]
    for name in names[:-2]:
        row = rows[name]
        tell(
            f"{name}.cost_vs_no_battery",
            row.paid / none.paid,
            "ratio",
            peer="no battery",
            peer_value=round(none.paid, 2),
        )
        tell(f"{name}.cost_vs_self_consumption", row.paid / own.paid, "ratio", peer="self-consumption",
             peer_value=round(own.paid, 2))  # fmt: skip
        tell(f"{name}.netted_vs_no_battery", row.netted / none.netted, "ratio")
        tell(f"{name}.daily_peak_vs_no_battery", row.daily_peak_kw / none.daily_peak_kw, "ratio")
        tell(f"{name}.peak_vs_no_battery", row.peak_kw / none.peak_kw, "ratio")
    tell("perfect_alone_vs_no_battery", sum(bound.alone.values()) / none.paid, "ratio")
    tell("perfect_alone_vs_self_consumption", sum(bound.alone.values()) / own.paid, "ratio")
    tell("perfect_together_vs_no_battery", bound.together / none.netted, "ratio")


if __name__ == "__main__":
    main()
