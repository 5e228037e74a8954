"""The test signals of IEC/IEEE 60255-118-1:2018 with their reference values, written from the equations of its clause 6.

    x_a(t) = A(t) · cos θ(t),   x_b, x_c with θ ∓ 2π/3,   f = θ' / 2π,   ROCOF = f'

Steady states: f0 ± 2 Hz (P) or ± 5 Hz (M), magnitude, one harmonic at a time, out-of-band interference (M). Dynamic: amplitude
and phase modulation, frequency ramps of 1 Hz/s, steps of magnitude and phase. What the standard leaves out on purpose (noise,
unbalance, EN 50160 harmonics) is in :func:`beyond`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PmuClass = Literal["P", "M"]

EN_50160 = {
    2: 0.02, 3: 0.05, 4: 0.01, 5: 0.06, 6: 0.005, 7: 0.05, 8: 0.005, 9: 0.015, 10: 0.005, 11: 0.035, 12: 0.005, 13: 0.03,
    14: 0.005, 15: 0.005, 16: 0.005, 17: 0.02, 18: 0.005, 19: 0.015, 20: 0.005, 21: 0.005, 22: 0.005, 23: 0.015, 24: 0.005,
    25: 0.015,
}  # fmt: skip
"""EN 50160:2010, table 1: largest harmonic voltages up to order 25, as a share of the fundamental."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One signal as functions of time (s, an array), and what an instrument of the class must make of it."""

    name: str
    group: str
    phase_rad: Callable[[Array], Array]
    """θ of phase a."""
    frequency_hz: Callable[[Array], Array]
    rocof_hz_per_s: Callable[[Array], Array]
    amplitude: Callable[[Array], Array] = field(default=np.ones_like)
    added: Callable[[Array, float], Array] = field(default=lambda t, shift: np.zeros_like(t))
    """Added to the phase that is shifted by so many rad (0, −2π/3, +2π/3)."""
    duration_s: float = 2.0
    settle_s: float = 0.5
    """Left out at the beginning; a ramp has its own times to leave out."""
    leave_out_s: tuple[tuple[float, float], ...] = ()
    limit_fe_hz: float | None = None
    limit_rfe: float | None = None
    step_at_s: float | None = None
    step_kind: Literal["amplitude", "phase"] | None = None
    step_size: float = 0.0
    """In per unit or in rad."""
    response_fe_s: float | None = None
    response_rfe_s: float | None = None
    delay_s: float | None = None
    overshoot: float | None = None

    def samples(self, rate_hz: float, phases: int, *, noise_db: float | None = None, seed: int = 1,
                unbalance: float = 0.0) -> Array:  # fmt: skip
        """Interleaved samples, peak of the fundamental 1.

        Args:
            rate_hz: Samples a second.
            phases: 1 or 3.
            noise_db: White noise, so many dB below the fundamental's power, independent on each phase.
            seed: Of the noise.
            unbalance: Negative sequence as a share of the positive one.
        """
        t = np.arange(round(self.duration_s * rate_hz)) / rate_hz
        theta, amplitude = self.phase_rad(t), self.amplitude(t)
        columns = []
        for shift in (0.0, -2 * np.pi / 3, 2 * np.pi / 3)[:phases]:
            x = amplitude * np.cos(theta + shift) + self.added(t, shift)
            if unbalance:
                x = x + unbalance * np.cos(theta - shift)
            columns.append(x)
        block = np.stack(columns, axis=1)
        if noise_db is not None:
            sigma = 10 ** (-noise_db / 20) / np.sqrt(2)
            block = block + np.random.default_rng(seed).normal(0.0, sigma, block.shape)
        return np.ascontiguousarray(block).ravel()


def steady(name: str, group: str, f: float, **more: object) -> Signal:
    """A constant frequency."""
    return Signal(
        name=name,
        group=group,
        phase_rad=lambda t: 2 * np.pi * f * t,
        frequency_hz=lambda t: np.full_like(t, f),
        rocof_hz_per_s=np.zeros_like,
        **more,  # type: ignore[arg-type]  # fields of Signal
    )


def harmonics(f: float, shares: dict[int, float]) -> Callable[[Array, float], Array]:
    """Harmonics of ``f``, balanced: order h turns h times as fast, and so does its shift between the phases."""

    def total_of(t: Array, shift: float) -> Array:
        total = np.zeros_like(t)
        for order, share in shares.items():
            total += share * np.cos(order * (2 * np.pi * f * t + shift))
        return total

    return total_of


