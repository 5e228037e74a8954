"""Cost of reading devices: decoding, one Modbus request, many at once, a site of 50 devices, and requests a cycle of each template.

usage: benchmarks/drivers.py [--json] [--only PART ...] [--seconds S]

Peers: pymodbus, for decoding its ``convert_from_registers`` a point, for requests its asynchronous client on the plain asyncio
loop; both clients ask the same libmodbus server, which runs in a process of its own, in rounds that alternate, and the best round
of each counts. Telegraf's ``max_insert`` grouping, written anew from its documentation, for the requests of a cycle.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from pymodbus.client import AsyncModbusTcpClient
from wattmesh_drivers.decode import F32, S32, U16, U32, BlockDecoder
from wattmesh_drivers.modbus.driver import WORDS
from wattmesh_drivers.modbus.line import Endpoint, SerialPort
from wattmesh_drivers.modbus.link import ModbusLink
from wattmesh_drivers.modbus.plan import Block, Span, plan_blocks
from wattmesh_drivers.modbus.sunspec import model_definition, place_of
from wattmesh_drivers.template import Template, load_template, template_ids

HERE = Path(__file__).parent
POINTS, REPEATS, ROUNDS, REQUESTS = 700, 15, 25, 400
DEVICES, POINTS_EACH = 50, 100
SECONDS = [20.0]
Row = tuple[str, float, str, float | None, bool | None, str | None, float | None, float | None]
"""Name, value, unit, goal, met, peer, the peer's value, ratio."""


def row(name, value, unit, goal=None, *, at_least=False, peer=None, peer_value=None, ratio=None) -> Row:
    met = None if goal is None else value >= goal if at_least else value <= goal
    return (f"drivers.{name}", value, unit, goal, met, peer, peer_value, ratio)


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
    yield row(
        "decode_1000_registers_700_points", ours, "us", 2.0, peer="pymodbus", peer_value=theirs, ratio=theirs / ours
    )
    yield row("decode_times_faster", theirs / ours, "x", 300, at_least=True, peer="pymodbus", peer_value=1)


class LibmodbusServer:
    """libmodbus in a process of its own: a few lines of C where a compiler and the headers are there, else through ctypes."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        program = Path(self.folder.name) / "server"
        command = [sys.executable, str(HERE.parent / "tests" / "support" / "libmodbus.py"), "tcp", "1"]
        self.kind = "libmodbus server by ctypes"
        compiler = shutil.which("cc")
        build = [
            compiler,
            "-O2",
            str(HERE / "csrc" / "libmodbus_server.c"),
            "-o",
            str(program),
            "-lmodbus",
            "-lpthread",
        ]
        if compiler and subprocess.run(build, capture_output=True, check=False).returncode == 0:
            command, self.kind = [str(program)], "libmodbus server"
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("benchmarks/drivers.py: libmodbus is not installed (Debian: libmodbus-dev)")
        self.port = int(line)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        self.folder.cleanup()


async def round_of(ask: Callable[[], Awaitable[object]], times: int, each: int) -> tuple[float, float]:
    """CPU microseconds a request, and requests a second."""
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(times):
        await ask()
    count = times * each
    return (time.process_time() - cpu) / count * 1e6, count / (time.perf_counter() - began)


async def compare(port: int) -> dict[str, tuple[float, float]]:
    link = ModbusLink.tcp("127.0.0.1", port, 1, timeout_s=1.0)
    deep = ModbusLink.tcp("127.0.0.1", port, 1, timeout_s=1.0, pipeline=8)
    bare = AsyncModbusTcpClient("127.0.0.1", port=port, retries=0)
    await link.open()
    await deep.open()
    await bare.connect()
    many = [(3, 0, 60)] * 80
    work: dict[str, tuple[Callable[[], Awaitable[object]], int, int]] = {
        "ours": (lambda: link.read(3, 0, 60), REQUESTS, 1),
        "pymodbus": (lambda: bare.read_holding_registers(0, count=60, device_id=1), REQUESTS, 1),
        "deep": (lambda: deep.read_many(many), REQUESTS // len(many), len(many)),
    }
    assert list(await link.read(3, 0, 60)) == (await bare.read_holding_registers(0, count=60, device_id=1)).registers
    assert all(list(one) == list(range(60)) for one in await deep.read_many(many))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, (ask, times, each) in work.items():
            found[name].append(await round_of(ask, times, each))
    link.close()
    deep.close()
    bare.close()
    return {name: (min(cpu for cpu, _ in one), max(rate for _, rate in one)) for name, one in found.items()}


def requests() -> Iterator[Row]:
    with LibmodbusServer() as server:
        found = asyncio.run(compare(server.port))
        kind = server.kind
    ours, theirs, deep = found["ours"], found["pymodbus"], found["deep"]
    yield row(
        "read_60_registers_cpu",
        ours[0],
        "us",
        theirs[0] / 2,
        peer="pymodbus",
        peer_value=theirs[0],
        ratio=ours[0] / theirs[0],
    )
    yield row(
        "read_60_registers_rate",
        ours[1],
        "requests/s",
        peer="pymodbus",
        peer_value=theirs[1],
        ratio=ours[1] / theirs[1],
    )
    yield row(
        "pipelined_8_deep_rate", deep[1], "requests/s", 4 * theirs[1], at_least=True, peer=f"pymodbus, {kind}",
        peer_value=theirs[1], ratio=deep[1] / theirs[1],
    )  # fmt: skip
    yield row("pipelined_8_deep_cpu", deep[0], "us", peer="pymodbus", peer_value=theirs[0], ratio=deep[0] / theirs[0])


POLLER = """
import asyncio, json, sys, time
from wattmesh_a2a.clock import SystemClock
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template
async def run(path, seconds, ports):
    template, clock = load_template(path), SystemClock()
    drivers = [create_driver(port, template, ConnectionModel(host="127.0.0.1", port=int(port)), clock) for port in ports]
    await asyncio.gather(*(driver.connect() for driver in drivers))
    await asyncio.gather(*(driver.poll() for driver in drivers))
    loop = asyncio.get_running_loop()
    cpu, began = time.process_time(), loop.time()
    for tick in range(1, int(seconds) + 1):
        await asyncio.sleep(began + tick - loop.time())
        assert all(await asyncio.gather(*(driver.poll() for driver in drivers)))
    spent = (time.process_time() - cpu) / (loop.time() - began)
    good = sum(quality == 0 for driver in drivers for quality in driver.qualities)
    resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    for driver in drivers:
        await driver.close()
    print(json.dumps([spent, int(resident.split()[1]) * 1024, good]))
