"""A year of a home's devices with weather, noise and one way to age, a sample a quarter of an hour: what maintenance has to judge.

Simulated apart from the gateway's own models: another sky (Kasten and Czeplak), another transposition, other temperatures,
modules that look somewhere near where the site file says.
"""

import math
import random
import sqlite3
from array import array
from collections import Counter

from wattmesh_a2a.devices import Asset, AssetKind, Point, Quality
from wattmesh_edge.image import ImageMaker
from wattmesh_edge.maintenance import DAY_NS, Maintenance
from wattmesh_edge.sun import Plane

STEP_NS = 15 * 60 * 10**9
START_DAY = 20_000
FAULT_DAY = 120
PHASES = ("active_power_l1_w", "active_power_l2_w", "active_power_l3_w")
INVERTER = ("active_power_w", "string_1_power_w", "string_2_power_w", "temperature_cabinet_degc", *PHASES)
BATTERY = ("active_power_w", "soc_percent", "dc_voltage_v", "dc_current_a", "temperature_battery_degc")
METER = ("active_power_w", "frequency_hz", "voltage_l1_v", "voltage_l2_v", "voltage_l3_v")


class Device:
    """The shape of a driver; the year writes its values."""

    def __init__(self, name, kind, points, rated, energy=None):
        self.asset = Asset(
            id=name,
            kind=kind,
            points=tuple(Point(id=one, quantity=one, unit="") for one in points),
            rated_power_w=rated,
            rated_energy_wh=energy,
        )
        self.values, self.qualities = array("d", [0.0] * len(points)), bytearray([Quality.GOOD] * len(points))
        self.known_times_ns, self.counters = array("q", [0] * len(points)), Counter()

    def tell(self, now_ns, *values):
        for index, value in enumerate(values):
            self.values[index], self.known_times_ns[index] = value, now_ns


def year(seed, fault=None, *, days=365, strings=True):
    """Alarms of a year: ``[(day of the year, alarm)]``. ``fault``: one of :data:`WANTED`, from day 120 on (fade: from 0)."""
    rng = random.Random(f"{seed}-{fault}")
    latitude = rng.uniform(36, 54)
    told = Plane(latitude_deg=latitude, longitude_deg=0, tilt_deg=30, azimuth_deg=180)
    tilt, azimuth = math.radians(30 + rng.uniform(-4, 4)), math.radians(180 + rng.uniform(-8, 8))
    mean_c, swing_c = 22 - 0.25 * latitude + rng.uniform(-3, 3), 9 + rng.uniform(-2, 2)
    points = INVERTER if strings else (INVERTER[0], *INVERTER[3:])
    inverter, battery = (
        Device("pv", AssetKind.INVERTER, points, 8000.0),
        Device("battery", AssetKind.BATTERY, BATTERY, 3000.0, 10_000.0),
    )
    meter = Device("meter", AssetKind.METER, METER, None)
    devices = {"pv": inverter, "battery": battery, "meter": meter}
    maker = ImageMaker(devices, "meter", 300.0)
    milliohms, lean = rng.uniform(30, 60), [rng.gauss(1, 0.006) for _ in range(3)]
    sides = [rng.gauss(0, 1.0) for _ in range(3)]
    before_w = 0.0
    watch = Maintenance("home", devices, maker, {"pv": told}, sqlite3.connect(":memory:"))
    soc, weather, alarms = 50.0, 1.0, []
    for day in range(days):
        share = max(0.0, (day - FAULT_DAY) / 365)
        dirt = 1 - 0.12 * share if fault == "soiling" else 1 - 0.004 * rng.random()
        lost = fault == "string" and day >= FAULT_DAY
        fan = 18 + (15 if fault == "fan" and day >= FAULT_DAY else 0)
        capacity = 10_000 * (1 - 0.2 * day / 365 if fault == "fade" else 1 - 0.02 * day / 365)
        winter = 0.5 + 0.5 * math.cos(2 * math.pi * (day + START_DAY % 365 - 10) / 365)
        kind = rng.choices(["clear", "mixed", "grey"], [0.35 - 0.15 * winter, 0.4, 0.25 + 0.15 * winter])[0]
        air_c = mean_c - swing_c * math.cos(2 * math.pi * (day + START_DAY % 365 - 25) / 365) + rng.gauss(0, 3)
        for step in range(96):
            now = (START_DAY + day) * DAY_NS + step * STEP_NS + 60 * 10**9
            hour = step / 4
            if kind == "clear":
                weather = 1 + rng.gauss(0, 0.01)
            elif kind == "mixed":
                weather = min(1.08, max(0.2, weather + rng.gauss(0, 0.25)))
            else:
                weather = min(0.5, max(0.08, weather + rng.gauss(0, 0.05)))
            sky = irradiance(latitude, tilt, azimuth, (START_DAY + day) % 365.2425, hour) * weather
            outside = air_c - 5 * math.cos(2 * math.pi * (hour - 3) / 24)
            power = 8000 * sky / 1000 * (1 - 0.004 * (outside + 27 * sky / 1000 - 25)) * dirt * 0.93
            one, two = power * 0.55, 0.0 if lost else power * 0.45
            power = min(8000.0, one + two)
            cabinet = outside + 6 + fan * (power / 8000) + rng.gauss(0, 0.5)
            third = [-power / 3 * part * (1 + rng.gauss(0, 0.01)) for part in lean]
            if fault == "phase" and day >= FAULT_DAY:
                third = [third[0] * 1.5, third[1] * 1.5, -0.5]
            inverter.tell(now, *((-power, one, two, cabinet, *third) if strings else (-power, cabinet, *third)))
            load = [rng.uniform(100, 1500) for _ in range(3)]
            swing = 6.0 if fault == "neutral" and day >= FAULT_DAY else 0.6
            mean_load = sum(load) / 3
            volts = [
                231 + side + rng.gauss(0, 0.3) - swing * (one_w - mean_load) / 1000
                for side, one_w in zip(sides, load, strict=True)
            ]
            meter.tell(now, sum(load) - power, 50.0, *volts)
            charge = 2500.0 if 10 <= hour < 15 else -1800.0 if 18 <= hour < 24 else 0.0
            moved = charge * 0.25 * (0.95 if charge > 0 else 1 / 0.95) / capacity * 100
            if not 5 <= soc + moved <= 98:
                charge = moved = 0.0
            soc += moved
            if (
                fault == "cycling" and day >= FAULT_DAY and charge == 0.0
            ):  # two controllers that work against each other
                charge = 2200.0 if step % 2 else -2200.0
            cells = 18 + 0.4 * (outside - 18) + rng.gauss(0, 1)
            grown = 1 + (1.0 * share if fault == "resistance" else 0.05 * share)
            ohms = milliohms / 1000 * grown * math.exp(-0.018 * (cells - 25))

            for device in devices.values():
                device.counters["polls"] += 900
                device.counters["failed_polls"] += rng.random() < 0.05
            if fault == "bus" and day >= FAULT_DAY:
                battery.counters["failed_polls"] += rng.randrange(70)
            # A minute before the power moves and a minute after: what a sample a minute sees of a step.
            for moment, told_w in ((now, before_w), (now + 60 * 10**9, charge)):
                battery.tell(
                    moment,
                    told_w * (1 + rng.gauss(0, 0.01)),
                    float(round(soc)),
                    *electric(rng, told_w, soc, ohms),
                    cells,
                )
                inverter.known_times_ns[:] = array("q", [moment] * len(points))
                meter.known_times_ns[:] = array("q", [moment] * len(METER))
                alarms += [(day, alarm) for alarm in watch.observe(moment) if alarm.cleared_ns is None]
            before_w = charge
    return alarms


