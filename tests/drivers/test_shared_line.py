"""Several units behind one endpoint, one of them dead: the others are read as if it were not there."""

import asyncio

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.template import load_template
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.modbus_server import ModbusUnit
from wattmesh_simulators.plant.data import FIRST_NS

TIMEOUT_S = 0.4
UNITS = (1, 2, 3)


@pytest.fixture(params=["tcp", "rtu", "pty"])
async def line(request, tmp_path):
    """A server with three meters behind it, and their drivers on one line; real time passes in seconds of a tenth."""
    clock = ManualClock(FIRST_NS + 13 * 3600 * 10**9)
    devices = [SimulatedDevice("eastron_sdm120", clock) for _ in UNITS]
    if request.param == "pty":
        await devices[0].serve(pty=tmp_path / "line")
        where = {"serial": str(tmp_path / "line"), "baud": 115200}
    else:
        await devices[0].serve(framing=request.param)
        where = {"host": "127.0.0.1", "port": devices[0].server.port, "framing": request.param}
    server = devices[0].server
    for unit, device in zip(UNITS[1:], devices[1:], strict=True):
        server.units[unit] = ModbusUnit(device.registers())
    template = load_template("eastron_sdm120")
    needs = template.connection.model_copy(update={"timeout_ms": round(TIMEOUT_S * 1000)})
    template = template.model_copy(update={"connection": needs})
    pool = LinePool()
    now = [0.0]
    drivers = [
        create_driver(
            f"m{unit}", template, ConnectionModel(unit=unit, **where), clock, lines=pool, monotonic=lambda: now[0]
        )
        for unit in UNITS
    ]
    await asyncio.gather(*(driver.connect() for driver in drivers))
    yield server, drivers, now
    await asyncio.gather(*(driver.close() for driver in drivers))
    await devices[0].stop()


async def test_a_dead_unit_costs_the_others_one_time_out_and_then_next_to_nothing(line):
    server, drivers, now = line
    loop = asyncio.get_running_loop()
    for _ in range(3):
        assert all(await asyncio.gather(*(driver.poll() for driver in drivers)))
    server.units[2].faults.silent = True
    spent = []
    for _ in range(60):  # a minute of polls
        began = loop.time()
        answered = await asyncio.gather(*(driver.poll() for driver in drivers))
        spent.append(loop.time() - began)
        now[0] += 1.0
        assert answered == [True, False, True]
        assert set(drivers[0].qualities) == set(drivers[2].qualities) == {Quality.GOOD}
        assert set(drivers[1].qualities) == {Quality.BAD}
        if drivers[1]._attempt is not None:  # the rest of the second passes
            await asyncio.wait({drivers[1]._attempt}, timeout=5)
    held_up = [one for one in spent if one > 0.15]
    probes = drivers[1].counters["failed_polls"]
    assert 5 <= probes <= 12, "it is looked for less and less often: 0.5, 1, 2, 4, 8, 10, 10 s"
    assert len(held_up) <= probes + 2, "nobody waits but for a probe that is under way"
    assert max(spent[3:]) <= 2.5 * TIMEOUT_S
    server.units[2].faults.silent = False
    for _ in range(15):
        now[0] += 1.0
        answered = await asyncio.gather(*(driver.poll() for driver in drivers))
        if drivers[1]._attempt is not None:
            await asyncio.wait({drivers[1]._attempt}, timeout=5)
        if all(answered):
            break
    assert all(answered), "and it is back within the longest pause"
