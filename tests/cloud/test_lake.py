"""A day of samples goes to Parquet and comes back by SQL as it was stored."""

import json
import math
from array import array

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.telemetry import ColumnBatch
from wattmesh_cloud.lake import Lake

DAY_NS = 86_400 * NS_PER_S
NAMES = ["meter.active_power_w", "battery.soc_percent"]


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake")


@pytest.fixture
def filled(store, midnight_ns):
    """Hourly samples of a day and of the hour after it."""

    def fill(site="home-1", add=0.0, sequence=1):
        times = [midnight_ns + hour * 3600 * NS_PER_S for hour in range(25)]
        batch = ColumnBatch(
            site_id=site,
            session="s",
            stream="points",
            sequence=sequence,
            columns=tuple(NAMES),
            times_ns=array("q", times),
            values=(
                array("d", [hour + add for hour in range(25)]),
                array("d", [math.nan if hour == 3 else 50.0 for hour in range(25)]),
            ),
            qualities=(bytes(25), bytes(2 if hour == 3 else 0 for hour in range(25))),
        )
        store.append([batch], {})

    return fill


def test_a_day_round_trips_with_nan_and_quality(lake, store, filled, midnight_ns, tmp_path):
    filled()
    assert lake.compact(store, "home-1", NAMES, midnight_ns + 7 * 3600 * NS_PER_S) == 48
    assert lake.files() == {"site=home-1/day=2023-11-15.parquet": 48}
    rows = lake.query("SELECT time_ns, value, quality, site FROM samples WHERE point LIKE '%power_w' ORDER BY time_ns")
    assert rows == [(midnight_ns + hour * 3600 * NS_PER_S, float(hour), 0, "home-1") for hour in range(24)]
    ((value, quality),) = lake.query(
        f"SELECT value, quality FROM samples WHERE point LIKE '%soc%' AND time_ns = {midnight_ns + 3 * 3600 * NS_PER_S}"
    )
    assert math.isnan(value)
    assert quality == 2
    assert not list((tmp_path / "lake").rglob("*.draft"))


def test_sites_and_days_are_files_of_their_own(lake, store, filled, midnight_ns):
    filled()
    filled("home-2", add=100.0)
    for site in ("home-1", "home-2"):
        for day in (0, 1):
            lake.compact(store, site, NAMES, midnight_ns + day * DAY_NS)
    assert lake.files() == {
        f"site={site}/day=2023-11-{day}.parquet": rows
        for site in ("home-1", "home-2")
        for day, rows in ((15, 48), (16, 2))
    }
    top = lake.query("SELECT site, max(value) FROM samples WHERE point LIKE '%power_w' GROUP BY site ORDER BY site")
    assert top == [("home-1", 24.0), ("home-2", 124.0)]


def test_done_again_it_replaces_the_file(lake, store, filled, midnight_ns):
    filled()
    lake.compact(store, "home-1", NAMES[:1], midnight_ns)
    filled(add=0.5, sequence=2)
    lake.compact(store, "home-1", NAMES[:1], midnight_ns)
    ((count,),) = lake.query("SELECT count(*) FROM samples")
    assert lake.files() == {"site=home-1/day=2023-11-15.parquet": count}
    assert count == 48, "two batches with different values at the same times: both are kept, neither twice"


def test_a_file_that_is_not_in_the_manifest_is_not_read(lake, store, filled, midnight_ns, tmp_path):
    filled()
    lake.compact(store, "home-1", NAMES, midnight_ns)
    lake.compact(store, "home-1", NAMES, midnight_ns + DAY_NS)
    manifest = tmp_path / "lake" / "manifest.json"
    manifest.write_text(json.dumps({"site=home-1/day=2023-11-16.parquet": 2}))
    assert lake.query("SELECT count(*) FROM samples") == [(2,)]
