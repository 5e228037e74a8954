"""The reflex: accuracy to IEC/IEEE 60255-118-1, cost a sample, time to a setpoint, what is (not) an event, an island.

usage: benchmarks/frequency.py [--json] [--quick] [--only PART ...] [--soak-hours H] [--soak-pace P]

Parts: standard, beyond, cost, recordings, injected, wire, register, lateness, memory, island. Peers: pqopen-lib's zero-crossing
detector for the cost of a sample (where it is installed: extra ``bench``), asyncio for lateness. Times on the wire are taken on
this machine with another process as the grid and a third as the battery; the scheduling class really in force is a line of its own.
"""

import argparse
import asyncio
import contextlib
import ctypes
import itertools
import json
import math
import multiprocessing
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import mains
import register_server
from wattmesh_edge.reflex import (
    Endpoint,
    Reflex,
    ReflexConfig,
    Response,
    kernel_settings,
    load_profile,
    make_kernel,
    sources,
)
from wattmesh_edge.reflex.estimators import FIELDS, WaveformEstimator
from wattmesh_edge.reflex.evidence import INPUT, INPUT_KINDS
from wattmesh_edge.reflex.profile import ResponseProfile
from wattmesh_edge.reflex.scan import read_table, scan_register, scan_waveform
from wattmesh_simulators import pmu_signals
from wattmesh_simulators.grid import Grid

Row = tuple[str, float, str, float | None, str, str | None, float | None]
"""Name, value, unit, goal, how it compares (<= or >=), peer, the peer's value."""
AT = {name: index for index, name in enumerate(FIELDS)}
MOVING = {"under_frequency", "over_frequency", "rocof", "islanding"}
RATES = {50.0: 10_000.0, 60.0: 9_600.0}
QUICK, SEED = False, 11


def estimates(signal, rate, nominal, phases, *, m_class=False, guarded=False, **more):
    estimator = WaveformEstimator(
        rate, nominal, phases, m_class=m_class, nominal_v=1 / np.sqrt(2), guarded=guarded, report_hz=nominal
    )
    rows = np.frombuffer(estimator.push(signal.samples(rate, phases, **more))).reshape(-1, len(FIELDS))
    return estimator, rows[rows[:, AT["cause"]] == 0]


# -- the standard


def standard() -> Iterator[Row]:
    for nominal, rate in RATES.items():
        for pmu_class, phases in (("P", 3), ("P", 1), ("M", 3)):
            name = f"frequency.{pmu_class.lower()}_class_{phases}_phase_{nominal:.0f}_hz"
            failed, count, fe, rfe, latency = [], 0, 0.0, 0.0, 0.0
            for signal in pmu_signals.standard(pmu_class, nominal, nominal):
                estimator, rows = estimates(signal, rate, nominal, phases, m_class=pmu_class == "M")
                value = None
                if signal.step_kind == "phase":
                    value = np.unwrap((rows[:, AT["phase_turns"]] % 1) * 2 * np.pi)
                elif signal.step_kind == "amplitude":
                    value = rows[:, AT["voltage_pu"]]
                series = [("", "time_ns", "frequency_hz", "rocof")]
                if pmu_class == "P" and signal.step_kind is None:
                    series.append((" (33 ms fit)", "report_ns", "frequency_report", "rocof_report"))
                for label, when, f, r in series:
                    known = ~np.isnan(rows[:, AT[f]])
                    verdict = pmu_signals.judge(
                        signal, rows[known, AT[when]] * 1e-9, rows[known, AT[f]], rows[known, AT[r]],
                        None if value is None else value[known],
                    )  # fmt: skip
                    count += 1
                    if not verdict.passed:
                        failed.append(f"{signal.name}{label}: {verdict.why}")
                    if signal.step_kind is None and signal.group not in {"AM", "PM"}:
                        fe, rfe = max(fe, verdict.fe_hz), max(rfe, verdict.rfe)
                latency = estimator.delay_s
            for line in failed:
                print(f"  failed: {name}: {line}", file=sys.stderr)
            yield f"{name}_failed_of_{count}", len(failed), "tests", 0, "<=", None, None
            yield f"{name}_largest_fe_without_modulation", fe * 1000, "mHz", None, "<=", None, None
            yield f"{name}_largest_rfe_without_modulation", rfe, "Hz/s", None, "<=", None, None
            limit = (2 if pmu_class == "P" else 7) / nominal * 1000
            yield f"{name}_latency", latency * 1000, "ms", limit, "<=", None, None


