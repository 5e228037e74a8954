"""The cloud's hourly forecaster: nothing of the future in it, and wider instead of wrong when the past has holes."""

import numpy as np
import pytest
from wattmesh_cloud.forecasting.hourly import WARM_UP_DAYS, HourlyForecaster
from wattmesh_cloud.forecasting.regression import fit_bank, weighted_quantiles

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
DAYS = 56


def year(days=DAYS, seed=1):
    rng = np.random.default_rng(seed)
    hour = np.arange(days * 24) % 24
    weekday = np.arange(days * 24) // 24 % 7
    load = 1 + np.sin((hour - 12) / 24 * 2 * np.pi) ** 2 + 0.3 * (weekday >= 5) + rng.gamma(2, 0.1, len(hour))
    sun = np.maximum(0, np.cos((hour - 12) / 12 * np.pi))
    pv = 3 * sun * np.repeat(rng.uniform(0.3, 1, days), 24)
    return load, pv, hour, weekday


def forecaster(load, pv, hour, weekday, count, leads=24, every=11):
    made = HourlyForecaster(LEVELS, leads, replay_every_h=every)
    made.add(load[:count], pv[:count], hour[:count], weekday[:count])
    return made


def issue(made, hour, weekday):
    now = made.known
    steps = now + np.arange(made.leads)
    return made.issue(steps % 24, steps // 24 % 7)


def test_perturbing_the_future_changes_nothing_that_was_issued_before():
    """Two runs that differ only after hour ``cut`` issue the same up to it, and differ afterwards."""
    load, pv, hour, weekday = year()
    cut, end = 40 * 24 + 5, 40 * 24 + 40
    other_load, other_pv = load.copy(), pv.copy()
    other_load[cut:] *= 3
    other_pv[cut:] = 0.0
    runs = []
    for one, two in ((load, pv), (other_load, other_pv)):
        made, issued = forecaster(one, two, hour, weekday, cut - 20), []
        for now in range(cut - 20, end):
            issued.append((now, {name: q.values for name, q in issue(made, hour, weekday).items()}))
            made.add(one[now : now + 1], two[now : now + 1], hour[now : now + 1], weekday[now : now + 1])
        runs.append(issued)
    for (now, first), (_, second) in zip(*runs, strict=True):
        same = all(np.array_equal(first[name], second[name]) for name in first)
        assert same == (now <= cut), now


def test_hindcasts_at_a_start_see_no_more_than_a_forecaster_that_ran_all_along():
    load, pv, hour, weekday = year(45)
    start = WARM_UP_DAYS * 24
    running = forecaster(load, pv, hour, weekday, start, every=1)
    for now in range(start, 40 * 24):
        issue(running, hour, weekday)
        running.add(load[now : now + 1], pv[now : now + 1], hour[now : now + 1], weekday[now : now + 1])
    restarted = forecaster(load, pv, hour, weekday, 40 * 24, every=1)
    first, second = issue(running, hour, weekday), issue(restarted, hour, weekday)
    for name, quantiles in first.items():
        assert quantiles.values == pytest.approx(second[name].values, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("leads", [24, 48])
def test_quantiles_are_in_order_and_pv_is_dark_at_night(leads):
    load, pv, hour, weekday = year()
    issued = issue(forecaster(load, pv, hour, weekday, 50 * 24, leads), hour, weekday)
    for name, quantiles in issued.items():
        assert quantiles.values.shape == (leads, len(LEVELS))
        assert (np.diff(quantiles.values, axis=1) >= 0).all(), name
    assert not issued["pv"].values[[0, 1, 2, 3, 22, 23]].any()
    assert issued["pv"].values[12, 2] > 0.5
    assert issued["load"].reasons == ()


def test_before_the_warm_up_there_is_no_forecast():
    load, pv, hour, weekday = year()
    assert issue(forecaster(load, pv, hour, weekday, WARM_UP_DAYS * 24 - 1), hour, weekday) is None


def width(issued, name):
    return float(np.mean(issued[name].values[:, -1] - issued[name].values[:, 0]))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda load: load.__setitem__(slice(-30, None), np.nan), "gap: 30 of 48 h"),
        (lambda load: load.__setitem__(slice(-30, None), 1.2345), "frozen meter: 24 of 48 h"),
        (lambda load: load.__setitem__(-7, 900.0), "spike: 1 of 48 h"),
        (lambda load: load.__setitem__(-7, -3.0), "gap: 1 of 48 h"),
    ],
)
def test_bad_readings_widen_the_forecast_and_say_why(spoil, why):
    load, pv, hour, weekday = year()
    count = 50 * 24
    good = issue(forecaster(load, pv, hour, weekday, count), hour, weekday)
    spoiled = load[:count].copy()
    spoil(spoiled)
    bad = issue(forecaster(spoiled, pv, hour, weekday, count), hour, weekday)
    assert bad["load"].reasons == (why,)
    assert why in bad["net"].reasons
    assert bad["pv"].reasons == ()
    assert width(bad, "load") > width(good, "load")
    assert np.isfinite(bad["load"].values).all()
    assert (bad["load"].values[:, 2] > 0.5).all(), "a gap is never taken for nothing consumed"


