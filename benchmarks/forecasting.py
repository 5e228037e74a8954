"""Skill of the forecasts on the recorded year: 1 to 24 h ahead, issued each hour of days 240 to 363, five homes together.

usage: benchmarks/forecasting.py [--json] [--first-day 240] [--last-day 363] [--homes b01,b02,…] [--each]

Load and net errors over the mean load of the test days, PV errors over the installed power; pinball is the mean over nine deciles.
Forecasters get the hours one after the other, so nothing after the issue can be in them. ``--each`` scores every home on its own.
"""

import argparse
import csv
import json
import resource
import time
from importlib import resources

import numpy as np
from wattmesh_cloud.forecasting.hourly import HourlyForecaster
from wattmesh_cloud.forecasting.model import SeasonalQuantiles

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
LEADS = 24
GOALS = {"load": (0.22, 0.088), "pv": (0.0265, 0.0110), "net": (0.275, 0.108)}


def table(name):
    path = resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / f"{name}.csv"
    with path.open() as file:
        return list(csv.DictReader(file))


def data(homes):
    load = sum(np.array([float(row[home]) for row in table("load_kwh")]) for home in homes)
    pv = sum(np.array([float(row[home]) for row in table("pv_kwh")]) for home in homes)
    common = table("common")
    weather = np.array([[float(row[key]) for key in ("temp_c", "rh_pct", "dhi_w_m2", "dni_w_m2")] for row in common])
    hour = (np.arange(len(common)) - 1) % 24  # row 0 is the hour that ends at midnight of a Sunday
    weekday = ((np.arange(len(common)) - 1) // 24) % 7
    peak = sum(float(row["pv_kwp"]) for row in table("buildings") if row["building"] in homes)
    return load, pv, weather, hour, weekday, peak


def forecasts(load, pv, weather, hour, weekday, first, last):
    """Cloud, gateway, 28-day quantiles and persistence: (issues, 24, 9) of each quantity, and what happened."""
    issues = np.arange(first * 24, (last + 1) * 24)
    ahead = np.arange(LEADS)
    series = {"load": load, "pv": pv, "net": load - pv}
    out = {
        m: {q: np.empty((len(issues), LEADS, 9)) for q in series} for m in ("cloud", "gateway", "quantiles", "naive")
    }
    model, seasonal = HourlyForecaster(LEVELS, LEADS), SeasonalQuantiles(LEVELS)
    start = issues[0]
    model.add(load[:start], pv[:start], hour[:start], weekday[:start], weather[:start])
    for row, now in enumerate(issues):
        if now > start:
            span = slice(now - 1, now)
            model.add(load[span], pv[span], hour[span], weekday[span], weather[span])
        issued = model.issue(hour[now : now + LEADS], weekday[now : now + LEADS])
        for quantity, values in series.items():
            out["cloud"][quantity][row] = issued[quantity].values
            past = values[now + ahead[None] - 24 * (1 + np.arange(28))[:, None]]
            out["quantiles"][quantity][row] = np.quantile(past, LEVELS, axis=0).T
            out["naive"][quantity][row] = past[0][:, None]
            history = values[now - 30 * 24 : now]
            out["gateway"][quantity][row] = seasonal.predict(
                history, (now - 30 * 24) % 24, LEADS, 24, signed=quantity == "net"
            )
    actual = {quantity: values[issues[:, None] + ahead] for quantity, values in series.items()}
    return out, actual


def pinball(actual, quantiles):
    off = actual[..., None] - quantiles
    return np.maximum(np.array(LEVELS) * off, (np.array(LEVELS) - 1) * off).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--first-day", type=int, default=240)
    parser.add_argument("--last-day", type=int, default=363)
    parser.add_argument("--homes", default="b01,b02,b03,b04,b05")
    parser.add_argument("--each", action="store_true")
    arguments = parser.parse_args()
    homes = arguments.homes.split(",")
    for group in [[home] for home in homes] if arguments.each else [homes]:
        label = f".{group[0]}" if arguments.each else ""
        load, pv, weather, hour, weekday, peak = data(group)
        began = time.process_time()
        out, actual = forecasts(load, pv, weather, hour, weekday, arguments.first_day, arguments.last_day)
        took = time.process_time() - began
        rows = []
        mean = load[arguments.first_day * 24 : (arguments.last_day + 1) * 24].mean()
        scores = {}
        for method, quantities in out.items():
            for quantity, values in quantities.items():
                over = peak if quantity == "pv" else mean
                error = np.abs(actual[quantity] - values[..., 4]).mean() / over
                loss = pinball(actual[quantity], values) / over
                light = (
                    values[..., 8] - values[..., 0] > 1e-3 * peak
                    if quantity == "pv"
                    else np.ones(values.shape[:2], bool)
                )
                inside = (actual[quantity] >= values[..., 0]) & (actual[quantity] <= values[..., 8])
                scores[method, quantity] = error, loss, inside[light].mean() if light.any() else float("nan")
        for quantity, goals in GOALS.items():
            for what, goal, index in (("nmae", goals[0], 0), ("pinball", goals[1], 1)):
                value, peer = scores["cloud", quantity][index], scores["quantiles", quantity][index]
                rows.append((f"forecasting{label}.{quantity}_{what}", value, "ratio", goal, value <= goal, peer))
            cover = scores["cloud", quantity][2]
            rows.append(
                (f"forecasting{label}.{quantity}_coverage_80", cover, "ratio", 0.8, 0.78 <= cover <= 0.82, None)
            )
            for what, index in (("nmae", 0), ("pinball", 1)):
                value, peer = scores["gateway", quantity][index], scores["quantiles", quantity][index]
                rows.append(
                    (f"forecasting{label}.gateway_{quantity}_{what}", value, "ratio", peer, value <= peer, peer)
                )
            for index, what in enumerate(("nmae", "pinball")):
                rows.append(
                    (
                        f"forecasting{label}.persistence_{quantity}_{what}",
                        scores["naive", quantity][index],
                        "ratio",
                        None,
                        None,
                        None,
                    )
                )
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append((f"forecasting{label}.peak_memory", memory, "MB", 400, memory <= 400, None))
        rows.append((f"forecasting{label}.cpu", took, "s", None, None, None))
        for name, value, unit, goal, met, peer in rows:
            row = {"name": name, "value": round(float(value), 5), "unit": unit}
            if goal is not None:
                row |= {"goal": round(float(goal), 5), "met": bool(met)}
            if peer is not None:
                row |= {
                    "peer": "28-day quantiles",
                    "peer_value": round(float(peer), 5),
                    "ratio": round(float(value / peer), 4),
                }
            print(json.dumps(row) if arguments.json else row, flush=True)


if __name__ == "__main__":
    main()
