"""Kernels in virtual time."""

import array
import math
import time

from wattmesh_edge.reflex import Endpoint, ReflexConfig, Response, kernel_settings, make_kernel
from wattmesh_edge.reflex.profile import ResponseProfile

MS = 1_000_000
S = 1_000_000_000
START = 10**12


def endpoint(**more):
    return Endpoint(**{
        "host": "127.0.0.1", "port": 1, "unit": 1, "function": 4, "address": 0, "type": "f32", "word_order": "big",
        "scale": 1.0, "sign": 1, **more,
    })  # fmt: skip


def profile(**more):
    return ResponseProfile(**{
        "profile": 1, "id": "test", "title": "test", "nominal_hz": (50, 60), "sources": ("test",),
        **({"continuous": {"dead_band_hz": 0.036, "droop": 0.05}} if "blocks" not in more and "continuous" not in more else {}),
        **more,
    })  # fmt: skip


def config(**more):
    answer = more.pop("answer", profile())
    response = answer and Response(
        endpoint=endpoint(function=16, type="s32"), rated_power_w=more.pop("rated_w", 5000.0), profile=answer
    )
    return ReflexConfig(**{
        "site_id": "s", "nominal_hz": 60, "source": endpoint(), "response": response, "realtime": False, **more,
    })  # fmt: skip


def register_kernel(**more):
    return make_kernel(kernel_settings(config(**{"refresh_ms": 20, **more})))


def wave_kernel(rate_hz=4800.0, phases=3, **more):
    source = {
        "kind": "play",
        "period_ns": 5 * MS,
        "rate_hz": rate_hz,
        "channels": phases,
        "samples": array.array("d", [0.0]),
    }
    return make_kernel(kernel_settings(config(**{"source": source, "nominal_v": 230.0, **more})))


def wave(frequencies, rate_hz=4800.0, phases=3, *, volts=230.0, jumps=()):
    """Samples of a frequency that changes sample by sample; ``jumps``: (index, degrees)."""
    jumps, out, theta = dict(jumps), array.array("d"), 0.0
    peak = volts * math.sqrt(2)
    for index, f in enumerate(frequencies):
        theta += 2 * math.pi * f / rate_hz + math.radians(jumps.get(index, 0.0))
        out.extend(peak * math.cos(theta - shift) for shift in (0.0, 2 * math.pi / 3, -2 * math.pi / 3)[:phases])
    return out


def play(kernel, frequencies, start=START, period=20 * MS, volts=None):
    """Setpoints (or none) of register samples."""
    found = []
    for index, value in enumerate(frequencies):
        values = None if value is None else (value,) if volts is None else (value, volts)
        found.append(kernel.feed(start + index * period, values))
    return found


def events(kernel, ended=True):
    rows, lost = kernel.drain_events()
    assert lost == 0
    return [row for row in rows if (row["end_ns"] is not None) == ended]


def until(condition, seconds=5.0):
    """What a condition gives as soon as it is true; a bounded wait for a thread."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not come")
