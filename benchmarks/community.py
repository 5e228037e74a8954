"""A year of five homes with batteries under the community's planner, scored as in the CityLearn Challenge 2022.

usage: benchmarks/community.py [--json] [--homes b01,b02,…] [--hours 8760]

Ratios to no battery. Cost: import netted across the homes each hour. Emissions: import clipped a home. Grid: mean of ramping and of
1 − load factor of 730 hours. Score: mean of the three. Played through our own simulation of the data set's batteries (6.4 kWh,
5 kW, 0.9 round trip). ``forecast``: the hour's action is chosen before the hour, from what was metered until then (legal timing of
the challenge). ``corrected``: as a gateway does it, the running hour's net load is measured and followed; later hours are forecast.
Tariff known; carbon of coming hours is the mean of the last seven days'. Weights come from what was metered so far.
"""

import argparse
import json
import time

import numpy as np
from forecasting import data, table
from wattmesh_cloud.forecasting.hourly import HourlyForecaster
from wattmesh_cloud.forecasting.model import SeasonalQuantiles
from wattmesh_cloud.grid.community import CommunityPlanner, Pool, Weights, share

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
STEPS, MONTH, RAMP, DAY_PEAK = 24, 730, 1.2, 1.5
"""The last two: weight of ramps against their place in the score, and of the day's peak, which is not in it, against ramps."""
ONE = Pool(energy_kwh=6.4, power_kw=5.0)
GOALS = {
    "forecast": {"cost": 0.64, "score": 0.80, "mean_daily_peak": 0.80, "annual_peak": 0.95},
    "corrected": {"score": 0.70, "mean_daily_peak": 0.65, "annual_peak": 0.80},
}


