"""Plans for sites: made of what is known, sent with an expiry, and not made of what is missing."""

import pytest

pytest.importorskip("highspy", reason="pip install 'wattmesh[optimise]'")

import asyncio
from dataclasses import replace
from datetime import datetime, time
from zoneinfo import ZoneInfo

import numpy as np
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import Acknowledged, Refused, Strategy
from wattmesh_a2a.plans import SitePlan
from wattmesh_a2a.tariff import Tariff, TariffPeriod
from wattmesh_cloud.live import LiveView, SiteLive
from wattmesh_cloud.planning.config import CoordinationConfig, PlanningConfig
from wattmesh_cloud.planning.inputs import (
    NotPlannableError,
    SiteState,
    battery_of,
    expected,
    load_of,
    mean_of,
    situation_of,
)
from wattmesh_cloud.planning.service import PlanningService

SLOT = 900 * NS_PER_S
HOUR = 4 * SLOT
TARIFF = Tariff(
    default_price=0.2,
    feed_in_price=0.05,
    periods=(TariffPeriod(price=0.5, start=time(15), end=time(20)),),
)
ANNOUNCEMENT = {
    "site_id": "home-1",
    "time_zone": "UTC",
    "import_limit_w": 12_000.0,
    "export_limit_w": 8_000.0,
    "assets": [
        {"id": "battery", "kind": "battery", "rated_power_w": 5000.0, "rated_energy_wh": 6400.0},
        {"id": "inverter", "kind": "inverter", "rated_power_w": 4000.0, "rated_energy_wh": None},
    ],
}


def forecast(quantity, issued_ns, value, slots=192, site="home-1"):
    row = tuple(value * factor for factor in (0.5, 0.8, 1.0, 1.2, 1.6))
    return Forecast(
        site_id=site, quantity=quantity, issued_ns=issued_ns, start_ns=issued_ns - issued_ns % SLOT, slot_s=900,
        levels=(0.1, 0.25, 0.5, 0.75, 0.9), values=(row,) * slots, model="test",
    )  # fmt: skip


@pytest.fixture
def world(messenger, clock):
    """A service over one site that is well known; tests take away what they are about."""

    class World:
        live = LiveView()
        announcements = {"home-1": ANNOUNCEMENT}
        forecasts = {"home-1": {name: forecast(name, clock.utc_ns(), 200.0) for name in ("load_wh", "pv_wh")}}
        commitments = {}
        strategies = {}
        sent = messenger

        def service(self, **changes):
            return PlanningService(
                PlanningConfig(**changes), messenger, clock, "demo", tariff=TARIFF, live=self.live,
                announcements=lambda: self.announcements, forecasts=lambda: self.forecasts,
                reasons=lambda site: ("load: gap: 2 of 48 h",), commitments=lambda site, now: self.commitments,
                strategies=lambda: self.strategies,
            )  # fmt: skip

        async def plans(self, **changes):
            service = self.service(**changes)
            await service.plan_all()
            for task in list(service._tasks):
                await task
            return service, [one.message for one in messenger.requests if isinstance(one.message, SitePlan)]

    found = World()
    found.live.sites["home-1"] = SiteLive(
        time_ns=clock.utc_ns(), flows={"soc_percent": 50.0, "grid_w": 300.0, "battery_w": 0.0, "pv_w": -800.0}
    )
    return found


async def test_a_site_gets_a_plan_with_an_expiry_and_the_reasons(world, clock):
    service, (plan,) = await world.plans(valid_s=3600)
    assert plan.site_id == "home-1"
    assert plan.expires_ns == clock.utc_ns() + 3600 * NS_PER_S
    assert len(plan.grid_w) == len(plan.min_grid_w) == len(plan.max_grid_w) == len(plan.battery_w) == 96
    assert plan.start_ns % SLOT == 0
    assert "load: gap: 2 of 48 h" in plan.reasons
    assert service.snapshot()["sites"]["home-1"]["grid_w"][0] == plan.grid_w[0]
    low, high = plan.band_w(clock.utc_ns())
    assert low <= high
    assert plan.band_w(plan.expires_ns) is None


