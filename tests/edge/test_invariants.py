"""What may never happen at any site, whatever is proposed, whatever fails, and however clocks jump: 100,000 cycles in virtual time.

The model here knows the plant, the faults and the time; it does not know how the gateway decides. It states what may happen.
"""

import logging
import math
import random
from array import array
from collections import Counter
from types import SimpleNamespace

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import GRID_CONNECTION, Applied, Bounds, Failed, Priority, Proposal
from wattmesh_a2a.devices import Asset, AssetKind, Point, Quality
from wattmesh_drivers.driver import DriverState
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.image import ESTIMATE_S, STALE_PERIODS, ImageMaker
from wattmesh_edge.limits import BatteryLimits, SiteLimits

S = 10**9
SITES_A_SEED, CYCLES_A_SITE = 10, 625
SEEDS = range(16)
POINTS = {
    AssetKind.METER: ("active_power_w", "frequency_hz", "active_power_l1_w", "active_power_l2_w", "active_power_l3_w"),
    AssetKind.BATTERY: ("active_power_w", "soc_percent", "charge_limit_w", "discharge_limit_w"),
    AssetKind.INVERTER: ("active_power_w",),
    AssetKind.EV_CHARGER: ("active_power_w",),
}


class Hardware:
    """A driver over a device of the model's plant, with faults."""

    def __init__(self, name, kind, clock, rated=None):
        points = tuple(Point(id=one, quantity=one, unit="") for one in POINTS[kind])
        self.asset = Asset(id=name, kind=kind, points=points, rated_power_w=rated)
        power = {"active_power_w": 1}
        controls = {
            AssetKind.BATTERY: power, AssetKind.EV_CHARGER: power, AssetKind.INVERTER: {"production_limit_percent": 1},
        }  # fmt: skip
        self.template = SimpleNamespace(controls=controls.get(kind, {}), safe_state={})
        self.values = array("d", [math.nan] * len(points))
        self.qualities = bytearray([Quality.BAD] * len(points))
        self.source_times_ns = self.known_times_ns = array("q", [0] * len(points))
        self.state, self.counters = DriverState.READY, Counter()
        self.clock, self.fault, self.real = clock, None, {}
        self.read_at, self.written, self.refuses = -math.inf, None, False

    async def poll(self):
        if self.fault == "raises":
            raise RuntimeError("a mistake in the driver")
        if self.fault == "dead":
            self.qualities[:] = bytes([Quality.BAD] * len(self.values))
            return False
        if self.fault == "frozen":  # answers nothing new, and says nothing of it
            return True
        for index, point in enumerate(self.asset.points):
            value = self.real.get(point.id)
            self.values[index] = math.nan if value is None or self.fault == "nan" else value
            self.qualities[index] = Quality.BAD if value is None else Quality.GOOD
            self.known_times_ns[index] = self.clock.utc_ns()
        if self.fault is None:
            self.read_at = self.clock.monotonic_ns()
        return True

    async def control(self, _name, value):
        self.written = value
        self.counters["writes"] += 1
        return Failed(reason="lost", retryable=True) if self.refuses or self.fault == "dead" else Applied(value=value)

    async def apply_safe_state(self):
        return []


