"""A second opinion on the order book: lists that are searched from end to end, slow and plain."""

from dataclasses import dataclass, field


@dataclass
class PlainOrder:
    number: int
    owner: int
    side: int
    price: int
    quantity: int
    rank: int
    """Place in time; a new one when an amendment loses its priority."""


@dataclass
class PlainBook:
    """The contract of ``wattmesh_cloud.market.book.Book`` in the shortest words."""

    self_trade_rule: int = 0
    matching: bool = True
    orders: dict[int, PlainOrder] = field(default_factory=dict)
    trades: list[tuple[int, int, int, int]] = field(default_factory=list)
    last_number: int = 0
    clock: int = 0

    def _others(self, order):
        """Whom it would trade with, best price first, then the earlier one."""
        crossing = [
            one
            for one in self.orders.values()
            if one.side != order.side and (one.price <= order.price if order.side == 0 else one.price >= order.price)
        ]
        return sorted(crossing, key=lambda one: (one.price if order.side == 0 else -one.price, one.rank))

    def _match(self, order):
        while order.quantity:
            others = self._others(order)
            if not others:
                return
            best = others[0]
            if best.owner == order.owner:
                if self.self_trade_rule in (1, 2):
                    del self.orders[best.number]
                if self.self_trade_rule in (0, 2):
                    order.quantity = 0
                continue
            quantity = min(order.quantity, best.quantity)
            self.trades.append((best.number, order.number, best.price, quantity))
            order.quantity -= quantity
            best.quantity -= quantity
            if best.quantity == 0:
                del self.orders[best.number]

    def _fillable(self, order):
        have = 0
        for one in self._others(order):
            if one.owner == order.owner:
                if self.self_trade_rule != 1:
                    break
                continue
            have += one.quantity
        return have >= order.quantity

    def place(self, owner, side, price, quantity, rule=0):
        self.last_number += 1
        self.clock += 1
        order = PlainOrder(self.last_number, owner, side, price, quantity, self.clock)
        if self.matching and (rule != 2 or self._fillable(order)):
            self._match(order)
        if rule == 0 and order.quantity:
            self.orders[order.number] = order
        return order.number

    def cancel(self, number):
        order = self.orders.pop(number, None)
        return order.quantity if order else 0

    def amend(self, number, price, quantity):
        order = self.orders.get(number)
        if order is None:
            return False
        if price == order.price and quantity <= order.quantity:
            order.quantity = quantity
            return True
        del self.orders[number]
        self.clock += 1
        order.price, order.quantity, order.rank = price, quantity, self.clock
        if self.matching:
            self._match(order)
        if order.quantity:
            self.orders[number] = order
        return True

    def queue(self, side):
        one_side = [one for one in self.orders.values() if one.side == side]
        return [one.number for one in sorted(one_side, key=lambda one: (one.price * (1 if side else -1), one.rank))]


def clearing_prices(bids, asks):
    """Brute force: every price at which all better-priced orders of (price, quantity) rows trade in full."""
    if not bids or not asks:
        return []
    every = [price for price, _ in (*bids, *asks)]
    found = []
    for price in range(min(every) - 1, max(every) + 2):
        wanted = sum(q for p, q in bids if p >= price)
        offered = sum(q for p, q in asks if p <= price)
        keen = sum(q for p, q in bids if p > price)
        cheap = sum(q for p, q in asks if p < price)
        if keen <= offered and cheap <= wanted and min(wanted, offered):
            found.append((price, min(wanted, offered)))
    return found
