"""What a hostile participant may try, and that it gets a typed refusal and nothing else."""

import pytest
from pydantic import ValidationError
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import UnauthorisedError
from wattmesh_a2a.market import Order, OrderKind, OrderStatus, RejectReason, Side
from wattmesh_a2a.messages import OrderBatch, OrderCancel, OrderPlace
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.service import MarketService

SLOT_NS = 900 * NS_PER_S
T = 19_676 * 86_400 * NS_PER_S + 4 * SLOT_NS
OPEN = T - 3600 * NS_PER_S


def person(name, **more):
    return {"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0, **more}


def order(who, side=Side.BUY, name="o1", quantity=100, price=2000, **more):
    return Order(
        client_order_id=name, participant_id=who, area_id="area-1", slot_start_ns=T, side=side, quantity_wh=quantity,
        price_ticks=price, **more,
    )  # fmt: skip


@pytest.mark.parametrize("mechanism", ["call", "continuous"])
def test_a_closed_product_is_not_opened_again_by_the_clock_or_by_new_rules(make_config, mechanism):
    engine = MarketEngine(make_config(mechanism=mechanism, gate_close_s=900))
    engine.place("ann", [order("ann")], OPEN)
    engine.place("bob", [order("bob", Side.SELL)], OPEN)
    engine.clear(T)
    hashed = engine.ledger.digest
    for step in ("the clock is set back", "the gate closes later now"):
        if step == "the gate closes later now":
            engine.configure(make_config(mechanism=mechanism, gate_close_s=300))
        for now in (OPEN, T - 800 * NS_PER_S):
            (placed,) = engine.place("cem", [order("cem", name=f"c-{step}-{now}"[:60])], now)
            (batch,) = engine.submit("cem", T, [order("cem", name="batch")], now)
            assert placed.reason is batch.reason is RejectReason.GATE_CLOSED
            assert engine.amend("ann", T, "o1", 50, 2000, now).reason is RejectReason.UNKNOWN_ORDER
            assert engine.cancel("ann", now, slot_ns=T) == []
    assert engine.open == {}
    assert engine.due(T) == []
    assert engine.ledger.digest == hashed


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\x00", "\u202eabc"])
def test_names_that_fill_memory_or_lie_on_a_page(make_config, name):
    engine = MarketEngine(make_config())
    (result,) = engine.place("ann", [order("ann", name=name)], OPEN)
    assert (result.status, result.reason) == (OrderStatus.REJECTED, RejectReason.BAD_ID)
    (result,) = engine.submit("ann", T, [order("ann", name=name)], OPEN)
    assert result.reason is RejectReason.BAD_ID


def test_placing_and_cancelling_without_end_does_not_fill_the_memory(make_config):
    engine = MarketEngine(
        make_config(mechanism="continuous", participants=[person("ann", orders_a_slot=20), person("bob")])
    )
    results = []
    for number in range(50):
        results += engine.place("ann", [order("ann", name=f"o{number}")], OPEN + number * NS_PER_S)
        engine.cancel("ann", OPEN + number * NS_PER_S)
    assert [one.reason for one in results] == [None] * 20 + [RejectReason.RATE_LIMIT] * 30
    assert len(engine.slots[T].entries) == 20
    (other,) = engine.place("bob", [order("bob")], OPEN + 99 * NS_PER_S)
    assert other.reason is None
    again = engine.place("ann", [order("ann", name="o3")], OPEN + 100 * NS_PER_S)
    assert again[0].status is OrderStatus.CANCELLED, "a repetition is no new order"


def test_replacing_a_batch_again_and_again_is_no_new_order_each_time(make_config):
    engine = MarketEngine(make_config(participants=[person("ann", orders_a_slot=3), person("bob")]))
    for number in range(30):
        (result,) = engine.submit("ann", T, [order("ann", name=f"o{number}")], OPEN + number * NS_PER_S)
        assert result.reason is None
    assert len(engine.slots[T].entries) == engine.slots[T].positions["ann"].orders == 1


@pytest.mark.parametrize("how", ["place", "submit"])
@pytest.mark.parametrize("mechanism", ["call", "continuous"])
def test_one_owner_does_not_trade_with_itself_under_two_names(make_config, mechanism, how):
    people = [person("ann", owner="firm"), person("bob", owner="firm"), person("cem")]
    engine = MarketEngine(make_config(mechanism=mechanism, participants=people))

    def put(who, side, name, price=2000):
        one = [order(who, side, name, price=price)]
        return (engine.place(who, one, OPEN) if how == "place" else engine.submit(who, T, one, OPEN))[0]

    assert put("ann", Side.BUY, "a").reason is None
    met = put("bob", Side.SELL, "b")
    assert not met.trades
    assert met.reason is RejectReason.SELF_TRADE or (met.status, met.open_wh) == (OrderStatus.CANCELLED, 0)
    assert put("bob", Side.SELL, "b2", price=2001).reason is None, "what cannot meet is taken"
    assert put("cem", Side.SELL, "c").reason is None
    engine.clear(T)
    assert [(one.buyer_id, one.seller_id) for one in engine.trades.values()] == [("ann", "cem")]


def test_an_owner_that_has_one_participants_name_is_not_that_participant(make_config):
    people = [person("ann", owner="bob"), person("bob"), person("cem")]
    engine = MarketEngine(make_config(mechanism="continuous", participants=people))
    engine.place("ann", [order("ann")], OPEN)
    (sold,) = engine.place("bob", [order("bob", Side.SELL)], OPEN)
    assert len(sold.trades) == 1, "a file's owner names are a name space of their own"


@pytest.mark.parametrize(
    "changes",
    [
        {"price_band": 2000.0},
        {"participants": [person("ann", import_limit_w=1e12)]},
        {"participants": [person("ann", export_limit_w=1e300)]},
        {"participants": [person("ann", credit_limit=float("inf"))]},
    ],
)
def test_rules_under_which_an_order_could_overflow_are_no_rules(make_config, changes):
    with pytest.raises(ValidationError):
        make_config(**changes)


def test_the_largest_numbers_that_rules_allow_are_carried_exactly(make_config):
    people = [person(name, import_limit_w=1e11, export_limit_w=1e11, credit_limit=1e15) for name in ("ann", "bob")]
    engine = MarketEngine(make_config(mechanism="continuous", slot_s=3600, price_band=800.0, participants=people))
    most, price = 10**11, 8_000_000
    for who, side in (("ann", Side.BUY), ("bob", Side.SELL)):
        (result,) = engine.place(who, [order(who, side, quantity=most, price=price)], OPEN)
        assert result.reason is None
    assert engine.ledger.balances == {"ann": -most * price, "bob": most * price}
    for quantity in (most + 1, 2**40 + 1, 2**62):
        (result,) = engine.place("ann", [order("ann", name=f"q{quantity}", quantity=quantity)], OPEN)
        assert result.reason is RejectReason.INFEASIBLE
    (result,) = engine.place("ann", [order("ann", name="p", price=-(2**62))], OPEN)
    assert result.reason is RejectReason.BAD_PRICE
    (result,) = engine.place("ann", [order("ann", name="m", price=2**62, kind=OrderKind.MARKET)], OPEN)
    assert result.reason is not RejectReason.BAD_PRICE, "a market order's price says nothing"


# -- through the service


@pytest.fixture
def service(make_config, store, messenger, clock, tmp_path):
    people = [person("ann", orders_per_s=5), person("bob")]
    made = MarketService(make_config(participants=people), store, messenger, clock, tmp_path, "demo")
    yield made
    made.close()


def sent(unit, message):
    return Envelope(
        id="1", source=Address("demo", unit, "gateway"), type="x", time_ns=0, session="s", sequence=1, expires_ns=2**62,
        data=message, signed=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        OrderCancel(participant_id="ann", area_id="area-1"),
        OrderPlace(participant_id="ann", area_id="area-1", orders=()),
        OrderBatch(participant_id="ann", area_id="area-1", slot_start_ns=T, orders=()),
        OrderPlace(participant_id="ann", area_id="area-1", orders=(order("ann"),)),
    ],
    ids=["cancel", "nothing", "empty batch", "the same order"],
)
async def test_a_flood_takes_bounded_room_in_the_journal_and_is_told_so(service, clock, message):
    before = service._journal.count
    answers = [await service.handle(sent("ann", message)) for _ in range(1000)]
    written = service._journal.count - before
    assert 40 <= written <= 90, "twice its rate, for four seconds at once"
    if getattr(message, "orders", ()):
        assert answers[-1].results[0].reason is RejectReason.RATE_LIMIT
    await service._step()
    assert service.engine.rejects["rate_limit"] >= 1000 - written
    other = OrderPlace(participant_id="bob", area_id="area-1", orders=(order("bob"),))
    assert (await service.handle(sent("bob", other))).results[0].reason is None, "and nobody else suffers"
    await clock.advance(20)
    count = service._journal.count
    await service.handle(sent("ann", message))
    assert service._journal.count == count + 1, "after a pause it is heard again"


