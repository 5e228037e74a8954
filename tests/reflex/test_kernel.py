"""The reflex in virtual time: what is an event, what is answered, and what never is."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reflex_kernels import MS, START, S, config, endpoint, events, play, profile, register_kernel, wave, wave_kernel
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.reflex import CAUSES, KINDS, Reflex, kernel_settings, load_profile, make_kernel
from wattmesh_edge.reflex.twins import RegisterTwin

WIDE = (-5000.0, 5000.0)


def ramp(depth, rate=0.5):
    down = [60 - rate * 0.02 * i for i in range(int(depth / rate / 0.02) + 1)]
    return [60 + 0.001 * (i % 2) for i in range(10)] + down + [down[-1] + 1e-4 * (i % 2) for i in range(50)] + down[::-1] + [
        60 + 0.001 * (i % 2) for i in range(20)]  # fmt: skip


# -- register mode: events


def test_a_ramp_through_the_threshold_is_one_event_answered_by_droop():
    one = register_kernel()
    one.publish(-100.0, *WIDE, now=START)
    written = [w for w in play(one, ramp(0.6)) if w is not None]
    (event,) = events(one)
    assert KINDS[event["kind"]] == "under_frequency"
    assert event["extreme_hz"] == pytest.approx(59.4, abs=0.01)
    # IEEE 1547: (0.6 - 0.036) / (60 * 0.05) of 5000 W, around the setpoint of -100 W
    assert min(written) == pytest.approx(-100 - (0.6 - 0.036) / 3 * 5000, abs=30)
    assert event["response_w"] == pytest.approx(-(0.6 - 0.036) / 3 * 5000, abs=30)
    assert written[-1] == -100.0, "after the event the arbiter's setpoint stands again"
    assert one.responding() is None


def test_droop_begins_at_its_dead_band_and_is_continuous():
    one = register_kernel()
    one.publish(0.0, *WIDE, now=START)
    written = [w for w in play(one, ramp(0.15)) if w is not None]
    assert events(one) == [], "within the band nothing is an event"
    assert min(written) == pytest.approx(-(0.15 - 0.036) / 3 * 5000, abs=25)
    assert max(abs(a - b) for a, b in itertools.pairwise(written)) < 40, "no jump anywhere"


def test_high_frequency_asks_for_more_consumption():
    one = register_kernel()
    one.publish(0.0, *WIDE, now=START)
    written = [w for w in play(one, [120 - f for f in ramp(0.5)]) if w is not None]
    assert max(written) == pytest.approx((0.5 - 0.036) / 3 * 5000, abs=30)
    assert [KINDS[event["kind"]] for event in events(one)] == ["over_frequency"]


def test_noise_and_short_dips_are_no_events():
    one, chance = register_kernel(answer=None), random.Random(1)
    quiet = [60 + chance.gauss(0, 0.03) for _ in range(3000)]
    dips = ([60.0, 60.001] * 10 + [59.7, 59.7]) * 20
    play(one, quiet + dips)
    assert one.drain_events() == ([], 0)


def test_the_exit_threshold_lies_inside_the_entry():
    one = register_kernel(answer=None)
    wobble = [60.0, 60.001] * 5 + [59.79] * 10 + [59.805, 59.795] * 40 + [59.9, 59.901] * 10
    play(one, wobble)
    assert len(events(one)) == 1


def test_an_event_is_told_as_it_begins_and_when_it_is_over():
    one = register_kernel(answer=None)
    play(one, [60.0] * 10 + [59.5] * 20)
    (begun,) = events(one, ended=False)
    play(one, [60.0] * 30, start=START + 30 * 20 * MS)
    (over,) = events(one)
    assert begun["number"] == over["number"]
    assert over["end_ns"] > over["start_ns"]


def test_an_event_under_way_at_the_end_is_not_lost():
    one = register_kernel(answer=None)
    play(one, [60.0] * 10 + [59.5] * 20)
    one.end(START + 30 * 20 * MS)
    assert len(events(one)) == 1


def test_rocof_needs_both_windows():
    one = register_kernel(answer=None, rocof_hz_per_s=1.0, band_hz=5.0)
    play(one, [60.0, 60.001] * 30 + [60.0 - 0.3, 60.0] * 3 + [60.0, 60.001] * 30)
    assert one.drain_events() == ([], 0), "100 ms alone sees every wobble"
    play(one, [60 - 0.02 * 1.5 * i for i in range(100)] + [57.0, 57.001] * 40, start=START + 200 * 20 * MS)
    (event,) = events(one)
    assert KINDS[event["kind"]] == "rocof"
    assert event["extreme_rocof"] == pytest.approx(-1.5, abs=0.05)


def test_rocof_is_unknown_before_there_are_three_samples():
    one = register_kernel(answer=None)
    play(one, [60.0, 59.9])
    assert one.snapshot()["rocof_100"] is None
    play(one, [60 - 0.02 * 1.5 * i for i in range(30)], start=START + 40 * MS)
    assert one.snapshot()["rocof_500"] == pytest.approx(-1.5)


def test_voltage_events_need_a_nominal_voltage():
    for nominal_v, expected in ((230.0, ["under_voltage", "over_voltage"]), (0.0, [])):
        one = register_kernel(answer=None, nominal_v=nominal_v, voltage=endpoint(address=2))
        at = START
        for volts in (230, 215, 230, 245, 230):
            for i in range(30):
                one.feed(at, (60 + 0.001 * (i % 2), float(volts)))
                at += 20 * MS
        assert [KINDS[event["kind"]] for event in events(one)] == expected


# -- register mode: what a register is worth


def test_repeats_are_no_samples():
    """50 polls a second of a register renewed every 200 ms: five samples a second, and the period is learned."""
    one = register_kernel(answer=None, refresh_ms=0)
    values = [60 - 0.01 * (i // 10) for i in range(200)]
    play(one, values)
    snapshot = one.snapshot()
    assert snapshot["refresh_ns"] == 200 * MS
    assert snapshot["repeats"] >= 170
    assert snapshot["rocof_500"] == pytest.approx(-0.05, abs=0.002), "on the true times of change"


def test_a_register_that_is_renewed_slowly_is_measured_and_not_answered():
    fast = profile(continuous={"dead_band_hz": 0.036, "droop": 0.05}, slowest_refresh_ms=100)
    one = register_kernel(answer=fast, refresh_ms=0)
    one.publish(0.0, *WIDE, now=START)
    values = [60 + 0.002 * ((i // 10) % 2) for i in range(200)] + [59.5 - 0.001 * (i // 10) for i in range(100)]
    assert all(w is None for w in play(one, values))
    assert one.snapshot()["inhibited"]
    assert len(events(one, ended=False)) == 1, "the event is told all the same"
    slow = make_kernel(kernel_settings(config(answer=load_profile("ieee1547_2018_cat_iii"))))
    slow.publish(0.0, *WIDE, now=START)
    assert any(w is not None for w in play(slow, values)), "five seconds of response time leave room for 200 ms"


def test_one_wrong_sample_neither_begins_nor_ends_a_response():
    one = register_kernel()
    one.publish(0.0, *WIDE, now=START)
    assert all(w is None for w in play(one, [60.0, 60.001] * 20 + [55.0] + [60.0, 60.001] * 20))
    play(one, [59.5, 59.501] * 20, start=START + 100 * 20 * MS)
    held = one.responding()
    play(one, [63.0, 59.5, 59.501], start=START + 140 * 20 * MS)
    assert one.responding() == pytest.approx(held, abs=20)


def test_a_frozen_register_is_no_measurement():
    one = register_kernel(answer=None)
    play(one, [60.0, 60.001] * 5 + [59.99] * 600)
    assert CAUSES[one.snapshot()["cause"]] == "stuck"
    play(one, [60.0, 60.001] * 5, start=START + 700 * 20 * MS)
    assert one.snapshot()["frequency_hz"] is not None


def test_time_that_jumps_back_is_named():
    one = register_kernel(answer=None)
    play(one, [60.0, 60.001] * 10)
    play(one, [60.0], start=START - S)
    assert CAUSES[one.snapshot()["cause"]] == "time jumped back"


# -- validity: hold, then the safe setpoint


@pytest.mark.parametrize("bad", [None, math.nan, 0.0, 500.0])
def test_what_cannot_be_believed_is_held_then_brought_to_the_safe_setpoint(bad):
    one = register_kernel()
    one.publish(1000.0, *WIDE, 0.0, now=START)
    play(one, [60.0, 60.001] * 5 + [59.5, 59.501] * 10)
    held = one.responding()
    assert held == pytest.approx(1000 - (0.5 - 0.036) / 3 * 5000, abs=30)
    start = START + 30 * 20 * MS
    later = play(one, [bad] * 300, start=start)
    assert all(w is None for w in later[:25]), "half a second of hold"
    moved = [w for w in later if w is not None]
    assert moved, "then it moves"
    assert all(abs(b) <= abs(a) + 1e-6 for a, b in zip([held, *moved], moved, strict=False)), "only towards zero"
    assert moved[-1] == pytest.approx(0.0, abs=1.0)
    steps = [abs(b - a) for a, b in zip([held, *moved], moved, strict=False)]
    assert max(steps) < 0.2 * 5000 * 0.02 * 2 + 15, "along a ramp"
    assert one.snapshot()["frequency_hz"] is None
    (event,) = [event for event in events(one, ended=False) if KINDS[event["kind"]] == "invalid"]
    assert CAUSES[event["cause"]] in {"no answer", "out of range"}
    back = [w for w in play(one, [60.0, 60.001] * 200, start=start + 300 * 20 * MS) if w is not None]
    assert back[-1] == pytest.approx(1000.0), "and back to the arbiter's, along a ramp"
    assert one.responding() is None


def test_an_invalid_measurement_in_quiet_times_moves_nothing():
    one = register_kernel()
    one.publish(1000.0, *WIDE, now=START)
    assert all(w is None for w in play(one, [60.0, 60.001] * 20 + [None] * 500))
    assert one.responding() is None


def test_a_meter_without_voltage_is_never_answered():
    one = register_kernel(nominal_v=230.0, voltage=endpoint(address=2))
    one.publish(0.0, *WIDE, now=START)
    play(one, [60.0, 60.001] * 10, volts=230.0)
    assert all(w is None for w in play(one, [55.0, 55.01] * 200, start=START + S, volts=30.0))
    assert CAUSES[one.snapshot()["cause"]] == "low voltage"


# -- limits


def test_without_published_limits_nothing_moves():
    assert all(w is None for w in play(register_kernel(), ramp(0.6)))


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-5000, 5000),
    st.floats(-5000, 0),
    st.floats(0, 5000),
    st.lists(st.one_of(st.none(), st.floats(50, 70), st.just(math.nan)), min_size=20, max_size=120),
)
def test_limits_bind_whatever_the_frequency_does(baseline, low, high, frequencies):
    baseline = min(max(baseline, low), high)
    one = register_kernel()
    one.publish(baseline, low, high, now=START)
    for written in play(one, frequencies):
        assert written is None or low - 1e-6 <= written <= high + 1e-6


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(59.0, 61.0), min_size=4, max_size=25),
    st.floats(-4000, 4000),
    st.floats(-5000, 0),
    st.floats(0, 5000),
)
def test_droop_is_what_the_standards_equation_says(corners, baseline, low, high):
    """Against a model: the frequency by the register's twin, the power by P = Ppre + (60 - db - f) / (60 k), clamped."""
    baseline = min(max(baseline, low), high)
    one, twin = register_kernel(), RegisterTwin(60.0, 20 * MS)
    one.publish(baseline, low, high, now=START)
    at, held = START, baseline
    for left, right in itertools.pairwise([60.0, *corners]):
        steps = max(8, round(abs(right - left) / 0.05))
        for step in range(steps):
            value = left + (right - left) * step / steps + 1e-7 * (step % 2)
            written = one.feed(at, value)
            twin.push(at, value)
            at += 20 * MS
            held = written if written is not None else held
            deviation = (twin.frequency_hz or 60.0) - 60.0
            share = math.copysign(max(0.0, abs(deviation) - 0.036) / (60 * 0.05), deviation)
            wanted = min(max(baseline + 5000 * max(-1.0, min(1.0, share)), low), high)
            assert held == pytest.approx(wanted, abs=10.01), "never farther than the smallest change"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([60.0, 59.3, 58.0, 61.0, None]),
            st.integers(1, 60),
            st.floats(-5000, 0),
            st.floats(0, 5000),
            st.floats(-1, 1),
        ),
        min_size=2,
        max_size=12,
    )
)
def test_limits_bind_while_they_change(stretches):
    """Whatever the reflex is doing (drooping, holding, falling, returning), the newest limits bind the next setpoint."""
    one, at, count = register_kernel(), START, 0
    for hertz, steps, low, high, share in stretches:
        baseline = -low * share if share < 0 else high * share
        baseline = min(max(baseline, low), high)
        one.publish(baseline, low, high, now=at)
        for _ in range(steps):
            count += 1
            written = one.feed(at, None if hertz is None else hertz + 1e-6 * (count % 2))
            assert written is None or low - 1e-6 <= written <= high + 1e-6
            at += 20 * MS


