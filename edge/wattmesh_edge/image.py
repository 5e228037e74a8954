"""All that is known of a site, frozen for one control cycle."""

from __future__ import annotations

import logging
import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.devices import AssetKind, Quality
from wattmesh_drivers.driver import Driver

log = logging.getLogger(__name__)

STALE_PERIODS = 3
"""A value older than this many control periods is no value."""
ESTIMATE_S = 60
"""For so long the load that was known last stands in for a grid meter that is away, while everything else is measured."""
_JUMP_NS = NS_PER_S
"""A wall clock that moves so much against the monotonic one has jumped."""
_PHASES = ("active_power_l1_w", "active_power_l2_w", "active_power_l3_w")


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
    charge_limit_w: float | None = None
    """What the device says that it takes at this moment; none where it does not say."""
    discharge_limit_w: float | None = None
    """What it says that it gives, a positive magnitude."""


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
    loads: Mapping[str, float | None] = field(default_factory=dict)
    """Power of each load that can be steered; none where it is not known."""
    inverters: Mapping[str, float | None] = field(default_factory=dict)
    """Power of each inverter; none where it is not known."""
    phase_power_w: tuple[float, float, float] | None = None
    """Grid power of each phase; none where the meter does not tell all three."""

    @property
    def battery_power_w(self) -> float | None:
        """Sum over all batteries; none when one of them is unknown."""
        powers = [battery.active_power_w for battery in self.batteries.values()]
        known = [power for power in powers if power is not None]
        return sum(known) if len(known) == len(powers) else None

    @property
    def rest_power_w(self) -> float | None:
        """What the site takes beside what is steered: load and PV together; none without the grid's power.

        A battery that does not tell its power is part of the rest, as the meter measures it there, and nobody steers it.
        """
        if self.grid_power_w is None:
            return None
        powers = [*(battery.active_power_w for battery in self.batteries.values()), *self.loads.values()]
        return self.grid_power_w.value - sum(power for power in powers if power is not None)

    @property
    def load_power_w(self) -> float | None:
        """Consumption: what is left of the grid's power after PV and batteries."""
        battery = self.battery_power_w
        if self.grid_power_w is None or battery is None or self.pv_power_w is None:
            return None
        return self.grid_power_w.value - battery - self.pv_power_w