class World:
    """A random site: plant, faults, proposals and clocks."""

    def __init__(self, rng):
        self.rng = rng
        self.clock = ManualClock()
        self.period_s = rng.choice([0.5, 1.0, 5.0])
        names = [f"b{index}" for index in range(rng.choice([1, 1, 2, 3, 5]))]
        plain = rng.random() < 0.5
        self.limits = {
            name: BatteryLimits(
                rated_power_w=rng.choice([1500, 3000, 5000, 20_000]),
                rated_energy_wh=rng.choice([3000, 6400, 30_000]),
                min_soc_percent=rng.choice([0, 5, 20]),
                max_soc_percent=rng.choice([80, 95, 100]),
                ramp_w_per_s=math.inf if plain else rng.choice([math.inf, 100.0, 1000.0]),
                idle_below_w=0.0 if plain else rng.choice([0.0, 0.0, 250.0]),
                phase=None if plain else rng.choice([None, 1, 2, 3]),
                health=rng.choice([1.0, 0.8]),
            )
            for name in names
        }
        cars = [f"car{index}" for index in range(rng.choice([0, 0, 1, 2]))]
        self.limits |= {
            name: BatteryLimits(
                rated_power_w=rng.choice([2300, 7360, 11_040]),
                rated_energy_wh=0,
                ramp_w_per_s=math.inf if plain else rng.choice([math.inf, 500.0]),
                idle_below_w=0.0 if plain else rng.choice([0.0, 1380.0]),
                phase=None if plain else rng.choice([None, 1, 2, 3]),
                stores=False,
            )
            for name in cars
        }
        self.takes = dict.fromkeys(cars, 1.0)
        """Share of what it was told that a car takes: not plugged in, on one phase of three, or at a high voltage."""
        self.site = SiteLimits(
            import_limit_w=rng.choice([3000, 12_000, 40_000]),
            export_limit_w=rng.choice([0, 3000, 12_000]),
            phase_limit_w=None if plain else rng.choice([None, 4000.0, 8000.0]),
        )
        self.simple = plain
        self.hardware = {name: Hardware(name, AssetKind.BATTERY, self.clock) for name in names}
        self.hardware |= {name: Hardware(name, AssetKind.EV_CHARGER, self.clock) for name in cars}
        self.hardware["pv"] = Hardware("pv", AssetKind.INVERTER, self.clock, rated=10_000)
        self.hardware["meter"] = Hardware("meter", AssetKind.METER, self.clock)
        self.soc = {name: rng.uniform(0, 100) for name in names}
        self.power = dict.fromkeys(self.limits, 0.0)
        self.before = dict.fromkeys(self.limits, 0.0)
        self.load, self.pv = 500.0, 0.0
        self.standing: list[Proposal] = []
        self.good_load_at = -math.inf
        self.last_at = None
        self.rows, self.asked = [], 0
        self.cycle = ControlCycle(
            self.hardware, ImageMaker(self.hardware, "meter", self.period_s), [self, Broken(rng)], self.limits,
            self.site, self.clock, period_s=self.period_s, record=lambda *row: self.rows.append(row),
            traded_wh=lambda: 0.0, real_ns=lambda: 0,
        )  # fmt: skip

    name = "world"

    def propose(self, image, _traded):
        """Standing proposals, some of which have run out: they are kept and handed over all the same."""
        rng, now = self.rng, image.monotonic_ns
        self.standing = [one for one in self.standing if one.expires_ns > now - 20 * S and rng.random() > 0.05]
        for _ in range(rng.choice([0, 0, 1, 2])):
            low = rng.uniform(-25_000, 25_000)
            self.asked += 1
            self.standing.append(
                Proposal(
                    asset_id=rng.choice([GRID_CONNECTION, GRID_CONNECTION, *self.limits, "nobody"]),
                    priority=rng.choice(list(Priority)[2:]),
                    source=f"p{self.asked};",
                    expires_ns=now + round(rng.uniform(-2, 20) * S),
                    target_w=rng.choice(
                        [None, 0.0, rng.uniform(-25_000, 25_000), math.nan if rng.random() < 0.1 else 1.0]
                    ),
                    bounds=rng.choice(
                        [None, Bounds(min_w=low, max_w=low + rng.choice([0, 5000, math.inf]), reason=f"r{self.asked};")]
                    ),
                )
            )
        self.live = [one for one in self.standing if one.expires_ns > now]
        self.gone = [one for one in self.standing if one.expires_ns <= now]
        return self.standing

    def happen(self):
        """Load, sun, faults and time move on."""
        rng = self.rng
        self.load = max(0.0, rng.choice([self.load, self.load + rng.gauss(0, 300), rng.uniform(0, 30_000)]))
        self.pv = -rng.choice([0.0, -self.pv, rng.uniform(0, 10_000)])
        for device in self.hardware.values():
            if rng.random() < 0.02:
                device.fault = rng.choice([None, None, None, "dead", "frozen", "nan", "raises"])
            device.refuses = rng.random() < 0.02
        step_s = self.period_s if rng.random() > 0.02 else rng.choice([2, 7, 30]) * self.period_s
        self.clock.set_ns(self.clock.monotonic_ns() + round(step_s * S))
        if rng.random() < 0.02:
            self.clock.utc_offset_ns += round(rng.choice([-1, 1]) * rng.choice([2, 60, 3600, 86_400 * 365]) * S)
        for name in self.takes:
            if rng.random() < 0.02:
                self.takes[name] = rng.choice([0.0, 1 / 3, 1.0, 1.0, 1.0 if self.simple else 1.1])
            self.hardware[name].real = {"active_power_w": self.power[name]}
        for name, limits in self.limits.items():
            if name in self.takes:
                continue
            self.soc[name] = min(
                100.0, max(0.0, self.soc[name] + 100 * self.power[name] * step_s / 3600 / limits.rated_energy_wh)
            )
            if rng.random() < 0.01:
                self.soc[name] = rng.choice([limits.min_soc_percent, limits.max_soc_percent, 0.0, 100.0, 50.0])
            real = {"active_power_w": self.power[name], "soc_percent": self.soc[name]}
            if rng.random() < 0.05:
                real["charge_limit_w"] = rng.uniform(0, limits.rated_power_w)
                real["discharge_limit_w"] = rng.uniform(0, limits.rated_power_w)
            self.hardware[name].real = real
        self.hardware["pv"].real = {"active_power_w": self.pv}
        grid = self.load + self.pv + sum(self.power.values())
        phases = {
            f"active_power_l{index}_w": (self.load + self.pv) / 3
            + sum(power * self.limits[name].share_of_phase(index) for name, power in self.power.items())
            for index in (1, 2, 3)
        }
        self.hardware["meter"].real = {"active_power_w": grid, "frequency_hz": 50.0, **phases}

    async def step(self):
        self.happen()
        for device in self.hardware.values():
            device.written = None
        await self.cycle.cycle()
        if len(self.rows) != 1:
            raise AssertionError("a cycle leaves one record")
        image, decisions, outcomes = self.rows.pop()
        self.check(image, [one for one in decisions if one.asset_id in self.limits], outcomes)
        for name in self.limits:
            if outcomes[name] == "Applied":
                self.before[name] = self.hardware[name].written
                self.power[name] = self.before[name] * self.takes.get(name, 1.0)
            else:
                self.before[name] = 0.0
                self.power[name] = self.rng.choice([self.power[name], 0.0])
        self.last_at = image.monotonic_ns

    # -- what may happen

    def check(self, image, decisions, outcomes):
        command = {name: self.hardware[name].written for name in self.limits}
        self.check_devices(image, command)
        self.check_knowledge(image, command)
        self.check_sum(decisions, command, outcomes)
        told = " ".join(f"{one.decided_by} {one.limited_by} {one.conflicts}" for one in decisions)
        for one in self.gone:
            assert one.source not in told, "expired, and had an effect"
            assert one.bounds is None or one.bounds.reason not in told, "expired, and had an effect"
        if image.rest_power_w is not None and image.grid_power_w.quality == Quality.GOOD:
            self.check_connection(image, command)
        if not self.live:
            self.check_nobody_asks(image, command)

    def least_and_most(self, name):
        """What the device itself allows, as far as the hardware told it in time."""
        limits, device = self.limits[name], self.hardware[name]
        if name in self.takes:
            return 0.0, limits.rated_power_w
        low, high = -limits.rated_power_w, limits.rated_power_w
        places = {point.id: index for index, point in enumerate(device.asset.points)}
        if device.qualities[places["soc_percent"]] == Quality.GOOD:
            soc = device.values[places["soc_percent"]]
            low = 0.0 if soc <= limits.min_soc_percent else low
            high = 0.0 if soc >= limits.max_soc_percent else high
        if device.fault is None and "charge_limit_w" in device.real:
            low, high = max(low, -device.real["discharge_limit_w"]), min(high, device.real["charge_limit_w"])
        return low, high

    def free_to_choose(self, image):
        """Whether nothing that stands above a car's comfort forces a power upon it."""
        rest = image.rest_power_w
        inside = rest is not None and -self.site.export_limit_w <= rest <= self.site.import_limit_w
        return inside and self.site.phase_limit_w is None and not any(one.bounds is not None for one in self.live)

    def check_devices(self, image, command):
        for name, power in command.items():
            assert power is not None, "every battery is told its power in each cycle: that feeds its watchdog"
            low, high = self.least_and_most(name)
            assert low <= power <= high, (name, power, low, high)
            if name in self.takes and self.free_to_choose(image):
                assert power == 0 or power >= self.limits[name].idle_below_w, "a car at less than its least current"

    def check_knowledge(self, image, command):
        stale_ns = STALE_PERIODS * self.period_s * S
        now = image.monotonic_ns
        for name, power in command.items():
            device = self.hardware[name]
            if device.fault in {"dead", "nan"} or now - device.read_at > stale_ns:
                assert power == 0.0, f"{name} is not known and was told {power}"
        meter = self.hardware["meter"]
        if meter.fault in {"dead", "nan"} or now - meter.read_at > stale_ns:
            assert image.grid_power_w is None or image.grid_power_w.quality != Quality.GOOD
            for name, power in command.items():
                assert 0 <= power / self.before[name] <= 1 if self.before[name] else power == 0.0, "raised blindly"
            if self.good_load_at < now - ESTIMATE_S * S:
                assert not any(command.values()), "nothing was known for long"
        else:
            self.good_load_at = now

    def check_sum(self, decisions, command, outcomes):
        assert {one.asset_id for one in decisions} == set(command) <= set(outcomes)
        for one in decisions:
            assert one.target_w == command[one.asset_id]
            assert math.isfinite(one.target_w)
            assert abs(one.requested_w - one.remaining_w - one.target_w) < 1e-3
            if abs(one.remaining_w) >= 10:
                assert one.limited_by, "what is not met has a reason"

    def check_connection(self, image, command):
        """Within what the connection carries, or all that can be done against it is done."""
        rest = image.rest_power_w
        grid = rest + sum(command.values())
        over = sum(min(max(0.0, self.power[name] - self.before[name]), 0.15 * self.before[name]) for name in self.takes)
        """What cars took above what they were told: rightly counted as if nobody steered it."""
        banded = any(limits.idle_below_w for limits in self.limits.values())
        if self.site.phase_limit_w is None and not banded:
            if grid > self.site.import_limit_w + 0.01:
                assert all(power <= self.possible(image, name)[0] + 1 for name, power in command.items()), grid
            if grid < -self.site.export_limit_w - over - 0.01:
                assert all(power >= self.possible(image, name)[1] - 1 for name, power in command.items()), grid
        else:
            assert grid <= max(self.site.import_limit_w, rest) + 0.01 or rest < -self.site.export_limit_w
            assert grid >= min(-self.site.export_limit_w, rest) - over - 0.01 or rest > self.site.import_limit_w - over
        if over and grid + over > self.site.import_limit_w + 0.01:
            assert (
                all(power <= max(0.0, self.possible(image, name)[0]) + 1 for name, power in command.items()) or banded
            )
        if self.site.phase_limit_w is not None and image.phase_power_w is not None:
            self.check_phases(image, command)
        if self.simple:
            self.check_rank(image, command, grid)

    def possible(self, image, name):
        if name in self.takes:
            return 0.0, 0.0 if image.loads[name] is None else self.limits[name].rated_power_w
        battery = image.batteries[name]
        if battery.soc_percent is None or battery.active_power_w is None:
            return 0.0, 0.0
        low, high = self.least_and_most(name)
        device = self.hardware[name]
        told = {point.id: device.values[index] for index, point in enumerate(device.asset.points)}
        if battery.charge_limit_w is not None:
            high = min(high, told["charge_limit_w"])
        if battery.discharge_limit_w is not None:
            low = max(low, -told["discharge_limit_w"])
        return low, high

    def seen(self, image, name):
        return image.loads[name] if name in self.takes else image.batteries[name].active_power_w

    def check_phases(self, image, command):
        for phase in (1, 2, 3):
            now = sum(
                limits.share_of_phase(phase) * (self.seen(image, name) or 0.0) for name, limits in self.limits.items()
            )
            rest = image.phase_power_w[phase - 1] - now
            added = sum(self.limits[name].share_of_phase(phase) * power for name, power in command.items())
            limit = self.site.phase_limit_w
            assert rest + added <= max(limit, rest) + 0.01 or rest < -limit, (phase, rest, added)
            assert rest + added >= min(-limit, rest) - 0.01 or rest > limit, (phase, rest, added)

    def check_rank(self, image, command, grid):
        """Who stands highest gets what is possible, whatever the lower ones want."""
        top = min(self.live, key=lambda one: one.priority, default=None)
        if top is None or sum(one.priority == top.priority for one in self.live) > 1:
            return
        ends = {name: self.possible(image, name) for name in command}
        if top.asset_id == GRID_CONNECTION:
            lows, highs = sum(end[0] for end in ends.values()), sum(end[1] for end in ends.values())
            least = max(image.rest_power_w + lows, -self.site.export_limit_w)
            most = min(image.rest_power_w + highs, self.site.import_limit_w)
            value = grid
        elif top.asset_id in ends:
            least, most = ends[top.asset_id]
            spare_low = sum(end[0] for name, end in ends.items() if name != top.asset_id)
            spare_high = sum(end[1] for name, end in ends.items() if name != top.asset_id)
            most = min(most, self.site.import_limit_w - image.rest_power_w - spare_low)
            least = max(least, -self.site.export_limit_w - image.rest_power_w - spare_high)
            value = command[top.asset_id]
        else:
            return
        if least > most:
            return  # the site is overloaded and cannot be mended: another check's matter
        bounds, wanted = top.bounds, top.target_w
        if bounds is not None:
            assert value >= min(bounds.min_w, most) - 1.01, (top, value, least, most)
            assert value <= max(bounds.max_w, least) + 1.01, (top, value, least, most)
        elif wanted is not None and math.isfinite(wanted):
            assert abs(value - min(max(wanted, least), most)) <= 10 * len(command), (top, value, least, most)

    def check_nobody_asks(self, image, command):
        rest = image.rest_power_w
        inside = rest is not None and -self.site.export_limit_w <= rest <= self.site.import_limit_w
        if rest is None or (inside and self.site.phase_limit_w is None):
            assert not any(command.values()), "nobody asks, and nothing has to be protected: the safe state"


class Broken:
    name = "broken"

    def __init__(self, rng):
        self.rng = rng

    def propose(self, _image, _traded):
        if self.rng.random() < 0.1:
            raise ZeroDivisionError
        return []


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_that_may_not_happen_happens(seed):
    logging.getLogger("wattmesh_edge").setLevel(logging.CRITICAL)
    try:
        cycles = 0
        for number in range(SITES_A_SEED):
            world = World(random.Random(f"{seed}.{number}"))
            for _ in range(CYCLES_A_SITE):
                await world.step()
                cycles += 1
    finally:
        logging.getLogger("wattmesh_edge").setLevel(logging.NOTSET)
    assert cycles * len(SEEDS) >= 100_000