def beyond() -> Iterator[Row]:
    for nominal, rate in RATES.items():
        quiet = pmu_signals.steady("noise", "noise", nominal, duration_s=4 if QUICK else 10)
        for db in (60, 80):
            _, rows = estimates(quiet, rate, nominal, 3, noise_db=db)
            rows = rows[(rows[:, AT["time_ns"]] > 0.8e9) & ~np.isnan(rows[:, AT["frequency_report"]])]
            late = float((rows[:, AT["made_ns"]] - rows[:, AT["report_ns"]]).min()) / 1e6
            goal = (1.5, 0.2) if db == 60 else (None, None)
            name = f"frequency.noise_{db}_db_{nominal:.0f}_hz"
            fe = np.abs(rows[:, AT["frequency_report"]] - nominal).max() * 1000
            yield f"{name}_fe", float(fe), "mHz", goal[0], "<=", None, None
            yield f"{name}_rfe", float(np.abs(rows[:, AT["rocof_report"]]).max()), "Hz/s", goal[1], "<=", None, None
            if db == 60:
                yield f"{name}_latency", late, "ms", 33.0, "<=", None, None
        worst = {"steady": [0.0, 0.0], "fast": [0.0, 0.0]}
        for deviation in (-2.0, -1.0, 0.0, 1.0, 2.0):
            f = nominal + deviation
            signal = pmu_signals.steady("x", "x", f, added=pmu_signals.harmonics(f, pmu_signals.EN_50160), duration_s=4)
            _, rows = estimates(signal, rate, nominal, 3, unbalance=0.05)
            rows = rows[(rows[:, AT["time_ns"]] > 0.8e9)]
            for name, a, b in (("steady", "frequency_100", "rocof_100"), ("fast", "frequency_hz", "rocof")):
                worst[name][0] = max(worst[name][0], float(np.nanmax(np.abs(rows[:, AT[a]] - f))) * 1000)
                worst[name][1] = max(worst[name][1], float(np.nanmax(np.abs(rows[:, AT[b]]))))
        name = f"frequency.en50160_harmonics_5_percent_unbalance_{nominal:.0f}_hz"
        yield f"{name}_fe_100_ms", worst["steady"][0], "mHz", 1.0, "<=", None, None
        yield f"{name}_rfe_100_ms", worst["steady"][1], "Hz/s", 0.05, "<=", None, None
        yield f"{name}_fe_one_cycle_fit", worst["fast"][0], "mHz", None, "<=", None, None
        yield f"{name}_rfe_one_cycle_fit", worst["fast"][1], "Hz/s", None, "<=", None, None


def cost() -> Iterator[Row]:
    signal = pmu_signals.steady("x", "x", 60.1, duration_s=10)
    for phases, goal in ((3, 25.0), (1, None)):
        samples = signal.samples(9600.0, phases)
        best = 1e9
        for _ in range(9):
            estimator = WaveformEstimator(9600.0, 60.0, phases, nominal_v=1 / np.sqrt(2))
            began = time.perf_counter()
            estimator.run(samples)
            best = min(best, time.perf_counter() - began)
        ours = best / (len(samples) / phases) * 1e9
        if phases == 3:
            theirs = _pqopen(signal)
            yield "frequency.three_phase_sample", ours, "ns", goal, "<=", "pqopen-lib zero crossing, one phase", theirs
            if theirs is not None:
                yield "frequency.times_faster_than_pqopen", theirs / ours, "times", 10.0, ">=", None, None
        else:
            yield "frequency.one_phase_sample", ours, "ns", goal, "<=", None, None
    kernel = make_kernel(kernel_settings(_config(
        {"kind": "play", "period_ns": 5_000_000, "rate_hz": 9600.0, "channels": 3, "samples": array("d", [0.0])}
    )))  # fmt: skip
    samples = array("d", signal.samples(9600.0, 3) * 325.0)
    began = time.perf_counter()
    kernel.feed_wave(samples, 10**12)
    took = (time.perf_counter() - began) / (len(samples) / 3) * 1e9
    yield "frequency.three_phase_sample_with_detector_and_log", took, "ns", None, "<=", None, None