async def test_a_flood_in_another_name_does_not_fill_the_journal_either(service):
    message = OrderPlace(participant_id="bob", area_id="area-1", orders=(order("bob"),))
    before = service._journal.count
    for number in range(1000):
        with pytest.raises(UnauthorisedError):
            await service.handle(sent(f"stranger-{number}", message))
    assert service._journal.count - before <= 100
    await service._step()
    assert service.engine.rejects["not_authorised"] + service.engine.rejects["rate_limit"] == 1000
    assert (await service.handle(sent("bob", message))).results[0].reason is None, "its own room is its own"


async def test_a_reading_that_the_connection_cannot_carry_earns_nothing(service, clock, make_interval):
    slot = clock.utc_ns() - SLOT_NS
    for site, export in (("ann", 10**12), ("bob", 1200)):
        service.on_record(site, make_interval(site, slot, import_wh=0, export_wh=export))
    assert set(service._intervals[slot]) == {"bob"}, "1200 Wh of 1000 is a fuse's patience, 10**12 is none"
    await service._step()
    assert service.engine.rejects == {"implausible_reading": 1}
    await service._settle(clock.utc_ns() + 3 * 3600 * NS_PER_S)
    settled = service.engine.slots[slot].settlements
    assert (settled["ann"].metered_wh, settled["ann"].substituted, settled["ann"].method) == (0, True, "commitment")
    assert settled["bob"].metered_wh == -1200