def ramp(f0: float, span: float, rate: float, leave_out_s: float, **more: object) -> Signal:
    """f0 − span for a second, then ``rate`` Hz/s to f0 + span, then a second there (θ = … + πR·t²)."""
    low, began = f0 - np.sign(rate) * span, 1.0
    ended = began + 2 * span / abs(rate)

    def theta(t: Array) -> Array:
        x = np.clip(t - began, 0, ended - began)
        after = np.clip(t - ended, 0, None)
        turns = low * np.minimum(t, ended) + rate * x * x / 2 + (low + rate * (ended - began)) * after
        return np.asarray(2 * np.pi * turns)

    return Signal(
        name=f"ramp {rate:+g} Hz/s",
        group="ramp",
        phase_rad=theta,
        frequency_hz=lambda t: low + rate * np.clip(t - began, 0, ended - began),
        rocof_hz_per_s=lambda t: np.where((t > began) & (t < ended), rate, 0.0),
        duration_s=ended + 1.0,
        leave_out_s=((began - leave_out_s, began + leave_out_s), (ended - leave_out_s, ended + leave_out_s)),
        **more,  # type: ignore[arg-type]
    )


def modulation(f0: float, fm: float, kx: float, ka: float, **more: object) -> Signal:
    """A = 1 + kx·cos 2πf_m t,  θ = 2πf0 t + ka·cos(2πf_m t − π)."""
    w = 2 * np.pi * fm
    return Signal(
        name=f"{'AM' if kx else 'PM'} {fm:g} Hz",
        group="AM" if kx else "PM",
        amplitude=lambda t: 1 + kx * np.cos(w * t),
        phase_rad=lambda t: 2 * np.pi * f0 * t + ka * np.cos(w * t - np.pi),
        frequency_hz=lambda t: f0 - ka * fm * np.sin(w * t - np.pi),
        rocof_hz_per_s=lambda t: -2 * np.pi * ka * fm * fm * np.cos(w * t - np.pi),
        duration_s=max(2.0, 2.0 / fm + 1.0),
        **more,  # type: ignore[arg-type]
    )


def step(f0: float, kind: Literal["amplitude", "phase"], size: float, **more: object) -> Signal:
    """A step of the magnitude (per unit) or of the phase (rad) in the middle."""
    at = 1.0 + 0.00037  # between two samples, as in nature
    return Signal(
        name=f"step {kind} {size:+.4g}",
        group="step",
        amplitude=lambda t: np.asarray(1 + (size if kind == "amplitude" else 0.0) * (t >= at), dtype=np.float64),
        phase_rad=lambda t: 2 * np.pi * f0 * t + (size * (t >= at) if kind == "phase" else 0.0),
        frequency_hz=lambda t: np.full_like(t, f0),
        rocof_hz_per_s=np.zeros_like,
        step_at_s=at,
        step_kind=kind,
        step_size=size,
        **more,  # type: ignore[arg-type]
    )


def standard(pmu_class: PmuClass, f0: float, reports_hz: float, highest_order: int = 50) -> Iterator[Signal]:
    """Every test of the class at one nominal frequency and reporting rate, with its limits (tables 2 to 10)."""
    p = pmu_class == "P"
    rfe = 0.4 if p else 0.1
    span = 2.0 if p else 5.0 if reports_hz >= 25 else max(2.0, reports_hz / 5)
    for df in np.linspace(-span, span, 9):
        yield steady(f"frequency {f0 + df:g} Hz", "frequency", f0 + df, limit_fe_hz=0.005, limit_rfe=rfe)
    for level in (0.8, 0.9, 1.1, 1.2) if p else (0.1, 0.3, 0.8, 1.2):
        yield steady(
            f"magnitude {level:g}", "magnitude", f0, limit_fe_hz=0.005, limit_rfe=rfe,
            amplitude=lambda t, level=level: np.full_like(t, level),
        )  # fmt: skip
    for order in range(2, highest_order + 1):
        yield steady(
            f"harmonic {order}", "harmonics", f0, limit_fe_hz=0.005 if p or reports_hz <= 20 else 0.025,
            limit_rfe=0.4 if p else None, added=harmonics(f0, {order: 0.01 if p else 0.1}),
        )  # fmt: skip
    if not p:
        yield from _out_of_band(f0, reports_hz)
    highest = min(reports_hz / 10, 2.0) if p else min(reports_hz / 5, 5.0)
    fe, rfe = (0.03 if p else 0.06) * highest, 0.18 * np.pi * highest**2
    # FE limits hold for the highest modulation frequency of the class: 0.06 and 2.3 (P), 0.3 and 14 (M).
    for fm in np.linspace(0.1, highest, 8):
        yield modulation(f0, float(fm), 0.1, 0.0, limit_fe_hz=fe, limit_rfe=rfe)
        yield modulation(f0, float(fm), 0.0, 0.1, limit_fe_hz=fe, limit_rfe=rfe)
    for rate in (1.0, -1.0):
        yield ramp(
            f0, 2.0 if p else min(5.0, reports_hz / 5), rate, (2 if p else 7) / reports_hz, limit_fe_hz=0.01,
            limit_rfe=0.4 if p else 0.2,
        )  # fmt: skip
    periods = max(f0, reports_hz)
    for kind, size in (("amplitude", 0.1), ("amplitude", -0.1), ("phase", np.pi / 18), ("phase", -np.pi / 18)):
        yield step(
            f0, kind, size, limit_fe_hz=0.005, limit_rfe=0.4 if p else 0.1,  # type: ignore[arg-type]
            response_fe_s=4.5 / f0 if p else 14 / periods, response_rfe_s=6 / f0 if p else 14 / periods,
            delay_s=1 / (4 * reports_hz), overshoot=0.05 if p else 0.1,
        )  # fmt: skip