def _pqopen(signal):
    try:
        from pqopen.zcd import ZeroCrossDetector
    except ImportError:
        return None
    samples, best = signal.samples(9600.0, 1), 1e9
    for _ in range(3):
        detector = ZeroCrossDetector(50, 0.01, 9600.0)
        began = time.perf_counter()
        for at in range(0, len(samples), 160):
            detector.process(samples[at : at + 160])
        best = min(best, time.perf_counter() - began)
    return best / len(samples) * 1e9


# -- what is an event


def block_profile(nominal, trigger, hold_s=5.0, rearm_s=60.0):
    return ResponseProfile(
        profile=1, id="bench", title="bench", nominal_hz=(nominal,), sources=("bench",),
        blocks=({"trigger_hz": trigger, "power_pu": -1 if trigger < nominal else 1, "hold_s": hold_s, "rearm_s": rearm_s},),
    )  # fmt: skip


def recordings() -> Iterator[Row]:
    events, moved, seconds = 0, 0, 0.0
    pieces = [
        *mains.slips().values(),
        mains.waveform(),
        mains.waveform("mains_waveform_50hz_400sps_whu071_phaseslips.csv.gz"),
    ]
    for samples in pieces:
        found = scan_waveform(mains.doubles(samples), rate_hz=400.0, rail_v=mains.RAIL, profile=block_profile(50, 49.8))
        events += sum(event["name"] in MOVING for event in found.events)
        moved += len(found.setpoints)
        seconds += found.seconds
    yield "frequency.recorded_waveforms_false_events", events, "events", 0, "<=", None, None
    yield "frequency.recorded_waveforms_false_setpoints", moved, "setpoints", 0, "<=", None, None
    hours = 0.0
    events = 0
    for rows in mains.mains_hours().values():
        found = scan_register(rows)
        events += sum(event["name"] in MOVING for event in found.events)
        hours += found.seconds / 3600
    yield f"frequency.mains_of_{hours:.1f}_hours_false_events", events, "events", 0, "<=", None, None
    rows = read_table(mains.iberia(), time="time_utc", frequency="f_hz", voltage="v_l1")
    found = scan_register(rows, nominal_v=27_000.0, profile=load_profile("en50549_1_lfsm"))
    moving = [event for event in found.events if event["name"] in MOVING]
    yield "frequency.iberia_events", len(moving), "events", 1, "<=", None, None
    yield "frequency.iberia_first_setpoint_after_48.556_hz", found.setpoints[0][0] - 5600.0, "s", 0.0, "<=", None, None
    dead = sum(end - begin for begin, end, cause in found.spans if cause == "low voltage")
    yield "frequency.iberia_dead_meter_invalid", dead, "s", 1594.0, ">=", None, None
    away = [watt for at, watt in found.setpoints if at > 5604.0]
    drooped = sum(abs(b) > abs(a) for a, b in itertools.pairwise(away))
    yield "frequency.iberia_droop_on_the_dead_meter", drooped, "setpoints", 0, "<=", None, None


def injected() -> Iterator[Row]:
    chance = np.random.default_rng(SEED)
    vector = mains.analytic(mains.waveform())
    size, tries = 1600, 20 if QUICK else 200

    def piece():
        at = int(chance.integers(0, len(vector) - size - 2000))
        return vector[at : at + size]

    def look(samples, **more):
        return scan_waveform(mains.doubles(samples), **{"rate_hz": 400.0, "rail_v": mains.RAIL, **more})

    wrong = invalid = count = 0
    for degrees in (1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 150, 180):
        for _ in range(tries):
            found = look(mains.jump(piece(), int(chance.integers(780, 820)), degrees * chance.choice([-1, 1])))
            wrong += any(event["name"] in MOVING for event in found.events)
            invalid += degrees <= 60 and any(event["name"] == "invalid" for event in found.events)
            count += 1
    yield f"frequency.false_events_of_{count}_phase_jumps_1_to_180_degrees", wrong, "events", 0, "<=", None, None
    yield "frequency.legal_jumps_called_invalid", invalid, "events", 0, "<=", None, None
    wrong = count = 0
    for gain in (0.1, 0.35, 0.9, 1.1, 2.0, 10.0):
        for _ in range(tries):
            level = np.where(np.arange(size) >= chance.integers(780, 820), gain, 1.0)
            found = look(np.rint(piece().real * level))
            wrong += any(event["name"] in MOVING for event in found.events)
            count += 1
    yield f"frequency.false_events_of_{count}_steps_of_level", wrong, "events", 0, "<=", None, None
    caught = count = 0
    for slope in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0):
        for _ in range(tries):
            sign = chance.choice([-1, 1])
            found = look(mains.ramp(piece(), 600, sign * slope, min(0.6 / slope, 1.5)))
            wanted = "under_frequency" if sign < 0 else "over_frequency"
            caught += [event["name"] for event in found.events if event["name"] in MOVING - {"rocof"}] == [wanted]
            count += 1
    yield f"frequency.true_ramps_caught_of_{count}", 100.0 * caught / count, "%", 99.9, ">=", None, None
    yield from _three_phase_jumps(chance)
    yield from _one_phase_delay(chance)


