"""A year of homes with batteries under the community's planner, scored as in the CityLearn Challenge 2022.

usage: benchmarks/community.py [--json] [--homes b01,…] [--hours 8760] [--forecasts FILE] [--only forecast] [--citylearn]

Ratios to no battery. Cost: import netted across the homes each hour. Emissions: import clipped a home. Grid: mean of ramping and of
1 − load factor of 730 hours. Score: mean of the three. ``forecast``: the hour's action is chosen before the hour, from what was
metered until then (legal timing of the challenge). ``corrected``: as a gateway does it, the running hour's net load is measured
and followed; later hours are forecast. Tariff known; carbon of coming hours is the mean of the last seven days'.

Played through our own simulation of the data set's batteries (6.4 kWh, 5 kW, 0.9 round trip), or with ``--citylearn`` through the
environment of CityLearn 1.3.6 (its own battery with efficiency and power curves), which this Python then has to have:
``pip install --no-deps CityLearn==1.3.6`` and ``numpy<2 pandas gym==0.26.2 simplejson pyyaml scikit-learn pillow matplotlib``.

Weights are the derivatives of the score with respect to each quantity, at the values of no battery metered so far: nothing is
fitted to these homes. ``--forecasts`` keeps the forecasts in a file for the next run: they take most of the time.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from forecasting import data, table
from wattmesh_cloud.forecasting.hourly import HourlyForecaster
from wattmesh_cloud.forecasting.model import SeasonalQuantiles
from wattmesh_cloud.grid.homes import Charges, Expected, HomesPlanner

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
STEPS, MONTH = 24, 730
ENERGY, POWER, ONE_WAY = 6.4, 5.0, 0.9**0.5
SAMPLES = (1, 4, 7)
"""Deciles (20, 50, 80 %) that stand for the error of an hour."""
UPPER = 0.9
"""Quantile of the net load at which peaks are counted."""
BEGIN = 0.35
"""Of the last month's peak: where the first hours of a month do not yet count as its peak."""
WORTH_FIGHTING = 0.7
"""Of the year's highest hour without batteries so far: below it no peak of the year is fought."""
DAY_PEAK = 1.0
"""Weight of the day's highest hour against a ramp's; it is no part of the score. Of 0, 0.5 and 1 the score was the best with 1."""
FADE = 0.8
"""Of a home's last error, an hour on."""
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


def forecasts(homes, hours, kept=None):
    """(hours, STEPS, 9) net load of all homes together; NaN for the first day."""
    if kept is not None and kept.exists():
        found = np.load(kept)["net"]
        if len(found) >= hours:
            return found[:hours]
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
    if kept is not None:
        np.savez_compressed(kept, net=out)
    return out


class OurBatteries:
    """Alike batteries with a constant efficiency."""

    def __init__(self, net):
        self._net, self.stored = net, np.zeros(net.shape[1])

    def hour(self, now, power):
        """Net load of each home in an hour with this battery power asked for."""
        room, left = np.minimum(POWER, (ENERGY - self.stored) / ONE_WAY), np.minimum(POWER, self.stored * ONE_WAY)
        power = np.clip(power, -left, room)
        self.stored = np.clip(self.stored + np.where(power > 0, power * ONE_WAY, power / ONE_WAY), 0.0, ENERGY)
        return self._net[now] + power


class CityLearnBatteries:
    """The environment's own: what is asked for after hour t is done in hour t + 1, so nothing is done in the first hour."""

    def __init__(self, net):
        from citylearn.citylearn import CityLearnEnv

        self._env = CityLearnEnv("citylearn_challenge_2022_phase_1")
        self._env.reset()
        self._net = net
        self.stored = np.zeros(net.shape[1])

    def hour(self, now, power):
        """See above; the environment's load and PV have to be the data set's."""
        buildings = self._env.buildings
        if now:
            actions = [float(p) / one.electrical_storage.capacity for p, one in zip(power, buildings, strict=True)]
            self._env.step([actions] if self._env.central_agent else [[one] for one in actions])
        self.stored = np.array([one.electrical_storage.soc[-1] for one in buildings])
        own = [
            one.net_electricity_consumption[-1] - one.electrical_storage_electricity_consumption[-1]
            for one in buildings
        ]
        assert np.allclose(own, self._net[now], atol=1e-3), f"hour {now}: the environment has other data"
        return np.array([one.net_electricity_consumption[-1] for one in buildings])

    def score(self):
        """Cost, emissions and grid as the environment has them."""
        return self._env.evaluate()


