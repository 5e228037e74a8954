"""Real mains: nothing in the recordings is an event but the one in Spain, and what is injected is seen for what it is."""

import mains
import numpy as np
import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.cli import event as command
from wattmesh_edge.reflex import load_profile
from wattmesh_edge.reflex.profile import ResponseProfile
from wattmesh_edge.reflex.scan import read_table, scan_register, scan_waveform

PIECE = 1600
MOVING = {"under_frequency", "over_frequency", "rocof", "islanding"}
BLOCK = {"confirm_ms": 4, "hold_s": 5, "rearm_s": 60}
FCR = ResponseProfile(
    profile=1, id="test", title="test", nominal_hz=(50,), sources=("test",),
    blocks=({"trigger_hz": 49.8, "power_pu": -1, **BLOCK}, {"trigger_hz": 50.2, "power_pu": 1, **BLOCK}),
)  # fmt: skip


def names(found):
    return [event["name"] for event in found.events]


def scan(samples, **more):
    return scan_waveform(mains.doubles(samples), **{"rate_hz": mains.RATE, "rail_v": mains.RAIL, **more})


@pytest.mark.parametrize(
    ("name", "samples"), mains.slips().items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_recorders_faults_are_no_events(name, samples):
    found = scan(samples, profile=FCR)
    assert not MOVING & set(names(found))
    assert found.setpoints == [], "and nothing is moved for them"


def test_the_half_cycle_slips_are_phase_steps_at_most():
    found = scan(mains.waveform("mains_waveform_50hz_400sps_whu071_phaseslips.csv.gz"), profile=FCR)
    assert set(names(found)) <= {"phase_step", "invalid"}
    assert found.setpoints == []


def test_quiet_mains_are_quiet():
    found = scan(mains.waveform())
    assert found.events == []
    assert found.causes["valid"] > 0.999 * (sum(found.causes.values()) - found.causes["warming up"])


def test_eleven_hours_of_mains_hold_no_event():
    for rows in mains.mains_hours().values():
        found = scan_register(rows)
        assert not MOVING & set(names(found))


def test_the_iberian_blackout_is_one_event_answered_at_once_and_then_no_measurement():
    rows = read_table(mains.iberia(), time="time_utc", frequency="f_hz", voltage="v_l1")
    assert len(rows) == 3600
    found = scan_register(rows, nominal_v=27_000.0, profile=load_profile("en50549_1_lfsm"))
    (under,) = [event for event in found.events if event["name"] == "under_frequency"]
    assert "over_frequency" not in names(found)
    assert under["start_s"] == 5600.0, "10:33:20 UTC, 48.556 Hz"
    assert under["extreme_hz"] == 47.476
    first_dead = next(at - rows[0][0] for at, _, volts in rows if volts is not None and volts < 8100)
    assert first_dead == 5604.0
    assert (5604.0, 7198.0, "low voltage") in found.spans, "from the first row without voltage to the last one"
    at, watt = found.setpoints[0]
    assert at == 5600.0, "on the row itself"
    assert watt < -2000
    assert all(
        abs(b) <= abs(a) for (t, a), (_, b) in zip(found.setpoints[1:], found.setpoints[2:], strict=False) if t > 5602
    )
    assert found.setpoints[-1][1] == pytest.approx(0.0), "the safe setpoint, and nothing after"
    assert found.setpoints[-1][0] < 5620


def test_without_a_nominal_voltage_the_dead_meter_shows_as_well():
    rows = read_table(mains.iberia(), time="time_utc", frequency="f_hz", voltage="v_l1")
    found = scan_register(rows)
    assert names(found).count("under_frequency") == 1
    assert (5604.0, 7198.0, "low voltage") in found.spans


@pytest.fixture(scope="module")
def vector():
    return mains.analytic(mains.waveform())


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 6, 10, 20, 40, 60, 90, 135, 180])
def test_an_injected_phase_jump_is_no_event(vector, degrees):
    chance = np.random.default_rng(degrees)
    for sign in (-1, 1):
        at = int(chance.integers(0, len(vector) - PIECE - 2000))
        found = scan(mains.jump(vector[at : at + PIECE], 800, sign * degrees), profile=FCR)
        assert not MOVING & set(names(found))
        assert found.setpoints == []
        if degrees <= 60:
            assert "invalid" not in names(found)


@pytest.mark.parametrize("gain", [0.1, 0.5, 0.9, 1.1, 2.0, 10.0])
def test_an_injected_change_of_level_is_no_event(vector, gain):
    chance = np.random.default_rng(7)
    for _ in range(3):
        at = int(chance.integers(0, len(vector) - PIECE - 2000))
        level = np.where(np.arange(PIECE) >= 800, gain, 1.0)
        found = scan(np.rint(vector[at : at + PIECE].real * level), profile=FCR)
        assert not MOVING & set(names(found))
        assert found.setpoints == []


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0, 4.0])
def test_an_injected_ramp_is_caught_in_time(vector, rate):
    chance = np.random.default_rng(int(10 * rate))
    for sign in (-1, 1):
        for _ in range(5):
            at = int(chance.integers(0, len(vector) - PIECE - 2000))
            piece = vector[at : at + PIECE]
            quiet = scan(piece.real)
            assert quiet.events == []
            found = scan(mains.ramp(piece, 600, sign * rate, min(1.0 / rate, 1.5)))
            kinds = [event for event in found.events if event["name"] in {"under_frequency", "over_frequency"}]
            assert [event["name"] for event in kinds] == ["under_frequency" if sign < 0 else "over_frequency"]
            crossed = 600 / mains.RATE + 0.2 / rate
            assert abs(kinds[0]["start_s"] - crossed) < 0.06 / rate + 0.02, "the mains' own deviation shifts it"


def test_one_phase_at_400_samples_a_second_decides_within_60_ms():
    """1 Hz/s on an ideal phase: the crossing is exact, so the decision's delay is."""
    rate, f0 = 400.0, 50.0
    t = np.arange(2400) / rate
    hertz = f0 - np.clip(t - 2.0, 0, 1.0)
    samples = np.rint(1500 * np.cos(2 * np.pi * np.cumsum(hertz) / rate))
    found = scan(samples, profile=FCR)
    assert 0 < found.setpoints[0][0] - 2.2 <= 0.060
    (event,) = found.events
    assert event["start_s"] == pytest.approx(2.2, abs=0.005)


def test_scan_on_the_command_line(capsys):
    assert command(["scan", str(mains.FOLDER / "mains_waveform_50hz_400sps_whu092.csv.gz"), "--rate-hz", "400"]) == 0
    assert "0 events" in capsys.readouterr().out
    iberia = [str(mains.iberia()), "--frequency", "f_hz", "--voltage", "v_l1", "--nominal-v", "27000"]
    assert command(["scan", *iberia, "--profile", "en50549_1_lfsm"]) == 0
    out = capsys.readouterr().out
    assert "5600.000 s  under_frequency" in out
    assert "low voltage" in out
    with pytest.raises(ConfigurationError, match="there is no column 'hertz'"):
        command(["scan", iberia[0], "--frequency", "hertz"])
    with pytest.raises(ConfigurationError, match="give rate_hz"):
        command(["scan", str(mains.FOLDER / "mains_waveform_50hz_400sps_whu092.csv.gz")])
    with pytest.raises(ConfigurationError, match="not for 50 Hz"):
        command(["scan", iberia[0], "--frequency", "f_hz", "--profile", "ieee1547_2018_cat_iii"])