def _three_phase_jumps(chance) -> Iterator[Row]:
    """60 Hz, three phases, 4800 S/s, 60 dB of noise, ±0.05 Hz off nominal; jumps, and the guard's own delay on ramps."""
    rate, size, tries = 4800.0, 4800, 5 if QUICK else 40
    t = np.arange(size) / rate

    def samples(f, phase, noise=True):
        theta = 2 * np.pi * np.cumsum(f) / rate + phase
        columns = [325 * np.cos(theta - shift) for shift in (0.0, 2 * np.pi / 3, -2 * np.pi / 3)]
        block = np.stack(columns, axis=1)
        return block + chance.normal(0, 325 * 0.000707, block.shape) if noise else block

    wrong = count = 0
    for degrees in (0.8, 1, 1.2, 1.4, 1.6, 2, 3, 5, 10, 20, 30, 60, 90, 150, 180):
        for _ in range(tries):
            f = np.full(size, 60 + chance.uniform(-0.05, 0.05))
            phase = np.deg2rad(degrees * chance.choice([-1, 1])) * (t > 0.5 + chance.uniform(0, 0.02))
            found = scan_waveform(
                mains.doubles(samples(f, phase).ravel()), rate_hz=rate, phases=3, nominal_hz=60.0, nominal_v=230.0,
                profile=block_profile(60, 59.8),
            )  # fmt: skip
            wrong += any(event["name"] in MOVING for event in found.events) or bool(found.setpoints)
            count += 1
    yield f"frequency.three_phase_false_events_of_{count}_phase_jumps", wrong, "events", 0, "<=", None, None
    added = []
    for slope in (0.5, 1.0, 2.0, 3.0, 4.0):
        for _ in range(tries):
            f = 60 - np.clip(t - 0.3 - chance.uniform(0, 0.02), 0, 0.5) * slope
            block = samples(f, 0.0).ravel()
            times = []
            for guarded in (True, False):
                estimator = WaveformEstimator(rate, 60.0, 3, nominal_v=230.0, guarded=guarded)
                rows = np.frombuffer(estimator.push(block)).reshape(-1, len(FIELDS))
                good = rows[(rows[:, AT["cause"]] == 0) & (rows[:, AT["frequency_hz"]] < 59.9)]
                times.append(good[0, AT["made_ns"]] / 1e6 if len(good) else 1e9)
            added.append(times[0] - times[1])
    yield "frequency.phase_step_guard_adds_to_ramps", max(added), "ms", 20.0, "<=", None, None


def _one_phase_delay(chance) -> Iterator[Row]:
    yield from (row for nominal in (50, 60) for row in _one_phase_delay_at(chance, nominal))


def _one_phase_delay_at(chance, nominal) -> Iterator[Row]:
    delays = []
    for _ in range(50 if QUICK else 500):
        t = np.arange(1600) / 400.0
        begin, sign = 1.5 + chance.uniform(0, 0.02), chance.choice([-1, 1])
        hertz = nominal + sign * np.clip(t - begin, 0, 0.5)
        noise = chance.normal(0, 1500 * 0.001, len(t))
        found = scan_waveform(
            mains.doubles(np.rint(1500 * np.cos(2 * np.pi * np.cumsum(hertz) / 400 + chance.uniform(0, 6)) + noise)),
            rate_hz=400.0, rail_v=mains.RAIL, nominal_hz=nominal,
            profile=block_profile(nominal, nominal - 0.2 if sign < 0 else nominal + 0.2),
        )  # fmt: skip
        delays.append((found.setpoints[0][0] - begin - 0.2) * 1000 if found.setpoints else 1e9)
    yield (
        f"frequency.one_phase_400_sps_{nominal}_hz_decision_median",
        statistics.median(delays),
        "ms",
        None,
        "<=",
        None,
        None,
    )
    yield f"frequency.one_phase_400_sps_{nominal}_hz_decision_largest", max(delays), "ms", 60.0, "<=", None, None