def usual(net, now):
    """Homes × STEPS: the mean of the same hours of the last days, the nearer ones weighing more, and the last error, fading."""
    days = [day for day in range(1, 15) if now - 24 * day >= 0]
    if not days:
        return np.repeat(net[max(now - 1, 0)][:, None] if now else np.zeros((net.shape[1], 1)), STEPS, axis=1)
    weights = 0.5 ** (np.array(days) / 4)
    weights /= weights.sum()
    base = sum(weight * net[now - 24 * day : now - 24 * day + STEPS] for weight, day in zip(weights, days, strict=True))
    last = [day + 1 for day in days if now - 1 - 24 * day >= 0]
    before = np.mean([net[now - 1 - 24 * (day - 1)] for day in last], axis=0) if last else net[now - 1]
    return (base + 0.5 * (net[now - 1] - before) * FADE ** np.arange(1, STEPS + 1)[:, None]).T


class Outlook:
    """What is expected at each hour, of what was metered before it."""

    def __init__(self, net, quantiles):
        self._net, self._quantiles = net, quantiles
        hours, homes = net.shape
        self._offs = np.zeros((hours + STEPS, len(SAMPLES)))
        self._home_errors = np.full((hours, homes), np.nan)
        self._issued = np.zeros((hours, 2, homes))
        """Expectations of the running hour and the next, as they were before the running hour was measured."""

    def _carry(self, now):
        """Of an hour's error, the share that the next hour's had, so far; of each home."""
        if now < 48:
            return np.zeros(self._net.shape[1])
        pairs = slice(24, now)  # the second hour of the last pair is the running one, which is measured
        first = self._net[24:now] - self._issued[pairs, 0]
        second = self._net[25 : now + 1] - self._issued[pairs, 1]
        return np.clip((first * second).sum(axis=0) / np.maximum((first**2).sum(axis=0), 1e-9), 0.0, 0.95)

    def at(self, now, measured):
        """Expectations of the coming hours; ``measured``: the running hour is known."""
        net, quantiles, homes = self._net, self._quantiles[now], self._net.shape[1]
        own = usual(net, now)
        known = np.isfinite(quantiles).all()
        mean = quantiles.mean(axis=1) if known else own.sum(axis=0)
        upper = np.array([np.interp(UPPER, LEVELS, row) for row in quantiles]) if known else mean
        peak_off = np.maximum(upper - mean, 0.0)
        own = own + (mean - own.sum(axis=0)) / homes
        self._offs[now] = (quantiles[0] - mean[0])[list(SAMPLES)] if known else 0.0
        # Each coming hour will be decided with the forecast of then: its error is that of an hour ahead, as of the day before.
        past = now + np.arange(STEPS) - 24
        total_off = np.where((past >= 0)[:, None], self._offs[np.maximum(past, 0)], 0.0)
        total_off[0] = self._offs[now]
        self._home_errors[now] = net[now] - own[:, 0]  # looked at from the next hour on
        spread = np.nanstd(self._home_errors[max(0, now - 672) : now], axis=0) if now > 48 else np.zeros(homes)
        home_off = spread[:, None, None] * np.array([-0.84, 0.0, 0.84]) * np.ones((1, STEPS, 1))
        self._issued[now] = own[:, :2].T
        if measured:
            # What the running hour is off goes on into the next ones, by as much as it did so far.
            missed = (net[now] - own[:, 0]) * self._carry(now) ** np.arange(STEPS)[:, None]
            own = own + missed.T
            total_off[:], home_off[:], peak_off[0] = 0.0, 0.0, 0.0
        width = np.abs(total_off[:, [0, -1]]).max(axis=1)
        ramp = np.hypot(width, np.concatenate([[0.0], width[:-1]]))[:, None] * np.array([-1.0, 0.0, 1.0])
        return Expected(net=own, home_off=home_off, total_off=total_off, ramp_off=ramp, peak_off=peak_off)


