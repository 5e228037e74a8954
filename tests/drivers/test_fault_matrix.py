"""Every fault × TCP, RTU over TCP and RTU over a pty × read and write, in the same words for all.

What is held: no value of good quality that the device does not have; bad quality within two polls; good again at the first poll
after the fault; and no register written twice for one control.
"""

import asyncio
import contextlib

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied, Failed
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import FrozenModel, load_template
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.modbus_server import SerialServer
from wattmesh_simulators.plant.data import FIRST_NS

TIMEOUT_MS = 150
WAYS = ("tcp", "rtu", "pty")
SWITCHED = {
    "late": {"delay_s": 1.5 * TIMEOUT_MS / 1000},
    "short": {"short": True},
    "wrong function": {"wrong_function": True},
    "wrong unit": {"wrong_unit": True},
    "wrong transaction": {"wrong_transaction": True},  # TCP alone has one
    "corrupt": {"corrupt": True},
    "silence": {"silent": True},
    "drop in mid-frame": {"drop": True},
    **{f"exception {code}": {"exception": code} for code in (1, 2, 3, 4, 5, 6, 8, 10, 11)},
}
MATRIX = [(fault, way) for fault in SWITCHED for way in WAYS if fault != "wrong transaction" or way == "tcp"]


class Rig:
    """A device that is moving all the time, and its driver; a second passes from poll to poll."""

    def __init__(self, device, driver, clock):
        self.device, self.driver, self.clock = device, driver, clock
        self.written = []
        taken = device.written

        def record(name, value):
            self.written.append((name, value))
            taken(name, value)

        device.server.device.registers._written = record

    def set(self, switches):
        for name, value in switches.items():
            setattr(self.device.faults, name, value)

    def clear(self, switches):
        self.set({name: type(value)(0) for name, value in switches.items()})

    async def second(self):
        """What happens between two polls: the plant moves, and attempts to reach the device end."""
        await self.clock.advance(7)  # far enough that every value moves
        await self.device.step()
        if self.driver._attempt is not None:
            await asyncio.wait({self.driver._attempt}, timeout=5)
        line = self.driver._link.line  # a second is longer than a line is listened to after a doubt
        await asyncio.sleep(max(0.0, line._drain_until - asyncio.get_running_loop().time()))

    async def poll(self):
        """One poll; whatever is of good quality is what the device has."""
        await self.second()
        answered = await self.driver.poll()
        truth = self.device.home.quantities(self.device.kind)
        for name, (value, quality) in as_mapping(self.driver).items():
            if quality != Quality.BAD:
                assert value == pytest.approx(truth[name], rel=1e-5, abs=GRAIN[self.device.kind].get(name, 0.11)), name
        return answered

    @property
    def all_bad(self):
        return set(self.driver.qualities) == {Quality.BAD} and all(value != value for value in self.driver.values)

    @property
    def all_good(self):
        return set(self.driver.qualities) == {Quality.GOOD}


GRAIN = {
    "meter": {},
    "battery": {"energy_charged_wh": 51, "energy_discharged_wh": 51, "active_power_w": 0.51, "running_bits": 0.5},
}


@pytest.fixture
async def rig(tmp_path):
    made = []

    async def build(name, way, **change):
        clock = ManualClock(FIRST_NS + 13 * 3600 * 10**9)
        device = SimulatedDevice(name, clock)
        template = load_template(name)
        needs = template.connection.model_copy(update={"timeout_ms": TIMEOUT_MS})
        controls = {
            key: control.model_copy(update={"storage": "volatile", "minimum_interval_ms": 0})
            for key, control in template.controls.items()
        }
        template = template.model_copy(update={"connection": needs, "controls": controls, **change})
        if way == "pty":
            await device.serve(pty=tmp_path / "line")
            where = ConnectionModel(serial=str(tmp_path / "line"), baud=115200)
        else:
            await device.serve(framing=way)
            where = ConnectionModel(host="127.0.0.1", port=device.server.port, framing=way)
        driver = create_driver("d", template, where, clock, rated_power_w=5000)
        found = Rig(device, driver, clock)
        made.append(found)
        await driver.connect()
        assert await found.poll()
        assert found.all_good
        return found

    yield build
    for found in made:
        await found.driver.close()
        await found.device.stop()


@pytest.mark.parametrize(("fault", "way"), MATRIX)
async def test_reading(rig, fault, way):
    found = await rig("eastron_sdm630", way)
    found.set(SWITCHED[fault])
    await found.poll()
    await found.poll()
    assert found.all_bad, "bad within two polls"
    for _ in range(2):
        assert not await found.poll()
        assert found.all_bad, "and bad it stays"
    if found.driver._attempt is not None:  # nothing that began under the fault goes on after it
        await asyncio.wait({found.driver._attempt}, timeout=5)
    found.clear(SWITCHED[fault])
    if fault == "late":
        await asyncio.sleep(SWITCHED[fault]["delay_s"])  # the device is back once its last late answer is out
    assert await found.poll(), "good at the first poll after"
    assert found.all_good