# -- on the wire


def _config(source, answer=None, port=1, **more):
    target = Endpoint(
        host="127.0.0.1", port=port, unit=1, function=16, address=register_server.SETPOINT, type="s32", word_order="big",
        scale=1.0, sign=1,
    )  # fmt: skip
    response = Response(endpoint=target, rated_power_w=5000, profile=answer) if answer else None
    return ReflexConfig(site_id="bench", nominal_hz=60, source=source, nominal_v=230.0, response=response, **more)


def _grid(port, rate, ramps, seed, pipe):
    """The grid as a process of its own: sends WMS1 datagrams of 2 ms on time; tells when each ramp crossed 59.8 Hz."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    chance, out = random.Random(seed), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    count, scale = round(rate * 0.002), 0.001
    frequency, crossings = [60.0] * round(rate * 1.5), []
    for _ in range(ramps):
        quiet = round(rate * chance.uniform(0.25, 0.27))
        frequency += [60.0] * quiet
        crossings.append(len(frequency) + 0.2 * rate)
        frequency += [60 - i / rate for i in range(round(rate * 0.25))] + [59.75] * round(rate * 0.05)
        frequency += [59.75 + i / rate for i in range(round(rate * 0.25))] + [60.0] * round(rate * 0.25)
    theta = 2 * np.pi * np.cumsum(frequency) / rate
    noise = np.random.default_rng(seed)
    block = np.stack([325.27 * np.cos(theta - s) for s in (0.0, 2 * np.pi / 3, -2 * np.pi / 3)], axis=1)
    block = np.rint((block + noise.normal(0, 0.2, block.shape)) / scale).astype("<i4")
    began = time.monotonic() + 0.1
    for number, first in enumerate(range(0, len(block) - count, count)):
        # A datagram goes when its last sample has been taken.
        due = began + (first + count) / rate
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        head = struct.pack("<4sHHIQdd", b"WMS1", 3, count, number, first, rate, scale)
        out.sendto(head + block[first : first + count].tobytes(), ("127.0.0.1", port))
    pipe.send([round((began + at / rate) * 1e9) for at in crossings])


def _device(folder):
    process = subprocess.Popen(
        [sys.executable, register_server.__file__, str(folder / "device.log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    return process, int(process.stdout.readline())


def _written(kernel, found):
    _, inputs, _, _, lost = kernel.take_log()
    if lost:
        raise RuntimeError("the log ran over: the machine is too busy for this measurement")
    for now, t, watt, *_, kind, _ in INPUT.iter_unpack(inputs):
        if INPUT_KINDS[kind] == "wrote":
            found.append((now, t, watt))


def wire() -> Iterator[Row]:
    import tempfile

    ramps = 10 if QUICK else 100
    with tempfile.TemporaryDirectory() as folder:
        process, port = _device(Path(folder))
        source = sources.udp_source("127.0.0.1:0", rate_hz=4800.0, phases=3)
        udp = socket.socket(fileno=os.dup(source["fd"])).getsockname()[1]
        reflex = Reflex(_config(source, block_profile(60, 59.8, hold_s=0.2, rearm_s=0.1), port))
        reflex.publish(0.0, -5000.0, 5000.0)
        reflex.start()
        ours, theirs = multiprocessing.Pipe()
        grid = multiprocessing.get_context("spawn").Process(target=_grid, args=(udp, 4800.0, ramps, 5, theirs))
        grid.start()
        found = []
        while not ours.poll(0.25):
            reflex.publish(0.0, -5000.0, 5000.0)
            _written(reflex.kernel, found)
        crossings = ours.recv()
        grid.join()
        _written(reflex.kernel, found)
        snapshot = reflex.snapshot()
        reflex.stop()
        process.stdin.close()
        process.wait()
    delays, answers = [], []
    for crossing in crossings:
        first = next(((now, t) for now, t, watt in found if watt < -1000 and 0 < now - crossing < 300e6), None)
        delays.append((first[0] - crossing) / 1e6 if first else 1e9)
        if first:
            answers.append((first[0] - first[1]) / 1e6)
    delays.sort()
    told = "class " + snapshot.scheduling
    print(f"  wire: scheduling {snapshot.scheduling}, memory locked {snapshot.memory_locked}", file=sys.stderr)
    yield (
        f"frequency.wire_{told.replace(' ', '_')}_memory_locked",
        float(snapshot.memory_locked),
        "yes/no",
        None,
        "<=",
        None,
        None,
    )
    yield (
        "frequency.wire_1_hz_per_s_crossing_to_setpoint_median",
        statistics.median(delays),
        "ms",
        None,
        "<=",
        None,
        None,
    )
    p99 = delays[max(0, int(np.ceil(0.99 * len(delays))) - 1)]
    yield "frequency.wire_1_hz_per_s_crossing_to_setpoint_p99", p99, "ms", 35.0, "<=", None, None
    yield "frequency.wire_detection_to_bytes_median", statistics.median(answers), "ms", 1.0, "<=", None, None


def register() -> Iterator[Row]:
    """A register renewed every 20 ms: the crossing of a 1 Hz/s ramp to the setpoint's bytes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        process, port = _device(Path(folder))
        here = Endpoint(
            host="127.0.0.1", port=port, unit=1, function=4, address=0, type="f32", word_order="big", scale=1.0, sign=1
        )
        reflex = Reflex(_config(here, block_profile(60, 59.8, hold_s=0.3, rearm_s=0.1), port, refresh_ms=20))
        reflex.start()
        link = socket.create_connection(("127.0.0.1", port))
        delays, found = [], []
        for _ in range(5 if QUICK else 40):
            reflex.publish(0.0, -5000.0, 5000.0)
            time.sleep(random.uniform(0.3, 0.32))
            began = time.monotonic()
            for step in range(25):  # the register is renewed every 20 ms
                due = began + step * 0.02
                time.sleep(max(0.0, due - time.monotonic()))
                value = -round(min(0.5, step * 0.02) * 1000)
                link.sendall(struct.pack(">HHHBBHh", 1, 0, 6, 1, 6, register_server.COMMAND, value))
                link.recv(100)
            crossing = round((began + 0.2) * 1e9)
            link.sendall(struct.pack(">HHHBBHh", 1, 0, 6, 1, 6, register_server.COMMAND, 0))
            link.recv(100)
            time.sleep(0.5)
            _written(reflex.kernel, found)
            first = next((now for now, _, watt in found if watt < -1000 and 0 < now - crossing < 400e6), None)
            delays.append((first - crossing) / 1e6 if first else 1e9)
        link.close()
        reflex.stop()
        process.stdin.close()
        process.wait()
    delays.sort()
    yield (
        "frequency.register_20_ms_crossing_to_setpoint_median",
        statistics.median(delays),
        "ms",
        None,
        "<=",
        None,
        None,
    )
    p99 = delays[max(0, int(np.ceil(0.99 * len(delays))) - 1)]
    yield "frequency.register_20_ms_crossing_to_setpoint_p99", p99, "ms", 150.0, "<=", None, None