def _out_of_band(f0: float, reports_hz: float) -> Iterator[Signal]:
    half = reports_hz / 2
    for f in (f0, f0 - 0.1 * half, f0 + 0.1 * half):
        for fi in np.unique(np.concatenate([np.linspace(10, f0 - half, 6), np.linspace(f0 + half, 2 * f0, 6)])):
            yield steady(
                f"out of band {fi:g} Hz at {f:g} Hz", "out of band", f, limit_fe_hz=0.01,
                added=lambda t, shift, fi=fi: 0.1 * np.cos(2 * np.pi * fi * t + shift),
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an instrument made of a signal."""

    fe_hz: float
    rfe: float
    passed: bool
    why: str
    response_fe_s: float | None = None
    response_rfe_s: float | None = None
    delay_s: float | None = None
    overshoot: float | None = None


def judge(signal: Signal, time_s: Array, frequency: Array, rocof: Array, value: Array | None = None) -> Verdict:
    """Errors against the reference at the estimates' own times, and whether the limits hold.

    Args:
        signal: What was measured.
        time_s: Times that the estimates refer to.
        frequency: Hz.
        rocof: Hz/s.
        value: For a step: the measured amplitude (pu) or phase (rad, against f0), for delay and overshoot.
    """
    fe = np.abs(frequency - signal.frequency_hz(time_s))
    rfe = np.abs(rocof - signal.rocof_hz_per_s(time_s))
    keep = (time_s >= signal.settle_s) & (time_s <= signal.duration_s)
    for begin, end in signal.leave_out_s:
        keep &= (time_s < begin) | (time_s > end)
    if not keep.any() or np.isnan(fe[keep]).any():
        return Verdict(fe_hz=np.nan, rfe=np.nan, passed=False, why="there is no estimate")
    worst_fe, worst_rfe = float(fe[keep].max()), float(rfe[keep].max())
    if signal.step_at_s is None:
        wrong = []
        if signal.limit_fe_hz is not None and not worst_fe <= signal.limit_fe_hz:
            wrong.append(f"FE {worst_fe:.4g} > {signal.limit_fe_hz:.4g} Hz")
        if signal.limit_rfe is not None and not worst_rfe <= signal.limit_rfe:
            wrong.append(f"RFE {worst_rfe:.4g} > {signal.limit_rfe:.4g} Hz/s")
        return Verdict(fe_hz=worst_fe, rfe=worst_rfe, passed=not wrong, why=", ".join(wrong))
    assert value is not None
    took_fe = _outside(time_s[keep], fe[keep], signal.limit_fe_hz or 0.0)
    took_rfe = _outside(time_s[keep], rfe[keep], signal.limit_rfe or 0.0)
    before = value[(time_s > 0.6) & (time_s < 0.8)].mean()
    share = (value - before) / signal.step_size
    crossed = int(np.argmax((share >= 0.5) & keep))
    left, right = share[crossed - 1], share[crossed]
    at = time_s[crossed - 1] + (0.5 - left) / (right - left) * (time_s[crossed] - time_s[crossed - 1])
    delay = float(abs(at - signal.step_at_s))
    over = float(max((share[keep]).max() - 1, -(share[keep]).min()))
    wrong = [
        f"{name} {have:.4g} > {most:.4g}"
        for name, have, most in (
            ("FE response", took_fe, signal.response_fe_s), ("RFE response", took_rfe, signal.response_rfe_s),
            ("delay", delay, signal.delay_s), ("overshoot", over, signal.overshoot),
        )
        if most is not None and not have <= most
    ]  # fmt: skip
    return Verdict(
        fe_hz=worst_fe, rfe=worst_rfe, passed=not wrong, why=", ".join(wrong), response_fe_s=took_fe,
        response_rfe_s=took_rfe, delay_s=delay, overshoot=over,
    )  # fmt: skip


def _outside(time_s: Array, error: Array, limit: float) -> float:
    """Time from the first to the last estimate outside a limit."""
    out = np.flatnonzero(error > limit)
    return float(time_s[out[-1]] - time_s[out[0]]) if out.size else 0.0
