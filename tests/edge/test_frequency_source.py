"""A frequency that is no register: what the driver read goes to the reflex, and only what is good."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
import register_server
from reflex_kernels import config, endpoint, until
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template
from wattmesh_edge.frequency import push_frequency
from wattmesh_edge.reflex import Reflex, sources
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home


class Taken(list):
    def push(self, frequency, voltage):
        self.append((frequency, voltage))


async def test_what_a_driver_read_is_pushed_while_it_is_good(devices):
    taken, meter = Taken(), devices["meter"]
    meter.set(frequency_hz=49.99, voltage_l1_v=231.0)
    await meter.poll()
    push_frequency(taken, meter, "frequency_hz", "voltage_l1_v")
    push_frequency(taken, meter, "frequency_hz", None)
    assert taken == [(49.99, 231.0), (49.99, None)]
    places = {point.id: index for index, point in enumerate(meter.asset.points)}
    meter.qualities[places["voltage_l1_v"]] = Quality.BAD
    push_frequency(taken, meter, "frequency_hz", "voltage_l1_v")
    assert taken[-1] == (49.99, None), "a voltage that is not good is no voltage"
    meter.alive = False
    await meter.poll()
    push_frequency(taken, meter, "frequency_hz", "voltage_l1_v")
    push_frequency(taken, meter, "no_such_point", None)
    assert len(taken) == 3, "a frequency that is not good is none"


@pytest.fixture
def device_port(tmp_path):
    """A device of its own process, that takes the setpoint."""
    process = subprocess.Popen(
        [sys.executable, register_server.__file__, str(tmp_path / "device.log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield int(process.stdout.readline())
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=5)


async def test_a_frequency_of_an_opc_ua_server_is_answered_with_a_setpoint(device_port, tmp_path):
    """Server → driver → push → native thread → setpoint on the wire, as the gateway joins them; only its cycle is shorter."""
    frequency = [60.0]
    home, clock = Home("b05", 40.0, lambda: frequency[0]), ManualClock()
    server = OpcUaServer("wattmesh_opcua_battery", lambda: home.quantities("battery"), lambda _n, _v: None)
    (port,) = free_ports(1)
    await server.start(port)
    driver = create_driver(
        "battery", load_template("wattmesh_opcua_battery"), ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/"), clock,
        rated_power_w=5000,
    )  # fmt: skip
    target = endpoint(function=16, type="s32", address=register_server.SETPOINT, port=device_port)
    settings = config(source=sources.push_source(poll_ms=20), nominal_v=240.0, refresh_ms=50)
    reflex = Reflex(replace(settings, response=replace(settings.response, endpoint=target)), traces=tmp_path / "events")
    try:
        reflex.start()
        reflex.publish(0.0, -5000.0, 5000.0)

        async def cycles_until(done):
            for cycle in range(200):
                if done():
                    return
                frequency[0] += 1e-5 * (-1) ** cycle  # a live grid: a value that never moves is a dead meter
                home.step(10**17 + cycle * 50_000_000, 0.05)
                await server.refresh()
                assert await driver.poll()
                push_frequency(reflex, driver, "frequency_hz", "voltage_l1_v")
                await asyncio.sleep(0.05)
            pytest.fail("never, in 200 cycles")

        await cycles_until(lambda: reflex.snapshot().cause == "valid")
        assert reflex.snapshot().frequency_hz == pytest.approx(60.0, abs=0.01)
        assert reflex.responding() is None
        frequency[0] = 59.4
        await cycles_until(lambda: (reflex.responding() or 0.0) < -800)
        setpoints = [float(line.split()[2]) for line in (tmp_path / "device.log").read_text().splitlines()
                     if line.startswith("setpoint ")]  # fmt: skip
        assert setpoints[-1] < -800
        await server.stop()
        await driver.poll()
        push_frequency(reflex, driver, "frequency_hz", "voltage_l1_v")
        until(lambda: reflex.snapshot().cause != "valid")
        until(lambda: reflex.responding() == 0.0)  # held, then the safe setpoint; never droop on what is gone
    finally:
        reflex.stop()
        await driver.close()
