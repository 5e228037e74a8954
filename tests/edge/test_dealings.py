"""What the market, the cloud and the grid tell a gateway takes effect at once, once, and from nobody else."""

import sqlite3
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError, UnauthorisedError
from wattmesh_a2a.market import OrderStatus, Trade
from wattmesh_a2a.messages import (
    Commitment,
    Executions,
    MarketRules,
    OrderBatch,
    OrderBatchResult,
    OrderResult,
    Strategy,
)
from wattmesh_edge import parts
from wattmesh_edge.agents.base import SLOT_NS, Outlook
from wattmesh_edge.agents.consumer import ConsumerAgent
from wattmesh_edge.agents.producer import ProducerAgent
from wattmesh_edge.config import load_site
from wattmesh_edge.dealings import Dealings
from wattmesh_edge.image import BatteryImage, SiteImage, Value
from wattmesh_edge.memory import Memory

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"
MARKET = Address("demo", "cloud", "market-supervisor")
NOW = 1_700_000_100 * 10**9 - 1_700_000_100 * 10**9 % SLOT_NS


class Wire:
    """A messenger whose other side is the test."""

    def __init__(self):
        self.handlers, self.sent, self.answer = {}, [], None

    def on_request(self, kind, handler, **_options):
        self.handlers[kind] = handler

    def on_event(self, kind, handler, **_options):
        self.handlers[kind] = handler

    async def request(self, to, message, *, expires_ns):
        self.sent.append((to, message, expires_ns))
        return self.answer

    async def hear(self, message, source=MARKET):
        answer = self.handlers[type(message)](SimpleNamespace(data=message, source=source))
        return await answer if hasattr(answer, "__await__") else answer


class Desk:
    def __init__(self, folder, clock):
        self.site = load_site(EXAMPLE)
        self.db = sqlite3.connect(folder / "gateway.sqlite")
        self.db.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self.wire, self.counts, self.jobs = Wire(), Counter(), []
        storage = parts.storage_of(parts.battery_limits(self.site, with_response=True))
        self.outlook = Outlook(tariff=self.site.tariff, storage=storage, trade=True)
        self.agents = [
            kind(kind.__name__, "home-1", self.outlook, period_s=1.0) for kind in (ProducerAgent, ConsumerAgent)
        ]
        self.dealings = Dealings(
            self.site, self.outlook, self.agents, self.wire, self.db, Memory(self.db), clock,
            counts=self.counts, spawn=self.jobs.append, image=lambda: None,
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path, clock):
    clock.utc_offset_ns = NOW
    return Desk(tmp_path, clock)


def trade(number, slot_ns=NOW, wh=500, *, buyer="home-1", seller="home-2"):
    return Trade(
        id=f"t{number}", area_id="demo-area", slot_start_ns=slot_ns, buyer_id=buyer, seller_id=seller,
        quantity_wh=wh, price_ticks=1500, buy_order_id="b", sell_order_id="s",
    )  # fmt: skip


def told(*trades, participant="home-1", area="demo-area"):
    return Executions(participant_id=participant, area_id=area, trades=trades)


def image(time_ns, grid_w=1000.0):
    return SiteImage(
        time_ns=time_ns, monotonic_ns=time_ns, grid_power_w=Value(value=grid_w, quality=0), pv_power_w=0.0,
        batteries={"battery": BatteryImage(active_power_w=0.0, soc_percent=50.0)}, frequency_hz=60.0,
    )  # fmt: skip


async def test_a_resting_order_that_trades_moves_the_setpoint_in_the_next_cycle(desk):
    before = desk.agents[0].propose(image(NOW + 60 * 10**9), 0.0)[0]
    assert "market" not in before.source
    await desk.wire.hear(told(trade(1, wh=200, buyer="home-2", seller="home-1")))
    assert desk.outlook.position_wh(NOW) == -200
    after = desk.agents[0].propose(image(NOW + 60 * 10**9), 0.0)[0]
    assert after.source.endswith(":market")
    assert after.target_w == pytest.approx(-200 / (840 / 3600), rel=0.01)
    assert desk.dealings.in_market(NOW)


async def test_each_trade_counts_once_and_outlives_a_restart(desk, tmp_path, clock):
    await desk.wire.hear(told(trade(1), trade(2, wh=100)))
    await desk.wire.hear(told(trade(2, wh=100), trade(3, wh=7, buyer="home-3", seller="home-1")))
    assert desk.outlook.position_wh(NOW) == 593
    assert desk.counts["trades_told"] == 3
    again = Desk(tmp_path, clock)
    assert again.outlook.position_wh(NOW) == 593
    await again.wire.hear(told(trade(1)))
    assert again.outlook.position_wh(NOW) == 593


