"""A car is full by the morning, as cheaply as the tariff lets it, and protection stands above it."""

from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest
from wattmesh_a2a.control import GRID_CONNECTION, Bounds, Priority, Proposal
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.tariff import Tariff, TariffPeriod
from wattmesh_edge.agents.flexible import FlexibleAgent, Need
from wattmesh_edge.arbiter import arbitrate
from wattmesh_edge.image import BatteryImage, SiteImage, Value
from wattmesh_edge.limits import BatteryLimits, SiteLimits

ZONE = ZoneInfo("Europe/Berlin")
NIGHT = TariffPeriod(price=0.15, start=time(1, 0), end=time(4, 0))
TARIFF = Tariff(feed_in_price=0.08, default_price=0.30, periods=(NIGHT,), time_zone="Europe/Berlin")
CAR = Need(device="car", energy_wh=11_000, power_w=7400, begins=time(18, 0), ends=time(7, 0))


def image(now: datetime, car_w: float, grid_w: float = 500.0) -> SiteImage:
    ns = round(now.timestamp()) * 10**9
    return SiteImage(
        time_ns=ns, monotonic_ns=ns, grid_power_w=Value(value=grid_w + car_w, quality=Quality.GOOD), pv_power_w=0.0,
        batteries={"b": BatteryImage(active_power_w=0.0, soc_percent=50.0)}, frequency_hz=50.0, loads={"car": car_w},
    )  # fmt: skip


def night(day, *, grid_w=500.0, agent=None, needs=CAR):
    """One night in steps of a minute: energy, cost and the times at which it ran."""
    agent = agent or FlexibleAgent((needs,), TARIFF, ZONE, period_s=60.0)
    begin = datetime(2026, *day, 17, 0, tzinfo=ZONE).timestamp()
    power = energy = cost = 0.0
    hours = set()
    for minute in range(15 * 60):
        now = datetime.fromtimestamp(begin + 60 * minute, tz=UTC)
        (proposal,) = agent.propose(image(now, power, grid_w), 0.0)
        energy += power / 60
        cost += power / 60 * TARIFF.import_price_ticks(round(now.timestamp()) * 10**9)
        if power:
            hours.add(now.astimezone(ZONE).hour)
        power = proposal.target_w
    return energy, cost / energy if energy else 0, hours


@pytest.mark.parametrize("day", [(6, 10), (3, 28), (10, 24)], ids=["summer", "clocks forward", "clocks back"])
def test_the_car_is_full_by_the_morning_in_the_cheapest_hours(day):
    energy, ticks, hours = night(day)
    assert 11_000 <= energy <= 11_200
    assert ticks == pytest.approx(1500)
    assert hours <= {1, 2, 3, 4}


def test_without_time_to_spare_it_runs_whatever_it_costs():
    needs = Need(device="car", energy_wh=90_000, power_w=7400, begins=time(18, 0), ends=time(7, 0))
    energy, _, hours = night((6, 10), needs=needs)
    assert 89_000 <= energy <= 90_200
    assert 19 in hours


def test_surplus_is_taken_before_the_cheap_hours():
    energy, _, hours = night((6, 10), grid_w=-3000.0)
    assert energy >= 11_000
    assert min(hours, key=lambda hour: (hour - 18) % 24) == 18


def test_what_was_taken_before_a_restart_counts():
    before = FlexibleAgent((CAR,), TARIFF, ZONE, period_s=60.0)
    start = datetime(2026, 6, 10, 18, 0, tzinfo=ZONE)
    before.propose(image(start, 0.0), 0.0)
    window = before.taken["car"][0]
    again = FlexibleAgent((CAR,), TARIFF, ZONE, period_s=60.0, taken={"car": (window, 11_000.0)})
    (proposal,) = again.propose(image(datetime(2026, 6, 11, 2, 0, tzinfo=ZONE), 0.0), 0.0)
    assert (proposal.target_w, proposal.source) == (0.0, "flexible:has what it needs")


def test_a_load_that_is_not_known_is_not_asked_for_anything():
    agent = FlexibleAgent((CAR,), TARIFF, ZONE, period_s=1.0)
    ns = 10**18
    nothing = SiteImage(
        time_ns=ns,
        monotonic_ns=ns,
        grid_power_w=None,
        pv_power_w=None,
        batteries={},
        frequency_hz=None,
        loads={"car": None},
    )
    assert agent.propose(nothing, 0.0) == []


LIMITS = {
    "b": BatteryLimits(rated_power_w=5000, rated_energy_wh=6400),
    "car": BatteryLimits(rated_power_w=7400, rated_energy_wh=0, stores=False, idle_below_w=1380),
}


def decided(grid_w, *asked, import_w=12_000):
    now = image(datetime(2026, 6, 10, 20, tzinfo=ZONE), 0.0, grid_w)
    made = [
        Proposal(
            asset_id=asset, priority=rank, source="x", expires_ns=now.monotonic_ns + 1, target_w=target, bounds=bounds
        )
        for asset, rank, target, bounds in asked
    ]
    return {
        one.asset_id: one
        for one in arbitrate(now, made, LIMITS, SiteLimits(import_limit_w=import_w, export_limit_w=8000))
    }


def test_a_car_that_starts_does_not_make_the_battery_jump():
    found = decided(500.0, ("car", Priority.PLAN, 7400.0, None), (GRID_CONNECTION, Priority.PLAN, 500.0, None))
    assert (found["car"].target_w, found["b"].target_w) == (7400, 0)


def test_the_connection_stands_above_the_car_and_the_battery_helps_it():
    found = decided(9000.0, ("car", Priority.PLAN, 7400.0, None))
    assert found["car"].target_w + found["b"].target_w <= 3000
    assert found["car"].target_w == 7400
    found = decided(11_500.0, ("b", Priority.MANUAL_OVERRIDE, 0.0, None), ("car", Priority.PLAN, 7400.0, None))
    assert found["car"].target_w == 0, "500 W are left, and the car holds no less than 1380 W"
    assert found["car"].remaining_w == 7400


def test_a_grid_instruction_stops_the_car():
    cap = Bounds(min_w=-1e9, max_w=1000.0, reason="dimming")
    found = decided(
        800.0, (GRID_CONNECTION, Priority.GRID_INSTRUCTION, None, cap), ("b", Priority.MANUAL_OVERRIDE, 0.0, None),
        ("car", Priority.PLAN, 7400.0, None),
    )  # fmt: skip
    assert found["car"].target_w == 0


@pytest.mark.parametrize("planned_w", [0.0, 3000.0], ids=["nothing planned", "planned late"])
def test_a_site_plan_chooses_the_hours_and_the_need_is_met_whatever_it_says(planned_w):
    def planned(device, utc_ns):
        hour = datetime.fromtimestamp(utc_ns / 1e9, tz=UTC).astimezone(ZONE).hour
        return planned_w if device == "car" and 20 <= hour < 24 else 0.0

    agent = FlexibleAgent((CAR,), TARIFF, ZONE, period_s=60.0, planned=planned)
    energy, _, hours = night((6, 10), agent=agent)
    assert 10_900 <= energy <= 11_300, "a plan that forgets the car does not leave it empty"
    if planned_w:
        assert hours <= {20, 21, 22, 23, 0}
    else:
        assert hours <= {5, 6, 7}, "no time to spare"


def test_the_cloud_is_told_what_loads_need():
    (need,) = FlexibleAgent((CAR,), TARIFF, ZONE, period_s=60.0).needs()
    assert (need.device, need.energy_wh, need.begins, need.ends) == ("car", 11_000, "18:00", "07:00")
    assert need.days == tuple(range(7))