@pytest.mark.parametrize(("fault", "way"), MATRIX)
async def test_writing(rig, fault, way):
    found = await rig("sungrow_sh_battery", way)
    found.set(SWITCHED[fault])
    found.written.clear()
    outcome = await found.driver.control("active_power_w", 1500)
    assert isinstance(outcome, Failed)
    assert len(found.written) == len(set(found.written)), "nothing is written twice"
    assert len(found.written) <= 1, "what follows a failed step is not tried"
    found.clear(SWITCHED[fault])
    if fault == "late":
        await asyncio.sleep(SWITCHED[fault]["delay_s"])
    assert await found.poll()
    found.written.clear()
    assert await found.driver.control("active_power_w", -800) == Applied(value=-800)
    assert dict(found.written) == {"ems_mode": 2.0, "forced_command": 0xBB, "forced_power_w": 800.0}
    assert found.device.home.battery.active_w == -800


@pytest.mark.parametrize("way", WAYS)
async def test_values_that_stand_still(rig, way):
    found = await rig(
        "eastron_sdm630", way, frozen=FrozenModel(points=("active_power_w", "frequency_hz"), seconds=20, polls=3)
    )
    found.device.faults.frozen = True
    before = dict(as_mapping(found.driver))
    for _ in range(2):
        await found.second()
        assert await found.driver.poll()
        assert as_mapping(found.driver) == before, "not yet known: these are the device's own answers"
    await found.second()
    assert not await found.driver.poll(), "21 s and 3 polls without a change"
    assert found.all_bad
    assert found.driver.counters["frozen_polls"] == 1
    await found.second()
    assert not await found.driver.poll()
    assert found.all_bad
    found.device.faults.frozen = False
    assert await found.poll()
    assert found.all_good


@pytest.mark.parametrize("way", WAYS)
async def test_a_frozen_device_is_written_to_and_its_readback_counts(rig, way):
    found = await rig("sungrow_sh_battery", way)
    found.device.faults.frozen = True
    assert await found.driver.control("active_power_w", 1500) == Applied(value=1500), "settings are no measurement"
    assert dict(found.written) == {"ems_mode": 2.0, "forced_command": 0xAA, "forced_power_w": 1500.0}


@pytest.mark.parametrize("way", WAYS)
async def test_slow_refresh_is_no_fault(rig, way):
    found = await rig(
        "eastron_sdm630", way, frozen=FrozenModel(points=("active_power_w", "frequency_hz"), seconds=60, polls=3)
    )
    now = [0.0]
    found.device.server.device._monotonic = lambda: now[0]
    found.device.faults.refresh_s = 5.0
    for _ in range(20):
        now[0] += 1.0
        await found.second()
        assert await found.driver.poll()
        assert found.all_good


async def until(condition):
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def test_single_client(rig):
    found = await rig("eastron_sdm630", "tcp")
    server = found.device.server
    await found.driver.close()
    await until(lambda: not server.connections)
    found.device.faults.single_client = True
    _, other = await asyncio.open_connection("127.0.0.1", server.port)
    await until(lambda: server.connections)
    for _ in range(3):
        assert not await found.poll()
        assert found.all_bad
    outcome = await found.driver.control("active_power_w", 0)
    assert not isinstance(outcome, Applied)
    other.close()
    with contextlib.suppress(OSError):
        await other.wait_closed()
    await until(lambda: not server.connections)
    assert await found.poll()
    assert found.all_good


@pytest.mark.parametrize("way", ["tcp", "rtu"])
async def test_reboot_while_reading(rig, way):
    found = await rig("eastron_sdm630", way)
    await found.device.server.go_down()
    for _ in range(3):
        assert not await found.poll()
        assert found.all_bad
    await found.device.server.come_up()
    assert await found.poll()
    assert found.all_good


@pytest.mark.parametrize("way", ["tcp", "rtu"])
async def test_reboot_while_controlled(rig, way):
    found = await rig("sungrow_sh_battery", way)
    assert await found.driver.control("active_power_w", 1500) == Applied(value=1500)
    await found.device.restart()
    assert found.device.home.battery.active_w == 0, "the device has forgotten"
    found.written.clear()
    assert isinstance(await found.driver.control("active_power_w", 1600), Failed)
    assert found.written == []
    assert await found.poll()
    assert await found.driver.control("active_power_w", 1600) == Applied(value=1600)
    assert {name for name, _ in found.written} == {"ems_mode", "forced_command", "forced_power_w"}, "every step anew"
    assert found.device.home.battery.active_w == 1600


async def test_a_line_that_goes_away_is_one_clear_error(rig, tmp_path):
    found = await rig("eastron_sdm630", "pty")
    assert isinstance(found.device.server, SerialServer)
    await found.device.stop()
    for _ in range(2):
        assert not await found.poll()
    assert found.all_bad
    await found.device.serve(pty=tmp_path / "line")
    assert await found.poll()
    assert found.all_good
