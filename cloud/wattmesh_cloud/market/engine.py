"""The market of one area as a state machine: inputs in, outputs out, the same inputs the same state.

Time comes in as an input (``advance``). Nothing here reads a clock, a file or the network.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattmesh_a2a.market import (
    MONEY_UNITS_PER_CURRENCY_UNIT,
    Order,
    OrderStatus,
    RejectReason,
    Settlement,
    Side,
    Trade,
)
from wattmesh_a2a.messages import Commitment, OrderResult
from wattmesh_a2a.tariff import Tariff, price_ticks

from wattmesh_cloud.market.config import MarketConfig, ParticipantModel
from wattmesh_cloud.market.ledger import GRID_OPERATOR, RETAILER, Ledger
from wattmesh_cloud.market.mechanism import Clearing, Mechanism, UniformPriceCallAuction

NS = 1_000_000_000


@dataclass(slots=True)
class Slot:
    """One delivery slot."""

    start_ns: int
    orders: dict[str, tuple[Order, ...]] = field(default_factory=dict)
    """Participant → its orders, replaced as a whole."""
    clearing: Clearing | None = None
    settlements: dict[str, Settlement] = field(default_factory=dict)

    def all_orders(self) -> list[Order]:
        """The book."""
        return [order for name in sorted(self.orders) for order in self.orders[name]]


class MarketEngine:
    """See the module.

    Args:
        config: The area's rules.
        mechanism: How a book becomes trades.
    """

    def __init__(self, config: MarketConfig, mechanism: Mechanism | None = None) -> None:
        self.ledger = Ledger()
        self.slots: dict[int, Slot] = {}
        self.trades: dict[str, Trade] = {}
        self.rejects: Counter[str] = Counter()
        self.halted: str | None = None
        self.now_ns = 0
        self._mechanism = mechanism or UniformPriceCallAuction()
        self._flexibility: dict[str, int] = {}
        self.configure(config)

    def configure(self, config: MarketConfig) -> None:
        """Take rules that hold from now on. They are an input like any other: what was done under others stays done."""
        self.config = config
        self.tariff: Tariff = config.tariff.tariff(config.time_zone)
        self._participants: Mapping[str, ParticipantModel] = {one.id: one for one in config.participants}
        self._slot_ns = config.slot_s * NS
        self._band = price_ticks(config.price_band)

    # -- orders

    def submit(self, participant: str, slot_ns: int, orders: Sequence[Order], now_ns: int) -> list[OrderResult]:
        """Replace a participant's orders of a slot; a repetition changes nothing. One result an order."""
        self.now_ns = max(self.now_ns, now_ns)
        results = [self._checked(participant, slot_ns, order, now_ns) for order in orders]
        accepted = tuple(
            order for order, result in zip(orders, results, strict=True) if result.status is OrderStatus.ACCEPTED
        )
        limit = self._batch_limit(participant, slot_ns, accepted)
        if limit is not None:
            results = [
                OrderResult(client_order_id=order.client_order_id, status=OrderStatus.REJECTED, reason=limit)
                for order in orders
            ]
            accepted = ()
        for result in results:
            if result.reason is not None:
                self.rejects[result.reason] += 1
        if not orders and slot_ns in self.slots and self._gate_open(slot_ns, now_ns):
            self.slots[slot_ns].orders.pop(participant, None)  # a batch of none takes all orders back
        if accepted:
            self.slots.setdefault(slot_ns, Slot(slot_ns)).orders[participant] = accepted
        return results

    def _checked(self, participant: str, slot_ns: int, order: Order, now_ns: int) -> OrderResult:
        reason, detail = self._reject_reason(participant, slot_ns, order, now_ns)
        status = OrderStatus.ACCEPTED if reason is None else OrderStatus.REJECTED
        return OrderResult(client_order_id=order.client_order_id, status=status, reason=reason, detail=detail)

    def _reject_reason(
        self, participant: str, slot_ns: int, order: Order, now_ns: int
    ) -> tuple[RejectReason | None, str]:
        config, known = self.config, self._participants.get(participant)
        if known is None:
            return RejectReason.UNKNOWN_PARTICIPANT, participant
        if order.participant_id != participant:
            return RejectReason.NOT_AUTHORISED, "an order of somebody else"
        if order.area_id != config.area or order.slot_start_ns != slot_ns or slot_ns % self._slot_ns:
            return RejectReason.UNKNOWN_PRODUCT, f"area {config.area}, slots of {config.slot_s} s"
        if self.halted:
            return RejectReason.HALTED, self.halted
        if not self._gate_open(slot_ns, now_ns):
            return RejectReason.GATE_CLOSED, "the gate is not open"
        if order.quantity_wh <= 0:
            return RejectReason.BAD_QUANTITY, "whole watt-hours above 0"
        if abs(order.price_ticks) > self._band:
            return RejectReason.BAD_PRICE, f"within ±{self._band} ticks"
        limit_w = known.import_limit_w if order.side is Side.BUY else known.export_limit_w
        if order.quantity_wh > limit_w * config.slot_s / 3600:
            return RejectReason.INFEASIBLE, f"the connection carries {limit_w:g} W"
        return None, ""

    def _gate_open(self, slot_ns: int, now_ns: int) -> bool:
        return slot_ns - self.config.gate_open_s * NS <= now_ns < slot_ns - self.config.gate_close_s * NS

    def _batch_limit(self, participant: str, slot_ns: int, orders: Sequence[Order]) -> RejectReason | None:
        """Limits over all open orders of a participant, at their worst prices."""
        known = self._participants.get(participant)
        if known is None or not orders:
            return None
        ids = [order.client_order_id for order in orders]
        if len(set(ids)) != len(ids):
            return RejectReason.DUPLICATE_ID
        for side, limit_w in ((Side.BUY, known.import_limit_w), (Side.SELL, known.export_limit_w)):
            energy = sum(order.quantity_wh for order in orders if order.side is side)
            if energy > limit_w * self.config.slot_s / 3600:
                return RejectReason.POSITION_LIMIT
        exposure = sum(_cost(order) for order in orders)
        for slot in self.slots.values():
            if slot.clearing is None and slot.start_ns != slot_ns:
                exposure += sum(_cost(order) for order in slot.orders.get(participant, ()))
        owed = -min(0, self.ledger.balances[participant] - self._retail_paid(participant))
        if exposure + owed > known.credit_limit * MONEY_UNITS_PER_CURRENCY_UNIT:
            return RejectReason.CREDIT_LIMIT
        return None

    def _retail_paid(self, participant: str) -> int:
        """What went to the retailer is billed by the retailer, and no risk of the market."""
        return self.ledger.paid[participant, "residual"]

    def halt(self, reason: str) -> None:
        """Take no orders until :meth:`resume`."""
        self.halted = reason

    def resume(self) -> None:
        """Take orders again."""
        self.halted = None

    # -- time

    def due(self, now_ns: int) -> list[int]:
        """Slots whose gate has closed and that are not cleared."""
        close = self.config.gate_close_s * NS
        return sorted(
            slot.start_ns for slot in self.slots.values() if slot.clearing is None and slot.start_ns - close <= now_ns
        )

    def clear(self, slot_ns: int) -> list[Commitment]:
        """Close the gate of a slot: its trades are booked; the commitments of all that had orders in it."""
        slot = self.slots[slot_ns]
        if slot.clearing is None:
            slot.clearing = self._mechanism.clear(self.config.area, slot_ns, slot.all_orders())
            for trade in slot.clearing.trades:
                self.trades[trade.id] = trade
                self.ledger.transfer(
                    trade.id, trade.buyer_id, trade.seller_id, trade.quantity_wh * trade.price_ticks, "trade"
                )
        return [self.commitment(name, slot_ns) for name in sorted(slot.orders)]

    def void(self, slot_ns: int) -> None:
        """A slot whose delivery had begun before it could be cleared: nobody could still follow a commitment, so none is made."""
        slot = self.slots[slot_ns]
        if slot.clearing is None:
            slot.clearing = Clearing(price_ticks=None, volume_wh=0, trades=(), welfare_units=0)

    def commitment(self, participant: str, slot_ns: int) -> Commitment:
        """A participant's net of a cleared slot."""
        slot = self.slots.get(slot_ns)
        clearing = slot.clearing if slot is not None else None
        trades = tuple(
            trade
            for trade in (clearing.trades if clearing is not None else ())
            if participant in {trade.buyer_id, trade.seller_id}
        )
        net = sum(trade.quantity_wh if trade.buyer_id == participant else -trade.quantity_wh for trade in trades)
        return Commitment(
            participant_id=participant,
            area_id=self.config.area,
            slot_start_ns=slot_ns,
            slot_s=self.config.slot_s,
            net_wh=net,
            clearing_price_ticks=clearing.price_ticks if clearing is not None else None,
            trades=trades,
        )

    # -- settlement

    def settle(self, slot_ns: int, participant: str, metered_wh: int, *, substituted: bool) -> Settlement | None:
        """Settle a participant's slot; a second call corrects a substituted one and changes nothing otherwise.

        The residual, metered less committed, is bought from the retailer at the tariff's price of the slot when positive,
        and sold to it at the feed-in price when negative.
        """
        slot = self.slots.setdefault(slot_ns, Slot(slot_ns))
        before = slot.settlements.get(participant)
        if before is not None and (not before.substituted or substituted):
            return None
        commitment = self.commitment(participant, slot_ns)
        residual = metered_wh - commitment.net_wh
        price = self.tariff.import_price_ticks(slot_ns) if residual > 0 else self.tariff.feed_in_ticks()
        settlement = Settlement(
            participant_id=participant,
            area_id=self.config.area,
            slot_start_ns=slot_ns,
            committed_wh=commitment.net_wh,
            metered_wh=metered_wh,
            substituted=substituted,
            trade_units=sum(
                (1 if trade.buyer_id == participant else -1) * trade.quantity_wh * trade.price_ticks
                for trade in commitment.trades
            ),
            residual_units=residual * price,
            flexibility_units=before.flexibility_units if before is not None else 0,
        )
        already = before.residual_units if before is not None else 0
        self.ledger.transfer(
            f"{participant}-{slot_ns // NS}", participant, RETAILER, settlement.residual_units - already, "residual"
        )
        slot.settlements[participant] = settlement
        return settlement

    def pay_flexibility(self, event_id: str, participant: str, units: int) -> bool:
        """Pay for demand response, once an event and participant; the grid operator pays. Returns whether it was new."""
        key = f"{event_id}/{participant}"
        if key in self._flexibility or units < 0:
            return False
        self._flexibility[key] = units
        self.ledger.transfer(key, GRID_OPERATOR, participant, units, "flexibility")
        return True

    def state_hash(self) -> str:
        """A hash of all that matters: equal states, equal hashes."""
        state: dict[str, Any] = {
            "ledger": self.ledger.digest,
            "trades": [repr(self.trades[name]) for name in sorted(self.trades)],
            "books": {slot.start_ns: sorted(map(repr, slot.all_orders())) for slot in self.slots.values()},
            "settled": {
                slot.start_ns: [repr(slot.settlements[name]) for name in sorted(slot.settlements)]
                for slot in self.slots.values()
                if slot.settlements
            },
            "halted": self.halted,
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _cost(order: Order) -> int:
    """What an order may cost its owner at worst: a purchase its price, a sale at a negative price what it pays to be rid of it.

    Energy that is sold and not delivered is bought from the retailer, who bills it; that is no credit of the market's.
    """
    price = order.price_ticks if order.side is Side.BUY else -order.price_ticks
    return order.quantity_wh * max(0, price)
