"""The orders of one product in price-time priority (kernel: ``book.pyx``).

Everything is an integer: prices in ticks, quantities in watt-hours, owners and sides as codes. The book knows no clock, no
participants and no limits; whoever calls it has checked an order before. The same calls make the same trades.
"""

from collections.abc import Mapping
from typing import Any

from typing_extensions import Buffer

BUY: int
SELL: int

REST: int
"""What does not trade at once stays in the book."""
IOC: int
"""What does not trade at once is gone (immediate or cancel)."""
FOK: int
"""All of it trades at once, or nothing of it does (fill or kill)."""

CANCEL_NEWEST: int
"""An order that meets one of its owner's own stops there: its rest is gone."""
CANCEL_OLDEST: int
"""The owner's resting order is withdrawn and the new one goes on."""
CANCEL_BOTH: int

class Book:
    """One product's orders.

    Args:
        min_price: The lowest price an order may have, in ticks.
        max_price: The highest; at most 2^24 ticks above the lowest.
        matching: Whether orders trade on arrival (continuous); otherwise they are collected for :meth:`uncross`.
        self_trade_rule: What happens when an order would trade with one of its owner's own.

    Raises:
        ValueError: A band or rule that cannot be.
    """

    min_price: int
    max_price: int
    last_number: int
    """Orders are numbered from 1 in order of arrival; refused calls use no number."""
    fill_count: int
    """Trades so far."""
    live_count: int
    """Orders in the book."""
    matching: bool
    self_trade_rule: int
    filled: int
    """Of the last :meth:`place` or :meth:`amend`: what traded at once."""
    left: int
    """Of the same: what did not."""
    rested: bool
    """Of the same: whether the rest is in the book."""
    self_trade: bool
    """Of the same: whether it met an order of its owner."""
    withdrawn: list[tuple[int, int]]
    """Of the same: (number, quantity) of resting orders that the rule on self-trades took out."""

    def __init__(self, min_price: int, max_price: int, *, matching: bool = True, self_trade_rule: int = 0) -> None: ...
    def place(self, owner: int, side: int, price: int, quantity: int, rule: int = 0) -> int:
        """A new order; its number. Trades are at the resting order's price, best price first, then the earlier order.

        Raises:
            ValueError: A price outside the band, a quantity that is not positive; nothing has changed.
        """

    def cancel(self, number: int) -> int:
        """Take an order out; what was left of it, 0 when it was not in the book."""

    def amend(self, number: int, price: int, quantity: int) -> bool:
        """Change what is open of an order; false when it is not in the book.

        Less quantity at the same price keeps its place in the queue; anything else goes to the end of the queue of its price, and
        trades first where it now crosses.

        Raises:
            ValueError: As :meth:`place`.
        """

    def uncross(self, *, pay_as_bid: bool = False) -> tuple[int, int] | None:
        """Clear the collected orders at one price; (price, volume), or none when the book does not cross.

        The price is the middle, rounded down, of all prices at which every better-priced order of both sides trades in full.
        Those are just the prices that trade the most and leave nobody with a better price behind. The orders of the last price
        share in proportion to their open quantity; odd watt-hours go to the largest remainders, then to the earlier order.
        Trades are appended to :meth:`fills` as (seller, buyer, price, quantity); what did not trade stays. With ``pay_as_bid``
        each trade has its buyer's limit for a price.
        """

    def fills(self, first: int = 0) -> list[tuple[int, int, int, int]]:
        """Trades from the ``first``-th on: (resting order, arriving order, price, quantity)."""

    def order(self, number: int) -> tuple[int, int, int, int] | None:
        """(owner, side, price, open quantity) of an order in the book."""

    def remaining(self, number: int) -> int:
        """Open quantity, 0 when it is not in the book."""

    def best(self, side: int) -> int | None:
        """The best price of a side."""

    def depth(self, side: int, levels: int = 10) -> list[tuple[int, int, int]]:
        """(price, open quantity, orders) of the best levels."""

    def queue(self, side: int) -> list[int]:
        """The numbers of a side's orders, in priority."""

    def load(self, owners: Buffer, sides: Buffer, prices: Buffer, quantities: Buffer) -> int:
        """Collect many orders without matching, from columns of 64-bit integers; how many.

        Raises:
            ValueError: Any row that :meth:`place` would refuse; nothing has changed.
        """

    def dump(self) -> dict[str, Any]:
        """The orders as plain values, for a snapshot. Past trades are not part of it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Make an empty book what :meth:`dump` saw.

        Raises:
            ValueError: The book is not empty, or the state is none.
        """
