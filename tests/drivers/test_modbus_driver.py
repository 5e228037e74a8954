"""Drivers against simulated hardware, whose codec is another one, and against pymodbus's server."""

import asyncio
import itertools

import pytest
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied, Failed, Rejected
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import UnavailableError
from wattmesh_drivers.driver import DriverState, as_mapping
from wattmesh_drivers.modbus.link import ModbusLink, RefusedError


async def test_a_meter_reads_what_the_plant_has(bench):
    driver = bench.driver("meter", "sunspec_meter_203")
    assert await driver.poll()
    values = as_mapping(driver)
    assert values["active_power_w"] == (pytest.approx(bench.home.grid_w, abs=0.51), Quality.GOOD)
    assert values["energy_import_wh"][0] == pytest.approx(bench.home.import_wh, abs=0.51)
    assert set(driver.source_times_ns) == {bench.clock.utc_ns()}


async def test_signs_are_passive_above_the_driver(bench):
    inverter, battery = bench.driver("inverter", "sunspec_inverter"), bench.driver("battery", "sunspec_battery")
    await inverter.poll()
    assert as_mapping(inverter)["active_power_w"][0] == pytest.approx(-bench.home.pv_w, abs=0.51)
    await battery.poll()
    assert await battery.control("active_power_w", 1500) == Applied(value=1500)
    await bench.clock.advance(2)
    await battery.poll()
    assert as_mapping(battery)["active_power_w"][0] == 1500
    assert bench.home.battery.active_w == 1500


async def test_a_control_outside_its_limits_writes_nothing(bench):
    driver = bench.driver("battery", "sunspec_battery")
    await driver.poll()
    for value in (5001, -6000, float("nan"), float("inf")):
        assert isinstance(await driver.control("active_power_w", value), Rejected)
    assert isinstance(await driver.control("no_such_control", 0), Rejected)
    assert bench.home.writes == 0


def with_control(driver, **change):
    """The driver's battery control as a template of its own would have it."""
    control = driver.template.controls["active_power_w"].model_copy(update=change)
    driver.template = driver.template.model_copy(update={"controls": {"active_power_w": control}})
    return driver


async def test_a_control_kept_in_flash_has_a_budget_a_day(bench):
    driver = with_control(bench.driver("battery", "sunspec_battery"), storage="flash", writes_per_day=3)
    await driver.poll()
    for value in (100, 200, 200, 300):
        assert isinstance(await driver.control("active_power_w", value), Applied)
    writes = bench.home.writes
    refused = await driver.control("active_power_w", 400)
    assert isinstance(refused, Rejected)
    assert "of its 3 writes a day" in refused.reason
    assert bench.home.writes == writes, "an unchanged value cost nothing, a refused one neither"
    assert isinstance((await driver.apply_safe_state())[0], Applied), "safety has no budget"
    await bench.clock.advance(24 * 3600)
    await driver.poll()
    assert isinstance(await driver.control("active_power_w", 400), Applied), "a new day"


async def test_a_days_flash_writes_are_spread_over_it(bench):
    kept = {}
    driver = with_control(bench.driver("battery", "sunspec_battery"), storage="flash", writes_per_day=100)
    driver._flash_writes = kept
    await driver.poll()
    hour = bench.clock.utc_ns() / 3600e9 % 24
    done = 0
    while isinstance(await driver.control("active_power_w", done), Applied):
        done += 1
    assert done == pytest.approx(10 + 90 * hour / 24, abs=1)
    assert kept["active_power_w"][1] == done, "the budget outlives the driver"
    await bench.clock.advance(1200)  # 90 writes a day are one in 16 minutes
    await driver.poll()
    assert isinstance(await driver.control("active_power_w", done), Applied)
    assert isinstance(await driver.control("active_power_w", done + 1), Rejected)


async def test_a_controls_pace_is_kept(bench):
    driver = with_control(bench.driver("battery", "sunspec_battery"), minimum_interval_ms=5000)
    await driver.poll()
    assert isinstance(await driver.control("active_power_w", 100), Applied)
    await bench.clock.advance(2)
    assert isinstance(await driver.control("active_power_w", 200), Rejected)
    await bench.clock.advance(4)
    assert isinstance(await driver.control("active_power_w", 200), Applied)


