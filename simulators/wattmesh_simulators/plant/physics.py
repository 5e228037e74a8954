"""Physics of one home: PV, battery, load, meter, and the two shadows that savings are measured against.

Passive signs: into a component positive. Load and PV enter as the exact energy of a step. A step is cut where a quarter hour
ends and where a setpoint runs out; inside a piece power is constant, and a battery that would run full or empty inside it gets
just the power that makes it so at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wattmesh_simulators.plant import data
from wattmesh_simulators.plant.lease import Lease
from wattmesh_simulators.plant.vehicle import Charger

NS_PER_S = 1_000_000_000
ONE_WAY_EFFICIENCY = math.sqrt(0.9)
"""The data set's batteries have 0.9; taken as the round trip, split evenly."""
AC_PER_DC = 1.2
"""An inverter's rated AC power per installed PV power: no record of the five homes is clipped by it."""
_TAPER_FULL, _TAPER_EMPTY, _TAPER_LEAST = 0.95, 0.05, 0.2
_PIECE_NS = 60 * NS_PER_S
_SLOTS = ("actual", "no_battery", "self_consumption")
_COUNTERS = (
    "import_wh",
    "export_wh",
    "produced_wh",
    "load_total_wh",
    "pv_total_wh",
    "curtailed_wh",
    "initial_stored_wh",
)
_BATTERY_WARMS_S, _INVERTER_WARMS_S = 3600.0, 900.0


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
    temperature_c: float = 25.0

    @property
    def soc_percent(self) -> float:
        """State of charge."""
        return 100 * self.stored_wh / self.energy_wh

    @property
    def cycles(self) -> float:
        """Equivalent full cycles so far."""
        return (self.charged_wh * ONE_WAY_EFFICIENCY + self.discharged_wh / ONE_WAY_EFFICIENCY) / (2 * self.energy_wh)

    def possible_w(self, wanted_w: float, seconds: float) -> float:
        """What of ``wanted_w`` the battery can do for so long: rated power, less near full and empty, nothing beyond.

        From 95 % on charging, and down from 5 % discharging, falls linearly to a fifth of the rated power, as battery
        management systems do towards the end of the constant-voltage phase.
        """
        hours = seconds / 3600
        if wanted_w > 0:
            room = (1 - self.stored_wh / self.energy_wh) / (1 - _TAPER_FULL)
            limit = self.power_w * min(1.0, max(_TAPER_LEAST, room))
            return min(wanted_w, limit, max(0.0, self.energy_wh - self.stored_wh) / (ONE_WAY_EFFICIENCY * hours))
        if wanted_w < 0:
            room = self.stored_wh / self.energy_wh / _TAPER_EMPTY
            limit = self.power_w * min(1.0, max(_TAPER_LEAST, room))
            return max(wanted_w, -limit, -max(0.0, self.stored_wh) * ONE_WAY_EFFICIENCY / hours)
        return 0.0

    def step(self, wanted_w: float, seconds: float) -> float:
        """Charge (positive) or discharge for a while; returns the power that was possible."""
        hours = seconds / 3600
        power = self.possible_w(wanted_w, seconds)
        if power > 0:
            self.stored_wh = min(self.energy_wh, self.stored_wh + power * hours * ONE_WAY_EFFICIENCY)
            self.charged_wh += power * hours
            self.lost_wh += power * hours * (1 - ONE_WAY_EFFICIENCY)
        elif power < 0:
            self.stored_wh = max(0.0, self.stored_wh + power * hours / ONE_WAY_EFFICIENCY)
            self.discharged_wh -= power * hours
            self.lost_wh -= power * hours * (1 / ONE_WAY_EFFICIENCY - 1)
        self.active_w = power
        return power

    def warm(self, ambient_c: float, seconds: float) -> None:
        """Follow the losses of the last step: 0.03 K a watt above a housing 2 K warmer than outdoors."""
        target = ambient_c + 2 + 0.03 * abs(self.active_w) * (1 - ONE_WAY_EFFICIENCY)
        self.temperature_c += (target - self.temperature_c) * -math.expm1(-seconds / _BATTERY_WARMS_S)


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


