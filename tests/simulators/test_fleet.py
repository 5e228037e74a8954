"""A fleet's process: its file, its ports, disturbances that hold time still, the truth, and going on after a restart."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.config_file import load_yaml_model
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_simulators.fleet import Fleet, FleetModel
from wattmesh_simulators.grid import Grid
from wattmesh_simulators.plant import data
from wattmesh_simulators.plant.physics import Battery, Home

S = 10**9
SITE = "  - {{id: {id}, home: b01, inverter: {{port: {port}}}, battery: {{port: 0{battery}}}, meter: {{port: 0{meter}}}}}\n"


def fleet_file(folder, *sites, more=""):
    path = folder / "fleet.yaml"
    lines = [SITE.format(**{"id": "h", "port": 0, "battery": "", "meter": ""} | site) for site in sites or ({},)]
    path.write_text("sites:\n" + "".join(lines) + more)
    return path


@pytest.mark.parametrize(
    ("sites", "more", "says"),
    [
        ([{"battery": ", template: sunspec_batery"}], "", ":2: sites[0].battery.template: .*there are: abb_b23_b24"),
        ([{"meter": ", template: sunspec_battery"}], "", "template of a device of kind 'battery'; this is the meter"),
        ([{}, {}], "", "h stands twice"),
        ([{"port": 15002}, {"id": "i", "port": 15002}], "", "two devices want port 15002"),
        ([{"port": 70000}], "", ":2: sites[0].inverter.port: .*65535"),
        ([{"battery": ", initial_soc_percent: 120"}], "", "initial_soc_percent: .*100"),
        ([{}], "disturbances:\n  - {at: 10, power_w: -5, hold_s: 600}\n", ":4: .*hold_s: .*20"),
        ([{}], "disturbances:\n  - {at: '2022-09-01T10:00:00', power_w: -5}\n", ":4: .*timezone"),
    ],
)
def test_a_wrong_file_says_where_and_what_is_allowed(tmp_path, sites, more, says):
    with pytest.raises(ConfigurationError) as caught:
        load_yaml_model(fleet_file(tmp_path, *sites, more=more), FleetModel)
    pattern = says.replace("[", r"\[").replace("]", r"\]")
    assert re.search(pattern, str(caught.value)), str(caught.value)


def test_a_disturbance_may_be_given_as_a_moment(tmp_path):
    more = "disturbances:\n  - {at: 2022-09-01T10:00:00Z, power_w: -5000}\n  - {at: 60, power_w: -5000}\n"
    model = load_yaml_model(fleet_file(tmp_path, more=more), FleetModel)
    assert [one.due_ns(7 * S) for one in model.disturbances] == [1_662_026_400 * S, 67 * S]


@pytest.mark.parametrize("template", ["sunspec_battery", "wattmesh_opcua_battery"])
async def test_a_taken_port_is_named_and_nothing_starts_half(make_model, template):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        fleet = Fleet(make_model(battery=template, battery_port=port), ManualClock(), None)
        with pytest.raises(ConfigurationError, match=f"port {port} cannot be used"):
            await fleet.start()
    inverter = fleet.servers["h", "inverter"].port
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", inverter)


def test_an_unknown_recording_or_column_is_named():
    with pytest.raises(ConfigurationError, match="there are: iberia"):
        Grid().play_trace("nothing.csv", "f_hz", 2.0)
    with pytest.raises(ConfigurationError, match="no column 'f'; it has: time_utc"):
        Grid().play_trace("iberia_blackout_20250428_toledo_2s.csv", "f", 2.0)
    with pytest.raises(ConfigurationError, match="holds no numbers"):
        Grid().play_trace("iberia_blackout_20250428_toledo_2s.csv", "time_utc", 2.0)


def test_a_recording_is_played_in_real_time_and_its_gaps_repeat():
    now = [100.0]
    grid = Grid(nominal_hz=50.0, monotonic=lambda: now[0])
    grid.play_trace("iberia_blackout_20250428_toledo_2s.csv", "f_hz", 2.0)
    assert len(grid._trace) == 3600
    seen = []
    for step in range(3600):
        now[0] = 100.0 + 2 * step + 1
        seen.append(grid.frequency_hz())
    assert seen == grid._trace
    assert 49.9 < seen[0] < 50.1
    now[0] = 100.0 + 7200 + 1
    assert grid.frequency_hz() == seen[0]
    assert grid.voltage_pu() == 1.0, "nobody asked for it"
    grid.play_trace("iberia_blackout_20250428_toledo_2s.csv", "f_hz", 2.0, "v_l1")
    assert grid.voltage_pu() == pytest.approx(1.0, abs=0.02)
    now[0] += 5610
    assert grid.voltage_pu() < 0.01, "the blackout"
    with pytest.raises(ConfigurationError, match="no column 'v'"):
        grid.play_trace("iberia_blackout_20250428_toledo_2s.csv", "f_hz", 2.0, "v")


def test_the_quiet_grid_stays_near_its_nominal_frequency():
    now = [0.0]
    grid = Grid(monotonic=lambda: now[0], seed=3)
    seen = []
    for step in range(20_000):
        now[0] = step * 0.02
        seen.append(grid.frequency_hz() - 60)
    assert max(map(abs, seen)) < 0.03
    assert (sum(one * one for one in seen) / len(seen)) ** 0.5 == pytest.approx(0.004, rel=0.4)
    assert len(set(seen)) > 15_000


class RealTime:
    """Real seconds that pass only in pauses."""

    def __init__(self):
        self.now, self.during = 50.0, []

    def __call__(self):
        return self.now

    async def pause(self, seconds):
        for each in self.during:
            each()
        self.now += seconds


async def test_a_disturbance_holds_time_still_while_batteries_answer(run_fleet, make_model):
    real = RealTime()
    model = make_model(disturbances=[{"at": 40, "power_w": -15_000, "hold_s": 6}])
    seen = []
    async with run_fleet(model, monotonic=real, pause=real.pause) as (fleet, clock):
        home = fleet.homes["h"]
        real.during.append(lambda: seen.append((clock.utc_ns(), real.now)))
        real.during.append(lambda: home.write("wset_w", -5000.0, clock.utc_ns()) if len(seen) == 10 else None)
        home.write("wset_w", 0.0, clock.utc_ns())
        await clock.advance(20)
        stored, load, exported = home.battery.stored_wh, home.load_total_wh, home.export_wh
        assert not seen
        await clock.advance(10)
        assert len({moment for moment, _ in seen}) == 1, "simulated time moved"
        assert real.now == pytest.approx(59.0)  # 6 s and 3 s of recovery
        lasted = (len(seen) - 9) * 0.1
        assert stored - home.battery.stored_wh == pytest.approx(5000 * lasted / 3600 / 0.9**0.5, rel=0.02)
        assert home.export_wh - exported >= 5000 * lasted / 3600 * 0.98
        assert home.load_total_wh - load == pytest.approx(home.load_w * 10 / 3600, rel=0.05), "load stood still"
        (played,) = fleet.truth()["disturbances"]
        assert played["power_w"] == -15_000
        assert 59.0 < played["nadir_hz"] < 59.8


async def test_the_truth_adds_up_and_survives_a_restart(tmp_path, run_fleet, make_model):
    model = make_model()
    async with run_fleet(model, tmp_path) as (fleet, clock):
        for step in range(90):
            fleet.homes["h"].write("wset_w", (-3000.0, 2000.0)[step // 45], clock.utc_ns())
            await clock.advance(60)
        stopped_ns = clock.utc_ns()
        before = fleet.homes["h"]
    truth = json.loads((tmp_path / "truth.json").read_text())["sites"]["h"]
    assert len(truth["start_ns"]) == 7
    assert all(start % (900 * S) == 0 for start in truth["start_ns"])
    balance = sum(truth["actual"]["import_wh"]) - sum(truth["actual"]["export_wh"])
    battery = truth["battery"]
    assert balance == pytest.approx(
        truth["load_wh"] - truth["pv_wh"] + battery["charged_wh"] - battery["discharged_wh"]
    )
    stored = truth["stored_wh"]["actual"] - truth["stored_wh"]["initial"]
    assert battery["charged_wh"] == pytest.approx(battery["discharged_wh"] + battery["lost_wh"] + stored)
    assert truth["peak_import_w"]["actual"] == max(truth["actual"]["import_wh"]) * 4

    async with run_fleet(model, tmp_path, at_ns=stopped_ns + 1800 * S) as (again, _):
        home = again.homes["h"]
        assert home.battery.stored_wh == before.battery.stored_wh
        assert home.import_wh >= before.import_wh
        # The half hour without the process is made up for, and no slot stands twice.
        hours = data.energy_wh("load", "b01", stopped_ns, stopped_ns + 1810 * S)
        assert home.load_total_wh - before.load_total_wh == pytest.approx(hours)
        assert len(set(home.actual.start_ns)) == len(home.actual.start_ns) == 9


async def test_what_was_kept_is_checked(tmp_path, make_model, caplog):
    (tmp_path / "resume.json").write_text('{"start_ns": 1, "last_ns": 1, "homes": {"other": {"home": "b02"}}}')
    assert Fleet(make_model(), ManualClock(), tmp_path).homes["h"].actual.start_ns == []
    assert "starting anew" in caplog.text
    (tmp_path / "resume.json").write_text('{"start_ns"')
    with pytest.raises(ConfigurationError, match="remove it to start anew"):
        Fleet(make_model(), ManualClock(), tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 2400), st.floats(-8000, 8000), st.integers(0, 300), st.floats(0, 100)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 8000),
)
def test_a_homes_energy_balances_whatever_is_asked(steps, hour):
    home = Home("b04", 40.0, lambda: 60.0)
    now = start = data.FIRST_NS + hour * data.HOUR_NS
    imported, exported = home.import_wh, home.export_wh
    for seconds, setpoint, timeout, limit in steps:
        home.write("wset_reversion_s", timeout, now)
        home.write("wset_w", setpoint, now)
        home.write("limit_percent", limit, now)
        now += seconds * S
        home.step(now, float(seconds))
    net = home.import_wh - imported - (home.export_wh - exported)
    assert net == pytest.approx(
        home.load_total_wh - home.pv_total_wh + home.battery.charged_wh - home.battery.discharged_wh, abs=1e-6
    )
    assert home.load_total_wh == pytest.approx(data.energy_wh("load", "b04", start, now))
    assert home.pv_total_wh + home.curtailed_wh == pytest.approx(data.energy_wh("pv", "b04", start, now), abs=1e-6)
    for case in (home.actual, home.no_battery, home.self_consumption):
        assert len(set(case.start_ns)) == len(case.start_ns)
    assert sum(home.actual.import_wh) - sum(home.actual.export_wh) == pytest.approx(net, abs=1e-6)


def test_a_setpoint_ends_within_a_long_step():
    home = Home("b01", 50.0, lambda: 60.0)
    now = data.FIRST_NS + 900 * S
    home.write("wset_reversion_s", 90, now)
    home.write("wset_w", 1000.0, now)
    home.step(now + 300 * S, 300.0)
    assert home.battery.charged_wh == pytest.approx(1000 * 90 / 3600)
    assert home.setpoint.reverted == 1
    assert home.battery.active_w == 0


def test_a_battery_tapers_near_full_and_empty():
    assert Battery(stored_wh=6400 * 0.5).possible_w(9000, 1) == 5000
    assert Battery(stored_wh=6400 * 0.975).possible_w(9000, 1) == pytest.approx(2500)
    assert Battery(stored_wh=6400 * 0.025).possible_w(-9000, 1) == pytest.approx(-2500)
    full, empty = Battery(stored_wh=6399.0), Battery(stored_wh=1.0)
    assert full.possible_w(9000, 1) == pytest.approx(1000)
    assert full.step(9000, 3600) == pytest.approx(1 / 0.9**0.5)
    assert full.stored_wh == pytest.approx(6400)
    assert empty.step(-9000, 3600) == pytest.approx(-(0.9**0.5))
    assert empty.stored_wh == pytest.approx(0)
    assert empty.step(-9000, 10) == 0


def test_a_battery_warms_with_its_losses_and_counts_cycles():
    battery = Battery(stored_wh=3200.0)
    for _ in range(720):
        battery.step(4000.0 if battery.stored_wh < 5000 else -4000.0, 10)
        battery.warm(20.0, 10)
    assert 23 < battery.temperature_c < 30
    assert battery.cycles == pytest.approx((battery.charged_wh * 0.9**0.5 + battery.discharged_wh / 0.9**0.5) / 12_800)


def test_the_year_is_continuous_and_no_home_is_clipped():
    for home in ("b01", "b04"):
        for hour in range(0, 8760, 37):
            edge = data.FIRST_NS + hour * data.HOUR_NS
            middle_w = max(data.pv_w(home, edge + minute * 60 * S) for minute in range(60))
            assert middle_w <= data.pv_peak_w(home) * 1.2
            # Swings are of whole periods and may start anywhere: what is left of a jump is their size.
            assert abs(data.pv_w(home, edge) - data.pv_w(home, edge - S)) <= 0.25 * data.pv_w(home, edge) + 5


def test_the_command_serves_until_ended_and_writes_the_truth(tmp_path):
    command = [str(Path(sys.executable).with_name("wattmesh")), "simulate", str(fleet_file(tmp_path))]
    ready = tmp_path / "ready"
    process = subprocess.Popen([*command, "--state", str(tmp_path / "s"), "--ready-file", str(ready)], env=os.environ)
    try:
        for _ in range(600):
            if ready.exists() or process.poll() is not None:
                break
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        assert ready.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
    assert set(json.loads((tmp_path / "s" / "truth.json").read_text())["sites"]) == {"h"}
