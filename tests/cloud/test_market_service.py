"""The market supervisor over messages and virtual time: durable before answered, told until heard, settled from meters."""

import asyncio

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import UnauthorisedError, UnavailableError
from wattmesh_a2a.market import OrderStatus, RejectReason
from wattmesh_a2a.messages import (
    Commitment,
    CommitmentQuery,
    Executions,
    MarketData,
    MarketRules,
    OrderAmend,
    OrderBatch,
    OrderCancel,
    OrderPlace,
)
from wattmesh_cloud.ingest import items_of
from wattmesh_cloud.market.risk import SiteState
from wattmesh_cloud.market.service import MarketService
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S


@pytest.fixture
def slot_ns(midnight_ns):
    """The slot that everybody orders for: an hour after the start."""
    return midnight_ns + 4 * SLOT


class Area:
    """A market service and what its participants do."""

    def __init__(self, store, messenger, clock, folder, make_config, make_order):
        self.rules = {}
        self.store, self.messenger, self.clock, self.folder = store, messenger, clock, folder
        self.make_config, self.make_order = make_config, make_order
        self.service = self.started()

    def started(self):
        if hasattr(self, "service"):
            self.service.close()  # as the end of its process would
        service = MarketService(
            self.make_config(**self.rules), self.store, self.messenger, self.clock, self.folder, "demo"
        )
        service.register()
        return service

    async def ask(self, unit, message):
        envelope = Envelope(
            id="1", source=Address("demo", unit, "gateway"), type="x", time_ns=0, session="s", sequence=1,
            expires_ns=2**62, data=message, signed=True,
        )  # fmt: skip
        return await self.messenger.handlers[type(message)](envelope)

    async def order(self, who, side, quantity, price, slot_ns, *, sender=None):
        order = self.make_order(who, side, quantity, price, slot_ns=slot_ns)
        batch = OrderBatch(participant_id=who, area_id="area-1", slot_start_ns=slot_ns, orders=(order,))
        return await self.ask(sender or who, batch)

    async def book(self, slot_ns):
        await self.order("ann", "buy", 400, 3000, slot_ns)
        await self.order("bob", "sell", 400, 1000, slot_ns)

    def meter(self, make_interval, site, slot_ns, **changes):
        reading = make_interval(site, slot_ns, **changes)
        for table, item in items_of(site, reading):
            self.store.put(table, [item])
        self.service.on_record(site, reading)

    def settled(self):
        return {
            name: [(row.data["metered_wh"], row.data["substituted"]) for row in rows]
            for name in ("ann", "bob", "cem")
            if (rows := self.store.query(Table.TRADE_DATA, f"{name}#settlements", 0, 2**62))
        }


@pytest.fixture
def area(store, messenger, clock, tmp_path, make_config, make_order):
    return Area(store, messenger, clock, tmp_path, make_config, make_order)


async def test_durable_then_in_effect_then_answered(area, slot_ns, monkeypatch):
    journal, engine, steps = area.service._journal, area.service.engine, []
    real = journal._write
    monkeypatch.setattr(
        journal, "_write", lambda content: (steps.append(dict(engine.slots)), real(content), steps.append("durable"))
    )
    answer = await area.order("ann", "buy", 400, 3000, slot_ns)
    steps.append("answered")
    assert steps == [{}, "durable", "answered"], "not in the book before it is on disk"
    assert [result.status for result in answer.results] == [OrderStatus.ACCEPTED]


async def test_nobody_orders_or_asks_for_another(area, slot_ns):
    with pytest.raises(UnauthorisedError, match="demo/bob/gateway may not order for ann"):
        await area.order("ann", "buy", 400, 3000, slot_ns, sender="bob")
    with pytest.raises(UnauthorisedError, match="demo/bob/gateway may not ask for ann"):
        await area.ask("bob", CommitmentQuery(participant_id="ann", from_ns=0))
    assert area.service.engine.slots == {}