def figures(net, price, carbon):
    total = net.sum(axis=1)
    months = [total[at : at + MONTH] for at in range(0, len(total) - MONTH + 1, MONTH)] or [total]
    return {
        "cost": (np.maximum(total, 0) * price).sum(),
        "emissions": (np.maximum(net, 0) * carbon[:, None]).sum(),
        "ramping": np.abs(np.diff(total)).sum(),
        "load_factor": np.mean([1 - month.mean() / month.max() for month in months]),
        "annual_peak": total.max(),
        "mean_daily_peak": total[: len(total) // 24 * 24].reshape(-1, 24).max(axis=1).mean(),
    }


def forecasts(homes, hours):
    """(hours, STEPS, 9) net load of all homes together; NaN for the first day."""
    load, pv, weather, hour, weekday, _ = data(homes)
    later = np.arange(len(hour), len(hour) + STEPS)
    hour, weekday = np.concatenate([hour, (later - 1) % 24]), np.concatenate([weekday, (later - 1) // 24 % 7])
    out = np.full((hours, STEPS, len(LEVELS)), np.nan)
    model, seasonal = HourlyForecaster(LEVELS, STEPS), SeasonalQuantiles(LEVELS)
    for now in range(hours):
        if now:
            span = slice(now - 1, now)
            model.add(load[span], pv[span], hour[span], weekday[span], weather[span])
        issued = model.issue(hour[now : now + STEPS], weekday[now : now + STEPS])
        if issued is not None:
            out[now] = issued["net"].values
        elif now >= 24:
            past = (load - pv)[max(0, now - 720) : now]
            out[now] = seasonal.predict(past, now % 24, STEPS, 24, signed=True)
    return out


def play(net, price, carbon, quantiles, corrected):
    """Net load of each home with its battery."""
    homes, hours = net.shape[1], len(quantiles)
    pool = Pool(energy_kwh=ONE.energy_kwh * homes, power_kw=ONE.power_kw * homes)
    planner, stored, result, took = CommunityPlanner(pool, STEPS), np.zeros(homes), np.zeros((hours, homes)), []
    total = net.sum(axis=1)
    prices = np.concatenate([price, price[:STEPS]])
    cost = np.cumsum(np.maximum(total, 0) * price)
    emissions = np.cumsum((np.maximum(net, 0) * carbon[:, None]).sum(axis=1))
    ramping, energy = np.cumsum(np.abs(np.diff(total, prepend=total[0]))), np.cumsum(total)
    before, highest = 0.0, 2.0
    ahead = np.arange(STEPS)
    for now in range(hours):
        if now % MONTH == 0 and now:
            highest = 0.35 * result[now - MONTH : now].sum(axis=1).max()
        known = max(now, 1)
        mean = (quantiles[now, :, 1] + quantiles[now, :, 4] + quantiles[now, :, 7]) / 3
        upper = np.maximum(quantiles[now, :, 7], mean)
        if corrected:
            mean[0] = upper[0] = total[now]
        days = [now + ahead - 24 * day for day in range(1, 8)]
        clean = np.mean(
            [carbon[day] for day in days if day.min() >= 0] or [np.full(STEPS, carbon[max(now - 1, 0)])], axis=0
        )
        last = now - 1
        share_cost, share_carbon, share_ramp, usual = (
            max(float(sums[last]) / known, 1e-3) if now else 1.0 for sums in (cost, emissions, ramping, energy)
        )
        weights = Weights(
            energy=prices[now + ahead] / share_cost + clean / share_carbon,
            ramp=0.5 * RAMP / share_ramp,
            peak=0.5 * usual / max(highest, 1.0) ** 2 * MONTH,
            day_peak=DAY_PEAK / share_ramp,
        )
        began = time.perf_counter()
        plan = planner.plan(
            mean, upper, stored_kwh=float(stored.sum()), grid_before_kw=before, highest_kw=highest, weights=weights
        )
        took.append(time.perf_counter() - began)
        if corrected:
            seen = net[now]
        else:
            seen = np.mean([net[now - 24 * day] for day in range(1, 8) if now >= 24 * day] or [np.zeros(homes)], axis=0)
        power = share(float(plan.power_kw[0]), seen, stored, ONE)
        stored = np.clip(
            stored + np.where(power > 0, power * ONE.efficiency, power / ONE.efficiency), 0.0, ONE.energy_kwh
        )
        result[now] = net[now] + power
        before = float(result[now].sum())
        highest = max(highest, before)
    return result, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--homes", default="b01,b02,b03,b04,b05")
    parser.add_argument("--hours", type=int, default=8760)
    arguments = parser.parse_args()
    homes, hours = arguments.homes.split(","), arguments.hours
    columns = {name: table(name) for name in ("load_kwh", "pv_kwh", "common")}
    net = np.array(
        [
            [float(load[home]) - float(pv[home]) for home in homes]
            for load, pv in zip(columns["load_kwh"], columns["pv_kwh"], strict=True)
        ]
    )
    price = np.array([float(row["price_usd_per_kwh"]) for row in columns["common"]])
    carbon = np.array([float(row["carbon_kg_per_kwh"]) for row in columns["common"]])
    base = figures(net[:hours], price[:hours], carbon[:hours])
    quantiles = forecasts(homes, hours)
    for variant, goals in GOALS.items():
        result, took = play(net, price, carbon, quantiles, variant == "corrected")
        ratios = {name: value / base[name] for name, value in figures(result, price[:hours], carbon[:hours]).items()}
        ratios["score"] = (ratios["cost"] + ratios["emissions"] + (ratios["ramping"] + ratios["load_factor"]) / 2) / 3
        for name, value in ratios.items():
            row = {"name": f"community.{variant}_{name}", "value": round(float(value), 4), "unit": "ratio"}
            if name in goals:
                row |= {"goal": goals[name], "met": bool(value <= goals[name])}
            print(json.dumps(row) if arguments.json else row, flush=True)
        solve = {
            "name": f"community.{variant}_solve_median",
            "value": round(1000 * float(np.median(took)), 2),
            "unit": "ms",
        }
        print(json.dumps(solve) if arguments.json else solve, flush=True)


if __name__ == "__main__":
    main()
