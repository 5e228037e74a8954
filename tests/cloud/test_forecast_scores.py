"""Scores over common slots, drift, first days from similar sites, and forecasts of price, flexibility and frequency."""

import numpy as np
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.market import Trade
from wattmesh_a2a.messages import ForecastIssued
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.model import LEVELS, SeasonalQuantiles
from wattmesh_cloud.forecasting.observations import observed
from wattmesh_cloud.forecasting.scores import EVIDENCE, SLOTS, Scores
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.forecasting.side import FREQUENCY_RISK, PRICE, SideForecasts
from wattmesh_cloud.forecasting.similar import NAME as SIMILAR
from wattmesh_cloud.forecasting.similar import borrowed
from wattmesh_cloud.live import LiveView, SiteLive
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S
DAY = 96 * SLOT


# -- scores


def test_models_are_compared_over_the_slots_that_both_have_forecast():
    scores = Scores()
    for number in range(3 * EVIDENCE):
        hard = number >= 2 * EVIDENCE
        scores.add(number * SLOT, {"champion": 10.0 if hard else 1.0})
        if not hard:  # it was away in the days that were hard
            scores.add(number * SLOT, {"challenger": 1.2})
    last = [sum(scores.of(name)[-EVIDENCE:]) for name in ("challenger", "champion")]
    assert last[0] < last[1], "row by row from the end it would look better"
    assert not scores.beats("challenger", "champion")
    assert scores.common(("champion", "challenger"))["champion"] == [1.0] * 2 * EVIDENCE
    for number in range(3 * EVIDENCE, 6 * EVIDENCE):
        scores.add(number * SLOT, {"champion": 3.0, "challenger": 1.0})
    assert scores.beats("challenger", "champion")
    assert not scores.beats("challenger", "nobody")


def test_a_reading_that_comes_again_counts_once_and_old_ones_are_forgotten():
    scores = Scores()
    scores.add(5, {"a": 3.0})
    scores.add(5, {"a": 1.0})
    assert scores.of("a") == [1.0]
    for slot in range(2 * SLOTS):
        scores.add(slot, {"a": 1.0})
    assert len(scores.of("a")) == SLOTS


def test_drift_is_a_last_day_that_is_much_worse():
    scores = Scores()
    for slot in range(3 * EVIDENCE):
        scores.add(slot, {"a": 1.0})
    assert not scores.drifted("a")
    for slot in range(3 * EVIDENCE, 4 * EVIDENCE):
        scores.add(slot, {"a": 1.6})
    assert scores.drifted("a")
    assert not scores.drifted("unknown")


# -- similar sites


def days(start, count, level, seed=0, pv=0.0):
    chance = np.random.default_rng(seed)
    found = {}
    for number in range(count * 96):
        slot, hour = start + number * SLOT, number % 96 / 4
        load = level * (1 + (17 <= hour < 22)) * chance.uniform(0.9, 1.1)
        found[slot] = load, pv * max(0.0, np.sin((hour - 6) / 12 * np.pi))
    return found


def test_a_new_site_gets_the_shape_of_others_at_its_own_level(midnight_ns):
    start = midnight_ns - 20 * DAY
    others = {
        name: days(start, 20, level, seed) for seed, (name, level) in enumerate((("a", 50), ("b", 200), ("c", 400)))
    }
    own = {
        slot: value
        for slot, value in days(midnight_ns - DAY, 1, 100, 9).items()
        if slot >= midnight_ns - 3 * 3600 * NS_PER_S
    }
    table = borrowed(own, others, 0, midnight_ns, 96, SeasonalQuantiles())
    assert table[:, 2] == pytest.approx(np.where((np.arange(96) >= 68) & (np.arange(96) < 88), 200, 100), rel=0.2)
    wide = float((table[:, 4] - table[:, 0]).mean())
    longer = borrowed(days(midnight_ns - 6 * DAY, 6, 100, 9), others, 0, midnight_ns, 96, SeasonalQuantiles())
    assert wide > 1.2 * float((longer[:, 4] - longer[:, 0]).mean()), "less is known, so it is wider"


def test_nobody_lends_or_nobody_needs_to(midnight_ns):
    others = {"a": days(midnight_ns - 20 * DAY, 20, 50)}
    model = SeasonalQuantiles()
    assert borrowed(days(midnight_ns - 8 * DAY, 8, 100), others, 0, midnight_ns, 96, model) is None
    assert borrowed({}, others, 0, midnight_ns, 96, model) is None
    new = days(midnight_ns - DAY, 1, 100)
    assert borrowed(new, {}, 0, midnight_ns, 96, model) is None
    assert borrowed(new, {"a": days(midnight_ns - 3 * DAY, 3, 50)}, 0, midnight_ns, 96, model) is None
    assert borrowed(new, others, 1, midnight_ns, 96, model) is None, "a lender without PV says nothing of PV"


