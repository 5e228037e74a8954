"""Demand response from the forecast to the ledger: the cloud's grid agent and a fleet of simulated homes, in virtual time."""

import math

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.grid import GridStatus
from wattmesh_a2a.tariff import Tariff
from wattmesh_backtest.data import TariffModel
from wattmesh_backtest.fleet import Fleet
from wattmesh_backtest.site import SLOT_NS, Car, SimulatedSite, SiteSetup
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.emergency import Mode
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.ledger import GRID_OPERATOR

HOUR = 4 * SLOT_NS
START = 19_676 * 86_400 * NS_PER_S  # a Tuesday, midnight UTC
TARIFF = Tariff(default_price=0.25, feed_in_price=0.05)
EVENING = 18


def load_of(number):
    """A home whose load is high from six to eight, and moves a little."""

    def load(now_ns):
        hour = now_ns / 3.6e12 % 24
        base = 2500.0 if EVENING <= hour < EVENING + 2 else 400.0
        return base * (1 + 0.1 * math.sin(now_ns / 6e11 + number))

    return load


def homes():
    """Two homes with a battery, one with a car, one with neither."""
    made = []
    for number, more in enumerate(
        ({"battery_wh": 10_000.0, "battery_w": 5000.0, "initial_soc": 0.9},) * 2
        + ({"car": Car(energy_wh=9000, power_w=3700, comes="17:30", leaves="07:00")}, {})
    ):
        setup = SiteSetup(
            id=f"home-{number}", tariff=TARIFF, import_limit_w=17_000, export_limit_w=8000, step_s=60, **more
        )
        made.append(SimulatedSite(setup, load_of(number), lambda now_ns: 0.0))
    return made


CONFIG = {"demand_response": {"enabled": False, "price": 0.40, "duration_s": 7200, "share": 0.5}}


@pytest.fixture
async def fleet(tmp_path):
    """A day of homes, so that their evenings are known; batteries full again at noon of the second day."""
    made = Fleet(homes(), GridConfig.model_validate(CONFIG), tmp_path, START)
    async with made:
        await made.run(START + 36 * HOUR, step_s=900)
        for site in made.sites.values():
            if site.setup.battery_wh:
                site.battery.stored_wh = 0.95 * site.battery.energy_wh
        yield made


def total_w(fleet, start, slots=8):
    return [sum(one[start + at * SLOT_NS] for one in fleet.net_wh.values()) * 4 for at in range(slots)]


async def test_from_the_forecast_to_the_ledger(fleet):
    engine = MarketEngine(
        MarketConfig.model_validate(
            {
                "area": "a",
                "tariff": TariffModel(feed_in_price=0.05, default_price=0.25).model_dump(by_alias=True),
                "participants": [
                    {"id": name, "import_limit_w": 1e5, "export_limit_w": 1e5, "credit_limit": 1e4}
                    for name in fleet.sites
                ],
            }
        )
    )
    fleet._pay = lambda event, site, wh, ticks, slot: engine.pay_flexibility(event, site, wh * ticks, slot)
    plan = fleet.service.plan_event()
    assert plan.start_ns == START + (24 + EVENING) * HOUR, "the evening is the peak that is expected"
    event = fleet.service.create_event(plan, "test")
    await fleet.run(plan.start_ns)
    (running,) = fleet.service.running.values()
    assert running.called
    assert abs(running.required_w + plan.target_w) <= 0.1 * abs(plan.target_w)
    assert "home-3" not in running.dispatched, "it has nothing to move"
    assert {one.source for one in running.offers["home-2"].parts} == {"ev"}
    await fleet.run(plan.end_ns)
    assert set(running.deliveries) == set(running.dispatched), "tracked while it ran"
    await fleet.run(plan.end_ns + HOUR, step_s=300)
    (row,) = fleet.service.settled
    assert row["id"] == event.id
    assert 0.9 <= row["delivered_share"] <= 1.1
    assert max(total_w(fleet, plan.start_ns)) < max(total_w(fleet, plan.start_ns - 24 * HOUR)) * 0.8
    assert engine.ledger.total() == 0
    paid = sum(row["delivered_wh"].values()) * event.price_ticks
    assert engine.ledger.paid[GRID_OPERATOR, "flexibility"] == -paid
    await fleet.run(START + (24 + 31) * HOUR + HOUR, step_s=300)
    assert fleet.sites["home-2"].missed_car_wh == 0, "the car was full in the morning"


