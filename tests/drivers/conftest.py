"""A simulated home on loopback, in virtual time."""

import asyncio

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template
from wattmesh_simulators.fleet import Fleet, FleetModel
from wattmesh_simulators.plant.data import FIRST_NS


class Bench:
    """Hardware and drivers of one home."""

    def __init__(self, fleet, clock, task):
        self.fleet, self.clock, self.task = fleet, clock, task
        self.drivers = []

    def driver(self, kind, template, *, timeout_ms=None, rated_power_w=5000):
        loaded = load_template(template)
        if timeout_ms:
            needs = loaded.connection.model_copy(update={"timeout_ms": timeout_ms})
            loaded = loaded.model_copy(update={"connection": needs})
        port = self.fleet.servers["h", kind].port
        driver = create_driver(
            kind, loaded, ConnectionModel(host="127.0.0.1", port=port), self.clock, rated_power_w=rated_power_w
        )
        self.drivers.append(driver)
        return driver

    def faults(self, kind):
        return self.fleet.servers["h", kind].faults

    @property
    def home(self):
        return self.fleet.homes["h"]


@pytest.fixture
async def bench():
    model = FleetModel.model_validate(
        {"sites": [{"id": "h", "home": "b01", "inverter": {"port": 0}, "battery": {"port": 0}, "meter": {"port": 0}}]}
    )
    clock = ManualClock(FIRST_NS + 12 * 3600 * 10**9)
    fleet = Fleet(model, clock, None)
    await fleet.start()
    task = asyncio.create_task(fleet.run(1.0))
    await clock.advance(5)
    made = Bench(fleet, clock, task)
    yield made
    for driver in made.drivers:
        await driver.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await fleet.stop()
