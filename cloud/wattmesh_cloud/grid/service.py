"""The grid optimisation agent: what the grid's state is, and demand response from announcement to payment."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, GRID_AGENT, Address, Envelope
from wattmesh_a2a.errors import ConflictError, WattmeshError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import (
    DemandResponseDispatch,
    DemandResponseEvent,
    DemandResponseOffer,
    DemandResponseState,
    FrequencyEvent,
    FrequencyEventKind,
    GridEvent,
    GridStatus,
)
from wattmesh_a2a.messages import GatewayStatus, IntervalEnergy, Message
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.tariff import price_ticks

from wattmesh_cloud.forecasting.service import median_of
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

_STEP_NS = 60 * NS_PER_S
_SLOT_NS = 900 * NS_PER_S
_DAY_NS = 86_400 * NS_PER_S
_MEASURE_AFTER_NS = 2 * _SLOT_NS
_CALM_NS = 600 * NS_PER_S
"""After a frequency event the status goes back to normal when nothing came for so long."""
_REAL_ANSWER_S = 5.0
"""How long a site is waited for, all at the same time: one that is absent delays the others by no more."""
_LOOK_BACK_NS = 2 * _DAY_NS
_HARMLESS = frozenset({FrequencyEventKind.PHASE_STEP, FrequencyEventKind.INVALID})
"""News of a measurement, not of a grid in need."""
_OPEN_AT_MOST = 10_000

Pay = Callable[[str, str, int, int, int], Awaitable[None]]
"""(event, participant, delivered Wh, price in ticks, start of the event's first slot)."""


@dataclass(slots=True)
class Running:
    """A demand-response event with its answers."""

    event: DemandResponseEvent
    offers: dict[str, DemandResponseOffer] = field(default_factory=dict)
    dispatched: dict[str, DemandResponseDispatch] = field(default_factory=dict)
    delivered_wh: dict[str, int] = field(default_factory=dict)
    called: bool = False
    """Whether the sites have been asked and :attr:`dispatched` is the result."""


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
    ) -> None:
        self.config = config
        self.plans_days = True
        """Whether it calls a day's event by itself; not where an agent does (:meth:`announce`)."""
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._forecasts = forecasts
        self._pay = pay
        self.address = Address(org, CLOUD_UNIT, GRID_AGENT)
        self._file = state / "demand-response.json"
        self.status = GridStatus.NORMAL
        self.status_reason = ""
        self.frequency: dict[str, float] = {}
        self.frequency_events = 0
        self._frequency_open: set[str] = set()
        self._disturbed_ns = 0
        self._intervals: dict[str, dict[int, IntervalEnergy]] = {}
        self.running: dict[str, Running] = {}
        self.settled: list[dict[str, JsonValue]] = []
        self._planned_day = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._restore()

    def register(self) -> None:
        """Listen to gateways' health."""
        self._messenger.on_event(GatewayStatus, self._on_status)

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
            if self.status is not GridStatus.EMERGENCY:  # an event more makes an emergency no smaller
                self._set_status(GridStatus.ALERT, _told(message, site))
        elif isinstance(message, IntervalEnergy) and message.site_id == site:
            slots = self._intervals.setdefault(site, {})
            slots[message.slot_start_ns] = message
            if len(slots) > 400:
                del slots[min(slots)]

    def _on_status(self, envelope: Envelope) -> None:
        status = envelope.data
        assert isinstance(status, GatewayStatus)
        if status.frequency_hz is not None and envelope.source.unit == status.site_id:
            self.frequency[status.site_id] = status.frequency_hz

    def _set_status(self, status: GridStatus, reason: str) -> None:
        if status is self.status:
            return
        self.status, self.status_reason = status, reason
        now = self._clock.utc_ns()
        event = GridEvent(
            id=f"grid-{now // NS_PER_S}",
            time_ns=now,
            status=status,
            frequency_hz=next(iter(self.frequency.values()), None),
            reason=reason,
        )
        data: dict[str, JsonValue] = {"status": str(status), "reason": reason, "frequency_hz": event.frequency_hz}
        self._spawn(self._announce(event, Item(partition="fleet#grid", time_ns=now, id=event.id, data=data)))

    async def _announce(self, event: GridEvent, item: Item) -> None:
        await self._messenger.emit(event, as_agent=self.address, valid_for_s=600)
        await asyncio.to_thread(self._store.put, Table.GRID_METRICS, [item])

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]  # a coroutine
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- time

    async def run(self) -> None:
        """Watch, announce, dispatch, measure, for ever."""
        with self._clock.runner():
            await self._load_intervals()
            self._tell_again()
            while True:
                now = self._clock.utc_ns()
                if self.status is GridStatus.ALERT and now - self._disturbed_ns > _CALM_NS:
                    self._set_status(GridStatus.NORMAL, "frequency quiet again")
                if self.config.demand_response.enabled:
                    if self.plans_days:
                        self._plan_day(now)
                    await self._advance(now)
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

    def _tell_again(self) -> None:
        """After a restart: nobody knows which dispatches had arrived, and the same one twice has the effect of one."""
        now = self._clock.utc_ns()
        for running in self.running.values():
            if running.event.end_ns > now:
                for dispatch in running.dispatched.values():
                    self._spawn(self._tell(dispatch))

    async def finish(self) -> None:
        """At a clean stop: measure and pay what has ended."""
        await self._advance(self._clock.utc_ns(), final=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _plan_day(self, now: int) -> None:
        """Once a day, at the first look: the window of the day's highest expected import, if it is a peak."""
        day = now // _DAY_NS
        if day == self._planned_day or not self._forecasts():
            return
        self._planned_day = day
        config = self.config.demand_response
        window = peak_window(
            self._forecasts(), now + config.notice_s * NS_PER_S, config.duration_s * NS_PER_S, config.peak_percentile
        )
        if window is None:
            return
        start, mean_w = window
        if f"dr-{start // NS_PER_S}" not in self.running:
            target, reason = -round(mean_w * config.share), f"expected peak of {mean_w / 1000:.1f} kW"
            self.announce(start, config.duration_s, target, price_ticks(config.price), reason)

    # -- what an agent may ask for, after its guards

    def announce(self, start_ns: int, duration_s: int, target_w: int, price: int, reason: str) -> str:
        """A new event; the sites are asked when its notice begins. Its id.

        Raises:
            ConflictError: One with the same start is under way.
        """
        event = DemandResponseEvent(
            id=f"dr-{start_ns // NS_PER_S}",
            start_ns=start_ns,
            end_ns=start_ns + duration_s * NS_PER_S,
            target_w=target_w,
            price_ticks=price,
            state=DemandResponseState.ANNOUNCED,
            reason=reason,
        )
        if event.id in self.running:
            raise ConflictError(f"{event.id} is under way already")
        self.running[event.id] = Running(event)
        self._save()
        return event.id

    async def cancel(self, event_id: str) -> None:
        """Take back an event that is only announced.

        Raises:
            ConflictError: There is none of this id, or sites have been asked already.
        """
        running = self.running.get(event_id)
        if running is None or running.event.state is not DemandResponseState.ANNOUNCED:
            raise ConflictError(f"{event_id} is no event that is only announced")
        running.event = replace(running.event, state=DemandResponseState.CANCELLED)
        del self.running[event_id]
        self._save()
        await asyncio.to_thread(self._record, running)

    def declare(self, status: GridStatus, reason: str) -> None:
        """Tell everybody a status that an agent or a person has found."""
        if status is not GridStatus.NORMAL:
            self._disturbed_ns = max(self._disturbed_ns, self._clock.utc_ns())
        self._set_status(status, reason)

    def quiet_s(self, now_ns: int) -> float | None:
        """Time since the last disturbance; none where there was none."""
        return (now_ns - self._disturbed_ns) / NS_PER_S if self._disturbed_ns else None

    def known_events(self) -> list[DemandResponseEvent]:
        """Events under way, and settled ones as they ended."""
        over = [
            DemandResponseEvent(
                id=str(row["id"]),
                start_ns=int(str(row["start_ns"])),
                end_ns=int(str(row["end_ns"])),
                target_w=int(str(row["target_w"])),
                price_ticks=int(str(row["price_ticks"])),
                state=DemandResponseState(str(row["state"])),
                reason=str(row["reason"]),
            )
            for row in self.settled[-20:]
        ]
        return [*over, *(one.event for one in self.running.values())]

    async def _advance(self, now: int, *, final: bool = False) -> None:
        for running in list(self.running.values()):
            event = running.event
            ahead = event.start_ns - now
            if (
                event.state is DemandResponseState.ANNOUNCED
                and not final
                and 0 < ahead <= self.config.demand_response.notice_s * NS_PER_S
            ):
                running.event = replace(event, state=DemandResponseState.DISPATCHED)
                self._spawn(self._call(running))
            elif event.state is DemandResponseState.DISPATCHED and (now >= event.end_ns + _MEASURE_AFTER_NS or final):
                if now >= event.end_ns:
                    await self._measure(running)
            elif event.state is DemandResponseState.ANNOUNCED and ahead <= 0:
                running.event = replace(event, state=DemandResponseState.CANCELLED)
                await asyncio.to_thread(self._record, running)
                del self.running[event.id]
                self._save()

    # -- an event's life

    async def _call(self, running: Running) -> None:
        """Ask every site, take the cheapest offers up to the target, tell everybody what was taken."""
        event = running.event
        asked = replace(event, state=DemandResponseState.ANNOUNCED)
        answers = await asyncio.gather(*(self._ask(site, asked) for site in sorted(self._forecasts())))
        running.offers = {offer.site_id: offer for offer in answers if offer is not None}
        running.dispatched = least_cost(event, list(running.offers.values()))
        running.called = True
        self._save()
        await asyncio.gather(*(self._tell(one) for one in running.dispatched.values()))
        await asyncio.to_thread(self._record, running)

    async def _ask(self, site: str, event: DemandResponseEvent) -> DemandResponseOffer | None:
        to = Address(self._org, site, GATEWAY_AGENT)
        try:
            answer = await self._messenger.request(
                to, event, expires_ns=event.start_ns, timeout_s=_REAL_ANSWER_S, as_agent=self.address
            )
        except WattmeshError as error:
            log.info("%s did not answer %s: %s", site, event.id, error)
            return None
        if isinstance(answer, DemandResponseOffer) and answer.site_id == site and answer.event_id == event.id:
            return answer
        return None

    async def _tell(self, dispatch: DemandResponseDispatch) -> None:
        to = Address(self._org, dispatch.site_id, GATEWAY_AGENT)
        try:
            await self._messenger.request(to, dispatch, expires_ns=dispatch.end_ns, as_agent=self.address)
        except WattmeshError as error:
            log.info("dispatch for %s not delivered: %s", dispatch.site_id, error)

    async def _measure(self, running: Running) -> None:
        """Delivered: baseline less metered import, over the window, between 0 and what was dispatched; paid by the price.

        A quarter hour without a complete reading counts as nothing delivered.
        """
        event = running.event
        slots = range(event.start_ns, event.end_ns, _SLOT_NS)
        for site, dispatch in running.dispatched.items():
            readings = [self._intervals.get(site, {}).get(slot) for slot in slots]
            known = [reading for reading in readings if reading is not None and reading.complete]
            hours = _SLOT_NS / 3.6e12
            saved = sum(dispatch.baseline_w * hours - (one.import_wh - one.export_wh) for one in known)
            most = -dispatch.power_w * hours * len(known)
            delivered = round(min(max(0.0, saved), max(0.0, most)))
            running.delivered_wh[site] = delivered
            await self._pay(event.id, site, delivered, dispatch.price_ticks, event.start_ns)
        running.event = replace(event, state=DemandResponseState.SETTLED)
        await asyncio.to_thread(self._record, running)
        self.settled.append(_summary(running))
        del self.running[event.id]
        self._save()

    # -- keeping

    def _record(self, running: Running) -> None:
        event = running.event
        item = Item(partition="fleet#demand-response", time_ns=event.start_ns, id=event.id, data=_summary(running))
        self._store.put(Table.GRID_METRICS, [item])

    def _save(self) -> None:
        """Events under way, whole or not at all. Without the sites' answers an event is still only announced."""
        rows = [
            {
                "event": _plain(one.event if one.called else replace(one.event, state=DemandResponseState.ANNOUNCED)),
                "dispatched": [_plain(dispatch) for dispatch in one.dispatched.values()],
            }
            for one in self.running.values()
        ]
        draft = self._file.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"day": self._planned_day, "events": rows, "settled": self.settled}))
        draft.replace(self._file)

    def _restore(self) -> None:
        if not self._file.exists():
            return
        data = json.loads(self._file.read_text())
        self._planned_day = data["day"]
        self.settled = data["settled"]
        for row in data["events"]:
            event = DemandResponseEvent(**{**row["event"], "state": DemandResponseState(row["event"]["state"])})
            running = Running(event, called=event.state is not DemandResponseState.ANNOUNCED)
            running.dispatched = {one["site_id"]: DemandResponseDispatch(**one) for one in row["dispatched"]}
            self.running[event.id] = running

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        values = list(self.frequency.values())
        return {
            "status": str(self.status),
            "reason": self.status_reason,
            "frequency_hz": sum(values) / len(values) if values else None,
            "frequency_events": self.frequency_events,
            "demand_response": [*self.settled, *(_summary(one) for one in self.running.values())],
        }


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


