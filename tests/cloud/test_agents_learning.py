"""Learning: inside the stated values, towards what pays, with a way back; outcomes beside decisions; nothing heavy imported."""

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.feedback import rewards_of
from wattmesh_cloud.agents.learning import PARAMETERS, Learner, likely_worse
from wattmesh_cloud.agents.looks import trade_result
from wattmesh_cloud.agents.memory import LocalMemory

DAY = 86_400 * NS_PER_S


@pytest.fixture
def database(tmp_path):
    opened = Database(tmp_path / "agents.sqlite")
    yield opened
    opened.close()


def lived(learner, worth, days, seed=1):
    """Days in which each value of the peak factor has its own mean reward; what was used each day."""
    rng, used = random.Random(seed), []
    for day in range(days):
        value = learner.settings("ann", "consumer", day * DAY)["peak_factor"]
        used.append(value)
        learner.outcome("ann", "peak_factor", value, rng.gauss(worth[value], 0.08))
    return used


@pytest.mark.parametrize("best", PARAMETERS["peak_factor"].values)
def test_what_pays_is_used_more_and_more(database, best):
    values = PARAMETERS["peak_factor"].values
    used = lived(Learner(database), {value: 0.5 if value == best else 0.2 for value in values}, 120)
    assert used[:3] == [PARAMETERS["peak_factor"].default] * 3, "first what a usual day is worth"
    assert set(used) <= set(values)
    assert used[60:].count(best) > 45


def test_what_is_worse_is_left_and_the_default_stays(database):
    learner = Learner(database)
    default = PARAMETERS["peak_factor"].default
    used = lived(learner, {value: 0.5 if value == default else 0.0 for value in PARAMETERS["peak_factor"].values}, 60)
    assert used[30:].count(default) > 25
    beliefs = {one.value: one for one in learner.beliefs("ann", "peak_factor")}
    tried = [value for value in set(used) if value != default and beliefs[value].days >= 3]
    assert all(likely_worse(beliefs[value], beliefs[default]) for value in tried)


def test_the_same_day_gives_the_same_value_and_another_agent_the_default(database):
    learner = Learner(database)
    lived(learner, dict.fromkeys(PARAMETERS["peak_factor"].values, 0.3), 30)
    first = [learner.settings("ann", "consumer", day * DAY) for day in range(40, 60)]
    assert first == [learner.settings("ann", "consumer", day * DAY + 1) for day in range(40, 60)]
    assert learner.settings("ann", "producer", 40 * DAY)["peak_factor"] == PARAMETERS["peak_factor"].default


def test_a_person_can_freeze_it_and_forget_it(database):
    learner, default = Learner(database), PARAMETERS["peak_factor"].default
    lived(learner, {value: value for value in PARAMETERS["peak_factor"].values}, 60)
    assert learner.settings("ann", "consumer", 61 * DAY)["peak_factor"] != default
    learner.freeze("*", "peak_factor", "operator:ann", 0)
    assert {learner.settings("ann", "consumer", day * DAY)["peak_factor"] for day in range(61, 90)} == {default}
    learner.thaw("*", "peak_factor")
    assert learner.settings("ann", "consumer", 61 * DAY)["peak_factor"] != default
    learner.forget("ann")
    assert learner.settings("ann", "consumer", 61 * DAY)["peak_factor"] == default
    assert learner.report() == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.5, 1.1, 1.5, 2.0, 9.0]), st.floats()), max_size=40))
def test_whatever_comes_back_only_stated_values_are_used(tmp_path_factory, outcomes):
    database = Database(tmp_path_factory.mktemp("learner") / "agents.sqlite")
    learner = Learner(database)
    for value, reward in outcomes:
        learner.outcome("ann", "peak_factor", value, reward)
    for day in range(10):
        assert learner.settings("ann", "consumer", day * DAY)["peak_factor"] in PARAMETERS["peak_factor"].values
    database.close()


def test_rewards_compare_a_day_with_itself_without_a_battery():
    came = {
        "peak_without_battery_w": 4000,
        "peak_import_w": 3000,
        "cost_units": 30_000_000,
        "cost_without_battery_units": 40_000_000,
    }
    assert rewards_of(came) == {"consumer": 0.25, "producer": 0.25}
    assert rewards_of({**came, "peak_without_battery_w": 100, "cost_without_battery_units": -5}) == {}


def test_what_trades_brought_and_what_missing_them_cost():
    from wattmesh_a2a.market import Settlement

    def settled(committed, metered, units):
        return Settlement(
            participant_id="ann", area_id="a", slot_start_ns=0, committed_wh=committed, metered_wh=metered, substituted=False,
            trade_units=units, residual_units=0,
        )  # fmt: skip

    # 1000 Wh bought at 1500 where the retailer takes 3000: all used, then half of it, which comes back at 500.
    assert trade_result(settled(1000, 1200, 1_500_000), 3000, 500) == (1000, 0, 1_500_000, 0)
    assert trade_result(settled(1000, 500, 1_500_000), 3000, 500) == (1000, 500, 750_000, 500_000)
    # 1000 Wh sold at 1500: delivered, then 400 Wh of it bought at the retailer's price.
    assert trade_result(settled(-1000, -1000, -1_500_000), 3000, 500) == (1000, 0, 1_000_000, 0)
    assert trade_result(settled(-1000, -600, -1_500_000), 3000, 500) == (1000, 400, 600_000, 600_000)


async def test_a_days_outcome_stands_beside_its_decisions(
    tmp_path, store, messenger, clock, make_config, make_interval, make_forecast
):
    from wattmesh_cloud.agents.config import AgentsConfig
    from wattmesh_cloud.agents.looks import Sources
    from wattmesh_cloud.agents.service import AgentsService
    from wattmesh_cloud.audit import AuditLog

    audit, forecasts = AuditLog(tmp_path / "audit.log"), {}
    sources = Sources(market_config=make_config(), forecasts=lambda: forecasts)
    service = AgentsService(AgentsConfig(), sources, store, messenger, clock, tmp_path, "demo", audit=audit)
    slot = 900 * NS_PER_S
    for number in range(96 + 4):
        now = clock.utc_ns()
        forecasts["ann"] = {
            name: make_forecast("ann", name, now, [value] * 110) for name, value in (("load_wh", 250.0), ("pv_wh", 0.0))
        }
        if number % 4 == 0:
            await service.round(sites=True)
        service.on_record("ann", make_interval("ann", now, import_wh=200 if number != 50 else 400, load_wh=500))
        clock.set_ns((number + 1) * 900 * NS_PER_S)
    decisions = service.memory.recall("ann", agent="consumer", limit=100)
    first_day = [one for one in decisions if one["time_ns"] < clock.utc_ns() - 4 * slot]
    outcome = first_day[0]["outcome"]
    assert (outcome["peak_import_w"], outcome["peak_without_battery_w"], outcome["slots"]) == (1600, 2000, 96)
    (belief,) = [one for one in service.learner.beliefs("ann", "peak_factor") if one.days]
    assert (belief.value, belief.days) == (PARAMETERS["peak_factor"].default, 1)
    assert isinstance(service.memory, LocalMemory)
    await service.finish()
    service.close()
    audit.close()


def test_nothing_heavy_is_imported_unless_a_model_is_asked_for():
    program = (
        "import sys, json; import wattmesh_cloud.app, wattmesh_cloud.agents.service, wattmesh_cloud.agents.models;"
        "print(json.dumps([n for n in ('strands', 'boto3', 'botocore', 'openai', 'bedrock_agentcore') if n in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert json.loads(answer.stdout) == []
