"""The market supervisor: takes orders, keeps time, clears, tells everybody, settles on metered energy.

Everything that changes the market goes through :meth:`MarketService._commit`: first the journal, durable, then the engine, in
the journal's order. A replay of the journal is therefore the same market.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_from_json, message_to_json
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, MARKET_AGENT, Address, Envelope
from wattmesh_a2a.errors import UnauthorisedError, WattmeshError
from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT, Order
from wattmesh_a2a.messages import (
    Commitment,
    CommitmentList,
    CommitmentQuery,
    IntervalEnergy,
    MarketRules,
    Message,
    OrderBatch,
    OrderBatchResult,
    OrderResult,
)
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.market.ledger import GRID_OPERATOR, RETAILER
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

T = TypeVar("T")

_STEP_NS = 10 * NS_PER_S
_RULES_NS = 60 * NS_PER_S
_LOOK_BACK_NS = 14 * 86_400 * NS_PER_S
_STORE_AGAIN_NS = 86_400 * NS_PER_S


class MarketService:
    """One area's market.

    Args:
        config: The area's rules.
        store: Gets trades, clearings and settlements; gives metered energy after a restart.
        messenger: Serves the address ``ORG/cloud/market-supervisor``.
        clock: The market's time.
        state: Folder of the journal.
        org: Of all addresses.
    """

    def __init__(
        self, config: MarketConfig, store: Store, messenger: Messenger, clock: Clock, state: Path, org: str
    ) -> None:
        self.config = config
        self.engine = MarketEngine(config)
        self.address = Address(org, CLOUD_UNIT, MARKET_AGENT)
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._slot_ns = config.slot_s * NS_PER_S
        self._journal = Journal(state / f"market-{config.area}.journal")
        self._intervals: dict[int, dict[str, IntervalEnergy]] = {}
        self._unacknowledged: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules_due_ns = 0
        rules: dict[str, Any] | None = None
        for entry in self._journal.entries():
            self._replay(entry)
            rules = entry["config"] if entry["what"] == "rules" else rules
        # The rules are in the journal, too: a changed file holds from here on and rewrites nothing.
        own = config.model_dump(mode="json", by_alias=True)
        if own != rules:
            self._journal.append_now({"what": "rules", "config": own})
        self.engine.configure(config)

    def register(self) -> None:
        """Begin to take orders when the messenger starts."""
        self._messenger.on_request(OrderBatch, self._on_orders, as_agent=self.address)
        self._messenger.on_request(CommitmentQuery, self._on_query, as_agent=self.address, idempotent=True)

    # -- the journal

    async def _commit(self, entry: dict[str, Any], apply: Callable[[], T]) -> T:
        """Durable first, then in effect; entries take effect in the order in which they stand in the journal."""
        await self._journal.append(entry)
        return apply()

    def _replay(self, entry: dict[str, Any]) -> None:
        engine = self.engine
        match entry["what"]:
            case "rules":
                engine.configure(MarketConfig.model_validate(entry["config"]))
            case "void":
                engine.void(entry["slot"])
            case "orders":
                batch = message_from_json("wattmesh.market.orders.v1", entry["batch"])
                assert isinstance(batch, OrderBatch)
                engine.submit(batch.participant_id, batch.slot_start_ns, batch.orders, entry["now"])
            case "clear":
                for commitment in engine.clear(entry["slot"]):
                    self._unacknowledged.add((commitment.participant_id, entry["slot"]))
            case "delivered":
                self._unacknowledged.discard((entry["participant"], entry["slot"]))
            case "settle":
                engine.settle(entry["slot"], entry["participant"], entry["metered"], substituted=entry["substituted"])
            case "flexibility":
                engine.pay_flexibility(entry["event"], entry["participant"], entry["units"])
            case "halt":
                engine.halt(entry["reason"])
            case "resume":
                engine.resume()

    # -- messages

    async def _on_orders(self, envelope: Envelope) -> Message:
        batch = envelope.data
        assert isinstance(batch, OrderBatch)
        if envelope.source.unit != batch.participant_id:
            raise UnauthorisedError(f"{envelope.source} may not order for {batch.participant_id}")
        results = await self._submitted(batch)
        return OrderBatchResult(slot_start_ns=batch.slot_start_ns, results=tuple(results))

    async def submit(self, participant: str, slot_ns: int, orders: tuple[Order, ...]) -> list[OrderResult]:
        """Replace a participant's orders of a slot, by whoever may; one result an order, by the area's limits."""
        batch = OrderBatch(participant_id=participant, area_id=self.config.area, slot_start_ns=slot_ns, orders=orders)
        return await self._submitted(batch)

    async def _submitted(self, batch: OrderBatch) -> list[OrderResult]:
        now = self._clock.utc_ns()
        entry = {"what": "orders", "batch": message_to_json(batch), "now": now}
        return await self._commit(
            entry, lambda: self.engine.submit(batch.participant_id, batch.slot_start_ns, batch.orders, now)
        )

    async def _on_query(self, envelope: Envelope) -> Message:
        query = envelope.data
        assert isinstance(query, CommitmentQuery)
        if envelope.source.unit != query.participant_id:
            raise UnauthorisedError(f"{envelope.source} may not ask for {query.participant_id}")
        slots = sorted(
            slot.start_ns
            for slot in self.engine.slots.values()
            if slot.clearing is not None and slot.start_ns >= query.from_ns and query.participant_id in slot.orders
        )
        return CommitmentList(
            commitments=tuple(self.engine.commitment(query.participant_id, slot) for slot in slots[-200:])
        )

    def on_record(self, site: str, message: Message) -> None:
        """Take metered energy as it becomes durable (:meth:`wattmesh_cloud.ingest.Ingest.on_record`)."""
        if not isinstance(message, IntervalEnergy) or message.site_id != site or message.slot_s != self.config.slot_s:
            return
        slot, now = message.slot_start_ns, self._clock.utc_ns()
        whole = slot % self._slot_ns == 0 and now - _LOOK_BACK_NS <= slot <= now - self._slot_ns
        if whole and min(message.import_wh, message.export_wh) >= 0:
            self._intervals.setdefault(message.slot_start_ns, {})[site] = message

    def _send_commitment(self, commitment: Commitment) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(commitment))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, commitment: Commitment) -> None:
        """Until acknowledged, or the slot is over; then the participant finds it when it asks."""
        name, slot = commitment.participant_id, commitment.slot_start_ns
        to = Address(self._org, name, GATEWAY_AGENT)
        try:
            await self._messenger.request(to, commitment, expires_ns=slot + self._slot_ns, as_agent=self.address)
        except WattmeshError as error:
            log.info("commitment of %s not delivered: %s", name, error)
            return
        entry = {"what": "delivered", "participant": name, "slot": slot}
        await self._commit(entry, lambda: self._unacknowledged.discard((name, slot)))

    # -- time

    async def run(self) -> None:
        """Keep the market's time, for ever."""
        with self._clock.runner():
            await self._load_intervals()
            now = self._clock.utc_ns()
            await asyncio.to_thread(self._store_again, now - _STORE_AGAIN_NS)
            for name, slot in sorted(self._unacknowledged):
                if slot + self._slot_ns > now:
                    self._send_commitment(self.engine.commitment(name, slot))
            while True:
                await self._step()
                now = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(now - now % _STEP_NS + _STEP_NS)

    async def _step(self) -> None:
        now = self._clock.utc_ns()
        for slot in self.engine.due(now):
            if now >= slot:
                await self._commit({"what": "void", "slot": slot}, lambda slot=slot: self.engine.void(slot))  # type: ignore[misc]
                await asyncio.to_thread(self._store_clearing, slot)
                continue
            commitments = await self._commit({"what": "clear", "slot": slot}, lambda slot=slot: self.engine.clear(slot))  # type: ignore[misc]
            for commitment in commitments:
                self._unacknowledged.add((commitment.participant_id, slot))
                self._send_commitment(commitment)
            await asyncio.to_thread(self._store_clearing, slot)
        await self._settle(now)
        if now >= self._rules_due_ns:
            self._rules_due_ns = now + _RULES_NS
            await self._messenger.emit(self.rules(), as_agent=self.address, valid_for_s=300)

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

    async def _settle(self, now: int, *, final: bool = False) -> None:
        """Settle what can be: at once when every meter has reported a whole slot, else with substitutes after the wait.

        The substitute for a missing reading is the committed energy; an incomplete reading is used as it is, and marked.
        """
        names = [participant.id for participant in self.config.participants]
        for slot_ns in sorted(self._intervals):
            readings = self._intervals[slot_ns]
            waited = now >= slot_ns + self._slot_ns + self.config.substitute_after_s * NS_PER_S
            whole = all(name in readings and readings[name].complete for name in names)
            if not (whole or waited or final):
                continue
            for name in names:
                reading = readings.get(name)
                if reading is None:
                    metered, substituted = self.engine.commitment(name, slot_ns).net_wh, True
                else:
                    metered, substituted = reading.import_wh - reading.export_wh, not reading.complete
                await self._settle_one(slot_ns, name, metered, substituted=substituted)
            await asyncio.to_thread(self._store_settlements, slot_ns)
            del self._intervals[slot_ns]

    async def _settle_one(self, slot_ns: int, name: str, metered: int, *, substituted: bool) -> None:
        slot = self.engine.slots.get(slot_ns)
        before = slot.settlements.get(name) if slot is not None else None
        if before is not None and (not before.substituted or substituted):
            return
        entry = {
            "what": "settle",
            "slot": slot_ns,
            "participant": name,
            "metered": metered,
            "substituted": substituted,
        }
        await self._commit(entry, lambda: self.engine.settle(slot_ns, name, metered, substituted=substituted))

    async def settle_flexibility(self, event_id: str, participant: str, delivered_wh: int, price_ticks: int) -> None:
        """Pay a participant for delivered demand response, once an event."""
        units = max(0, delivered_wh) * max(0, price_ticks)
        entry = {"what": "flexibility", "event": event_id, "participant": participant, "units": units}
        await self._commit(entry, lambda: self.engine.pay_flexibility(event_id, participant, units))

    async def halt(self, reason: str) -> None:
        """Take no orders until :meth:`resume`."""
        await self._commit({"what": "halt", "reason": reason}, lambda: self.engine.halt(reason))

    async def resume(self) -> None:
        """Take orders again."""
        await self._commit({"what": "resume"}, self.engine.resume)

    async def finish(self) -> None:
        """At a clean stop: settle whatever has been metered."""
        now = self._clock.utc_ns()
        for slot_ns in [slot for slot in self._intervals if slot + self._slot_ns > now]:
            del self._intervals[slot_ns]
        await self._settle(now, final=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the store

    def _store_again(self, since_ns: int) -> None:
        """After a start: what the journal has and the store may not have got before the last stop."""
        for slot_ns in sorted(slot for slot in self.engine.slots if slot >= since_ns):
            if self.engine.slots[slot_ns].clearing is not None:
                self._store_clearing(slot_ns)
            self._store_settlements(slot_ns)

    def _store_clearing(self, slot_ns: int) -> None:
        clearing = self.engine.slots[slot_ns].clearing
        assert clearing is not None
        orders = self.engine.slots[slot_ns].all_orders()
        area = self.config.area
        data: dict[str, JsonValue] = {
            "price_ticks": clearing.price_ticks,
            "volume_wh": clearing.volume_wh,
            "trades": len(clearing.trades),
            "orders": len(orders),
            "bid_wh": sum(order.quantity_wh for order in orders if order.side == "buy"),
            "offered_wh": sum(order.quantity_wh for order in orders if order.side == "sell"),
            "welfare_units": clearing.welfare_units,
        }
        self._store.put(Table.MARKET_DATA, [Item(partition=f"{area}#slots", time_ns=slot_ns, id="clearing", data=data)])
        items = []
        for trade in clearing.trades:
            row = {name: value for name, value in _plain(trade).items() if name != "area_id"}
            items.append(Item(partition=f"{area}#trades", time_ns=slot_ns, id=trade.id, data=row))
        if items:
            self._store.put(Table.TRADE_DATA, items)

    def _store_settlements(self, slot_ns: int) -> None:
        items = [
            Item(partition=f"{name}#settlements", time_ns=slot_ns, id="settlement", data=_plain(settlement))
            for name, settlement in sorted(self.engine.slots[slot_ns].settlements.items())
        ]
        if items:
            self._store.put(Table.TRADE_DATA, items)

    # -- looking

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        engine, unit = self.engine, MONEY_UNITS_PER_CURRENCY_UNIT
        cleared = [slot for slot in engine.slots.values() if slot.clearing is not None]
        settled = [slot for slot in engine.slots.values() if slot.settlements]
        participants: dict[str, JsonValue] = {}
        for participant in self.config.participants:
            name = participant.id
            own = [slot.settlements[name] for slot in settled if name in slot.settlements]
            trades = sum(name in {trade.buyer_id, trade.seller_id} for trade in engine.trades.values())
            participants[name] = {
                "imported_wh": sum(max(0, one.metered_wh) for one in own),
                "exported_wh": sum(max(0, -one.metered_wh) for one in own),
                "trades": trades,
                "traded_wh": sum(abs(one.committed_wh) for one in own),
                "cost": -engine.ledger.balances[name] / unit,
                "paid_retail": -engine.ledger.paid[name, "residual"] / unit,
                "paid_trades": -engine.ledger.paid[name, "trade"] / unit,
                "received_flexibility": engine.ledger.paid[name, "flexibility"] / unit,
                "slots_settled": len(own),
                "slots_substituted": sum(one.substituted for one in own),
            }
        return {
            "area": self.config.area,
            "currency": self.config.currency,
            "halted": engine.halted,
            "trades": len(engine.trades),
            "volume_wh": sum(trade.quantity_wh for trade in engine.trades.values()),
            "slots_cleared": len(cleared),
            "slots_settled": len(settled),
            "ledger_sum_units": engine.ledger.total(),
            "ledger_bookings": engine.ledger.count,
            "ledger_digest": engine.ledger.digest,
            "state_hash": engine.state_hash(),
            "rejects": dict(engine.rejects),
            "retailer": engine.ledger.balances[RETAILER] / unit,
            "grid_operator": engine.ledger.balances[GRID_OPERATOR] / unit,
            "participants": participants,
        }

    def commitments(self) -> dict[str, dict[str, int]]:
        """Participant → slot → net Wh of every cleared slot it had orders in."""
        found: dict[str, dict[str, int]] = {}
        for slot in self.engine.slots.values():
            if slot.clearing is not None:
                for name in slot.orders:
                    found.setdefault(name, {})[str(slot.start_ns)] = self.engine.commitment(name, slot.start_ns).net_wh
        return found


def _plain(row: object) -> dict[str, JsonValue]:
    return {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]  # our slotted dataclasses
