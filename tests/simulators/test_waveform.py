"""The simulated grid as a waveform: what is sent is what the grid is, and a reflex understands it."""

import asyncio
import math
import socket
import struct
import time

import pytest
from wattmesh_edge.reflex import Reflex, ReflexConfig, sources
from wattmesh_simulators.grid import Grid
from wattmesh_simulators.waveform import HEAD, WaveformStream


def quiet(frequency=60.0):
    grid = Grid(noise_hz=0.0, monotonic=lambda: 0.0)
    grid._f0 = frequency
    return grid


def test_a_datagram_is_a_piece_of_three_phases():
    stream = WaveformStream(quiet(), ("127.0.0.1", 9), rate_hz=4800.0, voltage_v=240.0)
    first, second = stream.take(24), stream.take(24)
    magic, channels, samples, number, index, rate, scale = HEAD.unpack_from(second)
    assert (magic, channels, samples, number, index, rate) == (b"WMS1", 3, 24, 1, 24, 4800.0)
    values = [count * scale for data in (first, second) for count in struct.unpack_from("<72i", data, HEAD.size)]
    for k in range(48):
        theta = 2 * math.pi * 60 * (k + 1) / 4800
        for phase, shift in enumerate((0.0, 2 * math.pi / 3, -2 * math.pi / 3)):
            assert values[3 * k + phase] == pytest.approx(240 * math.sqrt(2) * math.cos(theta - shift), abs=0.002)


async def test_the_reflex_measures_what_the_simulator_sends():
    source = sources.udp_source("127.0.0.1:0", rate_hz=4800.0, phases=3)
    with socket.fromfd(source["fd"], socket.AF_INET, socket.SOCK_DGRAM) as bound:
        port = bound.getsockname()[1]
    reflex = Reflex(ReflexConfig(site_id="s", nominal_hz=60, source=source, nominal_v=240.0, realtime=False))
    reflex.start()
    task = asyncio.get_running_loop().create_task(
        WaveformStream(quiet(59.97), ("127.0.0.1", port), rate_hz=4800.0).run()
    )
    end = time.monotonic() + 5
    while (snapshot := reflex.snapshot()).cause != "valid" and time.monotonic() < end:
        await asyncio.sleep(0.01)
    task.cancel()
    reflex.stop()
    assert snapshot.frequency_hz == pytest.approx(59.97, abs=0.005)
    assert snapshot.voltage_v == pytest.approx(240.0, abs=0.5)


async def test_a_sender_that_was_held_up_leaves_samples_out():
    now = [0.0]
    stream = WaveformStream(
        quiet(), ("127.0.0.1", 9), rate_hz=1000.0, monotonic=lambda: now[0], pause=_stop_after(now, 3)
    )
    with pytest.raises(asyncio.CancelledError):
        await stream.run()
    assert stream._index >= 1000, "two seconds late: their samples are gone"


def _stop_after(now, count):
    left = [count]

    async def pause(seconds):
        left[0] -= 1
        now[0] += 2.0 if left[0] == 1 else seconds
        if left[0] == 0:
            raise asyncio.CancelledError

    return pause
