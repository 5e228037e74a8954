"""A market does not grow with its age: old slots become sums, and the journal still tells everything."""

import json

import pytest
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.market import Order, Side
from wattmesh_a2a.messages import OrderPlace
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.market.replica import Replica, recovered
from wattmesh_cloud.market.rows import figures
from wattmesh_cloud.market.service import MarketService
from wattmesh_cloud.market.statement import audit, check, replayed, statement_rows

SLOT = 900 * NS_PER_S
DAY = 86_400 * NS_PER_S
T = 19_676 * DAY


def order(who, side, slot, name, quantity=100, price=2000):
    return Order(
        client_order_id=name, participant_id=who, area_id="area-1", slot_start_ns=slot, side=side,
        quantity_wh=quantity, price_ticks=price,
    )  # fmt: skip


def trade_a_day(engine, day, slots=4):
    for number in range(slots):
        slot = T + day * DAY + number * SLOT
        engine.place("ann", [order("ann", Side.BUY, slot, f"a{slot}", 100 + number)], slot - 3600 * NS_PER_S)
        engine.place("bob", [order("bob", Side.SELL, slot, f"b{slot}")], slot - 3600 * NS_PER_S)
        engine.clear(slot)
        for who, energy in (("ann", 120), ("bob", -90), ("cem", 50)):
            engine.settle(slot, who, energy)
        engine.pay_flexibility(f"dr-{slot}", "bob", 7, slot)


@pytest.fixture
def engine(make_config):
    made = MarketEngine(make_config(grid_fee=0.01))
    for day in range(3):
        trade_a_day(made, day)
    return made


def test_sums_and_money_stay_what_they_were(engine):
    before, money, exposure = figures(engine), engine.ledger.dump(), dict(engine.risk.exposure)
    assert engine.archive(T + DAY) == 4
    assert sorted(engine.slots) == [T + day * DAY + n * SLOT for day in (1, 2) for n in range(4)]
    assert len(engine.trades) == 8
    assert figures(engine) == before
    assert engine.archive(T + 3 * DAY) == 8
    assert (engine.slots, engine.trades) == ({}, {})
    assert figures(engine) == before
    assert before["trades"] == 12
    assert before["participants"]["ann"]["slots_settled"] == 12
    assert (engine.ledger.dump(), engine.risk.exposure) == (money, exposure)
    again = MarketEngine(engine.config)
    again.restore(json.loads(json.dumps(engine.dump())))
    assert again.state_hash() == engine.state_hash()
    assert figures(again) == before


def test_nothing_comes_back_to_an_archived_slot(engine):
    engine.archive(T + DAY)
    hashed = engine.state_hash()
    assert engine.settle(T, "ann", 999) is None
    assert engine.pay_flexibility(f"dr-{T}", "bob", 7, T) is False, "it was paid"
    assert engine.state_hash() == hashed
    assert engine.pay_flexibility("late", "bob", 9, T) is True, "money that is owed is paid, without the slot"
    assert T not in engine.slots
    assert engine.ledger.total() == 0
    assert engine.archive(T) == 0
    assert engine.archived_before_ns == T + DAY, "time does not go back"


def test_a_slot_that_is_still_open_is_never_archived(make_config):
    engine = MarketEngine(make_config())
    engine.place("ann", [order("ann", Side.BUY, T, "a")], T - 3600 * NS_PER_S)
    assert engine.archive(T + DAY) == 0
    engine.clear(T)
    assert engine.archive(T + DAY) == 1


def test_statements_of_archived_slots_come_from_the_journal(make_config, tmp_path):
    config, journal = make_config(grid_fee=0.01), Journal(tmp_path / "m.journal")
    live, kept = Replica(config), Replica(config)
    live.engine.attic = None

    def do(entry):
        journal.append_now(entry)
        live.apply(entry)
        if entry["what"] != "archive":
            kept.apply(entry)

    do({"what": "rules", "config": config.model_dump(mode="json", by_alias=True)})
    for day in range(3):
        slot = T + day * DAY
        for who, side in (("ann", "buy"), ("bob", "sell")):
            row = {
                "client_order_id": f"{who}{day}", "participant_id": who, "area_id": "area-1", "slot_start_ns": slot,
                "side": side, "quantity_wh": 100, "price_ticks": 2000,
            }  # fmt: skip
            batch = {"participant_id": who, "area_id": "area-1", "orders": [row]}
            do({"what": "place", "now": slot - 3600 * NS_PER_S, "batch": batch})
        do({"what": "clear", "slot": slot})
        for who in ("ann", "bob", "cem"):
            do({"what": "settle", "slot": slot, "participant": who, "metered": 80, "substituted": False})
    do({"what": "archive", "before": T + 2 * DAY})
    assert (len(live.engine.slots), len(kept.engine.slots)) == (1, 3)
    assert live.unacknowledged == {("ann", T + 2 * DAY), ("bob", T + 2 * DAY)}
    found = replayed(tmp_path / "m.journal")
    assert found.state_hash() == live.state_hash(), "what is kept beside is no part of the state"
    rows = statement_rows(found.engine, "ann")
    assert rows == statement_rows(kept.engine, "ann")
    assert len([row for row in rows if row["kind"] == "slot"]) == 3
    assert check(rows) == audit(found.engine) == []
    assert recovered(config, journal, tmp_path / "none").state_hash() == live.state_hash()
    journal.close()


async def test_the_service_archives_what_is_older_than_its_rule(make_config, store, messenger, tmp_path, background):
    config = make_config(keep_days=22)

    async def day(now):
        clock = ManualClock(now)
        service = MarketService(config, store, messenger, clock, tmp_path, "demo")
        slot = now + 4 * SLOT
        for who, side in (("ann", Side.BUY), ("bob", Side.SELL)):
            message = OrderPlace(participant_id=who, area_id="area-1", orders=(order(who, side, slot, f"{who}{now}"),))
            await service._commit_message("place", message, clock.utc_ns())
        background(service.run())
        await clock.advance(3600)
        return service

    first = await day(T)
    assert list(first.engine.slots) == [T + 4 * SLOT]
    first.close()
    second = await day(T + 22 * DAY)
    assert list(second.engine.slots) == [T + 4 * SLOT, T + 22 * DAY + 4 * SLOT], "not older than the rule yet"
    second.close()
    third = await day(T + 24 * DAY)
    assert list(third.engine.slots) == [T + 22 * DAY + 4 * SLOT, T + 24 * DAY + 4 * SLOT]
    assert figures(third.engine)["trades"] == 3
    third.close()
    assert len(statement_rows(replayed(tmp_path / "market-area-1.journal").engine, "ann")) >= 1


def test_a_large_journal_is_read_from_a_place_near_the_end(tmp_path):
    journal = Journal(tmp_path / "j.journal")
    for number in range(60):
        journal.append_now({"what": "halt", "reason": f"{number}" + "x" * 50_000})
    chain = journal.chain.hex()
    journal.close()
    again = Journal(tmp_path / "j.journal")
    assert len(again._marks) >= 2
    assert again.chain_at(60) == chain
    assert [int(one["reason"].rstrip("x")) for one in again.entries(55)] == [55, 56, 57, 58, 59]
    assert [int(one["reason"].rstrip("x")) for one in again.entries()] == list(range(60))
    again.append_now({"what": "halt", "reason": "60"})
    assert len(list(again.entries(59))) == 2
    assert again.chain_at(61) == again.chain.hex()
    assert again.chain_at(62) is None
    again.close()
