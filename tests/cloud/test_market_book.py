"""The order book's kernel against a plain second opinion, and the promises of its contract."""

import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain_book import PlainBook, clearing_prices
from wattmesh_cloud.market.book import BUY, FOK, IOC, REST, SELL, Book

PRICES = st.integers(-6, 6)
QUANTITIES = st.integers(1, 20)


class BookMachine(RuleBasedStateMachine):
    """Any sequence of calls: the same trades, the same queues, never crossed, nothing lost."""

    @initialize(self_trade_rule=st.integers(0, 2))
    def start(self, self_trade_rule):
        self.book = Book(-6, 6, self_trade_rule=self_trade_rule)
        self.plain = PlainBook(self_trade_rule)
        self.traded = {}
        self.ordered = {}

    @rule(owner=st.integers(1, 3), side=st.integers(0, 1), price=PRICES, quantity=QUANTITIES, how=st.integers(0, 2))
    def place(self, owner, side, price, quantity, how):
        number = self.book.place(owner, side, price, quantity, how)
        assert number == self.plain.place(owner, side, price, quantity, how)
        self.ordered[number] = quantity
        if how == FOK:
            assert self.book.filled in (0, quantity)
        if how != REST:
            assert not self.book.rested
        elif not self.book.self_trade:
            assert self.book.filled + (self.book.left if self.book.rested else 0) == quantity

    @precondition(lambda self: self.book.last_number)
    @rule(data=st.data())
    def cancel(self, data):
        number = data.draw(st.integers(1, self.book.last_number + 1))
        assert self.book.cancel(number) == self.plain.cancel(number)

    @precondition(lambda self: self.book.live_count)
    @rule(data=st.data(), price=PRICES, quantity=QUANTITIES)
    def amend(self, data, price, quantity):
        number = data.draw(st.sampled_from(self.book.queue(BUY) + self.book.queue(SELL)))
        done = sum(row[3] for row in self.book.fills() if number in row[:2])
        self.ordered[number] = done + quantity
        assert self.book.amend(number, price, quantity) == self.plain.amend(number, price, quantity)

    @rule()
    def restart(self):
        again = Book(-6, 6, self_trade_rule=self.book.self_trade_rule)
        again.restore(self.book.dump())
        assert again.dump() == self.book.dump()
        assert [again.depth(side) for side in (0, 1)] == [self.book.depth(side) for side in (0, 1)]

    @invariant()
    def same_as_plain(self):
        assert self.book.fills() == self.plain.trades
        for side in (BUY, SELL):
            assert self.book.queue(side) == self.plain.queue(side)
            for number in self.book.queue(side):
                one = self.plain.orders[number]
                assert self.book.order(number) == (one.owner, one.side, one.price, one.quantity)
            depth = {}
            for number in self.plain.queue(side):
                one = self.plain.orders[number]
                total, count = depth.get(one.price, (0, 0))
                depth[one.price] = total + one.quantity, count + 1
            assert self.book.depth(side, 99) == [(price, *row) for price, row in depth.items()]

    @invariant()
    def never_crossed_at_rest(self):
        bid, ask = self.book.best(BUY), self.book.best(SELL)
        assert bid is None or ask is None or bid < ask

    @invariant()
    def nobody_trades_more_than_ordered(self):
        for number, quantity in self.ordered.items():
            done = sum(row[3] for row in self.book.fills() if number in row[:2])
            assert done + self.book.remaining(number) <= quantity


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.long
class TestBookForLong(BookMachine.TestCase):
    settings = settings(max_examples=3000, stateful_step_count=100, deadline=None)


@pytest.mark.parametrize("rule_", [0, 1, 2])
def test_ten_thousand_calls_over_a_wide_band(rule_):
    rng = random.Random(rule_)
    book, plain = Book(-100_000, 100_000, self_trade_rule=rule_), PlainBook(rule_)
    for _ in range(3000):
        match rng.choice("ppppcca"):
            case "p":
                price = rng.choice([rng.randrange(-100_000, 100_001), rng.randrange(2990, 3010)])
                row = (rng.randrange(50), rng.randrange(2), price, rng.randrange(1, 500), rng.choice([0, 0, 0, 1, 2]))
                assert book.place(*row) == plain.place(*row)
            case "c" if book.last_number:
                number = rng.randrange(1, book.last_number + 1)
                assert book.cancel(number) == plain.cancel(number)
            case "a" if plain.orders:
                number = rng.choice(sorted(plain.orders))
                price, quantity = rng.randrange(2990, 3010), rng.randrange(1, 500)
                assert book.amend(number, price, quantity) == plain.amend(number, price, quantity)
    assert book.fills() == plain.trades
    assert [book.queue(side) for side in (0, 1)] == [plain.queue(side) for side in (0, 1)]


