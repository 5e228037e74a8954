"""What the arbiter may never do, whatever is asked of it: a statement of what may happen, not a second arbiter."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.control import GRID_CONNECTION, Bounds, Priority, Proposal
from wattmesh_a2a.devices import Quality
from wattmesh_edge.arbiter import BatteryLimits, SiteLimits, arbitrate, distribute
from wattmesh_edge.image import BatteryImage, SiteImage, Value

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
    shares = distribute(total, image, dict.fromkeys(names, LIMITS))
    able = [s for s in states if (s < 95 if total > 0 else s > 10)]
    possible = min(abs(total), 5000 * len(able))
    assert all(abs(share) <= 5000 + 1e-6 and share * total >= 0 for share in shares.values())
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
