"""All that is known of a site, frozen for one control cycle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.devices import AssetKind, Quality
from wattmesh_drivers.driver import Driver

STALE_PERIODS = 3
"""A value older than this many control periods is no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A quantity with how far to trust it."""

    value: float
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryImage:
    """One battery; none where it is not known."""

    active_power_w: float | None
    soc_percent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteImage:
    """One immutable snapshot a cycle. Passive signs; none is unknown, never 0."""

    time_ns: int
    """UTC."""
    monotonic_ns: int
    grid_power_w: Value | None
    pv_power_w: float | None
    """Negative while producing; 0 at a site without PV."""
    batteries: Mapping[str, BatteryImage]
    frequency_hz: float | None

    @property
    def battery_power_w(self) -> float | None:
        """Sum over all batteries; none when one of them is unknown."""
        powers = [battery.active_power_w for battery in self.batteries.values()]
        known = [power for power in powers if power is not None]
        return sum(known) if len(known) == len(powers) else None

    @property
    def rest_power_w(self) -> float | None:
        """What the site takes beside its batteries: load and PV together."""
        battery = self.battery_power_w
        if self.grid_power_w is None or battery is None:
            return None
        return self.grid_power_w.value - battery

    @property
    def load_power_w(self) -> float | None:
        """Consumption: what is left of the grid's power after PV and batteries."""
        rest = self.rest_power_w
        return None if rest is None or self.pv_power_w is None else rest - self.pv_power_w


class ImageMaker:
    """Freezes drivers' arrays into images.

    Args:
        drivers: By device.
        grid_meter: The device at the grid connection.
        period_s: Of the control cycle.
    """

    def __init__(self, drivers: Mapping[str, Driver], grid_meter: str, period_s: float) -> None:
        self._drivers = drivers
        self._grid_meter = grid_meter
        self._stale_ns = round(STALE_PERIODS * period_s * NS_PER_S)
        self._places = {
            name: {point.id: index for index, point in enumerate(driver.asset.points)}
            for name, driver in drivers.items()
        }
        self._batteries = self._of(AssetKind.BATTERY)
        self._inverters = self._of(AssetKind.INVERTER)

    def _of(self, kind: AssetKind) -> Sequence[str]:
        return [name for name, driver in self._drivers.items() if driver.asset.kind is kind]

    def read(self, device: str, point: str, now_ns: int) -> float | None:
        """A value that is good and fresh, or none."""
        driver = self._drivers[device]
        index = self._places[device].get(point)
        if index is None or driver.qualities[index] == Quality.BAD:
            return None
        if abs(now_ns - driver.known_times_ns[index]) > self._stale_ns:
            return None
        value = driver.values[index]
        return None if math.isnan(value) else value

    def make(self, now_ns: int, monotonic_ns: int) -> SiteImage:
        """The image of this moment. Without the grid meter nothing is guessed: the power is unknown."""
        batteries = {
            name: BatteryImage(
                active_power_w=self.read(name, "active_power_w", now_ns),
                soc_percent=self.read(name, "soc_percent", now_ns),
            )
            for name in self._batteries
        }
        powers = [self.read(name, "active_power_w", now_ns) for name in self._inverters]
        known = [power for power in powers if power is not None]
        measured = self.read(self._grid_meter, "active_power_w", now_ns)
        return SiteImage(
            time_ns=now_ns,
            monotonic_ns=monotonic_ns,
            grid_power_w=None if measured is None else Value(value=measured, quality=Quality.GOOD),
            pv_power_w=sum(known) if len(known) == len(powers) else None,
            batteries=batteries,
            frequency_hz=self.read(self._grid_meter, "frequency_hz", now_ns),
        )