class Home:
    """One home with its devices, stepped in simulated time.

    Args:
        home: Column of the data, ``b01`` to ``b05``.
        initial_soc_percent: Of the battery and of its shadow.
        frequency_hz: The grid's, now.
        seed: Of the swings inside the hours.
        voltage_pu: The grid's, now.
        charger: Its charging station; none: it has no electric car.
    """

    def __init__(
        self,
        home: str,
        initial_soc_percent: float,
        frequency_hz: Callable[[], float],
        seed: int = 1,
        voltage_pu: Callable[[], float] = lambda: 1.0,
        charger: Charger | None = None,
    ) -> None:
        self.home = home
        self.charger = charger
        self._uncontrolled = None if charger is None else Charger(replace(charger.car), phases=charger.phases)
        """What the same car would do at a station that always offers everything: in the shadows."""
        self.frequency_hz = frequency_hz
        self._voltage_pu = voltage_pu
        self.battery = Battery()
        self.battery.stored_wh = self.battery.energy_wh * initial_soc_percent / 100
        self.shadow = Battery(stored_wh=self.battery.stored_wh)
        self.inverter_w = data.pv_peak_w(home) * AC_PER_DC
        self.inverter_c = 25.0
        self.setpoint = Lease(0.0)
        self.pv_limit = Lease(100.0)
        self.load_w = 0.0
        self.pv_w = 0.0
        self.grid_w = 0.0
        self.import_wh = 250_000.0
        self.export_wh = 40_000.0
        self.produced_wh = 300_000.0
        self.load_total_wh = 0.0
        self.pv_total_wh = 0.0
        self.curtailed_wh = 0.0
        self.actual = Slots()
        self.no_battery = Slots()
        self.self_consumption = Slots()
        self.writes = 0
        self.initial_stored_wh = self.battery.stored_wh
        self._seed = seed
        self._uncontrolled_w = 0.0
        self._now_ns = 0
        self._available_w = 0.0
        self._ambient_c = 25.0

    def step(self, now_ns: int, seconds: float) -> None:
        """Simulate the ``seconds`` that end at ``now_ns`` with the setpoints in force."""
        start_ns = now_ns - round(seconds * NS_PER_S)
        while start_ns < now_ns:
            cuts = [now_ns, start_ns + _PIECE_NS, start_ns - start_ns % data.SLOT_NS + data.SLOT_NS]
            leases = (self.setpoint, self.pv_limit, *([self.charger.limit] if self.charger is not None else ()))
            for lease in leases:
                ends_ns = lease.ends_ns()
                if ends_ns is not None and ends_ns > start_ns:
                    cuts.append(ends_ns)
            end_ns = min(cuts)
            self._piece(start_ns, end_ns)
            start_ns = end_ns

    def _piece(self, start_ns: int, end_ns: int) -> None:
        self._now_ns = end_ns
        seconds = (end_ns - start_ns) / NS_PER_S
        hours = seconds / 3600
        middle = (start_ns + end_ns) // 2
        slot = start_ns - start_ns % data.SLOT_NS
        self.load_w = data.energy_wh("load", self.home, start_ns, end_ns, self._seed) / hours
        unlimited = min(data.energy_wh("pv", self.home, start_ns, end_ns, self._seed) / hours, self.inverter_w)
        self._available_w = unlimited
        self.pv_w = min(unlimited, self.inverter_w * self.pv_limit.current(middle) / 100)
        self.battery.step(self.setpoint.current(middle), seconds)
        self._charge(start_ns, end_ns, middle)
        car_w = 0.0 if self.charger is None else self.charger.active_w
        self.load_total_wh += (self.load_w + car_w) * hours
        self.produced_wh += self.pv_w * hours
        self.pv_total_wh += self.pv_w * hours
        self.curtailed_wh += (unlimited - self.pv_w) * hours
        self._book(slot, self._flow_w(), seconds)
        self.grid_w = self._flow_w()
        rest = self.load_w - unlimited + self._uncontrolled_w
        self.no_battery.add(slot, rest, seconds)
        self.self_consumption.add(slot, rest + self.shadow.step(-rest, seconds), seconds)
        self._ambient_c = data.temperature_c(middle)
        self.battery.warm(self._ambient_c, seconds)
        target = self._ambient_c + 5 + 0.006 * self.pv_w
        self.inverter_c += (target - self.inverter_c) * -math.expm1(-seconds / _INVERTER_WARMS_S)

    def _flow_w(self) -> float:
        """What the home takes from the grid."""
        return self.load_w - self.pv_w + self.battery.active_w + (self.charger.active_w if self.charger else 0.0)

    def _charge(self, start_ns: int, end_ns: int, now_ns: int) -> None:
        """The car, and the same one at a station that nobody steers."""
        if self.charger is None or self._uncontrolled is None:
            return
        seconds, volts = (end_ns - start_ns) / NS_PER_S, self._voltage_v()
        self.charger.step(now_ns, seconds, volts)
        self._uncontrolled.write(1e6, 0.0, now_ns)
        self._uncontrolled_w = self._uncontrolled.step(now_ns, seconds, volts)

    def _book(self, slot_ns: int, grid_w: float, seconds: float) -> None:
        if grid_w >= 0:
            self.import_wh += grid_w * seconds / 3600
        else:
            self.export_wh -= grid_w * seconds / 3600
        self.actual.add(slot_ns, grid_w, seconds)

    def hold(self, now_ns: int, seconds: float) -> None:
        """Let real time pass while simulated time stands still: the battery follows its setpoint, load and sun wait.

        What it charges counts as import and what it discharges as export, so that the energy balance stays whole.
        """
        self.battery.step(self.fast_power_w(now_ns), seconds)
        self._book(now_ns - now_ns % data.SLOT_NS, self.battery.active_w, seconds)
        self.grid_w = self._flow_w()

    def state(self) -> dict[str, Any]:
        """What a restarted simulator goes on from, as plain data."""
        return {
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "battery": asdict(self.battery),
            "shadow": asdict(self.shadow),
            "slots": {name: asdict(getattr(self, name)) for name in _SLOTS},
            "charger": None if self.charger is None else self.charger.kept(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; raises KeyError or TypeError where it is none."""
        battery, shadow = Battery(**state["battery"]), Battery(**state["shadow"])
        slots = {name: Slots(**state["slots"][name]) for name in _SLOTS}
        counters = {name: float(state["counters"][name]) for name in _COUNTERS}
        if self.charger is not None and state.get("charger"):
            self.charger.restore(state["charger"])
        self.battery, self.shadow = battery, shadow
        for name, value in (slots | counters).items():
            setattr(self, name, value)

    def fast_power_w(self, now_ns: int) -> float:
        """Battery power that the inverter would give at this moment: what a fast setpoint changes at once."""
        return self.battery.possible_w(self.setpoint.current(now_ns), 1.0)

    def write(self, setting: str, value: float, now_ns: int) -> None:
        """A setting was written over the wire, in our sign and unit; power follows at once."""
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
        self._follow(now_ns)

    def command(self, control: str, value: float | None, timeout_s: float, now_ns: int, device: str = "") -> None:
        """What a device makes of its settings, for those whose settings have names of their own.

        Args:
            control: ``active_power_w`` of the battery, ``production_limit_percent`` of the inverter.
            value: In our sign and unit; none leaves the device to itself.
            timeout_s: When it falls back unless renewed; 0 for never.
            now_ns: Time of the write.
            device: Whose ``active_power_w``: the battery's or the charging station's.
        """
        self.writes += 1
        if device == "ev_charger" and self.charger is not None:
            self.charger.write(value, timeout_s, now_ns)
            return
        lease = self.pv_limit if control == "production_limit_percent" else self.setpoint
        lease.enabled, lease.timeout_s = value is not None, timeout_s
        if value is not None:
            lease.value = value
        lease.renew(now_ns)
        self._follow(now_ns)

    def restart(self, now_ns: int) -> None:
        """The devices were switched off and on: setpoints and limits are gone."""
        self.setpoint, self.pv_limit = Lease(0.0), Lease(100.0)
        if self.charger is not None:
            self.charger.limit = Lease(self.charger.limit.fallback)
        self._follow(now_ns)

    def _follow(self, now_ns: int) -> None:
        self.battery.active_w = self.fast_power_w(now_ns)
        self.pv_w = min(self._available_w, self.inverter_w * self.pv_limit.current(now_ns) / 100)
        self.grid_w = self._flow_w()

    def _voltage_v(self) -> float:
        """Phase to neutral at the connection: less the drop that the home's own power makes on its line."""
        return max(0.0, (240.0 - self.grid_w / 4000) * self._voltage_pu())

    def voltage_l1_v(self) -> float:
        """Of the first phase, now."""
        return _phases(0.0, self._voltage_v())["voltage_l1_v"]

    def quantities(self, device: str) -> dict[str, float]:
        """Values of a device's points by name, in our sign and unit; a template takes those it has."""
        frequency = self.frequency_hz()
        voltage = self._voltage_v()
        if device == "ev_charger" and self.charger is not None:
            voltages = {name: value for name, value in _phases(0.0, voltage).items() if name.startswith("voltage")}
            return {**self.charger.quantities(self._now_ns, voltage), **voltages, "frequency_hz": frequency}
        if device == "meter":
            return {**_phases(self.grid_w, voltage), "frequency_hz": frequency, "power_factor_percent": 98.0,
                    "energy_import_wh": self.import_wh, "energy_export_wh": self.export_wh,
                    "import_power_w": max(0.0, self.grid_w), "export_power_w": max(0.0, -self.grid_w),
                    "load_power_w": self.load_w, "voltage_l12_v": voltage * math.sqrt(3)}  # fmt: skip
        if device == "inverter":
            strings = {}
            for number, share in ((1, 0.52), (2, 0.48), (3, 0.0), (4, 0.0)):
                power = self.pv_w * 1.03 * share
                volts = 380.0 if power > 1 else 0.0
                strings[f"string_{number}_power_w"] = power
                strings[f"string_{number}_voltage_v"] = volts
                strings[f"string_{number}_current_a"] = power / volts if volts else 0.0
            return {**_phases(-self.pv_w, voltage), "frequency_hz": frequency, "power_factor_percent": 98.0,
                    "energy_produced_wh": self.produced_wh, "dc_power_w": self.pv_w * 1.03,
                    "temperature_cabinet_degc": self.inverter_c, "operating_state": 4.0 if self.pv_w > 1 else 2.0,
                    "event_flags": 0.0, "power_limit_percent": self.pv_limit.value,
                    "power_limit_enabled": float(self.pv_limit.enabled), "limit_percent": self.pv_limit.value,
                    "limit_enable": float(self.pv_limit.enabled), "limit_reversion_s": self.pv_limit.timeout_s,
                    "ac_power_w": self.battery.active_w - self.pv_w, "battery_power_w": self.battery.active_w,
                    "grid_mode": 1.0, "energy_ac_wh": self.produced_wh, "derating_percent": self.pv_limit.value,
                    "voltage_l12_v": voltage * math.sqrt(3), "rated_power_w": self.inverter_w,
                    "rated_reactive_var": self.inverter_w * 0.6, "rated_current_a": self.inverter_w / 240,
                    **strings}  # fmt: skip
        return self._battery_quantities(frequency, voltage)

    def _battery_quantities(self, frequency: float, voltage: float) -> dict[str, float]:
        battery = self.battery
        dc_w = battery.active_w * (ONE_WAY_EFFICIENCY if battery.active_w > 0 else 1 / ONE_WAY_EFFICIENCY)
        dc_voltage = 48.0 + 6 * battery.stored_wh / battery.energy_wh
        return {
            **_phases(battery.active_w, voltage),
            "frequency_hz": frequency,
            "energy_charged_wh": battery.charged_wh,
            "energy_discharged_wh": battery.discharged_wh,
            "temperature_cabinet_degc": battery.temperature_c,
            "temperature_battery_degc": battery.temperature_c,
            "charge_power_w": max(0.0, battery.active_w),
            "discharge_power_w": max(0.0, -battery.active_w),
            "charge_current_limit_a": battery.power_w / 48.0,
            "battery_state": 2.0 if battery.active_w > 0 else 3.0 if battery.active_w < 0 else 1.0,
            "running_bits": 1.0,
            "inverter_state": 1.0,
            "connection_state": 1.0,
            "soc_percent": battery.soc_percent,
            "soh_percent": 99.0,
            "energy_available_wh": battery.stored_wh,
            "dc_voltage_v": dc_voltage,
            "dc_current_a": dc_w / dc_voltage,
            "dc_power_w": dc_w,
            "cycles": battery.cycles,
            "cell_voltage_maximum_v": dc_voltage / 16 + 0.004,
            "cell_voltage_minimum_v": dc_voltage / 16 - 0.004,
            "bank_state": 3.0,
            "rated_power_w": battery.power_w,
            "rated_charge_w": battery.power_w,
            "rated_discharge_w": battery.power_w,
            "rated_energy_wh": battery.energy_wh,
            "rated_charge_ah": battery.energy_wh / 51.2,
            "rated_current_a": battery.power_w / 240,
            "wset_enable": float(self.setpoint.enabled),
            "wset_mode": 1.0,
            "wset_w": self.setpoint.value,
            "wset_reversion_s": self.setpoint.timeout_s,
            "setpoint_w": self.setpoint.value,
            "setpoint_timeout_s": self.setpoint.timeout_s,
        }


def _phases(power_w: float, voltage: float) -> dict[str, float]:
    """Three-phase values of a balanced power at unity power factor."""
    carrying = max(voltage, 24.0)  # the plant goes on in a dead grid, as nothing here islands: its currents stay finite
    values = {
        "active_power_w": power_w,
        "apparent_power_va": abs(power_w) * 1.02,
        "reactive_power_var": abs(power_w) * 0.2,
        "current_a": abs(power_w) / carrying,
    }
    for phase, share in ((1, 0.34), (2, 0.33), (3, 0.33)):
        values[f"active_power_l{phase}_w"] = power_w * share
        values[f"current_l{phase}_a"] = abs(power_w) * share / carrying
        values[f"voltage_l{phase}_v"] = voltage * (1 + (phase - 2) * 0.00125)
    return values
