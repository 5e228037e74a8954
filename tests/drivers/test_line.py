"""Lines against bare sockets that answer what a test says: framing, order, late answers, drains, the queue."""

import asyncio
import itertools
import struct

import pytest
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_drivers.driver import BusyError
from wattmesh_drivers.modbus.line import Endpoint, Line, LinePool, SerialPort
from wattmesh_drivers.modbus.link import ModbusLink, RefusedError
from wattmesh_simulators.modbus_server import rtu_frame


class Peer:
    """A TCP server; ``script`` is called with (writer, request bytes) for whatever arrives."""

    def __init__(self, script):
        self.script, self.seen, self.writers = script, [], []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.writers.append(writer)
        while data := await reader.read(4096):
            self.seen.append(data)
            await self.script(writer, data)


def tcp(frame):
    """(transaction, unit, pdu) of each request in a segment."""
    found = []
    while frame:
        transaction, _, length, unit = struct.unpack(">HHHB", frame[:7])
        found.append((transaction, unit, frame[7 : 6 + length]))
        frame = frame[6 + length :]
    return found


def reply(transaction, unit, pdu):
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


def registers(*values):
    return bytes([3, 2 * len(values)]) + struct.pack(f">{len(values)}H", *values)


async def opened(port, *, rtu=False, pipeline=1, timeout_s=0.15, unit=1):
    line = Line(Endpoint(host="127.0.0.1", port=port, rtu=rtu), pipeline=pipeline)
    link = ModbusLink(line, unit, timeout_s=timeout_s)
    await link.open()
    return line, link


async def test_a_late_answer_on_tcp_is_dropped_and_the_connection_goes_on():
    held = []

    async def script(writer, data):
        for transaction, unit, pdu in tcp(data):
            held.append(reply(transaction, unit, registers(pdu[2])))
            if len(held) > 1:  # the first one comes just before the second
                writer.write(b"".join(held))

    async with Peer(script) as peer:
        line, link = await opened(peer.port)
        with pytest.raises(UnavailableError, match="no answer"):
            await link.read(3, 5, 1)
        assert list(await link.read(3, 7, 1)) == [7], "and not 5"
        assert line.counters == {"connections": 1, "timeouts": 1, "late": 1}
        assert line.requests == 2
        link.close()


async def test_a_late_answer_on_rtu_is_not_taken_for_the_next_ones():
    """pymodbus 3.16 asked for register 2000 and took the answer of register 1000 (facts/drivers.md)."""

    async def script(writer, data):
        address = struct.unpack(">H", data[2:4])[0]
        if address == 1000:
            await asyncio.sleep(0.25)
        writer.write(rtu_frame(1, registers(address, address)))

    async with Peer(script) as peer:
        line, link = await opened(peer.port, rtu=True)
        with pytest.raises(UnavailableError):
            await link.read(3, 1000, 2)
        assert list(await link.read(3, 2000, 2)) == [2000, 2000]
        assert line.counters["late"] == 1
        link.close()


async def test_what_comes_while_nobody_asks_is_nobodys_answer():
    async def script(writer, data):
        address = struct.unpack(">H", data[2:4])[0]
        writer.write(rtu_frame(1, registers(address)))
        if address == 1:
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(rtu_frame(1, registers(99)))

    async with Peer(script) as peer:
        _, link = await opened(peer.port, rtu=True)
        assert list(await link.read(3, 1, 1)) == [1]
        await asyncio.sleep(0.04)
        assert list(await link.read(3, 2, 1)) == [2]
        link.close()


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 8, 9, 10])
@pytest.mark.parametrize("rtu", [False, True])
async def test_an_answer_in_pieces_is_put_together(rtu, cut):
    async def script(writer, data):
        if rtu:
            answer = rtu_frame(1, registers(1, 2, 3))
        else:
            ((transaction, unit, _),) = tcp(data)
            answer = reply(transaction, unit, registers(1, 2, 3))
        for at in range(0, len(answer), cut):
            writer.write(answer[at : at + cut])
            await writer.drain()
            await asyncio.sleep(0.001)

    async with Peer(script) as peer:
        _, link = await opened(peer.port, rtu=rtu, timeout_s=1.0)
        assert list(await link.read(3, 0, 3)) == [1, 2, 3]
        link.close()


