"""What a site offers in an event, and what it keeps for one that it has promised."""

from dataclasses import replace
from datetime import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseState, FlexibilitySource
from wattmesh_a2a.tariff import Tariff
from wattmesh_edge.agents.base import Outlook
from wattmesh_edge.agents.flexible import FlexibleAgent, Need
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.agents.response import RETURN_NS, called, lowest_level_w, offer_of, promised_wh

SLOT = 900 * 10**9
HOUR = 4 * SLOT
NOON = 19_676 * 24 * HOUR + 12 * HOUR
TARIFF = Tariff(default_price=0.25, feed_in_price=0.05)
STORAGE = Storage(energy_wh=10_000, power_w=5000, reserve_wh=1000, efficiency=1.0)


@pytest.fixture
def outlook():
    """2 kW around the clock."""
    made = Outlook(tariff=TARIFF, storage=STORAGE, trade=False, export_limit_w=1000.0)
    made.profile = dict.fromkeys(range(96), (500.0, 0.0))
    return made


def event(target=-9000, *, baseline=None, price=4000):
    return DemandResponseEvent(
        id="e", start_ns=NOON, end_ns=NOON + 2 * HOUR, target_w=target, price_ticks=price,
        state=DemandResponseState.ANNOUNCED, reason="", baseline_w=baseline,
    )  # fmt: skip


def dispatch(power=-1500, baseline=2000):
    return DemandResponseDispatch(
        event_id="e",
        site_id="s",
        start_ns=NOON,
        end_ns=NOON + 2 * HOUR,
        power_w=power,
        baseline_w=baseline,
        price_ticks=1,
    )


def test_four_fifths_of_the_charge_over_the_window(outlook):
    found = offer_of(outlook, "s", event(), 4000.0, 0.0)
    assert found.offered_w == -1200  # (4000 - 1000) Wh · 0.8 over 2 h
    assert (found.baseline_w, found.parts[0].source) == (2000, FlexibilitySource.BATTERY)
    assert offer_of(outlook, "s", event(-500), 4000.0, 0.0).offered_w == -500, "no more than is asked"


def test_against_what_it_will_be_measured_by(outlook):
    assert offer_of(outlook, "s", event(baseline=2600), 4000.0, 0.0).offered_w == -1800
    assert offer_of(outlook, "s", event(baseline=500), 4000.0, 0.0).offered_w == 0, (
        "its baseline is too low to get below"
    )


def test_no_farther_than_the_connection_exports_and_the_battery_gives(outlook):
    assert offer_of(outlook, "s", event(), 10_000.0, 0.0).offered_w == -3000  # 2000 to -1000
    outlook.export_limit_w = 1e6
    assert offer_of(outlook, "s", event(), 10_000.0, 0.0).offered_w == -3600


def test_loads_that_wait_are_a_part_of_their_own(outlook):
    found = offer_of(outlook, "s", event(), 4000.0, 1000.0)
    assert {part.source: part.power_w for part in found.parts} == {
        FlexibilitySource.EV: -1000,
        FlexibilitySource.BATTERY: -1200,
    }
    assert found.offered_w == -2200
    ev = next(part for part in found.parts if part.source is FlexibilitySource.EV)
    assert ev.rebound_wh == 2000
    assert ev.price_ticks < next(part for part in found.parts if part is not ev).price_ticks


@pytest.mark.parametrize("stored", [None, 500.0], ids=["unknown", "at its reserve"])
def test_nothing_to_give_is_no_offer(outlook, stored):
    assert offer_of(outlook, "s", event(), stored, 0.0).offered_w == 0


def test_a_site_that_knows_nothing_of_its_load_offers_nothing(outlook):
    outlook.profile = {}
    assert offer_of(outlook, "s", event(), 9000.0, 0.0).offered_w == 0


def test_more_import_is_what_the_battery_can_take(outlook):
    assert offer_of(outlook, "s", event(9000), 4000.0, 0.0).offered_w == 2400  # 6000 Wh · 0.8 over 2 h


def test_a_promise_keeps_its_energy_until_its_time(outlook):
    outlook.dispatches["e"] = dispatch()
    assert promised_wh(outlook, NOON - HOUR) == pytest.approx(1500 * 2 / 0.8)
    outlook.promised_wh = promised_wh(outlook, NOON + HOUR)
    assert outlook.promised_wh == pytest.approx(1500 / 0.8)
    assert outlook.reserved().reserve_wh == pytest.approx(1000 + 1500 / 0.8)
    assert promised_wh(outlook, NOON + 2 * HOUR) == 0
    assert [called(outlook, NOON + at) for at in (-1, 0, 2 * HOUR - 1, 2 * HOUR + RETURN_NS)] == [
        False,
        True,
        True,
        False,
    ]


def test_loads_come_back_each_at_its_own_time(outlook):
    back = []
    for number in range(200):
        outlook.dispatches["e"] = replace(dispatch(), site_id=f"s{number}")
        minute = 60 * 10**9
        waits = [at for at in range(46) if called(outlook, NOON + 2 * HOUR + at * minute)]
        assert waits == list(range(len(waits))), "without a pause, and then for good"
        back.append(len(waits))
    quarters = [sum(lower <= one < lower + 15 for one in back) for lower in (0, 15, 30)]
    assert all(one > 40 for one in quarters), "spread over three quarter hours"


def test_a_promise_of_more_import_keeps_nothing(outlook):
    outlook.dispatches["e"] = dispatch(power=1500)
    assert promised_wh(outlook, NOON) == 0
    assert not called(outlook, NOON)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-3000, 9000), min_size=1, max_size=16),
    st.floats(0, 8000),
    st.floats(0, 20_000),
    st.floats(-5000, 0),
)
def test_the_level_can_be_held_and_no_lower_one(rests, power, energy, least):
    level = lowest_level_w(rests, 0.25, power, energy, least)

    def holds(at):
        needed = sum(max(0.0, rest - at) for rest in rests) * 0.25
        return needed <= energy + 1e-3 and max(rests) - at <= power + 1e-6

    assert holds(level)
    if level > least + 5 and level > max(rests) - power + 5:
        assert not holds(level - 5)


def flexible(energy=8000.0):
    need = Need(device="car", energy_wh=energy, power_w=4000.0, begins=time(10), ends=time(18))
    return FlexibleAgent((need,), TARIFF, TARIFF.zone(), period_s=60)


def test_a_car_waits_only_where_it_is_ready_in_time_without():
    assert flexible().waits_w(NOON, NOON + 2 * HOUR, NOON) == 4000.0
    assert flexible().waits_w(NOON + 2 * HOUR, NOON + 4 * HOUR, NOON) == 0.0, "it would be full by then"
    assert flexible(energy=20_000).waits_w(NOON, NOON + 2 * HOUR, NOON) == 0.0, "it has no time to spare"
    assert flexible().waits_w(NOON - 8 * HOUR, NOON - 6 * HOUR, NOON - 9 * HOUR) == 0.0, "it is not there"