def test_a_setpoint_that_was_lost_is_made_good_also_the_last_one(kernel_of_a_lost_write):
    assert kernel_of_a_lost_write.feed(START + 10 * S, 60.0) == 700.0


@pytest.fixture
def kernel_of_a_lost_write():
    one = register_kernel()
    one.publish(700.0, *WIDE, now=START)
    play(one, [60.0, 60.001] * 5 + [59.5, 59.501] * 10 + [60.0, 60.001] * 20)
    assert one.responding() is None
    one.written_by_others()
    return one


def test_a_new_setpoint_of_the_arbiter_moves_the_response_with_it():
    one = register_kernel()
    one.publish(0.0, *WIDE, now=START)
    play(one, [60.0, 60.001] * 5 + [59.5, 59.501] * 10)
    before = one.responding()
    one.publish(-500.0, *WIDE, now=START + 600 * MS)
    play(one, [59.5, 59.501] * 3, start=START + 620 * MS)
    assert one.responding() == pytest.approx(before - 500, abs=20)


def test_every_setpoint_expires_when_python_says_nothing_any_more():
    one = register_kernel()
    one.publish(0.0, *WIDE, now=START)
    written = play(one, [60.0, 60.001] * 5 + [59.5, 59.501] * 1700)
    assert one.snapshot()["fallen"]
    assert one.responding() == pytest.approx(0.0, abs=1)
    first_move = next(i for i, w in enumerate(written) if i > 100 and w is not None)
    assert 59.9 <= first_move * 0.02 <= 60.2, "the limits' age of 60 s"
    assert all(w is None for w in play(one, [60.0, 60.001] * 5 + [59.5] * 20, start=START + 90 * S)[12:]), (
        "no new one either"
    )


