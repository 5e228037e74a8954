"""Physics of one home: PV, battery, load, meter, and the two shadows that savings are measured against.

Passive signs: into a component positive. Steps are exact for power that is constant over the step: a battery that would
run full or empty inside it gets just the power that makes it so at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from wattmesh_simulators.plant import data

NS_PER_S = 1_000_000_000
ONE_WAY_EFFICIENCY = math.sqrt(0.9)
"""The data set's batteries have 0.9; taken as the round trip, split evenly."""


@dataclass(slots=True, kw_only=True)
class Battery:
    """A battery at its AC terminals."""

    energy_wh: float = 6400.0
    power_w: float = 5000.0
    stored_wh: float = 0.0
    active_w: float = 0.0
    """Power of the last step; positive charges."""
    charged_wh: float = 0.0
    discharged_wh: float = 0.0
    lost_wh: float = 0.0

    @property
    def soc_percent(self) -> float:
        """State of charge."""
        return 100 * self.stored_wh / self.energy_wh

    def step(self, wanted_w: float, seconds: float) -> float:
        """Charge (positive) or discharge for a while; returns the power that was possible."""
        hours = seconds / 3600
        power = min(max(wanted_w, -self.power_w), self.power_w)
        if power > 0:
            power = min(power, (self.energy_wh - self.stored_wh) / (ONE_WAY_EFFICIENCY * hours))
            self.stored_wh = min(self.energy_wh, self.stored_wh + power * hours * ONE_WAY_EFFICIENCY)
            self.charged_wh += power * hours
            self.lost_wh += power * hours * (1 - ONE_WAY_EFFICIENCY)
        elif power < 0:
            power = max(power, -self.stored_wh * ONE_WAY_EFFICIENCY / hours)
            self.stored_wh = max(0.0, self.stored_wh + power * hours / ONE_WAY_EFFICIENCY)
            self.discharged_wh -= power * hours
            self.lost_wh -= power * hours * (1 / ONE_WAY_EFFICIENCY - 1)
        self.active_w = power
        return power


@dataclass(slots=True, kw_only=True)
class Slots:
    """Import and export of each quarter hour, for the report's truth."""

    start_ns: list[int] = field(default_factory=list)
    import_wh: list[float] = field(default_factory=list)
    export_wh: list[float] = field(default_factory=list)

    def add(self, slot_ns: int, grid_w: float, seconds: float) -> None:
        """Book the energy of one step."""
        if not self.start_ns or self.start_ns[-1] != slot_ns:
            self.start_ns.append(slot_ns)
            self.import_wh.append(0.0)
            self.export_wh.append(0.0)
        energy = grid_w * seconds / 3600
        if energy >= 0:
            self.import_wh[-1] += energy
        else:
            self.export_wh[-1] -= energy


class Lease:
    """A setpoint that falls back to a value of its own when nobody renews it in time."""

    def __init__(self, fallback: float) -> None:
        self._fallback = fallback
        self.value = fallback
        self.enabled = True
        self.timeout_s = 0.0
        self.reverted = 0
        self._renewed_ns = 0

    def renew(self, now_ns: int) -> None:
        """Somebody wrote: the time starts anew."""
        self._renewed_ns = now_ns

    def current(self, now_ns: int) -> float:
        """The value in force."""
        if not self.enabled:
            return self._fallback
        if self.timeout_s > 0 and now_ns - self._renewed_ns > self.timeout_s * NS_PER_S:
            if self.value != self._fallback:
                self.reverted += 1
            self.value = self._fallback
        return self.value


