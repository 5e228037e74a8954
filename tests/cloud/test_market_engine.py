"""The market's state machine: every refusal, money that never appears, settlement once, replay to the same state."""

import pytest
from market_inputs import random_inputs
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.market import Order, OrderStatus, RejectReason
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.ledger import GRID_OPERATOR, RETAILER, Booking, Ledger

SLOT = 900 * NS_PER_S
T = 2_000 * SLOT
OPEN = T - 3600 * NS_PER_S


@pytest.fixture
def engine(make_config):
    return MarketEngine(make_config())


@pytest.fixture
def order(make_order):
    def make(who="ann", side="buy", quantity=1000, price=2000, **more):
        return make_order(who, side, quantity, price, **{"slot_ns": T, **more})

    return make


def reasons(results):
    return [result.reason for result in results]


def test_a_good_order_is_accepted(engine, order):
    (result,) = engine.submit("ann", T, [order()], OPEN)
    assert (result.status, result.reason) == (OrderStatus.ACCEPTED, None)
    assert engine.slots[T].all_orders() == [order()]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"who": "eve", "sender": "eve"}, RejectReason.UNKNOWN_PARTICIPANT),
        ({"who": "bob"}, RejectReason.NOT_AUTHORISED),
        ({"slot_ns": T + SLOT}, RejectReason.UNKNOWN_PRODUCT),
        ({"slot_ns": T + 1, "of_slot": T + 1}, RejectReason.UNKNOWN_PRODUCT),
        ({"now": T - 300 * NS_PER_S}, RejectReason.GATE_CLOSED),
        ({"now": T - 21_600 * NS_PER_S - 1}, RejectReason.GATE_CLOSED),
        ({"quantity": 0}, RejectReason.BAD_QUANTITY),
        ({"quantity": -5}, RejectReason.BAD_QUANTITY),
        ({"price": 100_001}, RejectReason.BAD_PRICE),
        ({"price": -100_001}, RejectReason.BAD_PRICE),
        ({"quantity": 2001}, RejectReason.INFEASIBLE),
        ({"side": "sell", "quantity": 1001}, RejectReason.INFEASIBLE),
        ({"halt": "grid fault"}, RejectReason.HALTED),
    ],
)
def test_each_reason_to_refuse(engine, order, changes, wanted):
    sender, now = changes.pop("sender", "ann"), changes.pop("now", OPEN)
    of_slot, halt = changes.pop("of_slot", T), changes.pop("halt", None)
    if halt:
        engine.halt(halt)
    (result,) = engine.submit(sender, of_slot, [order(**changes)], now)
    assert (result.status, result.reason) == (OrderStatus.REJECTED, wanted)
    assert not any(slot.all_orders() for slot in engine.slots.values())
    assert engine.rejects == {wanted: 1}


def test_the_edges_of_gate_band_and_connection_are_inside(engine, order):
    (result,) = engine.submit("ann", T, [order(quantity=2000, price=-100_000)], T - 21_600 * NS_PER_S)
    assert result.status is OrderStatus.ACCEPTED
    (result,) = engine.submit("ann", T, [order(side="sell", price=100_000)], T - 300 * NS_PER_S - 1)
    assert result.status is OrderStatus.ACCEPTED


def test_another_area_is_another_product(engine, order):
    foreign = Order(**{**{name: getattr(order(), name) for name in Order.__slots__}, "area_id": "area-2"})
    assert reasons(engine.submit("ann", T, [foreign], OPEN)) == [RejectReason.UNKNOWN_PRODUCT]


def test_a_batch_is_held_to_the_connection_as_a_whole(engine, order):
    pair = [order(quantity=1500, name="a"), order(quantity=501, name="b")]
    assert reasons(engine.submit("ann", T, pair, OPEN)) == [RejectReason.POSITION_LIMIT] * 2


def test_the_same_id_twice_in_a_batch(engine, order):
    pair = [order(quantity=10, name="a"), order(quantity=20, name="a")]
    assert reasons(engine.submit("ann", T, pair, OPEN)) == [RejectReason.DUPLICATE_ID] * 2