async def test_an_unchanged_setpoint_is_rewritten_before_the_watchdog_bites(bench):
    driver = bench.driver("battery", "sunspec_battery")
    await driver.poll()
    await driver.control("active_power_w", -800)
    first = bench.home.writes
    for _ in range(20):
        await bench.clock.advance(1)
        await driver.control("active_power_w", -800)
    assert bench.home.writes == first, "nothing is written while it need not be"
    for _ in range(200):
        await bench.clock.advance(1)
        await driver.control("active_power_w", -800)
    assert bench.home.setpoint.reverted == 0
    await bench.clock.advance(61)  # nobody renews it any more
    assert bench.home.setpoint.reverted == 1
    assert bench.home.battery.active_w == 0


@pytest.mark.parametrize(
    "fault",
    ["silent", "wrong_transaction", "wrong_function", "wrong_unit", "short", "drop"],
)
async def test_no_good_value_comes_of_a_bad_answer(bench, fault):
    driver = bench.driver("meter", "sunspec_meter_203", timeout_ms=60)
    assert await driver.poll()
    setattr(bench.faults("meter"), fault, True)
    await driver.poll()
    assert set(driver.qualities) == {Quality.BAD}
    assert all(value != value for value in driver.values)  # NaN
    assert driver.state is DriverState.BACKING_OFF
    setattr(bench.faults("meter"), fault, False)
    assert await driver.poll(), "alone on its line it is asked at every poll"
    assert set(driver.qualities) == {Quality.GOOD}


async def test_a_busy_device_is_bad_and_asked_again(bench):
    driver = bench.driver("meter", "sunspec_meter_203")
    await driver.poll()
    bench.faults("meter").exception = 6
    assert not await driver.poll()
    assert set(driver.qualities) == {Quality.BAD}


async def test_a_write_that_is_not_confirmed_is_failed_and_not_repeated(bench):
    driver = bench.driver("battery", "sunspec_battery", timeout_ms=60)
    await driver.poll()
    bench.faults("battery").silent = True
    outcome = await driver.control("active_power_w", 500)
    assert isinstance(outcome, Failed)
    assert outcome.retryable
    assert bench.home.writes == 0


async def test_an_absent_device_that_shares_a_line_is_tried_again_after_growing_pauses(bench):
    driver = bench.driver("meter", "sunspec_meter_203")
    driver._link.line.shared = True
    await bench.fleet.servers["h", "meter"].stop()
    now = [1000.0]
    driver._monotonic = lambda: now[0]
    tried = []
    for _ in range(400):
        before = driver.counters["failed_polls"]
        assert not await driver.poll()
        if driver._attempt is not None:
            await asyncio.wait({driver._attempt}, timeout=5)
        if driver.counters["failed_polls"] != before:
            tried.append(now[0])
        now[0] += 0.1
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    for pause, wanted in zip(pauses, (0.5, 1, 2, 4, 8, 10, 10), strict=False):
        assert 0.75 * wanted <= pause <= 1.25 * wanted + 0.2
    assert len(pauses) >= 6
    assert driver.counters["polls"] == 0


async def test_an_independent_server_answers_the_link_alike():
    data = [SimData(0, values=[0x5375, 0x6E53, 1, 42], datatype=DataType.REGISTERS)]
    server = ModbusTcpServer(SimDevice(id=3, simdata=data), address=("127.0.0.1", 0))
    await server.listen()
    port = server.transport.sockets[0].getsockname()[1]
    link = ModbusLink.tcp("127.0.0.1", port, 3, timeout_s=1.0)
    try:
        await link.open()
        assert list(await link.read(3, 0, 4)) == [0x5375, 0x6E53, 1, 42]
        await link.write(6, 3, [77])
        await link.write(16, 2, [5, 6])
        assert list(await link.read(3, 2, 2)) == [5, 6]
        with pytest.raises(RefusedError):
            await link.read(3, 100, 2)
    finally:
        link.close()
        await server.shutdown()


async def test_nobody_there_is_one_clear_error():
    link = ModbusLink.tcp("127.0.0.1", 1, 1, timeout_s=0.5)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        await link.open()
    await asyncio.sleep(0)
    assert ManualClock().monotonic_ns() == 0