def test_a_home_without_pv_for_months_gets_none_and_one_without_load_stays_finite():
    load, pv, hour, weekday = year()
    issued = issue(forecaster(load, np.zeros_like(pv), hour, weekday, 50 * 24), hour, weekday)
    assert not issued["pv"].values.any()
    issued = issue(forecaster(np.zeros_like(load), pv, hour, weekday, 50 * 24), hour, weekday)
    assert np.isfinite(issued["load"].values).all()
    assert issued["load"].values.max() < 0.1


@pytest.mark.parametrize("quantity", ["load", "pv"])
def test_a_quantity_without_a_reading_for_weeks_is_left_out_and_never_zero(quantity):
    load, pv, hour, weekday = year()
    lines = {"load": load.copy(), "pv": pv.copy()}
    lines[quantity][: 50 * 24] = np.nan
    never = issue(forecaster(lines["load"], lines["pv"], hour, weekday, 50 * 24, every=61), hour, weekday)
    other = "pv" if quantity == "load" else "load"
    assert set(never) == {other}, "without one of them there is no net either"
    lines = {"load": load.copy(), "pv": pv.copy()}
    lines[quantity][28 * 24 : 50 * 24] = np.nan
    made = forecaster(lines["load"], lines["pv"], hour, weekday, 50 * 24, every=61)
    assert set(issue(made, hour, weekday)) == {other}
    assert made.unknown == {quantity: "unknown: 0 days of readings in 21"}


def test_after_a_gap_of_two_weeks_what_comes_is_as_it_was_and_wide():
    load, pv, hour, weekday = year()
    gap = pv.copy()
    gap[34 * 24 : 48 * 24] = np.nan
    good = issue(forecaster(load, pv, hour, weekday, 48 * 24, every=61), hour, weekday)
    bad = issue(forecaster(load, gap, hour, weekday, 48 * 24, every=61), hour, weekday)
    noon = bad["pv"].values[12]
    assert noon[2] > 0.4 * good["pv"].values[12][2], "a plant that is not seen is not dark"
    assert width(bad, "pv") > width(good, "pv")
    assert bad["pv"].reasons == ("gap: 48 of 48 h",)


def test_clocks_that_change_leave_hours_of_the_wall_in_place():
    """A consumer that follows the clock on the wall: an hour missing in spring, one twice in autumn."""
    for removed, doubled in ((True, False), (False, True)):
        load, pv, hour, weekday = year()
        load = 0.3 * load + 2.0 * (hour == 19)
        at = 35 * 24 + 2
        order = np.arange(len(hour))
        order = np.delete(order, at) if removed else np.insert(order, at, order[at])
        assert doubled != removed
        load, pv, hour, weekday = load[order], pv[order], hour[order], weekday[order]
        made = forecaster(load, pv, hour, weekday, 52 * 24, every=61)
        coming = 52 * 24 + np.arange(24)
        issued = made.issue(hour[coming], weekday[coming])
        assert int(np.argmax(issued["load"].values[:, 2])) == int(np.flatnonzero(hour[coming] == 19)[0])


def test_a_day_of_23_and_of_25_hours_is_only_a_calendar():
    load, pv, hour, weekday = year()
    hour, weekday = hour.copy(), weekday.copy()
    hour[35 * 24 :] = (hour[35 * 24 :] + 1) % 24
    issued = issue(forecaster(load, pv, hour, weekday, 50 * 24), hour, weekday)
    assert all(np.isfinite(one.values).all() for one in issued.values())


def test_a_bank_finds_lines_and_ignores_what_is_missing():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(4000, 2))
    hours = rng.integers(0, 24, 4000)
    target = features @ np.array([2.0, -1.0]) + 5
    target[:100] = np.nan
    bank = fit_bank(features, target, np.ones(4000), hours, bandwidth_h=1.0, penalty=1e-6)
    assert bank.predict(features, hours)[200:] == pytest.approx(target[200:], abs=0.5)
    nothing = fit_bank(features, np.full(4000, np.nan), np.ones(4000), hours, bandwidth_h=1.0, penalty=0.1)
    assert not nothing.predict(features, hours).any()


def test_weighted_quantiles():
    assert weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.ones(3), [0.5])[0] == pytest.approx(2)
    assert np.isnan(weighted_quantiles(np.empty(0), np.empty(0), [0.5])[0])


def test_a_late_reading_fills_its_gap_and_nothing_else():
    load, pv, hour, weekday = year()
    spoiled = load[: 50 * 24].copy()
    spoiled[-5] = np.nan
    made = forecaster(spoiled, pv, hour, weekday, 50 * 24)
    made.amend(50 * 24 - 5, load[50 * 24 - 5], 0.0)
    made.amend(50 * 24 - 4, 99.0, 99.0)
    issued = issue(made, hour, weekday)
    good = issue(forecaster(load, pv, hour, weekday, 50 * 24), hour, weekday)
    assert issued["load"].reasons == ()
    assert issued["load"].values == pytest.approx(good["load"].values)
