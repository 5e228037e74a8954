"""A running event: what is missing is asked of whoever has more, what is too much is given back."""

from datetime import UTC

import pytest
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseOffer, DemandResponseState
from wattmesh_cloud.grid.baseline import Baseline, Method
from wattmesh_cloud.grid.config import LimitsConfig
from wattmesh_cloud.grid.limits import Calls
from wattmesh_cloud.grid.records import EventPlan, Running, dump, restored
from wattmesh_cloud.grid.tracking import conclude, look, needs, spare

HOUR = 3_600_000_000_000
DAY = 24 * HOUR
OFFERED = {"ann": 2000, "bob": 2000, "cem": 1000}
TAKEN = {"ann": 1500, "bob": 1000}


@pytest.fixture
def running():
    event = DemandResponseEvent(
        id="e",
        start_ns=HOUR,
        end_ns=3 * HOUR,
        target_w=-2500,
        price_ticks=3000,
        state=DemandResponseState.DISPATCHED,
        reason="",
    )
    plan = EventPlan(start_ns=HOUR, end_ns=3 * HOUR, target_w=-2500, price_ticks=3000, reason="")
    made = Running(event=event, plan=plan, called=True, required_w=2500)
    for site, power in OFFERED.items():
        made.offers[site] = DemandResponseOffer(
            event_id="e", site_id=site, offered_w=-power, price_ticks=1000, baseline_w=3000
        )
    for site, power in TAKEN.items():
        made.baselines[site] = Baseline(power_w=(3000.0,) * 8, method=Method.OFFERED)
        made.dispatched[site] = DemandResponseDispatch(
            event_id="e",
            site_id=site,
            start_ns=HOUR,
            end_ns=3 * HOUR,
            power_w=-power,
            baseline_w=3000,
            price_ticks=3000,
        )
        made.levels[site] = [(HOUR, power)]
    return made


def seen(running, minutes=5, **grid_w):
    for _ in range(minutes):
        look(running, grid_w, 60)
    conclude(running, 60 * minutes)


def test_what_is_delivered_is_the_mean_since_the_last_time(running):
    look(running, {"ann": 1000.0}, 60)
    look(running, {"ann": 2000.0}, 180)
    conclude(running, 240)
    assert running.deliveries["ann"].delivered_w == 1250.0
    assert running.deliveries["bob"].delivered_w is None


def test_within_half_of_the_tolerance_nothing_is_done(running):
    seen(running, ann=1500.0, bob=2100.0)
    assert needs(running, 3600, 0.1) == 0.0


def test_who_is_not_measured_is_taken_at_its_word(running):
    seen(running)
    assert running.missed_wh == 0
    assert needs(running, 3600, 0.1) == 0.0


def test_what_is_missing_comes_from_those_that_deliver_then_from_those_that_were_not_taken(running):
    seen(running, ann=1500.0, bob=3000.0)  # bob delivers nothing
    need = needs(running, 3600, 0.1)
    assert need == pytest.approx(1000 + 1000 / 12)
    changed = spare(running, need, -1)
    assert changed == {"ann": 2000, "cem": round(need - 500)}


def test_who_asks_too_much_is_not_asked(running):
    running.offers["cem"] = DemandResponseOffer(
        event_id="e", site_id="cem", offered_w=-1000, price_ticks=3001, baseline_w=3000
    )
    seen(running, ann=1500.0, bob=3000.0)
    assert spare(running, 1000.0, -1) == {"ann": 2000}


def test_too_much_is_given_back_by_who_works_for_it(running):
    seen(running, ann=1500.0, bob=1000.0)  # bob takes 1 kW less than it had to, by itself
    need = needs(running, 3600, 0.1)
    assert need < 0
    changed = spare(running, need, -1)
    assert changed == {"ann": round(1500 + need)}


def test_what_was_missed_is_made_up_for_within_a_bound(running):
    running.missed_wh = 1e6
    seen(running, ann=1500.0, bob=2000.0)
    assert needs(running, 3600, 0.1) == 1250.0


def test_what_was_asked_is_counted_with_its_times(running):
    running.levels["ann"] = [(HOUR, 1500), (2 * HOUR, 2000)]
    assert running.dispatched_wh("ann") == 3500


def test_an_event_comes_back_from_the_disk_as_it_was(running):
    again = restored(dump(running))
    assert dump(again) == dump(running)


# -- fatigue


def calls(**limits):
    return Calls(LimitsConfig.model_validate(limits), UTC)


def test_how_often_and_how_long_a_site_is_called():
    one = calls(events_per_day=2, events_per_week=3, hours_per_month=100, rest_s=3600)
    start = 100 * DAY
    one.note(["ann"], start, start + HOUR)
    assert "rests" in one.tired(["ann"], start + HOUR + HOUR // 2, start + 2 * HOUR)["ann"]
    assert one.tired(["ann", "bob"], start + 2 * HOUR, start + 3 * HOUR) == {}
    one.note(["ann"], start + 3 * HOUR, start + 4 * HOUR)
    assert "2 times that day" in one.tired(["ann"], start + 8 * HOUR, start + 9 * HOUR)["ann"]
    one.note(["ann"], start + DAY, start + DAY + HOUR)
    assert "3 times in seven days" in one.tired(["ann"], start + 3 * DAY, start + 3 * DAY + HOUR)["ann"]
    assert one.tired(["ann"], start + 9 * DAY, start + 9 * DAY + HOUR) == {}
    assert one.recent(["ann", "bob"], start + 9 * DAY) == {"ann": 3.0, "bob": 0.0}


def test_hours_a_month():
    one = calls(events_per_day=99, events_per_week=99, hours_per_month=3, rest_s=0)
    one.note(["ann"], 100 * DAY, 100 * DAY + 2 * HOUR)
    assert one.tired(["ann"], 101 * DAY, 101 * DAY + HOUR) == {}
    assert "2.0 h in thirty days" in one.tired(["ann"], 101 * DAY, 101 * DAY + 2 * HOUR)["ann"]
    again = calls(hours_per_month=3)
    again.restore(one.dump())
    assert again.dump() == one.dump()