def test_credit_counts_open_orders_of_all_slots(make_config, order):
    people = [{"id": "ann", "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 0.5}]
    engine = MarketEngine(make_config(participants=people))
    # 1000 Wh at 3000 ticks (0.30 a kWh) are 0.30
    assert reasons(engine.submit("ann", T, [order(price=3000)], OPEN)) == [None]
    other = order(price=3000, slot_ns=T + SLOT)
    assert reasons(engine.submit("ann", T + SLOT, [other], OPEN)) == [RejectReason.CREDIT_LIMIT]
    assert reasons(engine.submit("ann", T, [order(price=4000)], OPEN)) == [None], (
        "it replaces its own, and 0.40 is left"
    )


def test_credit_counts_what_trades_cost_but_not_the_retailers_bill(make_config, order):
    people = [
        {"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 0.5} for name in ("ann", "bob")
    ]
    engine = MarketEngine(make_config(participants=people))
    engine.submit("ann", T, [order(price=3000)], OPEN)
    engine.submit("bob", T, [order("bob", "sell", price=3000)], OPEN)
    engine.clear(T)
    later = order(price=3000, slot_ns=T + SLOT)
    assert reasons(engine.submit("ann", T + SLOT, [later], OPEN)) == [RejectReason.CREDIT_LIMIT]
    engine = MarketEngine(make_config(participants=people))
    engine.settle(T, "ann", 1_000_000, substituted=False)
    assert reasons(engine.submit("ann", T + SLOT, [later], OPEN)) == [None]


def test_a_new_batch_replaces_the_old_one_and_an_empty_one_takes_it_back(engine, order):
    engine.submit("ann", T, [order(name="a"), order(quantity=10, name="b")], OPEN)
    engine.submit("ann", T, [order(quantity=20, name="c")], OPEN)
    assert [one.client_order_id for one in engine.slots[T].all_orders()] == ["c"]
    engine.submit("ann", T, [], OPEN)
    assert engine.slots[T].all_orders() == []
    engine.submit("ann", T, [order(quantity=20, name="d")], OPEN)
    assert engine.submit("ann", T, [], T) == []
    assert engine.slots[T].all_orders(), "after gate closure nothing is taken back"
    engine.submit("ann", T, [], OPEN)
    assert engine.slots[T].all_orders(), "and the market's time does not go back"


def test_a_refused_batch_leaves_the_old_one(engine, order):
    engine.submit("ann", T, [order(name="a")], OPEN)
    engine.submit("ann", T, [order(name="b", quantity=9999)], OPEN)
    assert [one.client_order_id for one in engine.slots[T].all_orders()] == ["a"]


def test_due_at_gate_closure_and_cleared_once(engine, order):
    engine.submit("ann", T, [order(price=3000)], OPEN)
    engine.submit("bob", T, [order("bob", "sell", 400, 1000)], OPEN)
    assert engine.due(T - 300 * NS_PER_S - 1) == []
    assert engine.due(T - 300 * NS_PER_S) == [T]
    first = engine.clear(T)
    balances = dict(engine.ledger.balances)
    assert engine.clear(T) == first
    assert dict(engine.ledger.balances) == balances == {"ann": -400 * 3000, "bob": 400 * 3000}, (
        "600 Wh were wanted in vain: nobody who bid more than the price may go short"
    )
    assert [(one.participant_id, one.net_wh) for one in first] == [("ann", 400), ("bob", -400)]
    assert engine.due(T) == []


def test_settlement_is_the_residual_at_the_retail_price_and_happens_once(engine, order):
    engine.submit("ann", T, [order(price=3000)], OPEN)
    engine.submit("bob", T, [order("bob", "sell", 400, 1000)], OPEN)
    engine.clear(T)
    settlement = engine.settle(T, "ann", 1000, substituted=False)
    assert (settlement.committed_wh, settlement.residual_units) == (400, 600 * 3000)
    assert settlement.trade_units == 400 * 3000
    assert engine.settle(T, "ann", 5000, substituted=False) is None
    assert engine.settle(T, "ann", 5000, substituted=True) is None
    assert engine.ledger.balances[RETAILER] == 600 * 3000
    surplus = engine.settle(T, "bob", -1000, substituted=False)
    assert surplus.residual_units == -600 * 500, "more than it sold goes to the retailer at the feed-in price"
    assert engine.ledger.total() == 0


def test_a_real_reading_corrects_a_substitute_once(engine):
    engine.settle(T, "ann", 0, substituted=True)
    assert engine.settle(T, "ann", 100, substituted=True) is None
    corrected = engine.settle(T, "ann", 100, substituted=False)
    assert (corrected.metered_wh, corrected.substituted) == (100, False)
    assert engine.ledger.balances["ann"] == -100 * 3000
    assert engine.settle(T, "ann", 700, substituted=False) is None
    assert engine.ledger.balances["ann"] == -100 * 3000
    engine.settle(T, "bob", 1000, substituted=True)
    engine.settle(T, "bob", -200, substituted=False)
    assert engine.ledger.balances["bob"] == 200 * 500
    assert engine.ledger.total() == 0


def test_flexibility_is_paid_once_by_the_grid_operator(engine):
    assert engine.pay_flexibility("dr-1", "ann", 500)
    assert not engine.pay_flexibility("dr-1", "ann", 500)
    assert not engine.pay_flexibility("dr-2", "ann", -1)
    assert engine.ledger.balances == {"ann": 500, GRID_OPERATOR: -500}


def test_a_negative_booking_is_refused():
    with pytest.raises(ValueError, match="booking x of -1 units"):
        Ledger().book(Booking(id="x", debit="ann", credit="bob", units=-1, reason="trade"))


def play(engine, inputs):
    for method, arguments, options in inputs:
        if method == "clear_due":
            for slot in engine.due(*arguments):
                engine.clear(slot)
        else:
            getattr(engine, method)(*arguments, **options)
        assert engine.ledger.total() == 0
        yield method


@pytest.mark.parametrize("seed", range(5))
def test_money_never_appears_and_a_replay_ends_in_the_same_state(make_config, seed):
    one, other = MarketEngine(make_config()), MarketEngine(make_config())
    assert len(list(play(one, random_inputs(seed)))) == 400
    list(play(other, random_inputs(seed)))
    assert one.trades, "the inputs have to trade for this to say anything"
    assert one.state_hash() == other.state_hash()
    assert one.ledger.digest == other.ledger.digest
    shortened = MarketEngine(make_config())
    inputs = list(random_inputs(seed))
    list(play(shortened, inputs[: len(inputs) // 2]))
    assert shortened.state_hash() != one.state_hash()


def test_changed_rules_hold_from_then_on_and_rewrite_nothing(make_config):
    engine_config = make_config()
    engine = MarketEngine(engine_config)
    name, slot = engine_config.participants[0].id, 1_700_000_100 // 900 * 900 * 10**9
    engine.settle(slot, name, 1000, substituted=False)
    before = engine.ledger.balances[name]
    dear = engine_config.model_copy(
        update={"tariff": engine_config.tariff.model_copy(update={"default_price": 9.0, "periods": ()})}
    )
    engine.configure(dear)
    assert engine.ledger.balances[name] == before
    engine.settle(slot + 900 * 10**9, name, 1000, substituted=False)
    assert engine.ledger.balances[name] == before - 1000 * 90_000
