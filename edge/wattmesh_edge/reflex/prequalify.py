"""Prequalification of a response profile: ramp, step and saw-tooth through the native logic in virtual time, measured and plotted.

The signal is a register renewed every 20 ms and read with 20 ms of period; the battery follows its setpoint with a first-order lag.
What is measured is what the profile's ``required`` asks for and what its curve says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from wattmesh_edge.reflex import Endpoint, ReflexConfig, Response, kernel_settings, make_kernel
from wattmesh_edge.reflex.plot import Panel, Point, chart, page, table
from wattmesh_edge.reflex.profile import ResponseProfile

_PERIOD_S = 0.02
_START_NS = 10**12
_TOLERANCE = 0.03
"""Of the power, for the static curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the profile is tested on."""

    nominal_hz: float
    power_w: float
    """Rated, both ways."""
    battery_lag_s: float = 0.1
    """Time constant of the battery inverter's own answer to a setpoint; take the measured one of the device at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What came of one test."""

    name: str
    frequency: list[Point]
    setpoint: list[Point]
    power: list[Point]
    checks: list[tuple[str, str, str, bool]]
    """(what, value, wanted, met)."""


def run_test(
    profile: ResponseProfile, bench: Bench, frequency: Callable[[float], float], seconds: float
) -> tuple[list[Point], list[Point], list[Point]]:
    """(frequency, setpoint, power) over time for a frequency that is a function of it."""
    register = Endpoint(
        host="127.0.0.1", port=1, unit=1, function=4, address=0, type="f32", word_order="big", scale=1.0, sign=1
    )
    target = Endpoint(
        host="127.0.0.1", port=1, unit=1, function=16, address=0, type="f32", word_order="big", scale=1.0, sign=1
    )
    kernel = make_kernel(kernel_settings(ReflexConfig(
        site_id="prequalification", nominal_hz=bench.nominal_hz, source=register, refresh_ms=20, realtime=False,
        response=Response(endpoint=target, rated_power_w=bench.power_w, profile=profile),
    )))  # fmt: skip
    f, setpoints, powers = [], [(0.0, 0.0)], []
    held, power = 0.0, 0.0
    for step in range(round(seconds / _PERIOD_S)):
        at = step * _PERIOD_S
        now = _START_NS + round(at * 1e9)
        if step % 50 == 0:
            kernel.publish(0.0, -bench.power_w, bench.power_w, now=now)
        hertz = frequency(at)
        wanted = kernel.feed(now, (hertz + 1e-6 * (step % 2),))
        if wanted is not None:
            held = wanted
            setpoints.append((at, wanted))
        power += (held - power) * (1 - math.exp(-_PERIOD_S / bench.battery_lag_s))
        f.append((at, hertz))
        powers.append((at, power))
    return f, setpoints, powers


def prequalify(profile: ResponseProfile, bench: Bench) -> list[Course]:
    """The courses of a profile: steps, a ramp, a saw-tooth."""
    f0 = bench.nominal_hz
    deepest = 0.6
    if profile.continuous is not None:
        deepest = max(deepest, min(1.5, max(abs(d) for d, _ in profile.continuous.curve(f0))))
    if profile.blocks:
        deepest = max(abs(block.trigger_hz - f0) for block in profile.blocks) + 0.1
    for trip in profile.trip:  # within what is ridden through
        if trip.quantity.endswith("frequency"):
            deepest = min(deepest, 0.95 * abs(trip.threshold - f0))
    courses = [_step(profile, bench, -deepest)]
    low, high = profile.largest_shares(f0)
    if high > 0:
        courses.append(_step(profile, bench, deepest))
    if low < 0:
        courses.append(_ramp(profile, bench, deepest))
    if profile.continuous is not None:
        courses.append(_saw_tooth(profile, bench, deepest))
    return courses