async def test_cleared_at_gate_closure_and_everybody_told(area, clock, slot_ns, messenger, background, settled):
    background(area.service.run())
    await area.book(slot_ns)
    await clock.advance(3600 - 310)
    assert messenger.sent(Commitment) == []
    await clock.advance(10)
    await settled(area.service)
    sent = {one.to.unit: one for one in messenger.sent(Commitment)}
    assert {name: one.message.net_wh for name, one in sent.items()} == {"ann": 400, "bob": -400}
    assert {str(one.source) for one in sent.values()} == {"demo/cloud/market-supervisor"}
    assert {one.expires_ns for one in sent.values()} == {slot_ns + SLOT}
    (row,) = area.store.query(Table.MARKET_DATA, "area-1#slots", 0, 2**62)
    assert (row.data["price_ticks"], row.data["volume_wh"], row.data["orders"]) == (2000, 400, 2)
    (trade,) = area.store.query(Table.TRADE_DATA, "area-1#trades", 0, 2**62)
    assert (trade.data["buyer_id"], trade.data["seller_id"], trade.data["quantity_wh"]) == ("ann", "bob", 400)
    found = await area.ask("ann", CommitmentQuery(participant_id="ann", from_ns=slot_ns))
    assert [one.net_wh for one in found.commitments] == [400]
    later = await area.ask("ann", CommitmentQuery(participant_id="ann", from_ns=slot_ns + 1))
    assert later.commitments == ()


async def test_rules_are_told_every_minute(area, clock, messenger, background):
    background(area.service.run())
    await clock.advance(300)
    assert len([message for message in messenger.emitted if isinstance(message, MarketRules)]) == 6
    await area.service.halt("fault")
    await clock.advance(60)
    assert messenger.emitted[-1].halted
    assert messenger.emitted[-1].feed_in_ticks == 500


async def test_settled_at_once_when_every_meter_has_reported(area, clock, slot_ns, make_interval, background):
    background(area.service.run())
    await area.book(slot_ns)
    await clock.advance(3600 + 900)
    for site, export in (("ann", 0), ("bob", 600)):
        area.meter(make_interval, site, slot_ns, import_wh=500 - export if site == "ann" else 0, export_wh=export)
    await clock.advance(10)
    assert area.settled() == {}, "one meter is missing"
    area.meter(make_interval, "cem", slot_ns, import_wh=100)
    await clock.advance(10)
    assert area.settled() == {"ann": [(500, False)], "bob": [(-600, False)], "cem": [(100, False)]}
    ledger = area.service.engine.ledger
    assert ledger.total() == 0
    assert ledger.balances["ann"] == -400 * 2000 - 100 * 3000
    assert ledger.balances["bob"] == 400 * 2000 + 200 * 500


async def test_a_missing_meter_gets_a_substitute_after_the_wait_and_is_corrected_later(
    area, clock, slot_ns, make_interval, background
):
    background(area.service.run())
    await area.book(slot_ns)
    await clock.advance(3600 + 900)
    for site in ("ann", "cem"):
        area.meter(make_interval, site, slot_ns)
    await clock.advance(7190)
    assert area.settled() == {}
    await clock.advance(10)
    assert area.settled() == {"ann": [(500, False)], "bob": [(-400, True)], "cem": [(500, False)]}
    area.meter(make_interval, "bob", slot_ns, import_wh=0, export_wh=300)
    await clock.advance(10)
    assert area.settled()["bob"] == [(-300, False)]
    assert area.service.engine.ledger.balances["bob"] == 400 * 2000 - 100 * 3000, "it sold 100 Wh it did not deliver"
    assert area.service.engine.ledger.total() == 0