def electric(rng, power_w, soc, ohms):
    """Voltage and current at a battery's terminals."""
    amperes = power_w / 52.0
    return 51.0 + 0.03 * soc + ohms * amperes + rng.gauss(0, 0.03), amperes * (1 + rng.gauss(0, 0.005))


def irradiance(latitude, tilt, azimuth, day, hour):
    """W/m² on the modules under a clear sky: Kasten and Czeplak (1980), more of it diffuse the lower the sun."""
    declination = math.radians(23.45) * math.sin(2 * math.pi * (day - 80) / 365.24)
    turn, lat = math.radians(15 * (hour - 12)), math.radians(latitude)
    height = math.sin(lat) * math.sin(declination) + math.cos(lat) * math.cos(declination) * math.cos(turn)
    if height < 0.05:
        return 0.0
    level = 910 * height - 30
    east = -math.cos(declination) * math.sin(turn)
    north = math.cos(lat) * math.sin(declination) - math.sin(lat) * math.cos(declination) * math.cos(turn)
    facing = height * math.cos(tilt) + math.sin(tilt) * (north * math.cos(azimuth) + east * math.sin(azimuth))
    share = 0.12 + 0.1 * (1 - height)
    return level * ((1 - share) * max(0.0, facing) / height + share * (1 + math.cos(tilt)) / 2)


WANTED = {
    "soiling": ("yield",),
    "string": ("string", "yield"),
    "fade": ("between empty and full",),
    "fan": ("warming",),
    "resistance": ("internal resistance",),
    "phase": ("phases' powers",),
    "neutral": ("phases' voltages",),
    "cycling": ("full cycles a day",),
    "bus": ("polls without an answer",),
}


def fleet(seeds, fault=None, **more):
    """What became of a fleet of site-years: ``(found, delays in days, false alarms)``.

    An alarm is right when it tells of what was broken, after it was; every other is false.
    """
    begin = 0 if fault == "fade" else FAULT_DAY
    delays, false = [], 0
    for seed in seeds:
        right = []
        for day, alarm in year(seed, fault, **more):
            if day >= begin and any(word in alarm.text for word in WANTED.get(fault or "", ())):
                right.append(day - begin)
            else:
                false += 1
        if right:
            delays.append(min(right))
    return len(delays), sorted(delays), false