asyncio.run(run(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
"""
"""A gateway's polling and nothing else, in a process of its own: without this benchmark's own imports."""
HUNDRED = """template: 1
id: hundred
kind: load
manufacturer: Bench
products: [bench]
protocol: modbus
points:
  - {id: active_power_w, function: 3, address: 0, type: u16}
"""
SERVER = """
import asyncio, sys
from wattmesh_simulators.modbus_server import ModbusServer
from wattmesh_simulators.registers import RegisterMap
async def main():
    servers = []
    for _ in range(int(sys.argv[2])):
        server = ModbusServer(RegisterMap(sys.argv[1], lambda: {"frequency_hz": 50.0}, lambda: 1, lambda name, value: None))
        await server.start(0)
        servers.append(server)
    print(*(server.port for server in servers), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


def hundred_points() -> str:
    """100 points of several types in two places, as a large inverter has them."""
    lines, address = [HUNDRED], 1
    for number in range(1, POINTS_EACH):
        if number == POINTS_EACH // 2:
            address += 300
        type_ = ("u16", "s16", "u32", "s32", "f32")[number % 5]
        lines.append(f"  - {{id: value_{number}, function: 3, address: {address}, type: {type_}, scale: 0.1}}\n")
        address += WORDS[type_]
    return "".join([*lines, "sources: [bench]\n"])


def site() -> Iterator[Row]:
    """A process of polling alone: 50 devices in step, once a second; the devices are another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hundred.yaml"
        path.write_text(hundred_points())
        devices = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path), str(DEVICES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ports = [int(port) for port in devices.stdout.readline().split()]
        worker = subprocess.run(
            [sys.executable, "-c", POLLER, str(path), str(SECONDS[0]), *map(str, ports)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        devices.stdin.close()
        devices.wait(10)
        devices.stdout.close()
    cpu, resident, good = json.loads(worker.stdout)
    assert good == DEVICES * POINTS_EACH, f"{good} good points"
    yield row("site_of_50_devices_100_points_at_1_hz_cpu", cpu * 100, "% of a core", 2.0)
    yield row("site_of_50_devices_100_points_at_1_hz_memory", resident / 1e6, "MB", 40.0)


# -- requests of a cycle


def spans_of(template: Template) -> list[Span]:
    """What has to be read together; of SunSpec, a device whose models follow each other in the order of their numbers."""
    places: dict[str, tuple[int, int, int, str]] = {}
    starts: dict[int, int] = {}
    at = 40002
    for model in sorted({1, *(point.model for point in template.points if point.model is not None)}):
        starts[model] = at
        at += 2 + length_of(model)
    for point in template.points:
        if point.sum is not None:
            continue
        if point.model is not None:
            place = place_of(point.model, starts[point.model], str(point.point), group=point.group, index=point.index)
            assert place is not None
            places[point.id] = (3, place.address, place.address + WORDS[place.type], point.sync or point.id)
        else:
            assert point.address is not None
            places[point.id] = (
                point.function or 3,
                point.address,
                point.address + WORDS[str(point.type)],
                point.sync or point.id,
            )
    groups: dict[tuple[int, str], list[tuple[int, int]]] = {}
    for function, start, end, group in places.values():
        groups.setdefault((function, group), []).append((start, end))
    return [
        Span(function=function, start=min(start for start, _ in at), end=max(end for _, end in at))
        for (function, _), at in groups.items()
    ]


def length_of(model: int) -> int:
    definition = model_definition(model)

    def size(group) -> int:
        own = sum(point["size"] for point in group["points"])
        return own + sum(
            size(inner) * (inner["count"] if isinstance(inner.get("count"), int) and inner["count"] > 0 else 2)
            for inner in group.get("groups", [])
        )

    return size(definition) - 2


def fewest(spans: Sequence[Span], longest: int) -> int:
    """Least number of blocks that cover all spans: from the left, each as far as it reaches, which is optimal for a count."""
    count = 0
    for function in {span.function for span in spans}:
        left = sorted((span for span in spans if span.function == function), key=lambda span: span.start)
        while left:
            start = left[0].start
            count += 1
            left = [span for span in left if span.end > start + longest]
    return count


def cheapest(spans: Sequence[Span], longest: int, request_cost: float) -> float:
    """Least cost of covering all spans: shortest path over every possible first and last register, with no use of their order."""
    total = 0.0
    for function in sorted({span.function for span in spans}):
        mine = [span for span in spans if span.function == function]
        ends = sorted({span.end for span in mine})
        covered: dict[int, float] = {0: 0.0}  # least cost by which every span that begins before a register is covered
        for start in sorted({span.start for span in mine}):
            before = [
                cost for reached, cost in covered.items() if not any(reached <= one.start < start for one in mine)
            ]
            if not before:
                continue
            for end in ends:
                cut = any(start <= one.start < end < one.end for one in mine)
                if start < end <= start + longest and not cut:
                    covered[end] = min(covered.get(end, float("inf")), min(before) + request_cost + end - start)
        last = max(span.start for span in mine)
        total += min(cost for reached, cost in covered.items() if reached > last)
    return total


def telegraf(spans: Sequence[Span], longest: int, fill: int = 50) -> list[Block]:
    """Telegraf's ``max_insert``: fields join a request while at most ``fill`` registers between them are read for nothing."""
    blocks: list[Block] = []
    for function in sorted({span.function for span in spans}):
        start = end = -1
        for span in sorted((one for one in spans if one.function == function), key=lambda one: (one.start, one.end)):
            if start >= 0 and span.start - end <= fill and max(end, span.end) - start <= longest:
                end = max(end, span.end)
                continue
            if start >= 0:
                blocks.append(Block(function=function, start=start, count=end - start))
            start, end = span.start, span.end
        blocks.append(Block(function=function, start=start, count=end - start))
    return blocks


def planning() -> Iterator[Row]:
    over, worse, dearer, total, theirs_total = 0, 0, 0, 0, 0
    for name in template_ids():
        template = load_template(name)
        if template.protocol == "opcua":
            continue
        spans, longest = spans_of(template), template.connection.max_registers
        optimum, theirs = fewest(spans, longest), len(telegraf(spans, longest))
        count = len(plan_blocks(spans, longest, request_cost=Endpoint(host="x").request_cost(0.0)))
        over += count != optimum
        worse += count > theirs
        total, theirs_total = total + count, theirs_total + theirs
        for baud in (9600, 19200, 115200):
            cost = Endpoint(serial=SerialPort(path="x", baud=baud)).request_cost(template.connection.latency_ms / 1000)
            planned = sum(cost + block.count for block in plan_blocks(spans, longest, request_cost=cost))
            dearer += planned > cheapest(spans, longest, cost) + 1e-6
        yield row(f"requests_a_cycle.{name}", count, "requests", optimum, peer="Telegraf max_insert", peer_value=theirs)
    yield row("templates_with_more_requests_than_the_optimum", over, "templates", 0)
    yield row("templates_with_more_requests_than_telegraf", worse, "templates", 0)
    yield row("serial_plans_dearer_than_the_optimum", dearer, "plans", 0)
    yield row(
        "requests_a_cycle_of_all_templates", total, "requests", peer="Telegraf max_insert", peer_value=theirs_total,
        ratio=total / theirs_total,
    )  # fmt: skip


PARTS = {"decoding": decoding, "requests": requests, "site": site, "planning": planning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of the site of 50 devices")
    arguments = parser.parse_args()
    SECONDS[0] = arguments.seconds
    for part in arguments.only:
        for name, value, unit, goal, met, peer, peer_value, ratio in PARTS[part]():
            found = {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "met": met, "peer": peer}
            found |= {"peer_value": peer_value and round(peer_value, 3), "ratio": ratio and round(ratio, 3)}
            if arguments.json:
                print(json.dumps(found), flush=True)
            else:
                told = "" if goal is None else f"  goal {goal:.4g}: {'met' if met else 'MISSED'}"
                against = "" if peer_value is None else f"  {peer}: {peer_value:.4g}"
                print(f"{name:<70}{value:>12.4g} {unit}{told}{against}", flush=True)


if __name__ == "__main__":
    main()
