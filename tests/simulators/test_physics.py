"""Energy is neither made nor lost in the simulated homes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_simulators.grid import Grid
from wattmesh_simulators.plant import data
from wattmesh_simulators.plant.physics import Battery, Home, Lease

steps = st.lists(st.tuples(st.floats(-9000, 9000), st.floats(0.1, 3600)), min_size=1, max_size=40)


@settings(max_examples=500, deadline=None)
@given(st.floats(0, 6400), steps)
def test_a_battery_conserves_energy_and_stays_in_its_range(stored, plan):
    battery = Battery(stored_wh=stored)
    for wanted, seconds in plan:
        power = battery.step(wanted, seconds)
        assert abs(power) <= 5000 + 1e-9
        assert power * wanted >= 0
        assert abs(power) <= abs(wanted) + 1e-9
        assert -1e-6 <= battery.stored_wh <= 6400 + 1e-6
    change = battery.stored_wh - stored
    assert battery.charged_wh == pytest.approx(battery.discharged_wh + battery.lost_wh + change, abs=1e-3)


@pytest.mark.parametrize("home", ["b01", "b03", "b05"])
@pytest.mark.parametrize("hour", [0, 13, 500, 8759])
def test_each_hours_energy_is_the_records(home, hour):
    start = data.FIRST_NS + hour * data.HOUR_NS
    moments = range(start + 5 * 10**9, start + data.HOUR_NS, 10 * 10**9)
    load = sum(data.load_w(home, moment) for moment in moments) / 360
    solar = sum(data.pv_w(home, moment) for moment in moments) / 360
    assert load == pytest.approx(data._columns("load_kwh")[home][hour] * 1000, rel=1e-6, abs=1e-6)
    assert solar == pytest.approx(data._columns("pv_kwh")[home][hour] * 1000, rel=1e-6, abs=1e-6)
    assert all(data.load_w(home, moment) >= 0 and data.pv_w(home, moment) >= 0 for moment in moments)


def test_the_year_wraps():
    assert data.load_w("b01", data.FIRST_NS) == data.load_w("b01", data.LAST_NS)


def test_history_is_the_same_energy():
    rows = list(data.history_rows("b02", data.FIRST_NS, data.FIRST_NS + 24 * data.HOUR_NS))
    assert len(rows) == 96
    assert sum(load for _, load, _ in rows) == pytest.approx(
        sum(data._columns("load_kwh")["b02"][:24]) * 1000, rel=1e-3
    )


def test_a_homes_meters_agree_with_its_power():
    home = Home("b01", 50.0, lambda: 60.0)
    now, imported, exported = data.FIRST_NS + 12 * data.HOUR_NS, home.import_wh, home.export_wh
    total = 0.0
    for step in range(360):
        now += 10 * 10**9
        home.write("wset_w", -2000.0 if step % 2 else 1500.0, now)
        home.step(now, 10.0)
        assert home.grid_w == pytest.approx(home.load_w - home.pv_w + home.battery.active_w)
        total += home.grid_w / 360
    assert home.import_wh - imported - (home.export_wh - exported) == pytest.approx(total)
    assert sum(home.actual.import_wh) == pytest.approx(home.import_wh - imported)
    assert len(home.actual.start_ns) == 4
    # The shadow that consumes its own never imports while it could discharge, nor exports while it could charge.
    assert sum(home.self_consumption.export_wh) <= sum(home.no_battery.export_wh)


def test_a_setpoint_that_nobody_renews_falls_back():
    lease = Lease(0.0)
    lease.value, lease.timeout_s = -500.0, 60.0
    lease.renew(0)
    assert lease.current(60 * 10**9) == -500.0
    assert lease.current(61 * 10**9) == 0.0
    assert lease.reverted == 1
    assert lease.current(62 * 10**9) == 0.0


class Seconds:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def swing(response_w):
    clock = Seconds()
    deviation = {"w": 0.0}
    grid = Grid(noise_hz=0.0, monotonic=clock, batteries_w=lambda: deviation["w"])
    assert grid.frequency_hz() == 60.0
    grid.disturb(-15_000.0)
    trace = []
    for step in range(400):
        clock.now = step * 0.02
        trace.append(grid.frequency_hz())
        if trace[-1] < 59.8:
            deviation["w"] = response_w
    grid.disturb(0.0)
    deviation["w"] = 0.0
    for step in range(400, 2400):
        clock.now = step * 0.02
        trace.append(grid.frequency_hz())
    return trace


def test_losing_generation_lowers_the_frequency_and_batteries_raise_the_nadir():
    alone, helped = swing(0.0), swing(-8000.0)
    assert 59.2 < min(alone) < 59.75
    assert min(helped) > min(alone) + 0.03
    assert alone[-1] == pytest.approx(60.0, abs=0.02)
    slope = (alone[5] - alone[1]) / 0.08
    assert slope == pytest.approx(-60 * 15_000 / (2 * 4 * 200_000), rel=0.1)  # the swing equation's first instant