async def test_a_restart_is_the_same_market_and_tells_again_what_nobody_confirmed(
    area, clock, slot_ns, messenger, background, settled
):
    first = background(area.service.run())

    def only_bob_answers(to, message):
        if to.unit == "ann" and isinstance(message, Commitment):
            raise UnavailableError("away")

    messenger.answer = only_bob_answers
    await area.book(slot_ns)
    await clock.advance(3600 - 300)
    await settled(area.service)
    await area.service.settle_flexibility("dr-1", "cem", 100, 3000)
    await area.service.halt("fault")
    first.cancel()
    before, sent = area.service.engine, len(messenger.sent(Commitment))
    area.service = area.started()
    assert area.service.engine.state_hash() == before.state_hash()
    assert area.service.engine.ledger.digest == before.ledger.digest
    assert area.service.engine.halted == "fault"
    assert area.service.commitments() == {"ann": {str(slot_ns): 400}, "bob": {str(slot_ns): -400}}
    background(area.service.run())
    await clock.advance(10)
    assert [one.to.unit for one in messenger.sent(Commitment)[sent:]] == ["ann"]
    await area.service.settle_flexibility("dr-1", "cem", 100, 3000)
    assert area.service.engine.ledger.balances["cem"] == 100 * 3000, "paid once"


async def test_a_restart_settles_from_what_the_store_has(area, clock, slot_ns, make_interval, background):
    first = background(area.service.run())
    await area.book(slot_ns)
    await clock.advance(3600 + 900)
    first.cancel()
    for site in ("ann", "bob", "cem"):
        area.meter(make_interval, site, slot_ns)
    area.service = area.started()
    background(area.service.run())
    await clock.advance(10)
    assert area.settled() == {"ann": [(500, False)], "bob": [(500, False)], "cem": [(500, False)]}


async def test_a_restart_makes_up_for_a_correction_and_rows_that_were_cut_short(
    area, clock, slot_ns, make_interval, background, monkeypatch
):
    first = background(area.service.run())
    await area.book(slot_ns)
    for name in ("clearing", "settlements"):  # the process ends between journal and store
        monkeypatch.setattr(area.service._shelf, name, lambda slot: None)
    await clock.advance(3600 + 900)
    for site in ("ann", "cem"):
        area.meter(make_interval, site, slot_ns)
    await clock.advance(7200)
    assert area.service.engine.slots[slot_ns].settlements["bob"].substituted
    assert area.settled() == {}
    first.cancel()
    for table, item in items_of("bob", make_interval("bob", slot_ns, import_wh=0, export_wh=300)):
        area.store.put(table, [item])
    area.service = area.started()
    background(area.service.run())
    await clock.advance(10)
    assert area.settled() == {"ann": [(500, False)], "bob": [(-300, False)], "cem": [(500, False)]}
    assert len(area.store.query(Table.TRADE_DATA, "area-1#trades", 0, 2**62)) == 1


async def test_a_clean_stop_settles_what_is_over_and_not_what_is_under_way(area, clock, slot_ns, make_interval):
    await area.book(slot_ns)
    await clock.advance(3600 + 900)
    area.meter(make_interval, "ann", slot_ns, complete=False)
    area.meter(make_interval, "ann", slot_ns + SLOT)
    await area.service.finish()
    assert area.settled() == {"ann": [(0, True)], "bob": [(0, True)], "cem": [(0, True)]}, "half a reading is none"


async def test_orders_at_the_same_time_are_replayed_in_the_order_of_their_answers(area, slot_ns):
    async def many(who, side):
        for number in range(10):
            await area.order(who, side, 100 + number, 2000, slot_ns)

    await asyncio.gather(many("ann", "buy"), many("bob", "sell"), many("cem", "buy"))
    wanted = area.service.engine.state_hash()
    assert area.started().engine.state_hash() == wanted


async def test_a_traded_slot_without_any_meter_is_settled_after_the_wait(area, clock, slot_ns, background):
    background(area.service.run())
    await area.book(slot_ns)
    await clock.advance(3600 + 900 + 7190)
    assert area.settled() == {}
    await clock.advance(10)
    assert area.settled() == {"ann": [(400, True)], "bob": [(-400, True)], "cem": [(0, True)]}


