"""How orders become trades. A mechanism is a small contract over one product's book; four of them stand here.

The rule of the call auction, its ties and its proof: docs/market.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wattmesh_a2a.market import Order, Side, Trade

from wattmesh_cloud.market.book import BUY, SELL, Book
from wattmesh_cloud.market.config import MarketConfig

NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """What came of one product."""

    price_ticks: int | None
    """The one price of its auction; none when it had none or nothing traded there."""
    volume_wh: int
    """Of all its trades."""
    trades: tuple[Trade, ...]
    welfare_units: int
    """Gain of buyers and sellers together against their limits, in tick · Wh."""


class Mechanism(Protocol):
    """When orders of a product trade, and at what price; deterministic, and time is what it is told."""

    def continuous(self, now_ns: int, gate_close_ns: int) -> bool:
        """Whether an order that arrives now trades at once; otherwise it is collected."""
        ...

    def close(self, book: Book) -> int | None:
        """The gate has closed: make the last trades in the book; their one price, if they have one."""
        ...


class UniformPriceCallAuction:
    """One price for all at gate closure: the one that trades most energy and leaves nobody with a better price behind.

    - Price: the middle, rounded down, of all prices at which every better-priced order of both sides trades in full.
    - Who trades: on each side the better-priced orders first and fully; those of the last price that still trades are shared
      in proportion to quantity, the odd watt-hours going to the largest remainders, then to the earlier order.
    """

    def continuous(self, now_ns: int, gate_close_ns: int) -> bool:
        """Never."""
        return False

    def close(self, book: Book) -> int | None:
        """See :class:`Mechanism`."""
        result = book.uncross()
        return None if result is None else result[0]

    def clear(self, area_id: str, slot_start_ns: int, orders: Sequence[Order]) -> Clearing:
        """Clear loose limit orders, whatever the order in which they are given: ties go by participant and order id.

        A participant never trades with itself: its offers at or below its own best bid are left out (a market refuses them on
        arrival, with a reason).
        """
        ranked = sorted(orders, key=_key)
        best_bid: dict[str, int] = {}
        for order in ranked:
            if order.side is Side.BUY:
                best_bid[order.participant_id] = max(
                    order.price_ticks, best_bid.get(order.participant_id, order.price_ticks)
                )
        kept = [
            order
            for order in ranked
            if order.side is Side.BUY
            or order.participant_id not in best_bid
            or order.price_ticks > best_bid[order.participant_id]
        ]
        if not kept:
            return Clearing(price_ticks=None, volume_wh=0, trades=(), welfare_units=0)
        prices = array("q", [order.price_ticks for order in kept])
        book = Book(min(prices), max(prices), matching=False)
        sides = array("q", [BUY if order.side is Side.BUY else SELL for order in kept])
        nobody = array("q", bytes(8 * len(kept)))
        book.load(nobody, sides, prices, array("q", [order.quantity_wh for order in kept]))
        price = self.close(book)
        head, volume, welfare = f"{area_id}-{slot_start_ns // NS}-", 0, 0
        trades: list[Trade] = []
        for seller, buyer, at, quantity in book.fills():
            buy, sell = kept[buyer - 1], kept[seller - 1]
            volume += quantity
            welfare += quantity * (buy.price_ticks - sell.price_ticks)
            trades.append(
                Trade(
                    id=f"{head}{len(trades) + 1}",
                    area_id=area_id,
                    slot_start_ns=slot_start_ns,
                    buyer_id=buy.participant_id,
                    seller_id=sell.participant_id,
                    quantity_wh=quantity,
                    price_ticks=at,
                    buy_order_id=buy.client_order_id,
                    sell_order_id=sell.client_order_id,
                )
            )
        return Clearing(price_ticks=price, volume_wh=volume, trades=tuple(trades), welfare_units=welfare)


class PayAsBidCallAuction(UniformPriceCallAuction):
    """The same orders trade as in the uniform auction, and every buyer pays its own limit."""

    def close(self, book: Book) -> int | None:
        """See :class:`Mechanism`."""
        book.uncross(pay_as_bid=True)
        return None


class ContinuousDoubleAuction:
    """Price-time priority from gate open to gate closure; every trade at the resting order's price."""

    def continuous(self, now_ns: int, gate_close_ns: int) -> bool:
        """Always."""
        return True

    def close(self, book: Book) -> int | None:
        """Nothing is left to trade: the book is never crossed."""
        return None


class ContinuousThenCall(UniformPriceCallAuction):
    """Continuous trading, and a call auction of what is left and what comes in its last minutes.

    Args:
        call_s: How long before gate closure orders are only collected.
    """

    def __init__(self, call_s: int) -> None:
        self._call_ns = call_s * NS

    def continuous(self, now_ns: int, gate_close_ns: int) -> bool:
        """Until the call begins."""
        return now_ns < gate_close_ns - self._call_ns


def mechanism_of(config: MarketConfig) -> Mechanism:
    """The mechanism that an area's rules name."""
    every: Mapping[str, Mechanism] = {
        "call": UniformPriceCallAuction(),
        "continuous": ContinuousDoubleAuction(),
        "continuous+call": ContinuousThenCall(config.call_s),
        "pay-as-bid": PayAsBidCallAuction(),
    }
    return every[config.mechanism]


def _key(order: Order) -> tuple[str, str]:
    """What tells orders apart: an id is its owner's own, and two owners may choose the same."""
    return order.participant_id, order.client_order_id
