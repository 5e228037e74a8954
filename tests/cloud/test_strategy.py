"""Producer's and consumer's strategies: peaks that batteries can hold, one message a site, held inside the site's limits."""

from dataclasses import replace

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.messages import Strategy
from wattmesh_cloud.agents import consumer, producer
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.agents.consumer.policy import shaved_level_w
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.proposals import SetPeakLimit, SetReserve, SetTrading
from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.agents.situations import SiteSituation
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S


def situation(net, expected, **changes):
    values = {"forecast_age_s": 600.0, "import_limit_w": 12_000.0}
    return SiteSituation(
        site_id="ann", now_ns=1000, net_wh=tuple(net), expected_net_wh=tuple(expected), **{**values, **changes}
    )


def limit_of(*arguments, **changes):
    (proposal,) = consumer.AGENT.policy(situation(*arguments, **changes))
    return proposal


def test_a_peak_far_above_the_usual_one_is_limited():
    proposal = limit_of([250] * 96, [250, 900, 250])
    assert proposal.limit_w == pytest.approx(1800), "half of 3600 W, more than 1.2 times the usual 1000 W"
    assert "1800 W" in proposal.rationale


def test_a_usual_peak_and_an_unknown_one_are_not():
    assert limit_of([250] * 96, [300, 370]).limit_w is None
    assert limit_of([250] * 95, [900]).limit_w is None, "less than a day is not known well enough"
    assert limit_of([-100] * 96, [900]).limit_w is None, "a site that only exports has no usual peak"


def test_a_battery_holds_the_level_that_its_energy_allows():
    day = [250] * 80 + [1250] * 4 + [250] * 12
    proposal = limit_of(day, day, battery_wh=4000.0 / 0.7)
    # Four quarter hours of 1250 Wh with 4000 Wh in hand leave 250 Wh each, the rest of the day's own level: 1000 W, times 1.5.
    assert proposal.limit_w == pytest.approx(1500, abs=1)
    learned = limit_of(day, day, battery_wh=4000.0 / 0.7, settings={"peak_factor": 1.1})
    assert learned.limit_w == pytest.approx(1100, abs=1)
    assert limit_of(day, day, battery_wh=0.0).limit_w == 2500, "without one, the rule for peaks that stand out"


@pytest.mark.parametrize("usable", [0.0, 300.0, 2000.0, 1e6])
def test_the_shaved_level_is_the_lowest_that_every_peak_allows(usable):
    nets = [100, 900, 1200, 100, 100, 700, 100]

    def needed(level):
        most = run = 0.0
        for net in nets:
            run = run + net - level / 4 if net > level / 4 else 0.0
            most = max(most, run)
        return most

    level = shaved_level_w(nets, usable)
    assert needed(level) <= usable + 0.1
    assert level == pytest.approx(0, abs=0.2) or needed(level - 1) > usable


def test_without_a_forecast_no_trading_and_without_a_past_no_strategy():
    def trades(*arguments, **changes):
        return next(
            one for one in producer.AGENT.policy(situation(*arguments, **changes)) if isinstance(one, SetTrading)
        )

    assert trades([250] * 96, [], forecast_age_s=None).trade is False
    assert trades([250] * 96, [1.0]).trade is True
    assert trades([250] * 96, [1.0], forecast_age_s=7201.0).trade is False
    assert trades([250] * 96, [1.0], online=False).trade is False
    assert trades([250] * 96, [1.0], missing=("battery-1",)).trade is False
    losing = {"committed_wh": 5000, "missed_wh": 4000, "gain_units": 10, "miss_cost_units": 11}
    assert trades([250] * 96, [1.0], **losing).trade is False
    assert trades([250] * 96, [1.0], **{**losing, "miss_cost_units": 10}).trade is True
    assert producer.AGENT.policy(situation([250] * 3, [900])) == []
    assert consumer.AGENT.policy(situation([250] * 3, [900])) == []


