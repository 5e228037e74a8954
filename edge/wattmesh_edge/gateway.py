"""The composition root of a gateway: wires drivers, control, agents, outbox, uplink and reflex of one site together."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.control import Decision
from wattmesh_a2a.errors import WattmeshError
from wattmesh_a2a.messages import ConfigurationChange
from wattmesh_a2a.tariff import slot_start_ns
from wattmesh_drivers.driver import DriverState
from wattmesh_drivers.modbus.line import LinePool

from wattmesh_edge import parts
from wattmesh_edge import reflex as fast
from wattmesh_edge.agents.base import SLOT_S, Outlook, SiteAgent
from wattmesh_edge.agents.consumer import ConsumerAgent
from wattmesh_edge.agents.flexible import FlexibleAgent
from wattmesh_edge.agents.producer import ProducerAgent
from wattmesh_edge.agents.response import called
from wattmesh_edge.changes import Changes
from wattmesh_edge.config import Site
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.dealings import Dealings
from wattmesh_edge.devices import SiteDevices
from wattmesh_edge.disk import DiskWork
from wattmesh_edge.flash import FlashWrites
from wattmesh_edge.frequency import FrequencyWatch
from wattmesh_edge.history import History
from wattmesh_edge.image import ImageMaker, SiteImage
from wattmesh_edge.instructions import Instructions, Operator
from wattmesh_edge.local import LocalServer
from wattmesh_edge.maintenance import Maintenance
from wattmesh_edge.memory import Memory
from wattmesh_edge.metering import Metering
from wattmesh_edge.observed import Observed
from wattmesh_edge.outbox import Outbox
from wattmesh_edge.panel import Panel
from wattmesh_edge.planned import PlanInbox
from wattmesh_edge.releases import Releases
from wattmesh_edge.reporter import Reporter
from wattmesh_edge.service import ServiceManager
from wattmesh_edge.trace import DecisionTrace
from wattmesh_edge.uplink import PROFILES, Uplink
from wattmesh_edge.versions import Health, Trial, Versions

log = logging.getLogger(__name__)

_REPORT_NS = 3600 * NS_PER_S
_DAY_NS = 86_400 * NS_PER_S
_AWAY_DAYS = 40
_BOUND_S = 30.0
_DRAIN_S = 15.0
_LAST_CYCLE_S = 5.0
"""Real time that the last cycle has to end in."""
_AGENTS: Mapping[str, type[SiteAgent]] = {"producer": ProducerAgent, "consumer": ConsumerAgent}


class Gateway:
    """One site's gateway.

    Args:
        site: The checked site file.
        clock: Time of everything but I/O.
        versions: Of its configuration; none: it cannot be changed from afar.
        trial: Watches what is on trial.
        releases: Of its software; none: it cannot be changed from afar.
    """

    def __init__(
        self,
        site: Site,
        clock: Clock,
        versions: Versions | None = None,
        trial: Trial | None = None,
        releases: Releases | None = None,
    ) -> None:
        model = site.model
        self.last_health: Health | None = None
        """When the end began."""
        self.site = site
        self.site_id = model.site
        self._clock = clock
        self._db = parts.open_database(site)
        self.counts = self._load_counts()
        self.counts["starts"] += 1
        self._disk = DiskWork(self.counts)
        lines = LinePool()
        self.drivers = parts.make_drivers(site, clock, self._db, lines)
        self._transport = parts.make_transport(site)
        self.messenger = parts.make_messenger(site, self._transport, clock)
        columns = [f"{name}.{point.id}" for name, driver in self.drivers.items() for point in driver.asset.points]
        profile = PROFILES[model.messaging.telemetry]
        self._status_ns = round(profile.status_s * NS_PER_S)
        rows = profile.rows(len(columns))
        self.outbox = Outbox(site.state / "outbox", self.site_id, self.messenger.session, columns, batch_rows=rows)
        self.uplink = Uplink(self.outbox, self.messenger, profile=profile)
        self._maker = ImageMaker(
            self.drivers,
            site.grid_meter,
            model.control.period_s,
            backups=site.meters_of("backup"),
            load_meters=site.meters_of("load"),
            meter_lag_s=model.control.meter_lag_s,
        )
        self.metering = Metering(self.site_id, self.drivers, site.grid_meter, self._maker, self._db)
        self._trace = DecisionTrace(self._db)
        self._history = History(self._db)
        self._memory = Memory(self._db)
        self._service = ServiceManager()
        batteries = parts.battery_limits(site, with_response=True)
        self.frequency = FrequencyWatch(site, self.drivers, batteries, self._db)
        self.outlook = Outlook(
            tariff=site.tariff,
            storage=parts.storage_of(batteries),
            trade=model.market is not None and model.market.trade,
            capacity_wh={name: one.rated_energy_wh * one.health for name, one in batteries.items()},
            export_limit_w=model.connection.export_limit_w,
        )
        self.agents = [
            _AGENTS[name](
                name,
                self.site_id,
                self.outlook,
                period_s=model.control.period_s,
                peak_limit_w=model.control.peak_limit_w,
            )
            for name in model.agents
        ]
        self._flexible = FlexibleAgent(
            parts.needs(site),
            site.tariff,
            site.tariff.zone(),
            period_s=model.control.period_s,
            taken=self._load_taken(),
            import_limit_w=min(model.connection.import_limit_w, model.control.peak_limit_w or math.inf),
            planned=self._planned_load_w,
        )
        self.instructions = Instructions(period_s=model.control.period_s)
        self.control = ControlCycle(
            self.drivers,
            self._maker,
            [self.instructions, *self.agents, self._flexible],
            {**batteries, **parts.load_limits(site)},
            parts.site_limits(site),
            clock,
            period_s=model.control.period_s,
            record=self._end_of_cycle,
            traded_wh=lambda: self.metering.grid_wh,
            reflex=self.frequency.responding,
            response_limits=parts.battery_limits(site, with_response=False),
        )
        self._devices = SiteDevices(site, self.drivers, lines, self.control.was_made_safe)
        self._tasks: set[asyncio.Task[None]] = set()
        self.dealings = Dealings(
            site, self.outlook, self.agents, self.messenger, self._db, self._memory, clock,
            counts=self.counts, spawn=self._spawn, image=lambda: self.control.image,
            waits_w=self._flexible.waits_w,
        )  # fmt: skip
        self.plans = PlanInbox(
            self.site_id, self.outlook, self.messenger, self._memory, clock, image=lambda: self.control.image
        )
        Operator(self.instructions, self.control, self.messenger, self._memory, clock).register()
        messaging = model.messaging
        things = None if messaging.things is None else f"{messaging.things}/{messaging.thing or self.site_id}"
        self.changes = Changes(
            self.site_id, model.org, self.messenger.address, versions=versions, releases=releases, trial=trial,
            keys=parts.make_keys(site), transport=self._transport, things=things, folder=site.state, spawn=self._spawn,
        )  # fmt: skip
        self.messenger.on_request(ConfigurationChange, self.changes.on_message)
        Observed(
            self.site_id, self.drivers, lambda: self.frequency.reflex, site.state / "events", self.messenger, self._spawn,
            flash=lambda device: FlashWrites(self._db, device), utc_ns=clock.utc_ns,
        ).register()  # fmt: skip
        self._maintenance = Maintenance(
            self.site_id, self.drivers, self._maker, parts.planes(site), self._db, parts.guaranteed_cycles(site)
        )
        self.reporter = Reporter(
            site, self.control, self.outbox, self.messenger, self.frequency, self._db,
            counts=self.counts, clock=clock, plan_source=self._plan_source, flexible=self._flexible.needs(),
        )  # fmt: skip
        self.panel = Panel(
            self.site_id,
            self.control,
            self.drivers,
            self.outbox,
            self._history,
            clock,
            period_s=model.control.period_s,
            totals=self.reporter.totals,
            connected=lambda: self._transport.connected,
            alarms=lambda: list(self._maintenance.alarms.values()),
        )
        self._local = LocalServer(self.panel.pages()) if model.local is not None else None
        self._planned_slot = 0
        self._pruned_day = 0
        self._status_due_ns = 0
        self._report_due_ns = 0

    # -- life cycle

    async def run(self, stop: asyncio.Event, ready: Path | None = None) -> None:
        """Work until ``stop`` is set, then leave the site safe and hand over what is held."""
        try:
            await self._devices.connect()
            self.frequency.start(self._clock.utc_ns(), self.messenger.session)
            await self.messenger.announce({"announcement": self.reporter.announcement()})
            await self.changes.start()
            await self.messenger.start()
            await self._start_local()
            if ready is not None:
                ready.touch()
            async with asyncio.TaskGroup() as group:
                control = group.create_task(self.control.run(), name="control")
                uplink = group.create_task(self._uplink_loop(), name="uplink")
                self._spawn(self.dealings.ask_commitments())
                await stop.wait()
                self.last_health = self.health()
                self.control.stop()  # the cycle that is under way ends: nothing is cut between a write and its readback
                await asyncio.wait({control}, timeout=_LAST_CYCLE_S)
                if not control.done():
                    log.error("the last cycle does not end; the site is left safe without it")
                    control.cancel()
                uplink.cancel()
        finally:  # also when something of ours failed: the site is left safe
            await self._end()

    async def _start_local(self) -> None:
        """The site's own page; a port that is taken costs the page, and never control."""
        model = self.site.model.local
        if self._local is None or model is None:
            return
        try:
            await self._local.start(model.host, model.port)
        except OSError as error:
            log.warning("the site shows no page at %s:%d: %s", model.host, model.port, error)
            return
        log.info("the site shows itself at http://%s:%d/", model.host, self._local.port)

    async def _end(self) -> None:
        """Safe state, everything on disk, everything handed over that can be within its time, then goodbye.

        A disk that fails costs what it cannot take, and neither the safe state nor an orderly end.
        """
        if not self.changes.changed.is_set():  # else it goes on with another version: the service manager sees no end
            self._service.stopping()
        self.frequency.stop()
        self._disk.attempt("the last frequency events", lambda: self._take_frequency_events(last=True))
        self._disk.attempt("the last measurements", self.outbox.seal)  # now: a second, harder signal loses nothing
        await self._devices.leave()
        try:
            if not await self.uplink.drain(_DRAIN_S if self._transport.connected else 0.0):
                log.warning("%d batches wait for the next start", self.outbox.waiting())
        except sqlite3.Error as error:
            log.error("the outbox cannot be read (%s): what waits is sent after the next start", error)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._local is not None:
            await self._local.stop()
        self._disk.attempt("the last minutes", self._history.flush)
        self._disk.attempt("the report", self.reporter.write)
        await self.messenger.stop()
        self._disk.attempt("the outbox", self.outbox.close)
        self._disk.attempt("the database", self._db.commit)
        self._db.close()
        self._service.close()

    async def _uplink_loop(self) -> None:
        """In real time, beside control: live batches first, the backlog behind them; the bounds once in a while."""
        bound_due = 0.0
        while True:
            try:
                await self.uplink.pump()
                if time.monotonic() >= bound_due:  # looking at ages reads whole batches: not with every pump
                    bound_due = time.monotonic() + (0.0 if self.outbox.bound() else _BOUND_S)
            except sqlite3.Error as error:
                self.counts["outbox_failures"] += 1
                log.debug("the outbox cannot be read now: %s", error)
            await self.uplink.rest()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, WattmeshError):
            self.counts["messages_failed"] += 1
            log.info("a message failed: %s", error)
        else:
            log.error("a task failed", exc_info=error)

    # -- each cycle

    def _end_of_cycle(self, image: SiteImage, decisions: Sequence[Decision], outcomes: Mapping[str, str]) -> None:
        """What follows each cycle, whatever the disk does: a part that it cannot keep costs that part alone."""
        now = image.time_ns
        self._service.healthy(f"{self.site_id}: {len(decisions)} setpoints a cycle")
        self.frequency.start(now, self.messenger.session)
        self.frequency.push()
        self._disk.attempt("measurements", lambda: self._keep(image))
        self._disk.attempt("decisions", lambda: self._keep_decisions(decisions, outcomes))
        self._disk.attempt("minutes", lambda: self._history.note(image))
        self._disk.attempt("energies", lambda: self._meter(image))
        self._plan(image)
        self._disk.attempt("the trial of a change", lambda: self.changes.judge(self.health))
        self._disk.attempt("health of devices", lambda: self._watch_devices(image))
        self._disk.attempt("frequency events", self._take_frequency_events)
        self._disk.attempt("the database", self._trace.commit)
        if now >= self._status_due_ns:
            self._status_due_ns = now + max(self._status_ns, 2 * round(self.site.model.control.period_s * NS_PER_S))
            self._disk.attempt("the status", lambda: self._spawn(self.messenger.emit(self.reporter.status(now))))
        if now >= self._report_due_ns:
            self._report_due_ns = now + _REPORT_NS
            self._disk.attempt("the report", self.reporter.write)
        if now // _DAY_NS != self._pruned_day and self._disk.attempt("old records", lambda: self._prune(now)):
            self._pruned_day = now // _DAY_NS

    def _keep(self, image: SiteImage) -> None:
        """What was measured."""
        drivers = self.drivers.values()
        self.outbox.add_row(image.time_ns, (d.values for d in drivers), (d.qualities for d in drivers))

    def _keep_decisions(self, decisions: Sequence[Decision], outcomes: Mapping[str, str]) -> None:
        for decision in decisions:
            if self._trace.note(decision, outcomes[decision.asset_id]):
                self.outbox.add_record(record_line(decision))
        if self._flexible.to_keep():
            taken = json.dumps(self._flexible.taken)
            self._db.execute("INSERT OR REPLACE INTO state VALUES ('taken', ?)", (taken,))

    def _meter(self, image: SiteImage) -> None:
        ended = self.metering.update(image)
        for interval in ended:
            self.outlook.learn(interval)
        for interval in ended:
            self.outbox.add_record(record_line(interval))
            self.dealings.save_profile()
        self.metering.save()

    def _watch_devices(self, image: SiteImage) -> None:
        for alarm in self._maintenance.observe(image.time_ns, limited=self.control.curtailed):
            log.log(logging.INFO if alarm.cleared_ns else logging.WARNING, "%s", alarm.text)
            self.outbox.add_record(record_line(alarm))

    def _take_frequency_events(self, *, last: bool = False) -> None:
        for event in self.frequency.events(self._clock.utc_ns(), self.messenger.session, last=last):
            if (alarm := fast.alarm_of(event)) is not None:
                log.log(logging.INFO if alarm.cleared_ns else logging.WARNING, "%s", alarm.text)
                self.outbox.add_record(record_line(alarm))
            self.outbox.add_record(record_line(event))
            self.frequency.note(event)

    def _plan(self, image: SiteImage) -> None:
        """Once a slot: value the battery, and order. In memory alone, so that it goes on while the disk fails."""
        slot = slot_start_ns(image.time_ns, SLOT_S)
        if slot == self._planned_slot:
            return
        outlook = self.outlook
        outlook.forget_before(image.time_ns)
        outlook.plan(image.time_ns, outlook.stored_wh(image))
        if outlook.value is None and outlook.forecasts:
            return  # the state of charge is not known yet: try in the next cycle
        self._planned_slot = slot
        self.dealings.order(image)

    def _prune(self, now_ns: int) -> None:
        """Forget what is old, once a day; not on a day that is far from the last one, as a clock that jumped makes all look old."""
        day = now_ns // _DAY_NS
        row = self._db.execute("SELECT value FROM state WHERE name = 'day'").fetchone()
        self._db.execute("INSERT OR REPLACE INTO state VALUES ('day', ?)", (str(day),))
        if row is not None and not 0 <= day - int(row[0]) <= _AWAY_DAYS:
            log.warning("the date moved by %d days: nothing old is forgotten today", day - int(row[0]))
            return
        self._trace.prune(now_ns)
        self._history.prune(now_ns)
        self.dealings.prune(now_ns)

    def _planned_load_w(self, device: str, utc_ns: int) -> float | None:
        if called(self.outlook, utc_ns):
            return 0.0  # what was promised for demand response: whoever can wait does
        return self.plans.load_w(device, utc_ns)

    def _plan_source(self, now_ns: int) -> str:
        return "market" if self.dealings.in_market(now_ns) else self.outlook.followed(now_ns)

    def health(self) -> Health:
        """How the site does, for a trial."""
        return Health(
            answering=frozenset(name for name, driver in self.drivers.items() if driver.state is DriverState.READY),
            healthy=self.panel.healthy(),
            agent_failures=self.control.counts["agent_failures"],
        )

    # -- what a start finds

    def _load_counts(self) -> Counter[str]:
        row = self._db.execute("SELECT value FROM state WHERE name = 'counts'").fetchone()
        return Counter({name: int(value) for name, value in json.loads(row[0]).items()} if row else {})

    def _load_taken(self) -> dict[str, tuple[int, float]]:
        row = self._db.execute("SELECT value FROM state WHERE name = 'taken'").fetchone()
        return {name: (int(begun), float(wh)) for name, (begun, wh) in json.loads(row[0]).items()} if row else {}