async def test_a_site_s_first_days_are_of_similar_sites(store, messenger, clock, tmp_path, background, settled):
    now = clock.utc_ns() - clock.utc_ns() % SLOT
    service = ForecastingService(ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo")
    for seed, name in enumerate("abc"):
        service._past[name].update(days(now - 20 * DAY, 20, 100.0, seed))
    service._past["new"].update(days(now - DAY, 1, 300.0, 9))
    background(service.run())
    await clock.advance(0)
    await settled(service)
    assert service.latest["new"]["load_wh"].model == SIMILAR
    assert service.latest["a"]["load_wh"].model != SIMILAR


# -- inside the day


async def test_three_unlikely_quarter_hours_make_a_new_forecast_before_its_time(
    store, messenger, clock, tmp_path, background, settled, make_interval
):
    now = clock.utc_ns() - clock.utc_ns() % SLOT
    service = ForecastingService(ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo")
    for name in ("home-1", "home-2"):
        service._past[name].update(days(now - 20 * DAY, 20, 100.0))
    background(service.run())
    await clock.advance(0)
    await settled(service)
    first = service.latest["home-1"]["load_wh"].issued_ns
    quiet = service.latest["home-2"]["load_wh"].issued_ns
    slot = clock.utc_ns() - clock.utc_ns() % SLOT
    likely = service.latest["home-1"]["load_wh"].values
    for number in range(3):
        await clock.advance(60)
        service._watch("home-1", service.latest["home-1"]["load_wh"], slot + number * SLOT, 3 * likely[number][-1])
    await clock.advance(900)
    await settled(service)
    assert service.latest["home-1"]["load_wh"].issued_ns > first
    assert service.latest["home-2"]["load_wh"].issued_ns == quiet
    assert service.snapshot()["early"] == 1


async def test_a_model_that_drifts_is_fitted_anew_once_a_day(store, messenger, clock, tmp_path):
    now = clock.utc_ns() - clock.utc_ns() % SLOT
    service = ForecastingService(ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo")
    past = days(now - 40 * DAY, 40, 100.0)
    service._learned_of("home-1", past, now)
    name = service._learned["home-1"].name
    for number in range(4 * EVIDENCE):
        service.scores["home-1", "load_wh"].add(number, {name: 1.0 if number < 3 * EVIDENCE else 3.0})
    service._learned_of("home-1", past, now)
    service._learned_of("home-1", past, now)
    assert service.retrained == 1
    assert service._learned["home-1"].refit_soon(now + DAY)


# -- price, flexibility, frequency


def trade(slot, quantity, price):
    return Trade(
        id=f"t{quantity}", area_id="area-1", slot_start_ns=slot, buyer_id="a", seller_id="b", quantity_wh=quantity,
        price_ticks=price, buy_order_id="x", sell_order_id="y",
    )  # fmt: skip


def test_what_is_observed_of_a_quarter_hour():
    live = LiveView()
    live.sites["home-1"] = SiteLive(time_ns=SLOT + 5, flows={"soc_percent": 25.0})
    live.sites["home-1"].recent.extend([(SLOT + 1, {"frequency_hz": 49.95}), (3 * SLOT, {"frequency_hz": 49.0})])
    live.sites["home-2"] = SiteLive(time_ns=5, flows={"soc_percent": 25.0})
    battery = {"kind": "battery", "rated_power_w": 5000.0, "rated_energy_wh": 6400.0}
    found = observed(
        SLOT, area="area-1", trades=[trade(SLOT, 100, 1000), trade(SLOT, 300, 2000)], live=live, nominal_hz=50,
        announcements={name: {"assets": [battery]} for name in ("home-1", "home-2", "home-3")},
    )  # fmt: skip
    assert found["area-1", PRICE] == 1750
    assert found["area-1", FREQUENCY_RISK] == pytest.approx(50)
    assert found["home-1", "flexibility_up_w"] == pytest.approx(0.25 * 6400 * 0.95)
    assert found["home-1", "flexibility_down_w"] == 5000
    assert {owner for owner, _ in found} == {"area-1", "home-1"}, "what is old or unknown is left out, never 0"


def test_prices_may_be_negative_and_gaps_stay_gaps():
    side = SideForecasts()
    for number in range(14 * 96):
        price = -500.0 if number % 96 < 20 else 2000.0
        if number % 7 == 3:
            price = float("nan")
        side.observe(number * SLOT, {("area-1", PRICE): price})
        if number and number % 96 == 0:
            side.issue((number + 1) * SLOT, 96)
    (forecast,) = side.issue(14 * 96 * SLOT, 96)
    assert [row[2] for row in forecast.values[8:18]] == pytest.approx([-500.0] * 10, abs=150)
    assert [row[2] for row in forecast.values[30:90]] == pytest.approx([2000.0] * 60, abs=50)
    assert forecast.levels == LEVELS
    assert PRICE not in side.skill() or side.skill()[PRICE] <= 1


def test_less_than_a_day_is_no_forecast():
    side = SideForecasts()
    for number in range(95):
        side.observe(number * SLOT, {("area-1", FREQUENCY_RISK): 10.0})
    assert side.issue(95 * SLOT, 96) == ()


async def test_side_forecasts_and_skill_are_stored_and_told(store, messenger, clock, tmp_path, background, settled):
    service = ForecastingService(
        ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo",
        observations=lambda slot_ns: {("area-1", PRICE): 1800.0},
    )  # fmt: skip
    background(service.run())
    for _ in range(26):
        await clock.advance(3600)
        await settled(service)
    told = [one for one in messenger.emitted if isinstance(one, ForecastIssued)]
    assert told[-1].forecasts[0].quantity == PRICE
    rows = store.query(Table.FORECAST_DATA, "area-1", 0, 2**62)
    assert rows[-1].id == PRICE
    assert store.query(Table.FORECAST_DATA, "forecasting#skill", 0, 2**62)