async def test_half_a_reading_is_none_until_the_whole_one_comes(area, clock, slot_ns, make_interval, background):
    background(area.service.run())
    await area.book(slot_ns)
    await clock.advance(3600 + 900)
    for site in ("ann", "bob", "cem"):
        area.meter(make_interval, site, slot_ns, import_wh=77, complete=site != "bob")
    await clock.advance(7200)
    assert area.settled()["bob"] == [(-400, True)]
    area.meter(make_interval, "bob", slot_ns, import_wh=0, export_wh=390)
    await clock.advance(10)
    assert area.settled() == {"ann": [(77, False)], "bob": [(-390, False)], "cem": [(77, False)]}
    assert area.service.engine.slots[slot_ns].settlements["bob"].revision == 1


@pytest.fixture
def trading(area):
    """The same area with continuous trading."""
    area.rules = {"mechanism": "continuous"}
    area.service = area.started()
    return area


def placed(area, who, side, quantity, price, slot_ns, **more):
    order = area.make_order(who, side, quantity, price, slot_ns=slot_ns, **more)
    return OrderPlace(participant_id=who, area_id="area-1", orders=(order,))


async def test_continuous_orders_over_messages(trading, slot_ns, messenger, settled):
    await trading.ask("bob", placed(trading, "bob", "sell", 100, 1500, slot_ns, name="s"))
    answer = await trading.ask("ann", placed(trading, "ann", "buy", 60, 1600, slot_ns, name="b"))
    assert [(row.status, row.filled_wh) for row in answer.results] == [(OrderStatus.FILLED, 60)]
    await asyncio.sleep(0)
    await settled(trading.service)
    (told,) = messenger.sent(Executions)
    assert (told.to.unit, told.message.trades) == ("bob", answer.results[0].trades)
    amend = OrderAmend(participant_id="bob", area_id="area-1", slot_start_ns=slot_ns, client_order_id="s",
                       quantity_wh=80, price_ticks=1500)  # fmt: skip
    assert (await trading.ask("bob", amend)).results[0].open_wh == 20
    cancel = OrderCancel(participant_id="bob", area_id="area-1")
    assert [row.status for row in (await trading.ask("bob", cancel)).results] == [OrderStatus.CANCELLED]
    wanted = trading.service.engine.state_hash()
    assert trading.started().engine.state_hash() == wanted


async def test_whoever_orders_for_another_is_refused_and_that_is_in_the_journal(trading, slot_ns):
    for message in (
        placed(trading, "ann", "buy", 1, 1, slot_ns),
        OrderCancel(participant_id="ann", area_id="area-1"),
        OrderAmend(
            participant_id="ann",
            area_id="area-1",
            slot_start_ns=slot_ns,
            client_order_id="s",
            quantity_wh=80,
            price_ticks=1500,
        ),
    ):
        with pytest.raises(UnauthorisedError):
            await trading.ask("bob", message)
    assert trading.started().engine.rejects == {RejectReason.NOT_AUTHORISED: 3}


async def test_guards_halt_and_free_the_market_and_sites_are_observed(trading, clock, slot_ns, background, messenger):
    reasons = {"forecast": None, "grid": "emergency"}
    for cause in ("forecast", "grid"):
        trading.service.guard(cause, lambda now, cause=cause: reasons[cause])
    background(trading.service.run())
    await clock.advance(10)
    answer = await trading.ask("ann", placed(trading, "ann", "buy", 60, 1600, slot_ns))
    assert answer.results[0].reason is RejectReason.HALTED
    reasons["grid"], reasons["forecast"] = None, "too old"
    await clock.advance(10)
    assert trading.service.engine.halts == {"forecast": "too old"}
    reasons["forecast"] = None
    await trading.service.halt("by hand")
    await clock.advance(10)
    assert trading.service.engine.halts == {"operator": "by hand"}
    await clock.advance(60)
    assert [one.halted for one in messenger.emitted if isinstance(one, MarketData)][-1] == "by hand"


