"""Continuous trading, its closing auction and everything that can stop it: stated promises, and any sequence of inputs."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.market import Order, OrderKind, OrderStatus, RejectReason, Side, TimeInForce
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.marketdata import area_index_ticks, market_data, product_data
from wattmesh_cloud.market.risk import SiteState

SLOT = 900 * NS_PER_S
T = 2_000 * SLOT
OPEN = T - 3600 * NS_PER_S
CALL = T - 600 * NS_PER_S
CLOSE = T - 300 * NS_PER_S


@pytest.fixture
def engine(make_config):
    return MarketEngine(make_config(mechanism="continuous+call"))


@pytest.fixture
def order(make_order):
    def make(who="ann", side="buy", quantity=100, price=2000, *, name="", slot_ns=T, **more):
        return replace(make_order(who, side, quantity, price, name=name, slot_ns=slot_ns), **more)

    return make


def one(engine, order, now=OPEN):
    (result,) = engine.place(order.participant_id, [order], now)
    return result


def test_an_order_trades_on_arrival_at_the_resting_price(engine, order):
    assert one(engine, order("bob", "sell", 100, 1500)).status is OrderStatus.ACCEPTED
    result = one(engine, order("ann", "buy", 150, 2000))
    assert (result.status, result.filled_wh, result.open_wh) == (OrderStatus.PARTIALLY_FILLED, 100, 50)
    assert [(trade.price_ticks, trade.quantity_wh) for trade in result.trades] == [(1500, 100)]
    assert engine.ledger.balances["bob"] == 100 * 1500
    assert engine.ledger.total() == 0


def test_the_same_order_again_is_the_same_order_and_another_of_its_name_is_none(engine, order):
    one(engine, order("bob", "sell", 60, 1500))
    first = one(engine, order(quantity=100, name="x"))
    before = engine.state_hash()
    again = one(engine, order(quantity=100, name="x"))
    assert (again.status, again.filled_wh, again.trades) == (first.status, 60, ())
    assert engine.risk.exposure["ann"] == 40 * 2000
    other = one(engine, order(quantity=90, name="x"))
    assert other.reason is RejectReason.DUPLICATE_ID
    assert len(engine.trades) == 1
    assert before != engine.state_hash(), "the refusal and the rate are counted"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"time_in_force": TimeInForce.GTD}, RejectReason.BAD_TIME_IN_FORCE),
        ({"expires_ns": T}, RejectReason.BAD_TIME_IN_FORCE),
        ({"time_in_force": TimeInForce.GTD, "expires_ns": OPEN}, RejectReason.BAD_TIME_IN_FORCE),
        ({"quantity_wh": 0}, RejectReason.BAD_QUANTITY),
        ({"quantity_wh": -1}, RejectReason.BAD_QUANTITY),
        ({"quantity_wh": 10**30}, RejectReason.INFEASIBLE),
        ({"price_ticks": 10**30}, RejectReason.BAD_PRICE),
        ({"slot_start_ns": 9 * 10**40}, RejectReason.GATE_CLOSED),
        ({"slot_start_ns": T + 1}, RejectReason.UNKNOWN_PRODUCT),
        ({"area_id": "elsewhere"}, RejectReason.UNKNOWN_PRODUCT),
        ({"participant_id": "bob"}, RejectReason.NOT_AUTHORISED),
    ],
)
def test_bad_orders_are_refused_by_type_counted_and_change_nothing_else(engine, order, changes, wanted):
    one(engine, order("bob", "sell", 10, 1500))
    before = engine.dump()
    (result,) = engine.place("ann", [replace(order(), **changes)], OPEN)
    assert (result.status, result.reason) == (OrderStatus.REJECTED, wanted)
    after = engine.dump()
    assert after.pop("rejects") == {wanted: 1}
    before.pop("rejects")
    for state in (before, after):
        state["risk"].pop("busy_until")  # refused orders count against the rate
    assert after == before


def test_ioc_fok_market_and_gtd(engine, order):
    one(engine, order("bob", "sell", 100, 1500))
    killed = one(engine, order(quantity=101, name="f", time_in_force=TimeInForce.FOK))
    assert (killed.status, killed.filled_wh) == (OrderStatus.CANCELLED, 0)
    taken = one(engine, order(quantity=60, name="m", price=0, kind=OrderKind.MARKET))
    assert (taken.status, taken.filled_wh) == (OrderStatus.FILLED, 60)
    rest = one(engine, order(quantity=60, name="i", time_in_force=TimeInForce.IOC))
    assert (rest.filled_wh, rest.open_wh) == (40, 0)
    gone = one(engine, order("cem", name="g", time_in_force=TimeInForce.GTD, expires_ns=OPEN + 5))
    assert gone.open_wh == 100
    engine.advance(OPEN + 4)
    assert engine.slots[T].own["cem"]
    engine.advance(OPEN + 5)
    assert not engine.slots[T].own["cem"]
    assert engine.slots[T].entries["cem", "g"].status is OrderStatus.EXPIRED
    assert not any(engine.risk.exposure.values())


def test_amend_counts_what_has_traded_and_is_checked_like_an_order(engine, order):
    one(engine, order("bob", "sell", 30, 1500))
    one(engine, order(name="x"))
    assert engine.amend("ann", T, "x", 30, 2000, OPEN).reason is RejectReason.BAD_QUANTITY
    assert engine.amend("ann", T, "y", 30, 2000, OPEN).reason is RejectReason.UNKNOWN_ORDER
    assert engine.amend("bob", T, "x", 30, 2000, OPEN).reason is RejectReason.UNKNOWN_ORDER
    assert engine.amend("ann", T, "x", 2001, 2000, OPEN).reason is RejectReason.INFEASIBLE
    assert engine.amend("ann", T, "x", 50, 2**40, OPEN).reason is RejectReason.BAD_PRICE
    result = engine.amend("ann", T, "x", 50, 1800, OPEN)
    assert (result.filled_wh, result.open_wh) == (30, 20)
    assert engine.risk.exposure["ann"] == 20 * 1800
    one(engine, order("cem", "sell", 20, 1900, name="s"))
    crossed = engine.amend("ann", T, "x", 60, 1950, OPEN)
    assert (crossed.filled_wh, crossed.open_wh, crossed.trades[0].price_ticks) == (50, 10, 1900)


def test_cancel_one_some_and_all_also_while_halted(engine, order):
    for name in ("a", "b", "c"):
        one(engine, order(name=name))
    one(engine, order(name="d", slot_ns=T + SLOT))
    engine.halt("fault")
    results = engine.cancel("ann", OPEN, slot_ns=T, client_order_ids=("a", "zzz"))
    assert [(row.client_order_id, row.status) for row in results] == [
        ("a", OrderStatus.CANCELLED),
        ("zzz", OrderStatus.REJECTED),
    ]
    assert [row.client_order_id for row in engine.cancel("ann", OPEN, slot_ns=T)] == ["b", "c"]
    assert [row.client_order_id for row in engine.cancel("ann", OPEN)] == ["d"]
    assert engine.risk.exposure["ann"] == 0


@pytest.mark.parametrize(
    ("how", "newest", "oldest"),
    [("cancel_newest", 0, 100), ("cancel_oldest", 50, 0), ("cancel_both", 0, 0)],
)
def test_nobody_trades_with_itself(make_config, order, how, newest, oldest):
    engine = MarketEngine(make_config(mechanism="continuous", self_trade=how))
    one(engine, order("ann", "sell", 100, 1500, name="old"))
    result = one(engine, order("ann", "buy", 50, 2000, name="new"))
    assert result.detail == "it met an order of its own participant"
    assert (result.open_wh, engine.slots[T].entries["ann", "old"].open_wh) == (newest, oldest)
    assert engine.trades == {}


def test_while_orders_are_collected_a_self_trade_is_refused_and_nothing_trades_at_once(engine, order):
    one(engine, order("ann", "sell", 100, 1500, name="a"), CALL)
    assert one(engine, order("ann", "buy", 50, 1500, name="b"), CALL).reason is RejectReason.SELF_TRADE
    now = order("bob", "buy", 50, 2000, time_in_force=TimeInForce.IOC)
    assert one(engine, now, CALL).reason is RejectReason.BAD_TIME_IN_FORCE
    assert one(engine, order("bob", "buy", 50, 2000), CALL).status is OrderStatus.ACCEPTED
    assert engine.trades == {}
    engine.amend("ann", T, "a", 100, 1600, CALL)
    engine.clear(T)
    (trade,) = engine.trades.values()
    assert (trade.quantity_wh, trade.price_ticks) == (50, 1600), "100 Wh were offered in vain at 1600"


def test_continuous_first_then_a_closing_auction_of_what_is_left(engine, order):
    one(engine, order("bob", "sell", 100, 1500, name="s1"))
    one(engine, order("ann", "buy", 40, 1700, name="b1"))
    one(engine, order("cem", "buy", 80, 1800, name="b2"), CALL)
    (product,) = market_data(engine, CALL).products
    assert (product.status, product.bids, product.asks) == ("call", (), ()), "a call's book is sealed"
    commitments = {row.participant_id: row for row in engine.clear(T)}
    assert {name: row.net_wh for name, row in commitments.items()} == {"ann": 40, "bob": -100, "cem": 60}
    assert commitments["cem"].clearing_price_ticks == 1800
    assert engine.slots[T].entries["cem", "b2"].status is OrderStatus.EXPIRED
    assert engine.ledger.balances["bob"] == 40 * 1500 + 60 * 1800


def test_halts_kill_switch_and_rate(make_config, order):
    people = [
        {"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0, "orders_per_s": 1}
        for name in ("ann", "bob")
    ]
    engine = MarketEngine(make_config(mechanism="continuous", participants=people, halt_move=0.05))
    assert one(engine, order(name="1")).reason is None
    engine.halt("too old", "forecast")
    engine.halt("fault")
    assert one(engine, order(name="2")).reason is RejectReason.HALTED
    engine.resume()
    assert engine.halted == "too old"
    engine.resume("forecast")
    assert engine.suspend("ann", "asked to") == 1
    assert one(engine, order(name="3")).reason is RejectReason.SUSPENDED
    engine.reinstate("ann")
    assert one(engine, order(name="4")).reason is None
    assert one(engine, order(name="5")).reason is RejectReason.RATE_LIMIT, "four at once, then one a second"
    later = OPEN + 2 * NS_PER_S
    one(engine, order("bob", "sell", 100, 2000, name="a"), later)
    one(engine, order("bob", "sell", 100, 2501, name="b"), later)
    assert one(engine, order(price=2600, name="6"), later + NS_PER_S).reason is None
    assert one(engine, order("bob", "sell", name="c"), later + NS_PER_S).reason is RejectReason.HALTED
    assert product_data(engine, engine.slots[T], later + NS_PER_S).status == "halted"
    after = later + 121 * NS_PER_S
    assert one(engine, order("bob", "sell", 10, 3000, name="c"), after).reason is None


def test_offers_need_recent_telemetry_that_says_they_can_be_delivered(make_config, order):
    people = [
        {
            "id": "ann",
            "import_limit_w": 8000,
            "export_limit_w": 8000,
            "credit_limit": 100.0,
            "telemetry_max_age_s": 300,
        }
    ]
    engine = MarketEngine(make_config(mechanism="continuous", participants=people))
    sell = order("ann", "sell", 500, 1500)
    assert one(engine, sell).reason is RejectReason.STALE_TELEMETRY
    engine.observe("ann", SiteState(time_ns=OPEN, output_w=4000, generation_w=0, stored_wh=800))
    assert one(engine, order("ann", "sell", 1001, 1500)).reason is RejectReason.INFEASIBLE, "4 kW give 1000 Wh"
    assert one(engine, sell).reason is None
    elsewhere = order("ann", "sell", 301, 1500, slot_ns=T + SLOT)
    assert one(engine, elsewhere).reason is RejectReason.INFEASIBLE, "800 Wh are sold once"
    earlier = order("ann", "sell", 301, 1500, slot_ns=T - SLOT)
    assert one(engine, earlier).reason is RejectReason.INFEASIBLE, "nor may they be sold before"
    assert one(engine, order("ann", "sell", 300, 1500, slot_ns=T + SLOT)).reason is None
    late = OPEN + 301 * NS_PER_S
    assert one(engine, order("ann", "sell", 1, 1500, name="l"), late).reason is RejectReason.STALE_TELEMETRY
    assert one(engine, order("ann", "buy", 1, 10, name="b"), late).reason is None


def test_depth_prices_and_index_are_told_without_names(engine, order):
    one(engine, order("bob", "sell", 100, 1500, name="s1"))
    one(engine, order("bob", "sell", 70, 1600, name="s2"))
    one(engine, order("ann", "buy", 120, 1700, name="b1"))
    one(engine, order("cem", "buy", 10, 1000, name="b2"))
    data = market_data(engine, OPEN)
    (product,) = data.products
    assert [(row.price_ticks, row.quantity_wh, row.orders) for row in product.asks] == [(1600, 50, 1)]
    assert [(row.price_ticks, row.quantity_wh, row.orders) for row in product.bids] == [(1000, 10, 1)]
    assert (product.open_ticks, product.high_ticks, product.low_ticks, product.close_ticks) == (1500, 1600, 1500, 1600)
    assert (product.volume_wh, product.trades, product.index_ticks) == (120, 2, 1517)
    assert area_index_ticks(engine, T, T + SLOT) == 1517
    assert area_index_ticks(engine, T + SLOT, T + 2 * SLOT) is None
    assert "ann" not in repr(data)


def test_a_narrower_band_takes_out_what_is_outside_and_leaves_the_rest_in_place(make_config, order):
    engine = MarketEngine(make_config(mechanism="continuous"))
    one(engine, order(price=50_000, quantity=1, name="far"))
    one(engine, order(price=900, name="near"))
    engine.configure(make_config(mechanism="continuous", price_band=0.1))
    assert engine.slots[T].entries["ann", "far"].status is OrderStatus.EXPIRED
    assert [row.client_order_id for row in engine.slots[T].all_orders()] == ["near"]
    assert one(engine, order("bob", "sell", 100, 900)).filled_wh == 100


def test_flexibility_stands_in_the_settlement_before_and_after_it(make_config):
    engine = MarketEngine(make_config())
    engine.pay_flexibility("dr-1", "ann", 500, T + 5)
    assert engine.settle(T, "ann", 1000).flexibility_units == -500
    engine.pay_flexibility("dr-2", "ann", 250, T)
    settlement = engine.slots[T].settlements["ann"]
    assert (settlement.flexibility_units, settlement.revision, settlement.metered_wh) == (-750, 1, 1000)
    assert engine.ledger.balances["ann"] == 750 - 1000 * 3000


def test_fees_levies_and_imbalance_are_booked_and_balance(make_config, order):
    config = make_config(mechanism="continuous", grid_fee=0.02, levy=0.01, imbalance_fee=0.05)
    engine = MarketEngine(config)
    one(engine, order("bob", "sell", 100, 1500))
    one(engine, order("ann", "buy", 100, 1500))
    engine.clear(T)
    settlement = engine.settle(T, "ann", 130)
    assert (settlement.fee_units, settlement.levy_units, settlement.imbalance_units) == (20_000, 10_000, 15_000)
    assert settlement.residual_units == 30 * 3000
    assert engine.settle(T, "cem", 130).imbalance_units == 0, "who did not trade promised nothing"
    assert engine.ledger.total() == 0


def test_a_substitute_is_the_median_of_the_same_slot_in_the_week_before(make_config):
    engine = MarketEngine(make_config())
    day = 86_400 * NS_PER_S
    for days, metered in ((1, 300), (2, 100), (3, 900), (9, 5000)):
        engine.settle(T - days * day, "ann", metered)
    engine.settle(T - 4 * day, "ann", None)
    settlement = engine.settle(T, "ann", None)
    assert (settlement.metered_wh, settlement.method, settlement.substituted) == (300, "history", True)
    assert engine.settle(T, "ann", None) is None
    corrected = engine.settle(T, "ann", 250)
    assert (corrected.metered_wh, corrected.method, corrected.revision) == (250, "meter", 1)
    assert engine.settle(T, "bob", None).method == "commitment"


def test_a_batch_again_changes_nothing_and_a_name_that_has_traded_is_taken(make_config, order):
    engine = MarketEngine(make_config(mechanism="continuous"))
    one(engine, order("bob", "sell", 30, 1500))
    batch = [order(name="a"), order(name="b", price=1400)]
    first = engine.submit("ann", T, batch, OPEN)
    assert [row.filled_wh for row in first] == [30, 0]
    before = engine.dump()
    again = engine.submit("ann", T, batch, OPEN)
    assert [(row.status, row.filled_wh, row.open_wh) for row in again] == [
        (row.status, row.filled_wh, row.open_wh) for row in first
    ]
    after = engine.dump()
    for state in (before, after):
        state["risk"].pop("busy_until")
    assert after == before
    other = engine.submit("ann", T, [order(name="a", price=1300), order(name="c")], OPEN)
    assert [row.reason for row in other] == [RejectReason.DUPLICATE_ID, None]
    assert {entry.placed.client_order_id for entry in engine.slots[T].own["ann"].values()} == {"c"}
    assert engine.slots[T].entries["ann", "a"].filled_wh == 30


class FirstPriceAtTheClose:
    """A third party's mechanism: collects, and lets the dearest bid and the cheapest offer alone meet, at the bid."""

    def continuous(self, now_ns, gate_close_ns):
        return False

    def close(self, book):
        best = [number for side in (0, 1) for number in book.queue(side)[:1]]
        for side in (0, 1):
            for number in book.queue(side):
                if number not in best:
                    book.cancel(number)
        result = book.uncross(pay_as_bid=True)
        return None if result is None else book.fills()[0][2]


