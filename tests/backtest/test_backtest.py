"""A backtest: energy and money balance, nothing is known before its time, and nobody is better than perfect."""

import json
import math
import sys
from dataclasses import replace

import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_backtest.cli import backtest
from wattmesh_backtest.controllers import CONTROLLERS, controller_of
from wattmesh_backtest.data import load_period, prices
from wattmesh_backtest.runner import play

pytest.importorskip("highspy")
from wattmesh_backtest.bound import perfect
from wattmesh_backtest.figures import figures


@pytest.fixture
def village(folder, sunny, battery):
    """Three sites: with much sun, without any, and without a battery."""
    folder.site("rich", sunny(4, sun=1500.0), **battery)
    folder.site("poor", sunny(4, load=250.0, sun=0.0), **battery)
    folder.site("bare", sunny(4, sun=300.0))
    return load_period(str(folder.path))


@pytest.mark.parametrize("name", [name for name in CONTROLLERS if name != "cloud"])
def test_energy_and_money_balance_and_nobody_beats_perfect_foresight(village, name):
    result = play(village, controller_of(name), workers=1)
    one_way = math.sqrt(0.9)
    first = 0.2 * 10_000 if name != "none" else 0.0
    stored = first + result.charged_wh * one_way - result.discharged_wh / one_way
    assert stored == pytest.approx(result.stored_wh, abs=1)
    total = sum(sum(net) for net in result.net_wh.values())
    assert total == pytest.approx(
        result.load_wh - result.pv_wh + result.charged_wh - result.discharged_wh, abs=3 * 4 * 96
    )
    assert result.ledger_units == 0
    assert result.settled == 3 * 4 * 96
    bound = perfect(village)
    row = figures(village, result, name)
    assert row.netted >= bound.together - 1e-3
    if not controller_of(name).trade:
        for site, account in result.accounts.items():
            assert account.paid >= bound.alone[site] - 1e-3


def test_no_battery_is_the_bill_by_hand(village):
    result = play(village, controller_of("none"), workers=1)
    table = prices(village)
    for one in village.sites:
        energy = [load - pv for load, pv in zip(one.load_wh, one.pv_wh, strict=True)]
        bill = sum(
            wh * (buy if wh > 0 else sell)
            for wh, buy, sell in zip(energy, table["import"], table["feed_in"], strict=True)
        )
        assert result.accounts[one.id].paid == pytest.approx(bill / 1e7, rel=2e-3)


def test_what_comes_later_changes_nothing_before(village):
    """Causality: other data from the third day on leave the first two as they are."""
    changed = replace(
        village,
        sites=tuple(
            replace(one, load_wh=(*one.load_wh[:192], *(load * 3 for load in one.load_wh[192:])))
            for one in village.sites
        ),
    )
    for name in ("market", "community"):
        one, other = (play(period, controller_of(name), workers=1) for period in (village, changed))
        for site in one.net_wh:
            assert one.net_wh[site][:192] == other.net_wh[site][:192]
            assert one.accounts[site].by_slot[:192] == other.accounts[site].by_slot[:192]
        assert one.net_wh != other.net_wh


def test_workers_give_the_same_result(village):
    one, two = (play(village, controller_of("market"), workers=count) for count in (1, 2))
    assert one.net_wh == two.net_wh
    assert one.paid == two.paid
    assert one.trades == two.trades > 0


def test_a_plan_and_the_market_pay(village):
    paid = {name: play(village, controller_of(name), workers=1).paid for name in ("none", "selfconsumption", "market")}
    assert paid["market"] < paid["selfconsumption"] < paid["none"]


def test_what_is_in_a_gap_is_played_for_nobody(folder, sunny, battery):
    rows = sunny(2)
    rows[100] = ("", "")
    folder.site("a", rows, **battery).site("b", sunny(2, sun=0.0), **battery)
    period = load_period(str(folder.path))
    result = play(period, controller_of("market"), workers=1)
    assert [len(net) for net in result.net_wh.values()] == [191, 191]
    assert result.ledger_units == 0
    assert perfect(period).together <= figures(period, result, "").netted


def test_unlike_batteries_are_not_planned_as_one(folder, sunny, battery):
    folder.site("a", sunny(1), **battery).site("b", sunny(1), battery={"energy_wh": 9000, "power_w": 2500})
    with pytest.raises(ConfigurationError, match="all alike"):
        play(load_period(str(folder.path)), controller_of("community"))


def test_a_negative_price_and_a_site_without_load_are_played(folder, battery):
    folder.site("a", [(0, 0)] * 96, **battery).site("b", [(100, 900)] * 96, **battery)
    folder.save(tariff={"feed_in_price": -0.02, "default_price": -0.01})
    period = load_period(str(folder.path))
    result = play(period, controller_of("market"), workers=1)
    assert result.ledger_units == 0
    assert math.isfinite(result.paid)
    assert perfect(period).together <= figures(period, result, "").netted + 1e-6


def test_the_command_writes_a_page_that_loads_nothing(folder, village, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert (
        backtest(
            ["--data", str(folder.path), "--controller", "gateway", "--page", str(page), "--json", "--workers", "1"]
        )
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["none", "selfconsumption", "gateway", "perfect"]
    text = page.read_text()
    assert "Gateway&#x27;s plan, alone" in text
    assert not any(word in text for word in ("http://", "https://", "<script", "url("))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--controller", "magic"], "there is no controller"),
        (["--from", "someday"], "is no date"),
        (["--from", "2022-09-01T00:07"], "start of a quarter hour"),
        (["--days", "0"], "--days has to be"),
        (["--page", "/nowhere/at/all.html"], "there is no folder"),
    ],
    ids=["controller", "date", "quarter", "days", "page"],
)
def test_mistakes_of_the_user_are_one_sentence(argv, said):
    with pytest.raises(ConfigurationError, match=said):
        backtest(argv)


@pytest.mark.parametrize("controller", ["market", "community"])
def test_without_its_solver_the_command_says_what_to_install(monkeypatch, tmp_path, controller):
    for module in (
        "highspy",
        "wattmesh_backtest.bound",
        "wattmesh_backtest.community",
        "wattmesh_cloud.grid.community",
    ):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(ConfigurationError, match=r"wattmesh\[optimise\]"):
        backtest(["--days", "1", "--controller", controller, "--page", str(tmp_path / "p.html")])
    with pytest.raises(ConfigurationError, match=r"wattmesh\[optimise\]"):
        play(load_period("citylearn_2022", days=1), controller_of("community"))