def test_the_reserve_follows_the_grid():
    def reserve(**changes):
        return next(
            one for one in producer.AGENT.policy(situation([250] * 96, [1.0], **changes)) if isinstance(one, SetReserve)
        ).reserve_soc_percent

    assert reserve() == 5.0
    assert reserve(battery_wh=8000.0) == 5.0
    assert reserve(battery_wh=8000.0, settings={"peak_reserve": 0.2}) == 20.0, "what was learned"
    assert reserve(battery_wh=0.0, grid_status="emergency") == 5.0
    assert reserve(grid_status="alert") == 20.0
    assert reserve(grid_status="emergency") == 50.0


def test_whoever_made_it_a_strategy_stays_within_limits():
    here = situation([250] * 96, [1.0])

    def limit(watts):
        return SetPeakLimit(site_id="ann", limit_w=watts, rationale="because")

    guard = consumer.AGENT.guardrail
    assert guard(limit(1000.0), here) is None
    assert guard(limit(None), here) is None
    for watts, word in ((0.0, "none"), (12_001.0, "connection"), (999.0, "usually")):
        assert word in guard(limit(watts), here)
    assert "fresh" in guard(limit(2000.0), replace(here, forecast_age_s=8000.0))
    reserve = SetReserve(site_id="ann", reserve_soc_percent=50.1, rationale="because")
    assert "above 50 %" in producer.AGENT.guardrail(reserve, here)


@pytest.fixture
def agents(store, messenger, clock, make_config, make_forecast, tmp_path):
    """The service of a site whose coming load is 250 Wh a quarter hour, or what the test says."""
    audit = AuditLog(tmp_path / "audit.log")
    made = []

    def make(coming=250.0):
        now = clock.utc_ns()
        forecasts = {
            "ann": {
                "load_wh": make_forecast("ann", "load_wh", now, [coming] * 110),
                "pv_wh": make_forecast("ann", "pv_wh", now, [0.0] * 110),
            }
        }
        sources = Sources(market_config=make_config(), forecasts=lambda: forecasts)
        made.append(AgentsService(AgentsConfig(), sources, store, messenger, clock, tmp_path, "demo", audit=audit))
        return made[-1]

    yield make
    for service in made:
        service.close()
    audit.close()


@pytest.mark.parametrize(("coming", "agent"), [(250, "producer"), (2000, "consumer")])
async def test_one_message_a_site_under_the_name_of_who_limits(
    coming, agent, agents, store, messenger, clock, make_interval, background
):
    service = agents(coming)
    now = clock.utc_ns()
    for back in range(99, 0, -1):  # a battery covers all of the import: the load is what counts
        service.on_record("ann", make_interval("ann", now - back * SLOT, import_wh=0, load_wh=250))
        service.on_record("ann", make_interval("ann", now - back * SLOT, load_wh=9000, complete=False))
    background(service.run())
    await clock.advance(3600)
    (sent,) = messenger.sent(Strategy)
    assert (str(sent.to), str(sent.source)) == ("demo/ann/gateway", f"demo/cloud/{agent}")
    assert sent.expires_ns == sent.message.expires_ns == clock.utc_ns() + 7200 * NS_PER_S
    rows = {row.id: row.data for row in store.query(Table.MARKET_DATA, "agents#decisions", 0, 2**62)}
    assert {"producer-ann", "consumer-ann"} <= set(rows)
    assert (rows["consumer-ann"]["peak_limit_w"] is None) == (agent == "producer")
    assert sent.message.peak_limit_w == rows["consumer-ann"]["peak_limit_w"]


async def test_a_wish_that_nobody_renews_falls_back(agents, messenger, clock, make_interval, background):
    service = agents(2000)
    now = clock.utc_ns()
    for back in range(99, 0, -1):
        service.on_record("ann", make_interval("ann", now - back * SLOT, import_wh=0, load_wh=250))
    background(service.run())
    await clock.advance(4 * 3600)
    limits = [sent.message.peak_limit_w for sent in messenger.sent(Strategy)]
    # The forecast grows old and the consumer says nothing more; two hours after its last word the limit is gone.
    assert limits[0] is not None
    assert limits[-1] is None
    assert messenger.sent(Strategy)[-1].message.trade is False
