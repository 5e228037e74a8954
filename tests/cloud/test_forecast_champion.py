"""Who is in charge of a forecast, when a change is worth an alarm, and hours as quarter hours."""

from zoneinfo import ZoneInfo

import numpy as np
import pytest
from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import ForecastIssued
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.learned import HOUR_NS, LearnedSite
from wattmesh_cloud.forecasting.model import LEVELS
from wattmesh_cloud.forecasting.service import ForecastingService, material_change, pinball_loss

SLOT = 900 * NS_PER_S
DAY = 96 * SLOT


def past(end_ns, days, seed=1):
    """Quarter hours with a daily shape, weekends that differ, and noise of one level a day."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0.7, 1.3, days + 1)
    result = {}
    for slot in range(end_ns - days * DAY, end_ns, SLOT):
        number, day = slot % DAY // SLOT, (slot - (end_ns - days * DAY)) // DAY
        load = (150 + 100 * (60 <= number < 88)) * levels[day] + rng.normal(0, 5)
        result[slot] = (
            max(0.0, load),
            max(0.0, 400 * np.sin((number - 24) / 48 * np.pi)) if 24 <= number < 72 else 0.0,
        )
    return result


@pytest.fixture
def service(store, messenger, clock, tmp_path):
    return ForecastingService(ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo")


def forecast(model, start, value, quantity="load_wh", width=0.1, slots=96):
    row = tuple(value * (1 + width * (level - 0.5)) for level in LEVELS)
    return Forecast(
        site_id="home-1", quantity=quantity, issued_ns=start, start_ns=start, slot_s=900, levels=LEVELS,
        values=(row,) * slots, model=model,
    )  # fmt: skip


def score(service, clock, make_interval, good, bad, slots):
    """Metered load of 100 Wh, while one model says 100 and the other 160."""
    start = clock.utc_ns() - slots * SLOT
    for slot in range(start - DAY, start, SLOT):
        service._past["home-1"][slot] = (130.0, 0.0)
    rows = {good: forecast(good, start, 100, slots=slots), bad: forecast(bad, start, 160, slots=slots)}
    service._candidates["home-1"]["load_wh"] = rows
    for slot in range(start, start + slots * SLOT, SLOT):
        service.on_record("home-1", make_interval("home-1", slot, load_wh=100))


LEARNED, SEASONAL = "ridge-bank-hourly", "seasonal-quantiles-28d"


async def test_the_better_model_takes_charge_after_a_day_and_loses_it_again(service, clock, make_interval):
    score(service, clock, make_interval, LEARNED, SEASONAL, 95)
    assert service.in_charge == {}, "less than a day of evidence"
    score(service, clock, make_interval, LEARNED, SEASONAL, 96)
    assert service.in_charge == {("home-1", "load_wh"): LEARNED}
    skill = service.snapshot()["skill"]
    assert skill[f"load_wh {LEARNED}"] > 0 > skill[f"load_wh {SEASONAL}"]
    score(service, clock, make_interval, SEASONAL, LEARNED, 700)
    assert service.in_charge == {("home-1", "load_wh"): SEASONAL}


async def test_what_is_issued_is_of_the_model_in_charge(service, clock, messenger, background, settled):
    service._past["home-1"].update(past(clock.utc_ns(), 50))
    service.in_charge["home-1", "load_wh"] = LEARNED
    background(service.run())
    await clock.advance(0)
    await settled(service)
    (told,) = messenger.sent(ForecastIssued)
    assert [one.model for one in told.message.forecasts] == [LEARNED, SEASONAL]
    assert all(len(one.values) == 96 for one in told.message.forecasts)


async def test_a_short_past_leaves_the_seasonal_model_alone(service, clock, messenger, background, settled):
    service._past["home-1"].update(past(clock.utc_ns(), 10))
    service.in_charge["home-1", "load_wh"] = LEARNED
    background(service.run())
    await clock.advance(0)
    await settled(service)
    (told,) = messenger.sent(ForecastIssued)
    assert {one.model for one in told.message.forecasts} == {SEASONAL}


async def test_a_material_change_is_told_once(service, clock, messenger):
    service.latest["home-1"] = {"load_wh": forecast(SEASONAL, clock.utc_ns(), 100)}
    await service._alert("home-1", (forecast(SEASONAL, clock.utc_ns() + SLOT, 105),), clock.utc_ns())
    assert messenger.emitted == []
    await service._alert("home-1", (forecast(SEASONAL, clock.utc_ns() + SLOT, 160),), clock.utc_ns())
    (alarm,) = messenger.emitted
    assert isinstance(alarm, Alarm)
    assert "+60%" in alarm.text
    assert service.snapshot()["alerts"] == [alarm.text]


def test_a_change_inside_what_was_likely_is_not_material():
    wide = forecast(SEASONAL, 0, 100, width=3.0)
    assert material_change(wide, forecast(SEASONAL, 0, 160), 0.25) is None
    assert material_change(forecast(SEASONAL, 0, 100), forecast(SEASONAL, 0, 60), 0.25) == pytest.approx(-0.4)
    assert material_change(forecast(SEASONAL, 0, 0), forecast(SEASONAL, 0, 60), 0.25) is None
    assert material_change(forecast(SEASONAL, 0, 100, slots=8), forecast(SEASONAL, 0, 160), 0.25) is None


def test_pinball():
    assert pinball_loss(10, [0, 10, 20], [0.1, 0.5, 0.9]) == pytest.approx((1 + 0 + 1) / 3)


def test_quarters_keep_the_hour_and_wait_for_a_late_reading(midnight_ns):
    site = LearnedSite(ZoneInfo("Europe/Berlin"), 24)
    known = past(midnight_ns, 50)
    late = known.pop(midnight_ns - SLOT)
    site.learn(known, midnight_ns)
    before = site.predict(midnight_ns, 96)
    assert site._model.known == 50 * 24 - 1, "the last hour is still waited for"
    known[midnight_ns - SLOT] = late
    site.learn(known, midnight_ns + SLOT)
    after = site.predict(midnight_ns, 96)
    assert site._model.known == 50 * 24
    for tables in (before, after):
        assert tables["load_wh"].shape == (96, len(LEVELS))
        assert tables["pv_wh"][48, 2] == pytest.approx(400, rel=0.1)
        assert tables["load_wh"][:, 2].sum() == pytest.approx(96 * 150 + 28 * 100, rel=0.25)
    assert site.predict(midnight_ns - HOUR_NS, 4) is None


def test_what_comes_after_half_an_hour_is_a_gap_first(midnight_ns):
    site = LearnedSite(ZoneInfo("UTC"), 24)
    known = past(midnight_ns, 50)
    late = known.pop(midnight_ns - SLOT)
    site.learn(known, midnight_ns + 2 * SLOT)
    site.predict(midnight_ns + 2 * SLOT, 96)
    assert site.reasons["load_wh"] == ("gap: 1 of 48 h",)
    known[midnight_ns - SLOT] = late
    site.learn(known, midnight_ns + 3 * SLOT)
    site.predict(midnight_ns + 3 * SLOT, 96)
    assert site.reasons["load_wh"] == ()
