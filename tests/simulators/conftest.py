"""One simulated home on loopback, in virtual time."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_simulators.fleet import Fleet, FleetModel
from wattmesh_simulators.plant.data import FIRST_NS

NOON_NS = FIRST_NS + 13 * 3600 * 10**9


def fleet_model(*, meter="sunspec_meter_203", battery="sunspec_battery", battery_port=0, **more) -> FleetModel:
    site: dict[str, Any] = {
        "id": "h",
        "home": "b01",
        "inverter": {"port": 0},
        "battery": {"port": battery_port, "template": battery, "initial_soc_percent": 50},
        "meter": {"port": 0, "template": meter},
    }
    return FleetModel.model_validate({"sites": [site], **more})


@pytest.fixture
def make_model():
    return fleet_model


@pytest.fixture
def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def run_fleet():
    """An async context: a fleet that runs in virtual time, and its clock."""

    @contextlib.asynccontextmanager
    async def running(model, state=None, *, at_ns=NOON_NS, step_s=10.0, **injected):
        clock = ManualClock(at_ns)
        fleet = Fleet(model, clock, state, **injected)
        await fleet.start()
        task = asyncio.create_task(fleet.run(step_s))
        await clock.advance(step_s)
        try:
            yield fleet, clock
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await fleet.stop()

    return running
