"""A charging station and the car at it: plugged in from its arrival to its departure, empty again after each trip.

The station offers a current (IEC 61851-1, control pilot); a car takes at most that, nothing below 6 A, and less towards the end
of its charge. The driver on the other side has no part in this: it has its own codec and its own idea of a car.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wattmesh_simulators.plant.lease import Lease

NS_PER_S = 1_000_000_000
_DAY_S = 86_400
LEAST_A = 6.0
VOLTS = 230.0
"""At which the station's watts are told; the car's depend on the voltage that there is."""
EFFICIENCY = 0.9
"""From the socket to the cells."""
_TAPERS_FROM = 0.95
_TAPERS_TO = 0.25
_REACTS_S = 3.0
"""Time constant with which a car follows the offered current."""


@dataclass(slots=True, kw_only=True)
class Car:
    """A car's battery and its habits. Times are seconds of a UTC day."""

    energy_wh: float = 52_000.0
    stored_wh: float = 20_000.0
    phases: int = 3
    most_a: float = 16.0
    """Of its own charger, a phase."""
    trip_wh: float = 12_000.0
    """What is gone when it comes back."""
    arrives_s: int = 18 * 3600
    departs_s: int = 7 * 3600

    def plugged(self, utc_ns: int) -> bool:
        """Whether it stands at the station."""
        at = utc_ns // NS_PER_S % _DAY_S
        if self.arrives_s <= self.departs_s:
            return self.arrives_s <= at < self.departs_s
        return at >= self.arrives_s or at < self.departs_s


class Charger:
    """A charging station of a home with its car.

    Args:
        car: Who charges.
        phases: Of the station.
        safe_a: What it offers when nobody tells it in time.
    """

    def __init__(self, car: Car | None = None, *, phases: int = 3, safe_a: float = 0.0) -> None:
        self.car = car or Car()
        self.phases = phases
        self.limit = Lease(safe_a * VOLTS * phases)
        self.active_w = 0.0
        self.charged_wh = 0.0
        self.missed_wh: list[float] = []
        """What each trip had to do without, as the car was not full at its departure."""
        self._was_plugged = False
        self._known = False

    @property
    def state(self) -> str:
        """IEC 61851-1: A2 no car, B2 waits, C2 charges."""
        if not self._was_plugged:
            return "A"
        return "C2" if self.active_w > 0 else "B2"

    def offered_a(self, now_ns: int) -> float:
        """Current the pilot tells now, a phase; 0 below the least."""
        current = self.limit.current(now_ns) / (VOLTS * self.phases)
        return current if current >= LEAST_A - 1e-6 else 0.0

    def step(self, start_ns: int, seconds: float, voltage_v: float = VOLTS) -> float:
        """Let a short time pass; returns the mean power that the car takes."""
        self._come_and_go(start_ns)
        full = self.car.energy_wh - self.car.stored_wh
        wanted = 0.0
        if self._was_plugged and full > 1.0:
            lines = min(self.phases, self.car.phases)
            wanted = min(self.offered_a(start_ns), self.car.most_a) * voltage_v * lines
            left = full / self.car.energy_wh / (1 - _TAPERS_FROM)
            wanted = min(wanted, self.car.most_a * voltage_v * lines * max(_TAPERS_TO, min(1.0, left)))
        follow = -math.expm1(-seconds / _REACTS_S)
        self.active_w += (wanted - self.active_w) * follow
        if abs(self.active_w) < 1.0:
            self.active_w = 0.0
        self.active_w = min(self.active_w, max(0.0, full) / EFFICIENCY / (seconds / 3600))
        if not self._was_plugged:
            self.active_w = 0.0
        energy = self.active_w * seconds / 3600
        self.charged_wh += energy
        self.car.stored_wh = min(self.car.energy_wh, self.car.stored_wh + energy * EFFICIENCY)
        return self.active_w

    def _come_and_go(self, utc_ns: int) -> None:
        plugged = self.car.plugged(utc_ns)
        if self._known and plugged != self._was_plugged:
            if plugged:
                self.car.stored_wh = max(0.0, self.car.stored_wh - self.car.trip_wh)
            else:
                self.missed_wh.append(max(0.0, self.car.energy_wh - self.car.stored_wh))
        self._was_plugged, self._known = plugged, True

    def write(self, max_power_w: float | None, timeout_s: float, now_ns: int) -> None:
        """The station was told what it may offer; none: it is left to itself."""
        self.limit.enabled, self.limit.timeout_s = max_power_w is not None, timeout_s
        if max_power_w is not None:
            self.limit.value = max_power_w
        self.limit.renew(now_ns)

    def quantities(self, now_ns: int, voltage_v: float) -> dict[str, float]:
        """Values of its points by name, in our sign and unit."""
        lines = min(self.phases, self.car.phases)
        values: dict[str, float] = {}
        for phase in (1, 2, 3):
            share = 1 / lines if phase <= lines else 0.0
            values[f"active_power_l{phase}_w"] = self.active_w * share
            values[f"current_l{phase}_a"] = self.active_w * share / max(voltage_v, 24.0)
        ends_ns = self.limit.ends_ns()
        state = self.state
        return {
            **values,
            "active_power_w": self.active_w,
            "energy_charged_wh": self.charged_wh,
            "mode_3_state": float(int.from_bytes(state.encode().ljust(2, b"\0"), "big")),
            "current_limit_a": self.limit.current(now_ns) / (VOLTS * self.phases),
            "setpoint_remaining_s": 0.0 if ends_ns is None else max(0.0, (ends_ns - now_ns) / NS_PER_S),
            "safe_current_a": self.limit.fallback / (VOLTS * self.phases),
            "max_power_w": self.limit.value,
        }

    def kept(self) -> dict[str, Any]:
        """What a restarted simulator goes on from, as plain data."""
        return {"car": asdict(self.car), "charged_wh": self.charged_wh, "missed_wh": self.missed_wh}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from :meth:`kept`; raises KeyError or TypeError where it is none."""
        self.car = Car(**kept["car"])
        self.charged_wh, self.missed_wh = float(kept["charged_wh"]), [float(one) for one in kept["missed_wh"]]
