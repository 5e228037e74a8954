"""The control cycle: read, freeze, ask, decide, write, record. It waits for nothing outside the site."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.control import Applied, Clamped, Decision, Failed, Priority, Proposal, Rejected
from wattmesh_drivers.driver import BaseDriver, Driver, DriverState

from wattmesh_edge.arbiter import arbitrate, device_range, production_limit
from wattmesh_edge.image import ImageMaker, SiteImage
from wattmesh_edge.limits import BatteryLimits, SiteLimits

log = logging.getLogger(__name__)

CONTROL = "active_power_w"
CURTAIL = "production_limit_percent"
RESPONSE = "frequency-response"
_POLL_SHARE = 0.8
"""Of a period: so long a cycle waits for polls at most."""
_LONGEST_STEP = 2
"""Periods that a ramp may make up for after a cycle was missed."""


class Agent(Protocol):
    """What the cycle asks of an agent."""

    name: str

    def propose(self, image: SiteImage, traded_wh: float) -> list[Proposal]:
        """What it wants now; must not block."""
        ...


class FastResponse(Protocol):
    """What the cycle needs of the reflex."""

    def responding(self) -> float | None:
        """Power it holds the battery at now, or none when it is quiet."""
        ...

    def publish(
        self, baseline_w: float, min_w: float, max_w: float, *, safe_w: float, out_wh: float, in_wh: float
    ) -> None:
        """The setpoint to respond around, the limits to respond in, where to go without knowledge, and the energy there is."""
        ...

    def written_by_others(self) -> None:
        """Another value than the one it holds was written."""
        ...


T = TypeVar("T")
WhatIf = Callable[
    [SiteImage | None, Sequence[Proposal], Mapping[str, BatteryLimits], SiteLimits, Mapping[str, float]], T
]
Record = Callable[[SiteImage, Sequence[Decision], Mapping[str, str]], None]


class ControlCycle:
    """One site's control.

    Args:
        drivers: By device.
        maker: Freezes what they read.
        agents: Asked in this order.
        batteries: Limits by device.
        site: Limits of the connection.
        clock: Of the cycle.
        period_s: Of the cycle.
        record: Called at the end of each cycle.
        traded_wh: Grid energy of the running slot so far.
        reflex: Frequency response by battery.
        response_limits: Limits of the response by battery, where they are wider than those of everybody else: the energy that
            is kept for it is its own to use.
        real_ns: Real time, for the figures alone.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        maker: ImageMaker,
        agents: Sequence[Agent],
        batteries: Mapping[str, BatteryLimits],
        site: SiteLimits,
        clock: Clock,
        *,
        period_s: float,
        record: Record,
        traded_wh: Callable[[], float],
        reflex: Mapping[str, FastResponse] | None = None,
        response_limits: Mapping[str, BatteryLimits] | None = None,
        real_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._drivers = drivers
        self._polls: dict[str, asyncio.Task[bool]] = {}
        """Polls that are under way; a slow one over several cycles."""
        self._maker = maker
        self._agents = agents
        self._batteries = batteries
        self._site = site
        self._clock = clock
        self._real_ns = real_ns
        self._period_ns = round(period_s * NS_PER_S)
        self._record = record
        self._traded_wh = traded_wh
        self._reflex = {} if reflex is None else reflex  # filled later by its owner: the very same mapping
        self._response_limits = response_limits or {}
        self._baseline: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._responding: set[str] = set()
        self._held_percent = 100.0
        self._let_go_again = False
        """An inverter has not taken that it may produce freely."""
        self._last_ns: int | None = None
        self._unsafe = {name for name, driver in drivers.items() if driver.state is not DriverState.READY}
        """Devices that were never seen since the start: whatever setpoint they resumed is ended before they are used."""
        self._task: asyncio.Task[object] | None = None
        self._resting = self._stopping = False
        self._failing: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.overrun_max_ns = 0
        """Longest time by which a cycle began late or ran over its period, on the cycle's clock."""
        self.cycle_max_ns = 0
        """Longest cycle in real time."""
        self.cycle_ns = 0
        """Last cycle in real time."""
        self._proposals: Sequence[Proposal] = ()
        """Of the last cycle."""
        self.image: SiteImage | None = None
        self.decisions: Sequence[Decision] = ()
        """Of the last cycle."""
        self.outcomes: Mapping[str, str] = {}
        """What came of them, by asset."""

    @property
    def curtailed(self) -> bool:
        """Whether production is limited now."""
        return self._held_percent < 100

    def was_made_safe(self, device: str) -> None:
        """A device was given its safe state before the first cycle."""
        self._unsafe.discard(device)

    def stop(self) -> None:
        """End :meth:`run` after the cycle that is under way, or at once between two cycles."""
        self._stopping = True
        if self._resting and self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Cycle until :meth:`stop`, on multiples of the period; a cycle that was missed is not made up for."""
        self._task = asyncio.current_task()
        try:
            await self._cycles()
        finally:
            for task in self._polls.values():
                task.cancel()
            await asyncio.gather(*self._polls.values(), return_exceptions=True)
            self._polls.clear()

    async def _cycles(self) -> None:
        with self._clock.runner():
            while not self._stopping:
                now = self._clock.monotonic_ns()
                due = now - now % self._period_ns + self._period_ns
                if not await self._rested(due):
                    return
                began = self._real_ns()
                late = self._clock.monotonic_ns() - due
                await self.cycle()
                self.cycle_ns = self._real_ns() - began
                self.cycle_max_ns = max(self.cycle_max_ns, self.cycle_ns)
                over = self._clock.monotonic_ns() - due - self._period_ns
                self.overrun_max_ns = max(self.overrun_max_ns, late, over)

    async def _rested(self, due_ns: int) -> bool:
        """Wait for the next cycle; false when there shall be none."""
        self._resting = True
        try:
            await self._clock.sleep_until_ns(due_ns)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            if self._task is not None:
                self._task.uncancel()
        finally:
            self._resting = False
        return not self._stopping

    async def cycle(self) -> None:
        """One cycle."""
        await self._poll()
        image = self.image = self._maker.make(self._clock.utc_ns(), self._clock.monotonic_ns())
        proposals = self._proposals = self._ask(image)
        decisions = self._decide(image, proposals)
        self._baseline = {one.asset_id: one.target_w for one in decisions if one.target_w is not None}
        if responses := self._responses(image):
            decisions = self._decide(image, [*proposals, *responses])
        self._last_ns = image.monotonic_ns
        outcomes = await asyncio.gather(*(self._apply_safely(decision, image) for decision in decisions))
        names = {decision.asset_id: outcome for decision, outcome in zip(decisions, outcomes, strict=True)}
        for decision, outcome in await self._curtail(image):
            decisions.append(decision)
            names[decision.asset_id] = outcome
        self.counts["cycles"] += 1
        self.decisions, self.outcomes = decisions, names
        self._record(image, decisions, names)

    def _decide(self, image: SiteImage, proposals: Sequence[Proposal]) -> list[Decision]:
        since_ns = self._period_ns if self._last_ns is None else image.monotonic_ns - self._last_ns
        elapsed_s = min(since_ns, _LONGEST_STEP * self._period_ns) / NS_PER_S
        return arbitrate(image, proposals, self._batteries, self._site, held=self._held, elapsed_s=elapsed_s)

    def tried(self, what_if: WhatIf[T], *, without: str = "") -> T:
        """The result of a question about the last cycle's decision, with what it was decided from; nothing is written by it.

        Args:
            what_if: Gets the image, the proposals, the limits of the assets and the connection, and what is held.
            without: Source of proposals that are left out.
        """
        proposals = [one for one in self._proposals if one.source != without]
        return what_if(self.image, proposals, self._batteries, self._site, self._held)

    async def _poll(self) -> None:
        """Read every device. One whose driver fails in a way nobody thought of goes stale, and the others go on."""
        for name, driver in self._drivers.items():
            if name not in self._polls:
                self._polls[name] = asyncio.get_running_loop().create_task(driver.poll(), name=f"poll {name}")
        # A device that is slow within its own time-out does not make everybody else's values old: it goes on by itself, and
        # its own values age.
        await asyncio.wait(self._polls.values(), timeout=_POLL_SHARE * self._period_ns / NS_PER_S)
        for name, task in list(self._polls.items()):
            if not task.done():
                self.counts["slow_polls"] += 1
                continue
            del self._polls[name]
            if task.cancelled():
                continue
            if (error := task.exception()) is None:
                if name in self._unsafe and task.result():
                    await self._make_safe(name)
                continue
            self.counts["driver_failures"] += 1
            if name not in self._failing:
                self._failing.add(name)
                log.error("the driver of %s failed; the site goes on without it", name, exc_info=error)

    async def _make_safe(self, name: str) -> None:
        """A device that was away when the site started: whatever setpoint or limit it kept is ended before it is used."""
        self._unsafe.discard(name)
        try:
            for outcome in await self._drivers[name].apply_safe_state():
                log.info("%s came late: safe state: %s", name, outcome)
                if isinstance(outcome, Failed) and outcome.retryable:
                    self._unsafe.add(name)  # with its next answer
        except Exception:
            self.counts["driver_failures"] += 1
            log.exception("%s could not be put into its safe state", name)

    async def _apply_safely(self, decision: Decision, image: SiteImage) -> str:
        """One device whose driver fails in a way nobody thought of does not end control of the others."""
        try:
            return await self._apply(decision, image)
        except Exception:
            self.counts["driver_failures"] += 1
            if decision.asset_id not in self._failing:
                self._failing.add(decision.asset_id)
                log.exception("%s could not be controlled; the site goes on without it", decision.asset_id)
            return Failed.__name__

    def _ask(self, image: SiteImage) -> list[Proposal]:
        """Proposals of all agents; one that fails is left out, said once, and asked again next time."""
        proposals: list[Proposal] = []
        for agent in self._agents:
            try:
                proposals += agent.propose(image, self._traded_wh())
                self._failing.discard(agent.name)
            except Exception:
                self.counts["agent_failures"] += 1
                if agent.name not in self._failing:
                    self._failing.add(agent.name)
                    log.exception("agent %s failed; the site goes on without it", agent.name)
        self.counts["proposals_expired"] += sum(one.expires_ns <= image.monotonic_ns for one in proposals)
        return proposals

    def _responses(self, image: SiteImage) -> list[Proposal]:
        """What the reflexes hold now, as proposals of their rank."""
        return [
            Proposal(
                asset_id=battery,
                priority=Priority.FREQUENCY_RESPONSE,
                source=RESPONSE,
                expires_ns=image.monotonic_ns + self._period_ns,
                target_w=power,
            )
            for battery, reflex in self._reflex.items()
            if (power := reflex.responding()) is not None
        ]

    def _publish(self, battery: str, baseline_w: float, image: SiteImage) -> None:
        """What the reflex of a battery may do from now on."""
        reflex = self._reflex.get(battery)
        if reflex is None:
            return
        limits = self._response_limits.get(battery, self._batteries[battery])
        low, high = device_range(image, battery, limits, self._site, self._held)
        state = image.batteries.get(battery)
        soc = state.soc_percent if state is not None else None
        per_percent = limits.rated_energy_wh / 100
        reflex.publish(
            baseline_w,
            min(low, baseline_w),
            max(high, baseline_w),
            safe_w=limits.safe_power_w,
            out_wh=0.0 if soc is None else max(0.0, soc - limits.min_soc_percent) * per_percent,
            in_wh=0.0 if soc is None else max(0.0, limits.max_soc_percent - soc) * per_percent,
        )

    async def _hold(self, battery: str, image: SiteImage) -> str:
        """The reflex holds the battery: tell it the new baseline, and write what it holds, so that the watchdog is fed."""
        self._responding.add(battery)
        reflex, driver = self._reflex[battery], self._drivers[battery]
        if (baseline := self._baseline.get(battery)) is not None:
            self._publish(battery, baseline, image)
        power = reflex.responding()
        if power is None:  # it has just gone quiet, and has written the baseline itself
            return "Applied"
        outcome = await driver.control(CONTROL, power)
        if reflex.responding() != power:  # it moved on meanwhile: what was written or read back is not what it holds
            reflex.written_by_others()
            return "Applied"
        return type(outcome).__name__

    async def _apply(self, decision: Decision, image: SiteImage) -> str:
        """Write one decision, unless the reflex holds the battery; what came of it."""
        battery, target = decision.asset_id, decision.target_w
        if target is None:
            return "none"
        if decision.decided_by == RESPONSE:
            return await self._hold(battery, image)
        driver = self._drivers[battery]
        if battery in self._responding:  # the reflex wrote in between: what the device holds is not what we wrote
            self._responding.discard(battery)
            self._held.pop(battery, None)
            if isinstance(driver, BaseDriver):
                driver.forget_written(CONTROL)
        writes = driver.counters["writes"]
        outcome = await driver.control(CONTROL, target)
        if driver.counters["writes"] != writes or not isinstance(outcome, Applied):
            self.counts["commands_sent"] += 1
            self.counts[f"commands_{type(outcome).__name__.lower()}"] += 1
        match outcome:
            case Applied(value=value) | Clamped(value=value):
                self._held[battery] = value
                self._publish(battery, value, image)
                if battery in self._reflex and self._reflex[battery].responding() is not None:
                    self._reflex[battery].written_by_others()  # it began while we wrote
            case Rejected(reason=reason) | Failed(reason=reason):
                self._held.pop(battery, None)
                if (reflex := self._reflex.get(battery)) is not None and reflex.responding() is not None:
                    reflex.written_by_others()  # it began between the write and its readback
                    return "Applied"
                if battery not in self._failing:
                    self._failing.add(battery)
                    log.warning("%s did not take %s W: %s", battery, target, reason)
                return type(outcome).__name__
        self._failing.discard(battery)
        return type(outcome).__name__

    def _steered_production(self, image: SiteImage, rated: Mapping[str, float]) -> tuple[SiteImage, SiteLimits, float]:
        """The site as the inverters that answer see it: what a silent one goes on to produce is the meter's matter, like a load."""
        known = {name: power for name in rated if (power := image.inverters.get(name)) is not None}
        if not known or len(known) == len(rated):
            return image, self._site, sum(rated.values())
        answering = sum(rated[name] for name in known)
        return replace(image, pv_power_w=sum(known.values())), self._site, answering

    async def _curtail(self, image: SiteImage) -> list[tuple[Decision, str]]:
        """Keep the export limit by curtailing PV when the batteries could not, and let go when there is room again."""
        inverters = {name: driver for name, driver in self._drivers.items() if CURTAIL in driver.template.controls}
        rated = {name: driver.asset.rated_power_w or 0.0 for name, driver in inverters.items()}
        if not sum(rated.values()):
            return []
        limit = production_limit(*self._steered_production(image, rated), self._held_percent)
        if limit is None and self._let_go_again:
            limit = (100.0, "export limit")
        if limit is None:
            return []
        self._held_percent = round(limit[0], 1)
        self._let_go_again = False
        done = []
        for name, driver in inverters.items():
            try:
                outcome = await driver.control(CURTAIL, self._held_percent)
            except Exception as error:
                self.counts["driver_failures"] += 1
                if name not in self._failing:
                    self._failing.add(name)
                    log.exception("%s could not be curtailed; the site goes on without it", name)
                outcome = Failed(reason=str(error), retryable=False)
            self._let_go_again |= self._held_percent >= 100 and not isinstance(outcome, Applied | Clamped)
            self.counts["commands_sent"] += 1
            self.counts[f"commands_{type(outcome).__name__.lower()}"] += 1
            target = -rated[name] * self._held_percent / 100
            decision = Decision(
                asset_id=name,
                time_ns=image.time_ns,
                target_w=target,
                decided_by=limit[1],
                limited_by=limit[1] if self._held_percent < 100 else None,
                requested_w=-rated[name],
                remaining_w=-rated[name] - target,
            )
            done.append((decision, type(outcome).__name__))
        return done
