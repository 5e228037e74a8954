"""The control cycle: read, freeze, ask, decide, write, record. It waits for nothing outside the site."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.control import Applied, Clamped, Decision, Failed, Priority, Proposal, Rejected
from wattmesh_drivers.driver import BaseDriver, Driver

from wattmesh_edge.arbiter import BatteryLimits, SiteLimits, arbitrate, device_range
from wattmesh_edge.image import ImageMaker, SiteImage

log = logging.getLogger(__name__)

CONTROL = "active_power_w"
CURTAIL = "production_limit_percent"
RESPONSE = "frequency-response"
_POLL_SHARE = 0.8
"""Of a period: so long a cycle waits for polls at most."""
_DEAD_BAND_W = 10.0
"""A setpoint that would move less is left as it is."""


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
        self._curtailed = False
        self._limit_percent = 100.0
        """Of the inverters' production, as it was asked for last."""
        self._failing: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.overrun_max_ns = 0
        """Longest time by which a cycle began late or ran over its period, on the cycle's clock."""
        self.cycle_max_ns = 0
        """Longest cycle in real time."""
        self.image: SiteImage | None = None

    async def run(self) -> None:
        """Cycle for ever, on multiples of the period; a cycle that was missed is not made up for."""
        try:
            await self._cycles()
        finally:
            for task in self._polls.values():
                task.cancel()
            await asyncio.gather(*self._polls.values(), return_exceptions=True)
            self._polls.clear()

    async def _cycles(self) -> None:
        with self._clock.runner():
            while True:
                now = self._clock.monotonic_ns()
                due = now - now % self._period_ns + self._period_ns
                await self._clock.sleep_until_ns(due)
                began = self._real_ns()
                late = self._clock.monotonic_ns() - due
                await self.cycle()
                self.cycle_max_ns = max(self.cycle_max_ns, self._real_ns() - began)
                over = self._clock.monotonic_ns() - due - self._period_ns
                self.overrun_max_ns = max(self.overrun_max_ns, late, over)

    async def cycle(self) -> None:
        """One cycle."""
        await self._poll()
        image = self.image = self._maker.make(self._clock.utc_ns(), self._clock.monotonic_ns())
        proposals = self._ask(image)
        decisions = arbitrate(image, proposals, self._batteries, self._site)
        self._baseline = {one.asset_id: one.target_w for one in decisions if one.target_w is not None}
        if responses := self._responses(image):
            decisions = arbitrate(image, [*proposals, *responses], self._batteries, self._site)
        outcomes = await asyncio.gather(*(self._apply_safely(decision, image) for decision in decisions))
        await self._curtail(image)
        names = {decision.asset_id: outcome for decision, outcome in zip(decisions, outcomes, strict=True)}
        self.counts["cycles"] += 1
        self._record(image, decisions, names)

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
            if task.cancelled() or (error := task.exception()) is None:
                continue
            self.counts["driver_failures"] += 1
            if name not in self._failing:
                self._failing.add(name)
                log.error("the driver of %s failed; the site goes on without it", name, exc_info=error)

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
        low, high = device_range(image, battery, limits, self._site)
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
        target = self._quiet(battery, round(target))
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

    def _quiet(self, battery: str, target: float) -> float:
        """The value that stands, where the new one is within the dead band; never across zero."""
        held = self._held.get(battery)
        if held is not None and abs(held - target) < _DEAD_BAND_W and (held == 0) == (target == 0):
            return held
        return target

    async def _curtail(self, image: SiteImage) -> None:
        """Keep the export limit by curtailing PV when the batteries could not, and let go when there is room again."""
        inverters = [driver for driver in self._drivers.values() if CURTAIL in driver.template.controls]
        grid, pv = image.grid_power_w, image.pv_power_w
        rated = sum(driver.asset.rated_power_w or 0.0 for driver in inverters)
        if not inverters or not rated:
            return
        if grid is None:  # what is not known is not let go: the limit that stands is fed
            percent = self._limit_percent
        else:
            over_w = -grid.value - self._site.export_limit_w
            # Of a PV that is not known, as one inverter does not answer, the limit that stands is the most it can be.
            produced_w = -pv if pv is not None else rated * self._limit_percent / 100
            # With room the limit rises by a tenth of the rating a cycle, with excess it falls by the excess at once.
            room = 10.0 if over_w < -0.05 * rated else 0.0
            percent = min(100.0, max(0.0, 100 * (produced_w - over_w) / rated + room))
            if over_w <= 0:
                percent = max(percent, min(100.0, self._limit_percent + room))
        if percent >= 100.0 and not self._curtailed:
            return
        percent = round(percent, 1)
        taken = True
        for driver in inverters:
            try:
                outcome = await driver.control(CURTAIL, percent)
            except Exception:
                self.counts["driver_failures"] += 1
                if driver.asset.id not in self._failing:
                    self._failing.add(driver.asset.id)
                    log.exception("%s could not be curtailed; the site goes on without it", driver.asset.id)
                taken = False
                continue
            taken &= isinstance(outcome, Applied | Clamped)
            self.counts["commands_sent"] += 1
            self.counts[f"commands_{type(outcome).__name__.lower()}"] += 1
        self._limit_percent = percent
        self._curtailed = percent < 100.0 or not taken  # a limit that an inverter has not let go of is let go again
