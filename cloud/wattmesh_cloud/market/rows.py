"""The market as rows of the store and as figures for people. Nothing here changes anything."""

from __future__ import annotations

from dataclasses import asdict

from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT, Trade
from wattmesh_a2a.messages import ProductData

from wattmesh_cloud.market.archive import Person
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.ledger import GRID_OPERATOR, RETAILER
from wattmesh_cloud.market.marketdata import index_ticks
from wattmesh_cloud.market.products import Candle, Slot
from wattmesh_cloud.store.base import Item, JsonValue, Table


def clearing_rows(area: str, slot: Slot) -> dict[Table, list[Item]]:
    """A closed slot: its summary and candles in market-data, its trades in trade-data."""
    clearing = slot.clearing
    assert clearing is not None
    orders, bid_wh, offered_wh = slot.offered
    summary: dict[str, JsonValue] = {
        "price_ticks": clearing.price_ticks,
        "volume_wh": clearing.volume_wh,
        "trades": len(clearing.trades),
        "orders": orders,
        "bid_wh": bid_wh,
        "offered_wh": offered_wh,
        "welfare_units": clearing.welfare_units,
        "index_ticks": index_ticks(slot),
        "status": str(slot.phase),
    }
    rows = {
        Table.MARKET_DATA: [
            Item(partition=f"{area}#slots", time_ns=slot.start_ns, id="clearing", data=summary),
            *[_candle_row(area, slot, candle) for candle in slot.candles],
        ]
    }
    if clearing.trades:
        rows[Table.TRADE_DATA] = [_trade_row(area, trade) for trade in clearing.trades]
    return rows


def live_rows(area: str, slot: Slot, data: ProductData, first_trade: int) -> dict[Table, list[Item]]:
    """A product that trades: what everybody may see of it and its newest candles in market-data, new trades in trade-data.

    The same rows are written again at the next time and at closure, so that none has to be written for certain.
    """
    shown: dict[str, JsonValue] = asdict(data)
    rows = {
        Table.MARKET_DATA: [
            Item(partition=f"{area}#products", time_ns=slot.start_ns, id="product", data=shown),
            *[_candle_row(area, slot, candle) for candle in slot.candles[-2:]],
        ]
    }
    if first_trade < len(slot.trades):
        rows[Table.TRADE_DATA] = [_trade_row(area, trade) for trade in slot.trades[first_trade:]]
    return rows


def _candle_row(area: str, slot: Slot, candle: Candle) -> Item:
    data = {name: getattr(candle, name) for name in Candle.__slots__ if name != "start_ns"}
    return Item(partition=f"{area}#ohlcv", time_ns=candle.start_ns, id=str(slot.start_ns), data=data)


def _trade_row(area: str, trade: Trade) -> Item:
    data = {name: value for name, value in plain(trade).items() if name != "area_id"}
    return Item(partition=f"{area}#trades", time_ns=trade.slot_start_ns, id=trade.id, data=data)


def settlement_rows(slot: Slot) -> list[Item]:
    """A slot's settlements, each at its participant."""
    return [
        Item(partition=f"{name}#settlements", time_ns=slot.start_ns, id="settlement", data=plain(settlement))
        for name, settlement in sorted(slot.settlements.items())
    ]


def figures(engine: MarketEngine, *, hashed: bool = False) -> dict[str, JsonValue]:
    """Sums over everything, in the currency's unit where it is money; with the state's hash where that is asked for."""
    unit, ledger = MONEY_UNITS_PER_CURRENCY_UNIT, engine.ledger
    sums = engine.sums.copy()
    for slot in engine.slots.values():
        sums.add(slot)
    participants: dict[str, JsonValue] = {}
    for participant in engine.config.participants:
        name = participant.id
        own = sums.people.get(name) or Person()
        participants[name] = {
            "imported_wh": own.imported_wh,
            "exported_wh": own.exported_wh,
            "trades": own.trades,
            "traded_wh": own.traded_wh,
            "cost": -ledger.balances[name] / unit,
            "paid_retail": -ledger.paid[name, "residual"] / unit,
            "paid_trades": -ledger.paid[name, "trade"] / unit,
            "paid_fees": -(ledger.paid[name, "fee"] + ledger.paid[name, "levy"]) / unit,
            "paid_imbalance": -ledger.paid[name, "imbalance"] / unit,
            "received_flexibility": ledger.paid[name, "flexibility"] / unit,
            "slots_settled": own.slots_settled,
            "slots_substituted": own.slots_substituted,
            "exposure": engine.risk.exposure.get(name, 0) / unit,
            "owed": engine.risk.owed(name) / unit,
            "suspended": engine.risk.suspended.get(name),
        }
    state: dict[str, JsonValue] = {"state_hash": engine.state_hash()} if hashed else {}
    return {
        "area": engine.config.area,
        "currency": engine.config.currency,
        "mechanism": engine.config.mechanism,
        "halted": engine.halted,
        "trades": sums.trades,
        "volume_wh": sums.volume_wh,
        "slots_cleared": sums.slots_cleared,
        "slots_settled": sums.slots_settled,
        "ledger_sum_units": ledger.total(),
        "ledger_bookings": ledger.count,
        "ledger_digest": ledger.digest,
        **state,
        "rejects": dict(engine.rejects),
        "retailer": ledger.balances[RETAILER] / unit,
        "grid_operator": ledger.balances[GRID_OPERATOR] / unit,
        "participants": participants,
    }


def plain(row: object) -> dict[str, JsonValue]:
    """A slotted dataclass as plain values."""
    return {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]  # our slotted dataclasses