class ImageMaker:
    """Freezes drivers' arrays into images.

    Args:
        drivers: By device.
        grid_meter: The device at the grid connection.
        period_s: Of the control cycle.
        backups: Other meters at the same place, asked in this order while the grid meter is away.
        load_meters: Meters that together see all consumption: with them a grid meter that is away is estimated without end.
        meter_lag_s: By how much the grid meter tells an older time than the steered devices do. What these have changed since is
            added to it: else the change would be taken for load and made twice.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        grid_meter: str,
        period_s: float,
        *,
        backups: Sequence[str] = (),
        load_meters: Sequence[str] = (),
        meter_lag_s: float = 0.0,
    ) -> None:
        self._drivers = drivers
        self._meters = (grid_meter, *backups)
        self._load_meters = load_meters
        self._stale_ns = round(STALE_PERIODS * period_s * NS_PER_S)
        self._places = {
            name: {point.id: index for index, point in enumerate(driver.asset.points)}
            for name, driver in drivers.items()
        }
        self._batteries = self._of(AssetKind.BATTERY)
        self._inverters = self._of(AssetKind.INVERTER)
        self._loads = [*self._of(AssetKind.LOAD), *self._of(AssetKind.EV_CHARGER)]
        self._known_load: tuple[float, int] | None = None
        """Consumption as it was known last, and the monotonic time of it."""
        self._lag_ns = round(meter_lag_s * NS_PER_S)
        self._steered: deque[tuple[int, float]] = deque()
        """Power of all steered devices by monotonic time, as far back as the meter's lag."""
        self._offset_ns: int | None = None
        self._before_jump: dict[str, array[int]] = {}
        """Times of the values from before the wall clock jumped: nothing says how old those are."""

    def _of(self, kind: AssetKind) -> Sequence[str]:
        return [name for name, driver in self._drivers.items() if driver.asset.kind is kind]

    def read(self, device: str, point: str, now_ns: int) -> float | None:
        """A value that is good and fresh, or none."""
        driver = self._drivers[device]
        index = self._places[device].get(point)
        if index is None or driver.qualities[index] == Quality.BAD:
            return None
        known_ns = driver.known_times_ns[index]
        if abs(now_ns - known_ns) > self._stale_ns:
            return None
        old = self._before_jump.get(device)
        if old is not None and old[index] == known_ns:
            return None
        value = driver.values[index]
        return value if math.isfinite(value) else None

    def make(self, now_ns: int, monotonic_ns: int) -> SiteImage:
        """The image of this moment. A grid meter that is away is estimated from the others, and marked so; else it is unknown."""
        self._watch_clock(now_ns, monotonic_ns)
        batteries = {
            name: BatteryImage(
                active_power_w=self.read(name, "active_power_w", now_ns),
                soc_percent=self.read(name, "soc_percent", now_ns),
                charge_limit_w=self.read(name, "charge_limit_w", now_ns),
                discharge_limit_w=self.read(name, "discharge_limit_w", now_ns),
            )
            for name in self._batteries
        }
        loads = {name: self.read(name, "active_power_w", now_ns) for name in self._loads}
        inverters = {name: self.read(name, "active_power_w", now_ns) for name in self._inverters}
        pv = _sum_of([*inverters.values()])
        steered = _sum_of([*(battery.active_power_w for battery in batteries.values()), *loads.values()])
        beside = None if pv is None or steered is None else pv + steered
        meter, measured = self._measured(now_ns)
        if measured is not None:
            measured += self._changed_since(steered, monotonic_ns)
            grid: Value | None = Value(value=measured, quality=Quality.GOOD)
            if beside is not None:
                self._known_load = (measured - beside, monotonic_ns)
        else:
            grid = self._estimated(beside, now_ns, monotonic_ns)
        phases = [self.read(meter, name, now_ns) for name in _PHASES]
        known = [power for power in phases if power is not None]
        return SiteImage(
            time_ns=now_ns,
            monotonic_ns=monotonic_ns,
            grid_power_w=grid,
            pv_power_w=pv,
            batteries=batteries,
            frequency_hz=self.read(meter, "frequency_hz", now_ns),
            loads=loads,
            inverters=inverters,
            phase_power_w=(known[0], known[1], known[2]) if len(known) == len(_PHASES) else None,
        )

    def _changed_since(self, steered: float | None, monotonic_ns: int) -> float:
        """What the steered devices have changed since the time that the grid meter tells of; 0 where it is not known."""
        if not self._lag_ns or steered is None:
            self._steered.clear()
            return 0.0
        history = self._steered
        history.append((monotonic_ns, steered))
        while len(history) > 1 and history[1][0] <= monotonic_ns - self._lag_ns:
            history.popleft()
        return steered - history[0][1]

    def _measured(self, now_ns: int) -> tuple[str, float | None]:
        """The first meter at the connection that answers."""
        for meter in self._meters:
            if (power := self.read(meter, "active_power_w", now_ns)) is not None:
                return meter, power
        return self._meters[0], None

    def _estimated(self, beside: float | None, now_ns: int, monotonic_ns: int) -> Value | None:
        """The grid's power from what is measured elsewhere: load meters, or the consumption that was known last."""
        if beside is None:
            return None
        load = None
        if self._load_meters:
            load = _sum_of([self.read(meter, "active_power_w", now_ns) for meter in self._load_meters])
        elif self._known_load is not None and monotonic_ns - self._known_load[1] <= ESTIMATE_S * NS_PER_S:
            load = self._known_load[0]
        return None if load is None else Value(value=load + beside, quality=Quality.UNCERTAIN)

    def _watch_clock(self, now_ns: int, monotonic_ns: int) -> None:
        """After a jump of the wall clock only what is read anew counts: an old value could look fresh again."""
        offset_ns = now_ns - monotonic_ns
        if self._offset_ns is not None and abs(offset_ns - self._offset_ns) > _JUMP_NS:
            log.warning("the clock jumped by %.1f s", (offset_ns - self._offset_ns) / NS_PER_S)
            self._before_jump = {name: array("q", driver.known_times_ns) for name, driver in self._drivers.items()}
        self._offset_ns = offset_ns


def _sum_of(powers: Sequence[float | None]) -> float | None:
    """The sum; none when one of them is unknown."""
    known = [power for power in powers if power is not None]
    return sum(known) if len(known) == len(powers) else None
