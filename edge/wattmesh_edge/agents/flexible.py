"""Loads that can wait: an electric car that has to be full by the morning, a boiler, a pump.

A load has a window of the day and an energy that it needs in it. It runs on surplus whenever there is some, else in the cheapest
quarter hours of what is left of the window, and without a pause once there is no time to spare: the need is met whatever happens
to prices, forecasts or the cloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.control import Priority, Proposal
from wattmesh_a2a.messages import FlexibleNeed
from wattmesh_a2a.tariff import Tariff, local_time, slot_start_ns

from wattmesh_edge.agents.base import SLOT_NS, SLOT_S
from wattmesh_edge.image import SiteImage

_LEASE_PERIODS = 4
_LONGEST_GAP_NS = 60 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a load needs in each window."""

    device: str
    energy_wh: float
    power_w: float
    """At which it runs."""
    begins: time
    """Local time of day; a window that ends before it begins goes over midnight."""
    ends: time


class FlexibleAgent:
    """Proposes the power of loads that can wait.

    Args:
        needs: One a load.
        tariff: Prices of the coming slots.
        zone: Of the windows' times.
        period_s: Of the control cycle.
        taken: What each load has already taken in the running window (start of the window in UTC ns, Wh), after a restart.
        planned: Power of a load by the plan that was sent for the site; none where no plan says anything.
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
    ) -> None:
        self._needs = needs
        self._tariff = tariff
        self._zone = zone
        self._planned = planned
        self._lease_ns = round(_LEASE_PERIODS * period_s * NS_PER_S)
        self.taken = taken if taken is not None else {}
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
            )
            for need in self._needs
        )

    def propose(self, image: SiteImage, _traded_wh: float) -> list[Proposal]:
        """Each load's power now; 0 where it waits, so that a load that is not asked for stands still."""
        passed_ns = image.monotonic_ns - self._last_ns if self._last_ns else 0
        self._last_ns = image.monotonic_ns
        proposals = []
        for need in self._needs:
            power = image.loads.get(need.device)
            if power is None:
                continue  # nobody knows what it does: its own watchdog and the safe state have it
            window = self.window(need, image.time_ns)
            target, why = 0.0, "waits"
            if window is not None:
                begun, wh = self.taken.get(need.device, (0, 0.0))
                wh = wh if begun == window[0] else 0.0
                wh += max(0.0, power) * min(passed_ns, _LONGEST_GAP_NS) / 3.6e12
                self.taken[need.device] = window[0], wh
                target, why = self._power(need, need.energy_wh - wh, window[1], power, image)
            proposals.append(
                Proposal(
                    asset_id=need.device,
                    priority=Priority.PLAN,
                    source=f"flexible:{why}",
                    expires_ns=image.monotonic_ns + self._lease_ns,
                    target_w=target,
                )
            )
        return proposals

    def window(self, need: Need, utc_ns: int) -> tuple[int, int] | None:
        """Start and end (UTC ns) of the window that is open; none between two windows. Local days: also where clocks change."""
        today = local_time(utc_ns, self._zone).date()
        for day in (today, today - timedelta(days=1)):
            last = day if need.begins < need.ends else day + timedelta(days=1)
            begins = round(datetime.combine(day, need.begins, tzinfo=self._zone).timestamp()) * NS_PER_S
            ends = round(datetime.combine(last, need.ends, tzinfo=self._zone).timestamp()) * NS_PER_S
            if begins <= utc_ns < ends:
                return begins, ends
        return None

    def _power(self, need: Need, left_wh: float, ends_ns: int, power_w: float, image: SiteImage) -> tuple[float, str]:
        if left_wh <= 0:
            return 0.0, "has what it needs"
        left_h = (ends_ns - image.time_ns) / 3.6e12
        needed_h = left_wh / need.power_w
        if needed_h >= left_h - SLOT_S / 3600:
            return need.power_w, "no time to spare"
        grid = image.grid_power_w
        surplus = power_w - grid.value if grid is not None else 0.0
        planned = self._planned(need.device, image.time_ns)
        if planned is not None:
            wanted = max(planned, surplus)
            return (min(need.power_w, wanted), "site plan") if wanted > 0 else (0.0, "waits by the site plan")
        here = slot_start_ns(image.time_ns, SLOT_S)
        slots = range(here, ends_ns, SLOT_NS)
        cheapest = sorted(slots, key=lambda slot: (self._tariff.import_price_ticks(slot), slot))
        if here in cheapest[: math.ceil(needed_h * 3600 / SLOT_S)]:
            return need.power_w, "cheapest time"
        if surplus > 0:
            return min(need.power_w, surplus), "surplus"
        return 0.0, "waits for a cheaper time"