async def test_pipelined_requests_are_under_way_together_and_answered_in_order():
    async def script(writer, data):
        for transaction, unit, pdu in tcp(data):
            writer.write(reply(transaction, unit, registers(pdu[2])))

    async with Peer(script) as peer:
        line, link = await opened(peer.port, pipeline=4)
        answers = await link.read_many([(3, address, 1) for address in range(10)])
        assert [list(answer) for answer in answers] == [[address] for address in range(10)]
        assert len(tcp(peer.seen[0])) == 4, "as many as it bears, in one segment"
        assert line.requests == 10
        link.close()


@pytest.mark.parametrize("rtu", [False, True])
async def test_the_pause_between_requests_is_kept_inside_a_batch_and_after_it(rtu):
    times = []

    async def script(writer, data):
        times.append(asyncio.get_running_loop().time())
        if rtu:
            writer.write(rtu_frame(1, bytes([data[1], 2, 0, data[3]])))
        else:
            for transaction, unit, pdu in tcp(data):
                writer.write(reply(transaction, unit, bytes([pdu[0], 2, 0, pdu[2]])))

    async with Peer(script) as peer:
        line = Line(Endpoint(host="127.0.0.1", port=peer.port, rtu=rtu), gap_s=0.03, pipeline=4)
        link = ModbusLink(line, 1, timeout_s=1.0)
        await link.open()
        answers = await link.read_many([(3, 1, 1), (4, 2, 1), (3, 3, 1)])
        assert [answer[0] for answer in answers] == [1, 2, 3]
        assert (await link.read(4, 4, 1))[0] == 4
        link.close()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) == 3
    assert min(gaps) >= 0.028


async def test_answers_out_of_order_are_believed_by_nobody():
    async def script(writer, data):
        asked = tcp(data)
        if len(asked) > 1:
            writer.write(b"".join(reply(t, u, registers(p[2])) for t, u, p in reversed(asked)))

    async with Peer(script) as peer:
        line, link = await opened(peer.port, pipeline=2)
        with pytest.raises(UnavailableError, match="another request"):
            await link.read_many([(3, 0, 1), (3, 1, 1)])
        assert line.counters["wrong"] == 1
        link.close()


async def test_one_refused_read_leaves_the_others_their_answers():
    async def script(writer, data):
        for transaction, unit, pdu in tcp(data):
            writer.write(reply(transaction, unit, b"\x83\x02" if pdu[2] == 1 else registers(pdu[2])))

    async with Peer(script) as peer:
        _, link = await opened(peer.port)
        good, bad, after = await link.read_many([(3, 0, 1), (3, 1, 1), (3, 2, 1)])
        assert (list(good), list(after)) == ([0], [2])
        assert isinstance(bad, RefusedError)
        assert bad.code == 2
        link.close()


async def test_busy_is_told_from_refused_and_failing():
    code = [6]

    async def script(writer, data):
        for transaction, unit, _ in tcp(data):
            writer.write(reply(transaction, unit, bytes([0x83, code[0]])))

    async with Peer(script) as peer:
        _, link = await opened(peer.port)
        for number, kind in (
            (5, BusyError),
            (6, BusyError),
            (1, RefusedError),
            (4, UnavailableError),
            (11, UnavailableError),
        ):
            code[0] = number
            with pytest.raises(kind) as caught:
                await link.read(3, 0, 1)
            assert type(caught.value) is kind
        link.close()


@pytest.mark.parametrize(
    "confirmation",
    [b"\x06\x00\x05\x00\x08", b"\x06\x00\x06\x00\x07", b"\x10\x00\x05\x00\x01", b"\x06\x00\x05", b"\x03\x02\x00\x07"],
)
async def test_a_write_counts_only_when_just_it_is_confirmed(confirmation):
    async def script(writer, data):
        for transaction, unit, _ in tcp(data):
            writer.write(reply(transaction, unit, confirmation))

    async with Peer(script) as peer:
        _, link = await opened(peer.port)
        with pytest.raises(UnavailableError):
            await link.write(6, 5, [7])
        assert len(peer.seen) == 1, "and is not sent again"
        link.close()


async def test_units_on_a_line_wait_for_each_other_and_probes_for_everybody():
    order = []
    gate = asyncio.Event()

    async def script(writer, data):
        for transaction, unit, _ in tcp(data):
            order.append(unit)
            await gate.wait()
            writer.write(reply(transaction, unit, registers(unit)))

    async with Peer(script) as peer:
        pool = LinePool()
        endpoint = Endpoint(host="127.0.0.1", port=peer.port)
        links = [ModbusLink(pool.line(endpoint), unit, timeout_s=2.0) for unit in range(1, 5)]
        assert pool.of(endpoint).shared
        for link in links:
            await link.open()
        links[1].probing = True
        reads = [asyncio.create_task(link.read(3, 0, 1)) for link in links]
        await asyncio.sleep(0.05)
        assert order == [1], "one at a time"
        gate.set()
        assert [list(await read) for read in reads] == [[1], [2], [3], [4]]
        assert order == [1, 3, 4, 2], "the probe came last"
        for link in links:
            link.close()
        assert pool.of(endpoint)._transport is None, "the last one ended the connection"


