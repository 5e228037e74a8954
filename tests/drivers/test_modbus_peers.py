"""Modbus with software that is not ours: libmodbus, mbpoll, modbus-serial; over TCP and over a serial line that socat makes."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import libmodbus
import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import UnavailableError
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.modbus.line import Endpoint, Line, SerialPort
from wattmesh_drivers.modbus.link import ModbusLink, RefusedError
from wattmesh_drivers.template import Template
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.plant.data import FIRST_NS

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
MODULES = Path(os.environ.get("WATTMESH_NODE_PEERS", ROOT / ".wattmesh" / "node")) / "node_modules"
NOON = FIRST_NS + 13 * 3600 * 10**9
needs_libmodbus = pytest.mark.skipif(
    libmodbus.library() is None, reason="libmodbus is not installed (Debian: libmodbus5)"
)
needs_mbpoll = pytest.mark.skipif(shutil.which("mbpoll") is None, reason="mbpoll is not installed")
needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "modbus-serial").is_dir(),
    reason=f"modbus-serial is not in {MODULES}: npm install modbus-serial there, or name its folder in WATTMESH_NODE_PEERS",
)

COUNTING = Template.model_validate(
    {
        "template": 1, "id": "counting", "kind": "load", "manufacturer": "peer", "products": ["registers that hold their number"],
        "protocol": "modbus",
        "points": [
            {"id": "active_power_w", "function": 3, "address": 100, "type": "u16"},
            {"id": "wide", "function": 3, "address": 110, "type": "u32"},
            {"id": "swapped", "function": 3, "address": 120, "type": "u32", "word_order": "little"},
            {"id": "scaled", "function": 4, "address": 130, "type": "s16", "scale": 0.1, "sign": -1},
            {"id": "far", "function": 3, "address": 900, "type": "u64"},
        ],
        "sources": ["tests/support/libmodbus.py"],
    }
)  # fmt: skip
WANTED = {
    "active_power_w": 100.0, "wide": float(110 << 16 | 111), "swapped": float(121 << 16 | 120), "scaled": -13.0,
    "far": float(900 << 48 | 901 << 32 | 902 << 16 | 903),
}  # fmt: skip


@pytest.fixture
def started():
    """Starts programs and ends them; each gives its first line."""
    running = []

    def start(*command, line=True, **more):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)
        running.append(process)
        if line:
            process.first = process.stdout.readline().strip()
            assert process.first, f"{command[0]} did not start"
        return process

    yield start
    for process in reversed(running):
        process.stdin.close()
        if process.args[0] == "socat":
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()


@pytest.fixture
def cable(started, tmp_path):
    """The two ends of a serial line."""
    ends = tmp_path / "a", tmp_path / "b"
    started("socat", *(f"pty,raw,echo=0,link={end}" for end in ends), line=False)
    deadline = time.monotonic() + 10
    while not all(end.exists() for end in ends):
        assert time.monotonic() < deadline, "socat made no line"
        time.sleep(0.01)
    return [str(end) for end in ends]


@pytest.fixture
async def device():
    made = []

    async def serve(name, **options):
        one = SimulatedDevice(name, ManualClock(NOON))
        await one.serve(**options)
        await one.step()
        made.append(one)
        return one

    yield serve
    for one in made:
        await one.stop()


async def reads_and_writes(link):
    assert list(await link.read(3, 0, 125)) == list(range(125))
    assert list(await link.read(4, 500, 3)) == [500, 501, 502]
    await link.write(6, 7, [77])
    await link.write(16, 8, [88, 99])
    assert list(await link.read(3, 6, 5)) == [6, 77, 88, 99, 10]
    with pytest.raises(RefusedError) as caught:
        await link.read(3, 60_000, 2)
    assert caught.value.code == 2


async def polls(where):
    driver = create_driver("d", COUNTING, where, ManualClock(NOON))
    try:
        await driver.connect()
        for _ in range(3):
            assert await driver.poll()
            assert as_mapping(driver) == {name: (pytest.approx(value), Quality.GOOD) for name, value in WANTED.items()}
    finally:
        await driver.close()


# -- libmodbus


@needs_libmodbus
async def test_a_libmodbus_server_on_tcp(started):
    port = int(started(sys.executable, str(SUPPORT / "libmodbus.py"), "tcp", "3").first)
    link = ModbusLink.tcp("127.0.0.1", port, 3, timeout_s=2.0, pipeline=8)
    await link.open()
    await reads_and_writes(link)
    answers = await link.read_many([(3, address, 1) for address in range(200, 240)])
    assert [answer[0] for answer in answers] == list(range(200, 240))
    link.close()
    await polls(ConnectionModel(host="127.0.0.1", port=port, unit=3))


@needs_libmodbus
@needs_socat
@pytest.mark.parametrize("baud", [9600, 115200])
async def test_a_libmodbus_server_on_a_serial_line(started, cable, baud):
    started(sys.executable, str(SUPPORT / "libmodbus.py"), "rtu", cable[1], str(baud), "3")
    link = ModbusLink(Line(Endpoint(serial=SerialPort(path=cable[0], baud=baud))), 3, timeout_s=2.0)
    await link.open()
    await reads_and_writes(link)
    link.close()
    await polls(ConnectionModel(serial=cable[0], baud=baud, unit=3))


@needs_libmodbus
@needs_socat
async def test_two_units_on_one_serial_line_of_which_one_is_not_there(started, cable):
    started(sys.executable, str(SUPPORT / "libmodbus.py"), "rtu", cable[1], "115200", "3")
    line = Line(Endpoint(serial=SerialPort(path=cable[0], baud=115200)))
    line.shared = True
    there, absent = (ModbusLink(line, unit, timeout_s=0.3) for unit in (3, 4))
    await there.open()
    await absent.open()
    with pytest.raises(UnavailableError, match="unit 4"):
        await absent.read(3, 0, 2)
    assert list(await there.read(3, 5, 2)) == [5, 6]
    there.close()
    absent.close()


@needs_libmodbus
@pytest.mark.parametrize("way", ["tcp", "pty"])
async def test_a_libmodbus_client_of_our_simulated_devices(device, tmp_path, way):
    served = await device("sungrow_sh_battery", **({"pty": tmp_path / "tty"} if way == "pty" else {}))
    lib = libmodbus.library()

    def work():
        where = {"port": served.server.port} if way == "tcp" else {"serial": str(tmp_path / "tty")}
        client = libmodbus.Client(lib, unit=1, **where)
        try:
            soc = client.read(4, 13022, 1)
            client.write(13051, [1500])
            client.write(13050, [0xAA])
            client.write(13049, [2])
            held = client.read(3, 13049, 3)
            with pytest.raises(OSError, match="Illegal data address"):
                client.write(60_000, [1])
            return soc, held
        finally:
            client.close()

    assert await asyncio.to_thread(work) == ([500], [2, 0xAA, 1500])
    assert served.home.battery.active_w == 1500


# -- mbpoll


@needs_mbpoll
@pytest.mark.parametrize("way", ["tcp", "pty"])
async def test_mbpoll_reads_and_writes_our_simulated_devices(device, tmp_path, way):
    served = await device("huawei_luna2000", **({"pty": tmp_path / "tty"} if way == "pty" else {}))
    if way == "tcp":
        where = ["-m", "tcp", "-p", str(served.server.port), "127.0.0.1"]
    else:
        where = ["-m", "rtu", "-b", "115200", "-P", "none", str(tmp_path / "tty")]

    async def mbpoll(*arguments, values=()):
        process = await asyncio.create_subprocess_exec(
            "mbpoll", "-a", "1", "-0", "-o", "2", *arguments, *where, *values,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        return output.decode()

    assert "[37760]: \t500" in await mbpoll("-1", "-r", "37760", "-c", "1", "-t", "4")
    assert "Written 1 references" in await mbpoll("-r", "47100", "-t", "4", values=["1"])
    assert "[47100]: \t1" in await mbpoll("-1", "-r", "47100", "-c", "1", "-t", "4")
    assert "Illegal data address" in await mbpoll("-1", "-r", "60000", "-c", "1", "-t", "4")


# -- modbus-serial (npm)


@needs_node
async def test_a_modbus_serial_server(started):
    port = int(
        started(
            "node", str(SUPPORT / "modbus_peer.cjs"), "server", "3", env=os.environ | {"NODE_PATH": str(MODULES)}
        ).first
    )
    link = ModbusLink.tcp("127.0.0.1", port, 3, timeout_s=2.0)
    await link.open()
    assert list(await link.read(3, 0, 125)) == list(range(125))
    await link.write(6, 7, [77])
    await link.write(16, 8, [88, 99])
    assert list(await link.read(3, 6, 5)) == [6, 77, 88, 99, 10]
    link.close()
    await polls(ConnectionModel(host="127.0.0.1", port=port, unit=3))


@needs_node
async def test_a_modbus_serial_client_of_our_simulated_devices(started, device):
    served = await device("sungrow_sh_battery")

    def work():
        client = started(
            "node", str(SUPPORT / "modbus_peer.cjs"), "client", str(served.server.port), "1",
            env=os.environ | {"NODE_PATH": str(MODULES)},
        )  # fmt: skip

        def call(name, *arguments):
            client.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
            client.stdin.flush()
            return json.loads(client.stdout.readline())

        soc = call("readInputRegisters", 13022, 1)
        call("writeRegister", 13051, 900)
        call("writeRegister", 13050, 0xBB)
        call("writeRegister", 13049, 2)
        return (
            soc["data"],
            call("readHoldingRegisters", 13049, 3)["data"],
            call("readHoldingRegisters", 60_000, 1)["code"],
        )

    assert await asyncio.to_thread(work) == ([500], [2, 0xBB, 900], 2)
    assert served.home.battery.active_w == -900
