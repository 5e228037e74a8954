"""Hostile bytes for every parser of the drivers and of the simulated hardware.

``WATTMESH_FUZZ`` inputs each (scripts/fuzz runs a million and more in all); the seed is fixed and an input that fails is shown.
"""

import asyncio
import os
import random
import struct
from pathlib import Path

import pytest
from register_link import Registers
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_drivers.modbus import sunspec
from wattmesh_drivers.modbus.line import Endpoint, Line
from wattmesh_drivers.modbus.link import ModbusLink
from wattmesh_drivers.modbus.proxy import ModbusProxy
from wattmesh_drivers.recording import expected_of, header_of
from wattmesh_drivers.template import load_template
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.modbus_server import ModbusServer, _RtuConnection, _TcpConnection, checksum, rtu_frame
from wattmesh_simulators.registers import RegisterMap
from wattmesh_simulators.replay import ReplayUnit

import firmware_configs

EACH = int(os.environ.get("WATTMESH_FUZZ", "10000"))
SLOW = max(200, EACH // 10)
"""Of inputs that are files: each costs a hundred times as much."""


def mutated(chance, frame):
    """A frame with something wrong; now and then one that is right."""
    content = bytearray(frame)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        kind = chance.randrange(7)
        at = chance.randrange(len(content)) if content else 0
        if kind == 0 and content:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and content:
            del content[at : at + chance.randint(1, 4)]
        elif kind == 2:
            content[at:at] = chance.randbytes(chance.randint(1, 4))
        elif kind == 3 and content:
            content[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 4:
            content = bytearray(chance.randbytes(chance.randint(0, 20)))
        elif kind == 5:
            content += bytes(content)
        elif kind == 6:
            content = content[: chance.randint(0, len(content))]
    return bytes(content)


def pieces(chance, content):
    """Cut as a network may cut it."""
    if chance.random() < 0.6 or len(content) < 2:
        return [content]
    cut = chance.randrange(1, len(content))
    return [content[:cut], content[cut:]]


class Wire:
    """What a line takes for a transport."""

    def __init__(self):
        self.sent, self.aborted = [], False

    def write(self, data):
        self.sent.append(bytes(data))

    def abort(self):
        self.aborted = True


def first_frame_tcp(content, transaction, unit):
    """The PDU of the first frame if it is the answer to that request, by this test's own reading of the guide; else none."""
    if len(content) < 8:
        return None
    number, protocol, length, who = struct.unpack(">HHHB", content[:7])
    if protocol or not 2 <= length <= 254 or len(content) < 6 + length or number != transaction or who != unit:
        return None
    return content[7 : 6 + length]


def registers_in(pdu, function, count):
    """The registers of a right answer; else none."""
    if pdu is None or len(pdu) != 2 + 2 * count or pdu[0] != function or pdu[1] != 2 * count:
        return None
    return list(struct.unpack(f">{count}H", pdu[2:]))


@pytest.mark.parametrize("rtu", [False, True], ids=["tcp", "rtu"])
async def test_no_register_comes_of_a_bad_frame(rtu):
    chance = random.Random(7 + rtu)
    accepted = 0
    for _ in range(EACH):
        line = Line(Endpoint(host="fuzz", rtu=rtu))
        link = ModbusLink(line, 3, timeout_s=60.0)
        line._loop, line._transport = asyncio.get_running_loop(), Wire()
        line._transaction = chance.randrange(0x10000)
        function, count = chance.choice([3, 4]), chance.randint(1, 6)
        words = [chance.randrange(0x10000) for _ in range(count)]
        reading = asyncio.create_task(link.read(function, 100, count))
        await asyncio.sleep(0)
        pdu = bytes([function, 2 * count]) + struct.pack(f">{count}H", *words)
        if rtu:
            content = mutated(chance, rtu_frame(3, pdu))
        else:
            transaction = line._transaction
            content = mutated(chance, struct.pack(">HHHB", transaction, 0, len(pdu) + 1, 3) + pdu)
        for piece in pieces(chance, content):
            line.data_received(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if reading.done() and reading.exception() is None:
            found = list(reading.result())
            accepted += 1
            if rtu:  # its own checksum is right, or it is not believed
                size = 5 + 2 * count
                assert checksum(content[: size - 2]) == int.from_bytes(content[size - 2 : size], "little"), (
                    content.hex()
                )
                assert content[0] == 3, content.hex()
                assert registers_in(content[1 : size - 2], function, count) == found, content.hex()
            else:
                assert registers_in(first_frame_tcp(content, transaction, 3), function, count) == found, content.hex()
        else:
            error = reading.exception() if reading.done() else None
            assert error is None or isinstance(error, UnavailableError | ConfigurationError), repr(error)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert len(line._buffer) < 600
        line.drop()
    assert EACH // 50 < accepted < EACH, "right frames are taken, and not everything is"


async def test_three_wrong_bits_in_an_rtu_frame_are_always_found():
    """CRC-16 has a Hamming distance of 4 at these lengths."""
    chance = random.Random(11)
    for _ in range(EACH):
        line = Line(Endpoint(host="fuzz", rtu=True))
        link = ModbusLink(line, 3, timeout_s=60.0)
        line._loop, line._transport = asyncio.get_running_loop(), Wire()
        count = chance.randint(1, 20)
        reading = asyncio.create_task(link.read(3, 0, count))
        await asyncio.sleep(0)
        content = bytearray(rtu_frame(3, bytes([3, 2 * count]) + chance.randbytes(2 * count)))
        for bit in chance.sample(range(len(content) * 8), chance.randint(1, 3)):
            content[bit // 8] ^= 1 << bit % 8
        line.data_received(bytes(content))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reading.done() or reading.exception() is not None, content.hex()
        line.drop()
        await asyncio.gather(reading, return_exceptions=True)


async def test_no_write_is_called_done_by_a_bad_frame():
    chance = random.Random(13)
    for _ in range(EACH):
        line = Line(Endpoint(host="fuzz"))
        link = ModbusLink(line, 3, timeout_s=60.0)
        line._loop, line._transport = asyncio.get_running_loop(), Wire()
        function = chance.choice([6, 16])
        address, values = chance.randrange(0x10000), [chance.randrange(0x10000)]
        writing = asyncio.create_task(link.write(function, address, values))
        await asyncio.sleep(0)
        right = struct.pack(">BHH", function, address, values[0] if function == 6 else 1)
        transaction = line._transaction
        content = mutated(chance, struct.pack(">HHHB", transaction, 0, 6, 3) + right)
        for piece in pieces(chance, content):
            line.data_received(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if writing.done() and writing.exception() is None:
            assert first_frame_tcp(content, transaction, 3) == right, content.hex()
        assert len(line._transport.sent if line._transport else [0]) == 1, "nothing is sent twice"
        line.drop()
        await asyncio.gather(writing, return_exceptions=True)


class Counted(Registers):
    """Counts what is asked."""

    asked = 0

    async def read(self, function, address, count):
        self.asked += 1
        return await super().read(function, address, count)


async def test_no_chain_of_models_is_endless_or_leaves_its_registers():
    chance = random.Random(17)
    for _ in range(SLOW):
        base = chance.choice([40000, 0, 50000, 40000])
        words = [0x5375, 0x6E53]
        for _ in range(chance.randint(0, 30)):
            words += [
                chance.choice([1, 103, 0, 0xFFFE, chance.randrange(0x10000)]),
                chance.choice([0, 1, 50, 0xFFFF, 3]),
            ]
            words += [chance.randrange(0x10000) for _ in range(chance.randint(0, 8))]
        if chance.random() < 0.5:
            words += [0xFFFF, 0]
        link = Counted({register & 0xFFFF: word for register, word in enumerate(words, base)})
        try:
            models = await sunspec.discover(link)
        except (ConfigurationError, UnavailableError):
            models = {}
        assert link.asked <= 3 + 2 * 101
        for found in models.values():
            assert found.address <= 0xFFFF


def told_by(work, *arguments):
    """What a reader says of bad input; none where it takes it. Anything but a ConfigurationError is a failure."""
    try:
        work(*arguments)
    except ConfigurationError as error:
        return str(error)
    return None


def test_no_template_breaks_the_loader(tmp_path):
    chance = random.Random(19)
    path = tmp_path / "t.yaml"
    devices = Path(firmware_configs.__file__).parent / "devices"
    names = ("huawei_luna2000", "deye_3p_inverter", "wattmesh_opcua_battery", "carlo_gavazzi_em24_ethernet")
    originals = [(devices / f"{name}.yaml").read_bytes() for name in names]
    loaded = 0
    for _ in range(SLOW):
        content = chance.choice(originals)
        for _ in range(chance.randint(1, 3)):
            content = mutated(chance, content)[:6000] if chance.random() < 0.4 else swapped(chance, content)
        path.write_bytes(content)
        load_template.cache_clear()
        error = told_by(load_template, str(path))
        loaded += error is None
        assert error is None or str(path) in error
    load_template.cache_clear()
    assert SLOW // 20 < loaded < SLOW - SLOW // 20, "some are sound, and most are not"


def swapped(chance, content):
    """A file with one of its words replaced by another, or by a value that a hand may slip to."""
    words = content.split(b" ")
    at = chance.randrange(len(words))
    other = words[chance.randrange(len(words))]
    words[at] = chance.choice([other, b"-1", b"1e999", b"null", b"[]", b"{}", b".nan", b"'", b"*a", b"99999999999"])
    return b" ".join(words)


def test_no_recording_breaks_its_readers(tmp_path):
    chance = random.Random(23)
    header = b'{"recording": 1, "template": "eastron_sdm630", "unit": 1, "grade": "peer", "device": "x", "made": "2026-01-01"}\n'
    body = (
        b'{"request": "040000000c", "answer": "0418'
        + b"00" * 24
        + b'"}\n{"expect": {"frequency_hz": 50.0, "a": null}}\n'
    )
    path = tmp_path / "r.jsonl"
    for _ in range(SLOW):
        content = swapped(chance, header + body) if chance.random() < 0.5 else mutated(chance, header + body)
        path.write_bytes(content)
        for reads in (header_of, expected_of, ReplayUnit):
            error = told_by(reads, path)
            assert error is None or str(path) in error
        if told_by(ReplayUnit, path) is None:
            unit = ReplayUnit(path)
            for request in (b"\x04\x00\x00\x00\x0c", chance.randbytes(chance.randint(1, 12))):
                assert unit.answer(request) != b"", "an answer has at least its function"


async def test_no_request_breaks_the_proxy_or_gets_through_it_as_a_write():
    chance = random.Random(29)

    class Device:
        asked = []
        units, timeout_s = set(range(256)), 1.0

        async def ask(self, unit, pdus, timeout_s, *, probe=False):
            self.asked.append((unit, pdus[0], probe))
            return [
                chance.choice(
                    [b"", b"\x83\x02", b"\x03\x02\x00\x01", chance.randbytes(5), bytes([pdus[0][0], 2, 0, 1])]
                )
            ]

    device = Device()
    proxy = ModbusProxy(device)
    for _ in range(EACH):
        right = struct.pack(">BHH", chance.choice([3, 4, 6, 16, 43]), chance.randrange(0x10000), chance.randint(0, 130))
        pdu = mutated(chance, right) or b"\x00"
        device.asked.clear()
        answer = await proxy._answer(chance.randrange(256), pdu)
        assert answer
        assert len(answer) <= 253
        for _, passed, probe in device.asked:
            assert passed[0] in {3, 4}, "only reads pass"
            assert probe, "and only after everybody else"


@pytest.mark.parametrize("kind", [_TcpConnection, _RtuConnection], ids=["tcp", "rtu"])
async def test_no_request_breaks_the_simulated_hardware(kind):
    chance = random.Random(31)
    values = {"active_power_w": 100.0, "frequency_hz": 50.0}
    server = ModbusServer(RegisterMap("sungrow_sh_battery", lambda: values, lambda: 1, lambda name, value: None))
    connection = kind(server)

    class Client(Wire):
        def is_closing(self):
            return False

    connection._transport = client = Client()
    for _ in range(EACH):
        right = struct.pack(
            ">BHH", chance.choice([3, 4, 6]), chance.choice([13022, 13049, 5213, 60000]), chance.randint(0, 130)
        )
        frame = rtu_frame(1, right) if kind is _RtuConnection else struct.pack(">HHHB", 1, 0, len(right) + 1, 1) + right
        connection.data_received(mutated(chance, frame))
        assert len(connection._buffer) < 600
        client.sent.clear()


def test_a_whole_device_survives_what_its_masters_write():
    """Settings of any value: the plant stays finite."""
    from wattmesh_a2a.clock import ManualClock

    chance = random.Random(37)
    device = SimulatedDevice("huawei_luna2000", ManualClock(1_659_333_600 * 10**9))
    settings = [setting["id"] for setting in device.data["settings"]]
    for _ in range(SLOW):
        device.written(chance.choice(settings), chance.choice([0, 1, 2, 65535, -1, 1e9, 5000.0]))
        power = device.home.battery.active_w
        assert abs(power) <= device.home.battery.power_w
