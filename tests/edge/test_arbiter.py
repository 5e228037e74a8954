"""What the arbiter may never do, whatever is asked of it: a statement of what may happen, not a second arbiter."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.control import GRID_CONNECTION, Bounds, Priority, Proposal
from wattmesh_a2a.devices import Quality
from wattmesh_edge.arbiter import arbitrate
from wattmesh_edge.image import BatteryImage, SiteImage, Value
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.sharing import share, weight

NOW = 1_000_000
power = st.floats(-20_000, 20_000, allow_nan=False)
soc = st.one_of(st.none(), st.floats(0, 100))


@st.composite
def images(draw, names=("a",)):
    grid = draw(st.one_of(st.none(), power))
    return SiteImage(
        time_ns=0,
        monotonic_ns=NOW,
        grid_power_w=None if grid is None else Value(value=grid, quality=Quality.GOOD),
        pv_power_w=draw(st.one_of(st.none(), st.floats(-8000, 0))),
        batteries={
            name: BatteryImage(active_power_w=draw(st.one_of(st.none(), power)), soc_percent=draw(soc))
            for name in names
        },
        frequency_hz=60.0,
    )


@st.composite
def proposals(draw, names=("a",)):
    low = draw(power)
    bounds = draw(
        st.one_of(st.none(), st.floats(0, 20_000).map(lambda width: Bounds(min_w=low, max_w=low + width, reason="t")))
    )
    return Proposal(
        asset_id=draw(st.sampled_from([*names, GRID_CONNECTION])),
        priority=draw(st.sampled_from(list(Priority))),
        source="test",
        expires_ns=draw(st.integers(NOW - 5, NOW + 5)),
        target_w=draw(st.one_of(st.none(), power)),
        bounds=bounds,
    )


LIMITS = BatteryLimits(rated_power_w=5000, rated_energy_wh=6400, min_soc_percent=10, max_soc_percent=95)
SITE = SiteLimits(import_limit_w=12_000, export_limit_w=8000)


@settings(max_examples=1500, deadline=None)
@given(images(), st.lists(proposals(), max_size=6))
def test_no_setpoint_leaves_the_limits_of_device_and_charge(image, asked):
    (decision,) = arbitrate(image, asked, {"a": LIMITS}, SITE)
    target = decision.target_w
    assert target is not None
    assert math.isfinite(target)
    assert -5000 <= target <= 5000
    state = image.batteries["a"].soc_percent
    if state is None:
        assert target == 0
    else:
        if state <= 10:
            assert target >= 0
        if state >= 95:
            assert target <= 0


@settings(max_examples=800, deadline=None)
@given(images(), st.lists(proposals(), max_size=6))
def test_what_has_expired_does_not_exist(image, asked):
    live = [one for one in asked if one.expires_ns > NOW]
    assert arbitrate(image, asked, {"a": LIMITS}, SITE) == arbitrate(image, live, {"a": LIMITS}, SITE)


@settings(max_examples=800, deadline=None)
@given(images(), st.lists(proposals(), max_size=6))
def test_an_unknown_grid_or_battery_power_never_raises_power(image, asked):
    if image.rest_power_w is None:
        (decision,) = arbitrate(image, asked, {"a": LIMITS}, SITE)
        assert decision.target_w == 0


@settings(max_examples=800, deadline=None)
@given(images(), st.lists(proposals(), max_size=5))
def test_the_connection_is_never_overloaded_by_the_battery(image, asked):
    """The battery may be unable to mend an overload, but it never causes or worsens one."""
    (decision,) = arbitrate(image, asked, {"a": LIMITS}, SITE)
    rest = image.rest_power_w
    if rest is None:
        return
    grid = rest + decision.target_w
    if decision.target_w > 0:
        assert grid <= SITE.import_limit_w + 1e-6 or rest < -SITE.export_limit_w
    if decision.target_w < 0:
        assert grid >= -SITE.export_limit_w - 1e-6 or rest > SITE.import_limit_w


def image_of(grid_w, battery_w=0.0, soc_percent=50.0):
    return SiteImage(
        time_ns=0,
        monotonic_ns=NOW,
        grid_power_w=Value(value=grid_w, quality=Quality.GOOD),
        pv_power_w=0.0,
        batteries={"a": BatteryImage(active_power_w=battery_w, soc_percent=soc_percent)},
        frequency_hz=60.0,
    )


def ask(asset, priority, *, target=None, bounds=None, source="x"):
    return Proposal(
        asset_id=asset, priority=priority, source=source, expires_ns=NOW + 1, target_w=target, bounds=bounds
    )


def test_the_higher_priority_has_its_way_and_the_lower_one_only_narrows_inside_it():
    high = Bounds(min_w=1000, max_w=2000, reason="grid instruction")
    low = Bounds(min_w=-9000, max_w=500, reason="wish")
    asked = [
        ask(GRID_CONNECTION, Priority.GRID_INSTRUCTION, bounds=high),
        ask(GRID_CONNECTION, Priority.PREFERENCE, bounds=low),
        ask(GRID_CONNECTION, Priority.PLAN, target=-3000.0),
    ]
    (decision,) = arbitrate(image_of(1500.0), asked, {"a": LIMITS}, SITE)
    assert 1500 + decision.target_w == 1000
    assert decision.limited_by == "grid instruction"
    assert decision.remaining_w == -4000


def test_nobody_asks_and_the_safe_state_comes():
    (decision,) = arbitrate(image_of(1500.0, battery_w=-800.0), [], {"a": LIMITS}, SITE)
    assert (decision.target_w, decision.decided_by) == (0.0, "safe-state")


def test_the_grid_target_is_met_around_the_rest_of_the_site():
    asked = [ask(GRID_CONNECTION, Priority.PLAN, target=0.0, source="plan")]
    (decision,) = arbitrate(image_of(300.0, battery_w=-1200.0), asked, {"a": LIMITS}, SITE)
    assert decision.target_w == -1500
    assert decision.decided_by == "plan"


def test_the_frequency_response_stands_above_the_plan():
    asked = [
        ask(GRID_CONNECTION, Priority.PLAN, target=0.0),
        ask("a", Priority.FREQUENCY_RESPONSE, target=-700.0, source="frequency-response"),
    ]
    (decision,) = arbitrate(image_of(300.0), asked, {"a": LIMITS}, SITE)
    assert (decision.target_w, decision.decided_by) == (-700.0, "frequency-response")


@settings(max_examples=500, deadline=None)
@given(st.floats(-30_000, 30_000), st.lists(st.floats(0, 100), min_size=1, max_size=4))
def test_distribution_gives_all_that_the_batteries_can_take(total, states):
    names = [f"b{index}" for index in range(len(states))]
    image = SiteImage(
        time_ns=0, monotonic_ns=NOW, grid_power_w=None, pv_power_w=0.0, frequency_hz=None,
        batteries={n: BatteryImage(active_power_w=0.0, soc_percent=s) for n, s in zip(names, states, strict=True)},
    )  # fmt: skip
    ranges = {n: (-5000.0 if s > 10 else 0.0, 5000.0 if s < 95 else 0.0) for n, s in zip(names, states, strict=True)}
    shares = share(total, ranges, {n: weight(LIMITS, image.batteries[n], total) for n in names})
    able = [s for s in states if (s < 95 if total > 0 else s > 10)]
    possible = min(abs(total), 5000 * len(able))
    assert all(abs(share) <= 5000 + 1e-6 and share * total >= -1e-3 for share in shares.values())
    assert abs(abs(sum(shares.values())) - possible) < 1e-3


def two_batteries(grid_w, powers=(0.0, 0.0), states=(50.0, 50.0)):
    return SiteImage(
        time_ns=0, monotonic_ns=NOW, grid_power_w=Value(value=grid_w, quality=Quality.GOOD), pv_power_w=0.0, frequency_hz=60.0,
        batteries={n: BatteryImage(active_power_w=p, soc_percent=s) for n, p, s in zip("ab", powers, states, strict=True)},
    )  # fmt: skip


def total(decisions):
    return sum(decision.target_w for decision in decisions)


def test_several_batteries_keep_a_bound_on_the_connection_together():
    cap = Bounds(min_w=-1e9, max_w=1000, reason="demand response")
    decisions = arbitrate(
        two_batteries(4000.0),
        [ask(GRID_CONNECTION, Priority.GRID_INSTRUCTION, bounds=cap)],
        {"a": LIMITS, "b": LIMITS},
        SITE,
    )
    assert abs(4000 + total(decisions) - 1000) < 1e-6


def test_several_batteries_take_what_the_connection_could_not_export():
    decisions = arbitrate(two_batteries(-9000.0), [], {"a": LIMITS, "b": LIMITS}, SITE)
    assert abs(-9000 + total(decisions) + 8000) < 1e-6


def test_a_battery_with_a_target_of_its_own_counts_in_the_group():
    asked = [
        ask(GRID_CONNECTION, Priority.PLAN, target=0.0),
        ask("a", Priority.FREQUENCY_RESPONSE, target=-3000.0, source="frequency-response"),
    ]
    decisions = arbitrate(two_batteries(4000.0), asked, {"a": LIMITS, "b": LIMITS}, SITE)
    assert {d.asset_id: d.target_w for d in decisions} == {"a": -3000.0, "b": -1000.0}


@settings(max_examples=500, deadline=None)
@given(images(("a", "b")), st.lists(proposals(("a", "b")), max_size=6))
def test_several_batteries_never_overload_the_connection_nor_leave_their_limits(image, asked):
    decisions = arbitrate(image, asked, {"a": LIMITS, "b": LIMITS}, SITE)
    for decision in decisions:
        assert -5000 <= decision.target_w <= 5000
        state = image.batteries[decision.asset_id].soc_percent
        if state is None or image.rest_power_w is None:
            assert decision.target_w == 0
    rest = image.rest_power_w
    if rest is not None:
        grid = rest + total(decisions)
        assert grid <= max(SITE.import_limit_w, rest) + 1e-6 or rest < -SITE.export_limit_w
        assert grid >= min(-SITE.export_limit_w, rest) - 1e-6 or rest > SITE.import_limit_w


@settings(max_examples=400, deadline=None)
@given(images(("a", "b")), st.lists(proposals(("a", "b")), max_size=6), proposals(("a", "b")))
def test_a_lower_rank_never_moves_what_a_higher_one_has_set(image, asked, low):
    """Neither a target nor bounds: with everybody above gone to a target, what stands below changes nothing in the sum."""
    set_ = ask(GRID_CONNECTION, Priority.MARKET_COMMITMENT, target=0.0)
    above = [one for one in asked if one.priority < Priority.MARKET_COMMITMENT]
    limits = {"a": LIMITS, "b": LIMITS}
    without = arbitrate(image, [*above, set_], limits, SITE)
    with_ = arbitrate(
        image,
        [*above, set_, ask(low.asset_id, Priority.PREFERENCE, target=low.target_w, bounds=low.bounds)],
        limits,
        SITE,
    )
    assert abs(total(without) - total(with_)) <= 2


def test_bounds_that_contradict_are_told_with_both_names():
    asked = [
        ask(
            GRID_CONNECTION, Priority.GRID_INSTRUCTION, bounds=Bounds(min_w=1000, max_w=2000, reason="grid instruction")
        ),
        ask(GRID_CONNECTION, Priority.PLAN, bounds=Bounds(min_w=-9000, max_w=500, reason="wish")),
    ]
    (decision,) = arbitrate(image_of(1500.0), asked, {"a": LIMITS}, SITE)
    assert decision.conflicts == ("wish contradicts grid instruction",)
    assert decision.target_w == -500, "as near to the wish as the instruction lets it"


def test_an_overload_that_cannot_be_mended_is_told():
    (decision,) = arbitrate(image_of(30_000.0), [], {"a": LIMITS}, SITE)
    assert decision.target_w == -5000
    assert decision.conflicts == ("connection limit contradicts rated power",)


def test_zero_export_takes_the_surplus_and_never_feeds():
    site = SiteLimits(import_limit_w=12_000, export_limit_w=0)
    (decision,) = arbitrate(image_of(-3000.0), [ask("a", Priority.PLAN, target=-5000.0)], {"a": LIMITS}, site)
    assert decision.target_w == 3000


def test_a_ramp_slows_a_plan_and_not_the_response():
    slow = BatteryLimits(rated_power_w=5000, rated_energy_wh=6400, ramp_w_per_s=100)
    (plan,) = arbitrate(image_of(0.0), [ask("a", Priority.PLAN, target=3000.0)], {"a": slow}, SITE, held={"a": 500.0})
    assert (plan.target_w, plan.limited_by, plan.remaining_w) == (600, "ramp limit", 2400)
    (stop,) = arbitrate(image_of(0.0), [ask("a", Priority.PLAN, target=0.0)], {"a": slow}, SITE, held={"a": 3000.0})
    assert stop.target_w == 0
    fast = ask("a", Priority.FREQUENCY_RESPONSE, target=-3000.0)
    (response,) = arbitrate(image_of(0.0), [fast], {"a": slow}, SITE, held={"a": 500.0})
    assert response.target_w == -3000


def test_a_small_power_is_taken_by_one_where_none_can_hold_its_half():
    shy = BatteryLimits(rated_power_w=5000, rated_energy_wh=6400, idle_below_w=300)
    both = {"a": shy, "b": shy}
    decisions = arbitrate(two_batteries(400.0), [ask(GRID_CONNECTION, Priority.PLAN, target=0.0)], both, SITE)
    assert sorted(one.target_w for one in decisions) == [-400, 0]
    decisions = arbitrate(two_batteries(200.0), [ask(GRID_CONNECTION, Priority.PLAN, target=0.0)], both, SITE)
    assert [one.target_w for one in decisions] == [0, 0]


def test_a_worn_battery_takes_less():
    batteries = {
        "a": LIMITS,
        "b": BatteryLimits(
            rated_power_w=5000, rated_energy_wh=6400, min_soc_percent=10, max_soc_percent=95, health=0.5
        ),
    }
    decisions = arbitrate(two_batteries(3000.0), [ask(GRID_CONNECTION, Priority.PLAN, target=0.0)], batteries, SITE)
    assert [one.target_w for one in decisions] == [-2000, -1000]
