"""The contract of a driver, and what all drivers share: arrays in place, back-off, controls in steps."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypedDict

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.control import Applied, Failed, Outcome, Rejected
from wattmesh_a2a.devices import Access, Asset, Point, Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.kinds import quantity_and_unit
from wattmesh_drivers.template import ControlModel, PointModel, Template, readbacks

log = logging.getLogger(__name__)

_BACKOFF_FIRST_S, _BACKOFF_LAST_S = 0.5, 10.0
_ATTEMPT_SHOWN_S = 0.05
"""An attempt to reach a device that takes longer goes on behind the back of the poll that began it."""
_FRESH_SHARE = 0.5
"""A watchdog is fed again after this share of its time."""
_HOLD_S = 3600.0
"""Without a watchdog a value that stands is written again so often, in case the device was restarted unseen."""
_FLASH_AT_ONCE = 0.1
"""Share of a day's flash writes that may be used at its beginning; the rest comes with the hours, so that no setpoint is
stuck for the rest of a day."""
_READBACK_SHARE = 0.005
"""What a device may round off a setting that it reads back."""


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
    """One device. ``values``, ``qualities`` and both times are indexed like ``asset.points`` and change in place."""

    asset: Asset
    template: Template
    state: DriverState
    values: array[float]
    """Type ``d``; NaN where the quality is bad."""
    qualities: bytearray
    source_times_ns: array[int]
    """Type ``q``; UTC of the measurement, by the device where it says so, else on the injected clock."""
    known_times_ns: array[int]
    """Type ``q``; UTC on the injected clock at which each value was last known to hold: what freshness is judged by."""
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

    async def release(self) -> list[Outcome]:
        """Give the device back to its own management, where its template knows how: the gateway ends in order."""
        ...

    def register_of(self, point_id: str) -> RegisterLocation | None:
        """Where a point or setting is on the wire; none where the protocol has no registers or it is not known yet."""
        ...

    async def close(self) -> None:
        """End the connection."""
        ...


class BusyError(UnavailableError):
    """The device answered that it cannot just now: nothing is wrong with the connection."""


class BaseOptions(TypedDict, total=False):
    """What every driver takes; see :class:`BaseDriver`."""

    rated_power_w: float | None
    rated_energy_wh: float | None
    flash_writes: MutableMapping[str, tuple[int, int]] | None
    monotonic: Callable[[], float]


class BaseDriver(ABC):
    """What the protocols share; a protocol opens, reads, writes and closes.

    Args:
        asset_id: Its name at the site.
        template: What it is.
        clock: Stamps readings, times watchdogs and budgets.
        rated_power_w: Limits its controls.
        rated_energy_wh: Of a storage.
        flash_writes: Control → day (UTC) and its writes into flash, kept by whoever lives longer than this process.
        monotonic: Real time, for pauses between attempts to reach an absent device.
    """

    def __init__(
        self,
        asset_id: str,
        template: Template,
        clock: Clock,
        *,
        rated_power_w: float | None = None,
        rated_energy_wh: float | None = None,
        flash_writes: MutableMapping[str, tuple[int, int]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.template = template
        self.asset = Asset(
            id=asset_id,
            kind=template.kind,
            points=points_of(template),
            rated_power_w=rated_power_w,
            rated_energy_wh=rated_energy_wh,
        )
        count = len(template.points)
        self.state = DriverState.DISCONNECTED
        self.values = array("d", [math.nan] * count)
        self.qualities = bytearray([Quality.BAD] * count)
        self.source_times_ns = array("q", [0] * count)
        self.known_times_ns = self.source_times_ns
        """The same, where values have no other time than that of their reading."""
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._monotonic = monotonic
        self._backoff_s = _BACKOFF_FIRST_S
        self._retry_at = -math.inf
        self._attempt: asyncio.Task[None] | None = None
        self._holding: dict[str, tuple[float, int]] = {}
        """Setting → what we wrote last and when; forgotten whenever the device may hold something else."""
        self._fed_ns: dict[str, int] = {}
        """Control → when all its steps were written last."""
        self._paced_ns: dict[str, int] = {}
        """Control → when anything of it was written last."""
        self._flash_writes = flash_writes if flash_writes is not None else {}
        self._said = False
        self.quiet = False
        """Say nothing to the log: somebody only looks whether this is the device."""
        names = {model.id: index for index, model in enumerate(template.points)}
        self._sums = [
            (names[model.id], [(names[name], factor) for name, factor in model.sum.items()])
            for model in template.points
            if model.sum is not None
        ]
        frozen = template.frozen
        self._living = [names[name] for name in frozen.points] if frozen else []
        self._lived: list[float] = []
        self._lived_ns = 0
        self._stood_polls = 0

    @property
    def log_level(self) -> int:
        """Of what the device does that people should know."""
        return logging.DEBUG if self.quiet else logging.WARNING

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
        """Read one setting back; raises UnavailableError or ConfigurationError (the device refuses)."""

    @abstractmethod
    async def _shut(self) -> None:
        """Drop the connection; never raises."""

    @abstractmethod
    def _step_of(self, setting: PointModel) -> float:
        """Smallest difference that the device can hold of a setting, in its unit; 0 for a floating number."""

    @abstractmethod
    def register_of(self, point_id: str) -> RegisterLocation | None:
        """See :class:`Driver`."""

    def _pause_at_most_s(self) -> float:
        """Longest pause between two attempts to reach the device; 0 where nobody else is slowed by them."""
        return 0.0

    # -- reading

    async def connect(self) -> None:
        """See :class:`Driver`."""
        try:
            await self._open()
        except (UnavailableError, ConfigurationError):
            await self._shut()
            raise
        self.state = DriverState.READY
        self._backoff_s = _BACKOFF_FIRST_S
        self._retry_at = -math.inf
        self._holding.clear()  # the device may have been restarted: what it holds is not known
        self._fed_ns.clear()

    async def poll(self) -> bool:
        """See :class:`Driver`."""
        try:
            if self.state is not DriverState.READY and not await self._reached():
                return False
            await self._read()
        except BusyError as error:
            self._bad(error)
            return False
        except (UnavailableError, ConfigurationError) as error:
            await self._lost(error)
            return False
        for target, terms in self._sums:
            self._add_up(target, terms)
        if self._living and self._stands_still():
            return False
        self.counters["polls"] += 1
        if self._said:
            self._said = False
            log.log(self.log_level, "%s answers again", self.asset.id)
        return True

    async def _reached(self) -> bool:
        """Try to reach the device, off to the side: a dead one never holds up those who poll with it."""
        if self._attempt is not None and self._attempt.done():
            attempt, self._attempt = self._attempt, None
            try:
                attempt.result()
            except (UnavailableError, ConfigurationError) as error:
                await self._lost(error)  # it failed since the last poll: try anew in this one
            else:
                return True
        if self._attempt is None:
            if self._monotonic() < self._retry_at:
                return False
            self._attempt = asyncio.get_running_loop().create_task(self.connect(), name=f"reach {self.asset.id}")
        attempt = self._attempt
        await asyncio.wait({attempt}, timeout=_ATTEMPT_SHOWN_S)
        if not attempt.done():
            return False
        self._attempt = None
        attempt.result()
        return True

    async def _lost(self, error: Exception) -> None:
        self._bad(error)
        await self._shut()
        self.state = DriverState.BACKING_OFF
        pause_s = min(self._backoff_s, self._pause_at_most_s())
        self._retry_at = self._monotonic() + pause_s * random.uniform(0.8, 1.2)
        self._backoff_s = min(_BACKOFF_LAST_S, self._backoff_s * 2)

    def _bad(self, error: Exception) -> None:
        """Nothing that was read counts any more."""
        self.counters["failed_polls"] += 1
        if not self._said:
            self._said = True
            log.log(self.log_level, "%s does not answer (%s); trying again until it does", self.asset.id, error)
        self._set_all_bad()

    def _set_all_bad(self) -> None:
        for index in range(len(self.values)):
            self.values[index] = math.nan
            self.qualities[index] = Quality.BAD

    def _add_up(self, target: int, terms: Sequence[tuple[int, float]]) -> None:
        """A point that is the sum of others: as good as the worst of them."""
        worst = max((self.qualities[index] for index, _ in terms), default=int(Quality.BAD))
        self.qualities[target] = worst
        self.values[target] = (
            sum(self.values[index] * factor for index, factor in terms) if worst != Quality.BAD else math.nan
        )
        self.source_times_ns[target] = min(self.source_times_ns[index] for index, _ in terms)

    def _stands_still(self) -> bool:
        """Whether the device repeats itself: answers that come, of a measurement that has stopped."""
        assert self.template.frozen is not None
        now_ns = self._clock.monotonic_ns()
        lived = [self.values[index] for index in self._living]
        if lived != self._lived or not self._lived_ns:  # a bad value is NaN and no other's equal
            self._lived, self._lived_ns, self._stood_polls = lived, now_ns, 0
            return False
        self._stood_polls += 1
        frozen = self.template.frozen
        if self._stood_polls < frozen.polls or now_ns - self._lived_ns < frozen.seconds * NS_PER_S:
            return False
        self.counters["frozen_polls"] += 1
        self._bad(UnavailableError(f"its measurement has stood still for {(now_ns - self._lived_ns) / NS_PER_S:.0f} s"))
        return True

    # -- controls

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
        writes = self._due(name, model, value)
        for setting, number in writes:
            low = setting.minimum if setting.minimum is not None else -math.inf
            high = setting.maximum if setting.maximum is not None else math.inf
            if not low <= number <= high:
                return Rejected(reason=f"{name} = {value:g} needs {setting.id} = {number:g}, outside {low:g}..{high:g}")
        if not writes:
            return Applied(value=value)
        if not urgent and (refused := self._too_often(name, model)) is not None:
            return refused
        try:
            return await self._carry_out(name, model, value, writes)
        except BusyError as error:
            return Failed(reason=str(error), retryable=True)
        except UnavailableError as error:
            await self._lost(error)
            return Failed(reason=str(error), retryable=True)
        except ConfigurationError as error:
            return Failed(reason=str(error), retryable=False)

    def _due(self, name: str, model: ControlModel, value: float) -> list[tuple[PointModel, float]]:
        """What has to be written for a value: what differs from what the device holds, and all when its hold is over."""
        fed_ns = self._fed_ns.get(name)
        feed = fed_ns is None or self._clock.monotonic_ns() - fed_ns >= self._hold_ns(model)
        if model.whole and not feed:
            feed = any(self._holding.get(step.setting, (math.nan, 0))[0] != step.of(value) for step in model.steps)
        due = []
        for step in model.steps:
            number = step.of(value)
            if feed or self._holding.get(step.setting, (math.nan, 0))[0] != number:
                due.append((self.template.setting(step.setting), number))
        return due

    def _too_often(self, name: str, model: ControlModel) -> Rejected | None:
        """What the template's pace and its budget of flash writes say against a write now."""
        last_ns = self._paced_ns.get(name)
        if last_ns is not None and model.minimum_interval_ms:
            since_ms = (self._clock.monotonic_ns() - last_ns) / 1e6
            if since_ms < model.minimum_interval_ms:
                return Rejected(
                    reason=f"{name} of {self.asset.id} takes a value every {model.minimum_interval_ms} ms, and the last "
                    f"is {since_ms:.0f} ms ago"
                )
        if model.storage != "flash" or model.writes_per_day is None:
            return None
        day, used = self._flash_day(name)
        gone = self._clock.utc_ns() / (86_400 * NS_PER_S) - day
        allowed = math.ceil(model.writes_per_day * (_FLASH_AT_ONCE + (1 - _FLASH_AT_ONCE) * gone))
        if used >= allowed:
            return Rejected(
                reason=f"{name} of {self.asset.id} is kept in flash: of its {model.writes_per_day} writes a day (UTC), "
                f"which are spread over it, {used} are used up"
            )
        return None

    def _flash_day(self, name: str) -> tuple[int, int]:
        """Today (UTC, days since 1970) and the writes of it."""
        day = self._clock.utc_ns() // (86_400 * NS_PER_S)
        kept, used = self._flash_writes.get(name, (day, 0))
        return day, used if kept == day else 0

    async def _carry_out(
        self, name: str, model: ControlModel, value: float, writes: Sequence[tuple[PointModel, float]]
    ) -> Outcome:
        now = self._clock.monotonic_ns()
        whole = len(writes) == len(model.steps)
        self._paced_ns[name] = now
        if model.storage == "flash":  # counted before: a write whose answer is lost has worn the flash as well
            day, used = self._flash_day(name)
            self._flash_writes[name] = (day, used + 1)
        try:
            for setting, number in writes:
                self._holding.pop(setting.id, None)
                await self._write(setting, number)
                self._holding[setting.id] = (number, now)
        except (UnavailableError, ConfigurationError):
            self.forget_written(name)  # some steps are done and some are not
            raise
        if whole:
            self._fed_ns[name] = now
        self.counters["writes"] += 1
        for setting_id in readbacks(model):
            setting = self.template.setting(setting_id)
            wanted = self._holding[setting_id][0] if setting_id in self._holding else value
            got = await self._read_setting(setting)
            if not abs(got - wanted) <= max(self._step_of(setting), abs(wanted) * _READBACK_SHARE):
                self.forget_written(name)
                self.counters["readback_differs"] += 1
                return Failed(
                    reason=f"{setting_id} was written as {wanted:g} and reads back as {got:g}", retryable=True
                )
        return Applied(value=value)

    def _hold_ns(self, model: ControlModel) -> float:
        """For how long an unchanged value needs no writing."""
        if model.watchdog is not None:
            return model.watchdog.seconds * _FRESH_SHARE * NS_PER_S
        return math.inf if model.storage == "flash" else _HOLD_S * NS_PER_S

    def limits_of(self, name: str) -> tuple[float, float]:
        """Range of a control, in its unit: the template's, else the rated power both ways."""
        model = self.template.controls[name]
        rated = self.asset.rated_power_w
        low = model.minimum if model.minimum is not None else -rated if rated is not None else -math.inf
        high = model.maximum if model.maximum is not None else rated if rated is not None else math.inf
        return low, high

    def forget_written(self, name: str) -> None:
        """The next :meth:`control` writes even an unchanged value: what the device holds is not what we wrote."""
        for step in self.template.controls[name].steps:
            self._holding.pop(step.setting, None)

    async def apply_safe_state(self) -> list[Outcome]:
        """See :class:`Driver`."""
        return [await self.control(name, value, urgent=True) for name, value in self.template.safe_state.items()]

    async def release(self) -> list[Outcome]:
        """See :class:`Driver`."""
        outcomes: list[Outcome] = []
        for name, model in self.template.controls.items():
            if not model.release or self.state is not DriverState.READY:
                continue
            writes = [(self.template.setting(step.setting), step.of(0.0)) for step in model.release]
            try:
                for setting, number in writes:
                    await self._write(setting, number)
                outcomes.append(Applied(value=0.0))
            except (UnavailableError, ConfigurationError) as error:
                outcomes.append(Failed(reason=str(error), retryable=False))
            self.forget_written(name)
            self._fed_ns.pop(name, None)
        return outcomes

    async def close(self) -> None:
        """See :class:`Driver`."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
        await self._shut()
        self.state = DriverState.DISCONNECTED


_POINTS: dict[int, tuple[Template, tuple[Point, ...]]] = {}
"""By the template's identity, which is kept with them: many devices share one template."""


def points_of(template: Template) -> tuple[Point, ...]:
    """What a device of a template measures."""
    found = _POINTS.get(id(template))
    if found is None:
        found = _POINTS[id(template)] = (template, tuple(_point(model) for model in template.points))
    return found[1]


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
