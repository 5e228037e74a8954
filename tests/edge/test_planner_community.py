"""The site's side of plans from elsewhere: the band, the checks, and the answer to a community's round."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.plans import CoordinationRound, PlannedLoad, SitePlan
from wattmesh_a2a.tariff import Tariff
from wattmesh_edge.agents.base import SLOT_NS, Outlook
from wattmesh_edge.agents.planner import Storage, follow_band
from wattmesh_edge.agents.planner_community import (
    SiteView,
    answer_round,
    best_exchange,
    check_site_plan,
    view_of,
)

NOW = 1_659_333_600 * NS_PER_S
STORAGE = Storage(energy_wh=6400, power_w=5000, reserve_wh=320)
PLAN = SitePlan(
    site_id="home-1", issued_ns=NOW, expires_ns=NOW + 7200 * NS_PER_S, start_ns=NOW, slot_s=900, grid_w=(0, 800),
    battery_w=(0, 400), stored_wh=(3000, 3095), min_grid_w=(0, 800), max_grid_w=(0, 2000),
)  # fmt: skip


@given(rest=st.floats(-20_000, 20_000), low=st.floats(-8000, 8000), width=st.floats(0, 8000), stored=st.floats(0, 6400))
def test_the_battery_only_ever_moves_the_exchange_towards_the_band(rest, low, width, stored):
    power = follow_band(rest, (low, low + width), stored, STORAGE)
    assert abs(power) <= STORAGE.power_w
    if low <= rest <= low + width:
        assert power == 0
    elif rest < low:
        assert 0 <= power <= low - rest + 1e-6
    else:
        assert 0 >= power >= low + width - rest - 1e-6
        assert power == 0 or stored > STORAGE.reserve_wh


def test_self_consumption_is_the_band_of_nothing():
    assert follow_band(700, (0, 0), 3000, STORAGE) == -700
    assert follow_band(-700, (0, 0), 3000, STORAGE) == 700
    assert follow_band(700, (0, 0), 320, STORAGE) == 0, "the reserve is the site's own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site_id": "home-2"}, "a plan of home-2 came to home-1"),
        ({"grid_w": (0,)}, "different lengths"),
        ({"grid_w": (), "battery_w": (), "stored_wh": (), "min_grid_w": (), "max_grid_w": ()}, "too many slots"),
        ({"committed_w": (1, 2, 3)}, "different lengths"),
        ({"loads": (PlannedLoad(device="ev", power_w=(1,)),)}, "different lengths"),
        ({"min_grid_w": (10, 800)}, "more than at most"),
        ({"expires_ns": NOW + 90_000 * NS_PER_S}, "more than a day"),
        ({"slot_s": 0}, "different lengths"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        check_site_plan(replace(PLAN, **changes), "home-1", NOW)


def test_a_plan_says_nothing_outside_its_slots_and_after_its_expiry():
    assert PLAN.band_w(NOW + 901 * NS_PER_S) == (800, 2000)
    assert PLAN.band_w(NOW - 1) is None
    assert PLAN.band_w(NOW + 1801 * NS_PER_S) is None
    assert replace(PLAN, expires_ns=NOW + 10).band_w(NOW + 11) is None
    held = Outlook(tariff=Tariff(default_price=0.2, feed_in_price=0.05), storage=STORAGE, trade=False, site_plan=PLAN)
    assert held.followed(NOW) == "cloud"
    assert held.followed(NOW + 7200 * NS_PER_S) == "self-consumption"
    held.forget_before(NOW + 7200 * NS_PER_S)
    assert held.site_plan is None


def test_orders_are_made_of_the_plan_that_will_be_followed():
    outlook = Outlook(tariff=Tariff(default_price=0.2, feed_in_price=0.05), storage=STORAGE, trade=True)
    outlook.profile = dict.fromkeys(range(96), (100.0, 0.0))
    outlook.plan(NOW, 3000.0)
    own = outlook.grid_wh
    outlook.site_plan = replace(PLAN, start_ns=NOW - NOW % SLOT_NS, grid_w=(-400, 800))
    outlook.plan(NOW, 3000.0)
    assert outlook.grid_wh[:2] == (-100, 200)
    assert outlook.grid_wh[2:] == own[2:], "beyond its end the site's own plan stands"


# -- the community's rounds


def view(seed=0, steps=24, stored=1500.0):
    import random

    chance = random.Random(seed)
    net = [chance.uniform(200, 1200) - (chance.uniform(0, 3000) if 8 <= hour % 24 < 16 else 0) for hour in range(steps)]
    prices = [5000 if 15 <= hour % 24 < 20 else 2100 for hour in range(steps)]
    return SiteView(storage=STORAGE, stored_wh=stored, net_wh=tuple(net), import_ticks=tuple(prices), feed_in_ticks=500)


def spent(found, seen):
    return sum(
        grid * (price if grid > 0 else seen.feed_in_ticks)
        for grid, price in zip(found.grid_wh, seen.import_ticks, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), stored=st.floats(-100, 7000), weight=st.floats(0, 5000), wish=st.floats(-3000, 3000))
def test_an_answer_is_what_the_battery_can_do(seed, stored, weight, wish):
    seen = view(seed, stored=stored)
    found = best_exchange(seen, [wish] * 24, weight, 3600)
    held = min(max(stored, 0.0), 6400.0)
    for net, grid, battery, after in zip(seen.net_wh, found.grid_wh, found.battery_wh, found.stored_wh, strict=True):
        assert grid == pytest.approx(net + battery)
        assert abs(battery) <= 5000 + 1e-6
        held += battery * STORAGE.efficiency if battery > 0 else battery / STORAGE.efficiency
        assert after == pytest.approx(held, abs=1e-3)
        assert -1e-6 <= after <= 6400 + 1e-6
        assert battery >= 0 or after >= 320 - 1e-3, "nothing is given from the reserve"


def test_alone_a_site_does_what_is_cheapest_and_a_heavy_wish_is_followed():
    seen = view()
    alone = best_exchange(seen, [0.0] * 24, 0.0, 3600)
    rest = best_exchange(replace(seen, storage=replace(STORAGE, power_w=0.0)), [0.0] * 24, 0.0, 3600)
    assert spent(alone, seen) < 0.8 * spent(rest, seen)
    wish = [net + (500 if index % 2 else -400) for index, net in enumerate(seen.net_wh)]
    near = best_exchange(seen, wish, 1e6, 3600)
    assert max(abs(a - b) for a, b in zip(near.grid_wh[:8], wish[:8], strict=True)) < 60


def wanted(**changes):
    base = {
        "site_id": "home-1", "agreement_id": "a", "number": 3, "final": False, "expires_ns": NOW + 7200 * NS_PER_S,
        "start_ns": NOW, "slot_s": 3600, "wish_w": (500,) * 24, "weight_ticks": 1000.0,
    }  # fmt: skip
    return CoordinationRound(**(base | changes))


def test_the_last_round_s_answer_is_the_plan_that_is_followed():
    reply, plan = answer_round(wanted(), "home-1", view(), NOW)
    assert plan is None
    assert len(reply.grid_w) == 24
    reply, plan = answer_round(wanted(final=True), "home-1", view(), NOW)
    assert plan.grid_w == reply.grid_w
    assert plan.expires_ns == NOW + 7200 * NS_PER_S
    check_site_plan(plan, "home-1", NOW)
    with pytest.raises(ConfigurationError, match="came to home-2"):
        answer_round(wanted(), "home-2", view(), NOW)


def test_who_does_not_know_enough_takes_no_part():
    tariff = Tariff(default_price=0.2, feed_in_price=0.05)
    known = view_of(wanted(), STORAGE, 100.0, lambda slot: 50.0, tariff, slot_s=900)
    assert known.net_wh == (200.0,) * 24
    assert view_of(wanted(), STORAGE, None, lambda slot: 50.0, tariff, slot_s=900) is None
    assert (
        view_of(
            wanted(), STORAGE, 1.0, lambda slot: None if slot > NOW + 80_000 * NS_PER_S else 5.0, tariff, slot_s=900
        )
        is None
    )
    assert view_of(wanted(slot_s=1000), STORAGE, 1.0, lambda slot: 5.0, tariff, slot_s=900) is None
    assert view_of(wanted(wish_w=()), STORAGE, 1.0, lambda slot: 5.0, tariff, slot_s=900) is None
    reply, plan = answer_round(wanted(final=True), "home-1", None, NOW)
    assert reply.grid_w == ()
    assert plan is None
