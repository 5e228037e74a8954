"""The market supervisor: takes orders, keeps time, clears, tells everybody, settles on metered energy.

Everything that changes the market goes through :meth:`MarketService._commit`: first the journal, durable, then the replica, in
the journal's order. A replay of the journal is therefore the same market.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from wattmesh_a2a import tracing
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_from_json, message_to_bytes
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, MARKET_AGENT, Address, Envelope
from wattmesh_a2a.errors import UnauthorisedError, WattmeshError
from wattmesh_a2a.market import Order, RejectReason, Trade
from wattmesh_a2a.messages import (
    Commitment,
    CommitmentList,
    CommitmentQuery,
    Executions,
    IntervalEnergy,
    MarketRules,
    Message,
    OrderAmend,
    OrderBatch,
    OrderBatchResult,
    OrderCancel,
    OrderPlace,
    OrderResult,
)
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.market.answers import ENTRIES, MOST_TRADES, answer, short, too_fast
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.coupling import is_link
from wattmesh_cloud.market.door import Door
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.journal import Journal, journal_path
from wattmesh_cloud.market.marketdata import market_data
from wattmesh_cloud.market.replica import Standby, recovered, write_snapshot
from wattmesh_cloud.market.risk import SiteState
from wattmesh_cloud.market.rows import figures
from wattmesh_cloud.market.shelf import Shelf
from wattmesh_cloud.store.base import JsonValue, Store, Table

log = logging.getLogger(__name__)

Guard = Callable[[int], str | None]
"""Why the market has to be halted at a time; none when it need not be."""
SiteWatch = Callable[[], Mapping[str, SiteState]]
"""What is known of the sites' physics now."""

_STEP_NS = 10 * NS_PER_S
_RULES_NS = 60 * NS_PER_S
_LOOK_BACK_NS = 14 * 86_400 * NS_PER_S
_STORE_AGAIN_NS = 86_400 * NS_PER_S
_SNAPSHOT_ENTRIES = 50_000
_SITES_NS = 60 * NS_PER_S
_MOST_TRACES = 8
"""Of orders that one booking is linked with."""
_MOST_TRACED = 10_000
_DAY_NS = 86_400 * NS_PER_S
_MOST_TASKS = 5000
_TELL_EVERY_S = 0.02


