"""Demand response: an event's life from announcement over dispatch and delivery to payment."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from datetime import date, tzinfo
from pathlib import Path
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import GATEWAY_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError, WattmeshError
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseOffer, DemandResponseState
from wattmesh_a2a.messages import IntervalEnergy
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.tariff import local_time, price_ticks

from wattmesh_cloud.grid.areas import AreaMonitor, Measurements
from wattmesh_cloud.grid.baseline import (
    SLOT_NS,
    Baseline,
    Method,
    Rules,
    control_group,
    days_before,
    high_of_days,
    highest_days,
    mean_of_days,
    slots_of,
    together,
)
from wattmesh_cloud.grid.config import DemandResponseConfig
from wattmesh_cloud.grid.dispatch import candidates, least_cost
from wattmesh_cloud.grid.limits import Calls
from wattmesh_cloud.grid.records import EventPlan, Reading, Running, dump, reading_of, restored, summary
from wattmesh_cloud.grid.tracking import conclude, look, needs, spare
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

_MEASURE_AFTER_NS = 2 * SLOT_NS
_REAL_ANSWER_S = 5.0
"""How long a site is waited for, all at the same time: one that is absent delays the others by no more."""
_DAYS_KEPT_NS = 46 * 86_400 * NS_PER_S
_MISSING_TIMES = 10
"""What power that is missing is worth, in times of the event's price: nothing that is offered is left lying for its price."""
_SETTLED_KEPT = 200
_LONGEST_NS = 12 * 3600 * NS_PER_S

Pay = Callable[[str, str, int, int, int], Awaitable[None]]
"""(event, participant, delivered Wh, price in ticks, start of the event's first slot)."""
Spawn = Callable[[Coroutine[Any, Any, None]], None]
RecentReadings = Callable[[str], Mapping[int, IntervalEnergy]]


