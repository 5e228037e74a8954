"""The simulated devices on the wire, asked by pymodbus and mbpoll: peers that share no code with them."""

import asyncio
import contextlib
import shutil
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymodbus.client import AsyncModbusTcpClient
from wattmesh_simulators.modbus_server import ModbusServer
from wattmesh_simulators.registers import RegisterMap


@pytest.fixture
async def home(run_fleet, make_model):
    async with run_fleet(make_model()) as (fleet, clock):
        yield fleet, clock


@pytest.fixture
async def connect(home):
    """Connections to the home's devices: as a pymodbus client, or as bare streams."""
    fleet, _ = home
    clients = []

    async def opened(kind, **options):
        client = AsyncModbusTcpClient(
            "127.0.0.1", port=fleet.servers["h", kind].port, **{"timeout": 1, "retries": 0, **options}
        )
        await client.connect()
        clients.append(client)
        return client

    yield opened
    for client in clients:
        client.close()


async def registers(client, address, count):
    answer = await client.read_holding_registers(address, count=count)
    assert not answer.isError(), answer
    return answer.registers


async def chain(client):
    """Model → address of its ID, by walking from the marker to the end."""
    assert await registers(client, 40000, 2) == [0x5375, 0x6E53]
    found, at = {}, 40002
    while (head := await registers(client, at, 2))[0] != 0xFFFF:
        found[head[0]] = at
        for offset in range(0, head[1], 120):
            await registers(client, at + 2 + offset, min(120, head[1] - offset))
        at += 2 + head[1]
    assert head == [0xFFFF, 0]
    assert (await client.read_holding_registers(at + 2, count=1)).exception_code == 2
    return found


@pytest.mark.parametrize(
    ("kind", "models"),
    [
        ("inverter", [1, 103, 120, 121, 123, 160, 701, 702, 703, 704]),
        ("battery", [1, 701, 702, 704, 713, 802]),
        ("meter", [1, 203]),
    ],
)
async def test_a_scan_finds_the_models_and_their_published_lengths(connect, kind, models):
    client = await connect(kind)
    found = await chain(client)
    assert sorted(found) == models
    lengths = {1: 66, 103: 50, 120: 26, 121: 30, 123: 24, 203: 105, 701: 153, 702: 50, 703: 17, 713: 7, 802: 62}
    for model in set(lengths) & set(models):
        assert (await registers(client, found[model] + 1, 1))[0] == lengths[model], model
    assert struct.pack(">4H", *await registers(client, 40004, 4)) == b"WattMesh"


async def test_scale_factors_signs_and_nameplate(home, connect):
    fleet, _ = home
    one = fleet.homes["h"]
    inverter, battery, meter = [await connect(kind) for kind in ("inverter", "battery", "meter")]
    at = (await chain(inverter))[103]
    body = struct.unpack(">52h", struct.pack(">52H", *await registers(inverter, at, 52)))
    assert one.pv_w > 500
    assert body[14] * 10.0 ** body[15] == pytest.approx(one.pv_w, abs=0.5)  # generation positive
    assert (body[16] & 0xFFFF) * 10.0 ** body[17] == pytest.approx(60.0, abs=0.05)
    assert (await registers(inverter, (await chain(inverter))[120] + 3, 1))[0] == 4800  # WRtg
    at = (await chain(meter))[203]
    body = struct.unpack(">24h", struct.pack(">24H", *await registers(meter, at, 24)))
    assert body[18] * 10.0 ** body[22] == pytest.approx(one.grid_w, abs=0.5)  # import positive
    at = (await chain(battery))[713]
    body = await registers(battery, at, 9)
    assert body[2] == 6400  # WHRtg
    assert body[5 - 1] / 10 == pytest.approx(one.battery.soc_percent, abs=0.06)