def test_priority_is_price_then_time_and_less_quantity_keeps_it():
    book = Book(0, 100)
    first, second, third = (book.place(1, SELL, 50, 10), book.place(2, SELL, 50, 10), book.place(3, SELL, 49, 5))
    book.amend(first, 50, 8)
    assert book.queue(SELL) == [third, first, second]
    book.amend(first, 50, 9)
    assert book.queue(SELL) == [third, second, first], "more quantity goes to the end"
    book.place(9, BUY, 60, 12)
    assert book.fills() == [(third, 4, 49, 5), (second, 4, 50, 7)]


def test_refused_calls_change_nothing():
    book = Book(-5, 5)
    book.place(1, BUY, 0, 5)
    before = book.dump()
    for bad in ((1, BUY, 6, 1), (1, BUY, 0, 0), (1, BUY, 0, -3), (1, 2, 0, 1), (1, BUY, 0, 1, 3), (1, BUY, 0, 2**41)):
        with pytest.raises(ValueError):
            book.place(*bad)
    with pytest.raises(ValueError):
        book.amend(1, 9, 5)
    with pytest.raises(OverflowError):
        book.place(1, BUY, 0, 2**70)
    with pytest.raises(ValueError):
        book.load(array("q", [1]), array("q", [0]), array("q", [9]), array("q", [1]))
    assert (book.cancel(7), book.cancel(0), book.cancel(-1), book.amend(99, 0, 1)) == (0, 0, 0, False)
    assert book.dump() == before
    for band in ((5, 4), (0, 2**24), (-(2**30), 0)):
        with pytest.raises(ValueError):
            Book(*band)


def test_fill_or_kill_and_immediate_or_cancel():
    book = Book(0, 100)
    book.place(1, SELL, 50, 10)
    book.place(2, BUY, 50, 11, FOK)
    assert (book.filled, book.fill_count, book.live_count) == (0, 0, 1)
    book.place(2, BUY, 50, 11, IOC)
    assert (book.filled, book.left, book.live_count) == (10, 1, 0)


# -- the call auction


@st.composite
def collected(draw):
    """Rows of (owner, side, price, quantity); a participant is on one side only, so nobody can meet itself."""
    rows = draw(st.lists(st.tuples(st.integers(1, 8), PRICES, QUANTITIES), max_size=14))
    return [(owner, owner % 2, price, quantity) for owner, price, quantity in rows]


@settings(max_examples=400, deadline=None)
@given(collected())
def test_the_auction_agrees_with_brute_force(rows):
    book = Book(-6, 6, matching=False)
    for row in rows:
        book.place(*row)
    bids = [(price, quantity) for _, side, price, quantity in rows if side == BUY]
    asks = [(price, quantity) for _, side, price, quantity in rows if side == SELL]
    right = clearing_prices(bids, asks)
    most = max(
        (min(sum(q for p, q in bids if p >= x), sum(q for p, q in asks if p <= x)) for x in range(-7, 8)), default=0
    )
    result = book.uncross()
    if not right:
        assert result is None
        assert most == 0
        assert book.fill_count == 0
        return
    price, volume = result
    assert price == (right[0][0] + right[-1][0]) // 2
    assert volume == most == sum(row[3] for row in book.fills())
    got = dict.fromkeys(range(1, len(rows) + 1), 0)
    for seller, buyer, at, quantity in book.fills():
        assert at == price
        got[seller] += quantity
        got[buyer] += quantity
        assert rows[seller - 1][2] <= price <= rows[buyer - 1][2]
    for number, (_, side, limit, quantity) in enumerate(rows, 1):
        assert got[number] + book.remaining(number) == quantity
        if limit != price and (limit > price) == (side == BUY):
            assert got[number] == quantity, "better than the price, and not filled"
    for side in (BUY, SELL):
        level = [n for n, row in enumerate(rows, 1) if row[1] == side and row[2] == price]
        wanted, given_ = sum(rows[n - 1][3] for n in level), sum(got[n] for n in level)
        for number in level:
            assert abs(got[number] * wanted - rows[number - 1][3] * given_) < wanted, "in proportion, to within one"
    bid, ask = book.best(BUY), book.best(SELL)
    assert bid is None or ask is None or bid < ask


def test_load_collects_what_place_would():
    rng = random.Random(3)
    rows = [(rng.randrange(1, 9), rng.randrange(2), rng.randrange(-50, 50), rng.randrange(1, 99)) for _ in range(500)]
    one, other = Book(-50, 50, matching=False), Book(-50, 50, matching=False)
    for row in rows:
        one.place(*row)
    assert other.load(*(array("q", column) for column in zip(*rows, strict=True))) == 500
    assert one.dump() == other.dump()
    assert one.uncross() == other.uncross()
    assert one.fills() == other.fills()


def test_proportion_with_numbers_that_would_overflow():
    book = Book(0, 10, matching=False)
    huge = 2**40
    for owner in (1, 2, 3):
        book.place(owner, BUY, 5, huge)
    book.place(4, SELL, 5, huge)
    assert book.uncross() == (5, huge)
    got = [huge - book.remaining(number) for number in (1, 2, 3)]
    assert sum(got) == huge
    assert max(got) - min(got) <= 1