def test_energy_binds_the_response():
    one = register_kernel()
    one.publish(0.0, *WIDE, 0.0, 1.0, 1e6, now=START)  # 1 Wh is left: 3600 W for a second
    play(one, [60.0, 60.001] * 5 + [58.0] * 3 + [57.99, 58.0] * 200)
    assert one.responding() == pytest.approx(0.0, abs=1.0)


# -- blocks


def block(**more):
    return profile(
        nominal_hz=(50,), continuous=None,
        blocks=({"trigger_hz": 49.7, "power_pu": -1, "hold_s": 5, "recovery_s": 2, "rearm_s": 60, **more},),
    )  # fmt: skip


def test_a_block_is_held_recovers_and_waits_to_be_armed_again():
    one = register_kernel(answer=block(), nominal_hz=50)
    one.publish(0.0, *WIDE, now=START)
    written = play(one, [50.0, 50.001] * 10 + [49.6, 49.601] * 25 + [50.0, 50.001] * 500)
    times = {index * 0.02: w for index, w in enumerate(written) if w is not None}
    assert next(iter(times.values())) == -5000
    began = next(iter(times))
    assert began <= 0.5
    falling = [t for t, w in times.items() if w > -5000]
    assert falling[0] == pytest.approx(began + 5, abs=0.1), "held for five seconds, though the frequency was back"
    assert written[-1] is None
    assert one.responding() is None
    assert next(t for t, w in times.items() if w == 0.0) == pytest.approx(began + 7, abs=0.15)
    again = play(one, [49.6, 49.601] * 25 + [50.0, 50.001] * 100, start=START + 12 * S)
    assert all(w is None for w in again), "not armed yet"
    play(one, [50.0, 50.001] * 3500, start=START + 15 * S)
    one.publish(0.0, *WIDE, now=START + 85 * S)
    assert any(w is not None for w in play(one, [49.6, 49.601] * 25, start=START + 86 * S))