async def test_a_written_setpoint_moves_power_at_once_and_energy_with_time(home, connect):
    fleet, clock = home
    client = await connect("battery")
    at = (await chain(client))[704]
    stored = fleet.homes["h"].battery.stored_wh
    for offset, words in (
        (23, [1]),
        (31, [0, 60]),
        (24, list(struct.unpack(">2H", struct.pack(">i", 3000)))),
        (22, [1]),
    ):
        assert not (await client.write_registers(at + offset, words)).isError()
    power = (await chain(client))[701] + 10
    assert struct.unpack(">h", struct.pack(">H", (await registers(client, power, 1))[0]))[0] == 3000
    assert fleet.homes["h"].battery.active_w == -3000  # passive sign inside
    await clock.advance(50)
    assert fleet.homes["h"].battery.stored_wh == pytest.approx(stored - 3000 * 50 / 3600 / 0.9**0.5)
    await clock.advance(60)  # nobody renews: it falls back after its 60 s
    assert fleet.homes["h"].battery.stored_wh == pytest.approx(stored - 3000 * 60 / 3600 / 0.9**0.5)
    assert await registers(client, at + 24, 2) == [0, 0]


async def test_what_has_no_effect_is_refused_and_changes_nothing(home, connect):
    fleet, _ = home
    client = await connect("inverter")
    at = (await chain(client))[123]
    before = await registers(client, at, 26)
    power = (await chain(client))[103] + 14
    assert (await client.write_register(power, 1)).exception_code == 2  # a measurement
    assert (await client.write_register(at + 5, 10_001)).exception_code == 3  # over 100 %
    assert (await client.write_register(at + 5, 0xFFFF)).exception_code == 3  # the mark for no value
    assert (await client.write_registers(at + 4, [1, 5000])).exception_code == 2  # begins where nothing may be written
    battery = await connect("battery")
    half = (await chain(battery))[704] + 24
    assert (await battery.write_register(half, 1)).exception_code == 2  # half of a 32-bit value
    assert await registers(client, at, 26) == before
    assert fleet.servers["h", "inverter"].writes_refused == 4
    assert fleet.homes["h"].writes == 0


async def test_curtailment_limits_the_sun(home, connect):
    fleet, clock = home
    client = await connect("inverter")
    at = (await chain(client))[123]
    assert not (await client.write_register(at + 5, 1000)).isError()  # 10.00 %
    await clock.advance(10)
    assert fleet.homes["h"].pv_w == pytest.approx(480)
    assert fleet.homes["h"].curtailed_wh > 0


@pytest.mark.parametrize(("address", "count", "code"), [(39999, 1, 2), (0, 1, 2), (40000, 126, 3)])
async def test_bad_reads_get_their_exception(home, address, count, code):
    server = home[0].servers["h", "meter"]
    assert server.device.answer(struct.pack(">BHH", 3, address, count)) == bytes([0x83, code])


async def test_an_unknown_function_is_refused(home):
    assert home[0].servers["h", "meter"].device.answer(b"\x2b\x0e\x01\x00") == bytes([0xAB, 1])


async def streams(fleet, kind="meter"):
    return await asyncio.open_connection("127.0.0.1", fleet.servers["h", kind].port)


def ask(transaction, address, count, unit=1, function=3):
    return struct.pack(">HHHBBHH", transaction, 0, 6, unit, function, address, count)


async def test_requests_in_one_segment_and_in_many(home):
    reader, writer = await streams(home[0])
    writer.write(b"".join(ask(number, 40000, 2) for number in range(5)))
    for number in range(5):
        assert await reader.readexactly(13) == struct.pack(">HHHBBB", number, 0, 7, 1, 3, 4) + b"SunS"
    for byte in ask(9, 40000, 2):
        writer.write(bytes([byte]))
        await writer.drain()
    assert (await reader.readexactly(13))[:2] == b"\x00\x09"
    writer.close()


@pytest.mark.parametrize(
    "frame", [b"\0\1\0\1\0\6\1\3\0\0\0\1", b"\0\1\0\0\0\1\1\3\0\0\0\1", b"\0\1\0\0\xff\xff\1\3\0\0\0\1"]
)
async def test_a_broken_header_ends_the_connection(home, frame):
    reader, writer = await streams(home[0])
    writer.write(frame)
    with contextlib.suppress(ConnectionResetError):  # an end of the stream will do as well
        assert await asyncio.wait_for(reader.read(1), 2.0) == b""
    writer.close()


