"""What a gateway keeps of its devices: writes into flash, and energy where a device does not count it."""

import sqlite3

import pytest
from wattmesh_edge.flash import FLASH_TABLE, FlashWrites
from wattmesh_edge.image import ImageMaker
from wattmesh_edge.metering import SLOT_NS, Metering

from .conftest import HandDriver

S = 10**9


def test_writes_into_flash_outlive_the_gateway(tmp_path):
    for day in range(2):
        db = sqlite3.connect(tmp_path / "g.sqlite")
        db.execute(FLASH_TABLE)
        kept = FlashWrites(db, "battery")
        for _ in range(3):
            known = kept.get("active_power_w", (day, 0))
            kept["active_power_w"] = (day, known[1] + 1 if known[0] == day else 1)
        FlashWrites(db, "inverter")["production_limit_percent"] = (day, 1)
        db.close()
    db = sqlite3.connect(tmp_path / "g.sqlite")
    assert dict(FlashWrites(db, "battery")) == {"active_power_w": (1, 3)}
    assert len(FlashWrites(db, "inverter")) == 1
    del FlashWrites(db, "battery")["active_power_w"]
    with pytest.raises(KeyError):
        FlashWrites(db, "battery")["active_power_w"]


@pytest.mark.parametrize(
    ("template", "method"), [("victron_gx_battery", "integral"), ("sungrow_sh_battery", "integral")]
)
async def test_energy_that_a_device_does_not_count_is_integrated_and_said_so(clock, template, method):
    """Victron's battery has no counter, Sungrow's counts in 100 Wh."""
    clock.utc_offset_ns = 1_700_000_100 * S - 1_700_000_100 * S % SLOT_NS
    devices = {
        "meter": HandDriver("meter", "sunspec_meter_203", clock),
        "battery": HandDriver("battery", template, clock, 5000),
    }
    maker = ImageMaker(devices, "meter", 10.0)
    metering = Metering("s", devices, "meter", maker, sqlite3.connect(":memory:"))
    done = []
    for _ in range(100):
        clock.set_ns(clock.monotonic_ns() + 10 * S)
        devices["battery"].set(active_power_w=2000.0)
        for driver in devices.values():
            await driver.poll()
        done += metering.update(maker.make(clock.utc_ns(), clock.monotonic_ns()))
    (slot,) = done
    assert slot.method == method
    assert slot.battery_charge_wh == pytest.approx(500, abs=10)
    assert slot.battery_discharge_wh == 0
