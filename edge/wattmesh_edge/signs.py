"""What one day of a battery's and a three-phase device's samples tells of its health: small estimators, numbers in, a value out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

_STEP_SHARE = 0.15
"""Of the rated power: a step of the current that tells of the resistance."""
_STEP_WITHIN_NS = 150 * 10**9
_SAME_CHARGE = 1.0
_WARM_DEGC = 15.0
"""Colder cells say more of the weather than of their age."""
_PER_KELVIN = 0.015
"""By which a lithium-ion cell's resistance falls per kelvin around room temperature; the rest is noise to the detector."""
_LEAST_STEPS = 4
_LEAST_SHARE = 0.15
"""Of the rated power: below it the phases' shares say little."""


@dataclass(slots=True)
class Resistance:
    """Ohmic resistance at the DC terminals: what the voltage moves by when the current does, charge and temperature alike.

    As the pulse test of IEC 62660-1 (7.5), on the steps that the day brings.
    """

    _last: tuple[int, float, float, float] | None = None
    found: list[float] = field(default_factory=list)

    def take(
        self,
        time_ns: int,
        voltage_v: float | None,
        current_a: float | None,
        soc_percent: float,
        cells_degc: float | None,
        rated_w: float,
    ) -> None:
        """One sample; current positive while charging."""
        if voltage_v is None or current_a is None or voltage_v <= 0:
            self._last = None
            return
        last, self._last = self._last, (time_ns, voltage_v, current_a, soc_percent)
        if last is None or time_ns - last[0] > _STEP_WITHIN_NS or abs(soc_percent - last[3]) > _SAME_CHARGE:
            return
        if cells_degc is not None and cells_degc < _WARM_DEGC:
            return
        step = current_a - last[2]
        if abs(step) >= _STEP_SHARE * rated_w / voltage_v:
            warm = 1.0 if cells_degc is None else math.exp(_PER_KELVIN * (cells_degc - 25.0))
            self.found.append((voltage_v - last[1]) / step * 1000 * warm)

    def value(self) -> float | None:
        """The day's resistance in mΩ at 25 °C; none without enough steps."""
        return median(self.found) if len(self.found) >= _LEAST_STEPS else None


def imbalance(phases: Sequence[float | None], rated_w: float) -> float | None:
    """Largest distance of a phase's power from the mean, as a share of it; none below a seventh of the rating."""
    known = [power for power in phases if power is not None]
    if len(known) != 3:
        return None
    mean = sum(known) / 3
    if abs(mean) < _LEAST_SHARE * rated_w / 3:
        return None
    return max(abs(power - mean) for power in known) / abs(mean)


def voltage_unbalance(phases: Sequence[float | None]) -> float | None:
    """Largest distance of a phase's voltage from the mean, as a share of it (NEMA MG 1, 14.36); none where one is missing."""
    known = [volts for volts in phases if volts is not None]
    if len(known) != 3 or min(known) < 50:
        return None
    mean = sum(known) / 3
    return max(abs(volts - mean) for volts in known) / mean