async def test_another_unit_gets_no_answer(home):
    reader, writer = await streams(home[0])
    writer.write(ask(1, 40000, 2, unit=7) + ask(2, 40000, 2))
    assert (await reader.readexactly(13))[:2] == b"\x00\x02"
    writer.close()


async def test_faults(home, connect):
    fleet, clock = home
    server = fleet.servers["h", "meter"]
    reader, writer = await streams(fleet)
    server.faults.silent = True
    asked = server.requests
    writer.write(ask(1, 40000, 2))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.05)
    assert server.requests == asked
    server.faults.silent = False
    server.faults.exception = 4
    writer.write(ask(2, 40000, 2))
    assert await reader.readexactly(9) == b"\x00\x02\x00\x00\x00\x03\x01\x83\x04"
    server.faults.exception = 0
    server.faults.wrong_transaction = True
    writer.write(ask(3, 40000, 2))
    assert (await reader.readexactly(13))[:2] == b"\x00\x04"
    server.faults.wrong_transaction = False
    at = 40070  # model 203, as 1 has 66 registers
    writer.write(ask(4, at, 107))
    frozen = (await reader.readexactly(9 + 214))[9:]
    server.faults.frozen = True
    await clock.advance(600)
    writer.write(ask(5, at, 107))
    assert (await reader.readexactly(9 + 214))[9:] == frozen
    server.faults.frozen = False
    writer.write(ask(6, at, 107))
    assert (await reader.readexactly(9 + 214))[9:] != frozen
    server.faults.delay_s = 0.03
    began = asyncio.get_running_loop().time()
    writer.write(ask(7, 40000, 2))
    await reader.readexactly(13)
    assert asyncio.get_running_loop().time() - began >= 0.029
    writer.close()


async def test_frequency_is_fresh_between_two_steps():
    now = {"hz": 60.0}
    meter = RegisterMap(
        "eastron_sdm630",
        lambda: {"frequency_hz": now["hz"]},
        lambda: 1,
        lambda name, value: None,
        {"frequency_hz": lambda: now["hz"]},
    )
    assert struct.unpack(">f", meter.read(4, 70, 2)) == (60.0,)
    now["hz"] = 59.5
    assert struct.unpack(">f", meter.read(4, 70, 2)) == (59.5,)
    now["hz"] = 59.0
    assert struct.unpack(">f", meter.read(4, 70, 2, fresh=False)) == (59.5,)


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**31) // 10, 2**31 // 10 - 1).map(lambda tenths: tenths / 10))
def test_words_in_the_other_order(power):
    meter = RegisterMap("carlo_gavazzi_em340", lambda: {"active_power_w": power}, lambda: 1, lambda name, value: None)
    low, high = struct.unpack(">HH", meter.read(4, 40, 2))
    assert struct.unpack(">i", struct.pack(">HH", high, low))[0] == pytest.approx(power * 10, abs=0.51)


@settings(max_examples=500, deadline=None)
@given(st.binary(min_size=1, max_size=253))
def test_no_request_is_too_strange(pdu):
    values: dict[str, float] = {}
    server = ModbusServer(RegisterMap("sunspec_battery", lambda: values, lambda: 1, values.__setitem__))
    answer = server.device.answer(pdu)
    assert 2 <= len(answer) <= 253
    assert answer[0] & 0x7F == pdu[0] & 0x7F


@pytest.mark.skipif(shutil.which("mbpoll") is None, reason="mbpoll is not installed")
async def test_mbpoll_reads_the_same(home):
    fleet, _ = home
    port = str(fleet.servers["h", "meter"].port)
    command = [
        "mbpoll",
        "-m",
        "tcp",
        "-p",
        port,
        "-a",
        "1",
        "-0",
        "-r",
        "40000",
        "-c",
        "2",
        "-t",
        "4:hex",
        "-1",
        "127.0.0.1",
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert b"0x5375" in output
    assert b"0x6E53" in output
