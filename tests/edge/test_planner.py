"""The value of stored energy, and the policy that follows it."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_edge.agents import planner
from wattmesh_edge.agents.planner import Storage, battery_policy, charge_level_w, expected_grid_wh, value_of_storage

START = 1_659_333_600 * 10**9
SLOT_S = 900
STORAGE = Storage(energy_wh=6400, power_w=5000)
FEED_IN = 500


def day(seed):
    chance = random.Random(seed)
    net = []
    for slot in range(96):
        hour = slot / 4
        sun = max(0.0, 1 - abs(hour - 12) / 6) * chance.uniform(200, 900)
        net.append(chance.uniform(100, 500) - sun)
    prices = [5400 if 60 <= slot < 80 else 2200 for slot in range(96)]
    return net, prices


def cost(grid, prices):
    return sum(g * p if g > 0 else g * FEED_IN for g, p in zip(grid, prices, strict=True))


def run(net, prices, value):
    """Cost of a day, less what is left in the battery at the price of the night."""
    stored, grid = 1280.0, []
    for slot, (energy, price) in enumerate(zip(net, prices, strict=True)):
        slope = value.slope_ticks(START + slot * SLOT_S * 10**9, stored) if value else None
        power = battery_policy(energy * 4, stored, STORAGE, slope, price, FEED_IN) / 4
        if power > 0:
            power = min(power, (STORAGE.energy_wh - stored) / STORAGE.efficiency)
            stored += power * STORAGE.efficiency
        else:
            power = -min(-power, stored * STORAGE.efficiency)
            stored += power / STORAGE.efficiency
        grid.append(energy + power)
    return cost(grid, prices) - stored * STORAGE.efficiency * 2200


@pytest.mark.parametrize("seed", range(25))
def test_with_a_true_forecast_the_plan_beats_plain_self_consumption(seed):
    net, prices = day(seed)
    value = value_of_storage(STORAGE, net, prices, FEED_IN, start_ns=START, slot_s=SLOT_S)
    assert run(net, prices, value) < run(net, prices, None)


@pytest.mark.parametrize("seed", range(10))
def test_the_next_watt_hour_is_never_worth_more_the_fuller_the_battery(seed):
    net, prices = day(seed)
    value = value_of_storage(STORAGE, net, prices, FEED_IN, start_ns=START, slot_s=SLOT_S)
    for slot in range(0, 96, 7):
        slopes = [value.slope_ticks(START + slot * 900 * 10**9, stored) for stored in range(0, 6401, 160)]
        assert all(one >= other - 1e-6 for one, other in pairwise(slopes))
        assert slopes[0] <= 5400 / STORAGE.efficiency + 1


def test_outside_its_horizon_a_plan_says_nothing():
    net, prices = day(1)
    value = value_of_storage(STORAGE, net, prices, FEED_IN, start_ns=START, slot_s=SLOT_S)
    assert value.slope_ticks(START - 1, 100.0) is None
    assert value.slope_ticks(value.end_ns, 100.0) is None
    assert value.slope_ticks(value.end_ns - 1, 100.0) is not None


@pytest.mark.parametrize(
    ("rest_w", "stored_wh", "slope", "price", "wanted"),
    [
        (1000, 3000, None, 2200, -1000),  # no plan: self-consumption
        (-1000, 3000, None, 2200, 1000),
        (1000, 3000, 5000, 2200, 5000),  # the grid is cheaper than what this replaces
        (1000, 3000, 2150, 2200, 0),  # worth more later
        (1000, 3000, 1000, 2200, -1000),
        (9000, 3000, 1000, 2200, -5000),
        (-1000, 3000, 300, 2200, 0),  # selling brings more than keeping
        (1000, 0, 1000, 2200, 0),  # empty
    ],
)
def test_the_policy_follows_price_and_value(rest_w, stored_wh, slope, price, wanted):
    assert battery_policy(rest_w, stored_wh, STORAGE, slope, price, FEED_IN) == wanted


def test_the_reserve_is_kept():
    storage = Storage(energy_wh=6400, power_w=5000, reserve_wh=640)
    assert battery_policy(1000, 640, storage, 0.0, 5400, FEED_IN) == 0
    net, prices = [500.0] * 96, [5400] * 96
    value = value_of_storage(storage, net, prices, FEED_IN, start_ns=START, slot_s=SLOT_S)
    grid = expected_grid_wh(storage, value, 1280.0, net, prices, FEED_IN)
    delivered = sum(n - g for n, g in zip(net, grid, strict=True))
    assert delivered <= (1280 - 640) * storage.efficiency + 1e-6


def evening():
    """Six cheap hours with some load, then five dear ones that the battery should cover."""
    net = [100.0] * 12 + [300.0] * 12 + [600.0] * 20
    prices = [2200] * 24 + [5400] * 20
    return net, prices, value_of_storage(STORAGE, net, prices, FEED_IN, start_ns=START, slot_s=SLOT_S)


def test_charging_from_the_grid_fills_a_valley_and_makes_no_peak():
    net, prices, value = evening()
    grid = expected_grid_wh(STORAGE, value, 0.0, net, prices, FEED_IN)
    charged = sum(g - n for g, n in zip(grid[:24], net[:24], strict=True))
    assert charged > 5000, "the dear hours are still prepared for"
    assert grid[:8] == net[:8], "the sun has its chance first"
    assert max(grid[:24]) * 4 < 3500, "at full power it would be 6.2 kW"
    assert max(grid[8:24]) < 1.15 * sum(grid[8:24]) / 16


def test_the_level_rises_when_the_load_was_higher_than_expected_and_falls_to_nothing_when_full():
    net, prices, value = evening()
    now = START + 12 * SLOT_S * 10**9
    behind, ahead = (charge_level_w(STORAGE, value, now, stored, net, prices) for stored in (500.0, 5000.0))
    assert behind > ahead
    assert charge_level_w(STORAGE, value, now, 6400.0, net, prices) == 0
    assert charge_level_w(STORAGE, value, value.end_ns, 0.0, net, prices) == 0


def test_charging_is_held_to_the_level_but_surplus_is_always_taken():
    arguments = (3000, STORAGE, 5000, 2200, FEED_IN)
    assert battery_policy(500, *arguments, 1500.0) == 1000
    assert battery_policy(2000, *arguments, 1500.0) == 0
    assert battery_policy(-800, *arguments, 0.0) == 800


def test_a_spread_costs_what_a_certain_forecast_hides():
    net, prices = [-50.0] * 48 + [50.0] * 48, [2200] * 96
    sure, unsure = (
        value_of_storage(STORAGE, net, prices, FEED_IN, start_ns=START, slot_s=SLOT_S, spread_wh=spread)
        for spread in (None, [200.0] * 96)
    )
    assert unsure.cost[0][0] > sure.cost[0][0], "the cost of a slot is convex in its net load (Jensen)"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-2000, 4000), min_size=2, max_size=12),
    st.integers(0, 4000),
    st.integers(0, 6000),
    st.floats(500, 8000),
)
def test_the_fast_way_for_convex_costs_is_the_slow_one(net, feed_in, more, power_w):
    storage = planner.Storage(energy_wh=6400, power_w=power_w)
    prices = [feed_in + more * (at % 3) for at in range(len(net))]
    fast = value_of_storage(storage, net, prices, feed_in, start_ns=0, slot_s=900)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "_best_convex", planner._best)
        slow = value_of_storage(storage, net, prices, feed_in, start_ns=0, slot_s=900)
    for one, other in zip(fast.cost, slow.cost, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-3)
