"""A device that is slow or silent costs its own knowledge, and neither anybody else's cycle nor the export limit."""

import asyncio

import pytest
from virtual_time import LoopClock, VirtualLoop
from wattmesh_a2a.control import GRID_CONNECTION, Failed, Priority, Proposal
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.image import ImageMaker
from wattmesh_edge.limits import BatteryLimits, SiteLimits

from .conftest import HandDriver


class Wish:
    name = "wish"

    def propose(self, image, _traded):
        return [
            Proposal(
                asset_id=GRID_CONNECTION, priority=Priority.PLAN, source="w", expires_ns=image.monotonic_ns + 4 * 10**9,
                target_w=0.0,
            )
        ]  # fmt: skip


def cycles(poll_s, seconds=30):
    """Control at 1 s, in the loop's own time, where each poll of the inverter takes ``poll_s``: ``(control, rows)``."""

    async def go():
        clock, rows = LoopClock(asyncio.get_running_loop()), []
        devices = {
            "inverter": HandDriver("inverter", "sunspec_inverter", clock, 4000),
            "battery": HandDriver("battery", "sunspec_battery", clock, 5000),
            "meter": HandDriver("meter", "sunspec_meter_203", clock),
        }
        devices["battery"].set(soc_percent=50.0)
        devices["meter"].set(active_power_w=800.0)
        quick = devices["inverter"].poll

        async def slow():
            await asyncio.sleep(poll_s)
            return await quick()

        devices["inverter"].poll = slow
        control = ControlCycle(
            devices, ImageMaker(devices, "meter", 1.0), [Wish()],
            {"battery": BatteryLimits(rated_power_w=5000, rated_energy_wh=6400)},
            SiteLimits(import_limit_w=12_000, export_limit_w=8000), clock, period_s=1.0,
            record=lambda image, *_: rows.append(image), traded_wh=lambda: 0.0, real_ns=lambda: 0,
        )  # fmt: skip
        running = asyncio.create_task(control.run())
        await asyncio.sleep(seconds + 0.99)
        control.stop()
        await running
        return control, rows

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(go())


@pytest.mark.parametrize("poll_s", [0.0, 0.5, 0.9, 2.5, 7.0])
def test_a_slow_poll_never_costs_a_cycle(poll_s):
    control, rows = cycles(poll_s)
    assert control.counts["cycles"] == 30
    assert [row.monotonic_ns // 10**9 for row in rows] == list(range(1, 31))
    assert control.overrun_max_ns <= 0, "a cycle waits for polls for less than its period"
    assert all(row.grid_power_w is not None and row.grid_power_w.value == 800 for row in rows)
    waited = [row.monotonic_ns % 10**9 for row in rows]
    assert max(waited) <= 0.8 * 10**9 + 1
    assert (control.counts["slow_polls"] > 0) == (poll_s > 0.8)
    known = sum(row.pv_power_w is not None for row in rows)
    if poll_s <= 2.5:
        assert known >= 30 - 1 - round(poll_s), (
            "its values are as old as its polls are slow, and no older than believed"
        )
    else:
        assert 5 <= known <= 20, "what is older than three periods is not known"


class Plant:
    """Two inverters under one sun; the second can fall silent, and goes on with what it was told last."""

    def __init__(self, clock, export_w):
        self.clock = clock
        self.devices = {
            "a": HandDriver("a", "sunspec_inverter", clock, rated_power_w=5000),
            "b": HandDriver("b", "sunspec_inverter", clock, rated_power_w=5000),
            "meter": HandDriver("meter", "sunspec_meter_203", clock),
        }
        self.sun = 0.9
        self.cycle = ControlCycle(
            self.devices, ImageMaker(self.devices, "meter", 1.0), [], {},
            SiteLimits(import_limit_w=12_000, export_limit_w=export_w), clock, period_s=1.0,
            record=lambda *_: None, traded_wh=lambda: 0.0, real_ns=lambda: 0,
        )  # fmt: skip

    async def step(self, load_w=300.0):
        total = 0.0
        for name in ("a", "b"):
            told = self.devices[name].written
            percent = told[-1][1] if told else 100.0
            power = 5000 * min(self.sun, percent / 100)
            self.devices[name].set(active_power_w=-power)
            total += power
        self.devices["meter"].set(active_power_w=load_w - total)
        self.clock.set_ns(self.clock.monotonic_ns() + 10**9)
        await self.cycle.cycle()
        return load_w - total


async def test_the_export_limit_is_kept_with_one_inverter_silent(clock):
    plant = Plant(clock, export_w=6000.0)
    plant.devices["b"].alive = False
    plant.devices["b"].outcome = Failed(reason="silent", retryable=True)
    course = [await plant.step() for _ in range(15)]
    assert course[0] == -8700
    assert min(course[3:]) >= -6000 - 1, "the one that answers makes up for the one that does not"
    assert course[-1] <= -5000, "and gives away no more than that"
    plant.devices["b"].alive, plant.devices["b"].outcome = True, None
    course = [await plant.step() for _ in range(15)]
    assert min(course[1:]) >= -6000 - 1
    plant.sun = 0.3
    for _ in range(30):
        flow = await plant.step()
    assert flow == 300 - 3000, "let go again"
    told = {device.written[-1][1] for name, device in plant.devices.items() if name != "meter"}
    assert len(told) == 1
    assert min(told) > 60, "both alike again, and above what the sun gives"


async def test_with_every_inverter_silent_they_are_told_what_may_be_exported_with_no_load(clock):
    plant = Plant(clock, export_w=6000.0)
    await plant.step()
    for name in ("a", "b"):
        plant.devices[name].alive = False
    await plant.step()
    assert plant.devices["a"].written[-1][1] <= 60.0
