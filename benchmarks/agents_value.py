"""What the five agents' policies are worth: 30 days of simulated fleets with them against fixed default strategies.

usage: benchmarks/agents_value.py [--json] [--seeds 100-111] [--homes 3] [--days 30]

Each seed draws a fleet from the recorded year of five homes (CityLearn Challenge 2022): which home, which days, more or less load
and sun, load within the hour by chance. Both arms have the same gateways (the edge's own planner and battery policy, forecasts from
the 14 days before), the same market (surplus and need meet pro rata at the middle price) and demand response. *Fixed*: 5 % reserve,
no limit of import, always trading, an event for each day's peak that asks for 30 %. *Agents*: the policies of producer, consumer,
grid optimisation and market supervisor decide each hour on situations made of what was metered, with guards and learner; the
forecasting agent watches, and changes nothing here. Printed are means of the paired relative differences with 95 % confidence
intervals (Student's t). Seeds 0-3 were used while the policies were made; 100-111 were not looked at before.
"""

import argparse
import csv
import json
import math
import multiprocessing
import random
import statistics
import tempfile
from datetime import time as clock_time
from functools import cache
from importlib import resources
from pathlib import Path

from wattmesh_a2a.tariff import Tariff, TariffPeriod
from wattmesh_cloud.agents.consumer import AGENT as CONSUMER
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.feedback import rewards_of
from wattmesh_cloud.agents.grid_optimisation import AGENT as GRID
from wattmesh_cloud.agents.guards import Guards, Origin
from wattmesh_cloud.agents.learning import PARAMETERS, Learner
from wattmesh_cloud.agents.market_supervisor import AGENT as MARKET
from wattmesh_cloud.agents.producer import AGENT as PRODUCER
from wattmesh_cloud.agents.proposals import CallResponse, HaltMarket, SetPeakLimit, SetReserve, SetTrading
from wattmesh_cloud.agents.situations import GridSituation, KnownEvent, MarketSituation, SiteSituation
from wattmesh_edge.agents.consumer import BID_SHARE
from wattmesh_edge.agents.planner import Storage, battery_policy, charge_level_w, expected_grid_wh, value_of_storage

FIRST_NS, SLOT_NS, DAY = 1_659_333_600 * 10**9, 900 * 10**9, 96
HOMES = ("b01", "b02", "b03", "b04", "b05")
TARIFF = Tariff(
    default_price=0.21,
    feed_in_price=0.05,
    time_zone="Etc/GMT+7",
    periods=(
        TariffPeriod(price=0.54, months=(6, 7, 8, 9), days="weekday", start=clock_time(15), end=clock_time(20)),
        TariffPeriod(price=0.40, months=(6, 7, 8, 9), days="weekend", start=clock_time(15), end=clock_time(20)),
        TariffPeriod(price=0.22, months=(6, 7, 8, 9)),
        TariffPeriod(price=0.50, start=clock_time(15), end=clock_time(20)),
    ),
)
FEED = TARIFF.feed_in_ticks()
BASE = Storage(energy_wh=6400, power_w=5000, reserve_wh=320)
LIMIT_W = 12_000.0
WARM_DAYS = 14
T975 = {4: 2.776, 9: 2.262, 11: 2.201, 14: 2.145, 19: 2.093, 29: 2.045, 39: 2.023}


@cache
def column(name, home):
    path = resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / f"{name}.csv"
    with path.open() as file:
        return [float(row[home]) * 1000 for row in csv.DictReader(file)]


@cache
def price(slot):
    return TARIFF.import_price_ticks(FIRST_NS + slot * SLOT_NS)


def bill(grid, slot):
    """What a day's exchange with the grid costs at the retailer's prices; ``slot`` is the first after it."""
    return sum(wh * (price(slot - len(grid) + step) if wh > 0 else FEED) for step, wh in enumerate(grid))


