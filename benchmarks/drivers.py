"""Cost of reading devices: decoding registers, one Modbus request, and requests a cycle of each template.

usage: benchmarks/drivers.py [--json]

Peer: pymodbus, for decoding its ``convert_from_registers`` a point, for a request its bare asynchronous client. A request's
CPU time is that of this process, in which the simulated device runs too: its making of the answer is subtracted, its socket is not,
for both alike, so that the ratio is nearer to 1 than that of the clients alone.
"""

import argparse
import asyncio
import json
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator

from pymodbus.client import AsyncModbusTcpClient
from wattmesh_a2a.clock import ManualClock
from wattmesh_drivers.decode import F32, S32, U16, U32, BlockDecoder
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.modbus.link import ModbusLink
from wattmesh_drivers.template import load_template, template_ids
from wattmesh_simulators.fleet import Fleet, FleetModel
from wattmesh_simulators.modbus_server import ModbusServer
from wattmesh_simulators.plant.data import FIRST_NS
from wattmesh_simulators.registers import BASE

POINTS, REPEATS, REQUESTS = 700, 15, 300
Row = tuple[str, float, str, float | None, str | None, float | None]


def best(work: Callable[[], object], times: int) -> float:
    """Seconds of one call: the best of several rounds."""
    rounds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        rounds.append((time.perf_counter() - began) / times)
    return min(rounds)


def decoding() -> Iterator[Row]:
    types = [U16] * 400 + [U32, S32, F32] * 100
    widths = [1 if type_ == U16 else 2 for type_ in types]
    offsets = [sum(widths[:index]) for index in range(POINTS)]
    registers = array("H", [(index * 7919) % 0x7000 + 1 for index in range(sum(widths))])
    decoder = BlockDecoder(
        array("i", offsets), array("i", types), bytes(POINTS), array("d", [0.1] * POINTS), array("q", [0] * POINTS),
        bytes(POINTS), array("i", range(POINTS)),
    )  # fmt: skip
    values, qualities = array("d", [0.0] * POINTS), bytearray(POINTS)
    ours = best(lambda: decoder.decode(registers, values, qualities), 1000) * 1e6
    names = AsyncModbusTcpClient.DATATYPE
    kinds = {U16: names.UINT16, U32: names.UINT32, S32: names.INT32, F32: names.FLOAT32}
    slices = [(list(registers[at : at + width]), kinds[t]) for at, width, t in zip(offsets, widths, types, strict=True)]
    convert = AsyncModbusTcpClient.convert_from_registers
    theirs = best(lambda: [convert(part, kind) * 0.1 for part, kind in slices], 1) * 1e6
    assert [convert(part, kind) * 0.1 for part, kind in slices] == list(values)
    yield "drivers.decode_1000_registers_700_points", ours, "us", 2.0, "pymodbus", theirs


async def cpu_us(ask: Callable[[], Awaitable[object]]) -> float:
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(REQUESTS):
            await ask()
        rounds.append((time.process_time() - began) / REQUESTS)
    return min(rounds) * 1e6


async def served(server: ModbusServer) -> float:
    """CPU of the simulated device for one such answer, which both clients pay."""
    pdu = bytes([3]) + BASE.to_bytes(2, "big") + (60).to_bytes(2, "big")
    return best(lambda: server.device.answer(pdu), 200) * 1e6


async def requests() -> list[Row]:
    model = FleetModel.model_validate(
        {"sites": [{"id": "h", "home": "b01", "inverter": {"port": 0}, "battery": {"port": 0}, "meter": {"port": 0}}]}
    )
    fleet = Fleet(model, ManualClock(FIRST_NS + 12 * 3600 * 10**9), None)
    await fleet.start()
    rows: list[Row] = []
    try:
        server = fleet.servers["h", "meter"]
        link = ModbusLink.tcp("127.0.0.1", server.port, server.unit, timeout_s=1.0)
        await link.open()
        bare = AsyncModbusTcpClient("127.0.0.1", port=server.port, retries=0)
        await bare.connect()
        share = await served(server)
        ours = await cpu_us(lambda: link.read(3, BASE, 60)) - share
        theirs = await cpu_us(lambda: bare.read_holding_registers(BASE, count=60, device_id=server.unit)) - share
        link.close()
        bare.close()
        rows.append(("drivers.read_60_registers_cpu", ours, "us", theirs / 2, "pymodbus", theirs))
        for kind in ("inverter", "battery", "meter"):
            name = {"inverter": "sunspec_inverter", "battery": "sunspec_battery", "meter": "sunspec_meter_203"}[kind]
            rows.append(await planned(name, fleet.servers["h", kind].port, fleet.servers["h", kind]))
    finally:
        await fleet.stop()
    return rows


async def planned(name: str, port: int, server: ModbusServer) -> Row:
    """Requests of one poll once connected, as the device counts them."""
    template = load_template(name)
    driver = create_driver("d", template, ConnectionModel(host="127.0.0.1", port=port), ManualClock(FIRST_NS))
    await driver.connect()
    before = server.requests
    assert await driver.poll()
    await driver.close()
    return f"drivers.requests_a_cycle.{name}", server.requests - before, "requests", None, None, None


def plain_templates() -> Iterator[Row]:
    """Templates whose addresses are in the file need no device to be planned."""
    from wattmesh_drivers.modbus.driver import WORDS
    from wattmesh_drivers.modbus.plan import Span, plan_blocks

    for name in template_ids():
        template = load_template(name)
        if template.protocol == "opcua":
            yield f"drivers.requests_a_cycle.{name}", 1, "requests", None, None, None  # one Read of all nodes
        if template.protocol != "modbus":
            continue
        groups: dict[tuple[int, str], list[tuple[int, int]]] = {}
        for point in template.points:
            assert point.address is not None
            key = (point.function or 3, point.sync or point.id)
            groups.setdefault(key, []).append((point.address, point.address + WORDS[str(point.type)]))
        spans = [
            Span(function=function, start=min(start for start, _ in at), end=max(end for _, end in at))
            for (function, _), at in groups.items()
        ]
        count = len(plan_blocks(spans, template.connection.max_registers))
        yield f"drivers.requests_a_cycle.{name}", count, "requests", None, None, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    for name, value, unit, goal, peer, peer_value in [*decoding(), *asyncio.run(requests()), *plain_templates()]:
        row: dict[str, object] = {"name": name, "value": round(value, 3), "unit": unit}
        if goal is not None:
            row |= {"goal": round(goal, 3), "met": value <= goal}
        if peer_value is not None:
            ratio = peer_value / value if "decode" in name else value / peer_value  # times faster; share of the cost
            row |= {"peer": peer, "peer_value": round(peer_value, 3), "ratio": round(ratio, 3)}
        print(json.dumps(row) if arguments.json else row)
        if "decode" in name and peer_value is not None:
            times = peer_value / value
            row = {"name": "drivers.decode_times_faster", "value": round(times, 1), "unit": "x", "goal": 300}
            row |= {"met": times >= 300, "peer": peer, "peer_value": 1, "ratio": round(times, 1)}
            print(json.dumps(row) if arguments.json else row)


if __name__ == "__main__":
    main()