def test_a_dip_shorter_than_the_confirmation_sets_nothing_off():
    one = register_kernel(answer=block(confirm_ms=50), nominal_hz=50)
    one.publish(0.0, *WIDE, now=START)
    assert all(w is None for w in play(one, [50.0, 50.001] * 10 + [49.75, 49.69, 49.75] + [50.0, 50.001] * 20))


# -- trips and return to service (IEEE 1547-2018 with tests after IEEE 1547.1-2020, 5.4 and 5.5)

CAT_III = load_profile("ieee1547_2018_cat_iii")


def tripped_after(quantity_hz=None, volts=230.0, seconds=30.0, answer=CAT_III):
    """Seconds from a step to the trip, or none."""
    one = register_kernel(answer=answer, nominal_v=230.0, voltage=endpoint(address=2))
    one.publish(2000.0, *WIDE, now=START)
    at = START
    for i in range(50):
        one.feed(at, (60 + 0.001 * (i % 2), 230.0))
        at += 20 * MS
    stepped = at
    frequency = 60.0 if quantity_hz is None else quantity_hz
    while at < stepped + seconds * S:
        if (at // S) % 20 == 0:
            one.publish(2000.0, *WIDE, now=at)
        one.feed(at, (frequency + 0.0001 * (at // (20 * MS) % 2), volts))
        if one.snapshot()["tripped"]:
            assert one.responding() == 0.0, "a trip is no power at all"
            return (at - stepped) / S
        at += 20 * MS
    return None


@pytest.mark.parametrize(
    ("threshold", "clearing", "over"),
    [(62.0, 0.16, True), (61.2, 300, True), (58.5, 300, False), (56.5, 0.16, False)],
)
def test_frequency_trips_at_their_thresholds_and_times(threshold, clearing, over):
    beyond, inside = (1.01, 0.99) if over else (0.99, 1.01)
    took = tripped_after(quantity_hz=threshold * beyond, seconds=clearing + 5)
    assert clearing <= took <= clearing * 1.01 + 0.06
    if clearing < 1:  # inside this one the slower trip of the next threshold is 300 s away
        assert tripped_after(quantity_hz=threshold * inside, seconds=5) is None
    else:
        assert tripped_after(quantity_hz=threshold * inside, seconds=clearing + 5) is None


@pytest.mark.parametrize(
    ("threshold", "clearing", "over"),
    [(1.20, 0.16, True), (1.10, 13.0, True), (0.88, 21.0, False), (0.50, 2.0, False)],
)
def test_voltage_trips_at_their_thresholds_and_times(threshold, clearing, over):
    beyond, inside = (1.01, 0.99) if over else (0.99, 1.01)
    took = tripped_after(volts=230 * threshold * beyond, seconds=clearing + 5)
    assert clearing <= took <= clearing * 1.01 + 0.06
    assert tripped_after(volts=230 * threshold * inside, seconds=clearing + 1) is None


def test_no_voltage_at_all_trips_though_there_is_no_frequency_any_more():
    assert tripped_after(quantity_hz=0.0, volts=2.0) == pytest.approx(2.0, abs=0.1)


def test_a_timer_begins_anew_after_each_return():
    one = register_kernel(answer=CAT_III, nominal_v=230.0, voltage=endpoint(address=2))
    one.publish(2000.0, *WIDE, now=START)
    at = START
    for cycle in range(40):
        for volts in [230 * 1.25] * 7 + [230.0] * 3:  # 140 ms beyond, then back: never 160 ms
            one.feed(at, (60 + 0.001 * (cycle % 2), volts + 0.01 * (cycle % 2)))
            at += 20 * MS
    assert not one.snapshot()["tripped"]


def test_enter_service_waits_ramps_and_begins_anew_after_an_excursion():
    one = register_kernel(answer=CAT_III, nominal_v=230.0, voltage=endpoint(address=2), rated_w=5000.0)
    at, count = START, 0

    def run(seconds, hz=60.0, volts=230.0):
        nonlocal at, count
        end, last = at + round(seconds * S), None
        while at < end:
            count += 1
            if count % 250 == 1:
                one.publish(2000.0, *WIDE, now=at)
            written = one.feed(at, (hz + 0.0001 * (count % 2), volts))
            last = written if written is not None else last
            at += 20 * MS
        return last

    run(2)
    assert run(1, hz=56.0) == 0.0
    assert one.snapshot()["tripped"] == 1
    run(299)
    assert one.snapshot()["tripped"] == 1, "299 s are not 300"
    run(1, hz=60.2)  # an excursion from 59.5 to 60.1 Hz
    run(299)
    assert one.snapshot()["tripped"] == 1, "it begins anew"
    run(2)
    assert one.snapshot()["tripped"] == 2
    assert run(60) == pytest.approx(5000 * 60 / 300, abs=60), "a ramp of 300 s"
    assert run(70) == pytest.approx(2000.0, abs=30)
    run(180)
    assert one.snapshot()["tripped"] == 0
    assert one.responding() is None


# -- waveform


def test_a_waveforms_ramp_is_one_event_with_its_depth_and_answered_in_time():
    one = wave_kernel()
    one.publish(0.0, *WIDE, now=START)
    rate = 4800.0
    f = (
        [60.0] * 4800
        + [60 - i / rate for i in range(2400)]
        + [59.5] * 2400
        + [59.5 + i / rate for i in range(2400)]
        + [60.0] * 4800
    )
    written = one.feed_wave(wave(f), START)
    (event,) = events(one)
    assert event["extreme_hz"] == pytest.approx(59.5, abs=0.003)
    crossed = START + S + 200 * MS  # 59.8 Hz, 1 Hz/s after the first second
    assert abs(event["start_ns"] - crossed) < 2 * MS, "the quantity's own time, not the time of its estimate"
    dead_band = START + S + 36 * MS
    assert 0 < written[0][0] - dead_band < 40 * MS
    assert min(w for _, w in written) == pytest.approx(-(0.5 - 0.036) / 3 * 5000, abs=15)
    assert written[-1][1] == 0.0


@pytest.mark.parametrize("degrees", [2, 5, 10, 30, 60, -60, 120, 180])
def test_a_phase_step_is_no_frequency(degrees):
    one = wave_kernel()
    one.publish(0.0, *WIDE, now=START)
    written = one.feed_wave(wave([60.0] * 9600, jumps=[(4800, degrees)]), START)
    assert written == []
    (step,) = events(one)
    assert KINDS[step["kind"]] == "phase_step"
    assert (step["step_deg"] - degrees + 180) % 360 - 180 == pytest.approx(0, abs=0.5)
    assert events(one, ended=False) == []


def test_a_vector_shift_and_an_excursion_are_a_suspicion_of_islanding():
    one = wave_kernel(answer=None)
    f = [60.0] * 4800 + [60.0 + 2.0 * i / 4800 for i in range(1200)] + [60.5] * 2400
    one.feed_wave(wave(f, jumps=[(4800, 12)]), START)
    kinds = [KINDS[event["kind"]] for event in events(one, ended=False)]
    assert {"islanding", "over_frequency"} <= set(kinds)


def test_a_step_during_a_response_is_held():
    one = wave_kernel()
    one.publish(0.0, *WIDE, now=START)
    f = [60.0] * 2400 + [60 - i / 4800 for i in range(2400)] + [59.5] * 4800
    written = one.feed_wave(wave(f, jumps=[(7200, 20)]), START)
    after = [w for t, w in written if t > START + 7200 / 4800 * S]
    assert all(abs(w + 773) < 30 for w in after), "neither more nor less because of the jump"


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda x: [0.0] * len(x), "low voltage"),
        (lambda x: [x[0], x[1], x[2]] * (len(x) // 3), "stuck"),
        (lambda x: [max(-200.0, min(200.0, value)) for value in x], "railed"),
        (lambda x: [math.nan] * len(x), "railed"),
    ],
)
def test_a_waveform_that_is_none_has_a_cause(spoil, cause):
    import array

    one = wave_kernel(answer=None, rail_v=200.0 if cause == "railed" else 1000.0)
    good = wave([60.0] * 4800, volts=100.0)
    one.feed_wave(good, START)
    assert CAUSES[one.snapshot()["cause"]] == "valid"
    bad = array.array("d", spoil(list(wave([60.0] * 4800, volts=230.0))))
    one.feed_wave(bad, START + S)
    assert CAUSES[one.snapshot()["cause"]] in ({cause, "stuck"} if cause == "low voltage" else {cause})
    assert one.snapshot()["frequency_hz"] is None
    one.feed_wave(good, START + 2 * S)
    assert CAUSES[one.snapshot()["cause"]] == "valid"


def test_a_stream_that_ends_is_no_answer_and_begins_again_only_when_its_filters_are_full():
    one = wave_kernel(answer=None)
    one.feed_wave(wave([60.0] * 2400), START)
    one.feed_nothing(START + S)
    assert CAUSES[one.snapshot()["cause"]] == "no answer"
    one.feed_wave(wave([60.0] * 100), START + S)
    assert one.snapshot()["frequency_hz"] is None
    one.feed_wave(wave([60.0] * 400), START + S + 21 * MS)
    assert one.snapshot()["frequency_hz"] == pytest.approx(60.0, abs=0.2) or one.snapshot()["frequency_hz"] is None
    one.feed_wave(wave([60.0] * 2400), START + S + 110 * MS)
    assert one.snapshot()["frequency_hz"] == pytest.approx(60.0, abs=1e-3)


# -- the owner


def test_a_register_in_tenths_of_a_hertz_is_only_watched():
    coarse = Reflex(config(source=endpoint(type="u16", scale=0.1)))
    assert not coarse.responds
    assert "too coarse" in coarse.why_watching
    assert Reflex(config()).responds


def test_a_register_known_to_be_slow_is_only_watched():
    slow = Reflex(config(refresh_ms=500))
    assert not slow.responds
    assert "renewed every 500 ms" in slow.why_watching
    assert Reflex(config(refresh_ms=500, answer=CAT_III)).responds


def test_an_unknown_host_is_one_clear_error():
    with pytest.raises(ConfigurationError, match=r"no\.such\.host\.invalid"):
        Reflex(config(source=endpoint(host="no.such.host.invalid")))
