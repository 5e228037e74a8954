"""One product (delivery slot) of an area: its book, who stands in it, what it traded, how it was settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from wattmesh_a2a.market import Order, OrderKind, OrderStatus, Settlement, Side, TimeInForce, Trade
from wattmesh_a2a.messages import OrderResult

from wattmesh_cloud.market.book import Book
from wattmesh_cloud.market.mechanism import Clearing

CANDLE_NS = 300_000_000_000
_BUY = Side.BUY


class Phase(StrEnum):
    """Where a product stands in its life."""

    OPEN = "open"
    CLOSED = "closed"
    VOID = "void"


@dataclass(slots=True)
class Entry:
    """An accepted order and what became of it."""

    placed: Order
    """As it came: what a repetition is compared with."""
    order: Order
    """As last amended."""
    number: int
    """In the product's book."""
    limit_ticks: int
    """Its price in the book: a market order has the band's edge."""
    open_wh: int = 0
    filled_wh: int = 0
    status: OrderStatus = OrderStatus.ACCEPTED

    buys: bool = False
    cost_ticks: int = 0
    """What a watt-hour of it may cost its owner at worst."""

    def __post_init__(self) -> None:
        buys = self.buys = self.order.side is _BUY
        worst = self.limit_ticks if buys else -self.limit_ticks
        self.cost_ticks = max(0, worst)

    def price_at(self, limit_ticks: int) -> None:
        """Take another price."""
        self.limit_ticks = limit_ticks
        self.cost_ticks = max(0, limit_ticks if self.buys else -limit_ticks)

    def result(self, trades: tuple[Trade, ...] = (), detail: str = "") -> OrderResult:
        """Where it stands, as an answer."""
        return OrderResult(
            client_order_id=self.placed.client_order_id,
            status=self.status,
            detail=detail,
            filled_wh=self.filled_wh,
            open_wh=self.open_wh,
            trades=trades,
        )


