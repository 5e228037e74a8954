"""The community's plan: feasible whatever comes, and shared so that nobody exports what a neighbour needs."""

import numpy as np
import pytest

pytest.importorskip("highspy")
from wattmesh_cloud.grid.community import CommunityPlanner, Pool, Weights, share

POOL, ONE = Pool(energy_kwh=32, power_kw=25), Pool(energy_kwh=6.4, power_kw=5)


def weights(**changes):
    energy = np.array([0.2] * 16 + [0.5] * 5 + [0.2] * 3)
    return Weights(**{"energy": energy, "ramp": 0.01, "peak": 0.5, "day_peak": 0.01, **changes})


def test_dear_hours_are_covered_and_the_peak_is_kept():
    net = np.array([3.0] * 16 + [8.0] * 5 + [3.0] * 3)
    plan = CommunityPlanner(POOL).plan(net, net, stored_kwh=0, grid_before_kw=3, highest_kw=6, weights=weights())
    assert plan.solved
    assert plan.grid_kw.max() <= 6 + 1e-6
    assert plan.grid_kw[16:21].sum() < 0.4 * net[16:21].sum()
    stored = np.cumsum(np.where(plan.power_kw > 0, plan.power_kw * POOL.efficiency, plan.power_kw / POOL.efficiency))
    assert stored.min() > -1e-6
    assert stored.max() < 32 + 1e-6


@pytest.mark.parametrize("net", [np.full(24, 500.0), np.full(24, -500.0)])
def test_there_is_a_plan_for_what_no_battery_can_carry(net):
    plan = CommunityPlanner(POOL).plan(net, net, stored_kwh=40, grid_before_kw=0, highest_kw=1, weights=weights())
    assert plan.solved


def test_without_a_forecast_the_last_good_plan_goes_on_and_then_self_consumption():
    planner, net, gap = CommunityPlanner(POOL), np.linspace(-5, 5, 24), np.full(24, np.nan)
    arguments = {"stored_kwh": 10, "grid_before_kw": 0, "highest_kw": 5, "weights": weights()}
    none = planner.plan(gap, gap, **arguments)
    assert not none.solved
    assert not none.power_kw.any()
    good = planner.plan(net, net, **arguments)
    again = planner.plan(gap, gap, **arguments)
    assert not again.solved
    assert again.power_kw == pytest.approx(good.power_kw[1:])


@pytest.mark.parametrize("seed", range(20))
def test_shares_keep_every_limit_and_the_total_and_never_pass_each_other(seed):
    rng = np.random.default_rng(seed)
    net, stored = rng.uniform(-5, 5, 5), rng.uniform(0, 6.4, 5)
    total = rng.uniform(-15, 15)
    power = share(total, net, stored, ONE)
    room = np.minimum(5, (6.4 - stored) / ONE.efficiency)
    left = np.minimum(5, stored * ONE.efficiency)
    assert (power <= room + 1e-9).all()
    assert (power >= -left - 1e-9).all()
    possible = np.clip(total, -left.sum(), room.sum())
    assert power.sum() == pytest.approx(possible)
    before, after = np.maximum(net, 0).sum(), np.maximum(net + power, 0).sum()
    assert after <= before + max(0.0, total) + 1e-9
