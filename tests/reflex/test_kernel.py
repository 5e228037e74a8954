"""The reflex in virtual time: what is an event, what is answered, and what never is."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.reflex import Endpoint, Reflex, ReflexConfig, Response, load_profile
from wattmesh_edge.reflex.kernel import Kernel

MS = 1_000_000
ENDPOINT = {
    "host": "127.0.0.1", "port": 1, "unit": 1, "function": 4, "address": 0, "type": "f32", "word_order": "big",
    "scale": 1.0, "sign": 1,
}  # fmt: skip


def kernel(**options):
    settings_ = {
        "period_ns": 20 * MS, "nominal_hz": 60.0, "low_hz": 59.8, "high_hz": 60.2, "exit_hz": 0.02, "debounce_ns": 60 * MS,
        "dead_band_hz": 0.036, "droop": 0.05, "rated_w": 5000.0, **options,
    }  # fmt: skip
    return Kernel(ENDPOINT, {**ENDPOINT, "function": 16}, **settings_)


def play(one, frequencies, start=10**12):
    return [one.feed(start + index * 20 * MS, value) for index, value in enumerate(frequencies)]


def ramp(depth, rate=0.5):
    down = [60 - rate * 0.02 * i for i in range(int(depth / rate / 0.02) + 1)]
    return [60.0] * 10 + down + [down[-1]] * 50 + down[::-1] + [60.0] * 20


def test_a_ramp_through_the_threshold_is_one_event_answered_by_droop():
    one = kernel()
    one.publish(-100.0, -5000.0, 5000.0)
    written = [w for w in play(one, ramp(0.6)) if w is not None]
    (event,) = one.drain_events()
    assert event[0] == 0
    assert event[5] == pytest.approx(59.4)
    # IEEE 1547: (0.6 - 0.036) / (60 * 0.05) of 5000 W, around the setpoint of -100 W
    assert min(written) == pytest.approx(-100 - (0.6 - 0.036) / 3 * 5000, abs=25)
    assert written[-1] == -100.0, "after the event the arbiter's setpoint stands again"
    assert one.responding() is None


def test_high_frequency_asks_for_more_consumption():
    one = kernel()
    one.publish(0.0, -5000.0, 5000.0)
    written = [w for w in play(one, [120 - f for f in ramp(0.5)]) if w is not None]
    assert max(written) == pytest.approx((0.5 - 0.036) / 3 * 5000, abs=25)
    assert [event[0] for event in one.drain_events()] == [1]


def test_noise_and_short_dips_are_no_events():
    one, chance = kernel(), random.Random(1)
    one.publish(0.0, -5000.0, 5000.0)
    quiet = [60 + chance.gauss(0, 0.03) for _ in range(3000)]
    dips = ([60.0] * 20 + [59.7, 59.7]) * 20
    assert all(w is None for w in play(one, quiet + dips))
    assert one.drain_events() == []


def test_the_exit_threshold_lies_inside_the_entry():
    one = kernel()
    wobble = [60.0] * 5 + [59.79] * 10 + [59.805, 59.795] * 40 + [59.9] * 10
    play(one, wobble)
    assert len(one.drain_events()) == 1


def test_without_published_limits_nothing_moves():
    assert all(w is None for w in play(kernel(), ramp(0.6)))


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-5000, 5000),
    st.floats(-5000, 0),
    st.floats(0, 5000),
    st.lists(st.one_of(st.none(), st.floats(50, 70), st.just(math.nan)), min_size=20, max_size=120),
)
def test_limits_bind_whatever_the_frequency_does(baseline, low, high, frequencies):
    baseline = min(max(baseline, low), high)
    one = kernel()
    one.publish(baseline, low, high)
    for written in play(one, frequencies):
        assert written is None or low - 1e-6 <= written <= high + 1e-6


@pytest.mark.parametrize("bad", [None, math.nan, 0.0, 500.0])
def test_what_cannot_be_believed_is_never_answered(bad):
    one = kernel()
    one.publish(-100.0, -5000.0, 5000.0)
    play(one, [60.0] * 10 + [59.5] * 20)
    assert one.responding() is not None
    later = [w for w in play(one, [bad] * 40, start=10**12 + 30 * 20 * MS) if w is not None]
    assert later == [-100.0], "back to the setpoint, once, and nothing after"
    assert one.responding() is None
    assert one.snapshot()["frequency_hz"] is None


def test_rocof_is_the_slope_of_the_last_half_second():
    one = kernel()
    play(one, [60 - 0.02 * 1.5 * i for i in range(30)])
    assert one.snapshot()["rocof_hz_per_s"] == pytest.approx(-1.5)


def endpoint(**more):
    return Endpoint(**{**ENDPOINT, **more})


def config(**more):
    response = Response(
        endpoint=endpoint(function=16, type="s32"), rated_power_w=5000, profile=load_profile("ieee1547_2018_cat_iii")
    )
    return ReflexConfig(**{"site_id": "s", "nominal_hz": 60, "source": endpoint(), "response": response, **more})


def test_a_register_in_tenths_of_a_hertz_is_only_watched():
    coarse = Reflex(config(source=endpoint(type="u16", scale=0.1)))
    assert not coarse.responds
    assert "too coarse" in coarse.why_watching
    assert Reflex(config()).responds


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(ConfigurationError, match="ieee1547_2018_cat_iii"):
        load_profile("nonsense")


def test_an_unknown_host_is_one_clear_error():
    with pytest.raises(ConfigurationError, match=r"no\.such\.host\.invalid"):
        Reflex(config(source=endpoint(host="no.such.host.invalid")))