def _static(profile: ResponseProfile, nominal_hz: float, deviation: float) -> float:
    """Share that the curve asks for at a deviation, read off the profile and not off the kernel."""
    share = 0.0
    if profile.continuous is not None:
        points = profile.continuous.curve(nominal_hz)
        share = points[0][1] if deviation <= points[0][0] else points[-1][1]
        for (left, a), (right, b) in itertools.pairwise(points):
            if left <= deviation <= right:
                share = a + (b - a) * (deviation - left) / (right - left)
    for block in profile.blocks:
        if (
            (deviation <= block.trigger_hz - nominal_hz)
            if block.power_pu < 0
            else (deviation >= block.trigger_hz - nominal_hz)
        ):
            share += block.power_pu
    return max(-1.0, min(1.0, share))


def _step(profile: ResponseProfile, bench: Bench, deviation: float) -> Course:
    f0, power_w = bench.nominal_hz, bench.power_w
    at = 2.0
    settle = _settling_s(profile, bench)
    over = at + settle + 20.0
    f, setpoint, power = run_test(
        profile, bench, lambda t: f0 + (deviation if at <= t < over else 0.0), over + settle + 10
    )
    wanted = _static(profile, f0, deviation) * power_w
    checks = _dynamic_checks(profile, bench, setpoint, power, at, wanted)
    blocks_end = at + min((block.hold_s for block in profile.blocks), default=math.inf)
    steady = [p for t, p in power if at + settle < t < min(over, blocks_end) - 0.2]
    if steady:
        error = max(abs(p - wanted) for p in steady) / power_w
        checks.append(
            (
                "power in the steady state",
                f"{steady[-1]:.0f} W",
                f"{wanted:.0f} W ± {_TOLERANCE:.0%}",
                error <= _TOLERANCE,
            )
        )
    if not profile.blocks:
        left = abs(power[-1][1]) / power_w
        checks.append(("back at the baseline", f"{power[-1][1]:.0f} W", f"0 W ± {_TOLERANCE:.0%}", left <= _TOLERANCE))
    return Course(name=f"step {deviation:+.2f} Hz", frequency=f, setpoint=setpoint, power=power, checks=checks)


def _settling_s(profile: ResponseProfile, bench: Bench) -> float:
    continuous = profile.continuous
    lag = 6 * bench.battery_lag_s + 0.2
    if continuous is None:
        return lag
    ramp = 1 / continuous.ramp_pu_per_s if continuous.ramp_pu_per_s else 0.0
    return lag + continuous.delay_s + 2.2 * continuous.open_loop_response_s + ramp


def _dynamic_checks(
    profile: ResponseProfile, bench: Bench, setpoint: list[Point], power: list[Point], at: float, wanted: float
) -> list[tuple[str, str, str, bool]]:
    sign = math.copysign(1.0, wanted)
    first = next((t - at for t, w in setpoint if t >= at and sign * w > 0), None)
    full = next((t - at for t, p in power if t >= at and sign * p >= 0.9 * abs(wanted)), None)
    checks = []
    required = profile.required
    if required is not None:
        checks.append(
            (
                "starts after",
                _seconds(first),
                f"{required.starts_s:g} s",
                first is not None and first <= required.starts_s,
            )
        )
        checks.append(
            ("90 % after", _seconds(full), f"{required.full_s:g} s", full is not None and full <= required.full_s)
        )
    elif profile.continuous is not None and profile.continuous.open_loop_response_s:
        limit = profile.continuous.open_loop_response_s + 0.25 + bench.battery_lag_s * 2.3
        checks.append(("90 % after (open loop)", _seconds(full), f"{limit:.2f} s", full is not None and full <= limit))
    for block in profile.blocks:
        held = [t for t, p in power if sign * p >= 0.9 * abs(wanted)]
        lasted = held[-1] - held[0] if held else 0.0
        enough = lasted >= min(block.hold_s, power[-1][0] - at) - 1.0
        checks.append(("held for", f"{lasted:.1f} s", f"{min(block.hold_s, power[-1][0] - at):.1f} s", enough))
        break
    return checks


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _ramp(profile: ResponseProfile, bench: Bench, depth: float) -> Course:
    """1 Hz/s down, as the verification of very fast services has it."""
    f0, power_w = bench.nominal_hz, bench.power_w
    at, long = 2.0, depth
    hold = _settling_s(profile, bench) + 5

    def frequency(t: float) -> float:
        if t < at:
            return f0
        return f0 - min(depth, t - at) if t < at + long + hold else min(f0, f0 - depth + (t - at - long - hold) * 0.5)

    f, setpoint, power = run_test(profile, bench, frequency, at + long + hold + 2 * depth + 5)
    checks = []
    if profile.blocks:
        trigger = max(block.trigger_hz for block in profile.blocks if block.power_pu < 0)
        crossing = at + f0 - trigger
        first = next((t - crossing for t, w in setpoint if w < 0), None)
        checks.append(("threshold to setpoint", _seconds(first), "0.15 s", first is not None and first <= 0.15))
    else:
        worst = min(w for _, w in setpoint)
        wanted = _static(profile, f0, -depth) * power_w
        checks.append(("deepest setpoint", f"{worst:.0f} W", f"{wanted:.0f} W ± {_TOLERANCE:.0%}",
                       abs(worst - wanted) <= _TOLERANCE * power_w))  # fmt: skip
        steepest = max((abs(b - a) for (_, a), (_, b) in itertools.pairwise(setpoint)), default=0.0)
        checks.append(
            ("largest single step", f"{steepest:.0f} W", f"{0.15 * power_w:.0f} W", steepest <= 0.15 * power_w)
        )
    return Course(name="ramp -1 Hz/s", frequency=f, setpoint=setpoint, power=power, checks=checks)


