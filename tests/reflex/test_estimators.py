"""The estimators agree with their interpreted twins, and with the truth of the signals they are given."""

import array
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_edge.reflex import CAUSES
from wattmesh_edge.reflex.estimators import FIELDS, RegisterEstimator, WaveformEstimator
from wattmesh_edge.reflex.twins import RegisterTwin, WaveformTwin
from wattmesh_simulators import pmu_signals

AT = {name: index for index, name in enumerate(FIELDS)}
value = st.one_of(st.none(), st.floats(58, 62), st.sampled_from([0.0, 49.0, 71.0, 60.0, 60.01, math.nan, math.inf]))


def rows_of(estimator, samples):
    return np.frombuffer(estimator.push(np.ascontiguousarray(samples, dtype=float))).reshape(-1, len(FIELDS))


# -- a register


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), value), min_size=1, max_size=90), st.sampled_from([0, 20_000_000, 10**9])
)
def test_register_and_twin_agree(samples, refresh_ns):
    kernel, twin, now = RegisterEstimator(60.0, 0.0, refresh_ns), RegisterTwin(60.0, refresh_ns), 10**12
    for gap_ms, sample in samples:
        now += gap_ms * 1_000_000
        fresh, row = kernel.push(now, None if sample is None else (sample,))
        assert fresh == twin.push(now, sample)
        assert CAUSES[int(row[AT["cause"]])] == twin.cause
        assert kernel.refresh_ns == twin.refresh_ns
        if twin.frequency_hz is not None:
            assert row[AT["frequency_hz"]] == pytest.approx(twin.frequency_hz, abs=1e-6)
            half = twin.line(500_000_000)
            if half is not None:
                assert row[AT["rocof_500"]] == pytest.approx(half[1], abs=1e-5)


def test_a_step_of_the_register_does_not_overshoot():
    estimator = RegisterEstimator(60.0, 0.0, 20_000_000)
    seen = [
        estimator.push(10**12 + i * 20_000_000, (60.0 if i < 10 else 59.5,))[1][AT["frequency_hz"]] for i in range(40)
    ]
    assert min(value for value in seen if not math.isnan(value)) == 59.5


# -- a waveform


@pytest.mark.parametrize(
    ("rate", "nominal", "phases"), [(960.0, 60.0, 3), (1200.0, 60.0, 1), (1000.0, 50.0, 3), (400.0, 50.0, 1)]
)
def test_waveform_and_twin_agree(rate, nominal, phases):
    chance = random.Random(3)
    samples, theta = [], 0.3
    for index in range(int(rate * 0.6)):
        theta += 2 * math.pi * (nominal + 0.7 * math.sin(9 * index / rate)) / rate
        samples += [
            math.cos(theta - shift) + 0.05 * math.cos(5 * theta - 5 * shift) + chance.gauss(0, 0.002)
            for shift in (0.0, 2 * math.pi / 3, -2 * math.pi / 3)[:phases]
        ]
    rows = rows_of(WaveformEstimator(rate, nominal, phases, guarded=False, nominal_v=0.7), samples)
    rows = rows[rows[:, AT["cause"]] == 0]
    twin = {round(at * rate * 2): (f, r) for at, f, r in WaveformTwin(rate, nominal, phases).estimates(samples)}
    assert len(rows) > 100
    compared = 0
    for row in rows[20:]:
        f, r = twin[round(row[AT["time_ns"]] * 1e-9 * rate * 2)]
        # One phase solves for its mirror image at the frequency known so far, within 2 mHz: that is all they differ by.
        assert row[AT["frequency_hz"]] == pytest.approx(f, abs=1e-6 if phases == 3 else 2e-3)
        assert row[AT["rocof"]] == pytest.approx(r, abs=1e-3 if phases == 3 else 0.5)
        compared += 1
    assert compared > 80