async def test_sites_that_have_to_show_that_they_can_deliver_are_watched(area, clock, background):
    people = [
        {"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0, **more}
        for name, more in (("ann", {"telemetry_max_age_s": 300}), ("bob", {}))
    ]
    area.rules = {"mechanism": "continuous", "participants": people}
    area.service = area.started()
    site = SiteState(time_ns=5, output_w=4000, generation_w=3000, stored_wh=100)
    area.service.watch_sites(lambda: {"ann": site, "bob": site})
    background(area.service.run())
    await clock.advance(10)
    assert area.service.engine.risk.sites == {"ann": site}


async def test_a_clean_stop_leaves_a_snapshot_that_the_next_start_uses(area, clock, slot_ns):
    await area.book(slot_ns)
    await area.service.finish()
    wanted = area.service.engine.state_hash()
    assert (area.folder / "market-area-1.snapshot").exists()
    assert area.started().engine.state_hash() == wanted


async def test_what_is_too_long_for_a_message_is_shortened(trading, slot_ns, messenger, settled):
    for number in range(201):
        if number % 100 == 0:
            await trading.clock.advance(10)  # no more than its rate
        await trading.ask("bob", placed(trading, "bob", "sell", 1, 1500, slot_ns, name=f"s{number}"))
    answer = await trading.ask("ann", placed(trading, "ann", "buy", 201, 1600, slot_ns, name="b"))
    (result,) = answer.results
    assert (result.filled_wh, result.trades, result.detail) == (201, (), "201 trades")
    await asyncio.sleep(0)
    await settled(trading.service)
    assert [len(one.message.trades) for one in messenger.sent(Executions)] == [200, 1]
    trading.service.engine.clear(slot_ns)
    (found,) = (await trading.ask("ann", CommitmentQuery(participant_id="ann", from_ns=0))).commitments
    assert (found.net_wh, found.trades) == (201, ())


async def test_orders_of_another_area_are_not_touched(trading, slot_ns):
    await trading.ask("bob", placed(trading, "bob", "sell", 1, 1500, slot_ns, name="s"))
    cancel = OrderCancel(participant_id="bob", area_id="elsewhere", client_order_ids=("s",))
    (result,) = (await trading.ask("bob", cancel)).results
    assert result.reason is RejectReason.UNKNOWN_PRODUCT
    assert (await trading.ask("bob", OrderCancel(participant_id="bob", area_id="elsewhere"))).results == ()
    assert len(trading.service.engine.slots[slot_ns].live) == 1


async def test_trading_products_are_in_the_store_while_they_trade(area, clock, slot_ns, messenger, background):
    area.rules = {"mechanism": "continuous"}
    area.service = area.started()
    background(area.service.run())
    await area.order("ann", "buy", 400, 3000, slot_ns)
    await area.order("bob", "sell", 300, 1000, slot_ns)
    await clock.advance(60)
    (product,) = area.store.query(Table.MARKET_DATA, "area-1#products", 0, 2**62)
    assert product.time_ns == slot_ns
    assert (product.data["status"], product.data["close_ticks"], product.data["volume_wh"]) == ("continuous", 3000, 300)
    assert product.data["bids"] == [{"price_ticks": 3000, "quantity_wh": 100, "orders": 1}]
    (trade,) = area.store.query(Table.TRADE_DATA, "area-1#trades", 0, 2**62)
    (candle,) = area.store.query(Table.MARKET_DATA, "area-1#ohlcv", 0, 2**62)
    assert (trade.data["quantity_wh"], candle.data["volume_wh"], candle.id) == (300, 300, str(slot_ns))
    (seen,) = [one for one in messenger.emitted if isinstance(one, MarketData)][-1].products
    (public,) = seen.recent
    assert (public.id, public.price_ticks, public.quantity_wh) == (trade.id, 3000, 300)
    assert "ann" not in str(seen), "no names"
    puts = []
    area.service._shelf._store = type("Watch", (), {"put": lambda self, table, items: puts.append(items)})()
    await clock.advance(120)
    assert puts == [], "what has not changed is not written again"
