"""The contract of a driver, and what all drivers share: arrays in place, back-off, controls in steps."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.control import Applied, Failed, Outcome, Rejected
from wattmesh_a2a.devices import Access, Asset, Point, Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.kinds import quantity_and_unit
from wattmesh_drivers.template import ControlModel, PointModel, Template

log = logging.getLogger(__name__)

_BACKOFF_FIRST_S, _BACKOFF_LAST_S = 0.5, 30.0
_FRESH_SHARE = 0.5
"""A watchdog is fed again after this share of its time."""


class DriverState(Enum):
    """Where the connection stands."""

    DISCONNECTED = "disconnected"
    READY = "ready"
    BACKING_OFF = "backing_off"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterLocation:
    """Where a point is on the wire, for the reflex, which reads and writes by itself."""

    host: str
    port: int
    unit: int
    function: int
    write_function: int
    address: int
    type: str
    word_order: str
    scale: float
    sign: int


class Driver(Protocol):
    """One device. ``values``, ``qualities`` and ``source_times_ns`` are indexed like ``asset.points`` and change in place."""

    asset: Asset
    template: Template
    state: DriverState
    values: array[float]
    """Type ``d``; NaN where the quality is bad."""
    qualities: bytearray
    source_times_ns: array[int]
    """Type ``q``; UTC on the injected clock."""
    counters: Counter[str]

    async def connect(self) -> None:
        """Connect and learn the device.

        Raises:
            UnavailableError: It does not answer.
            ConfigurationError: It answers, and is not what the template says.
        """
        ...

    async def poll(self) -> bool:
        """Read every point once; a device that fails gets bad quality at once and is tried again later. Never raises for it."""
        ...

    async def control(self, name: str, value: float) -> Outcome:
        """Carry out a control: limits, steps in order, read back. Called each cycle, which also feeds the watchdog."""
        ...

    async def apply_safe_state(self) -> list[Outcome]:
        """Write the template's safe state."""
        ...

    def register_of(self, point_id: str) -> RegisterLocation | None:
        """Where a point or setting is on the wire; none where the protocol has no registers or it is not known yet."""
        ...

    async def close(self) -> None:
        """End the connection."""
        ...