def lateness() -> Iterator[Row]:
    """How late a 100 Hz loop wakes while another thread of the same process keeps the interpreter's lock busy."""
    seconds = 4 if QUICK else 15
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            sum(range(2000))

    async def loop():
        late, period = [], 0.01
        due = time.monotonic() + period
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            late.append(time.monotonic() - due)
            due += period
            while due < time.monotonic():
                due += period
        return late

    for realtime in (False, True):
        stop.clear()
        worker = threading.Thread(target=busy)
        source = sources.push_source(poll_ms=10)
        reflex = Reflex(ReflexConfig(site_id="bench", nominal_hz=60, source=source, realtime=realtime))
        worker.start()
        reflex.start()
        time.sleep(seconds)
        snapshot = reflex.snapshot()
        reflex.stop()
        late = []
        if not realtime:
            end = time.monotonic() + seconds
            late = sorted(asyncio.run(loop()))
        stop.set()
        worker.join()
        name = f"frequency.lateness_lock_busy_{snapshot.scheduling.lower()}"
        median = late[len(late) // 2] * 1000 if late else None
        goal = 0.2
        yield f"{name}_median", snapshot.lateness_p50_ms or 0.0, "ms", goal, "<=", "asyncio" if late else None, median
        tail = late[int(0.99 * len(late))] * 1000 if late else None
        yield f"{name}_p99", snapshot.lateness_p99_ms or 0.0, "ms", None, "<=", "asyncio" if late else None, tail


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


_MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None)
if _MALLINFO is not None:
    _MALLINFO.restype = _MallInfo