def _saw_tooth(profile: ResponseProfile, bench: Bench, depth: float) -> Course:
    """Slow teeth through the whole curve: the setpoint has to lie on it, up and down."""
    f0, power_w = bench.nominal_hz, bench.power_w
    period = max(120.0, 30 * _settling_s(profile, bench))

    def frequency(t: float) -> float:
        phase = (t % period) / period
        tooth = 4 * phase if phase < 0.25 else 2 - 4 * phase if phase < 0.75 else 4 * phase - 4
        return f0 + depth * tooth

    f, setpoint, power = run_test(profile, bench, frequency, period)
    worst = max(
        abs(p - _static(profile, f0, hertz - f0) * power_w) / power_w
        for (t, hertz), (_, p) in zip(f, power, strict=True)
        if t > 2
    )
    slope = 4 * depth / period
    steepest = _steepest(profile, f0)
    lag = bench.battery_lag_s + 0.15 + (profile.continuous.open_loop_response_s / 2.3 if profile.continuous else 0.0)
    allowed = _TOLERANCE + slope * steepest * lag
    checks = [("farthest from the curve", f"{worst:.1%}", f"{allowed:.1%}", worst <= allowed)]
    return Course(name="saw-tooth", frequency=f, setpoint=setpoint, power=power, checks=checks)


def _steepest(profile: ResponseProfile, f0: float) -> float:
    assert profile.continuous is not None
    points = profile.continuous.curve(f0)
    return max((b - a) / (right - left) for (left, a), (right, b) in itertools.pairwise(points))


def report_page(profile: ResponseProfile, bench: Bench, courses: list[Course]) -> str:
    """The report as one page."""
    parts = [
        table(
            ("test", "what", "value", "wanted", ""),
            [
                (course.name, what, value, wanted, "passed" if met else "FAILED")
                for course in courses
                for what, value, wanted, met in course.checks
            ],
        )
    ]
    for course in courses:
        end = course.frequency[-1][0]
        parts.append(
            chart(
                Panel(title=f"{course.name}: frequency", unit="Hz", lines=[("frequency", course.frequency)]), 0.0, end
            )
        )
        lines = [("power", course.power), ("setpoint", course.setpoint)]
        parts.append(
            chart(
                Panel(title=f"{course.name}: power", unit="W, consumption positive", lines=lines, steps=True), 0.0, end
            )
        )
    parts.append(
        "<p class=soft>Signal: a register renewed every 20 ms. Battery: first-order lag of "
        f"{bench.battery_lag_s * 1000:.0f} ms. The logic is the native thread's own, in virtual time.</p>"
    )
    return page(
        f"Prequalification: {profile.title}",
        f"{profile.id}, {bench.nominal_hz:g} Hz, {bench.power_w:.0f} W. {' '.join(profile.sources)}",
        parts,
    )