async def test_a_cancelled_request_does_not_hold_up_the_line_nor_mix_its_answer_in():
    held = []

    async def script(writer, data):
        for transaction, unit, pdu in tcp(data):
            held.append(reply(transaction, unit, registers(pdu[2])))
            if len(held) == 2:
                writer.write(b"".join(held))

    async with Peer(script) as peer:
        _, link = await opened(peer.port, timeout_s=2.0)
        first = asyncio.create_task(link.read(3, 1, 1))
        waiting = asyncio.create_task(link.read(3, 9, 1))
        await asyncio.sleep(0.03)
        waiting.cancel()
        first.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        assert list(await link.read(3, 2, 1)) == [2]
        link.close()


async def test_a_line_with_a_babbler_is_one_clear_error():
    async def script(writer, data):
        del data
        for _ in range(500):
            writer.write(b"\x55" * 8)
            await asyncio.sleep(0.01)

    async with Peer(script) as peer:
        _, link = await opened(peer.port, rtu=True, timeout_s=0.05)
        with pytest.raises(UnavailableError):
            await link.read(3, 0, 1)
        line = link.line
        line._quiet_s = 0.01
        with pytest.raises(UnavailableError):
            await link.read(3, 0, 1)
        link.close()


@pytest.mark.parametrize(
    ("path", "told"),
    [("/dev/no-such-port", "there is no such port"), ("/dev/null", "cannot be used")],
)
async def test_a_serial_port_that_cannot_be_used_says_why(path, told):
    link = ModbusLink(Line(Endpoint(serial=SerialPort(path=path))), 1, timeout_s=0.2)
    with pytest.raises(ConfigurationError, match=f"serial port {path}.*") as caught:
        await link.open()
    assert told in str(caught.value)


def test_what_a_request_costs_in_registers():
    """Facts: break-even is (23 ms + the device's latency) / 2.3 ms registers at 9600 baud."""
    serial = Endpoint(serial=SerialPort(path="/dev/x", baud=9600))
    assert serial.request_cost(0.0) == pytest.approx(23 / 2.3, rel=0.02)
    assert serial.request_cost(0.05) == pytest.approx((23 + 50) / 2.3, rel=0.02)
    behind = Endpoint(host="gateway")
    assert behind.request_cost(0.05, baud=9600) == serial.request_cost(0.05)
    assert behind.request_cost(0.05) > 1e4, "over TCP the fewest requests"


async def test_an_answer_given_twice_is_not_the_answer_to_the_request_after_it():
    """An echoing converter: the second copy comes before the next request of the batch is sent."""

    async def script(writer, data):
        frame = rtu_frame(1, bytes([data[1], 2, 0, data[3]]))
        writer.write(frame)
        if data[3] == 1:
            await writer.drain()
            await asyncio.sleep(0.005)
            writer.write(frame)

    async with Peer(script) as peer:
        line = Line(Endpoint(host="127.0.0.1", port=peer.port, rtu=True), gap_s=0.03)
        link = ModbusLink(line, 1, timeout_s=0.5)
        await link.open()
        answers = await link.read_many([(3, 1, 1), (3, 2, 1)])
        assert [answer[0] for answer in answers] == [1, 2]
        assert line.counters["late"] >= 1
        link.close()


async def test_an_answer_that_comes_after_the_line_was_opened_anew_is_nobodys():
    """A serial converter gives a late answer to whoever is connected then."""
    held = asyncio.Event()

    async def script(writer, data):
        frame = rtu_frame(1, bytes([data[1], 2, 0, data[3]]))
        if data[3] == 1:
            await held.wait()  # then it goes to the newest connection
            peer.writers[-1].write(frame)
            return
        writer.write(frame)

    async with Peer(script) as peer:
        line, link = await opened(peer.port, rtu=True, timeout_s=0.15)
        with pytest.raises(UnavailableError):
            await link.read(3, 1, 1)
        link.close()
        await link.open()
        asyncio.get_running_loop().call_later(0.05, held.set)
        assert list(await link.read(3, 2, 1)) == [2]
        assert line.counters["late"] == 1
        link.close()