class BaseDriver(ABC):
    """What the protocols share; a protocol opens, reads, writes and closes."""

    def __init__(
        self,
        asset_id: str,
        template: Template,
        clock: Clock,
        *,
        rated_power_w: float | None = None,
        rated_energy_wh: float | None = None,
    ) -> None:
        self.template = template
        self.asset = Asset(
            id=asset_id,
            kind=template.kind,
            points=tuple(_point(model) for model in template.points),
            rated_power_w=rated_power_w,
            rated_energy_wh=rated_energy_wh,
        )
        count = len(template.points)
        self.state = DriverState.DISCONNECTED
        self.values = array("d", [math.nan] * count)
        self.qualities = bytearray([Quality.BAD] * count)
        self.source_times_ns = array("q", [0] * count)
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._backoff_s = _BACKOFF_FIRST_S
        self._retry_at = 0.0
        self._written: dict[str, tuple[float, int]] = {}
        self._fed_ns: dict[str, int] = {}
        self._flash_writes: dict[str, tuple[int, int]] = {}
        """Day (UTC) and writes of it, by control whose register is kept in flash."""
        self._said = False

    # -- what a protocol does

    @abstractmethod
    async def _open(self) -> None:
        """Connect and learn; raises UnavailableError or ConfigurationError."""

    @abstractmethod
    async def _read(self) -> None:
        """Read all points into the arrays; raises UnavailableError after which nothing read now counts."""

    @abstractmethod
    async def _write(self, setting: PointModel, value: float) -> None:
        """Write one setting; raises UnavailableError or ConfigurationError (the device refuses)."""

    @abstractmethod
    async def _read_setting(self, setting: PointModel) -> float:
        """Read one setting back; raises UnavailableError."""

    @abstractmethod
    async def _shut(self) -> None:
        """Drop the connection; never raises."""

    @abstractmethod
    def register_of(self, point_id: str) -> RegisterLocation | None:
        """See :class:`Driver`."""

    # -- what they share

    async def connect(self) -> None:
        """See :class:`Driver`."""
        try:
            await self._open()
        except (UnavailableError, ConfigurationError):
            await self._shut()
            raise
        self.state = DriverState.READY
        self._backoff_s = _BACKOFF_FIRST_S
        self._written.clear()  # the device may have been restarted: what it holds is not known

    async def poll(self) -> bool:
        """See :class:`Driver`."""
        try:
            if self.state is not DriverState.READY:
                if asyncio.get_running_loop().time() < self._retry_at:
                    return False
                await self.connect()
            await self._read()
        except (UnavailableError, ConfigurationError) as error:
            await self._lost(error)
            return False
        self.counters["polls"] += 1
        if self._said:
            self._said = False
            log.warning("%s answers again", self.asset.id)
        return True

    async def _lost(self, error: Exception) -> None:
        self.counters["failed_polls"] += 1
        if not self._said:
            self._said = True
            log.warning("%s does not answer (%s); trying again until it does", self.asset.id, error)
        for index in range(len(self.values)):
            self.values[index] = math.nan
            self.qualities[index] = Quality.BAD
        await self._shut()
        self._failed()

    def _failed(self) -> None:
        self.state = DriverState.BACKING_OFF
        self._retry_at = asyncio.get_running_loop().time() + self._backoff_s * random.uniform(0.8, 1.2)
        self._backoff_s = min(_BACKOFF_LAST_S, self._backoff_s * 2)

    async def control(self, name: str, value: float, *, urgent: bool = False) -> Outcome:
        """See :class:`Driver`. ``urgent``: the safe state, which no budget holds back."""
        model = self.template.controls.get(name)
        if model is None:
            return Rejected(reason=f"{self.asset.id} has no control {name!r}")
        minimum, maximum = self.limits_of(name)
        if not math.isfinite(minimum) or not math.isfinite(maximum):
            return Rejected(reason=f"{name} of {self.asset.id} has no limit: give the asset its rated_power_w")
        if not math.isfinite(value) or not minimum <= value <= maximum:
            return Rejected(reason=f"{name} = {value} is outside {minimum:g}..{maximum:g}")
        if self.state is not DriverState.READY:
            return Failed(reason=f"{self.asset.id} is not connected", retryable=True)
        last_value, last_ns = self._written.get(name, (math.nan, 0))
        fed = self._clock.monotonic_ns() - self._fed_ns.get(name, 0) < self._hold_ns(model)
        if value == last_value and fed:
            return Applied(value=value)
        if not urgent and (refused := self._too_often(name, model, last_ns)) is not None:
            return refused
        try:
            return await self._carry_out(name, model, value)
        except UnavailableError as error:
            await self._lost(error)
            return Failed(reason=str(error), retryable=True)
        except ConfigurationError as error:
            return Failed(reason=str(error), retryable=False)

    def _too_often(self, name: str, model: ControlModel, last_ns: int) -> Rejected | None:
        """What the template's pace and its budget of flash writes say against a write now."""
        since_ms = (self._clock.monotonic_ns() - last_ns) / 1e6
        if last_ns and since_ms < model.minimum_interval_ms:
            return Rejected(
                reason=f"{name} of {self.asset.id} takes a value every {model.minimum_interval_ms} ms, and the last is "
                f"{since_ms:.0f} ms ago"
            )
        if model.storage != "flash" or model.writes_per_day is None:
            return None
        day = self._clock.utc_ns() // (86_400 * NS_PER_S)
        if self._flash_writes.get(name, (day, 0))[0] != day:
            self._flash_writes.pop(name, None)
        if self._flash_writes.get(name, (day, 0))[1] >= model.writes_per_day:
            return Rejected(
                reason=f"{name} of {self.asset.id} is kept in flash, and its {model.writes_per_day} writes of this day (UTC) "
                f"are used up"
            )
        return None

    async def _carry_out(self, name: str, model: ControlModel, value: float) -> Outcome:
        # Constants (mode, enable, the watchdog's time) are written when their hold is over; between, the target alone.
        now = self._clock.monotonic_ns()
        feed = name not in self._written or now - self._fed_ns.get(name, -(10**18)) >= self._hold_ns(model)
        for step in model.steps:
            if step.value == "target":
                await self._write(self.template.setting(step.setting), value)
            elif feed:
                await self._write(self.template.setting(step.setting), step.value)
        if feed:
            self._fed_ns[name] = now
        self.counters["writes"] += 1
        if model.storage == "flash":
            day = self._clock.utc_ns() // (86_400 * NS_PER_S)
            used = self._flash_writes.get(name, (day, 0))
            self._flash_writes[name] = (day, used[1] + 1 if used[0] == day else 1)
        if model.readback is not None:
            got = await self._read_setting(self.template.setting(model.readback))
            if abs(got - value) > max(1.0, abs(value) * 0.005):
                self._written.pop(name, None)
                self.counters["readback_differs"] += 1
                return Failed(reason=f"{name} was written as {value:g} and reads back as {got:g}", retryable=True)
        self._written[name] = (value, now)
        return Applied(value=value)

    def _hold_ns(self, model: ControlModel) -> int:
        """For how long an unchanged value needs no writing."""
        seconds = model.watchdog.seconds * _FRESH_SHARE if model.watchdog else 3600.0
        return round(seconds * NS_PER_S)

    def limits_of(self, name: str) -> tuple[float, float]:
        """Range of a control, in its unit: the template's, else the rated power both ways."""
        model = self.template.controls[name]
        rated = self.asset.rated_power_w
        low = model.minimum if model.minimum is not None else -rated if rated is not None else -math.inf
        high = model.maximum if model.maximum is not None else rated if rated is not None else math.inf
        return low, high

    def forget_written(self, name: str) -> None:
        """The next :meth:`control` writes even an unchanged value: somebody else (the reflex) wrote in between."""
        self._written.pop(name, None)

    async def apply_safe_state(self) -> list[Outcome]:
        """See :class:`Driver`."""
        return [await self.control(name, value, urgent=True) for name, value in self.template.safe_state.items()]

    async def close(self) -> None:
        """See :class:`Driver`."""
        await self._shut()
        self.state = DriverState.DISCONNECTED


def _point(model: PointModel) -> Point:
    quantity, unit = quantity_and_unit(model.id)
    resolution = model.resolution
    if resolution is None and model.type is not None and model.type[0] in "us" and model.model is None:
        resolution = model.scale
    return Point(
        id=model.id,
        quantity=quantity,
        unit=unit,
        access=Access.READ,
        minimum=model.minimum,
        maximum=model.maximum,
        resolution=resolution,
    )


def as_mapping(driver: Driver) -> Mapping[str, tuple[float, Quality]]:
    """Values and qualities by point, for people and tests."""
    return {
        point.id: (driver.values[index], Quality(driver.qualities[index]))
        for index, point in enumerate(driver.asset.points)
    }