@pytest.mark.parametrize("rate", [400.0, 777.0, 1000.0, 1600.0, 4800.0, 6400.0, 8000.0, 12800.0, 44100.0])
@pytest.mark.parametrize("nominal", [50.0, 60.0])
@pytest.mark.parametrize("phases", [1, 3])
def test_any_sampling_rate(rate, nominal, phases):
    """Steady off-nominal frequencies are exact at rates that do not divide into cycles, too."""
    for deviation in (-2.0, 0.0, 1.3):
        signal = pmu_signals.steady("x", "x", nominal + deviation, duration_s=0.8)
        rows = rows_of(WaveformEstimator(rate, nominal, phases, nominal_v=0.7071), signal.samples(rate, phases))
        good = rows[(rows[:, AT["cause"]] == 0) & (rows[:, AT["time_ns"]] > 0.5e9)]
        assert len(good) > 10
        assert np.abs(good[:, AT["frequency_hz"]] - nominal - deviation).max() < 1e-3
        assert np.abs(good[:, AT["voltage_pu"]] - 1).max() < 2e-3


@pytest.mark.parametrize("rate", [100.0, 290.0, 60_000.0, math.nan])
def test_a_rate_that_does_not_fit_is_refused(rate):
    with pytest.raises(ValueError, match="samples a cycle"):
        WaveformEstimator(rate, 50.0)


def test_running_sums_do_not_drift():
    """A day at 400 S/s is 34 million samples; a fiftieth of that, with jumps between rails, ends where a fresh filter stands."""
    chance = np.random.default_rng(1)
    wild = chance.uniform(-1, 1, 700_000)
    tail = pmu_signals.steady("x", "x", 50.3, duration_s=1.0).samples(400.0, 1)
    old, fresh = (WaveformEstimator(400.0, 50.0, 1, rail=2.0, guarded=False) for _ in range(2))
    old.run(wild)
    a, b = rows_of(old, tail)[-1], rows_of(fresh, tail)[-1]
    assert a[AT["frequency_hz"]] == pytest.approx(b[AT["frequency_hz"]], abs=1e-5)


def test_a_gap_is_named_until_every_filter_is_full_again():
    samples = pmu_signals.steady("x", "x", 50.0, duration_s=0.5).samples(4000.0, 3)
    estimator = WaveformEstimator(4000.0, 50.0, nominal_v=0.7071)
    rows_of(estimator, samples)
    estimator.gap()
    causes = [CAUSES[int(cause)] for cause in rows_of(estimator, samples)[:, AT["cause"]]]
    assert causes[0] == "gap"
    assert causes[-1] == "valid"
    first = causes.index("valid") * estimator.decimation / 4000.0
    assert 0.055 < first < 0.07, "three cycles: two of the boxcars, one of the fit"


def test_sigma_says_how_noisy_the_frequency_is():
    samples = pmu_signals.steady("x", "x", 60.0, duration_s=4.0).samples(9600.0, 3, noise_db=60)
    rows = rows_of(WaveformEstimator(9600.0, 60.0, nominal_v=0.7071), samples)
    good = rows[(rows[:, AT["cause"]] == 0) & (rows[:, AT["time_ns"]] > 0.6e9)]
    assert np.nanmean(good[:, AT["sigma_hz"]]) == pytest.approx(good[:, AT["frequency_hz"]].std(), rel=0.4)


def test_rows_are_the_same_in_one_piece_or_in_many():
    samples = array.array("d", pmu_signals.steady("x", "x", 50.2, duration_s=0.4).samples(4000.0, 3))
    whole, pieces = WaveformEstimator(4000.0, 50.0, nominal_v=0.7), WaveformEstimator(4000.0, 50.0, nominal_v=0.7)
    expected, got, at = whole.push(samples), array.array("d"), 0
    for size in [3, 30, 300, 33, 3000] * 10:
        got.extend(pieces.push(samples[at : at + size]))
        at += size
    assert at >= len(samples)
    assert got.tobytes() == expected.tobytes()