def _heap() -> int:
    """Bytes of the heap in use; 0 where the C library does not tell."""
    if _MALLINFO is None:
        return 0
    info = _MALLINFO()
    return int(info.uordblks + info.hblkhd)


def memory(soak_hours: float = 0.0, pace: float = 1.0) -> Iterator[Row]:
    """A day of one phase at 400 S/s through the loop's own logic: heap in use before and after, and time it takes."""
    kernel = make_kernel(kernel_settings(_config(
        {"kind": "play", "period_ns": 5_000_000, "rate_hz": 400.0, "channels": 1, "samples": array("d", [0.0])}
    )))  # fmt: skip
    hour = array("d", pmu_signals.steady("x", "x", 60.02, duration_s=3600.0).samples(400.0, 1) * 325.0)
    kernel.feed_wave(hour, 10**12)
    _heap()
    before, began = _heap(), time.perf_counter()
    hours = 4 if QUICK else 24
    for index in range(hours):
        kernel.feed_wave(hour, 10**12 + (index + 1) * 3600 * 10**9)
    after = _heap()
    yield f"frequency.heap_growth_over_{hours}_hours_of_samples", float(after - before), "bytes", 0, "<=", None, None
    yield "frequency.seconds_for_an_hour_of_samples", (time.perf_counter() - began) / hours, "s", None, "<=", None, None
    yield from soak(hour, soak_hours or (3 if QUICK else 20) / 3600, pace)


def soak(hour: "array[float]", hours: float, pace: float) -> Iterator[Row]:
    """The live thread, the native clock, real deadlines: one phase at 400 S/s, each deadline and each sample accounted for.

    Args:
        hour: An hour of samples that begins where it ends.
        hours: Of the wall clock.
        pace: How many times faster than life: deadlines every 5 ms / ``pace``, so that ``24 / pace`` hours hold those of a day.
    """
    period_s = 0.005 / pace
    source = {
        "kind": "play", "period_ns": round(period_s * 1e9), "rate_hz": 400.0, "channels": 1, "speed": pace,
        "samples": hour * (1 + math.ceil(hours * pace)),
    }  # fmt: skip
    reflex = Reflex(ReflexConfig(site_id="bench", nominal_hz=60, source=source))
    reflex.start()
    time.sleep(1.0)
    reflex.snapshot()
    _heap()
    before = _heap()
    began, first, first_samples = time.monotonic(), reflex.snapshot(), reflex.kernel.snapshot()["received"]
    time.sleep(hours * 3600)
    last, took, last_samples = reflex.snapshot(), time.monotonic() - began, reflex.kernel.snapshot()["received"]
    after = _heap()
    reflex.stop()
    due = took / period_s
    seen = last.polls + last.missed_deadlines - first.polls - first.missed_deadlines
    name = f"frequency.soak_of_{took * pace / 3600:.2f}_hours_at_{pace:g}_times_life"
    yield f"{name}.deadlines", float(seen), "deadlines", None, ">=", None, None
    yield f"{name}.unaccounted_for", max(0.0, abs(due - seen) - 2), "deadlines", 0, "<=", None, None
    missed = float(last.missed_deadlines - first.missed_deadlines)
    yield f"{name}.missed_and_counted", missed, "deadlines", None, "<=", None, None
    samples = float(last_samples - first_samples)
    yield f"{name}.samples_lost", max(0.0, abs(took * 400 * pace - samples) - 8 * pace), "samples", 0, "<=", None, None
    yield f"{name}.heap_growth", float(after - before), "bytes", None, "<=", None, None


# -- an island


