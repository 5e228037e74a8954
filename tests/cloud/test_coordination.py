"""The community's agreement: prices from a quadratic programme's dual, and rounds that end with one that binds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.messages import Acknowledged
from wattmesh_a2a.plans import CoordinationReply, CoordinationRound
from wattmesh_cloud.planning.community import Sharing, capped, flattened
from wattmesh_cloud.planning.config import CoordinationConfig
from wattmesh_cloud.planning.coordination import CoordinationService
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.agents.planner_community import SiteView, answer_round


def objective(z, near, peak, ramp, before):
    ramps = np.abs(np.diff(z)).sum() + (0 if before is None else abs(z[0] - before))
    return 0.5 * ((z - near) ** 2).sum() + peak * max(0.0, z.max()) + ramp * ramps


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), peak=st.floats(0, 5), ramp=st.floats(0, 1), before=st.none() | st.floats(-3, 3))
def test_nothing_near_the_flattened_point_is_better(seed, peak, ramp, before):
    chance = np.random.default_rng(seed)
    near = chance.normal(0, 2, 24)
    z = flattened(near, peak, ramp, before)
    best = objective(z, near, peak, ramp, before)
    for size in (1e-2, 1e-1, 1.0):
        for _ in range(50):
            other = z + size * chance.normal(size=24)
            assert objective(other, near, peak, ramp, before) >= best - 1e-3
    for other in (near, np.full(24, near.mean()), np.minimum(near, np.quantile(near, 0.9))):
        assert objective(other, near, peak, ramp, before) >= best - 1e-3


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=20), total=st.floats(0, 10))
def test_the_capped_point_is_inside_and_no_inside_point_is_nearer(values, total):
    values = np.array(values)
    found = capped(values, total)
    assert (found >= 0).all()
    assert found.sum() <= total + 1e-9
    chance = np.random.default_rng(0)
    for _ in range(20):
        other = chance.random(len(values))
        other *= total * chance.random() / max(other.sum(), 1e-9)
        assert ((other - values) ** 2).sum() >= ((found - values) ** 2).sum() - 1e-9


def member(steps, energy, chance):
    """A site whose answer is exact: any exchange with the same sum as alone, at a cost of its distance from alone."""
    alone = chance.random(steps) * energy

    def answer(wish, weight):
        if weight == 0:
            return alone
        free = (0.2 * alone + weight * wish) / (0.2 + weight)
        return free + (alone.sum() - free.sum()) / steps

    return answer


def test_rounds_come_to_the_optimum_of_the_whole():
    chance = np.random.default_rng(3)
    steps, members = 12, {f"home-{n}": member(12, 3.0, chance) for n in range(4)}
    sharing = Sharing(steps=steps, slot_s=3600, peak_price=2.0, ramp_price=0.05, weight=0.3)
    for number in range(60):
        weight = 0.3 if number else 0.0
        sharing.take({name: answer(sharing.wish(name), weight) for name, answer in members.items()})
    alone = {name: answer(None, 0) for name, answer in members.items()}

    def whole(shift):
        """Cost of all when every member moves alike; with equal members the optimum is of this kind."""
        total = sum(alone.values()) + 4 * shift
        return sharing.cost(total) + 4 * 0.1 * (shift**2).sum()

    found = whole(sharing.total_kw() / 4 - sum(alone.values()) / 4)
    assert found < 0.9 * whole(np.zeros(steps))
    best = min(
        whole(shift - shift.mean()) for shift in
        (sharing.total_kw() / 4 - sum(alone.values()) / 4 + 0.05 * chance.normal(size=(400, steps)))
    )  # fmt: skip
    assert found <= best + 0.02


@pytest.fixture
def service(messenger, clock):
    config = CoordinationConfig(members=("home-1", "home-2", "home-3"), rounds=5, horizon_s=43_200)
    return CoordinationService(config, messenger, clock, "demo", exchange_w=lambda site: 500.0)


def exchange(message, level):
    return CoordinationReply(
        site_id=message.site_id, agreement_id=message.agreement_id, number=message.number, grid_w=level
    )


async def test_only_the_last_round_binds_and_every_member_hears_it(service, messenger, clock):
    def answer(to, message):
        alone = [3000 if index == 6 else 500 for index in range(12)]
        if message.number == 0:
            return exchange(message, tuple(alone))
        return exchange(message, tuple(round((a + w) / 2) for a, w in zip(alone, message.wish_w, strict=True)))

    messenger.answer = answer
    await service.agree()
    rounds = [one.message for one in messenger.requests]
    assert all(isinstance(one, CoordinationRound) for one in rounds)
    assert [one.number for one in rounds] == [number for number in range(6) for _ in range(3)]
    assert {one.site_id for one in rounds if one.final} == {"home-1", "home-2", "home-3"}
    assert all(one.final == (one.number == 5) for one in rounds)
    assert rounds[-1].expires_ns > clock.utc_ns() + 3600 * NS_PER_S
    last = service.snapshot()["last"]
    assert last["peak_agreed_kw"] < last["peak_alone_kw"]
    assert last["cost_agreed"] < last["cost_alone"]


async def test_who_is_silent_or_talks_of_something_else_has_no_part(service, messenger):
    messenger.silent = {"home-3"}
    messenger.answer = lambda to, message: (
        Acknowledged() if to.unit == "home-2" else exchange(message, (1000,) * len(message.wish_w))
    )
    await service.agree()
    assert service.agreements == 0, "one member alone is no community"
    messenger.answer = lambda to, message: exchange(message, (1000,) * len(message.wish_w))
    await service.agree()
    assert service.agreements == 1
    assert service.last["members"] == ["home-1", "home-2"]


async def test_nothing_of_a_site_but_its_exchange_is_in_the_messages():
    assert set(CoordinationReply.__dataclass_fields__) == {"site_id", "agreement_id", "number", "grid_w"}


async def test_gateways_and_cloud_agree_on_a_lower_peak_that_is_worth_its_price(service, messenger, clock):
    """The gateways' own answers (dynamic programme) to the cloud's own wishes (ADMM), as they would travel."""
    start = clock.utc_ns() - clock.utc_ns() % (3600 * NS_PER_S)
    prices = tuple(2000 if hour < 8 else 5000 for hour in range(12))
    views = {
        f"home-{number}": SiteView(
            storage=Storage(energy_wh=6400, power_w=5000),
            stored_wh=1500.0,
            net_wh=tuple(chance * (400.0 if hour < 8 else 1500.0) for hour in range(12)),
            import_ticks=prices,
            feed_in_ticks=500,
        )
        for number, chance in ((1, 1.0), (2, 1.3), (3, 0.8))
    }
    plans, first = {}, {}

    def answer(to, message):
        assert message.start_ns == start
        reply, plan = answer_round(message, to.unit, views[to.unit], clock.utc_ns())
        if message.number == 0:
            first[to.unit] = reply.grid_w
        if plan is not None:
            plans[to.unit] = plan
        return reply

    messenger.answer = answer
    service._config = service._config.model_copy(update={"rounds": 12})
    await service.agree()
    assert set(plans) == set(views)

    def bill(site, grid):
        return sum(watts * (price if watts > 0 else 500) for watts, price in zip(grid, prices, strict=True)) / 1e7

    alone = sum(bill(site, grid) for site, grid in first.items())
    agreed = sum(bill(site, plan.grid_w) for site, plan in plans.items())
    saved = service.last["cost_alone"] - service.last["cost_agreed"]
    assert service.last["peak_agreed_kw"] < 0.8 * service.last["peak_alone_kw"]
    assert agreed - alone < saved, "what it costs the homes is less than what it is worth to the community"
