"""Feeder, load balance, voltages and early warnings."""

import cmath
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_cloud.grid.areas import AreaMonitor, SiteMeasurement
from wattmesh_cloud.grid.config import AreaConfig, GridConfig
from wattmesh_cloud.grid.feeder import SOURCE, Feeder, Line

SLOT = 900 * 10**9


def chain(*impedances):
    """Lines one behind the other, from the transformer."""
    names = [SOURCE, *(f"n{at}" for at in range(1, len(impedances) + 1))]
    return [
        Line(start=names[at], end=names[at + 1], r_ohm=one.real, x_ohm=one.imag, limit_a=250)
        for at, one in enumerate(impedances)
    ]


def full_power_flow(lines, active, reactive, nominal_v):
    """The whole AC power flow of a radial feeder by backward and forward sweeps (Shirmohammadi et al. 1988), losses and all."""
    voltage = dict.fromkeys([SOURCE, *(line.end for line in lines)], complex(nominal_v / math.sqrt(3)))
    for _ in range(60):
        current = {
            node: (complex(active.get(node, 0), reactive.get(node, 0)) / 3 / voltage[node]).conjugate()
            for node in voltage
        }
        for line in reversed(lines):
            current[line.start] += current[line.end]
        for line in lines:
            voltage[line.end] = voltage[line.start] - current[line.end] * complex(line.r_ohm, line.x_ohm)
    return {node: abs(one) / (nominal_v / math.sqrt(3)) for node, one in voltage.items()}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.005, 0.05), st.floats(0.002, 0.03)), min_size=1, max_size=5),
    st.lists(st.tuples(st.floats(-8000, 12_000), st.floats(-2000, 3000)), min_size=5, max_size=5),
)
def test_voltages_are_those_of_the_full_power_flow_but_for_losses(impedances, loads):
    lines = chain(*(complex(r, x) for r, x in impedances))
    active = {line.end: loads[at][0] for at, line in enumerate(lines)}
    reactive = {line.end: loads[at][1] for at, line in enumerate(lines)}
    found = Feeder(lines, nominal_v=400, rated_va=1e5).flow(active, reactive)
    truth = full_power_flow(lines, active, reactive, 400)
    assert found.source_w == pytest.approx(sum(active.values()))
    for node, value in truth.items():
        assert found.voltage_pu[node] == pytest.approx(value, abs=0.1 * abs(1 - value) + 0.004)
        assert cmath.isfinite(found.voltage_pu[node])


def test_a_branch_carries_what_hangs_on_it():
    lines = [
        Line(start=SOURCE, end="a", r_ohm=0.1, x_ohm=0.05, limit_a=100),
        Line(start="a", end="b", r_ohm=0.1, x_ohm=0.05, limit_a=100),
        Line(start="a", end="c", r_ohm=0.1, x_ohm=0.05, limit_a=100),
    ]
    found = Feeder(lines, nominal_v=400, rated_va=1e5).flow({"b": 4000, "c": -1000}, {})
    assert found.line_power_w == {"a": 3000, "b": 4000, "c": -1000}
    assert found.voltage_pu["b"] < found.voltage_pu["a"] < 1 < found.voltage_pu["c"] + 0.01
    assert found.voltage_pu["c"] > found.voltage_pu["a"]
    assert found.line_current_a["a"] == pytest.approx(3000 / 400 / math.sqrt(3))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([("x", "y")], "not connected"),
        ([(SOURCE, "a"), (SOURCE, "a")], "two lines end"),
        ([(SOURCE, "a"), ("a", SOURCE)], "leads back"),
    ],
    ids=["loose", "double", "ring"],
)
def test_what_is_no_tree_is_refused_by_name(lines, said):
    with pytest.raises(ConfigurationError, match=said):
        Feeder(
            [Line(start=start, end=end, r_ohm=0.1, x_ohm=0.1, limit_a=1) for start, end in lines],
            nominal_v=400,
            rated_va=1e5,
        )


