"""Baselines against examples that were computed by hand."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_cloud.grid.baseline import (
    Method,
    Rules,
    behind_the_meter,
    control_group,
    days_before,
    errors,
    high_of_days,
)

SLOT = 900 * 10**9
HOUR = 4 * SLOT
DAY = 96 * SLOT
FRIDAY = round(datetime(2026, 6, 26, 18, tzinfo=UTC).timestamp()) * 10**9  # 18:00, a working day
PLAIN = Rules(adjust_hours=0)


def flat(days, watts, *, around=range(-16, 8)):
    """Readings of the same watts in the hours around 18:00, some days before."""
    return {FRIDAY + at * SLOT - back * DAY: watts(back) / 4 for back in days for at in around}


WORKING = [1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 15]  # days before Friday 26 June that are no weekend


def test_the_mean_of_the_five_highest_of_the_last_ten_working_days():
    # 100, 200, … 1000 W on the ten working days before, the eleventh is not looked at; weekends are not, either
    power = {back: 100.0 * (at + 1) for at, back in enumerate(WORKING)}
    readings = flat(WORKING, lambda back: power[back]) | flat([5, 6, 12, 13], lambda back: 9999.0)
    found = high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN)
    assert found.power_w == (800.0,) * 4  # 600, 700, 800, 900, 1000
    assert found.method is Method.HIGH_5_OF_10
    assert found.days == tuple(sorted(str(date(2026, 6, 26 - back)) for back in (8, 9, 10, 11, 14)))


def test_days_of_events_and_days_with_a_gap_are_passed_over():
    readings = flat(WORKING, lambda back: 1000.0 if back == 1 else 500.0)
    assert high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN).mean_w == 600.0
    assert high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN, excluded={date(2026, 6, 25)}).mean_w == 500.0
    del readings[FRIDAY - DAY]
    assert high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN).mean_w == 500.0


def test_at_weekends_three_of_five_weekend_days():
    saturday = FRIDAY + DAY
    readings = {}
    for at, back in enumerate([6, 7, 13, 14, 20, 21]):  # Sunday, Saturday, …
        readings |= {saturday + slot * SLOT - back * DAY: 25.0 * (at + 1) for slot in range(4)}
    found = high_of_days(readings, saturday, saturday + HOUR, UTC, rules=PLAIN)
    assert found.power_w == (400.0,) * 4  # 300, 400, 500 W of the five; the sixth is not looked at


def test_four_days_are_too_few():
    assert high_of_days(flat(WORKING[:4], lambda back: 500.0), FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN) is None
    assert high_of_days(flat(WORKING[:5], lambda back: 500.0), FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN) is not None


def test_the_day_itself_moves_the_baseline_by_its_difference_in_the_hours_before():
    readings = flat(WORKING, lambda back: 1000.0) | flat([0], lambda back: 1300.0, around=range(-16, -4))
    found = high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC)
    assert found.adjustment_w == 300.0
    assert found.power_w == (1300.0,) * 4


def test_the_adjustment_is_capped_and_does_not_look_at_the_hour_before_the_event():
    readings = flat(WORKING, lambda back: 1000.0) | flat([0], lambda back: 5000.0, around=range(-16, -4))
    assert high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC).adjustment_w == 0.4 * 5000
    readings = flat(WORKING, lambda back: 1000.0) | flat([0], lambda back: 100.0, around=range(-16, -4))
    assert high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC).adjustment_w == -0.4 * 1000
    gamed = (
        readings | flat([0], lambda back: 1000.0, around=range(-16, -4)) | flat([0], lambda b: 9e4, around=range(-4, 0))
    )
    assert high_of_days(gamed, FRIDAY, FRIDAY + HOUR, UTC).adjustment_w == 0.0


def test_where_clocks_change_the_same_time_on_the_wall_is_compared():
    berlin = ZoneInfo("Europe/Berlin")
    monday = round(datetime(2026, 3, 30, 18, tzinfo=berlin).timestamp()) * 10**9  # the clocks changed on the 29th
    readings = {}
    for back in range(1, 20):
        evening = datetime(2026, 3, 30, 18, tzinfo=berlin).replace(tzinfo=None)
        then = datetime.fromordinal(evening.toordinal() - back).replace(hour=18, tzinfo=berlin)
        start = round(then.timestamp()) * 10**9
        readings |= {start + at * SLOT: 250.0 for at in range(4)}
    assert high_of_days(readings, monday, monday + HOUR, berlin, rules=PLAIN).power_w == (1000.0,) * 4


def test_charging_a_battery_before_an_event_moves_nothing_where_storage_is_metered_apart():
    demand = flat(WORKING, lambda back: 1000.0) | flat([0], lambda back: 1000.0, around=range(-16, -4))
    battery = flat(WORKING, lambda back: -200.0) | flat([0], lambda back: 5000.0, around=range(-16, 0))
    found = behind_the_meter(demand, battery, FRIDAY, FRIDAY + HOUR, UTC)
    assert found.power_w == (800.0,) * 4
    net = {slot: demand.get(slot, 0) + battery[slot] for slot in battery}
    assert high_of_days(net, FRIDAY, FRIDAY + HOUR, UTC).mean_w > 1000.0


def test_difference_in_differences():
    slots = [FRIDAY - back * DAY + at * SLOT for back in (0, 1, 2) for at in range(4)]
    treated = {"a": dict.fromkeys(slots, 250.0), "b": dict.fromkeys(slots, 750.0)}
    controls = {"c": {slot: 400.0 if slot >= FRIDAY else 300.0 for slot in slots}}
    reference = [days_before(back, UTC) for back in (1, 2)]
    # usually 500 Wh each; the control rose by 100 Wh: 600 Wh each, two sites, four quarters an hour
    assert control_group(treated, controls, FRIDAY, FRIDAY + HOUR, reference) == (4800.0,) * 4
    assert control_group(treated, {}, FRIDAY, FRIDAY + HOUR, reference) is None


def test_errors():
    off = errors([110.0, 90.0], [100.0, 100.0])
    assert (off.bias, off.cvrmse) == (0.0, pytest.approx(0.1))
    assert errors([120.0], [100.0]).bias == pytest.approx(0.2)
    assert errors([1.0], [0.0]) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-5000, 5000), min_size=5, max_size=11))
def test_a_baseline_is_between_the_highest_and_the_mean_of_the_days(watts):
    days = WORKING[: len(watts)]
    readings = flat(days, lambda back: watts[days.index(back)])
    found = high_of_days(readings, FRIDAY, FRIDAY + HOUR, UTC, rules=PLAIN)
    looked_at = watts[:10]
    assert sum(looked_at) / len(looked_at) - 1e-6 <= found.mean_w <= max(looked_at) + 1e-6
