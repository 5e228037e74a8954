"""Least-cost dispatch against brute force, and the merit order."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.grid import DemandResponseOffer, FlexibilitySource, OfferPart
from wattmesh_cloud.grid.dispatch import Candidate, candidates, least_cost

MISSING = 100_000


def part(site, power, price, *, divisible=True, called=0.0):
    return Candidate(site_id=site, power_w=power, price_ticks=price, divisible=divisible, called=called)


def offer(site, watts, price, parts=()):
    return DemandResponseOffer(
        event_id="e", site_id=site, offered_w=watts, price_ticks=price, baseline_w=4000, parts=parts
    )


def test_the_cheapest_first_and_the_last_in_part():
    choice = least_cost(
        3000, [part("bob", 2000, 2000), part("ann", 2000, 1000), part("cem", 500, 2500)], missing_ticks=MISSING
    )
    assert choice.power_w == {"ann": 2000, "bob": 1000}
    assert (choice.missing_w, choice.over_w, choice.cost) == (0, 0, 2000 * 1000 + 1000 * 2000)


def test_what_there_is_not_is_missing():
    choice = least_cost(3000, [part("ann", 1000, 5)], missing_ticks=MISSING)
    assert (choice.power_w, choice.missing_w) == ({"ann": 1000}, 2000)
    assert least_cost(3000, [], missing_ticks=MISSING).missing_w == 3000


def test_equal_prices_go_to_the_least_called_then_by_name():
    parts = [part("bob", 2500, 2000, called=1.0), part("cem", 2500, 2000), part("ann", 2500, 2000)]
    assert least_cost(3000, parts, missing_ticks=MISSING).power_w == {"ann": 2500, "cem": 500}


def test_no_site_gives_more_than_its_share():
    parts = [part("ann", 3000, 1), part("ann", 500, 1), part("bob", 3000, 9)]
    assert least_cost(3000, parts, missing_ticks=MISSING, site_most_w=1500).power_w == {"ann": 1500, "bob": 1500}


def test_too_dear_none_or_in_the_wrong_direction_is_no_candidate():
    offers = [offer("ann", -2000, 3001), offer("bob", 0, 1), offer("cem", 800, 1)]
    assert candidates(offers, -1, most_ticks=3000) == []
    assert candidates(offers, 1, most_ticks=3000) == [part("cem", 800, 1)]


def test_parts_count_where_they_are_what_was_offered():
    ev = OfferPart(source=FlexibilitySource.EV, power_w=-1500, price_ticks=20, divisible=False)
    battery = OfferPart(source=FlexibilitySource.BATTERY, power_w=-500, price_ticks=10)
    found = candidates([offer("ann", -2000, 99, (ev, battery)), offer("bob", -2000, 50, (ev,))], -1, most_ticks=3000)
    assert found == [part("ann", 1500, 20, divisible=False), part("ann", 500, 10), part("bob", 2000, 50)]


def brute(target, parts, over):
    """The least cost over every choice of whole parts; the divisible rest is filled by the watt, cheapest first."""
    whole = [one for one in parts if not one.divisible]
    rest = sorted((one for one in parts if one.divisible), key=lambda one: one.price_ticks)
    best = None
    for taken in itertools.product((0, 1), repeat=len(whole)):
        power = sum(on * one.power_w for on, one in zip(taken, whole, strict=True))
        cost = sum(on * one.power_w * one.price_ticks for on, one in zip(taken, whole, strict=True))
        if power > target + over:
            continue
        for one in rest:
            step = min(one.power_w, max(0, target - power))
            power, cost = power + step, cost + step * one.price_ticks
        cost += max(0, target - power) * MISSING
        best = cost if best is None else min(best, cost)
    return best


some_parts = st.lists(
    st.builds(
        Candidate,
        site_id=st.sampled_from("abcd"),
        power_w=st.integers(1, 60),
        price_ticks=st.integers(1, 3000),
        divisible=st.booleans(),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), some_parts, st.integers(0, 30))
def test_nothing_is_cheaper_than_what_is_chosen(target, parts, over):
    pytest.importorskip("highspy")
    choice = least_cost(target, parts, missing_ticks=MISSING, over_w=over)
    assert choice.cost + choice.missing_w * MISSING == pytest.approx(brute(target, parts, over), abs=1)
    assert choice.over_w <= over
    for taken, one in zip(choice.parts, parts, strict=True):
        assert 0 <= taken <= one.power_w
        assert one.divisible or taken in {0, one.power_w}
    assert sum(choice.parts) == sum(choice.power_w.values())


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), some_parts.map(lambda parts: [part(p.site_id, p.power_w, p.price_ticks) for p in parts]))
def test_the_merit_order_is_least_cost_where_all_may_be_divided(target, parts):
    choice = least_cost(target, parts, missing_ticks=MISSING)
    assert choice.cost + choice.missing_w * MISSING == (brute(target, parts, 0) if parts else target * MISSING)
