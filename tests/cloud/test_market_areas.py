"""Several areas in one cloud: each with its own journal, ledger and rules, behind one address."""

import asyncio

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import ConfigurationError, UnauthorisedError
from wattmesh_a2a.market import Order, OrderStatus, RejectReason, Side
from wattmesh_a2a.messages import (
    Commitment,
    CommitmentQuery,
    MarketData,
    MarketRules,
    OrderBatch,
    OrderCancel,
    OrderPlace,
)
from wattmesh_cloud.config import load_cloud
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S


def people(*names):
    return [{"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0} for name in names]


@pytest.fixture
def slot_ns(midnight_ns):
    return midnight_ns + 4 * SLOT


@pytest.fixture
def markets(make_config, store, messenger, clock, tmp_path):
    south = make_config(area="south", mechanism="continuous", slot_s=900, participants=people("dan", "eve"))
    made = Markets([make_config(), south], store, messenger, clock, tmp_path, "demo")
    made.register()
    yield made
    made.close()


@pytest.fixture
def ask(messenger):
    async def ask(unit, message):
        envelope = Envelope(
            id="1", source=Address("demo", unit, "gateway"), type="x", time_ns=0, session="s", sequence=1,
            expires_ns=2**62, data=message, signed=True,
        )  # fmt: skip
        return await messenger.handlers[type(message)](envelope)

    return ask


def order(who, side, area, slot_ns, name="o1", quantity=400, price=2000):
    return Order(
        client_order_id=name, participant_id=who, area_id=area, slot_start_ns=slot_ns, side=side,
        quantity_wh=quantity, price_ticks=price,
    )  # fmt: skip


async def place(ask, who, side, area, slot_ns, **terms):
    one = order(who, side, area, slot_ns, **terms)
    answer = await ask(who, OrderPlace(participant_id=who, area_id=area, orders=(one,)))
    return answer.results[0]


async def test_each_area_has_its_own_book_journal_ledger_and_rows(
    markets, ask, slot_ns, tmp_path, clock, background, store
):
    background(markets.run())
    assert (await place(ask, "ann", Side.BUY, "area-1", slot_ns)).status is OrderStatus.ACCEPTED
    assert (await place(ask, "bob", Side.SELL, "area-1", slot_ns)).filled_wh == 0, "a call collects"
    assert (await place(ask, "dan", Side.BUY, "south", slot_ns)).open_wh == 400
    assert (await place(ask, "eve", Side.SELL, "south", slot_ns)).filled_wh == 400, "continuous trading"
    north, south = markets.area("area-1"), markets.area("south")
    assert len(north.engine.trades) == 0
    (trade,) = south.engine.trades.values()
    assert (trade.area_id, trade.buyer_id, trade.seller_id) == ("south", "dan", "eve")
    assert sorted(path.name for path in tmp_path.glob("*.journal")) == ["market-area-1.journal", "market-south.journal"]
    await clock.advance(3600)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(north.engine.trades) == 1
    assert north.engine.ledger.total() == south.engine.ledger.total() == 0
    assert set(south.engine.ledger.balances) & set(north.engine.ledger.balances) == set()
    rows = {area: store.query(Table.TRADE_DATA, f"{area}#trades", 0, 2**62) for area in ("area-1", "south")}
    assert {area: [row.data["buyer_id"] for row in found] for area, found in rows.items()} == {
        "area-1": ["ann"],
        "south": ["dan"],
    }


async def test_an_order_in_the_wrong_area_is_refused_where_its_participant_is_known(markets, ask, slot_ns):
    for area in ("south", "nowhere"):
        result = await place(ask, "ann", Side.BUY, area, slot_ns)
        assert result.status is OrderStatus.REJECTED
        assert result.reason in {RejectReason.UNKNOWN_PARTICIPANT, RejectReason.UNKNOWN_PRODUCT}
    assert markets.area("south").engine.rejects == {"unknown_participant": 1}
    assert markets.area("area-1").engine.rejects == {"unknown_product": 1}, "answered by the area that knows ann"
    stranger = await place(ask, "zoe", Side.BUY, "nowhere", slot_ns)
    assert stranger.reason is RejectReason.UNKNOWN_PRODUCT
    with pytest.raises(UnauthorisedError):
        await ask("ann", OrderPlace(participant_id="dan", area_id="south", orders=()))


async def test_an_empty_batch_or_a_cancellation_of_another_area_takes_nothing_back(markets, ask, slot_ns):
    await place(ask, "ann", Side.BUY, "area-1", slot_ns)
    await ask("ann", OrderBatch(participant_id="ann", area_id="nowhere", slot_start_ns=slot_ns, orders=()))
    await ask("ann", OrderBatch(participant_id="ann", area_id="south", slot_start_ns=slot_ns, orders=()))
    await ask("ann", OrderCancel(participant_id="ann", area_id="south"))
    assert len(markets.area("area-1").engine.slots[slot_ns].live) == 1
    await ask("ann", OrderBatch(participant_id="ann", area_id="area-1", slot_start_ns=slot_ns, orders=()))
    assert len(markets.area("area-1").engine.slots[slot_ns].live) == 0


async def test_readings_payments_and_questions_find_their_area(
    markets, ask, slot_ns, clock, background, make_interval, messenger
):
    background(markets.run())
    await place(ask, "dan", Side.BUY, "south", slot_ns)
    await place(ask, "eve", Side.SELL, "south", slot_ns)
    await clock.advance(3600 + 900)
    for site in ("dan", "eve", "ann"):
        markets.on_record(site, make_interval(site, slot_ns))
    await clock.advance(10)
    for _ in range(50):
        await asyncio.sleep(0)
    assert set(markets.area("south").engine.slots[slot_ns].settlements) == {"dan", "eve"}
    found = await ask("dan", CommitmentQuery(participant_id="dan", from_ns=slot_ns))
    assert [(one.area_id, one.net_wh) for one in found.commitments] == [("south", 400)]
    assert {(one.message.area_id, one.to.unit) for one in messenger.sent(Commitment)} == {
        ("south", "dan"),
        ("south", "eve"),
    }
    await markets.settle_flexibility("dr-1", "eve", 100, 50, slot_ns)
    assert markets.area("south").engine.ledger.paid["eve", "flexibility"] == 5000
    assert markets.area("area-1").engine.ledger.count == 0
    for kind in (MarketRules, MarketData):
        assert {one.area_id for one in messenger.emitted if isinstance(one, kind)} == {"area-1", "south"}


async def test_a_participant_is_switched_off_in_its_area_and_a_halt_is_every_areas_own(markets, ask, slot_ns):
    await place(ask, "dan", Side.BUY, "south", slot_ns)
    assert await markets.suspend("dan", "fraud") == 1
    assert (await place(ask, "dan", Side.BUY, "south", slot_ns, name="o2")).reason is RejectReason.SUSPENDED
    await markets.reinstate("dan")
    assert (await place(ask, "dan", Side.BUY, "south", slot_ns, name="o3")).reason is None
    await markets.area("south").halt("fault")
    assert (await place(ask, "dan", Side.BUY, "south", slot_ns, name="o4")).reason is RejectReason.HALTED
    assert (await place(ask, "ann", Side.BUY, "area-1", slot_ns)).reason is None
    with pytest.raises(ConfigurationError, match="no participant 'zoe'; there are: ann, bob, cem, dan, eve"):
        await markets.suspend("zoe", "who")
    with pytest.raises(ConfigurationError, match="no market area 'east'; there are: area-1, south"):
        markets.area("east")


def test_names_and_participants_are_one_areas_own(make_config, store, messenger, clock, tmp_path):
    with pytest.raises(ConfigurationError, match="'area-1' stands twice"):
        Markets([make_config(), make_config(participants=people("dan"))], store, messenger, clock, tmp_path, "demo")
    with pytest.raises(ConfigurationError, match="'ann' stands in the areas 'area-1' and 'south'"):
        Markets([make_config(), make_config(area="south")], store, messenger, clock, tmp_path, "demo")


def test_a_writer_that_is_there_already_leaves_no_lock_behind(make_config, store, messenger, clock, tmp_path):
    other = Journal(tmp_path / "market-south.journal")
    south = make_config(area="south", participants=people("dan"))
    with pytest.raises(ConfigurationError, match="another process writes it"):
        Markets([make_config(), south], store, messenger, clock, tmp_path, "demo")
    Journal(tmp_path / "market-area-1.journal").close()
    other.close()


FILE = """version: 1
org: demo
state: state
broker: mqtt://127.0.0.1:1883
keys: keys
market:
  area: north
  tariff: {feed_in_price: 0.05, default_price: 0.30}
  participants:
    - {id: ann, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}
areas:
  - area: south
    tariff: {feed_in_price: 0.05, default_price: 0.30}
    participants:
      - {id: dan, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}
"""


def test_the_clouds_file_names_its_areas(tmp_path):
    file = tmp_path / "cloud.yaml"
    file.write_text(FILE)
    assert [one.area for one in load_cloud(file).model.areas] == ["south"]
    for wrong, told in (
        (("id: dan", "id: ann"), r"areas.*a site trades in one"),
        (("area: south", "area: north"), "stands twice"),
    ):
        file.write_text(FILE.replace(*wrong))
        with pytest.raises(ConfigurationError, match=told):
            load_cloud(file)