async def test_only_a_plan_that_the_gateway_took_is_told_as_its_plan(world, messenger, clock):
    service, (first,) = await world.plans()
    assert service.delivered == {"home-1": first}
    await clock.advance(300)
    world.live.sites["home-1"].time_ns = clock.utc_ns()
    for answer in (Refused(error="conflict", detail="older than mine", retryable=False), None):
        messenger.answer = lambda to, message, given=answer: given
        messenger.silent = {"home-1"} if answer is None else set()
        await service.plan_all()
        await asyncio.gather(*service._tasks)
        assert service.delivered == {"home-1": first}
    messenger.silent, messenger.answer = set(), lambda to, message: Acknowledged()
    await service.plan_all()
    await asyncio.gather(*service._tasks)
    assert service.delivered["home-1"].issued_ns == clock.utc_ns()


@pytest.mark.parametrize("missing", ["soc", "old live", "load", "pv", "old forecast", "short", "no number", "rating"])
async def test_what_is_missing_is_said_and_never_taken_as_zero(world, clock, missing):
    live, forecasts = world.live.sites["home-1"], world.forecasts["home-1"]
    if missing == "soc":
        live.flows = {**live.flows, "soc_percent": None}
    elif missing == "old live":
        live.time_ns -= HOUR
    elif missing in {"load", "pv"}:
        world.forecasts = {"home-1": {name: one for name, one in forecasts.items() if name != f"{missing}_wh"}}
    elif missing == "old forecast":
        world.forecasts = {
            "home-1": {name: replace(one, issued_ns=one.issued_ns - 13 * HOUR) for name, one in forecasts.items()}
        }
    elif missing == "short":
        world.forecasts = {"home-1": {name: replace(one, values=one.values[:40]) for name, one in forecasts.items()}}
    elif missing == "no number":
        bad = replace(forecasts["pv_wh"], values=((float("nan"),) * 5,) * 192)
        world.forecasts = {"home-1": {**forecasts, "pv_wh": bad}}
    else:
        battery = {**ANNOUNCEMENT["assets"][0], "rated_energy_wh": None}
        world.announcements = {"home-1": {**ANNOUNCEMENT, "assets": [battery]}}
    service, plans = await world.plans()
    assert plans == []
    assert service.unplanned["home-1"]
    assert service.snapshot()["issued"] == 0


async def test_a_home_without_an_inverter_needs_no_forecast_of_pv(world):
    world.announcements = {"home-1": {**ANNOUNCEMENT, "assets": ANNOUNCEMENT["assets"][:1]}}
    world.forecasts = {"home-1": {"load_wh": world.forecasts["home-1"]["load_wh"]}}
    _, plans = await world.plans()
    assert len(plans) == 1


async def test_what_was_wrong_is_over_when_it_is_over(world, clock):
    live = world.live.sites["home-1"]
    service = world.service()
    live.time_ns -= HOUR
    await service.plan_all()
    assert service.unplanned
    live.time_ns += HOUR
    await service.plan_all()
    assert not service.unplanned
    assert service.issued == 1


async def test_commitments_and_strategy_are_in_the_plan(world, clock):
    slot = clock.utc_ns() - clock.utc_ns() % SLOT + 4 * SLOT
    world.commitments = {slot: -400}
    world.strategies = {
        "home-1": Strategy(
            site_id="home-1", expires_ns=clock.utc_ns() + HOUR, reserve_soc_percent=40.0, peak_limit_w=None, trade=True,
            rationale="",
        )
    }  # fmt: skip
    _, (plan,) = await world.plans()
    assert plan.committed_w[4] == -1600
    assert plan.counted_w(slot) == -1600
    assert min(plan.stored_wh) >= 0.4 * 6400 - 2


async def test_members_of_a_community_are_planned_by_agreement_alone(world):
    _, plans = await world.plans(coordination=CoordinationConfig(members=("home-1", "home-2")))
    assert plans == []


async def test_the_month_s_highest_quarter_hour_is_kept_for_the_demand_charge(world, make_interval, clock):
    service = world.service()
    now = clock.utc_ns() - clock.utc_ns() % SLOT
    service.on_record("home-1", make_interval("home-1", now - SLOT, import_wh=900))
    service.on_record("home-1", make_interval("home-1", now - 2 * SLOT, import_wh=700))
    assert service._state("home-1", ANNOUNCEMENT, clock.utc_ns()).highest_w == 3600
    service.on_record("home-1", make_interval("home-1", now + 40 * 96 * SLOT, import_wh=100))
    assert service._state("home-1", ANNOUNCEMENT, clock.utc_ns()).highest_w == 0, "of another month"


async def test_plans_come_with_the_clock(world, clock, background, settled):
    service = world.service(every_s=300)
    background(service.run())
    for count in (1, 2, 3):
        world.live.sites["home-1"].time_ns = clock.utc_ns()
        await clock.advance(300)
        await settled(service)
        assert service.issued == count


