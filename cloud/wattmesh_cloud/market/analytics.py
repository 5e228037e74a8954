"""What a market did: curves, spreads, who won, concentration, and welfare against the best that was possible.

Pure functions of orders, trades and slots. Money in tick · Wh, energy in Wh; shares between 0 and 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wattmesh_a2a.market import Order, OrderKind, Side, Trade

from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.products import Slot

Curve = list[tuple[int, int]]
"""(price, energy up to there): bids from the dearest, offers from the cheapest on."""


def curves(orders: Iterable[Order]) -> tuple[Curve, Curve]:
    """Demand and supply, cumulated; market orders stand at the far end of their side."""
    bids: dict[int, int] = defaultdict(int)
    asks: dict[int, int] = defaultdict(int)
    edge = 1 << 24
    for order in orders:
        market = order.kind is OrderKind.MARKET
        if order.side is Side.BUY:
            bids[edge if market else order.price_ticks] += order.quantity_wh
        else:
            asks[-edge if market else order.price_ticks] += order.quantity_wh
    return _cumulated(sorted(bids.items(), reverse=True)), _cumulated(sorted(asks.items()))


def _cumulated(rows: Sequence[tuple[int, int]]) -> Curve:
    found, total = [], 0
    for price, energy in rows:
        total += energy
        found.append((price, total))
    return found


def best_welfare(orders: Iterable[Order]) -> int:
    """The most that buyers and sellers could gain together: the dearest bids with the cheapest offers while they cross.

    Limits are taken for true values. Market orders, which have no limit, are left out.
    """
    limits = [order for order in orders if order.kind is OrderKind.LIMIT]
    bids = sorted((order for order in limits if order.side is Side.BUY), key=lambda order: -order.price_ticks)
    asks = sorted((order for order in limits if order.side is Side.SELL), key=lambda order: order.price_ticks)
    i = j = welfare = 0
    bid_left = bids[0].quantity_wh if bids else 0
    ask_left = asks[0].quantity_wh if asks else 0
    while i < len(bids) and j < len(asks) and bids[i].price_ticks > asks[j].price_ticks:
        quantity = min(bid_left, ask_left)
        welfare += quantity * (bids[i].price_ticks - asks[j].price_ticks)
        bid_left -= quantity
        ask_left -= quantity
        if bid_left == 0:
            i += 1
            bid_left = bids[i].quantity_wh if i < len(bids) else 0
        if ask_left == 0:
            j += 1
            ask_left = asks[j].quantity_wh if j < len(asks) else 0
    return welfare


def spread_ticks(slot: Slot) -> int | None:
    """Distance between the best bid and the best offer of an open product; none while a side is empty."""
    if slot.book is None:
        return None
    bid, ask = slot.book.best(0), slot.book.best(1)
    return None if bid is None or ask is None else ask - bid


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """How few stand on a side."""

    hhi: float
    """Herfindahl-Hirschman index: the sum of squared shares, 1 for a monopoly, 1/n for n equal ones."""
    largest: str | None
    largest_share: float
    pivotal: tuple[str, ...]
    """Sellers without whom the rest could not have delivered what was traded: they could have named the price."""


def concentration(trades: Iterable[Trade], side: Side, offered_wh: Mapping[str, int] | None = None) -> Concentration:
    """Concentration of what was traded.

    Args:
        trades: Of any slots.
        side: Whose.
        offered_wh: Participant → energy it offered; for pivotal ones. Left out, nobody is pivotal.
    """
    energy: dict[str, int] = defaultdict(int)
    for trade in trades:
        energy[trade.buyer_id if side is Side.BUY else trade.seller_id] += trade.quantity_wh
    total = sum(energy.values())
    if not total:
        return Concentration(hhi=0.0, largest=None, largest_share=0.0, pivotal=())
    largest = max(sorted(energy), key=lambda name: energy[name])
    offered = offered_wh or {}
    everything = sum(offered.values())
    return Concentration(
        hhi=sum((one / total) ** 2 for one in energy.values()),
        largest=largest,
        largest_share=energy[largest] / total,
        pivotal=tuple(sorted(name for name, one in offered.items() if everything - one < total)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One participant's trading."""

    bought_wh: int
    sold_wh: int
    paid_units: int
    """Net for trades; negative: received."""
    gain_units: int
    """Against doing the same with the retailer: bought at the import price, sold at the feed-in price of the slot."""


def results(engine: MarketEngine) -> dict[str, Result]:
    """Every participant's trades, and what they were worth to it."""
    sums: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in engine.risk.limits}
    feed_in = engine.tariff.feed_in_ticks()
    for slot in engine.slots.values():
        if not slot.trades:
            continue
        retail = engine.tariff.import_price_ticks(slot.start_ns)
        for trade in slot.trades:
            buyer = sums.setdefault(trade.buyer_id, [0, 0, 0, 0])
            seller = sums.setdefault(trade.seller_id, [0, 0, 0, 0])
            money = trade.quantity_wh * trade.price_ticks
            buyer[0] += trade.quantity_wh
            buyer[2] += money
            buyer[3] += trade.quantity_wh * retail - money
            seller[1] += trade.quantity_wh
            seller[2] -= money
            seller[3] += money - trade.quantity_wh * feed_in
    return {
        name: Result(bought_wh=row[0], sold_wh=row[1], paid_units=row[2], gain_units=row[3])
        for name, row in sums.items()
    }


def efficiency(engine: MarketEngine) -> float | None:
    """Welfare of all closed slots over the best possible of the orders that were accepted; none where there was none to have."""
    reached = possible = 0
    for slot in engine.slots.values():
        if slot.clearing is not None:
            reached += slot.welfare_units
            possible += best_welfare(
                entry.order for entry in slot.entries.values() if entry.filled_wh or entry.status != "cancelled"
            )
    return reached / possible if possible else None