def run_island(response, seconds, seed=1, battery_w=30_000.0, rate=4800.0, steps=((20.0, -20_000.0),)):
    """Frequencies (5 ms apart) of a 100 kW island whose waveform the reflex measures; losses of generation as (s, W)."""
    step_s, lag_s = 0.005, 0.05
    now = [0.0]
    battery = [0.0]
    grid = Grid(
        base_w=100_000.0, inertia_s=4.0, governor_s=1.0, noise_hz=0.002, seed=seed, monotonic=lambda: now[0],
        batteries_w=lambda: battery[0],
    )  # fmt: skip
    kernel = None
    if response is not None:
        source = {"kind": "play", "period_ns": 5_000_000, "rate_hz": rate, "channels": 3, "samples": array("d", [0.0])}
        target = Endpoint(
            host="127.0.0.1", port=1, unit=1, function=16, address=0, type="s32", word_order="big", scale=1.0, sign=1
        )
        kernel = make_kernel(kernel_settings(ReflexConfig(
            site_id="island", nominal_hz=60, source=source, nominal_v=230.0, realtime=False,
            response=Response(endpoint=target, rated_power_w=battery_w, profile=response),
        )))  # fmt: skip
    count, theta, held = round(step_s * rate), 0.0, 0.0
    shifts = np.array([0.0, 2 * np.pi / 3, -2 * np.pi / 3])
    found, due = [], list(steps)
    grid.disturb(1e-6)  # the batteries feed back from the beginning
    for index in range(round(seconds / step_s)):
        now[0] = index * step_s
        if due and now[0] >= due[0][0]:
            grid._disturbance_w = due.pop(0)[1] or 1e-6
        hertz = grid.frequency_hz()
        found.append(hertz)
        if kernel is None:
            continue
        start = 10**12 + round(index * step_s * 1e9)
        if index % 200 == 0:
            kernel.publish(0.0, -battery_w, battery_w, now=start)
        phases = theta + 2 * np.pi * hertz / rate * np.arange(1, count + 1)
        theta = float(phases[-1] % (2 * np.pi))
        for _, watt in kernel.feed_wave(array("d", (325.27 * np.cos(phases[:, None] - shifts)).ravel()), start):
            held = watt
        battery[0] += (held - battery[0]) * (1 - np.exp(-step_s / lag_s))
    return np.array(found)


def island() -> Iterator[Row]:
    profile = load_profile("microgrid_droop")
    alone = run_island(None, 60.0)
    helped = run_island(profile, 60.0)
    yield "frequency.island_nadir_alone", 60 - float(alone.min()), "Hz below", None, "<=", None, None
    nadir = 60 - float(helped.min())
    yield "frequency.island_nadir_with_response", nadir, "Hz below", (60 - float(alone.min())) / 2, "<=", None, None
    chance = random.Random(4)
    minutes = 5 if QUICK else 30
    steps = [
        (30.0 + 60.0 * minute, chance.choice([-20_000.0, 0.0, 10_000.0, 20_000.0, -10_000.0]))
        for minute in range(minutes)
    ]
    for name, answer in (("alone", None), ("with_response", profile)):
        hertz = run_island(answer, 60.0 * minutes, steps=steps)
        means = hertz[: len(hertz) // 2000 * 2000].reshape(-1, 2000).mean(axis=1)
        share = 100.0 * float((np.abs(means - 60) <= 0.2).mean())
        goal = 99.5 if answer else None
        yield f"frequency.island_10_s_means_inside_0.2_hz_{name}", share, "%", goal, ">=", None, None


PARTS = {
    "standard": standard, "beyond": beyond, "cost": cost, "recordings": recordings, "injected": injected, "wire": wire,
    "register": register, "lateness": lateness, "memory": memory, "island": island,
}  # fmt: skip


def main() -> None:
    global QUICK, SEED
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), metavar="PART")
    parser.add_argument("--seed", type=int, default=11, help="of the injected jumps, steps and ramps")
    parser.add_argument("--soak-hours", type=float, default=0.0, help="let the live loop run so long")
    parser.add_argument("--soak-pace", type=float, default=1.0, help="deadlines and samples so many times as often")
    arguments = parser.parse_args()
    QUICK, SEED = arguments.quick, arguments.seed
    for name in arguments.only or PARTS:
        part = memory(arguments.soak_hours, arguments.soak_pace) if name == "memory" else PARTS[name]()
        for figure, value, unit, goal, way, peer, peer_value in part:
            value = float(value)  # NumPy's own are no JSON
            met = None if goal is None else value <= goal + 1e-9 if way == "<=" else value >= goal - 1e-9
            if arguments.json:
                ratio = value / peer_value if peer_value else None
                print(json.dumps({"name": figure, "value": value, "unit": unit, "goal": goal, "met": met, "peer": peer,
                                  "peer_value": peer_value, "ratio": ratio}), flush=True)  # fmt: skip
            else:
                wanted = "" if goal is None else f"  goal {way} {goal:g}: {'met' if met else 'MISSED'}"
                beside = f"  ({peer} {peer_value:.4g})" if peer_value is not None else ""
                print(f"{figure:72} {value:12.5g} {unit}{wanted}{beside}", flush=True)


if __name__ == "__main__":
    main()
