"""Energy flows between two areas as far as prices and the line allow, and both ledgers and journals agree on it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.market import Order, Side
from wattmesh_a2a.messages import Commitment, OrderPlace
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.book import BUY, SELL, Book
from wattmesh_cloud.market.config import LinkModel
from wattmesh_cloud.market.coupling import flow_wh
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.market.replica import recovered
from wattmesh_cloud.market.statement import audit, replayed

SLOT = 900 * NS_PER_S
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(-6, 6), st.integers(1, 12)), max_size=7)


def book_of(rows):
    book = Book(-8, 8, matching=False)
    for number, (side, price, quantity) in enumerate(rows):
        book.place(number, side, price, quantity)
    return book


def cleared(rows, side, energy):
    """(price, what the line got) with a line's order: by the kernel that the market closes with."""
    book = book_of(rows)
    number = book.place(999, side, 8 if side == BUY else -8, energy)
    result = book.uncross()
    return None if result is None else result[0], energy - book.remaining(number)


@settings(max_examples=300, deadline=None)
@given(first=ROWS, second=ROWS, limit=st.integers(0, 30))
def test_the_flow_is_the_largest_that_is_met_and_turns_no_price_round(first, second, limit):
    def allowed(exporting, importing, energy):
        cheap, bought = cleared(exporting, BUY, energy)
        dear, sold = cleared(importing, SELL, energy)
        return bought == sold == energy and cheap <= dear

    flow = flow_wh(book_of(first), book_of(second), limit)
    forward = max((x for x in range(1, limit + 1) if allowed(first, second, x)), default=0)
    backward = max((x for x in range(1, limit + 1) if allowed(second, first, x)), default=0)
    assert flow == (forward or -backward)
    assert abs(flow) <= limit


def test_an_unlimited_line_makes_the_prices_meet_and_a_limited_one_does_not():
    cheap = [(SELL, price, 10) for price in range(-6, 6)] + [(BUY, 0, 10)]
    dear = [(BUY, price, 10) for price in range(-6, 6)] + [(SELL, 0, 10)]
    free = flow_wh(book_of(cheap), book_of(dear), 1000)
    assert cleared(cheap, BUY, free)[0] == pytest.approx(cleared(dear, SELL, free)[0], abs=1)
    assert flow_wh(book_of(cheap), book_of(dear), 20) == 20
    assert cleared(cheap, BUY, 20)[0] < cleared(dear, SELL, 20)[0]
    assert flow_wh(book_of(dear), book_of(cheap), 20) == -20
    assert flow_wh(book_of([]), book_of(dear), 20) == 0


# -- through the service


@pytest.fixture
def slot_ns(midnight_ns):
    return midnight_ns + 4 * SLOT


@pytest.fixture
def configs(make_config):
    people = [
        {"id": name, "import_limit_w": 8000, "export_limit_w": 8000, "credit_limit": 100.0} for name in ("dan", "eve")
    ]
    return [make_config(area="north"), make_config(area="south", participants=people)]


@pytest.fixture
def start(configs, store, messenger, clock, tmp_path):
    def start(limit_w=800.0):
        links = [LinkModel(areas=("north", "south"), limit_w=limit_w)]
        return Markets(configs, store, messenger, clock, tmp_path, "demo", links=links)

    return start


async def put(markets, who, side, quantity, price, slot_ns):
    area = markets.of_participant(who)
    order = Order(
        client_order_id=f"{who}-{side}-{price}", participant_id=who, area_id=area.config.area, slot_start_ns=slot_ns,
        side=side, quantity_wh=quantity, price_ticks=price,
    )  # fmt: skip
    message = OrderPlace(participant_id=who, area_id=area.config.area, orders=(order,))
    (result,) = await area._commit_message("place", message, area._clock.utc_ns())
    assert result.reason is None, result


async def orders(markets, slot_ns):
    """The north has cheap energy, the south wants it."""
    await put(markets, "ann", Side.SELL, 900, 1000, slot_ns)
    await put(markets, "bob", Side.BUY, 300, 1500, slot_ns)
    await put(markets, "dan", Side.BUY, 900, 3000, slot_ns)
    await put(markets, "eve", Side.SELL, 100, 2500, slot_ns)


