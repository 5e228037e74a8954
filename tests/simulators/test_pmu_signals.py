"""The standard's signals and their reference values, held against each other numerically: f is θ' and ROCOF is f'."""

import numpy as np
import pytest
from wattmesh_simulators import pmu_signals

SIGNALS = [signal for cls in "PM" for signal in pmu_signals.standard(cls, 50.0, 50.0)]


@pytest.mark.parametrize("signal", [s for s in SIGNALS if s.step_at_s is None], ids=lambda s: f"{s.group}-{s.name}")
def test_references_are_the_derivatives_of_the_phase(signal):
    t = np.linspace(0.1, signal.duration_s - 0.1, 4001)
    h = 1e-5
    measured = (signal.phase_rad(t + h) - signal.phase_rad(t - h)) / (2 * h) / (2 * np.pi)
    smooth = np.ones_like(t, dtype=bool)
    for begin, end in signal.leave_out_s:
        smooth &= (t < begin) | (t > end)
    assert np.abs(measured - signal.frequency_hz(t))[smooth].max() < 1e-5
    slope = (signal.frequency_hz(t + 1e-4) - signal.frequency_hz(t - 1e-4)) / 2e-4
    assert np.abs(slope - signal.rocof_hz_per_s(t))[smooth].max() < 1e-3


def test_the_largest_values_are_those_of_the_standard():
    modulated = pmu_signals.modulation(50.0, 2.0, 0.0, 0.1)
    t = np.linspace(0, 1, 100_001)
    assert np.abs(modulated.frequency_hz(t) - 50).max() == pytest.approx(0.2, rel=1e-4)
    assert np.abs(modulated.rocof_hz_per_s(t)).max() == pytest.approx(2 * np.pi * 0.1 * 4, rel=1e-4)
    limits = {s.group: (s.limit_fe_hz, s.limit_rfe) for s in pmu_signals.standard("P", 60.0, 60.0)}
    assert limits["PM"] == pytest.approx((0.06, 2.2619), rel=1e-3)
    limits = {s.group: (s.limit_fe_hz, s.limit_rfe) for s in pmu_signals.standard("M", 60.0, 60.0)}
    assert limits["PM"] == pytest.approx((0.3, 14.137), rel=1e-3)
    assert limits["out of band"] == (0.01, None)


def test_phases_are_balanced_and_harmonics_turn_in_their_own_sequence():
    x = pmu_signals.steady("x", "x", 50.0, duration_s=0.1).samples(10_000.0, 3).reshape(-1, 3)
    assert np.abs(x.sum(axis=1)).max() < 1e-9
    fifth = pmu_signals.steady("x", "x", 50.0, duration_s=0.2, added=pmu_signals.harmonics(50.0, {5: 0.1, 3: 0.1}))
    x = fifth.samples(10_000.0, 3).reshape(-1, 3)
    vector = (2 * x[:, 0] - x[:, 1] - x[:, 2]) / 3 + 1j * (x[:, 1] - x[:, 2]) / np.sqrt(3)
    lines = np.fft.fft(vector) / len(vector)
    assert abs(lines[10]) == pytest.approx(1.0)
    assert abs(lines[-50]) == pytest.approx(0.1), "the fifth is of negative sequence"
    assert abs(lines[50]) < 1e-9
    assert max(abs(lines[30]), abs(lines[-30])) < 1e-9, "the third is of zero sequence, and Clarke leaves it out"


def test_noise_has_the_power_that_was_asked_for():
    clean = pmu_signals.steady("x", "x", 50.0, duration_s=5.0)
    difference = clean.samples(10_000.0, 1, noise_db=60) - clean.samples(10_000.0, 1)
    assert 10 * np.log10(0.5 / difference.var()) == pytest.approx(60.0, abs=0.1)


def test_judge_finds_what_breaks_a_limit():
    signal = next(s for s in pmu_signals.standard("P", 50.0, 50.0) if s.group == "frequency")
    t = np.arange(0, 2, 0.02)
    f, r = signal.frequency_hz(t), signal.rocof_hz_per_s(t)
    assert pmu_signals.judge(signal, t, f, r).passed
    assert "FE" in pmu_signals.judge(signal, t, f + 0.006, r).why
    assert "RFE" in pmu_signals.judge(signal, t, f, r + 0.5).why
    assert not pmu_signals.judge(signal, t, np.full_like(t, np.nan), r).passed


def test_judge_measures_a_steps_response_delay_and_overshoot():
    signal = next(s for s in pmu_signals.standard("P", 50.0, 50.0) if s.step_kind == "amplitude" and s.step_size > 0)
    t = np.arange(0, 2, 0.001)
    late = signal.step_at_s + 0.003
    value = 1 + 0.1 * np.clip((t - late + 0.02) / 0.04, 0, 1)
    f = 50 + 0.1 * ((t > late - 0.03) & (t < late + 0.03))
    verdict = pmu_signals.judge(signal, t, f, np.zeros_like(t), value)
    assert verdict.passed, verdict.why
    assert verdict.delay_s == pytest.approx(0.003, abs=1e-4)
    assert verdict.response_fe_s == pytest.approx(0.06, abs=0.002)
    assert "delay" in pmu_signals.judge(signal, t + 0.01, f, np.zeros_like(t), value).why
    assert "overshoot" in pmu_signals.judge(signal, t, f, np.zeros_like(t), value + 0.02 * (t > 1.1)).why
