"""The planning agent: a plan for every site each few minutes, sent to its gateway with the time until which it holds.

A site that cannot be planned (no state of charge, no forecast, the solver failed) gets nothing: its gateway follows the last plan
until it expires, and its own value of storage after that. Why is logged once and stands in the snapshot until it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, Address
from wattmesh_a2a.errors import WattmeshError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import Acknowledged, IntervalEnergy, Message, Strategy
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.plans import PlannedLoad, SitePlan
from wattmesh_a2a.tariff import Tariff, local_time

from wattmesh_cloud.live import LiveView
from wattmesh_cloud.planning.config import PlanningConfig
from wattmesh_cloud.planning.inputs import SLOT_NS, SLOT_S, NotPlannableError, SiteState, battery_of, situation_of
from wattmesh_cloud.planning.model import SitePlanner
from wattmesh_cloud.planning.problem import Array, Plan
from wattmesh_cloud.store.base import JsonValue

log = logging.getLogger(__name__)

PLANNING_AGENT = "planning"
SENT_SLOTS = 96
"""Of a plan; a gateway never follows one for longer than half a day."""


class PlanningService:
    """See the module.

    Args:
        config: When, how far, and what is charged.
        messenger: Sends as ``ORG/cloud/planning``.
        clock: Of the plans.
        org: Of all addresses.
        tariff: Of the sites.
        live: Newest measured points.
        announcements: Site → its announcement.
        forecasts: Newest forecasts by site and quantity.
        reasons: Why a site's forecasts are wider than usual.
        commitments: Coming slots' market commitments of a site, Wh by start of slot.
        strategies: Newest strategy by site.
    """

    def __init__(
        self,
        config: PlanningConfig,
        messenger: Messenger,
        clock: Clock,
        org: str,
        *,
        tariff: Tariff,
        live: LiveView,
        announcements: Callable[[], Mapping[str, Mapping[str, Any]]],
        forecasts: Callable[[], Mapping[str, Mapping[str, Forecast]]],
        reasons: Callable[[str], tuple[str, ...]] = lambda site: (),
        commitments: Callable[[str, int], Mapping[int, int]] = lambda site, now_ns: {},
        strategies: Callable[[], Mapping[str, Strategy]] = dict,
    ) -> None:
        self._config = config
        self._messenger = messenger
        self._clock = clock
        self._tariff = tariff
        self._live = live
        self._announcements = announcements
        self._forecasts = forecasts
        self._reasons = reasons
        self._commitments = commitments
        self._strategies = strategies
        self._org = org
        self.address = Address(org, CLOUD_UNIT, PLANNING_AGENT)
        self._planners: dict[int, SitePlanner] = {}
        """By room for flexible loads."""
        self._highest: dict[str, tuple[int, float]] = {}
        """Month and its highest quarter hour, W, by site."""
        self._taken: dict[tuple[str, str], float] = defaultdict(float)
        self.latest: dict[str, Plan] = {}
        self.delivered: dict[str, SitePlan] = {}
        """The newest plan that each site's gateway has taken."""
        self.unplanned: dict[str, str] = {}
        """Why a site has no new plan."""
        self.issued = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def register(self) -> None:
        """Planning takes no requests."""

    def on_record(self, site: str, message: Message) -> None:
        """Keep the month's highest quarter hour, which a demand charge is made of."""
        if not isinstance(message, IntervalEnergy) or message.site_id != site or not message.complete:
            return
        local = local_time(message.slot_start_ns, self._tariff.zone())
        month, mean_w = local.year * 12 + local.month, message.import_wh * 3600 / message.slot_s
        known, highest = self._highest.get(site, (0, 0.0))
        if month >= known:
            self._highest[site] = month, max(mean_w, highest) if month == known else mean_w

    async def run(self) -> None:
        """Plan for ever, at every whole period of the clock."""
        every = self._config.every_s * NS_PER_S
        with self._clock.runner():
            while True:
                now = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(now - now % every + every)
                await self.plan_all()

    async def finish(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def plan_all(self) -> None:
        """A plan for every announced site outside the community's agreement; sent without waiting for answers."""
        now = self._clock.utc_ns()
        together = self._config.coordination
        for site, announcement in sorted(self._announcements().items()):
            if together is not None and site in together.members:
                continue
            try:
                state = self._state(site, announcement, now)
                plan = await asyncio.to_thread(self._plan, site, state, now)
            except NotPlannableError as reason:
                self._not_planned(site, str(reason))
                continue
            if self.unplanned.pop(site, None) is not None:
                log.info("%s is planned again", site)
            self.latest[site] = plan
            self.issued += 1
            message = site_plan(site, plan, now, self._config.valid_s, self._commitments(site, now))
            task = asyncio.get_running_loop().create_task(self._send(site, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _not_planned(self, site: str, reason: str) -> None:
        if site not in self.unplanned:
            log.warning("%s is not planned: %s; its gateway goes on by itself", site, reason)
        self.unplanned[site] = reason

    def _state(self, site: str, announcement: Mapping[str, Any], now_ns: int) -> SiteState:
        live = self._live.sites.get(site)
        strategy = self._strategies().get(site)
        month = local_time(now_ns, self._tariff.zone())
        known, highest = self._highest.get(site, (0, 0.0))
        grid_w = live.flows.get("grid_w") if live is not None else None
        return SiteState(
            announcement=announcement,
            soc_percent=live.flows.get("soc_percent") if live is not None else None,
            live_ns=live.time_ns if live is not None else 0,
            forecasts=self._forecasts().get(site, {}),
            committed_wh=self._commitments(site, now_ns),
            highest_w=highest if known == month.year * 12 + month.month else 0.0,
            reserve_percent=strategy.reserve_soc_percent if strategy and strategy.expires_ns > now_ns else 0.0,
            taken_wh=(grid_w or 0.0) * (now_ns % SLOT_NS) / NS_PER_S / 3600,
            loads_taken_wh=self._loads_taken(site, announcement, now_ns),
            notes=self._reasons(site),
        )

    def _loads_taken(self, site: str, announcement: Mapping[str, Any], now_ns: int) -> dict[str, float]:
        """What loads that can wait have had in their running window, from their power at each plan; the gateway knows better."""
        live, found = self._live.sites.get(site), {}
        for need in announcement.get("flexible", ()):
            key = site, str(need["device"])
            power = live.points.get(f"{key[1]}.active_power_w") if live is not None else None
            local = local_time(now_ns, self._tariff.zone())
            begins = int(str(need["begins"])[:2]) * 3600 + int(str(need["begins"])[3:5]) * 60
            since = (local.hour * 3600 + local.minute * 60 + local.second - begins) % 86_400
            if since < self._config.every_s:
                self._taken[key] = 0.0
            self._taken[key] += max(0.0, power or 0.0) * self._config.every_s / 3600
            found[key[1]] = self._taken[key]
        return found

    def _plan(self, site: str, state: SiteState, now_ns: int) -> Plan:
        battery = battery_of(state, self._config)
        now = situation_of(state, battery, self._tariff, self._config, now_ns)
        room = len(now.loads)
        planner = self._planners.setdefault(room, SitePlanner(self._config.horizon_s // SLOT_S, SLOT_S, room))
        plan = planner.plan(battery, now, key=site)
        if plan is None:
            raise NotPlannableError("the solver found no plan")
        return plan

    async def _send(self, site: str, message: SitePlan) -> None:
        """A plan is worth sending until the next one."""
        to = Address(self._org, site, GATEWAY_AGENT)
        expires = message.issued_ns + self._config.every_s * NS_PER_S
        try:
            answer = await self._messenger.request(
                to, message, expires_ns=expires, as_agent=self.address, timeout_s=60.0
            )
        except WattmeshError as error:
            log.info("plan for %s not delivered: %s", site, error)
            return
        known = self.delivered.get(site)
        if isinstance(answer, Acknowledged) and (known is None or known.issued_ns < message.issued_ns):
            self.delivered[site] = message

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        return {
            "issued": self.issued,
            "unplanned": dict(self.unplanned),
            "sites": {
                site: {
                    "start_ns": plan.start_ns,
                    "grid_w": [round(value) for value in plan.grid_w[:SENT_SLOTS].tolist()],
                    "battery_w": [round(value) for value in plan.battery_w[:SENT_SLOTS].tolist()],
                    "reasons": list(plan.reasons),
                }
                for site, plan in self.latest.items()
            },
        }


def site_plan(site: str, plan: Plan, now_ns: int, valid_s: int, committed_wh: Mapping[int, int]) -> SitePlan:
    """The message of a plan: a day of it, whole watts."""

    def whole(values: Array) -> tuple[int, ...]:
        return tuple(round(value) for value in values[:SENT_SLOTS].tolist())

    slots = range(plan.start_ns, plan.start_ns + SENT_SLOTS * SLOT_NS, SLOT_NS)
    committed = tuple(round(committed_wh.get(slot, 0) * 3600 / SLOT_S) for slot in slots)
    low = whole(plan.min_grid_w)
    return SitePlan(
        site_id=site,
        issued_ns=now_ns,
        expires_ns=now_ns + valid_s * NS_PER_S,
        start_ns=plan.start_ns,
        slot_s=plan.slot_s,
        grid_w=whole(plan.grid_w),
        battery_w=whole(plan.battery_w),
        stored_wh=whole(plan.stored_wh),
        min_grid_w=low,
        max_grid_w=tuple(max(pair) for pair in zip(whole(plan.max_grid_w), low, strict=True)),
        committed_w=committed if any(committed) else (),
        loads=tuple(PlannedLoad(device=name, power_w=whole(power)) for name, power in plan.loads_w.items()),
        reasons=plan.reasons,
    )
