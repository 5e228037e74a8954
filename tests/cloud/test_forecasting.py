"""Forecasts: quantiles of what was metered, never of gaps; learnt on the loop, made in a thread, told to the site."""

import numpy as np
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import ForecastIssued
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.model import LEVELS, SeasonalQuantiles
from wattmesh_cloud.forecasting.service import ForecastingService, median_of, read_history
from wattmesh_cloud.store.base import Table

SLOT = 900 * NS_PER_S
DAY = 96 * SLOT
MODEL = SeasonalQuantiles()


@pytest.fixture
def service(store, messenger, clock, tmp_path):
    return ForecastingService(ForecastingConfig(horizon_s=86_400), store, messenger, clock, tmp_path, "demo")


def teach(service, make_interval, clock, days=3, site="home-1", **changes):
    """Load of the slot's number of the day, PV of half of it, in every quarter hour up to now."""
    now = clock.utc_ns()
    for slot in range(now - days * DAY, now, SLOT):
        number = slot % DAY // SLOT
        reading = make_interval(site, slot, **{"load_wh": 100 + number, "pv_wh": number // 2, **changes})
        service.on_record(site, reading)


# -- the model


def test_a_day_that_repeats_is_predicted_exactly_at_the_median():
    day = np.arange(96.0) + 50
    table = MODEL.predict(np.tile(day, 14), 0, 96, 96)
    assert table.shape == (96, len(LEVELS))
    assert table[:, 2] == pytest.approx(day)


def test_quantiles_are_in_order_not_negative_and_as_wide_as_the_data():
    rng = np.random.default_rng(1)
    history = np.maximum(0, rng.normal(100, 30, 96 * 28))
    table = MODEL.predict(history, 0, 96, 96)
    assert (np.diff(table, axis=1) >= 0).all()
    assert (table >= 0).all()
    spread = float(np.mean(table[:, 4] - table[:, 0]))
    assert 0.7 * 76.9 < spread < 1.1 * 76.9, "10 to 90 % of a normal distribution are 2.56 standard deviations"


def test_a_history_of_gaps_alone_is_unknown_and_never_zero():
    for history in (np.full(200, np.nan), np.empty(0)):
        assert np.isnan(MODEL.predict(history, 0, 8, 96)).all()


def test_a_slot_of_the_day_never_seen_gets_the_spread_of_all_others():
    history = np.full(96, np.nan)
    history[:48] = np.linspace(10, 20, 48)
    table = MODEL.predict(history, 0, 96, 96)
    assert np.isfinite(table).all()
    assert 10 <= table[90, 0] < table[90, 4] <= 20


def test_what_the_last_slots_were_off_is_carried_on_and_fades():
    day = np.full(96, 100.0)
    history = np.tile(day, 10)
    history[-4:] += 40
    medians = MODEL.predict(history, 0, 48, 96)[:, 2]
    assert medians[0] == pytest.approx(120)
    assert 100 < medians[24] < medians[8] < medians[0]


# -- the service


async def test_forecasts_follow_the_metered_days(service, make_interval, clock):
    teach(service, make_interval, clock)
    load, pv = service.forecast("home-1", clock.utc_ns())
    assert (load.quantity, pv.quantity, load.start_ns, len(load.values)) == ("load_wh", "pv_wh", clock.utc_ns(), 96)
    assert median_of(load, clock.utc_ns() + 40 * SLOT) == pytest.approx(140, abs=1)
    assert median_of(pv, clock.utc_ns() + 40 * SLOT) == pytest.approx(20, abs=1)
    assert median_of(load, clock.utc_ns() + DAY) is None
    assert median_of(load, clock.utc_ns() - SLOT) is None


async def test_nothing_known_no_forecast(service, clock, make_interval):
    assert service.forecast("home-9", clock.utc_ns()) == ()
    teach(service, make_interval, clock, complete=False)
    assert service.forecast("home-1", clock.utc_ns()) == (), "incomplete quarter hours teach nothing"
    assert service.forecast("home-9", clock.utc_ns()) == ()


async def test_readings_of_others_of_the_future_and_of_other_slots_teach_nothing(service, clock, make_interval):
    now = clock.utc_ns()
    service.on_record("home-1", make_interval("home-2", now - SLOT))
    service.on_record("home-1", make_interval("home-1", now + SLOT))
    service.on_record("home-1", make_interval("home-1", now - SLOT + 1))
    service.on_record("home-1", make_interval("home-1", now - SLOT, slot_s=300))
    assert service.forecast("home-1", now) == ()


async def test_an_incomplete_quarter_hour_is_a_gap_and_not_its_value(service, clock, make_interval):
    teach(service, make_interval, clock, load_wh=200)
    service.on_record("home-1", make_interval("home-1", clock.utc_ns() - SLOT, load_wh=0, complete=False))
    load, _ = service.forecast("home-1", clock.utc_ns())
    assert load.values[0][2] == pytest.approx(200)


async def test_issued_every_hour_stored_and_told_to_the_site(
    service, clock, make_interval, messenger, store, settled, background
):
    teach(service, make_interval, clock)
    background(service.run())
    await clock.advance(7200)
    await settled(service)
    told = messenger.sent(ForecastIssued)
    assert [str(one.to) for one in told] == ["demo/home-1/gateway"] * 3
    assert str(told[0].source) == "demo/cloud/forecasting"
    assert [one.expires_ns - one.message.forecasts[0].issued_ns for one in told] == [3600 * NS_PER_S] * 3
    rows = store.query(Table.FORECAST_DATA, "home-1", 0, 2**62)
    assert [row.id for row in rows] == ["load_wh", "pv_wh"] * 3
    assert len({row.time_ns for row in rows}) == 3
    assert service.issued == 6


async def test_the_past_is_bounded_and_so_is_the_score(service, clock, make_interval, background):
    teach(service, make_interval, clock, days=40)
    background(service.run())
    await clock.advance(0)
    assert len(service._past["home-1"]) <= 30 * 96 + 1
    slot = clock.utc_ns()
    for _ in range(2500):
        service.on_record("home-1", make_interval("home-1", slot, load_wh=150))
    assert len(service._errors["load_wh"]) == 2000
    assert service.snapshot()["mean_error_wh"]["load_wh"] == pytest.approx(50, abs=1)


async def test_the_thread_computes_on_a_copy_while_records_arrive(
    service, clock, make_interval, background, monkeypatch
):
    teach(service, make_interval, clock)
    real, seen = service._forecasts_of, []

    def while_records_arrive(site, past, now_ns):
        count = len(past)
        for slot in past:  # raises if the loop's own dictionary is what the thread iterates
            if slot % DAY == 0:
                service.on_record(site, make_interval(site, slot - 10 * DAY))
        seen.append((count, len(past), len(service._past[site])))
        return real(site, past, now_ns)

    monkeypatch.setattr(service, "_forecasts_of", while_records_arrive)
    background(service.run())
    await clock.advance(0)
    assert seen == [(288, 288, 291)]
    assert service.issued == 2


async def test_a_site_that_does_not_answer_costs_nobody_else(
    service, clock, make_interval, messenger, background, settled
):
    messenger.silent = {"home-1"}
    for site in ("home-1", "home-2"):
        teach(service, make_interval, clock, site=site)
    background(service.run())
    await clock.advance(3600)
    await settled(service)
    assert {one.to.unit for one in messenger.sent(ForecastIssued)} == {"home-1", "home-2"}
    assert service.issued == 8


async def test_after_a_restart_the_past_comes_from_the_store(service, clock, make_interval, store, background):
    from wattmesh_cloud.ingest import items_of

    for slot in range(clock.utc_ns() - DAY, clock.utc_ns(), SLOT):
        store.put(*_row(items_of("home-1", make_interval("home-1", slot, load_wh=321))))
    background(service.run())
    await clock.advance(0)
    assert service.latest["home-1"]["load_wh"].values[5][2] == pytest.approx(321)


def _row(found):
    table, item = found[0]  # the consumer's row; the producer's is beside it
    return table, [item]


# -- history files


def test_a_history_file(tmp_path):
    path = tmp_path / "home-1.csv"
    path.write_text("slot_start_utc,load_wh,pv_wh\n2023-11-15T00:15:00+00:00,100,0.5\n")
    assert read_history(path) == {(1_700_006_400 + 900) * NS_PER_S: (100.0, 0.5)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("time,load\n", r"home-1\.csv:1: the first line has to be slot_start_utc,load_wh,pv_wh"),
        ("slot_start_utc,load_wh,pv_wh\nyesterday,1,2\n", r"home-1\.csv:2: not a time and two numbers: yesterday,1,2"),
        ("slot_start_utc,load_wh,pv_wh\n2023-11-15T00:15:00+00:00,1\n", r"home-1\.csv:2: not a time"),
        ("slot_start_utc,load_wh,pv_wh\n2023-11-15T00:15:00,1,2\n", r"home-1\.csv:2: a quarter hour in UTC"),
        ("slot_start_utc,load_wh,pv_wh\n2023-11-15T00:16:00+00:00,1,2\n", r"home-1\.csv:2: a quarter hour in UTC"),
        ("slot_start_utc,load_wh,pv_wh\n2023-11-15T00:15:00+00:00,-1,2\n", r"home-1\.csv:2: .*energies from 0 on"),
        ("slot_start_utc,load_wh,pv_wh\n2023-11-15T00:15:00+00:00,nan,2\n", r"home-1\.csv:2: .*energies from 0 on"),
    ],
)
def test_a_bad_history_file_names_the_line(tmp_path, text, wanted):
    path = tmp_path / "home-1.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=wanted):
        read_history(path)
