"""How a book becomes trades. A mechanism is a small contract; the uniform-price call auction is the first one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
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
    - Who trades: on each side the better-priced orders first and fully; those of the last price that still trades are shared
      in proportion to quantity, the odd watt-hours going to the largest remainders, ties by order id.
    - A participant never trades with itself: its offers at or below its own best bid are left out.
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
        bought = _fill(buyers, volume)
        sold = _fill(sellers, volume)
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


def _fill(orders: Sequence[Order], volume: int) -> list[tuple[Order, int]]:
    """Share a volume over one side (the best price first): price by price fully, the last one in proportion."""
    filled: list[tuple[Order, int]] = []
    left = volume
    for _, level in groupby(orders, key=lambda order: order.price_ticks):
        shares = _pro_rata(list(level), left)
        filled += shares
        left -= sum(share for _, share in shares)
    return filled


def _pro_rata(orders: Sequence[Order], volume: int) -> list[tuple[Order, int]]:
    total = _total(orders)
    if volume <= 0 or total == 0:
        return []
    volume = min(volume, total)
    shares = [(order, *divmod(order.quantity_wh * volume, total)) for order in orders]
    odd = volume - sum(share for _, share, _ in shares)
    lucky = {_key(order) for order, _, _ in sorted(shares, key=lambda row: (-row[2], _key(row[0])))[:odd]}
    filled = [(order, share + (_key(order) in lucky)) for order, share, _ in shares]
    return [(order, share) for order, share in filled if share]


def _key(order: Order) -> tuple[str, str]:
    """What tells orders apart: an id is its owner's own, and two owners may choose the same."""
    return order.participant_id, order.client_order_id


def _by_id(row: tuple[Order, int]) -> tuple[str, str]:
    return _key(row[0])


def _pair(
    area: str, slot: int, price: int, bought: Sequence[tuple[Order, int]], sold: Sequence[tuple[Order, int]]
) -> tuple[Trade, ...]:
    """Buyers and sellers matched in order of id, so that a replay makes the same trades with the same ids."""
    buyers, sellers = sorted(bought, key=_by_id), sorted(sold, key=_by_id)
    to_buy, to_sell = [fill for _, fill in buyers], [fill for _, fill in sellers]
    trades: list[Trade] = []
    i = j = 0
    while i < len(buyers) and j < len(sellers):
        buy, sell = buyers[i][0], sellers[j][0]
        quantity = min(to_buy[i], to_sell[j])
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
        to_buy[i] -= quantity
        to_sell[j] -= quantity
        i, j = i + (to_buy[i] == 0), j + (to_sell[j] == 0)
    return tuple(trades)