async def test_a_limited_line_carries_what_it_may_and_earns_the_difference(
    start, slot_ns, clock, background, messenger, tmp_path
):
    markets = start()
    background(markets.run())
    await orders(markets, slot_ns)
    await clock.advance(3600 + 60)
    north, south = (markets.area(name).engine for name in ("north", "south"))
    assert north.slots[slot_ns].exchange_wh == -200, "800 W for a quarter of an hour"
    assert south.slots[slot_ns].exchange_wh == 200
    assert (north.slots[slot_ns].clearing.price_ticks, south.slots[slot_ns].clearing.price_ticks) == (1000, 3000)
    assert north.commitment("ann", slot_ns).net_wh == -500
    assert south.commitment("dan", slot_ns).net_wh == 300
    line = "~link-north-south"
    assert (north.ledger.balances[line], south.ledger.balances[line]) == (-200 * 1000, 200 * 3000)
    assert north.ledger.total() == south.ledger.total() == 0
    told = {one.message.participant_id for one in messenger.sent(Commitment)}
    assert told == {"ann", "bob", "dan", "eve"}, "the line is nobody to tell"
    markets.close()
    for name, engine in (("north", north), ("south", south)):
        found = replayed(tmp_path / f"market-{name}.journal")
        assert found.engine.state_hash() == engine.state_hash()
        assert audit(found.engine) == []


@pytest.mark.parametrize("written", [0, 1])
async def test_what_one_journal_has_after_a_crash_the_other_one_gets(
    start, slot_ns, clock, background, monkeypatch, written
):
    first = start()
    await orders(first, slot_ns)

    class Died(Exception):
        pass

    async def dies(*what):
        raise Died

    for number, area in enumerate(first.areas.values()):
        if number >= written:
            monkeypatch.setattr(area, "exchange", dies)
    await clock.advance(3600 - 300)
    with pytest.raises(Died):
        await first.first._step()
    first.close()
    second = start(limit_w=400.0)  # another limit now: what was written stays
    background(second.run())
    await clock.advance(60)
    flows = [area.engine.slots[slot_ns].exchange_wh for area in second.areas.values()]
    assert flows == ([-200, 200] if written else [-100, 100])
    assert [area.engine.slots[slot_ns].phase for area in second.areas.values()] == ["closed", "closed"]
    second.close()


async def test_without_a_line_or_without_orders_there_nothing_flows(start, slot_ns, clock, background, configs):
    markets = start()
    background(markets.run())
    await put(markets, "ann", Side.SELL, 900, 1000, slot_ns)
    await put(markets, "bob", Side.BUY, 300, 1500, slot_ns)
    await clock.advance(3600 + 60)
    assert markets.area("north").engine.slots[slot_ns].exchange_wh is None
    assert markets.area("north").engine.commitment("bob", slot_ns).net_wh == 300
    markets.close()


async def test_a_settled_slot_is_settled_though_the_line_has_no_meter(start, slot_ns, clock, background, make_interval):
    markets = start()
    background(markets.run())
    await orders(markets, slot_ns)
    await clock.advance(3600 + 900)
    for name in ("ann", "bob", "cem", "dan", "eve"):
        markets.on_record(name, make_interval(name, slot_ns))
    await clock.advance(30)
    for name in ("north", "south"):
        service = markets.area(name)
        assert service._unsettled == set()
        assert not any(who.startswith("~") for who in service.engine.slots[slot_ns].settlements)
    markets.close()


@pytest.mark.parametrize(
    ("links", "changes", "told"),
    [
        ([("north", "east")], {}, "no market area 'east'"),
        ([("north", "south"), ("south", "north")], {}, "has two lines"),
        ([("north", "south")], {"mechanism": "continuous"}, "closes without a uniform-price auction"),
        ([("north", "south")], {"gate_close_s": 600}, "the same gate_close_s"),
        ([("north", "south")], {"currency": "SEK"}, "the same currency"),
    ],
    ids=["unknown", "twice", "mechanism", "gate", "currency"],
)
def test_lines_that_cannot_couple_are_refused(
    configs, make_config, store, messenger, clock, tmp_path, links, changes, told
):
    south = type(configs[1]).model_validate({**configs[1].model_dump(by_alias=True), **changes})
    lines = [LinkModel(areas=pair, limit_w=1.0) for pair in links]
    with pytest.raises(ConfigurationError, match=told):
        Markets([configs[0], south], store, messenger, clock, tmp_path, "demo", links=lines)


async def test_a_replay_from_the_journal_knows_the_line(start, slot_ns, clock, background, configs, tmp_path):
    markets = start()
    background(markets.run())
    await orders(markets, slot_ns)
    await clock.advance(3600)
    hashed = markets.area("south").engine.state_hash()
    markets.close()
    journal = Journal(tmp_path / "market-south.journal")
    assert recovered(configs[1], journal, tmp_path / "none").engine.state_hash() == hashed
    journal.close()
