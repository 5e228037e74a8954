"""The grid optimisation agent: what the grid's state is, demand response, emergencies, and views over areas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.envelope import CLOUD_UNIT, GRID_AGENT, Address, Envelope
from wattmesh_a2a.errors import ConfigurationError, ConflictError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import DemandResponseEvent, FrequencyEvent, FrequencyEventKind, GridEvent, GridStatus
from wattmesh_a2a.messages import GatewayStatus, IntervalEnergy, Message
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.tariff import price_ticks

from wattmesh_cloud.forecasting.service import median_of
from wattmesh_cloud.grid.areas import AreaMonitor, Balance, EarlyWarning, Measurements, NodeVoltage
from wattmesh_cloud.grid.areas import plain as row_of
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.emergency import Ask, Emergency, EmergencyDesk, Mode
from wattmesh_cloud.grid.records import FLEET, EventPlan, Running
from wattmesh_cloud.grid.response import DemandResponse, Pay
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

_STEP_NS = 60 * NS_PER_S
_SLOT_NS = 900 * NS_PER_S
_DAY_NS = 86_400 * NS_PER_S
_CALM_NS = 600 * NS_PER_S
"""After a frequency event the status goes back to normal when nothing came for so long."""
_LOOK_BACK_NS = 2 * _DAY_NS
_HARMLESS = frozenset({FrequencyEventKind.PHASE_STEP, FrequencyEventKind.INVALID})
"""News of a measurement, not of a grid in need."""
_OPEN_AT_MOST = 10_000
_SLOTS_KEPT = 400
_WARN_NS = 900 * NS_PER_S
_EVENTS_SHOWN = 30
"""In the snapshot, which is taken every second while somebody looks."""


class GridService:
    """See the module.

    Args:
        config: The grid section.
        store: Gets events and what came of them.
        messenger: Serves ``ORG/cloud/grid-optimisation``.
        clock: Of the events.
        state: Folder of the events under way.
        org: Of all addresses.
        forecasts: Newest forecasts by site and quantity.
        pay: Pays for delivered energy.
        measurements: What sites take now; without it nothing is tracked, balanced or shed by share.
        zone: Where days begin, for baselines and fatigue.
    """

    def __init__(
        self,
        config: GridConfig,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        org: str,
        *,
        forecasts: Callable[[], Mapping[str, Mapping[str, Forecast]]],
        pay: Pay,
        measurements: Measurements = dict,
        zone: tzinfo = UTC,
    ) -> None:
        self.config = config
        self.plans_days = True
        """Whether it plans a day's event by itself; not where an agent does (:meth:`create_event`)."""
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self.forecasts = self._forecasts = forecasts
        self.address = Address(org, CLOUD_UNIT, GRID_AGENT)
        self.status = GridStatus.NORMAL
        self.status_reason = ""
        self.frequency: dict[str, float] = {}
        self.frequency_events = 0
        self._frequency_open: set[str] = set()
        self._disturbed_ns = 0
        self._intervals: dict[str, dict[int, IntervalEnergy]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._warned: dict[str, EarlyWarning] = {}
        self._warned_ns = 0
        self.further: dict[str, Callable[[], JsonValue]] = {}
        """Figures of neighbours that belong with ours, by name."""
        self.monitor = AreaMonitor(config.areas, forecasts, measurements)
        self.response = DemandResponse(
            config.demand_response, store, messenger, clock, state, self.address, monitor=self.monitor,
            measurements=measurements, readings=lambda site: self._intervals.get(site, {}), zone=zone, pay=pay,
            spawn=self._spawn,
        )  # fmt: skip
        self.emergency = EmergencyDesk(
            config.emergency, store, messenger, clock, state, self.address, monitor=self.monitor,
            measurements=measurements, quiet=self._quiet, announce=self._on_emergency, spawn=self._spawn,
        )  # fmt: skip

        real = [one for one in self.emergency.standing.values() if not one.drill]
        if real:  # a restart does not end an emergency, nor the market's halt
            worst = max(real, key=lambda one: one.stage)
            self.status, self.status_reason = GridStatus.EMERGENCY, f"stage {worst.stage} in area {worst.area_id}"

    def register(self) -> None:
        """Listen to gateways' health."""
        self._messenger.on_event(GatewayStatus, self._on_status)

    # -- demand response, for console, API, OpenADR and agents

    @property
    def running(self) -> dict[str, Running]:
        """Events under way."""
        return self.response.running

    @property
    def settled(self) -> list[dict[str, JsonValue]]:
        """Events that are over and paid, oldest first."""
        return self.response.settled

    def plan_event(self, area_id: str = FLEET) -> EventPlan | None:
        """What the forecasts suggest for the coming day: the window of the highest import; none where there is no peak."""
        config = self.config.demand_response
        sites = set(self.monitor.sites(area_id)) if area_id else None
        forecasts = {site: one for site, one in self._forecasts().items() if sites is None or site in sites}
        earliest = self._clock.utc_ns() + config.notice_s * NS_PER_S
        window = peak_window(forecasts, earliest, config.duration_s * NS_PER_S, config.peak_percentile)
        if window is None:
            return None
        start, mean_w = window
        return EventPlan(
            start_ns=start,
            end_ns=start + config.duration_s * NS_PER_S,
            target_w=-round(mean_w * config.share),
            price_ticks=price_ticks(config.price),
            reason=f"expected peak of {mean_w / 1000:.1f} kW",
            area_id=area_id,
            source="forecast",
        )

    def create_event(self, plan: EventPlan, by: str) -> DemandResponseEvent:
        """Plan an event; raises :class:`ConfigurationError` where it makes no sense."""
        return self.response.create(plan, by)

    def cancel_event(self, event_id: str, reason: str, by: str) -> None:
        """End an event early; raises :class:`ConfigurationError` where there is none under way."""
        self.response.cancel(event_id, reason, by)

    def events(self) -> list[dict[str, JsonValue]]:
        """Every event with offers, dispatch, baselines, delivery and pay: those that are over, then those under way."""
        return self.response.view()

    # -- emergencies

    def declare_emergency(
        self, mode: Mode, stage: int, *, area_id: str, reason: str, by: str, drill: bool = False
    ) -> Ask:
        """The first of two steps: returns a token and what would happen; nothing does. Raises :class:`ConfigurationError`."""
        return self.emergency.ask(mode, stage, area_id=area_id, reason=reason, by=by, drill=drill)

    def start_drill(self, mode: Mode, stage: int, *, area_id: str, by: str) -> Ask:
        """The same for practice: the same two steps, and gateways that answer what they would do."""
        return self.emergency.ask(mode, stage, area_id=area_id, reason="drill", by=by, drill=True)

    def confirm_emergency(self, token: str, by: str) -> Emergency:
        """The second step: it takes effect. Raises :class:`ConfigurationError`."""
        return self.emergency.confirm(token, by)

    def release_emergency(self, area_id: str, reason: str, by: str) -> None:
        """End what stands in an area. Raises :class:`ConfigurationError`."""
        self.emergency.release(area_id, by, reason)

    # -- views

    def areas(self) -> list[Balance]:
        """Load balance of every area now."""
        now = self._clock.utc_ns()
        return [self.monitor.balance(area, now) for area in self.monitor.ids()]

    def voltages(self, area_id: str) -> list[NodeVoltage]:
        """Voltage of every site of an area, measured and by its feeder's model; raises :class:`ConfigurationError`."""
        if area_id not in self.monitor.ids():
            raise ConfigurationError(f"no area {area_id!r}; there are: {', '.join(self.monitor.ids())}")
        return self.monitor.voltages(area_id, self._clock.utc_ns())

    def warnings(self) -> list[EarlyWarning]:
        """What the forecasts put outside its limits in the coming day, the soonest first."""
        return list(self._warned.values())

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        values = list(self.frequency.values())
        return {
            "status": str(self.status),
            "reason": self.status_reason,
            "frequency_hz": sum(values) / len(values) if values else None,
            "frequency_events": self.frequency_events,
            "demand_response": self.events()[-_EVENTS_SHOWN:],
            "areas": [row_of(one) for one in self.areas()],
            "warnings": [row_of(one) for one in self.warnings()],
            "emergency": self.emergency.view(),
            **{name: figures() for name, figures in self.further.items()},
        }

    # -- the grid's state

    def declare(self, status: GridStatus, reason: str) -> None:
        """Tell everybody a status that an agent or a person has found; sheds nothing (:meth:`declare_emergency` does).

        Raises:
            ConflictError: An emergency with instructions stands; it ends by its own rules.
        """
        if any(not one.drill for one in self.emergency.standing.values()):
            raise ConflictError("an emergency with instructions stands; it ends by its own rules")
        if status is not GridStatus.NORMAL:
            self._disturbed_ns = max(self._disturbed_ns, self._clock.utc_ns())
        self._set_status(status, reason)

    def quiet_s(self, now_ns: int) -> float | None:
        """Time since the last disturbance; none where there was none."""
        return (now_ns - self._disturbed_ns) / NS_PER_S if self._disturbed_ns else None

    def on_record(self, site: str, message: Message) -> None:
        """Take frequency events and metered energy as they become durable."""
        if isinstance(message, FrequencyEvent):
            if message.id not in self._frequency_open:  # a long event is told twice: as it begins and when it is over
                self.frequency_events += 1
            if message.end_ns is None and len(self._frequency_open) < _OPEN_AT_MOST:
                self._frequency_open.add(message.id)
            else:
                self._frequency_open.discard(message.id)
            if message.kind in _HARMLESS:
                return
            self._disturbed_ns = max(self._disturbed_ns, message.end_ns or message.start_ns)
            if self.status is not GridStatus.EMERGENCY:
                self._set_status(GridStatus.ALERT, _told(message, site))
        elif isinstance(message, IntervalEnergy) and message.site_id == site:
            slots = self._intervals.setdefault(site, {})
            slots[message.slot_start_ns] = message
            if len(slots) > _SLOTS_KEPT:
                del slots[min(slots)]

    def _on_status(self, envelope: Envelope) -> None:
        status = envelope.data
        assert isinstance(status, GatewayStatus)
        if status.frequency_hz is not None and envelope.source.unit == status.site_id:
            self.frequency[status.site_id] = status.frequency_hz

    def _quiet(self, area_id: str, now: int) -> bool:
        """Whether nothing speaks for an emergency any more: frequency quiet, and no overload measured."""
        balance = self.monitor.balance(area_id, now)
        calm = not self._frequency_open and now - self._disturbed_ns > _CALM_NS
        return calm and (balance.loading is None or balance.loading <= 1.0)

    def _on_emergency(self, standing: Emergency) -> None:
        """Tell everybody; a real one halts the market where its rules say so, by the grid's status."""
        real = [one for one in self.emergency.standing.values() if not one.drill]
        over = standing.ended_ns is not None
        now = self._clock.utc_ns()
        if standing.drill:
            said = f"drill: {standing.ended_why if over else standing.reason}"
            self._emit(GridStatus.NORMAL, said, now, standing)
        elif real:
            worst = max(real, key=lambda one: one.stage)
            self.status = GridStatus.EMERGENCY
            self.status_reason = f"stage {worst.stage} in area {worst.area_id}: {worst.reason}"
            self._emit(self.status, self.status_reason, now, standing)
        else:
            disturbed = now - self._disturbed_ns <= _CALM_NS
            self.status = GridStatus.ALERT if disturbed else GridStatus.NORMAL
            self.status_reason = f"emergency over: {standing.ended_why}"
            self._emit(self.status, self.status_reason, now, standing)

    def _set_status(self, status: GridStatus, reason: str) -> None:
        if status is self.status:
            return
        self.status, self.status_reason = status, reason
        self._emit(status, reason, self._clock.utc_ns())

    def _emit(self, status: GridStatus, reason: str, now: int, about: Emergency | None = None) -> None:
        over = about is None or about.ended_ns is not None
        event = GridEvent(
            id=f"grid-{now // NS_PER_S}" if about is None else f"{about.id}-{len(about.log)}",
            time_ns=now,
            status=status,
            frequency_hz=next(iter(self.frequency.values()), None),
            reason=reason,
            stage=0 if about is None or over else about.stage,
            area_id="" if about is None else about.area_id,
            drill=about is not None and about.drill,
        )
        data: dict[str, JsonValue] = {
            "status": str(status), "reason": reason, "frequency_hz": event.frequency_hz, "stage": event.stage,
            "area_id": event.area_id, "drill": event.drill,
        }  # fmt: skip
        self._spawn(self._announce(event, Item(partition="fleet#grid", time_ns=now, id=event.id, data=data)))

    async def _announce(self, event: GridEvent, item: Item) -> None:
        await self._messenger.emit(event, as_agent=self.address, valid_for_s=600)
        await asyncio.to_thread(self._store.put, Table.GRID_METRICS, [item])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- time

    async def run(self) -> None:
        """Watch, announce, dispatch, measure, for ever."""
        with self._clock.runner():
            await self._load_intervals()
            self.response.tell_again()
            while True:
                now = self._clock.utc_ns()
                if self.status is GridStatus.ALERT and now - self._disturbed_ns > _CALM_NS:
                    self._set_status(GridStatus.NORMAL, "frequency quiet again")
                if self.config.demand_response.enabled and self.plans_days:
                    self._plan_day(now)
                await self.response.advance(now)
                await self.emergency.advance(now)
                self._look_ahead(now)
                mono = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(mono - mono % _STEP_NS + _STEP_NS)

    async def _load_intervals(self) -> None:
        """Metered energy of the last days, so that an event that began before a restart can be measured."""
        now = self._clock.utc_ns()
        for site in await asyncio.to_thread(self._store.partitions, Table.CONSUMER_METRICS):
            items = await asyncio.to_thread(
                self._store.query, Table.CONSUMER_METRICS, site, now - _LOOK_BACK_NS, now + _SLOT_NS
            )
            for item in items:
                if item.id == "interval":
                    self.on_record(site, message_from_json("wattmesh.metering.interval.v1", dict(item.data)))

    async def finish(self) -> None:
        """At a clean stop: measure and pay what has ended."""
        await self.response.advance(self._clock.utc_ns(), final=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _plan_day(self, now: int) -> None:
        """Once a day, at the first look: the window of the day's highest expected import, if it is a peak."""
        day = now // _DAY_NS
        if day == self.response.planned_day or not self._forecasts():
            return
        self.response.planned_day = day
        plan = self.plan_event()
        if plan is not None:
            try:
                self.response.create(plan, "forecast")
            except ConfigurationError as error:
                log.info("no event today: %s", error)

    def _look_ahead(self, now: int) -> None:
        """Every quarter hour: what is new among the warnings is said and kept."""
        if now - self._warned_ns < _WARN_NS:
            return
        self._warned_ns = now
        found = {one.id: one for one in self.monitor.warnings(now)}
        known = {(one.area_id, one.kind, one.element, one.level) for one in self._warned.values()}
        for one in found.values():
            if (one.area_id, one.kind, one.element, one.level) not in known:
                log.warning(
                    "%s of %s in area %s is %s in %d min",
                    one.kind,
                    one.element,
                    one.area_id,
                    one.level,
                    one.lead_s // 60,
                )
                item = Item(partition="fleet#warnings", time_ns=now, id=one.id, data=row_of(one))
                self._spawn(self._keep(item))
        self._warned = found

    async def _keep(self, item: Item) -> None:
        await asyncio.to_thread(self._store.put, Table.GRID_METRICS, [item])


def peak_window(
    forecasts: Mapping[str, Mapping[str, Forecast]], from_ns: int, length_ns: int, percentile: float
) -> tuple[int, float] | None:
    """Start and mean power of the window with the highest expected import of the fleet in the next day.

    None when the window's mean is below the given percentile of the slots (then there is no peak worth an event).
    """
    first = -(-from_ns // _SLOT_NS) * _SLOT_NS
    powers = []
    for slot in range(first, first + _DAY_NS, _SLOT_NS):
        total = 0.0
        for quantities in forecasts.values():
            load = median_of(quantities["load_wh"], slot) if "load_wh" in quantities else None
            pv = median_of(quantities["pv_wh"], slot) if "pv_wh" in quantities else None
            total += (load or 0.0) - (pv or 0.0)
        powers.append(total * 4)
    width = length_ns // _SLOT_NS
    means = [sum(powers[at : at + width]) / width for at in range(len(powers) - width + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    threshold = sorted(powers)[min(len(powers) - 1, int(len(powers) * percentile / 100))]
    if means[best] <= 0 or means[best] < threshold * 0.9:
        return None
    return first + best * _SLOT_NS, means[best]


def _told(event: FrequencyEvent, site: str) -> str:
    hertz = event.extreme_frequency_hz
    return f"{event.kind}{'' if hertz is None else f' of {hertz:.3f} Hz'} at {site}"
