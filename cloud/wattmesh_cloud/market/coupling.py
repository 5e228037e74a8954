"""What flows between two areas in one slot: as much as levels their prices, within the line's limit.

Each area closes with its own call auction. Just before, the line bids in the cheaper area and offers the same energy in the dearer
one, both at any price. The energy is the largest for which both are met in full and the exporting area does not become the dearer
one: with an unlimited line that is where both prices meet, with a limited one the difference is the line's congestion rent.
"""

from __future__ import annotations

from wattmesh_cloud.market.book import BUY, SELL, Book

LINK = "~link-"
"""What a line's account begins with; no participant's name does."""
_NOBODY = 2**31 - 1


def is_link(name: str) -> bool:
    """Whether an account is a line's."""
    return name.startswith(LINK)


def flow_wh(first: Book, second: Book, limit_wh: int) -> int:
    """Energy from the first area to the second one, negative the other way round; the books are only looked at."""
    return _one_way(first, second, limit_wh) or -_one_way(second, first, limit_wh)


def _one_way(exporting: Book, importing: Book, limit_wh: int) -> int:
    """The largest flow that is met at both ends with prices in the right order: both get worse as it grows, so it is bisected."""
    low, high = 0, limit_wh
    here, there = exporting.dump(), importing.dump()
    while low < high:
        middle = (low + high + 1) // 2
        cheap, dear = _price(exporting, here, BUY, middle), _price(importing, there, SELL, middle)
        if cheap is not None and dear is not None and cheap <= dear:
            low = middle
        else:
            high = middle - 1
    return low


def _price(book: Book, state: dict[str, object], side: int, energy_wh: int) -> int | None:
    """The auction's price with a line's order in it; none when that is not met in full."""
    copy = Book(book.min_price, book.max_price, matching=False)
    copy.restore(state)
    edge = book.max_price if side == BUY else book.min_price
    number = copy.place(_NOBODY, side, edge, energy_wh)
    result = copy.uncross()
    return None if result is None or copy.remaining(number) else result[0]