AREA = {
    "id": "north",
    "rated_w": 6000,
    "sites": {"ann": "n1", "bob": "n2"},
    "lines": [
        {"from": "transformer", "to": "n1", "r_ohm": 0.2, "x_ohm": 0.08, "limit_a": 60},
        {"from": "n1", "to": "n2", "r_ohm": 0.9, "x_ohm": 0.3, "limit_a": 60},
    ],
}


def monitor(measured=None, forecasts=None, **changes):
    return AreaMonitor(
        [AreaConfig.model_validate({**AREA, **changes})], lambda: forecasts or {}, lambda: measured or {}
    )


def taken(watts, *, time_ns=10**12, voltage=None):
    return SiteMeasurement(
        time_ns=time_ns, grid_w=watts, load_w=watts + 500, pv_w=-500.0, battery_w=0.0, voltage_v=voltage
    )


def test_balance_counts_only_what_is_known_and_fresh():
    found = monitor({"ann": taken(3000.0), "bob": taken(9000.0, time_ns=0)}).balance("north", 10**12)
    assert (found.sites, found.known, found.grid_w, found.load_w, found.pv_w) == (2, 1, 3000, 3500, -500)
    assert found.loading == 0.5


def test_voltages_measured_and_modelled():
    base = 400 / math.sqrt(3)
    watched = monitor({"ann": taken(2000.0, voltage=base * 0.99), "bob": taken(8000.0)})
    ann, bob = watched.voltages("north", 10**12)
    assert (ann.measured_pu, bob.measured_pu) == (pytest.approx(0.99), None)
    assert bob.modelled_pu < ann.modelled_pu == pytest.approx(0.99)  # the model meets what is measured
    assert not ann.outside
    far = monitor({"bob": taken(60_000.0)}).voltages("north", 10**12)[1]
    assert far.outside


def test_without_areas_there_is_one_of_every_site():
    watched = AreaMonitor((), dict, lambda: {"ann": taken(100.0)})
    assert watched.ids() == ["all"]
    assert watched.balance("all", 10**12).grid_w == 100
    assert watched.voltages("all", 10**12)[0].modelled_pu is None


def test_warnings_tell_what_when_and_how_sure(make_forecast, midnight_ns):
    load = [400.0] * 40 + [900.0] * 4 + [400.0] * 80  # 1.6 kW each, and 3.6 kW each for an hour: 7.2 of 6 kW
    forecasts = {site: {"load_wh": make_forecast(site, "load_wh", midnight_ns, load)} for site in ("ann", "bob")}
    found = monitor(forecasts=forecasts).warnings(midnight_ns)
    (over,) = [one for one in found if one.kind == "overload"]
    assert (over.start_ns, over.end_ns) == (midnight_ns + 40 * SLOT, midnight_ns + 44 * SLOT)
    assert over.lead_s == 10 * 3600
    assert over.value == pytest.approx(7200 / 6000)
    assert over.level == "expected"
    soon = monitor(forecasts=forecasts, rated_w=7600).warnings(midnight_ns)
    (maybe,) = [one for one in soon if one.kind == "overload"]
    assert maybe.level == "possible"
    assert monitor(forecasts=forecasts, rated_w=20_000, voltage_band=0.4).warnings(midnight_ns) == []


def test_low_voltage_is_warned_of_where_it_is(make_forecast, midnight_ns):
    load = {"ann": [100.0] * 100, "bob": [5000.0] * 100}
    forecasts = {site: {"load_wh": make_forecast(site, "load_wh", midnight_ns, rows)} for site, rows in load.items()}
    found = monitor(forecasts=forecasts, rated_w=1e6).warnings(midnight_ns)
    assert {(one.kind, one.element) for one in found if one.level == "expected"} == {("under_voltage", "bob")}


def test_a_mistake_in_the_areas_is_named():
    with pytest.raises(ValueError, match="which no line reaches"):
        AreaConfig.model_validate({**AREA, "sites": {"ann": "n9"}})
    with pytest.raises(ValueError, match="is in area north and in area south"):
        GridConfig.model_validate({"areas": [AREA, {**AREA, "id": "south"}]})
    with pytest.raises(ValueError, match="none of the area's sites"):
        AreaConfig.model_validate({**AREA, "critical": ["cem"]})