def test_another_mechanism_needs_two_methods(make_config, order):
    engine = MarketEngine(make_config(), mechanism=FirstPriceAtTheClose())
    for who, side, quantity, price in (("ann", "buy", 10, 30), ("cem", "buy", 10, 25), ("bob", "sell", 15, 20)):
        one(engine, order(who, side, quantity, price))
    engine.clear(T)
    assert [(trade.buyer_id, trade.quantity_wh, trade.price_ticks) for trade in engine.trades.values()] == [
        ("ann", 10, 30)
    ]
    assert not any(engine.risk.exposure.values())


# -- anything at all: what a message may carry is refused or taken, and never an error that a replay would meet again

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, T, T + SLOT, OPEN, 2**40, 2**40 + 1, 2**31, 2**24, 100_000, 100_001, 2000, 2001]),
)
NAMES = st.sampled_from(["ann", "bob", "eve", "", "~retailer", "x" * 500, "\0", "a|b\nc"])
ANY_ORDER = st.builds(
    Order,
    client_order_id=NAMES,
    participant_id=NAMES,
    area_id=st.sampled_from(["area-1", "", "area-2"]),
    slot_start_ns=NUMBERS,
    side=st.sampled_from(Side),
    quantity_wh=NUMBERS,
    price_ticks=NUMBERS,
    kind=st.sampled_from(OrderKind),
    time_in_force=st.sampled_from(TimeInForce),
    expires_ns=st.none() | NUMBERS,
)