class MarketService:
    """One area's market.

    Args:
        config: The area's rules.
        store: Gets trades, clearings and settlements; gives metered energy after a restart.
        messenger: Serves the address ``ORG/cloud/market-supervisor``.
        clock: The market's time.
        state: Folder of the journal.
        org: Of all addresses.
        warm: A standby that goes on as the writer.
    """

    def __init__(
        self,
        config: MarketConfig,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        org: str,
        *,
        warm: Standby | None = None,
    ) -> None:
        self.config = config
        self.address = Address(org, CLOUD_UNIT, MARKET_AGENT)
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._slot_ns = config.slot_s * NS_PER_S
        self._intervals: dict[int, dict[str, IntervalEnergy]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules_due_ns = 0
        self._sites_due_ns = 0
        self._guards: dict[str, Guard] = {}
        self._watch: SiteWatch | None = None
        self._gateways: dict[str, Address] = {}
        self._executed: list[tuple[str, Trade]] = []
        self._telling = False
        self._told_s = 0.0
        self._traces: dict[tuple[str, int], tuple[str, ...]] = {}
        self._journal = Journal(journal_path(state, config.area))
        self._snapshot = state / f"market-{config.area}.snapshot"
        self._replica = recovered(config, self._journal, self._snapshot, warm)
        self.before_close: Callable[[int], Awaitable[None]] | None = None
        """Is asked before a product's closing auction: a line to another area."""
        self._door = Door(self._replica.engine.risk, clock)
        self._shelf = Shelf(config.area, self._replica.engine, store)
        self._snapshot_due = self._replica.count + _SNAPSHOT_ENTRIES
        # The rules are in the journal, too: a changed file holds from here on and rewrites nothing.
        own = config.model_dump(mode="json", by_alias=True)
        if own != self._replica.rules:
            entry = {"what": "rules", "config": own}
            self._journal.append_now(entry)
            self._replica.apply(entry)
        self.engine.on_trade = lambda trade, maker, _: self._executed.append((maker, trade))
        self._unsettled = {slot.start_ns for slot in self.engine.slots.values() if self._to_settle(slot.start_ns)}

    @property
    def engine(self) -> MarketEngine:
        """The state machine. Look, and change nothing but by the service's methods."""
        return self._replica.engine

    def guard(self, cause: str, guard: Guard) -> None:
        """Halt the market while ``guard`` gives a reason; asked every few seconds of the market's time."""
        self._guards[cause] = guard

    def watch_sites(self, watch: SiteWatch) -> None:
        """Where the sites' telemetry comes from; used for participants that have to show that they can deliver."""
        self._watch = watch

    def register(self) -> None:
        """Begin to take orders when the messenger starts."""
        for kind in (OrderBatch, OrderPlace, OrderAmend, OrderCancel):
            self._messenger.on_request(kind, self.handle, as_agent=self.address)
        self._messenger.on_request(CommitmentQuery, self.handle, as_agent=self.address, idempotent=True)

    async def handle(self, envelope: Envelope) -> Message:
        """Answer an order, a change, a cancellation or a question of a participant."""
        message = envelope.data
        if isinstance(message, CommitmentQuery):
            return self._on_query(envelope, message)
        assert isinstance(message, OrderBatch | OrderPlace | OrderAmend | OrderCancel)
        own, flooding = envelope.source.unit == message.participant_id, self._door.floods(envelope.source, message)
        if not own:
            if not flooding:
                await self._unauthorised(envelope)
            raise UnauthorisedError(f"{envelope.source} may not order for {message.participant_id}")
        if flooding:
            return too_fast(message)
        results = await self._commit_message(ENTRIES[type(message)], message, self._clock.utc_ns())
        if isinstance(message, OrderBatch):
            return OrderBatchResult(slot_start_ns=message.slot_start_ns, results=tuple(results))
        return answer(results)

    # -- the journal

    async def _commit(self, entry: dict[str, Any]) -> Any:
        """Durable first, then in effect; entries take effect in the order in which they stand in the journal."""
        await self._journal.append(entry)
        return self._replica.apply(entry)

    async def _commit_message(self, what: str, message: Message, now: int) -> list[OrderResult]:
        body = b'{"what":"%s","now":%d,"batch":%s}' % (what.encode(), now, message_to_bytes(message))
        with tracing.span("market.journal", area=self.config.area):
            await self._journal.append_body(body)
        with tracing.span("market.apply", area=self.config.area):
            results = self._replica.apply_message(message, now)
        self._note_trace(message)
        if self._executed and not self._telling:
            self._telling = (
                True  # once for all that a group of the journal brings, and a busy market not for each group
            )
            loop = asyncio.get_running_loop()
            if loop.time() >= self._told_s + _TELL_EVERY_S:
                loop.call_soon(self._tell_executions)
            else:
                loop.call_at(self._told_s + _TELL_EVERY_S, self._tell_executions)
        return results

    async def _take_snapshot(self) -> None:
        state = self._replica.dump()
        if state["count"] != self._journal.count:
            return  # entries are durable whose effect is still to come: next time
        chain = self._journal.chain
        await asyncio.to_thread(write_snapshot, self._snapshot, state, chain)
        self._snapshot_due = state["count"] + _SNAPSHOT_ENTRIES

    def close(self) -> None:
        """Release the journal; the service is over."""
        self._journal.close()

    # -- messages

    async def submit(self, participant: str, slot_ns: int, orders: tuple[Order, ...]) -> list[OrderResult]:
        """Replace a participant's orders of a slot, by whoever may; one result an order, by the area's limits."""
        batch = OrderBatch(participant_id=participant, area_id=self.config.area, slot_start_ns=slot_ns, orders=orders)
        return await self._commit_message("orders", batch, self._clock.utc_ns())

    async def place(self, participant: str, orders: tuple[Order, ...]) -> list[OrderResult]:
        """New orders beside those that a participant has, by whoever may; one result an order, by the area's limits."""
        message = OrderPlace(participant_id=participant, area_id=self.config.area, orders=orders)
        return await self._commit_message("place", message, self._clock.utc_ns())

    async def cancel(
        self, participant: str, slot_ns: int | None, client_order_ids: tuple[str, ...] = ()
    ) -> list[OrderResult]:
        """Take open orders back, by whoever may; none named takes all."""
        message = OrderCancel(
            participant_id=participant,
            area_id=self.config.area,
            slot_start_ns=slot_ns,
            client_order_ids=client_order_ids,
        )
        return await self._commit_message("cancel", message, self._clock.utc_ns())

    async def _unauthorised(self, envelope: Envelope) -> None:
        """Only a participant's own unit orders for it; whoever else tries is refused, and the journal says so."""
        reason = str(RejectReason.NOT_AUTHORISED)
        await self._commit({"what": "refused", "reason": reason, "source": str(envelope.source)})

    def note_refusal(self, source: Address, fate: str) -> None:
        """Count an order that messaging has refused: malformed, late or unsigned."""
        self._door.note(source, fate)

    async def _journal_refusals(self) -> None:
        for entry in self._door.drained():
            await self._commit(entry)

    def _tell_executions(self) -> None:
        """Tell the owners of resting orders what has just traded; the others have it in their answer."""
        executed, self._executed, self._telling = self._executed, [], False
        self._told_s = asyncio.get_running_loop().time()
        by_owner: dict[str, list[Trade]] = {}
        for name, trade in executed:
            by_owner.setdefault(name, []).append(trade)
        for name, trades in by_owner.items():
            if len(self._tasks) >= _MOST_TASKS:
                log.warning("executions of %s are not told one by one; their commitments tell them", name)
                return
            for first in range(0, len(trades), MOST_TRADES):
                part = tuple(trades[first : first + MOST_TRADES])
                message = Executions(participant_id=name, area_id=self.config.area, trades=part)
                self._spawn(self._send(name, message, min(trade.slot_start_ns for trade in part)))

    async def _send(self, name: str, message: Message, expires_ns: int) -> bool:
        to = self._gateways.get(name) or self._gateways.setdefault(name, Address(self._org, name, GATEWAY_AGENT))
        try:
            await self._messenger.request(to, message, expires_ns=expires_ns, as_agent=self.address)
        except WattmeshError as error:
            log.info("%s of %s not delivered: %s", type(message).__name__, name, error)
            return False
        return True

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_query(self, envelope: Envelope, query: CommitmentQuery) -> CommitmentList:
        if envelope.source.unit != query.participant_id:
            raise UnauthorisedError(f"{envelope.source} may not ask for {query.participant_id}")
        slots = sorted(
            slot.start_ns
            for slot in self.engine.slots.values()
            if slot.clearing is not None and slot.start_ns >= query.from_ns and query.participant_id in slot.told
        )
        return CommitmentList(
            commitments=tuple(
                short(self.engine.commitment(query.participant_id, slot), trades=4) for slot in slots[-80:]
            )
        )

    def on_record(self, site: str, message: Message) -> None:
        """Take metered energy as it becomes durable (:meth:`wattmesh_cloud.ingest.Ingest.on_record`)."""
        if not isinstance(message, IntervalEnergy) or message.site_id != site or message.slot_s != self.config.slot_s:
            return
        slot, now = message.slot_start_ns, self._clock.utc_ns()
        whole = slot % self._slot_ns == 0 and now - _LOOK_BACK_NS <= slot <= now - self._slot_ns
        if not whole or min(message.import_wh, message.export_wh) < 0:
            return
        limits = self.engine.risk.limits.get(site)
        if limits is not None and not limits.plausible(message.import_wh, message.export_wh):
            # No money follows from a reading that the connection cannot carry: its slot gets the stated substitute.
            self.note_refusal(Address(self._org, site, GATEWAY_AGENT), "implausible_reading")
            return
        self._intervals.setdefault(message.slot_start_ns, {})[site] = message

    def _send_commitment(self, commitment: Commitment) -> None:
        self._spawn(self._deliver(short(commitment)))

    async def _deliver(self, commitment: Commitment) -> None:
        """Until acknowledged, or the slot is over; then the participant finds it when it asks."""
        name, slot = commitment.participant_id, commitment.slot_start_ns
        if await self._send(name, commitment, slot + self._slot_ns):
            await self._commit({"what": "delivered", "participant": name, "slot": slot})

    # -- time

    async def run(self) -> None:
        """Keep the market's time, for ever."""
        with self._clock.runner():
            await self._load_intervals()
            now = self._clock.utc_ns()
            await asyncio.to_thread(self._shelf.again, now - _STORE_AGAIN_NS)
            for name, slot in sorted(self._replica.unacknowledged):
                if slot + self._slot_ns > now:
                    self._send_commitment(self.engine.commitment(name, slot))
            while True:
                await self._step()
                now = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(now - now % _STEP_NS + _STEP_NS)

    async def _step(self) -> None:
        self._journal.check_ours()
        now = self._clock.utc_ns()
        await self._journal_refusals()
        await self._guarded(now)
        await self._observe(now)
        for slot in self.engine.due(now):
            what = "void" if now >= slot else "clear"
            if what == "clear" and self.before_close is not None:
                await self.before_close(slot)
            commitments = await self._commit({"what": what, "slot": slot})
            for commitment in commitments:
                self._send_commitment(commitment)
            self._executed.clear()  # the commitment tells them
            if self._to_settle(slot):
                self._unsettled.add(slot)
            await asyncio.to_thread(self._shelf.clearing, slot)
        await self._settle(now)
        if now >= self._rules_due_ns:
            self._rules_due_ns = now + _RULES_NS
            seen = market_data(self.engine, now)
            await self._messenger.emit(seen, as_agent=self.address, valid_for_s=300)
            await asyncio.to_thread(self._shelf.put, self._shelf.live(seen))
            await self._messenger.emit(self.rules(), as_agent=self.address, valid_for_s=300)
        before = now - now % _DAY_NS - self.config.keep_days * _DAY_NS
        if before > self.engine.archived_before_ns and min(self.engine.slots, default=before) < before:
            await self._commit({"what": "archive", "before": before})
        if self._replica.count >= self._snapshot_due:
            await self._take_snapshot()

    async def _guarded(self, now: int) -> None:
        for cause, guard in self._guards.items():
            reason = guard(now)
            if reason != self.engine.halts.get(cause):
                if reason is None:
                    await self._commit({"what": "resume", "cause": cause})
                else:
                    await self._commit({"what": "halt", "reason": reason, "cause": cause})

    async def _observe(self, now: int) -> None:
        """Write the physics of the sites that have to show it, once a minute and only what is new."""
        if self._watch is None or now < self._sites_due_ns:
            return
        self._sites_due_ns = now + _SITES_NS
        held, wanted = self.engine.risk.sites, {
            participant.id for participant in self.config.participants if participant.telemetry_max_age_s is not None
        }  # fmt: skip
        news = {
            name: [one.time_ns, one.output_w, one.generation_w, one.stored_wh]
            for name, one in self._watch().items()
            if name in wanted and one != held.get(name)
        }
        if news:
            await self._commit({"what": "observe", "sites": news})

    def rules(self) -> MarketRules:
        """What participants have to know."""
        config = self.config
        return MarketRules(
            area_id=config.area,
            slot_s=config.slot_s,
            gate_open_s=config.gate_open_s,
            gate_close_s=config.gate_close_s,
            currency=config.currency,
            feed_in_ticks=self.engine.tariff.feed_in_ticks(),
            halted=self.engine.halted is not None,
        )

    # -- settlement

    async def _load_intervals(self) -> None:
        now = self._clock.utc_ns()
        for participant in self.config.participants:
            items = await asyncio.to_thread(
                self._store.query,
                Table.CONSUMER_METRICS,
                participant.id,
                now - _LOOK_BACK_NS,
                now + self._slot_ns,
                limit=100_000,
            )
            for item in items:
                slot = self.engine.slots.get(item.time_ns)
                before = slot.settlements.get(participant.id) if slot is not None else None
                if item.id == "interval" and (before is None or before.substituted):
                    message = message_from_json("wattmesh.metering.interval.v1", dict(item.data))
                    self.on_record(participant.id, message)

    def _to_settle(self, slot_ns: int) -> bool:
        """Whether somebody traded a slot and has no settlement of it."""
        slot = self.engine.slots.get(slot_ns)
        return slot is not None and any(name not in slot.settlements for name in slot.trades_of if not is_link(name))

    async def _settle(self, now: int, *, final: bool = False) -> None:
        """Settle what can be: at once when every meter has reported a whole slot, else with substitutes after the wait.

        A reading that is missing or does not cover the whole slot is no reading: the engine takes its stated substitute, and a
        whole one that comes later corrects it. A slot that traded is settled even when no meter at all reports.
        """
        names = [participant.id for participant in self.config.participants]
        for slot_ns in sorted({*self._intervals, *self._unsettled}):
            readings = self._intervals.get(slot_ns, {})
            waited = now >= slot_ns + self._slot_ns + self.config.substitute_after_s * NS_PER_S
            whole = all(name in readings and readings[name].complete for name in names)
            if not (whole or waited or (final and readings)):
                continue
            for name in names:
                reading = readings.get(name)
                metered = reading.import_wh - reading.export_wh if reading is not None and reading.complete else None
                await self._settle_one(slot_ns, name, metered)
            await asyncio.to_thread(self._shelf.settlements, slot_ns)
            self._intervals.pop(slot_ns, None)
            self._unsettled.discard(slot_ns)

    async def _settle_one(self, slot_ns: int, name: str, metered: int | None) -> None:
        slot = self.engine.slots.get(slot_ns)
        before = slot.settlements.get(name) if slot is not None else None
        if before is not None and (not before.substituted or metered is None):
            return
        with tracing.span(
            "ledger.book", links=self._traces.get((name, slot_ns), ()), participant=name, slot_ns=slot_ns
        ):
            await self._commit(
                {
                    "what": "settle",
                    "slot": slot_ns,
                    "participant": name,
                    "metered": metered,
                    "substituted": metered is None,
                }
            )

    def _note_trace(self, message: Message) -> None:
        """Which traces a booking will belong to: those of the orders of its participant and slot, the newest few."""
        trace = tracing.current()
        slot = getattr(message, "slot_start_ns", None)
        if trace is None or slot is None or not isinstance(message, OrderBatch | OrderPlace):
            return
        known = self._traces.get((message.participant_id, slot), ())
        self._traces[message.participant_id, slot] = (*known, trace)[-_MOST_TRACES:]
        while len(self._traces) > _MOST_TRACED:
            del self._traces[next(iter(self._traces))]

    async def until(self, now_ns: int) -> None:
        """Let everything that came before take effect, and time come this far."""
        await self._commit({"what": "time", "now": now_ns})

    async def exchange(self, slot_ns: int, link: str, energy_wh: int) -> None:
        """Let a line bring in (positive) or take out energy in a slot's closing auction."""
        await self._commit({"what": "exchange", "slot": slot_ns, "link": link, "wh": energy_wh})

    async def settle_flexibility(
        self, event_id: str, participant: str, delivered_wh: int, price_ticks: int, slot_ns: int | None = None
    ) -> None:
        """Pay a participant for delivered demand response, once an event; it stands in the settlement of ``slot_ns``."""
        units = max(0, delivered_wh) * max(0, price_ticks)
        entry = {"what": "flexibility", "event": event_id, "participant": participant, "units": units, "slot": slot_ns}
        if await self._commit(entry) and slot_ns is not None:
            await asyncio.to_thread(self._shelf.settlements, slot_ns - slot_ns % self._slot_ns)

    async def halt(self, reason: str, cause: str | None = None) -> None:
        """Take no orders until :meth:`resume` of the same cause; the operator's where none is given."""
        await self._commit({"what": "halt", "reason": reason} | ({"cause": cause} if cause is not None else {}))

    async def resume(self, cause: str | None = None) -> None:
        """Take orders again, unless another cause halts the market."""
        await self._commit({"what": "resume"} | ({"cause": cause} if cause is not None else {}))

    async def suspend(self, participant: str, reason: str) -> int:
        """Switch a participant off and withdraw its open orders; how many."""
        count: int = await self._commit({"what": "suspend", "participant": participant, "reason": reason})
        return count

    async def reinstate(self, participant: str) -> None:
        """Let a participant trade again."""
        await self._commit({"what": "reinstate", "participant": participant})

    async def finish(self) -> None:
        """At a clean stop: settle whatever has been metered."""
        now = self._clock.utc_ns()
        for slot_ns in [slot for slot in self._intervals if slot + self._slot_ns > now]:
            del self._intervals[slot_ns]
        await self._settle(now, final=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._take_snapshot()

    # -- looking

    def snapshot(self, *, hashed: bool = False) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console; the state's hash is work and has to be asked for."""
        return figures(self.engine, hashed=hashed)

    def commitments(self) -> dict[str, dict[str, int]]:
        """Participant → slot → net Wh of every cleared slot it had orders in."""
        found: dict[str, dict[str, int]] = {}
        for slot in self.engine.slots.values():
            for name in slot.told:
                found.setdefault(name, {})[str(slot.start_ns)] = self.engine.commitment(name, slot.start_ns).net_wh
        return found
