"""Batteries of homes planned together: feasible whatever comes, and against expectations, not means."""

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highspy", reason="pip install 'wattmesh[optimise]'")
from wattmesh_cloud.grid.homes import Charges, Expected, HomesPlanner

STEPS, HOMES = 24, 3


def planner():
    return HomesPlanner(HOMES, energy_kwh=6.4, power_kw=5.0, efficiency=0.95)


def expected(net, **offs):
    zero = {
        "home_off": np.zeros((HOMES, STEPS, 3)), "total_off": np.zeros((STEPS, 3)), "ramp_off": np.zeros((STEPS, 3)),
        "peak_off": np.zeros(STEPS),
    }  # fmt: skip
    return Expected(net=net, **(zero | offs))


def charges(**changes):
    price = np.where((np.arange(STEPS) >= 16) & (np.arange(STEPS) < 21), 0.5, 0.2)
    base = {
        "price": price,
        "carbon": np.zeros(STEPS),
        "ramp": 0.0,
        "peak": 0.0,
        "day_peak": 0.0,
        "year_peak": 0.0,
        "worth": 0.1,
    }
    return Charges(**(base | changes))


def held(power, stored):
    return stored[:, None] + np.cumsum(np.where(power > 0, power * 0.95, power / 0.95), axis=1)


@pytest.mark.parametrize("seed", range(10))
def test_every_plan_is_one_that_batteries_can_do(seed):
    chance = np.random.default_rng(seed)
    stored = chance.uniform(-1, 8, HOMES)
    found = planner().plan(
        expected(
            chance.uniform(-400 if seed > 7 else -4, 5, (HOMES, STEPS)),
            home_off=np.sort(chance.normal(0, 1, (HOMES, STEPS, 3)), axis=2),
            total_off=np.sort(chance.normal(0, 2, (STEPS, 3)), axis=1), ramp_off=chance.normal(0, 1, (STEPS, 3)),
            peak_off=chance.uniform(0, 2, STEPS),
        ),
        charges(ramp=0.05, peak=1.0, day_peak=0.1, carbon=chance.uniform(0, 0.2, STEPS)),
        stored_kwh=stored, before_kw=3.0, highest_kw=4.0,
    )  # fmt: skip
    assert np.abs(found).max() <= 5 + 1e-6
    energy = held(found, np.clip(stored, 0, 6.4))
    assert energy.min() > -1e-6
    assert energy.max() < 6.4 + 1e-4 or found.max() > 4.9, "charging and discharging at a time may waste, never create"


def test_the_dear_hours_are_served_by_neighbours_batteries():
    net = np.full((HOMES, STEPS), 0.3)
    net[0, 16:21] = 3.0
    found = planner().plan(expected(net), charges(), stored_kwh=np.full(HOMES, 6.0), before_kw=1.0, highest_kw=9.0)
    total = (net + found).sum(axis=0)
    assert np.maximum(total[16:21], 0).sum() < 1.2, (
        "15 kWh of need, 17 kWh in all batteries, all at the community's one meter"
    )
    assert -found[1:, 16:21].sum() > 4


def test_carbon_counts_by_home_and_cost_by_the_sum():
    net = np.full((HOMES, STEPS), 0.5)
    net[0, 0], net[1, 0] = 2.0, -2.0
    arguments = {"stored_kwh": np.zeros(HOMES), "before_kw": 0.0, "highest_kw": 9.0}
    cheap = charges(price=np.zeros(STEPS), carbon=np.full(STEPS, 0.3), worth=0.01)
    assert planner().plan(expected(net), cheap, **arguments)[1, 0] == pytest.approx(2.0, abs=1e-6)


def test_what_the_year_has_reached_is_free_and_more_is_dear():
    net = np.full((HOMES, STEPS), 1.0)
    net[0, 12] = 6.0
    arguments = {"stored_kwh": np.full(HOMES, 6.0), "before_kw": 3.0, "highest_kw": 99.0}
    flat = charges(price=np.full(STEPS, 0.2), worth=0.25, year_peak=5.0)
    for ratchet in (5.0, 9.0):
        total = (net + planner().plan(expected(net), flat, ratchet_kw=ratchet, **arguments)).sum(axis=0)
        assert total.max() == pytest.approx(min(ratchet, 8.0), abs=1e-6)


def test_uncertainty_is_worth_a_reserve_that_the_mean_does_not_see():
    """At an hour whose mean need is nothing, half of the errors are import: expectation charges for them."""
    net = np.zeros((HOMES, STEPS))
    off = np.zeros((STEPS, 3))
    off[17] = -3.0, 0.0, 3.0
    arguments = {"stored_kwh": np.full(HOMES, 2.0), "before_kw": 0.0, "highest_kw": 9.0}
    dear = charges(worth=0.1)
    assert np.abs(planner().plan(expected(net), dear, **arguments)[:, 17]).sum() < 1e-6
    assert -planner().plan(expected(net, total_off=off), dear, **arguments)[:, 17].sum() > 1.0


def test_a_gap_in_the_forecast_rests_the_batteries():
    net = np.zeros((HOMES, STEPS))
    net[1, 3] = np.nan
    found = planner().plan(expected(net), charges(), stored_kwh=np.ones(HOMES), before_kw=0.0, highest_kw=1.0)
    assert not found.any()


@pytest.mark.parametrize("corrected", [False, True])
def test_the_benchmark_does_not_look_ahead(monkeypatch, corrected):
    """What is done before hour ``cut`` is the same whatever load and carbon turn out to be from it on."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    community = importlib.import_module("community")
    rng = np.random.default_rng(5)
    hours, cut = 120, 70
    price = np.tile(charges().price, 5)
    net, carbon = rng.uniform(-2, 3, (hours, 5)), rng.uniform(0.1, 0.3, hours)
    quantiles = np.sort(rng.normal(2, 3, (hours, 24, 9)), axis=2)
    results = []
    for factor in (1.0, 2.0):
        later, dirty = net.copy(), carbon.copy()
        later[cut:] *= factor
        dirty[cut:] *= factor
        # the battery's power, as the load itself is part of the result
        results.append(community.play(later, price, dirty, quantiles, corrected)[0] - later)
    same = [bool(np.allclose(one, other)) for one, other in zip(*results, strict=True)]
    assert all(same[: cut if corrected else cut + 1])
    assert not all(same[cut:])
