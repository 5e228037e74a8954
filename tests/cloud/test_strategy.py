"""The strategies: peaks compared like with like, sent and stored under one name, held inside the site's limits."""

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.messages import Strategy
from wattmesh_cloud.agents.reasoner import PolicyReasoner, SiteSituation, within_limits
from wattmesh_cloud.agents.service import StrategyService
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S


def situation(net, expected, limit=12_000.0):
    return SiteSituation(
        site_id="ann", now_ns=1000, net_wh=tuple(net), expected_net_wh=tuple(expected), import_limit_w=limit
    )


async def think(*arguments):
    return await PolicyReasoner().strategy(situation(*arguments), 2000)


async def test_a_peak_far_above_the_usual_one_is_limited():
    strategy = await think([250] * 96, [250, 900, 250])
    assert strategy.peak_limit_w == pytest.approx(1800), "half of 3600 W, more than 1.2 times the usual 1000 W"
    assert "1800 W" in strategy.rationale


async def test_a_usual_peak_and_an_unknown_one_are_not():
    assert (await think([250] * 96, [300, 370])).peak_limit_w is None
    assert (await think([250] * 95, [900])).peak_limit_w is None, "less than a day is not known well enough"
    assert (await think([-100] * 96, [900])).peak_limit_w is None, "a site that only exports has no usual peak"


async def test_without_a_forecast_no_trading_and_without_a_past_no_strategy():
    assert (await think([250] * 96, [])).trade is False
    assert (await think([250] * 96, [1.0])).trade is True
    assert await think([250] * 3, [900]) is None


def strategy(**changes):
    values = {"site_id": "ann", "expires_ns": 2000, "reserve_soc_percent": 5.0, "peak_limit_w": None, "trade": True}
    return Strategy(**{**values, "rationale": "", **changes})


def test_whoever_made_it_a_strategy_stays_within_limits():
    here = situation([], [])
    assert within_limits(strategy(), here) == strategy()
    for bad in (
        {"site_id": "bob"},
        {"expires_ns": 1000},
        {"reserve_soc_percent": 50.1},
        {"reserve_soc_percent": -1.0},
        {"reserve_soc_percent": float("nan")},
        {"peak_limit_w": 0.0},
        {"peak_limit_w": float("nan")},
    ):
        assert within_limits(strategy(**bad), here) is None, bad
    assert within_limits(strategy(peak_limit_w=99_000.0), here) == strategy(peak_limit_w=12_000.0)


@pytest.mark.parametrize(("coming", "agent"), [(250, "producer"), (2000, "consumer")])
async def test_stored_under_the_name_it_is_sent_as(
    coming, agent, store, messenger, clock, make_config, make_interval, make_forecast, tmp_path, background, settled
):
    now = clock.utc_ns()
    forecasts = {
        "ann": {
            "load_wh": make_forecast("ann", "load_wh", now, [coming] * 110),
            "pv_wh": make_forecast("ann", "pv_wh", now, [0.0] * 110),
        }
    }
    service = StrategyService(make_config(), store, messenger, clock, tmp_path, "demo", forecasts=lambda: forecasts)
    for back in range(1, 100):  # a battery covers all of the import: the load is what counts
        service.on_record("ann", make_interval("ann", now - back * SLOT, import_wh=0, load_wh=250))
        service.on_record("ann", make_interval("ann", now - back * SLOT, load_wh=9000, complete=False))
    background(service.run())
    await clock.advance(3600)
    await settled(service)
    (sent,) = messenger.sent(Strategy)
    assert (str(sent.to), str(sent.source)) == ("demo/ann/gateway", f"demo/cloud/{agent}")
    assert sent.expires_ns == sent.message.expires_ns == clock.utc_ns() + 7200 * NS_PER_S
    (row,) = store.query(Table.MARKET_DATA, "agents#decisions", 0, 2**62)
    assert row.data["agent"] == agent
    assert row.id == f"{agent}-ann"
    assert (row.data["peak_limit_w"] is None) == (agent == "producer")
