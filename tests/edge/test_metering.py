"""Energy of each slot, whatever happens to the gateway in between."""

import sqlite3

import pytest
from wattmesh_edge.image import ImageMaker
from wattmesh_edge.metering import SLOT_NS, Metering

S = 10**9


@pytest.fixture
def site(devices, clock):
    clock.utc_offset_ns = 1_700_000_100 * S - 1_700_000_100 * S % SLOT_NS
    return devices


def make(devices, db):
    maker = ImageMaker(devices, "meter", 10.0)
    return Metering("home-1", devices, "meter", maker, db), maker


async def run(devices, clock, metering, maker, seconds, load_w=1000.0, step=10):
    done = []
    places = {point.id: index for index, point in enumerate(devices["meter"].asset.points)}
    for _ in range(round(seconds / step)):
        clock.set_ns(clock.monotonic_ns() + step * S)
        devices["meter"].values[places["energy_import_wh"]] += load_w * step / 3600
        devices["meter"].set(active_power_w=load_w)
        for driver in devices.values():
            await driver.poll()
        done += metering.update(maker.make(clock.utc_ns(), clock.monotonic_ns()))
        metering.save()
    return done


async def test_a_slot_is_the_difference_of_the_counters(site, clock):
    metering, maker = make(site, sqlite3.connect(":memory:"))
    done = await run(site, clock, metering, maker, 2 * 900 + 20)
    assert [one.import_wh for one in done] == pytest.approx([250, 250], abs=4)
    assert [one.method for one in done] == ["register", "register"]
    assert all(one.complete and one.load_wh == one.import_wh for one in done)


async def test_a_restart_in_mid_slot_still_gives_the_whole_slot(site, clock, tmp_path):
    db = sqlite3.connect(tmp_path / "g.sqlite")
    metering, maker = make(site, db)
    await run(site, clock, metering, maker, 400)
    again, maker = make(site, sqlite3.connect(tmp_path / "g.sqlite"))
    (one,) = await run(site, clock, again, maker, 520)
    assert one.complete
    assert one.import_wh == pytest.approx(250, abs=4)


async def test_energy_of_an_absence_is_spread_and_none_is_missing(site, clock, tmp_path):
    metering, maker = make(site, sqlite3.connect(tmp_path / "g.sqlite"))
    first = await run(site, clock, metering, maker, 1000)
    places = {point.id: index for index, point in enumerate(site["meter"].asset.points)}
    site["meter"].values[places["energy_import_wh"]] += 2 * 900 * 1000 / 3600
    clock.set_ns(clock.monotonic_ns() + 2 * 900 * S)  # away over two boundaries
    again, maker = make(site, sqlite3.connect(tmp_path / "g.sqlite"))
    later = await run(site, clock, again, maker, 10)
    assert len(first) == 1
    assert len(later) == 2
    assert not any(one.complete for one in later)
    assert later[0].slot_start_ns == first[0].slot_start_ns + SLOT_NS
    total = 1000 / 3600 * clock.monotonic_ns() / S
    assert sum(one.import_wh for one in first + later) == pytest.approx(total, abs=6)


async def test_a_first_slot_that_began_late_is_incomplete(site, clock):
    clock.set_ns(400 * S)
    metering, maker = make(site, sqlite3.connect(":memory:"))
    done = await run(site, clock, metering, maker, 520)
    assert [one.complete for one in done] == [False]


async def test_a_coarse_counter_is_replaced_by_integrated_power(clock, devices):
    clock.utc_offset_ns = 1_700_000_100 * S - 1_700_000_100 * S % SLOT_NS
    devices["meter"] = type(devices["meter"])("meter", "carlo_gavazzi_em340", clock)
    metering, maker = make(devices, sqlite3.connect(":memory:"))
    (one,) = await run(devices, clock, metering, maker, 920)
    assert one.method == "integral"
    assert one.import_wh == pytest.approx(250, abs=4)
