"""A market's state, and what orders do to books, positions, exposure and the ledger: what every operation of an engine uses."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence

from wattmesh_a2a.market import Order, OrderKind, OrderStatus, RejectReason, Side, TimeInForce, Trade
from wattmesh_a2a.messages import OrderResult
from wattmesh_a2a.tariff import Tariff, price_ticks

from wattmesh_cloud.market import book as kernel
from wattmesh_cloud.market.archive import Sums
from wattmesh_cloud.market.book import Book
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.coupling import is_link
from wattmesh_cloud.market.ledger import Ledger
from wattmesh_cloud.market.mechanism import Mechanism, mechanism_of
from wattmesh_cloud.market.products import Entry, Phase, Position, Slot
from wattmesh_cloud.market.risk import Refusal, Risk

NS = 1_000_000_000
_BUY, _SELL = Side.BUY, Side.SELL  # a look at an enumeration's class costs more than its comparison
_LIMIT, _MARKET = OrderKind.LIMIT, OrderKind.MARKET
_FILLED, _PARTIALLY = OrderStatus.FILLED, OrderStatus.PARTIALLY_FILLED

SELF_TRADE = {
    "cancel_newest": kernel.CANCEL_NEWEST,
    "cancel_oldest": kernel.CANCEL_OLDEST,
    "cancel_both": kernel.CANCEL_BOTH,
}
AT_ONCE = {TimeInForce.IOC: kernel.IOC, TimeInForce.FOK: kernel.FOK}
"""What trades at once or not at all."""


class Trading:
    """The state of an area's market and the moves inside an operation.

    The operations are those of :class:`~wattmesh_cloud.market.engine.MarketEngine`.

    Args:
        config: The area's rules.
        mechanism: How a book becomes trades; none for the one that the rules name.

    Attributes:
        on_trade: Is told of every trade with both orders' participants, the resting one first. Outputs only: what it does must
            not change the engine.
    """

    def __init__(self, config: MarketConfig, mechanism: Mechanism | None = None) -> None:
        self.ledger = Ledger()
        self.risk = Risk(self.ledger)
        self.slots: dict[int, Slot] = {}
        self.open: dict[int, Slot] = {}
        """Products whose gate has not closed, by start."""
        self.trades: dict[str, Trade] = {}
        self.rejects: Counter[str] = Counter()
        self.halts: dict[str, str] = {}
        """Cause → reason; orders are taken when there is none."""
        self.now_ns = 0
        self.on_trade: Callable[[Trade, str, str], None] | None = None
        self._chosen = mechanism
        self._owners: dict[str, int] = {}
        self._expiries: list[tuple[int, int, int]] = []
        self._flexibility: dict[str, int] = {}
        """Event and participant → when it was paid for: once."""
        self.sums = Sums()
        """Of the slots that are archived."""
        self.archived_before_ns = 0
        self.attic: dict[int, Slot] | None = None
        """Where archived slots go when somebody wants to see them again; they are no part of the state."""
        self.configure(config)

    def configure(self, config: MarketConfig) -> None:
        """Take rules that hold from now on. They are an input like any other: what was done under others stays done."""
        self.config = config
        self.tariff: Tariff = config.tariff.tariff(config.time_zone)
        self.mechanism = self._chosen or mechanism_of(config)
        self.risk.configure(config)
        self._slot_ns = config.slot_s * NS
        self._close_ns = config.gate_close_s * NS
        self._halt_move = None if config.halt_move is None else price_ticks(config.halt_move)
        for slot in self.open.values():
            self._rebuild(slot)

    def _rebuild(self, slot: Slot) -> None:
        """Open books follow changed rules: orders outside a narrower band expire, the others keep their places."""
        band, rule = self.risk.band, SELF_TRADE[self.config.self_trade]
        old = slot.book
        assert old is not None
        if (old.max_price, old.self_trade_rule) == (band, rule):
            return
        for entry in list(slot.live.values()):
            if abs(entry.limit_ticks) > band:
                self._withdraw(slot, entry, OrderStatus.EXPIRED)
        slot.book = Book(-band, band, self_trade_rule=rule)
        slot.book.restore(old.dump())

    @property
    def halted(self) -> str | None:
        """Why the market takes no orders; none when it does."""
        return "; ".join(self.halts.values()) if self.halts else None

    def _limit(self, order: Order) -> int:
        """Its price in the book: a market order takes any that the band allows."""
        if order.kind is _LIMIT:
            return order.price_ticks
        return self.risk.band if order.side is _BUY else -self.risk.band

    def _continuous(self, slot_ns: int, now_ns: int) -> bool:
        return self.mechanism.continuous(now_ns, slot_ns - self._close_ns)

    def _halt_of(self, slot: Slot | None, now_ns: int, participant: str) -> Refusal | None:
        if slot is None:
            return None
        if slot.phase is not Phase.OPEN:  # also under rules that have changed since it closed
            return RejectReason.GATE_CLOSED, "this product is closed"
        if now_ns < slot.halted_until_ns:
            return RejectReason.HALTED, "the product's price moved too fast"
        position = slot.positions.get(participant)
        most = self.risk.limits[participant].orders_a_slot
        if position is not None and position.orders >= most:
            return RejectReason.RATE_LIMIT, f"{most} orders in one product"
        return None

    def _collecting(self, slot: Slot | None, participant: str, order: Order, now_ns: int) -> Refusal | None:
        """What is refused only while orders are collected: nobody may meet itself there, and nothing trades at once."""
        if self._continuous(order.slot_start_ns, now_ns):
            return None
        if order.time_in_force in AT_ONCE:
            return RejectReason.BAD_TIME_IN_FORCE, "orders are only collected now"
        return None if slot is None else self._meeting(slot, self.risk.mates(participant), order)

    def _meeting(self, slot: Slot, people: Sequence[str], order: Order) -> Refusal | None:
        """Whether a collected order would meet one of these participants'."""
        limit = self._limit(order)
        for name in people:
            for entry in slot.own.get(name, {}).values():
                if entry.order.side is not order.side and (
                    entry.limit_ticks >= limit if order.side is _SELL else entry.limit_ticks <= limit
                ):
                    return RejectReason.SELF_TRADE, f"it would meet {entry.placed.client_order_id[:64]}"
        return None

    def _refused(self, client_order_id: str, refusal: Refusal) -> OrderResult:
        reason, detail = refusal
        self.rejects[reason] += 1
        return OrderResult(client_order_id=client_order_id, status=OrderStatus.REJECTED, reason=reason, detail=detail)

    def _enter(self, participant: str, order: Order, now_ns: int) -> OrderResult:
        """Into the book; everything has been checked."""
        slot = self.slots.get(order.slot_start_ns)
        if slot is None:
            slot = self.slots[order.slot_start_ns] = Slot(order.slot_start_ns)
        book = slot.book
        if book is None:
            band = self.risk.band
            book = slot.book = Book(-band, band, self_trade_rule=SELF_TRADE[self.config.self_trade])
            self.open[order.slot_start_ns] = slot
        person = participant if is_link(participant) else self.risk.limits[participant].owner
        owner = self._owners.get(person)
        if owner is None:
            owner = self._owners[person] = len(self._owners)
        book.matching = self._continuous(order.slot_start_ns, now_ns)
        rule = AT_ONCE.get(order.time_in_force, kernel.REST)
        if order.kind is _MARKET and book.matching and rule == kernel.REST:
            rule = kernel.IOC
        before, limit = book.fill_count, self._limit(order)
        number = book.place(owner, 0 if order.side is _BUY else 1, limit, order.quantity_wh, rule)
        entry = Entry(order, order, number, limit)
        slot.entries[participant, order.client_order_id] = entry
        slot.live[number] = entry
        own = slot.own.get(participant)
        if own is None:
            own = slot.own[participant] = {}
        own[number] = entry
        self._open(slot, entry, order.quantity_wh)
        slot.positions[participant].orders += 1
        result = self._after(slot, entry, before, now_ns)
        if order.expires_ns is not None and entry.open_wh:
            heapq.heappush(self._expiries, (order.expires_ns, order.slot_start_ns, number))
        return result

    def _after(self, slot: Slot, entry: Entry, before: int, now_ns: int) -> OrderResult:
        """Book what an order has just done, and say where it stands."""
        book = slot.book
        assert book is not None
        rested, met_itself, withdrawn = book.rested, book.self_trade, book.withdrawn
        trades = self._book_trades(slot, before, now_ns) if book.fill_count > before else ()
        if withdrawn:
            for number, _ in withdrawn:
                self._release(slot, slot.live[number], OrderStatus.CANCELLED)
        if not rested and entry.open_wh:
            self._release(slot, entry, OrderStatus.CANCELLED)
        return entry.result(trades, "it met an order of its own participant" if met_itself else "")

    def _open(self, slot: Slot, entry: Entry, change_wh: int) -> None:
        """Change what is open of an order, and with it exposure and position."""
        entry.open_wh += change_wh
        name = entry.placed.participant_id
        position = slot.positions.get(name)
        if position is None:
            position = slot.positions[name] = Position()
        if entry.buys:
            position.open_buy += change_wh
        else:
            position.open_sell += change_wh
        if entry.cost_ticks:
            exposure = self.risk.exposure
            exposure[name] = exposure.get(name, 0) + change_wh * entry.cost_ticks

    def _release(self, slot: Slot, entry: Entry, status: OrderStatus) -> None:
        """An order that has left the book: forget what was open of it."""
        self._open(slot, entry, -entry.open_wh)
        entry.status = status
        del slot.live[entry.number]
        del slot.own[entry.placed.participant_id][entry.number]

    def _withdraw(self, slot: Slot, entry: Entry, status: OrderStatus) -> None:
        assert slot.book is not None
        slot.book.cancel(entry.number)
        self._release(slot, entry, status)

    def _book_trades(self, slot: Slot, before: int, now_ns: int) -> tuple[Trade, ...]:
        """The book's new fills as trades: positions, ledger, candles."""
        assert slot.book is not None
        made = []
        area, on_trade, transfer = self.config.area, self.on_trade, self.ledger.transfer
        head = f"{area}-{slot.start_ns // NS}-"
        for maker_number, taker_number, price, quantity in slot.book.fills(before):
            maker, taker = slot.live[maker_number], slot.live[taker_number]
            buy, sell = (taker, maker) if taker.buys else (maker, taker)
            bought, sold = buy.placed, sell.placed
            buyer, seller = bought.participant_id, sold.participant_id
            trade = Trade(
                id=f"{head}{len(slot.trades) + 1}",
                area_id=area,
                slot_start_ns=slot.start_ns,
                buyer_id=buyer,
                seller_id=seller,
                quantity_wh=quantity,
                price_ticks=price,
                buy_order_id=bought.client_order_id,
                sell_order_id=sold.client_order_id,
            )
            for entry, name in ((buy, buyer), (sell, seller)):
                self._open(slot, entry, -quantity)
                entry.filled_wh += quantity
                if entry.open_wh:
                    entry.status = _PARTIALLY
                else:
                    entry.status = _FILLED
                    del slot.live[entry.number]
                    del slot.own[name][entry.number]
            slot.positions[buyer].bought += quantity
            slot.positions[seller].sold += quantity
            top = price if buy.order.kind is _MARKET else buy.limit_ticks
            bottom = price if sell.order.kind is _MARKET else sell.limit_ticks
            slot.welfare_units += quantity * (top - bottom)
            slot.trade(trade, now_ns)
            self.trades[trade.id] = trade
            transfer(trade.id, buyer, seller, quantity * price, "trade")
            made.append(trade)
            if on_trade is not None:
                on_trade(trade, maker.placed.participant_id, taker.placed.participant_id)
        if self._halt_move is not None:
            self._watch(slot, made[-1].price_ticks, now_ns)
        return tuple(made)

    def _book_closing(self, slot: Slot, before: int, now_ns: int) -> None:
        """As :meth:`_book_trades`, for the many trades with which a product closes: sums are made once, nobody is told of each."""
        assert slot.book is not None
        area, start, live, positions = self.config.area, slot.start_ns, slot.live, slot.positions
        head, count, welfare = f"{area}-{start // NS}-", len(slot.trades), 0
        made: list[Trade] = []
        bookings: list[tuple[str, str, str, int]] = []
        for one, other, price, quantity in slot.book.fills(before):
            buy, sell = live[one], live[other]
            if not buy.buys:
                buy, sell = sell, buy
            bought, sold = buy.placed, sell.placed
            buyer, seller = bought.participant_id, sold.participant_id
            count += 1
            name = f"{head}{count}"
            made.append(
                Trade(
                    id=name,
                    area_id=area,
                    slot_start_ns=start,
                    buyer_id=buyer,
                    seller_id=seller,
                    quantity_wh=quantity,
                    price_ticks=price,
                    buy_order_id=bought.client_order_id,
                    sell_order_id=sold.client_order_id,
                )
            )
            bookings.append((name, buyer, seller, quantity * price))
            buy.filled_wh += quantity
            sell.filled_wh += quantity
            positions[buyer].bought += quantity
            positions[seller].sold += quantity
            top = price if buy.order.kind is _MARKET else buy.limit_ticks
            welfare += quantity * (top - (price if sell.order.kind is _MARKET else sell.limit_ticks))
        slot.welfare_units += welfare
        for trade in made:
            slot.trade(trade, now_ns)
            self.trades[trade.id] = trade
        self.ledger.trades(bookings)

    def _expire_all(self, slot: Slot) -> None:
        """Nothing is open any more: what was, is filled or has expired."""
        exposure = self.risk.exposure
        for name, own in slot.own.items():
            released = 0
            for entry in own.values():
                released += entry.open_wh * entry.cost_ticks
                entry.status = _FILLED if entry.filled_wh == entry.order.quantity_wh else OrderStatus.EXPIRED
                entry.open_wh = 0
            own.clear()
            if released:
                exposure[name] -= released
        slot.live.clear()
        for position in slot.positions.values():
            position.open_buy = position.open_sell = 0

    def _watch(self, slot: Slot, price: int, now_ns: int) -> None:
        """Halt a product whose last price is too far from that of the window's first trade."""
        assert self._halt_move is not None
        if slot.reference is None or now_ns - slot.reference[1] > self.config.halt_window_s * NS:
            slot.reference = (price, now_ns)
        elif abs(price - slot.reference[0]) > self._halt_move:
            slot.halted_until_ns = now_ns + self.config.halt_s * NS
            slot.reference = (price, now_ns)

    def advance(self, now_ns: int) -> int:
        """Time has come this far: orders whose time is over expire. Returns the market's time, which never goes back."""
        self.now_ns = max(self.now_ns, now_ns)
        while self._expiries and self._expiries[0][0] <= self.now_ns:
            _, start, number = heapq.heappop(self._expiries)
            slot = self.open.get(start)
            entry = slot.live.get(number) if slot is not None else None
            if slot is not None and entry is not None:
                self._withdraw(slot, entry, OrderStatus.EXPIRED)
        return self.now_ns
