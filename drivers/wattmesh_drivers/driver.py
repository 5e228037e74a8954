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

from wattmesh_drivers.kinds import plausible, quantity_and_unit
from wattmesh_drivers.template import ControlModel, PointModel, SignedValue, StepModel, Template, readbacks

log = logging.getLogger(__name__)

_BACKOFF_FIRST_S, _BACKOFF_LAST_S = 0.5, 10.0
_SLACK = 0.02
"""Of a point's range: so far beyond it a value is still taken."""
_TIMES_RATED = 5.0
"""A power of more than so many times the rating is none; the rating may be the battery's and the power the inverter's."""
_BUSY_PAUSE_S = 0.1
_FIRST_ATTEMPT_SHOWN_S, _ATTEMPT_SHOWN_S = 0.4, 0.15
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
        self._flash_began_ns = clock.monotonic_ns()
        self._standing: dict[str, float] = {}
        """Control → the value that was carried out last."""
        self._flash_writes = flash_writes if flash_writes is not None else {}
        self._said = False
        self._lately_lost = False
        self._attempts = 0
        """To reach the device since it was lost."""
        self._controlling = asyncio.Lock()
        self._broken_off: set[str] = set()
        """Controls of which some steps were sent and some were not: no pace and no budget keeps them from being made whole."""
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
        self._lived: dict[int, float] = {}
        self._lived_ns = 0
        self._stood_polls = 0

    @property
    def log_level(self) -> int:
        """Of what the device does that people should know."""
        return logging.DEBUG if self.quiet else logging.WARNING

    def believed(self, point: PointModel) -> tuple[float, float]:
        """Least and largest value of a point that is no sentinel and no garbage; any other is bad."""
        low, high = plausible(point.id)
        rated = self.asset.rated_power_w
        if point.id == "active_power_w" and rated is not None:
            low, high = -_TIMES_RATED * rated, _TIMES_RATED * rated
        if point.minimum is not None and point.maximum is not None:  # 100.4 % is a full battery; 655.35 % is none
            slack = _SLACK * (point.maximum - point.minimum)
            return point.minimum - slack, point.maximum + slack
        return (
            point.minimum if point.minimum is not None else low,
            point.maximum if point.maximum is not None else high,
        )

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
        except BaseException:  # also when nobody waits for it any more: a device that serves one client is let go
            await self._shut()
            raise
        self.state = DriverState.READY
        self._holding.clear()  # the device may have been restarted: what it holds is not known
        self._fed_ns.clear()

    async def poll(self) -> bool:
        """See :class:`Driver`."""
        try:
            if self.state is not DriverState.READY or self._lately_lost:
                if not await self._reached():
                    return False
            else:
                await self._read_patiently()
        except BusyError as error:
            self._bad(error)
            return False
        except (UnavailableError, ConfigurationError) as error:
            await self._lost(error)
            return False
        self._lately_lost = False
        self._backoff_s = _BACKOFF_FIRST_S
        self._retry_at = -math.inf
        for target, terms in self._sums:
            self._add_up(target, terms)
        if self._living and self._stands_still():
            return False
        self.counters["polls"] += 1
        if self._said:
            self._said = False
            log.log(self.log_level, "%s answers again", self.asset.id)
        return True

    async def _read_patiently(self) -> None:
        """Read; a device that asks for time is asked once more, as some do so now and then."""
        try:
            await self._read()
        except BusyError:
            self.counters["busy"] += 1
            await asyncio.sleep(_BUSY_PAUSE_S)
            await self._read()

    async def _reach(self) -> None:
        """Connect and read: a device that answers a knock and nothing else is not there."""
        if self.state is not DriverState.READY:
            await self.connect()
        await self._read_patiently()

    async def _reached(self) -> bool:
        """Try to reach the device, off to the side: a dead one never holds up those who poll with it."""
        if self._attempt is not None and self._attempt.done():
            attempt, self._attempt = self._attempt, None
            try:
                attempt.result()
            except (UnavailableError, ConfigurationError) as error:
                await self._lost(error)  # it failed since the last poll: try anew in this one
            else:
                await self._read_patiently()  # what it read is of then
                return True
        if self._attempt is not None or self._monotonic() < self._retry_at:
            return False
        attempt = self._attempt = asyncio.get_running_loop().create_task(self._reach(), name=f"reach {self.asset.id}")
        # The first one is worth a moment, as most losses are of one answer; those after it go on behind everybody's back.
        shown_s = _ATTEMPT_SHOWN_S if self._attempts else _FIRST_ATTEMPT_SHOWN_S
        await asyncio.wait({attempt}, timeout=0.0 if self._pause_at_most_s() else shown_s)
        self._attempts += 1
        if not attempt.done():
            return False
        self._attempt = None
        attempt.result()
        return True

    async def _lost(self, error: Exception) -> None:
        if not self._lately_lost:
            self._attempts = 0
        self._lately_lost = True
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
        lived = {index: self.values[index] for index in self._living if self.qualities[index] != Quality.BAD}
        known = lived.keys() & self._lived.keys()  # a point that the device does not have tells nothing
        if not known or any(lived[index] != self._lived[index] for index in known):
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
        async with self._controlling:  # the steps of two controls never mix
            return await self._control_within(name, model, value, urgent=urgent)

    async def _control_within(self, name: str, model: ControlModel, value: float, *, urgent: bool) -> Outcome:
        """Carry out a value that is inside the control's limits."""
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
        if not urgent and name not in self._broken_off and value != self.template.safe_state.get(name):
            refused = self._too_often(name, model, value)
            if refused is not None:
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
                due.append((step, number))
        return [(self.template.setting(step.setting), number) for step, number in self._in_safe_order(due)]

    def _in_safe_order(self, due: list[tuple[StepModel, float]]) -> list[tuple[StepModel, float]]:
        """Where one register has the magnitude and another the direction: no state in between is stronger than both ends.

        A smaller magnitude goes before the new direction, a larger one after it, and where it is not known what the device
        holds, 0 goes before both: a write that is lost in the middle then leaves the weaker power.
        """
        size = next((one for one in due if one[0].value == "magnitude"), None)
        turns = [one for one in due if isinstance(one[0].value, SignedValue)]
        if size is None or not turns:
            return due
        held = self._holding.get(size[0].setting, (math.nan, 0))[0]
        rest = [one for one in due if one is not size and one not in turns]
        if size[1] <= held:
            return [size, *rest, *turns]
        return [*([(size[0], 0.0)] if math.isnan(held) else []), *rest, *turns, size]

    def _too_often(self, name: str, model: ControlModel, value: float) -> Rejected | None:
        """What the template's pace and its budget of flash writes say against a write now.

        Nothing holds back the safe state's value. Less power, or a lower limit, than what stands may go over the budget, up
        to as many writes again: a battery must not go on with a power that somebody wants less of.
        """
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
        gone = min(1.0, max(0.0, self._clock.utc_ns() / (86_400 * NS_PER_S) - day))
        allowed = math.ceil(model.writes_per_day * (_FLASH_AT_ONCE + (1 - _FLASH_AT_ONCE) * gone))
        standing = self._standing.get(name, self.template.safe_state.get(name, 0.0))
        if abs(value) < abs(standing) and value * standing >= 0:
            allowed = 2 * model.writes_per_day
        if used >= allowed:
            return Rejected(
                reason=f"{name} of {self.asset.id} is kept in flash: of its {model.writes_per_day} writes a day (UTC), "
                f"which are spread over it, {used} are used up"
            )
        return None

    def _flash_day(self, name: str) -> tuple[int, int]:
        """Today (UTC, days since 1970) and the writes of it.

        A clock that has not been set yet, or was set back, opens no new budget: the later day goes on, until a day of
        running has passed.
        """
        day = self._clock.utc_ns() // (86_400 * NS_PER_S)
        kept, used = self._flash_writes.get(name, (day, 0))
        now_ns = self._clock.monotonic_ns()
        if day > kept or (day < kept and now_ns - self._flash_began_ns >= 86_400 * NS_PER_S):
            self._flash_began_ns = now_ns
            return day, 0
        return max(day, kept), used

    async def _carry_out(
        self, name: str, model: ControlModel, value: float, writes: Sequence[tuple[PointModel, float]]
    ) -> Outcome:
        now = self._clock.monotonic_ns()
        whole = {setting.id for setting, _ in writes} >= {step.setting for step in model.steps}
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
            self._broken_off.add(name)
            raise
        if whole:
            self._fed_ns[name] = now
        self._broken_off.discard(name)
        self._paced_ns[name] = now  # of what was taken: what broke off is made good at once
        self._standing[name] = value
        self.counters["writes"] += 1
        for setting_id in readbacks(model):
            setting = self.template.setting(setting_id)
            wanted = self._holding[setting_id][0] if setting_id in self._holding else value
            got = await self._read_setting(setting)
            if not abs(got - wanted) <= self._tolerance(model, setting, wanted):
                self.forget_written(name)
                self.counters["readback_differs"] += 1
                return Failed(
                    reason=f"{setting_id} was written as {wanted:g} and reads back as {got:g}", retryable=True
                )
        return Applied(value=value)

    def _tolerance(self, model: ControlModel, setting: PointModel, wanted: float) -> float:
        """What a setting may read back as and still be what was written: a power may be rounded, a mode may not."""
        step = self._step_of(setting)
        if any(isinstance(one.value, str) for one in model.steps if one.setting == setting.id):
            return max(step, abs(wanted) * _READBACK_SHARE)
        return step / 2

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
        self._fed_ns.pop(name, None)

    async def apply_safe_state(self) -> list[Outcome]:
        """See :class:`Driver`."""
        outcomes: list[Outcome] = []
        if self.template.safe_state and self.state is not DriverState.READY:
            try:
                await self.connect()
            except (UnavailableError, ConfigurationError) as error:
                return [Failed(reason=str(error), retryable=True)]
        for name, value in self.template.safe_state.items():
            self.forget_written(name)  # somebody else may have written in between: the reflex, or a person
            outcomes.append(await self.control(name, value, urgent=True))
        return outcomes

    async def release(self) -> list[Outcome]:
        """See :class:`Driver`."""
        outcomes: list[Outcome] = []
        for name, model in self.template.controls.items():
            if not model.release or self.state is not DriverState.READY:
                continue
            writes = [(self.template.setting(step.setting), step.of(0.0)) for step in model.release]
            if model.storage == "flash":
                day, used = self._flash_day(name)
                self._flash_writes[name] = (day, used + 1)
            try:
                async with self._controlling:
                    for setting, number in writes:
                        await self._write(setting, number)
                outcomes.append(Applied(value=0.0))
            except (UnavailableError, ConfigurationError) as error:
                outcomes.append(Failed(reason=str(error), retryable=False))
            self.forget_written(name)
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
