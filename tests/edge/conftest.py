"""Devices that a test sets by hand, in the shape of drivers."""

import math
from array import array
from collections import Counter

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied
from wattmesh_a2a.devices import Asset, Point, Quality
from wattmesh_drivers.driver import DriverState
from wattmesh_drivers.template import load_template


class HandDriver:
    """Reads what the test put there, remembers what was written."""

    def __init__(self, asset_id, template, clock, rated_power_w=None):
        self.template = load_template(template)
        points = tuple(
            Point(id=p.id, quantity=p.id, unit="", resolution=p.scale if p.type and p.type[0] in "us" else None)
            for p in self.template.points
        )
        self.asset = Asset(id=asset_id, kind=self.template.kind, points=points, rated_power_w=rated_power_w)
        self.values = array("d", [0.0] * len(points))
        self.qualities = bytearray(len(points))
        self.source_times_ns = self.known_times_ns = array("q", [0] * len(points))
        self.state = DriverState.READY
        self.counters = Counter()
        self.written = []
        self.outcome = None
        self.alive = True
        self._clock = clock

    def set(self, **values):
        places = {point.id: index for index, point in enumerate(self.asset.points)}
        for name, value in values.items():
            self.values[places[name]] = value

    async def connect(self):
        pass

    async def poll(self):
        for index in range(len(self.values)):
            if self.alive:
                self.source_times_ns[index] = self._clock.utc_ns()
                self.qualities[index] = Quality.GOOD
            else:
                self.values[index] = math.nan
                self.qualities[index] = Quality.BAD
        return self.alive

    async def control(self, name, value):
        if self.outcome is not None:
            return self.outcome
        self.written.append((name, value))
        self.counters["writes"] += 1
        return Applied(value=value)

    async def apply_safe_state(self):
        return [await self.control(name, value) for name, value in self.template.safe_state.items()]

    def register_of(self, _point):
        return None

    async def close(self):
        pass


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def devices(clock):
    return {
        "inverter": HandDriver("inverter", "sunspec_inverter", clock, rated_power_w=4000),
        "battery": HandDriver("battery", "sunspec_battery", clock, rated_power_w=5000),
        "meter": HandDriver("meter", "sunspec_meter_203", clock),
    }