class Home:
    """One gateway with its house; the same in both arms, but for what its strategy says."""

    def __init__(self, rng, first_day, days):
        name, scale, sun = rng.choice(HOMES), rng.uniform(0.6, 1.4), rng.uniform(0.5, 1.3)
        shift = rng.randrange(-10, 11) * 24
        load, pv = column("load_kwh", name), column("pv_kwh", name)
        self.net = []
        for slot in range((first_day - WARM_DAYS) * DAY, (first_day + days + 1) * DAY, 4):
            hour = slot // 4
            parts = [rng.lognormvariate(0, 0.35) for _ in range(4)]
            share = [part / sum(parts) for part in parts]
            used, made = load[(hour + shift) % 8760] * scale, pv[hour % 8760] * sun
            self.net += [used * one - made / 4 for one in share]
        self.stored = {"fixed": 1280.0, "agents": 1280.0}
        self.plan = None

    def see(self, at, slot):
        """A plan each hour; ``at`` is the place in the home's record, ``slot`` in the year."""
        days = range(1, WARM_DAYS + 1)
        self.expected = [
            sum(
                self.net[at + ahead - DAY * (back + (ahead >= DAY))]
                for back in days
                if at + ahead >= DAY * (back + (ahead >= DAY))
            )
            / max(1, sum(at + ahead >= DAY * (back + (ahead >= DAY)) for back in days))
            for ahead in range(DAY)
        ]
        self.prices = [price(slot + ahead) for ahead in range(DAY)]
        self.start = FIRST_NS + slot * SLOT_NS
        self.looked = {}
        self.value = value_of_storage(BASE, self.expected, self.prices, FEED, start_ns=self.start, slot_s=900)

    def outlook(self, arm):
        """As the gateway makes it once an hour."""
        if arm not in self.looked:
            self.looked[arm] = expected_grid_wh(BASE, self.value, self.stored[arm], self.expected, self.prices, FEED)
        return self.looked[arm]

    def step(self, arm, at, slot, *, reserve, limit, committed):
        """One quarter hour; grid energy. The battery keeps the limit down to the site's own reserve."""
        now, rest, stored = FIRST_NS + slot * SLOT_NS, self.net[at] * 4, self.stored[arm]
        storage = Storage(
            energy_wh=BASE.energy_wh, power_w=BASE.power_w, reserve_wh=max(BASE.reserve_wh, reserve * BASE.energy_wh)
        )
        slope = self.value.slope_ticks(now, stored)
        level = charge_level_w(BASE, self.value, now, stored, self.expected, self.prices)
        power = battery_policy(rest - committed * 4, stored, storage, slope, price(slot), FEED, level)
        if limit is not None:
            power = min(power, limit - rest)
        one_way, floor = BASE.efficiency, BASE.reserve_wh
        if power > 0:
            power = min(power, BASE.power_w, (BASE.energy_wh - stored) / one_way * 4)
            self.stored[arm] += power / 4 * one_way
        else:
            power = -min(-power, BASE.power_w, max(0.0, stored - floor) * one_way * 4)
            self.stored[arm] += power / 4 / one_way
        return (rest + power) / 4


class Arm:
    """What one way of deciding did to a fleet."""

    def __init__(self, homes):
        self.cost = [0.0] * homes
        self.peak = [0.0] * homes
        self.fleet, self.imbalance, self.traded, self.events, self.asked = [], 0.0, 0.0, 0, 0.0


class Agents:
    """The policies on one fleet, with guards and the learner."""

    def __init__(self, homes, folder):
        self.database = Database(Path(folder) / "agents.sqlite")
        self.learner, self.guards = Learner(self.database), Guards(self.database)
        self.reserve, self.limit, self.trade = [0.05] * homes, [None] * homes, [True] * homes
        self.events, self.prices, self.halted, self.stopped = [], [], False, 0
        self.day = {}

    def passed(self, agent, situation):
        for proposal in agent.policy(situation):
            if self.guards.check(agent, proposal, situation, Origin.POLICY).passed:
                yield proposal
            else:
                self.stopped += 1

    def hour(self, homes, at, slot, results):
        now = FIRST_NS + slot * SLOT_NS
        for index, home in enumerate(homes):
            name, row = f"home-{index}", results[index]
            both = {
                "site_id": name, "now_ns": now, "import_limit_w": LIMIT_W, "battery_wh": BASE.energy_wh, "forecast_age_s": 0.0,
                "net_wh": tuple(round(wh) for wh in home.net[at - 7 * DAY : at]), "expected_net_wh": tuple(home.expected),
                "feed_in_ticks": FEED, "committed_wh": round(row[0]), "missed_wh": round(row[1]), "gain_units": round(row[2]),
                "miss_cost_units": round(row[3]),
            }  # fmt: skip
            self.limit[index] = None
            for agent in (PRODUCER, CONSUMER):
                settings = self.learner.settings(name, agent.name, now)
                if slot % DAY == 0:
                    self.day[index, agent.name] = settings
                for proposal in self.passed(agent, SiteSituation(**both, settings=settings)):
                    match proposal:
                        case SetReserve():
                            self.reserve[index] = proposal.reserve_soc_percent / 100
                        case SetTrading():
                            self.trade[index] = proposal.trade
                        case SetPeakLimit():
                            self.limit[index] = proposal.limit_w
        settings = self.learner.settings("fleet", GRID.name, now)
        expected = tuple(sum(column) * 4 for column in zip(*(home.outlook("agents") for home in homes), strict=True))
        situation = GridSituation(
            now_ns=now, start_ns=now, expected_w=expected, forecast_age_s=0.0, sites=len(homes), online=len(homes),
            events=tuple(self.events), settings=settings, frequency_hz={"home-0": 60.0},
        )  # fmt: skip
        for proposal in self.passed(GRID, situation):
            if isinstance(proposal, CallResponse):
                end = proposal.start_ns + proposal.duration_s * 10**9
                self.events.append(
                    KnownEvent(
                        id=f"dr-{proposal.start_ns}",
                        start_ns=proposal.start_ns,
                        end_ns=end,
                        target_w=proposal.target_w,
                        state="announced",
                    )
                )
        area = MarketSituation(
            area="area",
            now_ns=now,
            prices_ticks=tuple(self.prices[-DAY:]),
            feed_in_ticks=FEED,
            retail_ticks=price(slot),
            forecast_age_s=0.0,
        )
        self.halted = any(isinstance(one, HaltMarket) for one in self.passed(MARKET, area))

    def day_over(self, homes, at, slot, imports):
        for index, home in enumerate(homes):
            net = home.net[at - DAY : at]
            came = {
                "peak_without_battery_w": max(0.0, *net) * 4,
                "peak_import_w": max(0.0, *imports[index]) * 4,
                "cost_units": bill(imports[index], slot),
                "cost_without_battery_units": bill(net, slot),
            }
            rewards = rewards_of(came)
            for agent in (PRODUCER, CONSUMER):
                for name, value in self.day.get((index, agent.name), {}).items():
                    if PARAMETERS[name].agent == agent.name and agent.name in rewards:
                        self.learner.outcome(f"home-{index}", name, value, rewards[agent.name])


