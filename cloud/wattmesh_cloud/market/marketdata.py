"""What everybody may know of the market: depth, prices, volumes, status. No names, and no look into a call's book."""

from __future__ import annotations

from wattmesh_a2a.messages import MarketData, MarketLevel, MarketTrade, ProductData

from wattmesh_cloud.market.book import BUY, SELL
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.products import Phase, Slot
from wattmesh_cloud.market.trading import NS

LEVELS = 10
RECENT = 10
"""Trades of a product in one message."""


def index_ticks(slot: Slot) -> int | None:
    """Mean price of a product's trades, weighted with their energy, rounded half up; none without trades."""
    if not slot.volume_wh:
        return None
    return (2 * slot.notional_units + slot.volume_wh) // (2 * slot.volume_wh)


def area_index_ticks(engine: MarketEngine, start_ns: int, end_ns: int) -> int | None:
    """The same over all products that deliver in a stretch of time."""
    slots = [slot for start, slot in engine.slots.items() if start_ns <= start < end_ns]
    volume, notional = sum(slot.volume_wh for slot in slots), sum(slot.notional_units for slot in slots)
    return (2 * notional + volume) // (2 * volume) if volume else None


def status(engine: MarketEngine, slot: Slot, now_ns: int) -> str:
    """A product's status; see :class:`wattmesh_a2a.messages.ProductData`."""
    if slot.phase is not Phase.OPEN:
        return str(slot.phase)
    if engine.halted or now_ns < slot.halted_until_ns:
        return "halted"
    close_ns = slot.start_ns - engine.config.gate_close_s * NS
    if now_ns >= close_ns:
        return "closed"
    return "continuous" if engine.mechanism.continuous(now_ns, close_ns) else "call"


def product_data(engine: MarketEngine, slot: Slot, now_ns: int, levels: int = LEVELS) -> ProductData:
    """One product."""
    what = status(engine, slot, now_ns)
    sides: list[tuple[MarketLevel, ...]] = [(), ()]
    if slot.book is not None and slot.book.matching and what in {"continuous", "halted"}:
        sides = [
            tuple(
                MarketLevel(price_ticks=price, quantity_wh=quantity, orders=orders)
                for price, quantity, orders in slot.book.depth(side, levels)
            )
            for side in (BUY, SELL)
        ]
    candles = slot.candles
    return ProductData(
        slot_start_ns=slot.start_ns,
        status=what,
        bids=sides[0],
        asks=sides[1],
        open_ticks=candles[0].open if candles else None,
        high_ticks=max(one.high for one in candles) if candles else None,
        low_ticks=min(one.low for one in candles) if candles else None,
        close_ticks=candles[-1].close if candles else None,
        volume_wh=slot.volume_wh,
        trades=len(slot.trades),
        index_ticks=index_ticks(slot),
        recent=tuple(
            MarketTrade(id=one.id, price_ticks=one.price_ticks, quantity_wh=one.quantity_wh)
            for one in slot.trades[-RECENT:]
        ),
    )


def market_data(engine: MarketEngine, now_ns: int) -> MarketData:
    """All products that are open."""
    return MarketData(
        area_id=engine.config.area,
        time_ns=now_ns,
        halted=engine.halted,
        products=tuple(product_data(engine, engine.open[start], now_ns) for start in sorted(engine.open)),
    )