@settings(max_examples=300, deadline=None)
@given(
    how=st.sampled_from(["call", "continuous", "continuous+call"]),
    batches=st.lists(
        st.tuples(NAMES, st.lists(ANY_ORDER, max_size=3), st.sampled_from(["place", "submit", "amend"]), NUMBERS)
    ),
)
def test_no_message_can_break_the_market(how, batches):
    engine = MarketEngine(CONFIG.model_copy(update={"mechanism": how}))
    engine.place("bob", [Order(client_order_id="s", participant_id="bob", area_id="area-1", slot_start_ns=T,
                               side=Side.SELL, quantity_wh=5, price_ticks=2000)], OPEN)  # fmt: skip
    for who, orders, method, number in batches:
        before = engine.dump()
        if method == "place":
            results = engine.place(who, orders, OPEN)
        elif method == "submit":
            results = engine.submit(who, number, orders, OPEN)
        else:
            results = [engine.amend(who, one.slot_start_ns, one.client_order_id, one.quantity_wh, one.price_ticks, OPEN)
                       for one in orders]  # fmt: skip
            results += engine.cancel(
                who, OPEN, slot_ns=number, client_order_ids=["zz", *(one.client_order_id for one in orders)]
            )
        if all(row.status is OrderStatus.REJECTED for row in results) and not (method == "submit" and not orders):
            after = engine.dump()
            for state in (before, after):
                state.pop("rejects")
                state["risk"].pop("busy_until")
            assert after == before
        assert engine.ledger.total() == 0
    again = MarketEngine(CONFIG.model_copy(update={"mechanism": how}))
    again.restore(json.loads(json.dumps(engine.dump())))
    assert again.state_hash() == engine.state_hash()