def fixed_event(homes, slot):
    """The built-in plan: the highest hour of the next day after an hour's notice, 30 % of it."""
    powers = [sum(column) * 4 for column in zip(*(home.outlook("fixed") for home in homes), strict=True)]
    means = [sum(powers[at : at + 4]) / 4 for at in range(4, len(powers) - 3)]
    best = max(range(len(means)), key=means.__getitem__)
    threshold = sorted(powers)[int(len(powers) * 0.9)]
    if means[best] <= 0 or means[best] < 0.9 * threshold:
        return None
    start = FIRST_NS + (slot + 4 + best) * SLOT_NS
    return KnownEvent(
        id=f"dr-{start}",
        start_ns=start,
        end_ns=start + 4 * SLOT_NS,
        target_w=-round(0.3 * means[best]),
        state="announced",
    )


def dispatch(homes, arm, event, now):
    """Each home's level in an event: offers from the stored energy, the cheapest first, as the gateways and the grid agent do."""
    left, levels = -event.target_w, {}
    for index, home in enumerate(homes):
        at = (event.start_ns - home.start) // SLOT_NS
        expected = home.outlook(arm)[at : at + 4] if 0 <= at <= DAY - 4 else []
        if not expected:
            continue
        baseline = sum(expected) / 4 * 4
        usable = max(0.0, home.stored[arm] - BASE.reserve_wh) * BASE.efficiency * 0.8
        power = min(left, usable, BASE.power_w, max(0.0, baseline))
        if power > 0:
            levels[index], left = baseline - power, left - power
    return levels


def trade(homes, arm, allowed, halted):
    """Committed energy of the next slot: need and surplus meet pro rata at the middle price."""
    wants = [
        home.outlook_next[arm] * BID_SHARE if allowed[index] and not halted else 0.0 for index, home in enumerate(homes)
    ]
    buy, sell = sum(max(0.0, one) for one in wants), -sum(min(0.0, one) for one in wants)
    volume = min(buy, sell)
    if volume < 20:
        return [0.0] * len(homes)
    return [one * volume / (buy if one > 0 else sell) for one in wants]