@dataclass(slots=True)
class Position:
    """What a participant traded and may still trade of one product, in watt-hours."""

    bought: int = 0
    sold: int = 0
    open_buy: int = 0
    open_sell: int = 0
    orders: int = 0
    """How many of its orders are remembered."""

    @property
    def worst_sold(self) -> int:
        """Net sale if all its offers and none of its bids trade; negative for a purchase."""
        return self.sold - self.bought + self.open_sell


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What settlement of a slot costs, in ticks; fixed when the slot is first settled, so that corrections use the same."""

    import_ticks: int
    feed_in_ticks: int
    fee_ticks: int = 0
    levy_ticks: int = 0
    imbalance_ticks: int = 0


@dataclass(slots=True)
class Candle:
    """Prices and volume of a stretch of time."""

    start_ns: int
    open: int
    high: int
    low: int
    close: int
    volume_wh: int = 0
    trades: int = 0


@dataclass(slots=True)
class Slot:
    """One product."""

    start_ns: int
    book: Book | None = None
    """Until the gate closes; none where nobody ever ordered."""
    phase: Phase = Phase.OPEN
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """(participant, client order id) → every order that was accepted."""
    live: dict[int, Entry] = field(default_factory=dict)
    """Number → those in the book."""
    own: dict[str, dict[int, Entry]] = field(default_factory=dict)
    """Participant → number → its own of them."""
    positions: dict[str, Position] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    trades_of: dict[str, list[Trade]] = field(default_factory=dict)
    welfare_units: int = 0
    notional_units: int = 0
    volume_wh: int = 0
    candles: list[Candle] = field(default_factory=list)
    halted_until_ns: int = 0
    reference: tuple[int, int] | None = None
    """(price, time) that a volatile move is measured from."""
    clearing: Clearing | None = None
    told: tuple[str, ...] = ()
    """Who gets a commitment."""
    offered: tuple[int, int, int] = (0, 0, 0)
    """At closure: orders, energy bid for, energy offered; of all that were accepted and not cancelled."""
    settlements: dict[str, Settlement] = field(default_factory=dict)
    flexibility: dict[str, int] = field(default_factory=dict)
    """Participant → units received for demand response in this slot."""
    prices: Prices | None = None
    exchange_wh: int | None = None
    """What a line brings in (positive) or takes out; none before that is known, and where there is no line."""

    @property
    def orders(self) -> Mapping[str, object]:
        """Who has orders in the book."""
        return {name: own for name, own in self.own.items() if own}

    def all_orders(self) -> list[Order]:
        """The book, by participant and arrival."""
        return [entry.order for name in sorted(self.own) for entry in self.own[name].values()]

    def trade(self, trade: Trade, now_ns: int) -> None:
        """Take a trade into lists, candles and sums."""
        self.trades.append(trade)
        price, quantity = trade.price_ticks, trade.quantity_wh
        for name in (trade.buyer_id, trade.seller_id):
            own = self.trades_of.get(name)
            if own is None:
                self.trades_of[name] = [trade]
            else:
                own.append(trade)
        self.volume_wh += quantity
        self.notional_units += quantity * price
        candle = self.candles[-1] if self.candles else None
        if candle is None or now_ns >= candle.start_ns + CANDLE_NS:
            candle = Candle(now_ns - now_ns % CANDLE_NS, price, price, price, price)
            self.candles.append(candle)
        if price > candle.high:
            candle.high = price
        elif price < candle.low:
            candle.low = price
        candle.close = price
        candle.volume_wh += quantity
        candle.trades += 1

    def dump(self) -> dict[str, Any]:
        """Plain values for snapshot and state hash."""
        return {
            "start": self.start_ns,
            "phase": self.phase,
            "book": None if self.book is None else self.book.dump(),
            "entries": [
                [_row(one.placed), _row(one.order), one.number, one.limit_ticks, one.open_wh, one.filled_wh, one.status]
                for one in self.entries.values()
            ],
            "live": list(self.live),
            "positions": {
                name: [one.bought, one.sold, one.open_buy, one.open_sell, one.orders]
                for name, one in self.positions.items()
            },
            "trades": [_row(trade) for trade in self.trades],
            "welfare": self.welfare_units,
            "candles": [[getattr(one, name) for name in Candle.__slots__] for one in self.candles],
            "halted_until": self.halted_until_ns,
            "reference": self.reference,
            "clearing": None if self.clearing is None else [self.clearing.price_ticks],
            "told": self.told,
            "offered": self.offered,
            "settlements": [_row(one) for one in self.settlements.values()],
            "flexibility": dict(self.flexibility),
            "prices": None if self.prices is None else _row(self.prices),
            "exchange": self.exchange_wh,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any], band: int, self_trade_rule: int) -> Slot:
        """The slot that :meth:`dump` saw."""
        slot = cls(state["start"], phase=Phase(state["phase"]))
        if state["book"] is not None:
            slot.book = Book(-band, band, self_trade_rule=self_trade_rule)
            slot.book.restore(state["book"])
        for placed, order, number, limit, open_wh, filled, status in state["entries"]:
            first = _order(placed)
            entry = Entry(first, _order(order), number, limit, open_wh, filled, OrderStatus(status))
            slot.entries[first.participant_id, first.client_order_id] = entry
        by_number = {entry.number: entry for entry in slot.entries.values()}
        for number in state["live"]:
            slot.live[number] = by_number[number]
            slot.own.setdefault(by_number[number].placed.participant_id, {})[number] = by_number[number]
        slot.positions = {name: Position(*row) for name, row in state["positions"].items()}
        for row in state["trades"]:
            slot.trade(Trade(**row), 0)
        slot.candles = [Candle(*row) for row in state["candles"]]
        slot.welfare_units = state["welfare"]
        slot.halted_until_ns = state["halted_until"]
        slot.reference = None if state["reference"] is None else (state["reference"][0], state["reference"][1])
        if state["clearing"] is not None:
            slot.close(state["clearing"][0])
        slot.told, slot.offered = tuple(state["told"]), tuple(state["offered"])
        slot.settlements = {row["participant_id"]: Settlement(**row) for row in state["settlements"]}
        slot.flexibility = dict(state["flexibility"])
        slot.prices = None if state["prices"] is None else Prices(**state["prices"])
        slot.exchange_wh = state["exchange"]
        return slot

    def close(self, price: int | None) -> None:
        """Fix what came of it."""
        self.clearing = Clearing(
            price_ticks=price,
            volume_wh=self.volume_wh,
            trades=tuple(self.trades),
            welfare_units=self.welfare_units,
        )


def _row(value: object) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}  # type: ignore[attr-defined]  # our slotted dataclasses


def _order(row: Mapping[str, Any]) -> Order:
    return Order(
        **{
            **row,
            "side": Side(row["side"]),
            "kind": OrderKind(row["kind"]),
            "time_in_force": TimeInForce(row["time_in_force"]),
        }
    )