# -- any sequence of inputs

PEOPLE = ("ann", "bob", "cem")
CONFIG = MarketConfig.model_validate(
    {
        "area": "area-1",
        "mechanism": "continuous+call",
        "grid_fee": 0.02,
        "imbalance_fee": 0.01,
        "tariff": {"feed_in_price": 0.05, "default_price": 0.30},
        "participants": [
            {"id": name, "import_limit_w": 400, "export_limit_w": 400, "credit_limit": 0.02, "orders_per_s": 1000}
            for name in PEOPLE
        ],
    }
)


class MarketMachine(RuleBasedStateMachine):
    """Two engines: one that lives, one that is rebuilt from inputs or snapshots; and what must always hold."""

    @initialize(how=st.sampled_from(["cancel_newest", "cancel_oldest", "cancel_both"]))
    def start(self, how):
        self.config = CONFIG.model_copy(update={"self_trade": how})
        self.engine = MarketEngine(self.config)
        self.inputs = []
        self.now = T - 1500 * NS_PER_S
        self.ids = 0

    def do(self, method, *arguments, **options):
        self.inputs.append((method, arguments, options))
        return getattr(self.engine, method)(*arguments, **options)

    def an_order(self, who, side, quantity, price, slot, kind, force):
        self.ids += 1
        return Order(
            client_order_id=f"o{self.ids}",
            participant_id=who,
            area_id="area-1",
            slot_start_ns=T + slot * SLOT,
            side=side,
            quantity_wh=quantity,
            price_ticks=price,
            kind=kind,
            time_in_force=force,
            expires_ns=self.now + 60 * NS_PER_S if force is TimeInForce.GTD else None,
        )

    orders = {
        "who": st.sampled_from(PEOPLE),
        "side": st.sampled_from(Side),
        "quantity": st.integers(0, 60),
        "price": st.integers(-20, 20),
        "slot": st.integers(0, 1),
        "kind": st.sampled_from([OrderKind.LIMIT] * 5 + [OrderKind.MARKET]),
        "force": st.sampled_from([TimeInForce.GTC] * 4 + list(TimeInForce)),
    }

    @rule(**orders)
    def place(self, who, side, quantity, price, slot, kind, force):
        order = self.an_order(who, side, quantity, price, slot, kind, force)
        (result,) = self.do("place", who, [order], self.now)
        if result.reason is None:
            assert result.filled_wh + result.open_wh <= quantity
            (again,) = self.do("place", who, [order], self.now)
            assert (again.status, again.filled_wh, again.open_wh) == (result.status, result.filled_wh, result.open_wh)

    @rule(who=st.sampled_from(PEOPLE), slot=st.integers(0, 1), rows=st.lists(st.tuples(
        st.sampled_from(Side), st.integers(1, 60), st.integers(-20, 20)), max_size=3))  # fmt: skip
    def submit(self, who, slot, rows):
        batch = [self.an_order(who, *row, slot, OrderKind.LIMIT, TimeInForce.GTC) for row in rows]
        first = self.do("submit", who, T + slot * SLOT, batch, self.now)
        if batch and all(row.reason is None for row in first):
            open_wh = {number: entry.open_wh for number, entry in self.engine.slots[T + slot * SLOT].live.items()}
            again = self.do("submit", who, T + slot * SLOT, batch, self.now)
            if len({order.side for order in batch}) == 1:  # else the batch may have met itself
                assert [row.filled_wh for row in again] == [row.filled_wh for row in first]
                assert {n: e.open_wh for n, e in self.engine.slots[T + slot * SLOT].live.items()} == open_wh

    @rule(data=st.data(), quantity=st.integers(0, 80), price=st.integers(-20, 20))
    def amend(self, data, quantity, price):
        every = [(slot, entry) for slot in self.engine.slots.values() for entry in slot.entries.values()]
        if every:
            slot, entry = data.draw(st.sampled_from(every))
            placed = entry.placed
            self.do("amend", placed.participant_id, slot.start_ns, placed.client_order_id, quantity, price, self.now)

    @rule(who=st.sampled_from(PEOPLE), slot=st.sampled_from([None, T, T + SLOT]))
    def cancel(self, who, slot):
        self.do("cancel", who, self.now, slot_ns=slot)

    @rule(seconds=st.integers(1, 400))
    def time(self, seconds):
        self.now += seconds * NS_PER_S
        self.do("advance", self.now)
        for slot in self.engine.due(self.now):
            self.do("clear" if self.now < slot else "void", slot)

    @rule(who=st.sampled_from(PEOPLE), slot=st.integers(-1, 1), metered=st.none() | st.integers(-200, 200))
    def settle(self, who, slot, metered):
        self.do("settle", T + slot * SLOT, who, metered)

    @rule(who=st.sampled_from(PEOPLE), event=st.integers(0, 3), units=st.integers(-1, 100))
    def flexibility(self, who, event, units):
        self.do("pay_flexibility", f"dr-{event}", who, units, T)

    @rule(slots=st.integers(-1, 2))
    def archive(self, slots):
        trades = self.engine.sums.trades + sum(len(slot.trades) for slot in self.engine.slots.values())
        self.do("archive", T + slots * SLOT)
        assert self.engine.sums.trades + sum(len(slot.trades) for slot in self.engine.slots.values()) == trades

    @rule(who=st.sampled_from(PEOPLE))
    def suspend(self, who):
        self.do("suspend", who, "test")

    @rule(who=st.sampled_from(PEOPLE))
    def reinstate(self, who):
        self.do("reinstate", who)

    @rule()
    def replay(self):
        again = MarketEngine(self.config)
        for method, arguments, options in self.inputs:
            getattr(again, method)(*arguments, **options)
        assert again.state_hash() == self.engine.state_hash()

    @rule()
    def live_on_from_a_snapshot(self):
        again = MarketEngine(self.config)
        again.restore(json.loads(json.dumps(self.engine.dump())))
        assert again.state_hash() == self.engine.state_hash()
        self.engine = again

    @invariant()
    def money_and_energy_are_conserved(self):
        assert self.engine.ledger.total() == 0
        for slot in self.engine.slots.values():
            assert sum(one.bought for one in slot.positions.values()) == slot.volume_wh
            assert sum(one.sold for one in slot.positions.values()) == slot.volume_wh
            assert sum(trade.quantity_wh for trade in slot.trades) == slot.volume_wh

    @invariant()
    def nobody_trades_with_itself_or_beyond_its_order(self):
        for slot in self.engine.slots.values():
            filled = {}
            for trade in slot.trades:
                assert trade.buyer_id != trade.seller_id
                for key in ((trade.buyer_id, trade.buy_order_id), (trade.seller_id, trade.sell_order_id)):
                    filled[key] = filled.get(key, 0) + trade.quantity_wh
            for key, entry in slot.entries.items():
                assert filled.get(key, 0) == entry.filled_wh
                assert entry.filled_wh + entry.open_wh <= entry.order.quantity_wh

    @invariant()
    def limits_hold_and_what_is_counted_is_what_is_open(self):
        exposure = dict.fromkeys(PEOPLE, 0)
        for slot in self.engine.slots.values():
            for name, position in slot.positions.items():
                own = list(slot.own.get(name, {}).values())
                buys = sum(entry.open_wh for entry in own if entry.order.side is Side.BUY)
                sells = sum(entry.open_wh for entry in own if entry.order.side is Side.SELL)
                assert (position.open_buy, position.open_sell) == (buys, sells)
                assert position.bought - position.sold + buys <= 100 or buys == 0
                assert position.worst_sold <= 100 or sells == 0
                exposure[name] += sum(entry.open_wh * entry.cost_ticks for entry in own)
        for name in PEOPLE:
            assert self.engine.risk.exposure.get(name, 0) == exposure[name]
            assert exposure[name] <= 200_000

    @invariant()
    def book_and_entries_agree_and_no_book_is_crossed_while_trading_is_continuous(self):
        for slot in self.engine.open.values():
            book = slot.book
            assert {number: entry.open_wh for number, entry in slot.live.items()} == {
                number: book.remaining(number) for number in (*book.queue(0), *book.queue(1))
            }
            if book.matching and book.best(0) is not None and book.best(1) is not None:
                assert book.best(0) < book.best(1)


TestMarket = MarketMachine.TestCase
TestMarket.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.long
class TestMarketForLong(MarketMachine.TestCase):
    settings = settings(max_examples=2000, stateful_step_count=80, deadline=None)