def run(arguments):
    seed, count, days = arguments
    rng = random.Random(seed)
    first = rng.randrange(WARM_DAYS + 11, 365 - days - 2)
    homes = [Home(rng, first, days) for _ in range(count)]
    arms = {name: Arm(count) for name in ("fixed", "agents")}
    with tempfile.TemporaryDirectory() as folder:
        agents = Agents(count, folder)
        fixed, levels = [], {"fixed": {}, "agents": {}}
        results = [[[0.0] * 4 for _ in range(count)] for _ in range(DAY)]
        imports = [[] for _ in range(count)]
        for step in range(days * DAY):
            slot, at = first * DAY + step, WARM_DAYS * DAY + step
            now = FIRST_NS + slot * SLOT_NS
            if step % DAY == 0 and step:
                agents.day_over(homes, at, slot, imports)
                imports = [[] for _ in range(count)]
            if step % 4 == 0:
                for home in homes:
                    home.see(at, slot)
                agents.hour(
                    homes,
                    at,
                    slot,
                    [[sum(row[index][part] for row in results) for part in range(4)] for index in range(count)],
                )
                if step % DAY == 0 and (event := fixed_event(homes, slot)) is not None:
                    fixed.append(event)
                for home in homes:
                    home.next4 = {arm: home.outlook(arm) for arm in arms}
            for home in homes:
                home.outlook_next = {arm: home.next4[arm][step % 4] for arm in arms}
            results[step % DAY] = [[0.0] * 4 for _ in range(count)]
            for name, arm in arms.items():
                events = fixed if name == "fixed" else agents.events
                for event in events[-3:]:
                    if event.start_ns - 4 * SLOT_NS == now:
                        levels[name][event.id] = dispatch(homes, name, event, now)
                        arm.events, arm.asked = arm.events + 1, arm.asked - event.target_w
                active = [
                    levels[name].get(event.id, {}) for event in events[-3:] if event.start_ns <= now < event.end_ns
                ]
                own = name == "agents"
                committed = trade(homes, name, agents.trade if own else [True] * count, agents.halted if own else False)
                total = 0.0
                for index, home in enumerate(homes):
                    limits = [one[index] for one in active if index in one]
                    if own and agents.limit[index] is not None:
                        limits.append(agents.limit[index])
                    grid = home.step(
                        name, at, slot, reserve=agents.reserve[index] if own else 0.05, limit=min(limits) if limits else None,
                        committed=committed[index],
                    )  # fmt: skip
                    total += grid
                    arm.peak[index] = max(arm.peak[index], grid * 4)
                    off, middle = grid - committed[index], (price(slot) + FEED) / 2
                    arm.cost[index] += committed[index] * middle + off * (price(slot) if off > 0 else FEED)
                    if committed[index]:
                        missed = max(0.0, abs(committed[index]) - max(0.0, math.copysign(1, committed[index]) * grid))
                        arm.traded, arm.imbalance = arm.traded + abs(committed[index]), arm.imbalance + abs(off)
                        if own:
                            kept = abs(committed[index]) - missed
                            results[step % DAY][index] = [
                                abs(committed[index]),
                                missed,
                                kept * (price(slot) - FEED) / 2,
                                missed * (price(slot) - FEED) / 2,
                            ]
                    if own:
                        imports[index].append(grid)
                arm.fleet.append(total * 4)
            if agents.halted is False:
                agents.prices.append((price(slot) + FEED) // 2)
        agents.database.close()
    row = {}
    for name, arm in arms.items():
        worth = sum((home.stored[name] - 1280.0) * 2200 for home in homes)
        row[name] = {
            "cost": (sum(arm.cost) - worth) / 1e7,
            "home_peak_kw": sum(arm.peak) / count / 1000,
            "fleet_peak_kw": max(arm.fleet) / 1000,
            "daily_fleet_peak_kw": statistics.mean(
                max(arm.fleet[at : at + DAY]) for at in range(0, len(arm.fleet), DAY)
            )
            / 1000,
            "imbalance_share": arm.imbalance / max(1.0, arm.traded),
            "imbalance_kwh": arm.imbalance / 1000,
            "events": arm.events,
        }
    return row


def interval(values):
    """Mean and half of the 95 % confidence interval."""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    t = T975.get(len(values) - 1, 1.96 if len(values) > 40 else 2.3)
    return statistics.mean(values), t * spread / math.sqrt(len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", default="100-111", help="first-last")
    parser.add_argument("--homes", type=int, default=3)
    parser.add_argument("--days", type=int, default=30)
    arguments = parser.parse_args()
    low, _, high = arguments.seeds.partition("-")
    seeds = range(int(low), int(high or low) + 1)
    with multiprocessing.Pool(min(2, len(seeds))) as pool:
        rows = pool.map(run, [(seed, arguments.homes, arguments.days) for seed in seeds], chunksize=1)
    for name in rows[0]["fixed"]:
        base = statistics.mean(row["fixed"][name] for row in rows)
        changes = [(row["agents"][name] - row["fixed"][name]) / abs(row["fixed"][name] or 1.0) for row in rows]
        mean, half = interval(changes)
        line = {
            "name": f"agents.value.{name}", "value": round(mean, 4), "unit": "relative change", "low": round(mean - half, 4),
            "high": round(mean + half, 4), "fixed": round(base, 3),
            "agents": round(statistics.mean(row["agents"][name] for row in rows), 3), "fleets": len(rows),
        }  # fmt: skip
        print(json.dumps(line) if arguments.json else line)


if __name__ == "__main__":
    main()
