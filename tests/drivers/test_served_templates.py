"""Every template served as hardware and read by the driver: over TCP, RTU over TCP and RTU over a pty."""

import math

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template, template_ids
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.plant.data import FIRST_NS

MODBUS = [name for name in template_ids() if load_template(name).protocol != "opcua"]
PLAIN = [name for name in MODBUS if load_template(name).protocol == "modbus"]
CONTROLLED = [name for name in MODBUS if load_template(name).controls]
NOON = FIRST_NS + 13 * 3600 * 10**9


def quick(template, **change):
    """The template without its pauses: what is tested with them says so."""
    needs = template.connection.model_copy(update={"connect_delay_ms": 0, "request_gap_ms": 0, **change})
    return template.model_copy(update={"connection": needs})


class Bench:
    """A simulated device and its driver."""

    def __init__(self, device, driver, clock):
        self.device, self.driver, self.clock = device, driver, clock

    async def step(self, seconds=1):
        await self.clock.advance(seconds)
        await self.device.step()


@pytest.fixture
async def served(tmp_path):
    made = []

    async def serve(name, way="tcp", *, strict=True, timeout_ms=400, **options):
        clock = ManualClock(NOON)
        device = SimulatedDevice(name, clock, strict=strict)
        template = quick(load_template(name), timeout_ms=timeout_ms)
        unit = template.connection.unit
        if way == "pty":
            link = tmp_path / f"{name}-{len(made)}"
            await device.serve(pty=link)
            where = ConnectionModel(serial=str(link), baud=115200)
        else:
            await device.serve(framing="rtu" if way == "rtu" else "tcp")
            device.server.connect_delay_s = 0.0
            where = ConnectionModel(host="127.0.0.1", port=device.server.port, framing=way)
        assert where.unit is None, f"the template knows its unit, {unit}"
        driver = create_driver("d", template, where, clock, rated_power_w=5000, rated_energy_wh=6400, **options)
        made.append((driver, device))
        return Bench(device, driver, clock)

    yield serve
    for driver, device in made:
        await driver.close()
        await device.stop()


def grain(template, name):
    """Smallest step of a point on the wire."""
    point = next(point for point in template.points if point.id == name)
    if point.sum is not None:
        return sum(abs(factor) * grain(template, term) for term, factor in point.sum.items())
    if point.model is not None:
        return 1.0
    return point.scale if point.type[0] in "us" else abs(point.scale) * 1e-3


@pytest.mark.parametrize("way", ["tcp", "rtu", "pty"])
@pytest.mark.parametrize("name", MODBUS)
async def test_every_template_reads_what_its_device_has(served, name, way):
    bench = await served(name, way)
    await bench.step()
    await bench.driver.connect()
    assert await bench.driver.poll()
    truth = bench.device.home.quantities(bench.device.kind)
    values = as_mapping(bench.driver)
    assert {point for point, (_, quality) in values.items() if quality != Quality.GOOD} == set()
    known = [point for point in values if point in truth]
    assert {"active_power_w"} <= set(known)
    for point in known:
        value = values[point][0]
        wanted = truth[point]
        if point == "active_power_w" and next(p for p in bench.driver.template.points if p.id == point).sum:
            tolerance = grain(bench.driver.template, point) + 0.035 * abs(wanted)  # of the strings, before the inverter
        else:
            tolerance = grain(bench.driver.template, point) + 1e-6 * abs(wanted)
        assert math.isclose(value, wanted, abs_tol=tolerance), point
    unknown = set(values) - set(known)
    assert not unknown, f"the plant has no value for {unknown}"


@pytest.mark.parametrize("way", ["tcp", "rtu"])
@pytest.mark.parametrize("name", CONTROLLED)
async def test_every_control_moves_its_device(served, name, way):
    bench = await served(name, way)
    driver, home = bench.driver, bench.device.home
    await bench.step()
    await driver.connect()
    assert await driver.poll()
    assert [type(outcome) for outcome in await driver.apply_safe_state()] == [Applied] * len(driver.template.safe_state)
    if driver.template.kind == "ev_charger":
        phases = 1 if name.endswith("_1p") else 3
        for target in (1600 * phases, 0, 1380 * phases, 1000):
            assert await driver.control("active_power_w", target) == Applied(value=target)
            await bench.step(60)
            await driver.poll()
            taken = as_mapping(driver)["active_power_w"][0]
            wanted = target * home.voltage_l1_v() / 230 if target > 1000 else 0.0
            assert taken == pytest.approx(wanted, rel=0.01, abs=1), "a car takes a current, and none below 6 A"
    elif "active_power_w" in driver.template.controls:
        for target in (1500, -2000, 0, 700):
            await bench.step(6)  # what the slowest control takes
            assert await driver.control("active_power_w", target) == Applied(value=target)
            await bench.step()
            assert home.battery.active_w == target
            await driver.poll()
            assert as_mapping(driver)["active_power_w"][0] == pytest.approx(target, abs=1.5)
    if "production_limit_percent" in driver.template.controls:
        before = home.pv_w
        assert before > 0
        await bench.step(6)
        assert await driver.control("production_limit_percent", 10) == Applied(value=10)
        await bench.step()
        assert home.pv_w == pytest.approx(min(before, home.inverter_w * 0.1), rel=0.05)


@pytest.mark.parametrize("name", PLAIN)
async def test_holes_that_a_device_refuses_cost_a_split_once(served, name):
    bench = await served(name, strict=True)
    await bench.step()
    assert await bench.driver.poll()
    split = bench.device.server.requests
    assert await bench.driver.poll()
    once = bench.device.server.requests - split
    assert await bench.driver.poll()
    assert bench.device.server.requests == split + 2 * once, "what was learned is kept"
    assert set(bench.driver.qualities) == {Quality.GOOD}
