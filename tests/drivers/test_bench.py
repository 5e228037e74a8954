"""The bench: recordings and their replay, the proxy, discovery, and the commands as a user runs them."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pymodbus.client import AsyncModbusTcpClient
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_drivers.discover import scan, site_file, targets, write_site
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.modbus.line import LinePool
from wattmesh_drivers.modbus.proxy import ModbusProxy
from wattmesh_drivers.recording import LineRecorder, NodeRecorder, expected_of, header_of
from wattmesh_drivers.supported import page
from wattmesh_drivers.template import load_template, template_ids
from wattmesh_edge.config import load_site
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.faults import Faults
from wattmesh_simulators.modbus_server import ModbusServer, ModbusUnit
from wattmesh_simulators.plant.data import FIRST_NS
from wattmesh_simulators.replay import ReplayNodes, ReplayUnit, is_opcua

RECORDINGS = Path(__file__).parents[1] / "recordings" / "devices"
WATTMESH = str(Path(sys.executable).with_name("wattmesh"))
NOON = FIRST_NS + 13 * 3600 * 10**9


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


def driver_of(name, port, lines=None, **more):
    template = load_template(name)
    needs = template.connection.model_copy(update={"connect_delay_ms": 0, "request_gap_ms": 0, "timeout_ms": 1000})
    return create_driver(
        "d", template.model_copy(update={"connection": needs}), ConnectionModel(host="127.0.0.1", port=port, **more),
        ManualClock(NOON), lines=lines, rated_power_w=5000,
    )  # fmt: skip


# -- recordings


ALL = sorted(RECORDINGS.glob("*.jsonl"))


@pytest.mark.parametrize("path", [path for path in ALL if not is_opcua(path)], ids=lambda path: path.stem)
async def test_every_recording_reads_as_it_did(path):
    header, expected = header_of(path), expected_of(path)
    server = ModbusServer(ReplayUnit(path), unit=header["unit"])
    await server.start(0)
    driver = driver_of(header["template"], server.port, unit=header["unit"])
    polls = sum('"request"' in line for line in path.read_text().splitlines())
    try:
        await driver.connect()
        for _ in range(polls):  # as many as can be in it: the last answers stay
            assert await driver.poll()
        read = as_mapping(driver)
        assert set(read) == set(expected)
        for name, value in expected.items():
            if value is None:
                assert read[name][1] == Quality.BAD, name
            else:
                assert read[name] == (pytest.approx(value), Quality.GOOD), name
    finally:
        await driver.close()
        await server.stop()


@pytest.mark.parametrize("path", [path for path in ALL if is_opcua(path)], ids=lambda path: path.stem)
async def test_every_recording_of_an_opcua_device_reads_as_it_did(path):
    header, expected = header_of(path), expected_of(path)
    nodes = ReplayNodes(path)
    (port,) = free_ports(1)
    await nodes.server.start(port)
    while await nodes.advance():
        pass
    where = ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/")
    driver = create_driver("d", load_template(header["template"]), where, ManualClock(NOON))
    try:
        await driver.connect()
        assert await driver.poll()
        for name, value in expected.items():
            found = as_mapping(driver)[name]
            assert (found[1] == Quality.BAD) == (value is None), name
            assert value is None or found[0] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    finally:
        await driver.close()
        await nodes.server.stop()


async def test_a_recording_of_an_opcua_device_tells_what_was_missing_and_bad(tmp_path):
    device = SimulatedDevice("wattmesh_opcua_battery", ManualClock(NOON))
    (port,) = free_ports(1)
    await device.serve(port=port)
    device.server.faults.status = {"soh_percent": 0x80000000}
    await device.step()
    where = ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/")
    driver = create_driver("d", load_template("wattmesh_opcua_battery"), where, ManualClock(NOON), rated_power_w=5000)
    recorder = NodeRecorder(tmp_path / "r.jsonl", driver, ManualClock(NOON), grade="simulated", device="x")
    try:
        await driver.connect()
        assert await driver.poll()
        recorder.polled()
        await driver.control("active_power_w", 1200)
        await device.step()
        assert await driver.poll()
        recorder.polled()
        assert recorder.finish({name: value for name, (value, _) in as_mapping(driver).items()}) == 2
    finally:
        await driver.close()
        await device.stop()
    first, second = (json.loads(line)["values"] for line in (tmp_path / "r.jsonl").read_text().splitlines()[1:3])
    assert first["active_power_w"] == [0.0, 0]
    assert second["active_power_w"] == [1200.0, 0]
    assert second["soh_percent"][1] == 0x80000000
    assert expected_of(tmp_path / "r.jsonl")["soh_percent"] is None


def test_there_is_a_recording_of_every_template():
    recorded = {header_of(path)["template"] for path in RECORDINGS.glob("*.jsonl")}
    assert recorded == set(template_ids())


def test_the_page_of_supported_devices_is_in_step():
    assert (Path(__file__).parents[2] / "docs" / "devices.md").read_text() == page(RECORDINGS)


async def test_a_recording_tells_changes_refusals_and_silence(device, tmp_path):
    served = await device("sungrow_sh_battery")
    lines = LinePool()
    driver = driver_of("sungrow_sh_battery", served.server.port, lines)
    line = lines.of(next(iter(lines._lines)))
    recorder = LineRecorder(
        tmp_path / "r.jsonl",
        line,
        ManualClock(NOON),
        template="sungrow_sh_battery",
        unit=1,
        grade="simulated",
        device="x",
    )
    await driver.connect()
    await driver.poll()
    served.home.battery.stored_wh = 640.0
    await served.step()
    served._moved += 1
    await driver.control("active_power_w", 900)
    await driver.poll()
    count = recorder.finish({name: value for name, (value, _) in as_mapping(driver).items()})
    await driver.close()
    text = (tmp_path / "r.jsonl").read_text()
    assert count == text.count('"request"') >= 8
    replay = ReplayUnit(tmp_path / "r.jsonl")
    server = ModbusServer(replay, unit=1)
    await server.start(0)
    again = driver_of("sungrow_sh_battery", server.port)
    try:
        await again.connect()
        socs = []
        for _ in range(3):
            assert await again.poll()
            socs.append(as_mapping(again)["soc_percent"][0])
        assert socs[0] == 50.0
        assert socs[-1] == pytest.approx(10.0, abs=0.11)
        assert replay.answer(bytes.fromhex("0300000001")) == b"\x83\x02", "what was never read is refused"
        assert replay.answer(b"\x2b\x0e\x01\x00") == b"\xab\x01"
    finally:
        await again.close()
        await server.stop()


@pytest.mark.parametrize("content", ["", "{}", "[1]\n", '{"recording": 2, "template": "x", "grade": "peer"}', "\x00"])
def test_a_file_that_is_no_recording_says_so(tmp_path, content):
    (tmp_path / "r.jsonl").write_text(content)
    for reads in (header_of, expected_of, ReplayUnit):
        with pytest.raises(ConfigurationError, match=r"r\.jsonl"):
            reads(tmp_path / "r.jsonl")


# -- the proxy


async def test_others_read_a_single_client_device_through_us(device):
    served = await device("eastron_sdm630")
    served.faults.single_client = True
    lines = LinePool()
    driver = driver_of("eastron_sdm630", served.server.port, lines)
    await driver.connect()
    proxy = ModbusProxy(lines.of(next(iter(lines._lines))))
    await proxy.start("127.0.0.1", 0)
    client = AsyncModbusTcpClient("127.0.0.1", port=proxy.port, retries=0, timeout=5)
    try:
        await client.connect()
        answers, polled = await asyncio.gather(client.read_input_registers(0, count=6, device_id=1), driver.poll())
        assert polled
        assert not answers.isError()
        assert len(answers.registers) == 6
        refused = await client.write_registers(10, [1], device_id=1)
        assert refused.exception_code == 1, "nothing is written through it"
        assert (await client.write_register(10, 1, device_id=1)).exception_code == 1
        served.faults.silent = True
        assert (await client.read_input_registers(0, count=6, device_id=1)).exception_code == 11
        served.faults.silent = False
        assert (await client.read_holding_registers(60000, count=1, device_id=1)).exception_code == 2
        assert served.server.device.writes == 0
        assert len(served.server.connections) == 1
    finally:
        client.close()
        await proxy.stop()
        await driver.close()


async def test_a_proxy_bears_what_is_no_modbus(device):
    served = await device("eastron_sdm630")
    lines = LinePool()
    driver = driver_of("eastron_sdm630", served.server.port, lines)
    await driver.connect()
    proxy = ModbusProxy(lines.of(next(iter(lines._lines))))
    await proxy.start("127.0.0.1", 0)
    try:
        for content in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\0\0\0\0\0\1\1",
            b"\0\1\0\0\xff\xff\1\3",
            b"\0\1\0\0\0\6\1\3\0\0\0\0",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(content)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 2)
            writer.close()
        assert await driver.poll()
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await ModbusProxy(driver._link.line).start("127.0.0.1", proxy.port)
    finally:
        await proxy.stop()
        await driver.close()


# -- discovery


async def found_at(*endpoints, units=None):
    return [one async for one in scan(list(endpoints), units, ManualClock(NOON), timeout_s=0.25)]


def at(port):
    return next(targets(f"127.0.0.1:{port}", [502], 9600, "N"))


async def test_devices_are_found_and_the_site_file_runs(device, tmp_path):
    served = [await device(name) for name in ("sunspec_inverter", "sunspec_battery", "eastron_sdm630")]
    closed = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    nobody = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    found = await found_at(*(at(one.server.port) for one in served), at(nobody), units=[1])
    assert {one.template for one in found} == {"sunspec_inverter", "sunspec_battery", "eastron_sdm630"}
    battery = next(one for one in found if one.template == "sunspec_battery")
    assert battery.product == "WattMesh simulated battery SIM-1"
    assert (battery.rated_power_w, battery.rated_energy_wh) == (5000, 6400)
    path = tmp_path / "site.yaml"
    write_site(path, "roof", found)
    site = load_site(path)
    assert site.grid_meter == "meter"
    assert {device.template for device in site.model.devices} == {one.template for one in found}
    for one in site.model.devices:
        driver = create_driver(one.id, site.templates[one.id], one.connection, ManualClock(NOON))
        await driver.connect()
        assert await driver.poll()
        await driver.close()
    with pytest.raises(ConfigurationError, match="there already"):
        write_site(path, "roof", found)


def tells_enough(name):
    """A meter whose registers say what it is; the others are found with the inverter that they are behind."""
    template = load_template(name)
    points = {point.id for point in template.points}
    return template.kind == "meter" and template.protocol != "opcua" and "voltage_l1_v" in points


@pytest.mark.parametrize("name", [name for name in template_ids() if tells_enough(name)])
async def test_every_meter_is_found_for_what_it_is_or_as_one_it_cannot_be_told_from(device, name):
    served = await device(name)
    unit = load_template(name).connection.unit
    found = await found_at(at(served.server.port), units=[unit])
    meters = [one for one in found if one.kind == "meter"]
    assert meters, "a meter is found"
    assert name in {meters[0].template, *meters[0].others}


@pytest.mark.parametrize("maker", ["huawei", "goodwe", "sungrow_sh", "deye"])
async def test_a_hybrid_is_found_as_all_that_it_is(device, maker):
    """One unit that answers the maps of its inverter, its battery and its meter."""
    names = {
        "huawei": ("huawei_sun2000_hybrid", "huawei_luna2000", "huawei_power_meter"),
        "goodwe": ("goodwe_et_inverter", "goodwe_et_battery", "goodwe_et_meter"),
        "sungrow_sh": ("sungrow_sh_inverter", "sungrow_sh_battery", "sungrow_sh_meter"),
        "deye": ("deye_3p_inverter", "deye_3p_battery", "deye_3p_meter"),
    }[maker]
    parts = [SimulatedDevice(name, ManualClock(NOON)) for name in names]
    units = [ModbusUnit(part.registers()) for part in parts]

    class Hybrid:
        def __init__(self):
            self.faults, self.requests = units[0].faults, 0

        def answer(self, pdu):
            images = [unit.registers for unit in units]
            function, address, count = pdu[0], int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
            content = b""
            for register in range(address, address + count):
                owner = next((one for one in images if register in one.implemented.get(function, ())), images[0])
                content += owner.read(function, register, 1) or b"\0\0"
            return bytes([function, len(content)]) + content

    unit = load_template(names[0]).connection.unit
    server = ModbusServer(Hybrid(), unit=unit)
    await server.start(0)
    try:
        found = await found_at(at(server.port), units=[unit])
        for name, kind in zip(names, ("inverter", "battery", "meter"), strict=True):
            one = next((one for one in found if one.kind == kind), None)
            assert one is not None, f"{kind} is missing"
            assert name in {one.template, *one.others}
    finally:
        await server.stop()


async def test_a_server_that_is_no_device_is_not_taken_for_one():
    class Zeros:
        faults, requests = Faults(), 0

        def answer(self, pdu):
            count = int.from_bytes(pdu[3:5], "big")
            return bytes([pdu[0], 2 * count]) + bytes(2 * count)

    server = ModbusServer(Zeros(), unit=1)
    await server.start(0)
    try:
        assert await found_at(at(server.port), units=[1]) == []
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("10.0.0.5", ["10.0.0.5:502"]),
        ("10.0.0.5:1502", ["10.0.0.5:1502"]),
        ("meter.local", ["meter.local:502"]),
        ("10.0.0.0/30", ["10.0.0.1:502", "10.0.0.2:502"]),
        ("/dev/ttyUSB0", ["/dev/ttyUSB0"]),
    ],
)
def test_targets(text, names):
    assert [one.name for one in targets(text, [502], 9600, "N")] == names


@pytest.mark.parametrize(("text", "told"), [("10.0.0.0/8", "at most 4096"), ("10.0.0.0/99", "no network")])
def test_targets_that_cannot_be(text, told):
    with pytest.raises(ConfigurationError, match=told):
        list(targets(text, [502], 9600, "N"))


def test_a_site_without_a_meter_is_none():
    with pytest.raises(ConfigurationError, match="no meter"):
        site_file("s", [])


# -- the commands


def run(*arguments, **more):
    return subprocess.run(
        [WATTMESH, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


@pytest.fixture
def bench(tmp_path):
    """``wattmesh simulate device`` in processes of its own; gives their ports."""
    started = []

    def start(template, *options):
        process = subprocess.Popen(
            [WATTMESH, "simulate", "device", template, *options],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        first = process.stdout.readline()
        assert first.startswith(f"{template} at "), first
        return first.split(" at ")[1].split(";")[0]

    yield start
    for process in started:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


def test_the_commands_of_the_bench(bench, tmp_path):
    host, port = bench("sunspec_battery").split(":")
    where = ("--template", "sunspec_battery", "--host", host, "--port", port)
    read = run("device", "read", *where)
    assert read.returncode == 0
    assert "soc_percent" in read.stdout
    assert "50.000 percent" in read.stdout
    outside = run("device", "write", "active_power_w", "9000", *where, "--rated-power-w", "5000")
    assert outside.returncode == 1
    assert "outside -5000..5000" in outside.stdout
    written = run("device", "write", "active_power_w", "1200", *where, "--rated-power-w", "5000")
    assert written.stdout.startswith("Applied(value=1200")
    watched = run("device", "watch", *where, "--times", "2", "--every", "0.05")
    assert "--- 2" in watched.stdout
    assert "1200.000 W" in watched.stdout
    recorded = run("device", "record", str(tmp_path / "r.jsonl"), *where, "--every", "0.05", "--grade", "simulated")
    assert recorded.returncode == 0, recorded.stderr
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["template"] == "sunspec_battery"
    found = run("discover", f"{host}:{port}", "--units", "1")
    assert "battery sunspec_battery (WattMesh simulated battery SIM-1" in found.stdout
    assert "eastron_sdm630" in run("device", "templates").stdout


def test_an_opcua_device_on_the_bench(bench, tmp_path):
    (port,) = free_ports(1)
    bench("wattmesh_opcua_battery", "--port", str(port))
    url = f"opc.tcp://127.0.0.1:{port}/"
    found = run("discover", url)
    assert "battery wattmesh_opcua_battery (WattMesh; namespace urn:wattmesh:battery" in found.stdout, found.stderr
    recorded = run(
        "device", "record", str(tmp_path / "r.jsonl"), "--template", "wattmesh_opcua_battery", "--url", url, "--every", "0.05",
        "--polls", "2",
    )  # fmt: skip
    assert "2 answers" in recorded.stdout, recorded.stderr
    assert expected_of(tmp_path / "r.jsonl")["soc_percent"] == pytest.approx(50, abs=0.1)
    refused = run("discover", "opc.tcp://127.0.0.1:1/")
    assert refused.returncode != 0
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_pty_is_a_serial_port(bench, tmp_path):
    line = bench("carlo_gavazzi_em340", "--pty", str(tmp_path / "tty"))
    read = run("device", "read", "--template", "carlo_gavazzi_em340", "--serial", line)
    assert read.returncode == 0, read.stderr
    assert "frequency_hz" in read.stdout
    found = run("discover", line, "--units", "1", "--timeout", "0.3")
    assert "carlo_gavazzi_em340" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("read", "--template", "eastron_sdm630", "--host", "127.0.0.1", "--port", "1"),
            "127.0.0.1:1 (Connection refused)",
        ),
        (
            ("read", "--template", "eastron_sdm630", "--host", "127.0.0.1", "--port", "70000"),
            "--port: input should be less",
        ),
        (
            ("read", "--template", "eastron_sdm630", "--serial", "/dev/none"),
            "/dev/none cannot be used: there is no such port",
        ),
        (("read", "--template", "eastron_sdm630"), "one of --host, --serial and --url"),
        (("read", "--template", "no_such", "--host", "x"), "there is no device template 'no_such'"),
        (("read", "--template", "eastron_sdm630", "--host", "127.0.0.1", "--tls-ca", "/none.pem"), "tls.ca: /none.pem"),
    ],
)
def test_bad_input_is_one_line(arguments, told):
    ended = run("device", *arguments)
    assert ended.returncode != 0
    assert told in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("discover", "10.0.0.0/8"), "at most 4096"),
        (("discover", "127.0.0.1", "--units", "1-300"), "from 0 to 247"),
        (("discover", "127.0.0.1", "--ports", "http"), "numbers and ranges"),
        (("simulate", "device", "no_such"), "there is no device template"),
        (("simulate", "device", "eastron_sdm630", "--fault", "tired@1"), "there is no fault 'tired'"),
        (("simulate", "device", "eastron_sdm630", "--serial", "/dev/none"), "/dev/none cannot be used"),
        (("simulate", "recording", "/none.jsonl"), "/none.jsonl: is no recording"),
    ],
)
def test_bad_input_of_other_commands_is_one_line(arguments, told):
    ended = run(*arguments)
    assert ended.returncode != 0
    assert told in ended.stderr.strip().splitlines()[-1]
