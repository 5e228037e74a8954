"""Analytics by hand, and the lab: seeded, sound, and a page of its own."""

import csv

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.market import Side
from wattmesh_cloud.cli import market
from wattmesh_cloud.market.analytics import best_welfare, concentration, curves, efficiency, results, spread_ticks
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.lab import BIDDERS, MECHANISMS, compare, from_file, generated, page, run

T = 2_000 * 900 * NS_PER_S
OPEN = T - 3600 * NS_PER_S


@pytest.fixture
def orders(make_order):
    return [
        make_order("ann", "buy", 100, 30, name="b1", slot_ns=T),
        make_order("bob", "buy", 60, 20, name="b2", slot_ns=T),
        make_order("cem", "sell", 120, 10, name="s1", slot_ns=T),
        make_order("cem", "sell", 50, 40, name="s2", slot_ns=T),
    ]


@pytest.fixture
def closed(make_config, orders):
    engine = MarketEngine(make_config())
    for order in orders:
        engine.place(order.participant_id, [order], OPEN)
    engine.clear(T)
    return engine


def test_curves_and_the_best_welfare(orders):
    assert curves(orders) == ([(30, 100), (20, 160)], [(10, 120), (40, 170)])
    assert best_welfare(orders) == 100 * 20 + 20 * 10
    assert best_welfare(orders[:2]) == 0


def test_results_concentration_and_efficiency(closed):
    everybody = results(closed)
    assert (everybody["ann"].bought_wh, everybody["ann"].paid_units) == (100, 100 * 20)
    assert everybody["cem"].sold_wh == 120
    assert everybody["cem"].gain_units == 120 * (20 - 500), "the retailer would have paid more"
    sellers = concentration(closed.trades.values(), Side.SELL, {"cem": 170, "ann": 10})
    assert (sellers.hhi, sellers.largest, sellers.largest_share, sellers.pivotal) == (1.0, "cem", 1.0, ("cem",))
    buyers = concentration(closed.trades.values(), Side.BUY)
    assert buyers.hhi == pytest.approx((100 / 120) ** 2 + (20 / 120) ** 2)
    assert efficiency(closed) == 1.0
    assert concentration([], Side.BUY).largest is None


def test_spread(make_config, make_order):
    engine = MarketEngine(make_config(mechanism="continuous"))
    engine.place("ann", [make_order("ann", "buy", 1, 10, slot_ns=T)], OPEN)
    assert spread_ticks(engine.slots[T]) is None
    engine.place("bob", [make_order("bob", "sell", 1, 14, slot_ns=T)], OPEN)
    assert spread_ticks(engine.slots[T]) == 4


def test_every_mechanism_with_every_bidder_is_sound_and_seeded():
    fleet = generated(12, 48, 3)
    outcomes = compare(fleet, 3)
    assert [(one.mechanism, one.bidders) for one in outcomes] == [(m, b) for m in MECHANISMS for b in BIDDERS]
    assert outcomes == compare(fleet, 3)
    for one in outcomes:
        assert 0 < one.efficiency <= 1, one.mechanism
        assert one.buyer_units >= 0
        assert one.seller_units >= 0, "nobody trades at a loss"
    found = {(one.mechanism, one.bidders): one for one in outcomes}
    assert found["call", "truthful"].efficiency == 1, "a call auction of true values is the optimum"
    assert found["call", "truthful"].spread_ticks == 0
    assert found["continuous", "zero"].spread_ticks > 0
    assert found["pay-as-bid", "truthful"].buyer_units == 0, "who says the truth and pays it gains nothing"


def test_the_page_and_a_historical_fleet(tmp_path, capsys):
    path = tmp_path / "fleet.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("slot", "participant", "net_wh"), (0, "a", 100), (0, "b", -80), (2, "a", 50), (2, "b", 0)])
    fleet = from_file(path, 1)
    assert [[(need.name, need.wh) for need in slot] for slot in fleet] == [[("a", 100), ("b", -80)], [], [("a", 50)]]
    assert market(["lab", "--fleet", str(path), "--page", str(tmp_path / "lab.html"), "--json"]) == 0
    text = (tmp_path / "lab.html").read_text()
    assert "<svg" in text
    assert "http" not in text
    assert "continuous+call" in capsys.readouterr().out
    path.write_text("slot,participant\n1,a\n")
    with pytest.raises(ConfigurationError, match="needs slot, participant and net_wh"):
        from_file(path, 1)
    with pytest.raises(ConfigurationError, match="no bidders 'clever'"):
        run(fleet, "call", "clever")
    assert "&lt;b&gt;" in page([], title="<b>")