def least_cost(event: DemandResponseEvent, offers: list[DemandResponseOffer]) -> dict[str, DemandResponseDispatch]:
    """Take offers from the cheapest on until the target is covered; all are paid the event's price."""
    left = -event.target_w
    taken: dict[str, DemandResponseDispatch] = {}
    for offer in sorted(offers, key=lambda one: (one.price_ticks, one.site_id)):
        power = min(left, -offer.offered_w)
        if power <= 0 or offer.price_ticks > event.price_ticks:
            continue
        left -= power
        taken[offer.site_id] = DemandResponseDispatch(
            event_id=event.id,
            site_id=offer.site_id,
            start_ns=event.start_ns,
            end_ns=event.end_ns,
            power_w=-power,
            baseline_w=offer.baseline_w,
            price_ticks=event.price_ticks,
        )
    return taken


def _told(event: FrequencyEvent, site: str) -> str:
    hertz = event.extreme_frequency_hz
    return f"{event.kind}{'' if hertz is None else f' of {hertz:.3f} Hz'} at {site}"


def _summary(running: Running) -> dict[str, JsonValue]:
    event = running.event
    return {
        "id": event.id,
        "start_ns": event.start_ns,
        "end_ns": event.end_ns,
        "target_w": event.target_w,
        "price_ticks": event.price_ticks,
        "state": str(event.state),
        "reason": event.reason,
        "offers": {site: offer.offered_w for site, offer in running.offers.items()},
        "dispatched_w": {site: one.power_w for site, one in running.dispatched.items()},
        "delivered_wh": dict(running.delivered_wh),
    }


def _plain(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]  # our slotted dataclasses
