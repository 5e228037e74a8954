"""The cloud's forecasts in a backtest: only from what is over, and in time."""

from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from wattmesh_backtest.data import SLOT_NS
from wattmesh_backtest.forecasts import LearnedForecaster

DAYS = 37
START = 19_676 * 96 * SLOT_NS


def energy(slot):
    hour = slot / 4 % 24
    return (400.0 if 18 <= hour < 22 else 100.0), 600.0 * max(0.0, 1 - abs(hour - 12) / 5)


@pytest.fixture(scope="module")
def issued():
    made = LearnedForecaster(ZoneInfo("UTC"), issue_s=21_600)
    found = {}
    for number in range(DAYS * 96):
        slot = START + number * SLOT_NS
        forecasts = made.issue("home", slot)
        if forecasts is not None:
            found[slot] = forecasts
        made.learn(slot, *energy(number))
    return found


def test_they_come_every_six_hours_once_enough_is_known(issued):
    times = sorted(issued)
    assert times, "five weeks are enough"
    assert times[0] >= START + 28 * 96 * SLOT_NS
    assert {later - earlier for earlier, later in pairwise(times)} == {24 * SLOT_NS}


def test_they_tell_the_coming_day_as_it_always_was(issued):
    now = max(issued)
    load, pv = issued[now]
    assert (load.quantity, pv.quantity, load.start_ns, load.issued_ns) == ("load_wh", "pv_wh", now, now)
    assert len(load.values) == 120
    first = (now - START) // SLOT_NS
    middle = len(load.levels) // 2
    for forecast, place in ((load, 0), (pv, 1)):
        told = [row[middle] for row in forecast.values[:96]]
        truth = [energy(first + at)[place] for at in range(96)]
        off = sum(abs(one - other) for one, other in zip(told, truth, strict=True)) / sum(truth)
        assert off < 0.2
