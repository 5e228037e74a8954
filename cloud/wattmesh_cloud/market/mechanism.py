"""How a book becomes trades. A mechanism is a small contract; the uniform-price call auction is the first one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from wattmesh_a2a.market import Order, Side, Trade


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """What came of one book."""

    price_ticks: int | None
    """The one price of all trades; none when nothing trades."""
    volume_wh: int
    trades: tuple[Trade, ...]
    welfare_units: int
    """Gain of buyers and sellers together against their limits, in tick · Wh."""


class Mechanism(Protocol):
    """Clears the book of one slot; deterministic: the same orders in any order give the same trades."""

    def clear(self, area_id: str, slot_start_ns: int, orders: Sequence[Order]) -> Clearing:
        """The trades of a book."""
        ...


class UniformPriceCallAuction:
    """One price for all: the one that trades most energy.

    - Price: of all prices that trade the most, the middle of the lowest and highest (rounded down).
    - Who trades: bids above the price and offers below it fully; at the price, the longer side is shared in proportion to
      quantity, the odd watt-hours going to the largest remainders, ties by order id.
    - A participant never trades with itself: what it offers and bids itself is netted first, the dearer part stays.
    """

    def clear(self, area_id: str, slot_start_ns: int, orders: Sequence[Order]) -> Clearing:
        """See :class:`Mechanism`."""
        bids, asks = _without_self_trades(orders)
        price = _clearing_price(bids, asks)
        if price is None:
            return Clearing(price_ticks=None, volume_wh=0, trades=(), welfare_units=0)
        buyers = [order for order in bids if order.price_ticks >= price]
        sellers = [order for order in asks if order.price_ticks <= price]
        volume = min(_total(buyers), _total(sellers))
        bought = _fill(buyers, volume, better=lambda order: order.price_ticks > price)
        sold = _fill(sellers, volume, better=lambda order: order.price_ticks < price)
        welfare = sum((order.price_ticks - price) * fill for order, fill in bought)
        welfare += sum((price - order.price_ticks) * fill for order, fill in sold)
        trades = _pair(area_id, slot_start_ns, price, bought, sold)
        return Clearing(price_ticks=price, volume_wh=volume, trades=trades, welfare_units=welfare)


def _total(orders: Sequence[Order]) -> int:
    return sum(order.quantity_wh for order in orders)


def _without_self_trades(orders: Sequence[Order]) -> tuple[list[Order], list[Order]]:
    """Bids from the dearest and asks from the cheapest on; a participant that crosses itself loses its worse asks."""
    bids = sorted((o for o in orders if o.side is Side.BUY), key=lambda o: (-o.price_ticks, o.client_order_id))
    asks = sorted((o for o in orders if o.side is Side.SELL), key=lambda o: (o.price_ticks, o.client_order_id))
    best_bid: dict[str, int] = {}
    for order in bids:
        best_bid.setdefault(order.participant_id, order.price_ticks)
    kept = [o for o in asks if o.participant_id not in best_bid or o.price_ticks > best_bid[o.participant_id]]
    return bids, kept


def _clearing_price(bids: Sequence[Order], asks: Sequence[Order]) -> int | None:
    """The middle of the prices that maximise volume; none when the book does not cross."""
    if not bids or not asks or bids[0].price_ticks < asks[0].price_ticks:
        return None
    demand: dict[int, int] = defaultdict(int)
    supply: dict[int, int] = defaultdict(int)
    for order in bids:
        demand[order.price_ticks] += order.quantity_wh
    for order in asks:
        supply[order.price_ticks] += order.quantity_wh
    prices = sorted({*demand, *supply})
    offered = list(accumulate(supply.get(price, 0) for price in prices))
    wanted = list(accumulate(demand.get(price, 0) for price in reversed(prices)))[::-1]
    volumes = [min(pair) for pair in zip(wanted, offered, strict=True)]
    most = max(volumes)
    best = [price for price, volume in zip(prices, volumes, strict=True) if volume == most]
    return (best[0] + best[-1]) // 2


def _fill(orders: Sequence[Order], volume: int, better: Callable[[Order], bool]) -> list[tuple[Order, int]]:
    """Share a volume over one side: better-priced orders fully, the marginal ones in proportion."""
    full = [(order, order.quantity_wh) for order in orders if better(order)]
    marginal = [order for order in orders if not better(order)]
    left = volume - sum(fill for _, fill in full)
    if left < 0:  # the better-priced ones alone are more than the other side has: they share in proportion
        return _pro_rata([order for order, _ in full], volume)
    return full + _pro_rata(marginal, left)


def _pro_rata(orders: Sequence[Order], volume: int) -> list[tuple[Order, int]]:
    total = _total(orders)
    if volume <= 0 or total == 0:
        return []
    volume = min(volume, total)
    shares = [(order, *divmod(order.quantity_wh * volume, total)) for order in orders]
    odd = volume - sum(share for _, share, _ in shares)
    lucky = {
        order.client_order_id for order, _, _ in sorted(shares, key=lambda row: (-row[2], row[0].client_order_id))[:odd]
    }
    filled = [(order, share + (order.client_order_id in lucky)) for order, share, _ in shares]
    return [(order, share) for order, share in filled if share]


def _pair(
    area: str, slot: int, price: int, bought: Sequence[tuple[Order, int]], sold: Sequence[tuple[Order, int]]
) -> tuple[Trade, ...]:
    """Buyers and sellers matched in order of id, so that a replay makes the same trades with the same ids."""
    buyers = [[order, fill] for order, fill in sorted(bought, key=lambda row: row[0].client_order_id)]
    sellers = [[order, fill] for order, fill in sorted(sold, key=lambda row: row[0].client_order_id)]
    trades: list[Trade] = []
    i = j = 0
    while i < len(buyers) and j < len(sellers):
        (buy, wanted), (sell, offered) = buyers[i], sellers[j]
        quantity = min(wanted, offered)
        trades.append(
            Trade(
                id=f"{area}-{slot // 1_000_000_000}-{len(trades) + 1}",
                area_id=area,
                slot_start_ns=slot,
                buyer_id=buy.participant_id,
                seller_id=sell.participant_id,
                quantity_wh=quantity,
                price_ticks=price,
                buy_order_id=buy.client_order_id,
                sell_order_id=sell.client_order_id,
            )
        )
        buyers[i][1] -= quantity
        sellers[j][1] -= quantity
        i += buyers[i][1] == 0
        j += sellers[j][1] == 0
    return tuple(trades)
