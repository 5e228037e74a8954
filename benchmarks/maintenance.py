"""Predictive maintenance on simulated years: what is found, after how long, and how many alarms are false.

usage: benchmarks/maintenance.py [--json] [--sites 20]

Every site has two strings, a battery that is cycled daily, weather of its own and modules that look a few degrees beside where the
site file says (tests/support/aging_fleet.py). An alarm is right when it tells of what was broken, after it was.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from aging_fleet import fleet

FAULTS = {
    "soiling 1 %/month": ("soiling", {"days": 485}),
    "string lost": ("string", {}),
    "string lost, AC power alone": ("string", {"strings": False}),
    "capacity fade 20 %/year": ("fade", {}),
    "fan failure": ("fan", {}),
    "battery resistance +100 %/year": ("resistance", {"days": 365}),
    "inverter loses a phase": ("phase", {}),
    "loose neutral": ("neutral", {}),
    "battery cycled by two controllers": ("cycling", {}),
    "bus with 4 % of lost polls": ("bus", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--sites", type=int, default=20, help="site-years of each kind")
    arguments = parser.parse_args()
    sites = arguments.sites
    _, _, false = fleet(range(1000, 1000 + sites))
    rows = [row("false alarms on the healthy fleet", round(false / sites, 3), "a site-year", 1.0, false <= sites)]
    for name, (fault, more) in FAULTS.items():
        found, delays, _ = fleet(range(2000, 2000 + sites), fault, **more)
        rows.append(row(f"{name}: found", found, f"of {sites}", sites, found == sites))
        rows.append(row(f"{name}: median delay", median(delays) if delays else None, "days", None, bool(delays)))
    for one in rows:
        print(json.dumps(one) if arguments.json else f"{one['name']}: {one['value']} {one['unit']}")


def row(name, value, unit, goal, met):
    return {"name": f"maintenance.{name}", "value": value, "unit": unit, "goal": goal, "met": met}


if __name__ == "__main__":
    main()
