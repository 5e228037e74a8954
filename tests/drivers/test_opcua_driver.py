"""The OPC UA driver against a simulated server."""

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home


@pytest.fixture
async def battery():
    home, clock = Home("b05", 40.0, lambda: 60.0), ManualClock()
    server = OpcUaServer(
        "wattmesh_opcua_battery", lambda: home.quantities("battery"), lambda n, v: home.write(n, v, clock.utc_ns())
    )
    (port,) = free_ports(1)
    await server.start(port)
    url = ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/")
    driver = create_driver("battery", load_template("wattmesh_opcua_battery"), url, clock, rated_power_w=5000)
    yield driver, home, server
    await driver.close()
    await server.stop()


async def test_values_and_writes_pass(battery):
    driver, home, server = battery
    assert await driver.poll()
    assert as_mapping(driver)["soc_percent"] == (pytest.approx(40.0), Quality.GOOD)
    assert await driver.control("active_power_w", -1200.0) == Applied(value=-1200.0)
    assert home.setpoint.value == -1200.0
    assert home.setpoint.timeout_s == 60
    home.step(10**18, 10.0)
    await server.refresh()
    await driver.poll()
    assert as_mapping(driver)["active_power_w"][0] == pytest.approx(-1200.0)


async def test_a_server_that_is_gone_leaves_bad_quality(battery):
    driver, _, server = battery
    assert await driver.poll()
    await server.stop()
    assert not await driver.poll()
    assert set(driver.qualities) == {Quality.BAD}
