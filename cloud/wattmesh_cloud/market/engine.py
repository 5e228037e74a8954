"""The market of one area as a state machine: inputs in, outputs out, the same inputs the same state.

Time comes in as an input (``now_ns``). Nothing here reads a clock, a file or the network.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wattmesh_a2a.market import Order, OrderKind, OrderStatus, RejectReason, Settlement, Side, Trade
from wattmesh_a2a.messages import Commitment, OrderResult
from wattmesh_a2a.tariff import price_ticks

from wattmesh_cloud.market.archive import Sums
from wattmesh_cloud.market.coupling import LINK, is_link
from wattmesh_cloud.market.ledger import GRID_OPERATOR, IMBALANCE, LEVIES, RETAILER
from wattmesh_cloud.market.mechanism import Mechanism
from wattmesh_cloud.market.products import Phase, Prices, Slot
from wattmesh_cloud.market.risk import Refusal, SiteState
from wattmesh_cloud.market.settlement import settlement_of, substitute_wh
from wattmesh_cloud.market.trading import AT_ONCE, NS, SELF_TRADE, Trading

_BUY, _SELL = Side.BUY, Side.SELL  # a look at an enumeration's class costs more than its comparison
OPERATOR = "operator"
_REMEMBER_PAID_NS = 400 * 86_400 * NS
"""How long a paid event is known, so that it is not paid again."""


class MarketEngine(Trading):
    """See the module; what it takes and holds: :class:`~wattmesh_cloud.market.trading.Trading`."""

    # -- orders

    def place(self, participant: str, orders: Sequence[Order], now_ns: int) -> list[OrderResult]:
        """New orders, each by itself; a repetition is answered with where its order stands. One result an order."""
        now_ns = self.advance(now_ns)
        if self.risk.too_fast(participant, len(orders), now_ns):
            return [self._refused(order.client_order_id, (RejectReason.RATE_LIMIT, "")) for order in orders]
        return [self._place(participant, order, now_ns) for order in orders]

    def _place(self, participant: str, order: Order, now_ns: int) -> OrderResult:
        slot = self.slots.get(order.slot_start_ns)
        known = slot.entries.get((participant, order.client_order_id)) if slot is not None else None
        if known is not None:
            if known.placed == order:
                return known.result()
            return self._refused(order.client_order_id, (RejectReason.DUPLICATE_ID, "known with other contents"))
        halted = self.halted if self.halts else None
        refusal = self.risk.refusal(participant, order, now_ns, halted=halted) or self._halt_of(
            slot, now_ns, participant
        )
        if refusal is None:
            limit, quantity = self._limit(order), order.quantity_wh
            if order.side is _BUY:
                change = (quantity, 0, quantity * limit if limit > 0 else 0)
            else:
                change = (0, quantity, quantity * -limit if limit < 0 else 0)
            refusal = self._collecting(slot, participant, order, now_ns) or self.risk.over(
                participant, slot, order.slot_start_ns, change, now_ns, self.open
            )
        if refusal is not None:
            return self._refused(order.client_order_id, refusal)
        return self._enter(participant, order, now_ns)

    def submit(self, participant: str, slot_ns: int, orders: Sequence[Order], now_ns: int) -> list[OrderResult]:
        """Replace a participant's orders of a slot as a whole; a repetition changes nothing. One result an order.

        Orders that are wrong by themselves are refused one by one; a limit that the rest breaks together refuses them all, and
        what stood before goes on to stand. A batch of none takes all orders of the slot back.
        """
        now_ns = self.advance(now_ns)
        if self.risk.too_fast(participant, len(orders), now_ns):
            return [self._refused(order.client_order_id, (RejectReason.RATE_LIMIT, "")) for order in orders]
        slot = self.slots.get(slot_ns)
        again = self._repeated(participant, slot, orders)
        if again is not None:
            return again
        refusals = [self._batch_refusal(participant, slot_ns, slot, order, orders, now_ns) for order in orders]
        accepted = [order for order, refusal in zip(orders, refusals, strict=True) if refusal is None]
        broken = self._batch_limit(participant, slot_ns, slot, accepted, now_ns)
        if broken is not None:
            refusals, accepted = [broken] * len(orders), []
        if slot is not None and (accepted or (not orders and self.risk.gate_open(slot_ns, now_ns))):
            for entry in list(slot.own.get(participant, {}).values()):
                self._withdraw(slot, entry, OrderStatus.CANCELLED)
                if not entry.filled_wh:  # its name is free again; one that has traded keeps it
                    del slot.entries[participant, entry.placed.client_order_id]
                    slot.positions[participant].orders -= 1
        return [
            self._enter(participant, order, now_ns)
            if refusal is None
            else self._refused(order.client_order_id, refusal)
            for order, refusal in zip(orders, refusals, strict=True)
        ]

    def _repeated(self, participant: str, slot: Slot | None, orders: Sequence[Order]) -> list[OrderResult] | None:
        """The answer to a batch that is already what stands, order for order; none for a new one."""
        if slot is None or not orders:
            return None
        known = [slot.entries.get((participant, order.client_order_id)) for order in orders]
        named = {order.client_order_id for order in orders}
        others = any(entry.placed.client_order_id not in named for entry in slot.own.get(participant, {}).values())
        if others or any(entry is None or entry.placed != order for entry, order in zip(known, orders, strict=True)):
            return None
        entries = [entry for entry in known if entry is not None]
        if any(not entry.filled_wh and not entry.open_wh for entry in entries):
            return None  # one of them was withdrawn since: the batch puts it in again
        return [entry.result() for entry in entries]

    def _batch_refusal(
        self, participant: str, slot_ns: int, slot: Slot | None, order: Order, batch: Sequence[Order], now_ns: int
    ) -> Refusal | None:
        refusal = self.risk.refusal(participant, order, now_ns, halted=self.halted)
        if refusal is not None:
            return refusal
        if order.slot_start_ns != slot_ns:
            return RejectReason.UNKNOWN_PRODUCT, "an order of another slot"
        refusal = self._halt_of(slot, now_ns, participant)
        if refusal is not None:
            return refusal
        done = slot.entries.get((participant, order.client_order_id)) if slot is not None else None
        if done is not None and done.filled_wh:
            return RejectReason.DUPLICATE_ID, "it has traded"
        if self._continuous(slot_ns, now_ns):
            return None
        if order.time_in_force in AT_ONCE:
            return RejectReason.BAD_TIME_IN_FORCE, "orders are only collected now"
        mates = self.risk.mates(participant)
        if (
            slot is not None and len(mates) > 1
        ):  # the batch replaces its own orders, and not those of the same owner's others
            met = self._meeting(slot, [name for name in mates if name != participant], order)
            if met is not None:
                return met
        if order.side is _SELL:
            limit = self._limit(order)
            for other in batch:
                if other.side is _BUY and other.slot_start_ns == slot_ns and self._limit(other) >= limit:
                    return RejectReason.SELF_TRADE, f"it would meet {other.client_order_id[:64]}"
        return None

    def _batch_limit(
        self, participant: str, slot_ns: int, slot: Slot | None, orders: Sequence[Order], now_ns: int
    ) -> Refusal | None:
        """Limits over the whole batch, less what it replaces."""
        if not orders:
            return None
        if len({order.client_order_id for order in orders}) != len(orders):
            return RejectReason.DUPLICATE_ID, "twice in one batch"
        buy = sum(order.quantity_wh for order in orders if order.side is _BUY)
        sell = sum(order.quantity_wh for order in orders if order.side is _SELL)
        cost = 0
        for order in orders:
            limit = self._limit(order)
            cost += order.quantity_wh * max(0, limit if order.side is _BUY else -limit)
        if slot is not None:
            for entry in slot.own.get(participant, {}).values():
                cost -= entry.open_wh * entry.cost_ticks
                if entry.buys:
                    buy -= entry.open_wh
                else:
                    sell -= entry.open_wh
        return self.risk.over(participant, slot, slot_ns, (buy, sell, cost), now_ns, self.open)

    def amend(
        self, participant: str, slot_ns: int, client_order_id: str, quantity_wh: int, limit_ticks: int, now_ns: int
    ) -> OrderResult:
        """Other terms for an open order; see :class:`wattmesh_a2a.messages.OrderAmend`."""
        now_ns = self.advance(now_ns)
        if self.risk.too_fast(participant, 1, now_ns):
            return self._refused(client_order_id, (RejectReason.RATE_LIMIT, ""))
        slot = self.open.get(slot_ns)
        entry = slot.entries.get((participant, client_order_id)) if slot is not None else None
        if slot is None or entry is None or entry.number not in slot.live:
            return self._refused(client_order_id, (RejectReason.UNKNOWN_ORDER, "not open in this product"))
        order = entry.order
        wanted = Order(
            client_order_id=client_order_id,
            participant_id=participant,
            area_id=order.area_id,
            slot_start_ns=slot_ns,
            side=order.side,
            quantity_wh=quantity_wh,
            price_ticks=limit_ticks,
            kind=order.kind,
            time_in_force=order.time_in_force,
            expires_ns=order.expires_ns,
        )
        refusal = self.risk.refusal(participant, wanted, now_ns, halted=self.halted)
        if refusal is None and now_ns < slot.halted_until_ns:
            refusal = RejectReason.HALTED, "the product's price moved too fast"
        if refusal is None and quantity_wh <= entry.filled_wh:
            refusal = RejectReason.BAD_QUANTITY, f"{entry.filled_wh} Wh of it have traded"
        limit = self._limit(wanted)
        if refusal is None:
            more = quantity_wh - entry.filled_wh - entry.open_wh
            worst = max(0, limit if order.side is _BUY else -limit)
            cost = (quantity_wh - entry.filled_wh) * worst - entry.open_wh * entry.cost_ticks
            change = (more, 0, cost) if order.side is _BUY else (0, more, cost)
            refusal = self._collecting(slot, participant, wanted, now_ns) or self.risk.over(
                participant, slot, slot_ns, change, now_ns, self.open
            )
        if refusal is not None:
            return self._refused(client_order_id, refusal)
        self._open(slot, entry, -entry.open_wh)
        entry.order = wanted
        entry.price_at(limit)
        self._open(slot, entry, quantity_wh - entry.filled_wh)
        assert slot.book is not None
        slot.book.matching = self._continuous(slot_ns, now_ns)
        before = slot.book.fill_count
        slot.book.amend(entry.number, limit, quantity_wh - entry.filled_wh)
        return self._after(slot, entry, before, now_ns)

    def cancel(
        self, participant: str, now_ns: int, *, slot_ns: int | None = None, client_order_ids: Sequence[str] = ()
    ) -> list[OrderResult]:
        """Take open orders back: the named ones, or all of a slot, or all; also while the market is halted."""
        now_ns = self.advance(now_ns)
        results: list[OrderResult] = []
        wanted = set(client_order_ids)
        for start in sorted(self.open) if slot_ns is None else [slot_ns]:
            slot = self.open.get(start)
            if slot is None or not self.risk.gate_open(start, now_ns):
                continue
            for entry in list(slot.own.get(participant, {}).values()):
                if not client_order_ids or entry.placed.client_order_id in wanted:
                    self._withdraw(slot, entry, OrderStatus.CANCELLED)
                    results.append(entry.result())
        found = {result.client_order_id for result in results}
        results += [
            self._refused(name, (RejectReason.UNKNOWN_ORDER, "not open"))
            for name in client_order_ids
            if name not in found
        ]
        return results

    def elsewhere(self, client_order_ids: Sequence[str]) -> list[OrderResult]:
        """Refuse what is asked of another area's orders."""
        refusal = (RejectReason.UNKNOWN_PRODUCT, f"this is area {self.config.area}")
        return [self._refused(name, refusal) for name in client_order_ids]

    # -- switches

    def halt(self, reason: str, cause: str = OPERATOR) -> None:
        """Take no orders until :meth:`resume` of the same cause; open orders stay and may be cancelled."""
        self.halts[cause] = reason

    def resume(self, cause: str = OPERATOR) -> None:
        """One cause to halt is gone."""
        self.halts.pop(cause, None)

    def suspend(self, participant: str, reason: str) -> int:
        """Switch a participant off: its open orders are withdrawn and new ones refused. How many were withdrawn."""
        self.risk.suspended[participant] = reason
        count = 0
        for start in sorted(self.open):
            slot = self.open[start]
            for entry in list(slot.own.get(participant, {}).values()):
                self._withdraw(slot, entry, OrderStatus.CANCELLED)
                count += 1
        return count

    def reinstate(self, participant: str) -> None:
        """A participant may trade again."""
        self.risk.suspended.pop(participant, None)

    def observe(self, participant: str, site: SiteState) -> None:
        """What a site can physically do, from its telemetry."""
        self.risk.sites[participant] = site

    # -- time

    def due(self, now_ns: int) -> list[int]:
        """Slots whose gate has closed and that are not cleared."""
        return sorted(start for start in self.open if start - self._close_ns <= now_ns)

    def exchange(self, slot_ns: int, link: str, energy_wh: int) -> None:
        """Let a line bring in (positive) or take out energy at any price in a slot's closing auction; once a slot."""
        slot = self.open.get(slot_ns)
        if slot is None or slot.exchange_wh is not None:
            return
        slot.exchange_wh = energy_wh
        if energy_wh:
            order = Order(
                client_order_id=link[:64],
                participant_id=f"{LINK}{link}",
                area_id=self.config.area,
                slot_start_ns=slot_ns,
                side=_SELL if energy_wh > 0 else _BUY,
                quantity_wh=abs(energy_wh),
                price_ticks=0,
                kind=OrderKind.MARKET,
            )
            self._enter(order.participant_id, order, self.advance(slot_ns - self._close_ns))

    def clear(self, slot_ns: int) -> list[Commitment]:
        """Close the gate of a slot: the mechanism's last trades are booked; the commitments of all that had orders in it."""
        slot = self.slots[slot_ns]
        if slot_ns in self.open:
            self._close(slot, self.mechanism, Phase.CLOSED)
        return [self.commitment(name, slot_ns) for name in slot.told]

    def void(self, slot_ns: int) -> list[Commitment]:
        """A slot whose delivery had begun before its gate was closed: nobody could still follow a new trade, so none is made.

        What had traded continuously was acknowledged to both sides and stands.
        """
        if slot_ns in self.open:
            self._close(self.slots[slot_ns], None, Phase.VOID)
        return [self.commitment(name, slot_ns) for name in self.slots[slot_ns].told]

    def _close(self, slot: Slot, mechanism: Mechanism | None, phase: Phase) -> None:
        book = slot.book
        assert book is not None
        self.advance(slot.start_ns - self._close_ns)
        traders = {name for name, own in slot.own.items() if own} | set(slot.trades_of)
        people = {name for name in traders if not is_link(name)}
        orders = [entry.order for entry in slot.entries.values() if entry.open_wh or entry.filled_wh]
        before = book.fill_count
        price = mechanism.close(book) if mechanism is not None else None
        if book.fill_count > before:
            self._book_closing(slot, before, slot.start_ns - self._close_ns)
        self._expire_all(slot)
        slot.told = tuple(sorted(people)) if phase is Phase.CLOSED or slot.trades else ()
        slot.offered = (
            len(orders),
            sum(order.quantity_wh for order in orders if order.side is _BUY),
            sum(order.quantity_wh for order in orders if order.side is _SELL),
        )
        slot.book, slot.phase = None, phase
        slot.close(price)
        del self.open[slot.start_ns]

    def commitment(self, participant: str, slot_ns: int) -> Commitment:
        """A participant's net of a cleared slot."""
        slot = self.slots.get(slot_ns)
        closed = slot is not None and slot.clearing is not None
        trades = tuple(slot.trades_of.get(participant, ())) if slot is not None and closed else ()
        net = sum(trade.quantity_wh if trade.buyer_id == participant else -trade.quantity_wh for trade in trades)
        return Commitment(
            participant_id=participant,
            area_id=self.config.area,
            slot_start_ns=slot_ns,
            slot_s=self.config.slot_s,
            net_wh=net,
            clearing_price_ticks=slot.clearing.price_ticks if slot is not None and slot.clearing is not None else None,
            trades=trades,
        )

    # -- settlement

    def settle(
        self, slot_ns: int, participant: str, metered_wh: int | None, *, substituted: bool = False
    ) -> Settlement | None:
        """Settle a participant's slot; a later call corrects a substituted one and changes nothing otherwise.

        Args:
            slot_ns: The slot's start.
            participant: Who; must not be new to the area.
            metered_wh: Import less export; none where no meter reported the whole slot: the stated substitute is taken.
            substituted: Whether the energy is an estimate that a later call may correct.
        """
        if slot_ns < self.archived_before_ns:
            return None
        slot = self.slots.setdefault(slot_ns, Slot(slot_ns))
        before = slot.settlements.get(participant)
        substituted = substituted or metered_wh is None
        if before is not None and (not before.substituted or substituted):
            return None
        trades = slot.trades_of.get(participant, [])
        method = "estimate" if substituted else "meter"
        if metered_wh is None:
            committed = sum(one.quantity_wh if one.buyer_id == participant else -one.quantity_wh for one in trades)
            metered_wh, method = substitute_wh(participant, slot_ns, committed, self.slots)
        return self._settled(slot, participant, trades, metered_wh, method, substituted=substituted)

    def _settled(
        self, slot: Slot, participant: str, trades: Sequence[Trade], metered: int, method: str, *, substituted: bool
    ) -> Settlement:
        before = slot.settlements.get(participant)
        if slot.prices is None:
            slot.prices = self._prices(slot.start_ns)
        settlement = settlement_of(
            participant,
            self.config.area,
            slot.start_ns,
            trades,
            metered,
            slot.prices,
            method=method,
            substituted=substituted,
            flexibility_units=slot.flexibility.get(participant, 0),
            revision=0 if before is None else before.revision + 1,
        )
        name = f"{participant}-{slot.start_ns // NS}" + (f"-r{settlement.revision}" if settlement.revision else "")
        for payee, reason, now, then in (
            (RETAILER, "residual", settlement.residual_units, before.residual_units if before is not None else 0),
            (GRID_OPERATOR, "fee", settlement.fee_units, before.fee_units if before is not None else 0),
            (LEVIES, "levy", settlement.levy_units, before.levy_units if before is not None else 0),
            (IMBALANCE, "imbalance", settlement.imbalance_units, before.imbalance_units if before is not None else 0),
        ):
            self.ledger.transfer(name, participant, payee, now - then, reason)
        slot.settlements[participant] = settlement
        return settlement

    def _prices(self, slot_ns: int) -> Prices:
        config = self.config
        return Prices(
            import_ticks=self.tariff.import_price_ticks(slot_ns),
            feed_in_ticks=self.tariff.feed_in_ticks(),
            fee_ticks=price_ticks(config.grid_fee),
            levy_ticks=price_ticks(config.levy),
            imbalance_ticks=price_ticks(config.imbalance_fee),
        )

    def pay_flexibility(self, event_id: str, participant: str, units: int, slot_ns: int | None = None) -> bool:
        """Pay for demand response, once an event and participant; the grid operator pays. Returns whether it was new.

        With a slot it stands in that slot's settlement, which is revised when it was settled before, unless it is archived.
        """
        key = f"{event_id}/{participant}"
        if key in self._flexibility or units < 0:
            return False
        self._flexibility[key] = self.now_ns if slot_ns is None else slot_ns
        self.ledger.transfer(key, GRID_OPERATOR, participant, units, "flexibility")
        if slot_ns is not None and slot_ns - slot_ns % self._slot_ns >= self.archived_before_ns:
            start = slot_ns - slot_ns % self._slot_ns
            slot = self.slots.setdefault(start, Slot(start))
            slot.flexibility[participant] = slot.flexibility.get(participant, 0) + units
            before = slot.settlements.get(participant)
            if before is not None and units:
                trades = slot.trades_of.get(participant, [])
                self._settled(
                    slot, participant, trades, before.metered_wh, before.method, substituted=before.substituted
                )
        return True

    def archive(self, before_ns: int) -> int:
        """Forget slots that delivered before a time, but for their sums: they can be neither traded nor settled any more.

        Returns:
            How many.
        """
        old = [start for start in self.slots if start < before_ns and start not in self.open]
        for start in old:
            slot = self.slots.pop(start)
            self.sums.add(slot)
            for trade in slot.trades:
                del self.trades[trade.id]
            if self.attic is not None:
                self.attic[start] = slot
        self.archived_before_ns = max(self.archived_before_ns, before_ns)
        for key in [key for key, paid_ns in self._flexibility.items() if paid_ns < before_ns - _REMEMBER_PAID_NS]:
            del self._flexibility[key]
        return len(old)

    # -- the state as a whole

    def dump(self) -> dict[str, Any]:
        """Everything that decides what comes next, as plain values: for snapshots and :meth:`state_hash`."""
        return {
            "now": self.now_ns,
            "ledger": self.ledger.dump(),
            "risk": self.risk.dump(),
            "slots": [slot.dump() for slot in self.slots.values()],
            "open": list(self.open),
            "rejects": dict(self.rejects),
            "halts": dict(self.halts),
            "owners": list(self._owners),
            "expiries": sorted(self._expiries),
            "flexibility": sorted(self._flexibility.items()),
            "archived": [self.archived_before_ns, self.sums.dump()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`dump` saw; the rules are those of :meth:`configure`."""
        self.now_ns = state["now"]
        self.ledger.restore(state["ledger"])
        self.risk.restore(state["risk"])
        rule = SELF_TRADE[self.config.self_trade]
        slots = [Slot.restored(row, self.risk.band, rule) for row in state["slots"]]
        self.slots = {slot.start_ns: slot for slot in slots}
        self.open = {start: self.slots[start] for start in state["open"]}
        self.trades = {trade.id: trade for slot in slots for trade in slot.trades}
        self.rejects, self.halts = Counter(state["rejects"]), dict(state["halts"])
        self._owners = {name: code for code, name in enumerate(state["owners"])}
        self._expiries = [(row[0], row[1], row[2]) for row in state["expiries"]]
        self._flexibility = dict(state["flexibility"])
        self.archived_before_ns, self.sums = state["archived"][0], Sums.restored(state["archived"][1])

    def state_hash(self) -> str:
        """A hash of all that matters: equal states, equal hashes."""
        return hashlib.sha256(json.dumps(self.dump(), sort_keys=True).encode()).hexdigest()
