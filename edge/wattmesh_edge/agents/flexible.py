"""Loads that can wait: an electric car that has to be full by its departure, a boiler, a pump.

A load has a window and an energy that it needs in it. It runs on surplus whenever there is some, else in the cheapest quarter
hours of what is left of the window, and without a pause once there is no time to spare: the need is met whatever happens to
prices, forecasts or the cloud. How fast it gets its energy is what the connection has left for it and what it was seen to take,
not what its plate says: a car that charges on one phase, or beside a kitchen at work, begins earlier.

Electric cars (IEC 61851-1): below the least current of 6 A a car does not charge at all, so the surplus has to be there for a
while before it begins, and it goes on at the least current for a while when a cloud comes. A car that takes nothing of what it is
offered (not plugged in, or full) is offered the least current alone, so that the room on the connection is not kept for nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.control import Priority, Proposal
from wattmesh_a2a.messages import FlexibleNeed
from wattmesh_a2a.tariff import Tariff, local_time, slot_start_ns

from wattmesh_edge.agents.base import SLOT_NS, SLOT_S
from wattmesh_edge.image import SiteImage

_LEASE_PERIODS = 4
_LONGEST_GAP_NS = 60 * NS_PER_S
SURPLUS_BEGINS_S, SURPLUS_ENDS_S = 60.0, 180.0
"""A load with a least power begins after so long with enough surplus, and ends after so long without."""
_OFFERED_S = 180.0
"""After so long without taking anything of what it is offered a load is offered its least power alone."""
_TAKES_W = 100.0
_ROOM_S, _DRAWN_S, _FORGET_S = 900.0, 300.0, 7 * 86_400.0
"""Time constants of what the connection leaves, of what the load was seen to take, and of forgetting that."""
_URGENT = "no time to spare"
_KEEP_WH = 250.0
"""Energy after which what was taken is kept on disk again: what a restart may forget, at the cost of flash writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a load needs in each window."""

    device: str
    energy_wh: float
    power_w: float
    """At which it runs."""
    begins: time
    """Local time of day; a window that ends before it begins goes over midnight, one that ends when it begins is all the time
    from one end to the next."""
    ends: time
    least_w: float = 0.0
    """It runs at this power or not at all; 0: at any."""
    days: frozenset[int] = frozenset(range(7))
    """Days on which a window ends, Monday is 0."""


@dataclass(slots=True)
class _Course:
    """How a load has done of late."""

    drawn_w: float
    """What it takes when it is asked for everything."""
    room_w: float
    """What the connection leaves for it."""
    asked_w: float = 0.0
    idle_s: float = 0.0
    """For so long it has taken nothing of what it was offered."""
    surplus_s: float = 0.0
    """For so long there is enough surplus; below 0: for so long there is not."""
    on_surplus: bool = False
    surplus_w: float = 0.0
    """What the site would export without it."""
    ranked: tuple[int, int, int] = (0, 0, 0)
    """Running slot and end of the window, and how many slots between them cost less."""
    window: tuple[int, int] | None = None


class FlexibleAgent:
    """Proposes the power of loads that can wait.

    Args:
        needs: One a load.
        tariff: Prices of the coming slots.
        zone: Of the windows' times.
        period_s: Of the control cycle.
        taken: What each load has already taken in the running window (start of the window in UTC ns, Wh), after a restart.
        planned: Power of a load by the plan that was sent for the site; none where no plan says anything.
        import_limit_w: What the connection carries, or the owner's peak limit where that is less.
    """

    name = "flexible"

    def __init__(
        self,
        needs: tuple[Need, ...],
        tariff: Tariff,
        zone: ZoneInfo,
        *,
        period_s: float,
        taken: dict[str, tuple[int, float]] | None = None,
        planned: Callable[[str, int], float | None] = lambda device, utc_ns: None,
        import_limit_w: float = math.inf,
    ) -> None:
        self._needs = needs
        self._tariff = tariff
        self._zone = zone
        self._planned = planned
        self._lease_ns = round(_LEASE_PERIODS * period_s * NS_PER_S)
        self._limit_w = import_limit_w
        self.taken = taken if taken is not None else {}
        self._kept = dict(self.taken)
        self._courses = {need.device: _Course(drawn_w=need.power_w, room_w=need.power_w) for need in needs}
        self._last_ns = 0

    def needs(self) -> tuple[FlexibleNeed, ...]:
        """What the cloud's planner has to know."""
        return tuple(
            FlexibleNeed(
                device=need.device,
                energy_wh=need.energy_wh,
                power_w=need.power_w,
                begins=f"{need.begins:%H:%M}",
                ends=f"{need.ends:%H:%M}",
                days=tuple(sorted(need.days)),
            )
            for need in self._needs
        )

    def waits_w(self, start_ns: int, end_ns: int, now_ns: int) -> float:
        """Mean power in a time to come of loads that would run in it, and would still have what they need in time without it."""
        total = 0.0
        for need in self._needs:
            window = self.window(need, start_ns)
            if window is None:
                continue
            begun, wh = self.taken.get(need.device, (0, 0.0))
            left_wh = need.energy_wh - (wh if begun == window[0] else 0.0)
            slots = range(slot_start_ns(max(now_ns, window[0]), SLOT_S), window[1], SLOT_NS)
            cheapest = sorted(slots, key=lambda slot: (self._tariff.import_price_ticks(slot), slot))
            running = cheapest[: max(0, math.ceil(left_wh / need.power_w * 3600 / SLOT_S))]
            hit = sum(start_ns <= slot < end_ns for slot in running) * SLOT_NS
            spare_h = (window[1] - end_ns) / 3.6e12 - 2 * SLOT_S / 3600
            if hit and left_wh / need.power_w <= spare_h:
                total += need.power_w * hit / (end_ns - start_ns)
        return total

    def to_keep(self) -> bool:
        """Whether enough was taken since this was last true that it is worth a write."""
        moved = [
            device
            for device, (window, wh) in self.taken.items()
            if (kept := self._kept.get(device)) is None or kept[0] != window or wh - kept[1] >= _KEEP_WH
        ]
        if moved:
            self._kept = dict(self.taken)
        return bool(moved)

    def propose(self, image: SiteImage, _traded_wh: float) -> list[Proposal]:
        """Each load's power now; 0 where it waits, so that a load that is not asked for stands still."""
        passed_ns = image.monotonic_ns - self._last_ns if self._last_ns else 0
        self._last_ns = image.monotonic_ns
        passed_s = min(passed_ns, _LONGEST_GAP_NS) / NS_PER_S
        proposals = []
        for need in self._needs:
            power = image.loads.get(need.device)
            if power is None:
                continue  # nobody knows what it does: its own watchdog and the safe state have it
            course = self._courses[need.device]
            self._observe(need, course, power, image, passed_s)
            target, why, rank = 0.0, "waits", Priority.PLAN
            window = course.window
            if window is None or not window[0] <= image.time_ns < window[1]:
                window = course.window = self.window(need, image.time_ns)
            if window is not None:
                begun, wh = self.taken.get(need.device, (0, 0.0))
                wh = wh if begun == window[0] else 0.0
                wh += max(0.0, power) * passed_s / 3600
                self.taken[need.device] = window[0], wh
                target, why = self._power(need, course, need.energy_wh - wh, window[1], image.time_ns)
                if why == _URGENT:
                    rank = Priority.MANUAL_OVERRIDE  # the owner's word, above market and plan
                if target > need.least_w and course.idle_s >= _OFFERED_S:
                    target, why = need.least_w, "is offered its least power: it takes nothing"
            course.asked_w = target
            proposals.append(
                Proposal(
                    asset_id=need.device,
                    priority=rank,
                    source=f"flexible:{why}",
                    expires_ns=image.monotonic_ns + self._lease_ns,
                    target_w=target,
                )
            )
        return proposals

    def window(self, need: Need, utc_ns: int) -> tuple[int, int] | None:
        """Start and end (UTC ns) of the window that is open; none between two windows. Local days: also where clocks change."""
        today = local_time(utc_ns, self._zone).date()
        if need.begins == need.ends:
            around = [today + timedelta(days=offset) for offset in range(-8, 9)]
            moments = [self._moment(day, need.ends) for day in around if day.weekday() in need.days]
            return max(one for one in moments if one <= utc_ns), min(one for one in moments if one > utc_ns)
        for day in (today, today - timedelta(days=1)):
            last = day if need.begins < need.ends else day + timedelta(days=1)
            begins, ends = self._moment(day, need.begins), self._moment(last, need.ends)
            if begins <= utc_ns < ends and last.weekday() in need.days:
                return begins, ends
        return None

    def _moment(self, day: date, at: time) -> int:
        return round(datetime.combine(day, at, tzinfo=self._zone).timestamp()) * NS_PER_S

    def _observe(self, need: Need, course: _Course, power_w: float, image: SiteImage, passed_s: float) -> None:
        """What the load takes, what the connection leaves for it, and whether there is surplus."""
        takes = power_w > _TAKES_W
        offered = course.asked_w >= max(_TAKES_W, need.least_w)
        course.idle_s = course.idle_s + passed_s if offered and not takes else 0.0
        if takes and course.asked_w >= need.power_w:
            course.drawn_w = _towards(course.drawn_w, power_w, passed_s, _DRAWN_S)
        elif not takes:
            course.drawn_w = _towards(course.drawn_w, need.power_w, passed_s, _FORGET_S)
        grid = image.grid_power_w
        if grid is None:
            course.on_surplus, course.surplus_s = False, 0.0
            return
        room = min(max(self._limit_w - (grid.value - power_w), 0.0), need.power_w)
        course.room_w = _towards(course.room_w, room, passed_s, _ROOM_S)
        surplus = power_w - grid.value
        if need.least_w <= 0:
            course.on_surplus = surplus > 0
        else:
            enough = surplus >= need.least_w
            course.surplus_s = (
                max(course.surplus_s, 0.0) + passed_s if enough else min(course.surplus_s, 0.0) - passed_s
            )
            if course.on_surplus:
                course.on_surplus = course.surplus_s > -SURPLUS_ENDS_S
            else:
                course.on_surplus = course.surplus_s >= SURPLUS_BEGINS_S
        course.surplus_w = surplus

    def _cheaper(self, course: _Course, now_ns: int, ends_ns: int) -> int:
        """How many of the window's coming slots cost less than the running one; looked up once a slot."""
        here = slot_start_ns(now_ns, SLOT_S)
        if course.ranked[:2] != (here, ends_ns):
            price = self._tariff.import_price_ticks(here)
            later = range(here + SLOT_NS, ends_ns, SLOT_NS)
            cheaper = sum(self._tariff.import_price_ticks(slot) < price for slot in later)
            course.ranked = here, ends_ns, cheaper
        return course.ranked[2]

    def _power(self, need: Need, course: _Course, left_wh: float, ends_ns: int, now_ns: int) -> tuple[float, str]:
        if left_wh <= 0:
            return 0.0, "has what it needs"
        left_h = (ends_ns - now_ns) / 3.6e12
        able_w = max(min(need.power_w, course.room_w, course.drawn_w), need.least_w, 0.05 * need.power_w)
        needed_h = left_wh / able_w
        if needed_h >= left_h - SLOT_S / 3600:
            return need.power_w, _URGENT
        planned = self._planned(need.device, now_ns)
        if planned is not None and planned >= max(need.least_w, 1.0):
            return min(need.power_w, planned), "site plan"
        slots_needed = math.ceil(needed_h * 3600 / SLOT_S)
        if planned is None and self._cheaper(course, now_ns, ends_ns) < slots_needed:
            return need.power_w, "cheapest time"
        if course.on_surplus:
            return min(need.power_w, max(course.surplus_w, need.least_w)), "surplus"
        return 0.0, "waits for a cheaper time"


def _towards(value: float, goal: float, passed_s: float, time_constant_s: float) -> float:
    """An exponential mean, one step on."""
    return value + (goal - value) * -math.expm1(-passed_s / time_constant_s)