class Home:
    """One home with its devices, stepped in simulated time.

    Args:
        home: Column of the data, ``b01`` to ``b05``.
        initial_soc_percent: Of the battery and of its shadow.
        frequency_hz: The grid's, now.
    """

    def __init__(self, home: str, initial_soc_percent: float, frequency_hz: Callable[[], float]) -> None:
        self.home = home
        self.frequency_hz = frequency_hz
        self.battery = Battery()
        self.battery.stored_wh = self.battery.energy_wh * initial_soc_percent / 100
        self.shadow = Battery(stored_wh=self.battery.stored_wh)
        self.pv_peak_w = data.pv_peak_w(home)
        self.setpoint = Lease(0.0)
        self.pv_limit = Lease(100.0)
        self.load_w = 0.0
        self.pv_w = 0.0
        self.grid_w = 0.0
        self.import_wh = 250_000.0
        self.export_wh = 40_000.0
        self.produced_wh = 300_000.0
        self.load_total_wh = 0.0
        self.actual = Slots()
        self.no_battery = Slots()
        self.self_consumption = Slots()
        self.writes = 0
        self.initial_stored_wh = self.battery.stored_wh

    def step(self, now_ns: int, seconds: float) -> None:
        """Simulate the ``seconds`` that end at ``now_ns`` with the setpoints in force."""
        middle = now_ns - round(seconds * NS_PER_S / 2)
        slot = middle - middle % (900 * NS_PER_S)
        hours = seconds / 3600
        available = data.pv_w(self.home, middle)
        self.load_w = data.load_w(self.home, middle)
        self.pv_w = min(available, self.pv_peak_w * self.pv_limit.current(now_ns) / 100)
        battery_w = self.battery.step(self.setpoint.current(now_ns), seconds)
        self.grid_w = self.load_w - self.pv_w + battery_w
        self.produced_wh += self.pv_w * hours
        self.load_total_wh += self.load_w * hours
        if self.grid_w >= 0:
            self.import_wh += self.grid_w * hours
        else:
            self.export_wh -= self.grid_w * hours
        self.actual.add(slot, self.grid_w, seconds)
        rest = self.load_w - available
        self.no_battery.add(slot, rest, seconds)
        self.self_consumption.add(slot, rest + self.shadow.step(-rest, seconds), seconds)

    def fast_power_w(self, now_ns: int) -> float:
        """Battery power that the inverter would give at this moment: what a fast setpoint changes at once."""
        wanted = self.setpoint.current(now_ns)
        if wanted < 0 and self.battery.stored_wh <= 0:
            return 0.0
        return min(max(wanted, -self.battery.power_w), self.battery.power_w)

    def write(self, setting: str, value: float, now_ns: int) -> None:
        """A setting was written over the wire, in our sign and unit."""
        self.writes += 1
        if setting in {"wset_w", "setpoint_w"}:
            self.setpoint.value = value
        elif setting in {"wset_reversion_s", "setpoint_timeout_s"}:
            self.setpoint.timeout_s = value
        elif setting == "wset_enable":
            self.setpoint.enabled = bool(value)
        elif setting == "limit_percent":
            self.pv_limit.value = value
        elif setting == "limit_reversion_s":
            self.pv_limit.timeout_s = value
        elif setting == "limit_enable":
            self.pv_limit.enabled = bool(value)
        (self.pv_limit if setting.startswith("limit") else self.setpoint).renew(now_ns)

    def quantities(self, device: str) -> dict[str, float]:
        """Values of a device's points by name, in our sign and unit; a template takes those it has."""
        frequency = self.frequency_hz()
        voltage = 240.0 - self.grid_w / 4000
        if device == "meter":
            return {**_phases(self.grid_w, voltage), "frequency_hz": frequency, "power_factor_percent": 98.0,
                    "energy_import_wh": self.import_wh, "energy_export_wh": self.export_wh}  # fmt: skip
        if device == "inverter":
            strings = {}
            for number, share in ((1, 0.52), (2, 0.48)):
                power = self.pv_w * 1.03 * share
                volts = 380.0 if power > 1 else 0.0
                strings[f"string_{number}_power_w"] = power
                strings[f"string_{number}_voltage_v"] = volts
                strings[f"string_{number}_current_a"] = power / volts if volts else 0.0
            return {**_phases(-self.pv_w, voltage), "frequency_hz": frequency, "power_factor_percent": 99.0,
                    "energy_produced_wh": self.produced_wh, "dc_power_w": self.pv_w * 1.03,
                    "temperature_cabinet_degc": 25 + self.pv_w / 200, "operating_state": 4.0 if self.pv_w > 1 else 2.0,
                    "event_flags": 0.0, "power_limit_percent": self.pv_limit.value,
                    "power_limit_enabled": float(self.pv_limit.enabled), "limit_percent": self.pv_limit.value,
                    "limit_enable": float(self.pv_limit.enabled), "limit_reversion_s": self.pv_limit.timeout_s,
                    **strings}  # fmt: skip
        return self._battery_quantities(frequency, voltage)

    def _battery_quantities(self, frequency: float, voltage: float) -> dict[str, float]:
        battery = self.battery
        dc_voltage = 48.0 + 6 * battery.stored_wh / battery.energy_wh
        return {
            **_phases(battery.active_w, voltage),
            "frequency_hz": frequency,
            "energy_charged_wh": battery.charged_wh,
            "energy_discharged_wh": battery.discharged_wh,
            "temperature_cabinet_degc": 24 + abs(battery.active_w) / 250,
            "inverter_state": 1.0,
            "connection_state": 1.0,
            "soc_percent": battery.soc_percent,
            "soh_percent": 99.0,
            "energy_available_wh": battery.stored_wh,
            "dc_voltage_v": dc_voltage,
            "dc_current_a": battery.active_w / dc_voltage,
            "dc_power_w": battery.active_w,
            "cycles": float(int(battery.discharged_wh / battery.energy_wh)),
            "cell_voltage_maximum_v": dc_voltage / 16 + 0.004,
            "cell_voltage_minimum_v": dc_voltage / 16 - 0.004,
            "bank_state": 3.0,
            "wset_enable": float(self.setpoint.enabled),
            "wset_mode": 1.0,
            "wset_w": self.setpoint.value,
            "wset_reversion_s": self.setpoint.timeout_s,
            "setpoint_w": self.setpoint.value,
            "setpoint_timeout_s": self.setpoint.timeout_s,
        }


def _phases(power_w: float, voltage: float) -> dict[str, float]:
    """Three-phase values of a balanced power at unity power factor."""
    values = {
        "active_power_w": power_w,
        "apparent_power_va": abs(power_w) * 1.02,
        "reactive_power_var": abs(power_w) * 0.2,
        "current_a": abs(power_w) / voltage,
    }
    for phase, share in ((1, 0.34), (2, 0.33), (3, 0.33)):
        values[f"active_power_l{phase}_w"] = power_w * share
        values[f"current_l{phase}_a"] = abs(power_w) * share / voltage
        values[f"voltage_l{phase}_v"] = voltage + (phase - 2) * 0.3
    return values
