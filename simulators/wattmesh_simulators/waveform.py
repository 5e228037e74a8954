"""The simulated grid's voltage as samples: WMS1 datagrams over UDP, for a reflex that listens to a waveform.

A datagram, little-endian and packed: ``WMS1``, u16 channels, u16 samples, u32 number of the datagram, u64 index of its first
sample, f64 samples a second, f64 volts a count, then samples × channels of i32, interleaved.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections.abc import Awaitable, Callable

from wattmesh_simulators.grid import Grid

HEAD = struct.Struct("<4sHHIQdd")
_SHIFTS = (0.0, 2 * math.pi / 3, -2 * math.pi / 3)
_SCALE_V = 0.001
_STEP_S = 0.005
_LATEST_S = 0.2
"""A sender that is later than this leaves samples out, as a converter would that was not read."""


def encode(samples: list[int], *, channels: int, number: int, first: int, rate_hz: float, scale: float) -> bytes:
    """One datagram of interleaved counts."""
    head = HEAD.pack(b"WMS1", channels, len(samples) // channels, number & 0xFFFFFFFF, first, rate_hz, scale)
    return head + struct.pack(f"<{len(samples)}i", *samples)


class WaveformStream:
    """Samples of a grid, sent on time.

    Args:
        grid: Its frequency and voltage.
        address: Where to send, loopback.
        rate_hz: Samples a second.
        phases: 1 or 3.
        voltage_v: Nominal, phase to neutral, rms.
        monotonic: Real time, injected by tests.
        pause: Sleeps so many seconds.
    """

    def __init__(
        self,
        grid: Grid,
        address: tuple[str, int],
        *,
        rate_hz: float = 4800.0,
        phases: int = 3,
        voltage_v: float = 240.0,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._grid = grid
        self._address = address
        self._rate_hz = rate_hz
        self._phases = phases
        self._peak_counts = voltage_v * math.sqrt(2) / _SCALE_V
        self._monotonic = monotonic
        self._pause = pause
        self._theta = 0.0
        self._index = 0
        self._number = 0

    def take(self, count: int) -> bytes:
        """The next samples as a datagram."""
        step = 2 * math.pi * self._grid.frequency_hz() / self._rate_hz
        peak = self._peak_counts * self._grid.voltage_pu()
        samples = []
        for _ in range(count):
            self._theta = (self._theta + step) % (2 * math.pi)
            samples += [round(peak * math.cos(self._theta - shift)) for shift in _SHIFTS[: self._phases]]
        data = encode(
            samples,
            channels=self._phases,
            number=self._number,
            first=self._index,
            rate_hz=self._rate_hz,
            scale=_SCALE_V,
        )
        self._index += count
        self._number += 1
        return data

    async def run(self) -> None:
        """Send until cancelled, a datagram every 5 ms."""
        began = self._monotonic()
        count = round(_STEP_S * self._rate_hz)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            while True:
                due = began + (self._index + count) / self._rate_hz
                late = self._monotonic() - due
                if late < 0:
                    await self._pause(-late)
                elif late > _LATEST_S:
                    self._index += int(late * self._rate_hz)
                try:
                    out.sendto(self.take(count), self._address)
                except OSError:
                    await self._pause(_STEP_S)  # nobody listens (yet)
