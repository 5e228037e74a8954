"""What ages is found, what is healthy is left in peace: on years of simulated weather."""

import random
import sqlite3

import pytest
from aging_fleet import fleet, year
from wattmesh_a2a.devices import AssetKind
from wattmesh_edge.change import baseline_of, find_change, values_between_false_alarms
from wattmesh_edge.maintenance import Maintenance
from wattmesh_edge.sun import Plane, clear_sky_share


@pytest.mark.parametrize(
    ("fault", "at_most_days", "more"),
    [
        ("soiling", 365, {"days": 485}),
        ("string", 7, {}),
        ("string", 100, {"strings": False}),
        ("fade", 160, {}),
        ("fan", 14, {}),
        ("resistance", 240, {}),
        ("phase", 7, {"days": 140}),
        ("neutral", 7, {"days": 140}),
        ("cycling", 14, {"days": 140}),
        ("bus", 14, {"days": 140}),
    ],
)
def test_what_ages_is_found(fault, at_most_days, more):
    found, delays, false = fleet(range(2), fault, **more)
    assert found == 2
    assert delays[-1] <= at_most_days
    assert false <= 2


def test_a_healthy_fleet_has_at_most_one_false_alarm_a_site_year():
    _, _, false = fleet(range(5))
    assert false <= 2


def test_an_alarm_tells_evidence_and_advice_and_is_over_when_repaired():
    ((_, alarm), *_) = year(1, "string", days=130)
    assert "string 2 is 0, -100 % against" in alarm.text
    assert "by chance less than once in" in alarm.text
    assert "check the string" in alarm.text
    assert alarm.severity == "critical"


def test_noise_alone_is_left_in_peace_for_longer_than_stated_needs():
    rng, alarms = random.Random(5), 0
    for _ in range(40):
        values = [rng.gauss(100, 2) for _ in range(1000)]
        baseline = baseline_of(values, 28, 0.1)
        alarms += find_change(values, baseline, down=True, least=0.0) is not None
    assert values_between_false_alarms() > 100_000
    assert alarms <= 4, "the baseline is estimated, so it is more than the formula says"


def test_a_change_is_dated_and_a_repair_ends_it():
    values = [10.0, 10.2, 9.9, 10.1] * 7 + [8.0] * 10
    baseline = baseline_of(values, 28, 0.1)
    change = find_change(values, baseline, down=True, least=1.0)
    assert (change.began, change.level) == (28, 8.0)
    assert find_change(values, baseline, down=False, least=1.0) is None
    assert find_change([*values, *[10.1] * 40], baseline, down=True, least=1.0) is None
    assert baseline_of(values[:27], 28, 0.1) is None


def test_one_odd_day_says_nothing():
    values = [10.0, 10.2, 9.9, 10.1] * 7 + [0.0, 0.0, 10.0, 10.0]
    assert find_change(values, baseline_of(values, 28, 0.1), down=True, least=0.1) is None


def test_the_sun_is_where_it_is():
    berlin = Plane(latitude_deg=52.5, longitude_deg=13.4, tilt_deg=0)
    noon = 1_718_967_600 * 10**9  # 2024-06-21 11:00 UTC: near noon of Berlin
    assert 0.75 < clear_sky_share(berlin, noon) < 0.95
    assert clear_sky_share(berlin, noon + 12 * 3600 * 10**9) == 0
    sydney = Plane(latitude_deg=-33.9, longitude_deg=151.2, tilt_deg=30, azimuth_deg=0)
    assert clear_sky_share(sydney, noon - 9 * 3600 * 10**9) > 0.5


def test_what_is_watched_goes_on_over_a_restart(tmp_path):
    from aging_fleet import BATTERY, Device
    from wattmesh_edge.image import ImageMaker

    devices = {"battery": Device("battery", AssetKind.BATTERY, BATTERY, 3000.0)}
    maker = ImageMaker(
        {**devices, "meter": Device("meter", AssetKind.METER, ("active_power_w",), None)}, "meter", 300.0
    )
    db = sqlite3.connect(tmp_path / "db")
    Maintenance("home", devices, maker, {}, db)
    rows = [("battery", "capacity", 100 + day, 10_000.0 - (1500 if day > 30 else 0)) for day in range(45)]
    db.executemany("INSERT INTO health VALUES (?, ?, ?, ?)", rows)
    again = Maintenance("home", devices, maker, {}, db)
    (alarm,) = again.alarms.values()
    assert "-15 % against 1e+04 before" in alarm.text


def test_a_battery_hears_of_its_guarantee_before_it_ends(tmp_path):
    from aging_fleet import BATTERY, Device
    from wattmesh_edge.image import ImageMaker

    devices = {"battery": Device("battery", AssetKind.BATTERY, BATTERY, 3000.0, 10_000.0)}
    meter = {"meter": Device("meter", AssetKind.METER, ("active_power_w",), None)}
    maker = ImageMaker({**devices, **meter}, "meter", 300.0)
    db = sqlite3.connect(tmp_path / "db")
    watch = Maintenance("home", devices, maker, {}, db, {"battery": 1000.0})

    def alarms():
        return list(Maintenance("home", devices, maker, {}, db, {"battery": 1000.0}).alarms.values())

    db.executemany("INSERT INTO health VALUES ('battery', 'cycling', ?, 1.0)", [(day,) for day in range(700)])
    assert alarms() == []
    db.executemany("INSERT INTO health VALUES ('battery', 'cycling', ?, 1.0)", [(day,) for day in range(700, 850)])
    (alarm,) = alarms()
    assert "850 full cycles counted, 85 % of the 1000" in alarm.text
    assert alarm.severity == "info"
    watch._day = 2000  # what is older than the table is kept as a sum
    watch._close_day()
    assert watch.cycles("battery") == 850
    watch._close_day()
    assert watch.cycles("battery") == 850
    db.executemany("INSERT INTO health VALUES ('battery', 'cycling', ?, 1.0)", [(day,) for day in range(1500, 1700)])
    assert {one.severity for one in alarms()} == {"warning"}


def test_small_signs():
    from wattmesh_edge.signs import Resistance, imbalance, voltage_unbalance

    assert imbalance([-1000, -1000, -1000], 4000) == 0
    assert imbalance([-1500, -1500, 0.0], 4000) == pytest.approx(1.0)
    assert imbalance([-1500, None, 0.0], 4000) is None
    assert imbalance([-10, -10, -40], 4000) is None, "too little to say"
    assert voltage_unbalance([230, 230, 236.9]) == pytest.approx(0.0198, abs=1e-3)
    assert voltage_unbalance([230, 0.0, 230]) is None
    cells = Resistance()
    for step in range(12):
        amperes = 50.0 * (step % 2)
        cells.take(step * 60 * 10**9, 51 + 0.04 * amperes, amperes, 50.0, 25.0, 3000.0)
    assert cells.value() == pytest.approx(40.0)
    cold = Resistance()
    for step in range(12):
        cold.take(step * 60 * 10**9, 51 + 2.0 * (step % 2), 50.0 * (step % 2), 50.0, 5.0, 3000.0)
    assert cold.value() is None
    slow = Resistance()
    for step in range(12):
        slow.take(step * 900 * 10**9, 51 + 2.0 * (step % 2), 50.0 * (step % 2), 50.0, 25.0, 3000.0)
    assert slow.value() is None, "samples too far apart are no step"