# -- inputs


def test_a_mean_of_quantiles_is_the_area_under_them():
    levels = np.array([0.1, 0.5, 0.9])
    assert mean_of(np.array([[100.0, 100.0, 100.0]]), levels) == pytest.approx([100.0])
    assert mean_of(np.array([[0.0, 100.0, 400.0]]), levels)[0] > 100, "a long tail upwards lifts the mean"


def test_an_old_forecast_is_wider_and_says_so(clock):
    now = clock.utc_ns()
    fresh, aged = [], []
    _, near = expected(forecast("load_wh", now, 100.0), now - now % SLOT, 96, now, fresh, upper=True)
    old = replace(forecast("load_wh", now, 100.0), issued_ns=now - 5 * HOUR)
    _, far = expected(old, now - now % SLOT, 96, now, aged, upper=True)
    assert far == pytest.approx(1.5 * near)
    assert fresh == []
    assert aged == ["the forecast of load_wh is 5 h old: planned for a wider range"]


def test_beyond_its_end_a_forecast_repeats_its_last_day_wider(clock):
    now = clock.utc_ns()
    values = tuple((0.0, float(index % 96), 2.0 * (index % 96)) for index in range(150))
    short = replace(forecast("load_wh", now, 1.0), levels=(0.1, 0.5, 0.9), values=values)
    mean, off = expected(short, now - now % SLOT, 192, now, [], upper=True)
    assert mean[150:] == pytest.approx(mean[54:96])
    assert off[150:] == pytest.approx(1.5 * off[54:96])


@pytest.mark.parametrize("day", [(2026, 3, 29), (2026, 10, 25), (2026, 6, 1)])
def test_a_load_s_window_is_the_wall_clock_s_on_days_when_clocks_change(day):
    zone = ZoneInfo("Europe/Berlin")
    noon_before = datetime(*day, 12, tzinfo=zone).timestamp() - 86_400
    start = round(noon_before) // 900 * SLOT
    need = {"device": "ev", "energy_wh": 4000.0, "power_w": 2000.0, "begins": "22:00", "ends": "06:00"}
    load = load_of(need, 0.0, zone, start, 192)
    open_slots = np.flatnonzero(load.power_w[:96])
    at = [datetime.fromtimestamp(start / 1e9 + slot * 900, tz=zone) for slot in open_slots]
    assert {one.hour for one in at} == {22, 23, 0, 1, 2, 3, 4, 5} - ({2} if day[1] == 3 else set())
    hours = {3: 7, 10: 9, 6: 8}[day[1]]
    assert len(open_slots) == 4 * hours
    done = np.flatnonzero(load.at_least_wh >= 4000)[0]
    assert datetime.fromtimestamp(start / 1e9 + (done + 1) * 900, tz=zone).hour == 6


def test_what_a_load_has_had_is_not_planned_again(clock):
    now = clock.utc_ns() - clock.utc_ns() % (96 * SLOT)
    need = {"device": "ev", "energy_wh": 4000.0, "power_w": 2000.0, "begins": "22:00", "ends": "06:00"}
    load = load_of(need, 3000.0, ZoneInfo("UTC"), now, 192)
    assert load.at_least_wh[24] == 1000
    assert load.at_least_wh[-1] == 5000


def test_a_site_without_ratings_is_refused():
    announcement = {"assets": [{"id": "b", "kind": "battery", "rated_power_w": None, "rated_energy_wh": 5000.0}]}
    state = SiteState(announcement=announcement, soc_percent=50.0, live_ns=0, forecasts={})
    with pytest.raises(NotPlannableError, match="no ratings"):
        battery_of(state, PlanningConfig())


def test_carbon_by_the_hour_of_the_day(clock):
    now = clock.utc_ns()
    forecasts = {name: forecast(name, now, 100.0) for name in ("load_wh", "pv_wh")}
    state = SiteState(announcement=ANNOUNCEMENT, soc_percent=50.0, live_ns=now, forecasts=forecasts)
    config = PlanningConfig(carbon_price=0.1, carbon_kg_per_kwh=tuple(hour / 100 for hour in range(24)))
    found = situation_of(state, battery_of(state, config), TARIFF, config, now)
    hour = now // HOUR % 24
    assert found.carbon_kg[0] == hour / 100
    assert found.carbon_ticks == 1000