async def run_gateway(
    site: Site,
    clock: Clock,
    stop: asyncio.Event,
    ready: Path | None = None,
    versions: Versions | None = None,
    releases: Releases | None = None,
) -> None:
    """Build and run a gateway until ``stop``; with ``versions`` anew with each version of its configuration.

    With ``releases`` it returns before ``stop`` when another software is to go on.
    """
    before: Health | None = None
    while True:
        began = time.monotonic()
        tried = (versions is not None and versions.trial) or (releases is not None and releases.trial)
        trial = Trial(before) if tried else None
        gateway = Gateway(site, clock, versions, trial, releases)
        log.info("%s: composed in %.2f s", site.model.site, time.monotonic() - began)
        ended = asyncio.Event()
        waiting = [asyncio.create_task(event.wait()) for event in (stop, gateway.changes.changed)]
        watching = asyncio.create_task(_first(waiting, ended))
        try:
            await gateway.run(ended, ready)
        finally:
            for task in (*waiting, watching):
                task.cancel()
            await asyncio.gather(*waiting, watching, return_exceptions=True)
        if versions is None:
            return
        if stop.is_set():
            versions.pause()
            if releases is not None:
                releases.pause()
            return
        if releases is not None and releases.wanted() != releases.running:
            return
        before = before if trial is not None else gateway.last_health
        site = versions.load()


async def _first(waiting: Sequence[asyncio.Task[bool]], ended: asyncio.Event) -> None:
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    ended.set()