async def test_without_a_battery_that_does_what_it_promised_others_are_asked(fleet):
    plan = fleet.service.plan_event()
    fleet.service.create_event(plan, "test")
    await fleet.run(plan.start_ns)
    (running,) = fleet.service.running.values()
    first = dict(running.dispatched)
    broken = fleet.sites["home-0"]
    assert first["home-0"].power_w < 0
    broken.battery.power_w = 0.0  # it fails when it is needed
    await fleet.run(plan.start_ns + HOUR)
    assert running.revisions[0]["what"] == "shortfall"
    assert abs(running.dispatched["home-1"].power_w) > abs(first["home-1"].power_w), "the other battery takes over"
    await fleet.run(plan.end_ns + HOUR, step_s=300)
    (row,) = fleet.service.settled
    assert row["delivered_wh"]["home-0"] < row["dispatched_wh"]["home-0"] * 0.5, "what is not delivered is not paid"


async def test_a_cancelled_event_lets_everybody_go(fleet):
    plan = fleet.service.plan_event()
    event = fleet.service.create_event(plan, "test")
    await fleet.run(plan.start_ns + 2 * SLOT_NS)
    fleet.service.cancel_event(event.id, "the line is back", "eve")
    await fleet.run(plan.start_ns + 2 * HOUR)
    before, after = total_w(fleet, plan.start_ns, 2), total_w(fleet, plan.start_ns + 4 * SLOT_NS, 2)
    assert min(after) > max(before) * 1.2, "loads are back"
    assert fleet.service.settled[0]["state"] == "settled"
    assert sum(fleet.service.settled[0]["delivered_wh"].values()) > 0, "half an hour was delivered, and is paid"


async def test_an_emergency_sheds_the_fleet_and_a_drill_does_not(fleet):
    await fleet.run(START + 42 * HOUR + 2 * SLOT_NS)
    before = sum(site.grid_w for site in fleet.sites.values())
    for drill in (True, False):
        asked = fleet.service.declare_emergency(
            Mode.SHORTAGE, 3, area_id="all", reason="line out", by="eve", drill=drill
        )
        standing = fleet.service.confirm_emergency(asked.token, "adam")
        await fleet.run(fleet.clock.utc_ns() + SLOT_NS)
        now = sum(site.grid_w for site in fleet.sites.values())
        assert len(standing.results) == 4
        if drill:
            assert now > 0.85 * before
            assert fleet.service.status is GridStatus.NORMAL
            shown = sum(row["expected_w"] for row in standing.results.values())
            assert shown < 0.8 * before, "what it would do is shown"
            fleet.service.release_emergency("all", "over", "eve")
        else:
            assert now < 0.75 * before
            assert fleet.service.status is GridStatus.EMERGENCY


async def test_fatigue_keeps_sites_out_and_says_why(fleet):
    for hours in (0, 2):
        plan = fleet.service.plan_event()
        start = fleet.clock.utc_ns() + (6 + hours) * HOUR
        plan = type(plan)(
            start_ns=start, end_ns=start + HOUR, target_w=-3000, price_ticks=4000, reason="t", id=f"e{hours}"
        )  # fmt: skip
        fleet.service.create_event(plan, "test")
    await fleet.run(fleet.clock.utc_ns() + 10 * HOUR, step_s=300)
    first, second = fleet.service.settled
    assert first["left_out"] == {}
    called = set(first["dispatched_wh"])
    assert called
    assert set(second["left_out"]) == called
    assert all("rests" in why for why in second["left_out"].values())