class DemandResponse:
    """See the module.

    Args:
        config: The section of the cloud's file.
        store: Gets events; gives metered energy of the days before.
        messenger: Asks and tells the sites.
        clock: Of the events.
        state: Folder of the events under way.
        address: Of the grid agent.
        monitor: Which sites are in which area.
        measurements: What sites take now, for tracking.
        readings: Metered quarter hours of the last days by site.
        zone: Where days begin, for baselines and limits.
        pay: Pays for delivered energy.
        spawn: Runs a task beside the loop.
    """

    def __init__(
        self,
        config: DemandResponseConfig,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        address: Address,
        *,
        monitor: AreaMonitor,
        measurements: Measurements,
        readings: RecentReadings,
        zone: tzinfo,
        pay: Pay,
        spawn: Spawn,
    ) -> None:
        self._config, self._store, self._messenger, self._clock = config, store, messenger, clock
        self._address, self._monitor, self._measurements, self._readings = address, monitor, measurements, readings
        self._zone, self._pay, self._spawn = zone, pay, spawn
        self._file = state / "demand-response.json"
        self.calls = Calls(config.limits, zone)
        self.running: dict[str, Running] = {}
        self.settled: list[dict[str, JsonValue]] = []
        self.planned_day = 0
        self._restore()

    # -- what an operator, a forecast, OpenADR or an agent may do

    def create(self, plan: EventPlan, by: str) -> DemandResponseEvent:
        """Plan an event; the sites are asked when its notice begins, at once where that has passed.

        Raises:
            ConfigurationError: The window, target or price makes no sense, or the event is there already with other contents.
        """
        now = self._clock.utc_ns()
        self._check(plan, now)
        name = plan.id or f"dr-{plan.start_ns // NS_PER_S}" + (f"-{plan.area_id}" if plan.area_id else "")
        known = self.running.get(name)
        if known is not None:
            if known.plan == replace(plan, id=known.plan.id):
                return known.event
            raise ConfigurationError(f"event {name} is there already; cancel it first")
        if any(row["id"] == name for row in self.settled):
            raise ConfigurationError(f"event {name} is over; a new one needs another id or start")
        event = DemandResponseEvent(
            id=name, start_ns=plan.start_ns, end_ns=plan.end_ns, target_w=plan.target_w, price_ticks=plan.price_ticks,
            state=DemandResponseState.ANNOUNCED, reason=plan.reason,
        )  # fmt: skip
        self.running[name] = Running(event=event, plan=plan)
        log.info("%s: %s plans %d W from %d: %s", name, by, plan.target_w, plan.start_ns, plan.reason)
        self.save()
        return event

    def _check(self, plan: EventPlan, now: int) -> None:
        if plan.start_ns % SLOT_NS or plan.end_ns % SLOT_NS or not 0 < plan.end_ns - plan.start_ns <= _LONGEST_NS:
            raise ConfigurationError("an event begins and ends with a quarter hour (UTC) and lasts at most 12 h")
        if plan.start_ns <= now:
            raise ConfigurationError("an event begins in the future")
        if plan.target_w == 0:
            raise ConfigurationError("an event needs a target: negative W for less import, positive for more")
        if plan.price_ticks < 0:
            raise ConfigurationError("an event's price is not negative")
        unknown = set(plan.sites) - set(self._sites_of(plan.area_id))
        if unknown:
            raise ConfigurationError(f"area {plan.area_id or 'all'} has no site {', '.join(sorted(unknown))}")
        if plan.area_id and plan.area_id not in self._monitor.ids():
            raise ConfigurationError(f"no area {plan.area_id!r}; there are: {', '.join(self._monitor.ids())}")

    def cancel(self, event_id: str, reason: str, by: str) -> None:
        """End an event; what was dispatched is taken back, and what was delivered until now is measured and paid.

        Raises:
            ConfigurationError: There is no such event under way.
        """
        running = self.running.get(event_id)
        if running is None:
            raise ConfigurationError(
                f"no event {event_id!r} is under way; there are: {', '.join(self.running) or 'none'}"
            )
        now = self._clock.utc_ns()
        log.info("%s: cancelled by %s: %s", event_id, by, reason)
        running.revisions.append({"time_ns": now, "what": "cancelled", "by": by, "reason": reason})
        for site, dispatch in list(running.dispatched.items()):
            if now < dispatch.end_ns:
                self._spawn(self._tell(replace(dispatch, power_w=0, end_ns=max(now, dispatch.start_ns) + NS_PER_S)))
                running.levels[site].append((max(now, running.event.start_ns), 0))
        if now <= running.event.start_ns or not running.dispatched:
            running.event = replace(running.event, state=DemandResponseState.CANCELLED)
            self._spawn(self._close(running))
        else:
            running.event = replace(running.event, end_ns=max(now - now % SLOT_NS, running.event.start_ns))
        self.save()

    def view(self) -> list[dict[str, JsonValue]]:
        """Every event: those that are over, then those under way."""
        return [*self.settled, *(summary(one) for one in self.running.values())]

    # -- time

    async def advance(self, now: int, *, final: bool = False) -> None:
        """Do what is due: ask, track, measure, pay; ``final`` at a clean stop: pay what has ended."""
        for running in list(self.running.values()):
            event = running.event
            ahead = event.start_ns - now
            if event.state is DemandResponseState.ANNOUNCED:
                if ahead <= 0:
                    running.event = replace(event, state=DemandResponseState.CANCELLED)
                    await self._close(running)
                elif not final and ahead <= self._config.notice_s * NS_PER_S:
                    running.event = replace(event, state=DemandResponseState.DISPATCHED)
                    asked = self._draw(running)
                    running.baselines = await asyncio.to_thread(self._baselines, asked, event)
                    self._spawn(self._call(running, asked))
            elif event.state is DemandResponseState.DISPATCHED:
                if now >= event.end_ns and (final or now >= event.end_ns + _MEASURE_AFTER_NS):
                    await self._measure(running)
                elif event.start_ns <= now < event.end_ns and running.called:
                    self._track(running, now)

    def tell_again(self) -> None:
        """After a restart: nobody knows which dispatches had arrived, and the same one twice has the effect of one."""
        now = self._clock.utc_ns()
        for running in self.running.values():
            if running.event.end_ns > now:
                for dispatch in running.dispatched.values():
                    self._spawn(self._tell(dispatch))

    # -- an event's life

    def _sites_of(self, area_id: str) -> list[str]:
        areas = [area_id] if area_id else self._monitor.ids()
        return sorted({site for area in areas for site in self._monitor.sites(area)})

    def _draw(self, running: Running) -> list[str]:
        """Whom to ask: neither those that were called too often, nor the control group, which is drawn here."""
        event, plan = running.event, running.plan
        sites = [site for site in self._sites_of(plan.area_id) if not plan.sites or site in plan.sites]
        running.left_out = self.calls.tired(sites, event.start_ns, event.end_ns)
        willing = [site for site in sites if site not in running.left_out]
        share = self._config.control_share
        drawn = random.Random(event.id).sample(willing, round(share * len(willing))) if share else []
        running.control = tuple(sorted(drawn))
        return [site for site in willing if site not in running.control]

    async def _call(self, running: Running, asked: Iterable[str]) -> None:
        """Ask, take the cheapest offers up to the target, tell everybody what was taken."""
        event = running.event
        answers = await asyncio.gather(*(self._ask(site, running) for site in asked))
        running.offers = {offer.site_id: offer for offer in answers if offer is not None}
        self._dispatch(running)
        running.called = True
        self.calls.note(running.dispatched, event.start_ns, event.end_ns)
        self.save()
        await asyncio.gather(*(self._tell(one) for one in running.dispatched.values()))
        await asyncio.to_thread(self._record, running)

    def _baselines(self, sites: Iterable[str], event: DemandResponseEvent) -> dict[str, Baseline]:
        """The baseline of each site that has the days for one; reads the store."""
        if self._config.baseline == "offered":
            return {}
        rules = Rules(adjust_gap_s=max(3600, self._config.notice_s))
        excluded = self._event_days()
        past = {
            site: {slot: float(one.net) for slot, one in self.history(site, event.start_ns).items()} for site in sites
        }
        window = (event.start_ns, event.end_ns, self._zone)
        backs = highest_days(together(past.values()), *window, rules=rules, excluded=excluded)
        found = {}
        for site, readings in past.items():
            baseline = None if backs is None else mean_of_days(readings, *window, backs, rules=rules)
            if baseline is None:  # it was not there on one of the days of all: its own ones
                baseline = high_of_days(readings, *window, rules=rules, excluded=excluded)
            if baseline is not None:
                found[site] = baseline
        return found

    def _event_days(self) -> set[date]:
        rows = [*self.settled, *(summary(one) for one in self.running.values())]
        return {
            local_time(int(row["start_ns"]), self._zone).date()  # type: ignore[arg-type]  # our own row
            for row in rows
            if row["dispatched_w"]
        }

    def history(self, site: str, before_ns: int) -> dict[int, Reading]:
        """Whole metered quarter hours of the days that baselines look at; reads the store."""
        items = self._store.query(
            Table.CONSUMER_METRICS, site, before_ns - _DAYS_KEPT_NS, before_ns + SLOT_NS, limit=10_000
        )
        found = {}
        for item in items:
            row = item.data
            if item.id == "interval" and row["complete"]:
                net, demand, battery = (
                    int(row[one]) - int(row[other])  # type: ignore[arg-type]  # an interval's row
                    for one, other in (
                        ("import_wh", "export_wh"), ("load_wh", "pv_wh"), ("battery_charge_wh", "battery_discharge_wh"),
                    )
                )  # fmt: skip
                found[item.time_ns] = Reading(net, demand, battery)
        for slot, message in self._readings(site).items():
            if message.complete:
                found[slot] = reading_of(message)
        return found

    def _dispatch(self, running: Running) -> None:
        """Choose among the offers."""
        event = running.event
        direction = -1 if event.target_w < 0 else 1
        band = max(1, price_ticks(self._config.limits.fair_band))
        parts = candidates(
            running.offers.values(),
            direction,
            most_ticks=event.price_ticks,
            called=self.calls.recent(running.offers, event.start_ns),
        )
        parts = [replace(part, price_ticks=part.price_ticks - part.price_ticks % band) for part in parts]
        target = abs(event.target_w)
        share = self._config.limits.site_share
        choice = least_cost(
            target,
            parts,
            missing_ticks=_MISSING_TIMES * max(1, event.price_ticks),
            over_w=round(self._config.tolerance * target),
            site_most_w=None if share >= 1 else round(share * target),
        )
        running.missing_w, running.required_w = choice.missing_w, sum(choice.power_w.values())
        for site, power in choice.power_w.items():
            offer = running.offers[site]
            baseline = running.baselines.setdefault(site, _offered(offer, event))
            running.dispatched[site] = DemandResponseDispatch(
                event_id=event.id, site_id=site, start_ns=event.start_ns, end_ns=event.end_ns, power_w=direction * power,
                baseline_w=round(baseline.mean_w), price_ticks=event.price_ticks,
            )  # fmt: skip
            running.levels[site] = [(event.start_ns, power)]
        running.baselines = {site: one for site, one in running.baselines.items() if site in running.dispatched}

    async def _ask(self, site: str, running: Running) -> DemandResponseOffer | None:
        baseline = running.baselines.get(site)
        event = replace(
            running.event,
            state=DemandResponseState.ANNOUNCED,
            baseline_w=None if baseline is None else round(baseline.mean_w),
        )
        to = Address(self._address.org, site, GATEWAY_AGENT)
        try:
            answer = await self._messenger.request(
                to, event, expires_ns=event.start_ns, timeout_s=_REAL_ANSWER_S, as_agent=self._address
            )
        except WattmeshError as error:
            log.info("%s did not answer %s: %s", site, event.id, error)
            return None
        if isinstance(answer, DemandResponseOffer) and answer.site_id == site and answer.event_id == event.id:
            return answer
        return None

    async def _tell(self, dispatch: DemandResponseDispatch) -> None:
        to = Address(self._address.org, dispatch.site_id, GATEWAY_AGENT)
        try:
            await self._messenger.request(to, dispatch, expires_ns=dispatch.end_ns, as_agent=self._address)
        except WattmeshError as error:
            log.info("dispatch for %s not delivered: %s", dispatch.site_id, error)

    # -- delivery

    def _track(self, running: Running, now: int) -> None:
        """Look at what is delivered now; every few minutes dispatch anew where it is too far from what was dispatched."""
        event, often_ns = running.event, self._config.redispatch_s * NS_PER_S
        measured = self._measurements()
        grid_w = {
            site: one.grid_w
            for site in running.dispatched
            if (one := measured.get(site)) is not None and now - one.time_ns <= often_ns
        }
        look(running, grid_w, (now - max(running.looked_ns, event.start_ns)) / NS_PER_S)
        running.looked_ns = now
        since = now - max(running.decided_ns, event.start_ns)
        if since < often_ns:
            return
        running.decided_ns = now
        conclude(running, since / NS_PER_S)
        left_ns = event.end_ns - now
        need = needs(running, left_ns / NS_PER_S, self._config.tolerance)
        if need == 0 or left_ns < often_ns:
            return
        direction = -1 if event.target_w < 0 else 1
        changed = spare(running, need, direction)
        for site, power in changed.items():
            self._redispatch(running, site, direction * power, now)
        if changed:
            running.revisions.append(
                {
                    "time_ns": now,
                    "what": "shortfall" if need > 0 else "surplus",
                    "need_w": round(need),
                    "changed_w": dict(changed),
                }
            )
            self.save()

    def _redispatch(self, running: Running, site: str, power_w: int, now: int) -> None:
        event, offer = running.event, running.offers[site]
        baseline = running.baselines.setdefault(site, _offered(offer, event))
        if site not in running.dispatched:
            self.calls.note([site], now, event.end_ns)
        dispatch = DemandResponseDispatch(
            event_id=event.id, site_id=site, start_ns=now, end_ns=event.end_ns, power_w=power_w,
            baseline_w=round(baseline.mean_w), price_ticks=event.price_ticks,
        )  # fmt: skip
        running.dispatched[site] = dispatch
        running.levels.setdefault(site, []).append((now, abs(power_w)))
        self._spawn(self._tell(dispatch))

    async def _measure(self, running: Running) -> None:
        """Delivered: baseline less metered import, over the window, between 0 and what was dispatched; paid by the price.

        A quarter hour without a complete reading counts as nothing delivered.
        """
        event = running.event
        direction = -1 if event.target_w < 0 else 1
        for site in running.dispatched:
            baseline = running.baselines[site].power_w
            saved, known = 0.0, 0
            for at, slot in enumerate(slots_of(event.start_ns, event.end_ns)):
                reading = self._readings(site).get(slot)
                if reading is not None and reading.complete:
                    known += 1
                    saved += direction * (reading.import_wh - reading.export_wh - baseline[at] / 4)
            slots = max(1, len(slots_of(event.start_ns, event.end_ns)))
            most = running.dispatched_wh(site) * known / slots
            delivered = round(min(max(0.0, saved), most))
            running.measured_wh[site] = saved
            running.delivered_wh[site] = delivered
            await self._pay(event.id, site, delivered, event.price_ticks, event.start_ns)
        running.comparison_wh = await asyncio.to_thread(self._comparison, running)
        running.event = replace(event, state=DemandResponseState.SETTLED)
        await self._close(running)

    def _comparison(self, running: Running) -> float | None:
        """What was delivered by comparison with the control group."""
        event = running.event
        if not running.control or not running.dispatched:
            return None
        groups = []
        for sites in (running.dispatched, running.control):
            rows = {site: self.history(site, event.end_ns) for site in sites}
            groups.append({site: {slot: float(one.net) for slot, one in row.items()} for site, row in rows.items()})
        treated, controls = groups
        reference = [days_before(back, self._zone) for back in range(1, 8)]
        expected = control_group(treated, controls, event.start_ns, event.end_ns, reference)
        if expected is None:
            return None
        slots = slots_of(event.start_ns, event.end_ns)
        if any(slot not in readings for readings in treated.values() for slot in slots):
            return None
        taken = sum(readings[slot] for readings in treated.values() for slot in slots)
        direction = -1 if event.target_w < 0 else 1
        return direction * (taken - sum(expected) / 4)

    # -- keeping

    async def _close(self, running: Running) -> None:
        await asyncio.to_thread(self._record, running)
        if running.event.state is DemandResponseState.SETTLED:
            self.settled = [*self.settled, summary(running)][-_SETTLED_KEPT:]
        self.running.pop(running.event.id, None)
        self.save()

    def _record(self, running: Running) -> None:
        event = running.event
        item = Item(partition="fleet#demand-response", time_ns=event.start_ns, id=event.id, data=summary(running))
        self._store.put(Table.GRID_METRICS, [item])

    def save(self) -> None:
        """Events under way, whole or not at all."""
        draft = self._file.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        rows = [dump(one) for one in self.running.values()]
        draft.write_text(
            json.dumps({"day": self.planned_day, "events": rows, "settled": self.settled, "calls": self.calls.dump()})
        )
        draft.replace(self._file)

    def _restore(self) -> None:
        if not self._file.exists():
            return
        data = json.loads(self._file.read_text())
        self.planned_day, self.settled = data["day"], data["settled"]
        self.calls.restore(data.get("calls", {}))
        for row in data["events"]:
            running = restored(row)
            self.running[running.event.id] = running


def _offered(offer: DemandResponseOffer, event: DemandResponseEvent) -> Baseline:
    """The site's own expectation, where there is no better one."""
    count = max(1, len(slots_of(event.start_ns, event.end_ns)))
    return Baseline(power_w=(float(offer.baseline_w),) * count, method=Method.OFFERED)