async def test_the_commitment_is_the_last_word(desk):
    await desk.wire.hear(told(trade(1)))
    final = Commitment(
        participant_id="home-1", area_id="demo-area", slot_start_ns=NOW, slot_s=900, net_wh=650,
        clearing_price_ticks=1500, trades=(),
    )  # fmt: skip
    await desk.wire.hear(final)
    assert desk.outlook.position_wh(NOW) == 650
    await desk.wire.hear(told(trade(9, wh=50)))
    assert desk.outlook.position_wh(NOW) == 650, "it holds them all already"
    desk.outlook.forget_before(NOW + 3 * SLOT_NS)
    assert desk.outlook.position_wh(NOW) == 0


@pytest.mark.parametrize(
    ("message", "source", "error"),
    [
        (told(trade(1)), Address("demo", "home-2", "gateway"), UnauthorisedError),
        (told(trade(1)), Address("demo", "cloud", "producer"), UnauthorisedError),
        (told(trade(1), participant="home-2"), MARKET, ConfigurationError),
        (told(trade(1), area="elsewhere"), MARKET, ConfigurationError),
        (
            Strategy(site_id="home-1", expires_ns=NOW, reserve_soc_percent=5, peak_limit_w=None, trade=False, rationale=""),
            Address("demo", "home-1", "visitor"),
            UnauthorisedError,
        ),
    ],
)  # fmt: skip
async def test_what_others_say_moves_nothing(desk, message, source, error):
    with pytest.raises(error):
        await desk.wire.hear(message, source)
    assert desk.outlook.position_wh(NOW) == 0
    assert desk.outlook.strategy is None
    assert desk.db.execute("SELECT COUNT(*) FROM trades").fetchone() == (0,)


async def test_orders_leave_out_what_is_agreed_already_and_their_trades_count(desk):
    wanted = NOW + 2 * SLOT_NS
    desk.outlook.rules = MarketRules(
        area_id="demo-area",
        slot_s=900,
        gate_open_s=21_600,
        gate_close_s=300,
        currency="USD",
        feed_in_ticks=500,
        halted=False,
    )
    desk.outlook.profile = dict.fromkeys(range(96), (800.0, 0.0))
    desk.outlook.plan(NOW, 320.0)
    index = (wanted - desk.outlook.value.start_ns) // SLOT_NS
    expected = desk.outlook.grid_wh[index]
    await desk.wire.hear(told(trade(1, wanted, wh=300)))
    fill = trade(5, wanted, wh=100)
    result = OrderResult(client_order_id="o", status=OrderStatus.ACCEPTED, filled_wh=100, trades=(fill,))
    desk.wire.answer = OrderBatchResult(slot_start_ns=wanted, results=(result,))
    desk.dealings.order(image(NOW))
    desk.dealings.order(image(NOW))
    (job,) = desk.jobs
    await job
    ((to, batch, expires_ns),) = desk.wire.sent
    assert to == MARKET
    assert isinstance(batch, OrderBatch)
    assert [order.quantity_wh for order in batch.orders] == [round((expected - 300) * 0.8)]
    assert expires_ns == wanted - 300 * 10**9
    assert desk.outlook.position_wh(wanted) == 400
    assert desk.counts["orders_accepted"] == 1


def test_a_site_without_a_battery_plans_and_buys_too(desk):
    outlook = Outlook(tariff=desk.site.tariff, storage=parts.storage_of({}), trade=True)
    outlook.profile = dict.fromkeys(range(96), (400.0, 100.0))
    bare = SiteImage(
        time_ns=NOW, monotonic_ns=NOW, grid_power_w=Value(value=1000.0, quality=0), pv_power_w=0.0, batteries={},
        frequency_hz=60.0,
    )  # fmt: skip
    outlook.plan(NOW, outlook.stored_wh(bare))
    assert outlook.source == "tariff"
    assert outlook.grid_wh[2] == pytest.approx(300, abs=1)
    assert ConsumerAgent("consumer", "s", outlook, period_s=1.0).propose(bare, 0.0) == []


def test_batteries_of_different_size_count_by_what_they_hold(desk):
    storage = parts.storage_of({})
    outlook = Outlook(tariff=desk.site.tariff, storage=storage, trade=True, capacity_wh={"a": 9000.0, "b": 1000.0})
    seen = {
        "a": BatteryImage(active_power_w=0.0, soc_percent=100.0),
        "b": BatteryImage(active_power_w=0.0, soc_percent=0.0),
        "watched": BatteryImage(active_power_w=0.0, soc_percent=None),
    }
    one = SiteImage(time_ns=0, monotonic_ns=0, grid_power_w=None, pv_power_w=0.0, batteries=seen, frequency_hz=None)
    assert outlook.stored_wh(one) == pytest.approx(0.9 * storage.energy_wh)