def play(net, price, carbon, quantiles, corrected, batteries=None):
    """Net load of each home with its battery, and how long each plan took."""
    homes, hours = net.shape[1], len(quantiles)
    planner = HomesPlanner(homes, energy_kwh=ENERGY, power_kw=POWER, efficiency=ONE_WAY, steps=STEPS)
    batteries = OurBatteries(net) if batteries is None else batteries
    outlook, result, took = Outlook(net, quantiles), np.zeros((hours, homes)), []
    total = net.sum(axis=1)
    prices = np.concatenate([price, price[:STEPS]])
    sums = {
        "cost": np.cumsum(np.maximum(total, 0) * price),
        "carbon": np.cumsum((np.maximum(net, 0) * carbon[:, None]).sum(axis=1)),
        "ramp": np.cumsum(np.abs(np.diff(total, prepend=total[0]))),
        "energy": np.cumsum(total),
    }
    before, highest, year, ahead = 0.0, 2.0, 0.0, np.arange(STEPS)
    for now in range(hours):
        if now % MONTH == 0 and now:
            highest = BEGIN * result[now - MONTH : now].sum(axis=1).max()
        days = [now + ahead - 24 * day for day in range(1, 8)]
        clean = np.mean(
            [carbon[day] for day in days if day.min() >= 0] or [np.full(STEPS, carbon[max(now - 1, 0)])], axis=0
        )
        mean = {name: max(float(one[now - 1]) / now, 1e-3) if now else 1.0 for name, one in sums.items()}
        without = max(float(total[max(0, now - MONTH) : now].max()), 1.0) if now else 1.0
        top = max(float(total[:now].max()), 1.0) if now else 1.0  # the year's highest without batteries so far
        factor = max(1 - mean["energy"] / without, 0.2)  # 1 − load factor of no battery
        energy_price, energy_carbon = prices[now + ahead] / mean["cost"], clean / mean["carbon"]
        charges = Charges(
            price=energy_price,
            carbon=energy_carbon,
            ramp=0.5 / mean["ramp"],
            peak=0.5 * MONTH * mean["energy"] / max(highest, 1.0) ** 2 / factor,
            day_peak=DAY_PEAK * 0.5 / mean["ramp"],
            year_peak=(1 - UPPER) * len(price) / 3 / top if now else 0.0,
            worth=0.8 * ONE_WAY * float((energy_price + energy_carbon).mean()),
        )
        expected = outlook.at(now, corrected)
        began = time.perf_counter()
        plan = planner.plan(
            expected,
            charges,
            stored_kwh=batteries.stored,
            before_kw=before,
            highest_kw=highest,
            ratchet_kw=max(year, WORTH_FIGHTING * top),
        )
        took.append(time.perf_counter() - began)
        result[now] = batteries.hour(now, plan[:, 0])
        before = float(result[now].sum())
        highest, year = max(highest, before), max(year, before)
    return result, took


def ratios_of(result, net, price, carbon):
    hours = len(result)
    base = figures(net[:hours], price[:hours], carbon[:hours])
    ratios = {name: value / base[name] for name, value in figures(result, price[:hours], carbon[:hours]).items()}
    ratios["score"] = (ratios["cost"] + ratios["emissions"] + (ratios["ramping"] + ratios["load_factor"]) / 2) / 3
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--homes", default="b01,b02,b03,b04,b05")
    parser.add_argument("--hours", type=int, default=8760)
    parser.add_argument("--forecasts", type=Path)
    parser.add_argument("--only", default="forecast,corrected")
    parser.add_argument("--citylearn", action="store_true")
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
    quantiles = forecasts(homes, hours, arguments.forecasts)
    for variant in arguments.only.split(","):
        batteries = CityLearnBatteries(net) if arguments.citylearn else None
        result, took = play(net, price, carbon, quantiles, variant == "corrected", batteries)
        rows = [(name, value, "ratio") for name, value in ratios_of(result, net, price, carbon).items()]
        rows.append(("solve_median", 1000 * float(np.median(took)), "ms"))
        if batteries is not None and hours == len(net):
            parts = zip(("cost", "emissions", "grid"), batteries.score(), strict=True)
            rows += [(f"environment_{name}", float(value), "ratio") for name, value in parts]
        for name, value, unit in rows:
            row = {"name": f"community.{variant}_{name}", "value": round(float(value), 4), "unit": unit}
            row["played_by"] = "CityLearn 1.3.6" if arguments.citylearn else "own simulation"
            if (goal := GOALS[variant].get(name)) is not None:
                row |= {"goal": goal, "met": bool(value <= goal)}
            print(json.dumps(row) if arguments.json else row, flush=True)


if __name__ == "__main__":
    main()
