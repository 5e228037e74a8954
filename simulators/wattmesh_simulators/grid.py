"""The frequency that all sites share, in real time: a swing equation with droop governors, or a recorded trace.

    2 H S / f0 · df/dt = P_disturbance + P_governor − ΔP_batteries − D S (f − f0) / f0

(Kundur, Power System Stability and Control, 1994, section 11.1.) It is integrated when somebody asks, in steps of 5 ms.
The batteries feed back while a disturbance lasts: before and after it, the rest of the grid is taken to be balanced with them.
"""

from __future__ import annotations

import csv
import importlib.resources
import random
import time
from collections.abc import Callable

from wattmesh_a2a.errors import ConfigurationError

STEP_S = 0.005
_STEPS_AT_MOST = 2000


class Grid:
    """A small grid.

    Args:
        nominal_hz: 50 or 60.
        base_w: Rated power of the machines that spin.
        inertia_s: H.
        damping: D, in per unit power per per unit frequency.
        droop: Of the governors, per unit.
        governor_s: Their time constant.
        noise_hz: Standard deviation of the quiet frequency.
        seed: Of the noise.
        batteries_w: Sum of what the sites' batteries take now; the change since a disturbance began feeds back.
        monotonic: Real time, injected by tests.
    """

    def __init__(
        self,
        *,
        nominal_hz: float = 60.0,
        base_w: float = 200_000.0,
        inertia_s: float = 4.0,
        damping: float = 1.0,
        droop: float = 0.05,
        governor_s: float = 1.0,
        noise_hz: float = 0.004,
        seed: int = 1,
        batteries_w: Callable[[], float] = lambda: 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._f0 = nominal_hz
        self._base_w = base_w
        self._inertia_s = inertia_s
        self._damping = damping
        self._droop = droop
        self._governor_s = governor_s
        self._noise_hz = noise_hz
        self._random = random.Random(seed)
        self._batteries_w = batteries_w
        self._monotonic = monotonic
        self._at = monotonic()
        self._deviation_hz = 0.0
        self._governor_w = 0.0
        self._noise = 0.0
        self._disturbance_w = 0.0
        self._batteries_before_w = 0.0
        self._trace: list[float] | None = None
        self._trace_pu: list[float] = []
        self._trace_step_s = 1.0
        self._trace_began = 0.0
        self.nadir_hz = nominal_hz
        """The lowest frequency since the last disturbance began, without the noise."""

    def play_trace(self, name: str, column: str, step_s: float, voltage: str | None = None) -> None:
        """Play a recorded frequency (a CSV in ``data/frequency``) instead of the equation, from now on, again and again.

        A row without a value repeats the one before. ``voltage`` is a column whose share of its first minutes' mean is the
        voltage per unit. Raises :class:`ConfigurationError` where there is no such file or column.
        """
        folder = importlib.resources.files("wattmesh_simulators") / "data" / "frequency"
        if name not in (known := sorted(one.name for one in folder.iterdir() if one.name.endswith(".csv"))):
            raise ConfigurationError(f"grid.trace: there is no recording {name!r}; there are: {', '.join(known)}")
        trace: list[float] = []
        with (folder / name).open(encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if column not in (rows.fieldnames or ()):
                raise ConfigurationError(
                    f"grid.trace_column: {name} has no column {column!r}; it has: {', '.join(rows.fieldnames or ())}"
                )
            if voltage is not None and voltage not in (rows.fieldnames or ()):
                raise ConfigurationError(
                    f"grid.trace_voltage: {name} has no column {voltage!r}; it has: {', '.join(rows.fieldnames or ())}"
                )
            volts: list[float] = []
            for row in rows:
                for one, wanted, fallback in ((trace, column, self._f0), (volts, voltage, 1.0)):
                    if wanted is None:
                        continue
                    try:
                        one.append(float(row[wanted]))
                    except ValueError:
                        if row[wanted]:
                            raise ConfigurationError(
                                f"grid.trace_column: {wanted!r} of {name} holds no numbers (found {row[wanted]!r})"
                            ) from None
                        one.append(one[-1] if one else fallback)
        self._trace = trace
        usual = sum(volts[:100]) / max(1, len(volts[:100]))
        self._trace_pu = [value / usual for value in volts] if usual else []
        self._trace_step_s = step_s
        self._trace_began = self._monotonic()

    def disturb(self, power_w: float) -> None:
        """Lose (negative) or gain generation from now on; 0 ends it."""
        self._advance()
        if self._disturbance_w == 0.0:
            self._batteries_before_w = self._batteries_w()
            self.nadir_hz = self._f0 + self._deviation_hz
        self._disturbance_w = power_w

    def frequency_hz(self) -> float:
        """The frequency now."""
        if self._trace is not None:
            index = int((self._monotonic() - self._trace_began) / self._trace_step_s)
            frequency = self._trace[index % len(self._trace)]
            self.nadir_hz = min(self.nadir_hz, frequency)
            return frequency
        self._advance()
        return self._f0 + self._deviation_hz + self._noise

    def voltage_pu(self) -> float:
        """The voltage now; 1 where no trace says otherwise."""
        if not self._trace_pu:
            return 1.0
        index = int((self._monotonic() - self._trace_began) / self._trace_step_s)
        return self._trace_pu[index % len(self._trace_pu)]

    def _advance(self) -> None:
        now = self._monotonic()
        steps = int((now - self._at) / STEP_S)
        if steps <= 0:
            return
        self._at = now if steps > _STEPS_AT_MOST else self._at + steps * STEP_S
        response_w = self._batteries_w() - self._batteries_before_w if self._disturbance_w else 0.0
        gain = self._f0 / (2 * self._inertia_s * self._base_w)
        for _ in range(min(steps, _STEPS_AT_MOST)):
            wanted = -self._deviation_hz / self._f0 / self._droop * self._base_w
            self._governor_w += (wanted - self._governor_w) * STEP_S / self._governor_s
            damping_w = self._damping * self._base_w * self._deviation_hz / self._f0
            power = self._disturbance_w + self._governor_w - response_w - damping_w
            self._deviation_hz += gain * power * STEP_S
            self._noise += -self._noise * STEP_S / 2 + self._random.gauss(0, self._noise_hz) * STEP_S**0.5
        self.nadir_hz = min(self.nadir_hz, self._f0 + self._deviation_hz)
