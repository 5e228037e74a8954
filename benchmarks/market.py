"""The market: book alone against peers, the whole path of an order, over MQTT, a call auction, a day's settlement.

usage: benchmarks/market.py [--json] [--only PART ...] [--peers FOLDER] [--seconds S]

The book's load: 100,000 limit orders around 3,000 ticks (normal, 50 ticks wide) and 30,000 cancels of earlier orders, one call an
event, the best of three rounds for everybody; trades are compared with those of a plain book of heaps and deques on integers, which
stands here. Peers (bourse, lightmatchingengine, pyorderbook) are imported where they are installed, or from FOLDER (a
site-packages); pyorderbook's order objects are made before its clock starts, bourse is told the time of each order as its queue
needs it, and neither pyorderbook nor lightmatchingengine is asked to cancel what has traded, because both fail at it. The path:
payload bytes → envelope → validation → risk → book → journal with fdatasync → ledger → payload bytes.
"""

import argparse
import asyncio
import ctypes
import gc
import heapq
import json
import logging
import math
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.codec import decode_fields, encode, from_fields
from wattmesh_a2a.dedupe import SqliteDedupe
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, MARKET_AGENT, Address, Envelope
from wattmesh_a2a.errors import ExpiredError
from wattmesh_a2a.market import Order, OrderStatus, Side
from wattmesh_a2a.messages import Acknowledged, Executions, OrderPlace, OrderResults
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_cloud.cli import GC_THRESHOLD
from wattmesh_cloud.market.book import Book
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.service import MarketService
from wattmesh_cloud.store.sqlite import SqliteStore

NS = 1_000_000_000
SLOT = 900 * NS
ORDERS, ROUNDS = 100_000, 3
SECONDS = [10.0]
Row = dict[str, object]


def row(
    name: str, value: float, unit: str, goal: float | None = None, *, at_least: bool = False, **more: object
) -> Row:
    found: Row = {"name": f"market.{name}", "value": value if math.isinf(value) else round(value, 3), "unit": unit}
    if goal is not None:
        found |= {"goal": goal, "met": value >= goal if at_least else value <= goal}
    return found | more


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# -- the book

Event = tuple[int, int, int, int] | int
"""A new order (owner, side, price, quantity), or the number of one to cancel."""
Trades = list[tuple[int, int, int, int]]
"""(resting order, arriving order, price, quantity)."""


def events() -> list[Event]:
    rng = random.Random(1)
    found: list[Event] = []
    cancels = set(rng.sample(range(1, ORDERS), ORDERS * 3 // 10))
    for number in range(1, ORDERS + 1):
        found.append((number, rng.randrange(2), 3000 + round(rng.gauss(0, 50)), rng.randrange(1, 100)))
        if number in cancels:
            found.append(rng.randrange(max(1, number - 2000), number + 1))
    return found


class Plain:
    """A careful book in plain Python: heaps of prices, deques of orders, integers."""

    def __init__(self) -> None:
        self.levels: tuple[dict[int, deque[int]], dict[int, deque[int]]] = ({}, {})
        self.heaps: tuple[list[int], list[int]] = ([], [])
        self.left = [0]
        self.trades: Trades = []

    def place(self, side: int, price: int, quantity: int) -> None:
        """A new order."""
        number, other = len(self.left), 1 - side
        levels, heap = self.levels[other], self.heaps[other]
        left, sign = self.left, 1 if other else -1
        while quantity and heap:
            best = sign * heap[0]
            if best > price if side == 0 else best < price:
                break
            queue = levels[best]
            while queue and quantity:
                first = queue[0]
                if not left[first]:
                    queue.popleft()
                    continue
                traded = min(quantity, left[first])
                self.trades.append((first, number, best, traded))
                quantity -= traded
                left[first] -= traded
            if not queue or not any(left[one] for one in queue):
                heapq.heappop(heap)
                del levels[best]
        left.append(quantity)
        if quantity:
            own = self.levels[side]
            if price not in own:
                own[price] = deque()
                heapq.heappush(self.heaps[side], -price if side == 0 else price)
            own[price].append(number)

    def cancel(self, number: int) -> None:
        """Leave it where it stands, empty."""
        self.left[number] = 0


def run_plain(load: list[Event], took: list[int] | None) -> tuple[float, Trades]:
    book, clock = Plain(), time.perf_counter_ns
    began = time.perf_counter()
    for event in load:
        at = clock() if took is not None else 0
        if type(event) is int:
            book.cancel(event)
        else:
            book.place(event[1], event[2], event[3])
        if took is not None:
            took.append(clock() - at)
    return time.perf_counter() - began, book.trades


def run_ours(load: list[Event], took: list[int] | None) -> tuple[float, Trades]:
    """The trades are taken out at the end, inside the measured time, as bourse's are."""
    book, clock = Book(-100_000, 100_000), time.perf_counter_ns
    place, cancel = book.place, book.cancel
    began = time.perf_counter()
    for event in load:
        at = clock() if took is not None else 0
        if type(event) is int:
            cancel(event)
        else:
            place(*event)
        if took is not None:
            took.append(clock() - at)
    trades = book.fills()
    return time.perf_counter() - began, trades


def run_ours_each(load: list[Event], took: list[int] | None) -> tuple[float, Trades]:
    """Every order's trades are taken out at once, as an engine needs them."""
    book, clock, trades = Book(-100_000, 100_000), time.perf_counter_ns, []
    place, cancel, fills = book.place, book.cancel, book.fills
    seen = 0
    began = time.perf_counter()
    for event in load:
        at = clock() if took is not None else 0
        if type(event) is int:
            cancel(event)
        else:
            place(*event)
            if book.filled:
                trades += fills(seen)
                seen = book.fill_count
        if took is not None:
            took.append(clock() - at)
    return time.perf_counter() - began, trades


def run_bourse(load: list[Event], took: list[int] | None) -> tuple[float, Trades]:
    from bourse.core import OrderBook

    book, clock, now = OrderBook(0, 1), time.perf_counter_ns, 0
    began = time.perf_counter()
    for event in load:
        at = clock() if took is not None else 0
        if type(event) is int:
            book.cancel_order(event - 1)
        else:
            now += 1
            book.set_time(now)
            book.place_order(event[1] == 0, event[3], event[0], price=event[2])
        if took is not None:
            took.append(clock() - at)
    trades = book.get_trades()
    spent = time.perf_counter() - began
    return spent, [(one[5] + 1, one[4] + 1, one[2], one[3]) for one in trades]


def run_lightmatching(load: list[Event], took: list[int] | None) -> tuple[float, Trades]:
    from lightmatchingengine.lightmatchingengine import LightMatchingEngine

    engine, clock, trades, orders = LightMatchingEngine(), time.perf_counter_ns, [], [None]
    began = time.perf_counter()
    for event in load:
        at = clock() if took is not None else 0
        if type(event) is int:
            if orders[event].leaves_qty:  # it fails for an order that has traded
                engine.cancel_order(event, "x")
        else:
            order, made = engine.add_order("x", event[2], event[3], 1 + event[1])
            orders.append(order)
            if made:
                trades.append((order.order_id, made))
        if took is not None:
            took.append(clock() - at)
    spent = time.perf_counter() - began
    flat = [
        (one.order_id, taker, int(one.trade_price), one.trade_qty)
        for taker, made in trades
        for one in made
        if one.order_id != taker
    ]
    return spent, flat


def run_pyorderbook(load: list[Event], took: list[int] | None) -> tuple[float, Trades]:
    import pyorderbook

    logging.getLogger("pyorderbook").setLevel(logging.ERROR)
    logging.getLogger("pyorderbook.book").setLevel(logging.CRITICAL)
    orders = [None] + [
        (pyorderbook.ask if one[1] else pyorderbook.bid)("x", one[2], one[3]) for one in load if type(one) is not int
    ]
    book, clock, blotters = pyorderbook.Book(), time.perf_counter_ns, []
    live, number = book.order_map, 0
    began = time.perf_counter()
    for event in load:
        at = clock() if took is not None else 0
        if type(event) is int:
            if orders[event].id in live:  # it raises for an order that is gone
                book.cancel(orders[event])
        else:
            number += 1
            blotters.append(book.match(orders[number]))
        if took is not None:
            took.append(clock() - at)
    spent = time.perf_counter() - began
    names = {order.id: index for index, order in enumerate(orders) if order is not None}
    return spent, [
        (names[one.standing_order_id], names[one.incoming_order_id], int(one.fill_price), one.fill_quantity)
        for blotter in blotters
        for one in blotter.trades
    ]


def book() -> Iterator[Row]:
    load = events()
    _, right = run_plain(load, None)
    fastest: tuple[float, str] | None = None
    ours = 0.0
    for name, run in (
        ("ours", run_ours), ("ours_trades_taken_each_call", run_ours_each), ("plain_python", run_plain),
        ("bourse", run_bourse), ("lightmatchingengine", run_lightmatching), ("pyorderbook", run_pyorderbook),
    ):  # fmt: skip
        try:
            spent, trades = run(load, None)
        except ImportError as error:
            yield row(f"book.{name}.events", float("nan"), "events/s", missing=str(error))
            continue
        except Exception as error:  # noqa: BLE001 - a peer that fails is a result
            yield row(f"book.{name}.events", float("nan"), "events/s", failed=repr(error)[:100])
            continue
        for _ in range(ROUNDS - 1):
            gc.collect()
            spent = min(spent, run(load, None)[0])
        took: list[int] = []
        run(load, took)
        rate, same = len(load) / spent, trades == right
        p99 = percentile([float(one) for one in took], 0.99) / 1000
        goals = (1_500_000, 2.0) if name == "ours" else (None, None)
        yield row(
            f"book.{name}.events", rate, "events/s", goals[0], at_least=True, trades=len(trades), trades_right=same
        )
        yield row(f"book.{name}.p99", p99, "us", goals[1])
        if name == "ours":
            ours = rate
        elif not name.startswith(("ours", "plain")) and same and (fastest is None or rate > fastest[0]):
            fastest = rate, name
    if fastest is not None:
        yield row(
            "book.against_fastest_peer_with_right_trades", ours / fastest[0], "x", 2.0, at_least=True, peer=fastest[1]
        )


# -- the whole path


def area(people: int, mechanism: str = "continuous") -> MarketConfig:
    return MarketConfig.model_validate(
        {
            "area": "bench",
            "mechanism": mechanism,
            "tariff": {"feed_in_price": 0.05, "default_price": 0.30},
            "participants": [
                {"id": f"p{i}", "import_limit_w": 1e8, "export_limit_w": 1e8, "credit_limit": 1e9, "orders_per_s": 1e6}
                for i in range(people)
            ],
        }
    )


def next_slots(now: int) -> list[int]:
    """Starts of sixteen slots whose gate is open for a good while yet."""
    first = now - now % SLOT + 3 * SLOT
    return [first + index * SLOT for index in range(16)]


def random_order(rng: random.Random, number: int, who: str, slots: list[int]) -> Order:
    return Order(
        client_order_id=f"{who}-{number}",
        participant_id=who,
        area_id="bench",
        slot_start_ns=rng.choice(slots),
        side=rng.choice((Side.BUY, Side.SELL)),
        quantity_wh=rng.randrange(1, 100),
        price_ticks=3000 + round(rng.gauss(0, 50)),
    )


class NullMessenger:
    """Takes what the market sends, and forgets it."""

    def __init__(self) -> None:
        self.handlers: dict[type, Callable] = {}

    def on_request(self, kind, handler, *, as_agent=None, idempotent=False) -> None:
        """Keep it."""
        self.handlers[kind] = handler

    async def request(self, to, message, *, expires_ns, timeout_s=None, as_agent=None):
        """Everybody acknowledges."""
        return Acknowledged()

    async def emit(self, message, *, as_agent=None, valid_for_s=60.0) -> None:
        """Nobody listens."""


def payloads(count: int, each: int = 1) -> list[bytes]:
    rng, clock = random.Random(2), SystemClock()
    slots, found = next_slots(clock.utc_ns()), []
    for number in range(0, count, each):
        who = f"p{number // each % 100}"
        orders = tuple(random_order(rng, number + more, who, slots) for more in range(each))
        message = OrderPlace(participant_id=who, area_id="bench", orders=orders)
        envelope = Envelope(
            id=f"{number}", source=Address("o", who, "gateway"), type="wattmesh.market.place.v1", time_ns=clock.utc_ns(),
            session="s", sequence=number, expires_ns=2**62, data=message,
        )  # fmt: skip
        found.append(encode(envelope))
    return found


class Way:
    """A market service with a real journal, and the way from a payload to the payload of its answer."""

    def __init__(self, folder: Path) -> None:
        self.messenger = NullMessenger()
        self.store = SqliteStore(folder / "store.sqlite")
        self.service = MarketService(area(100), self.store, self.messenger, SystemClock(), folder, "o")
        self.service.register()
        self.address = Address("o", CLOUD_UNIT, MARKET_AGENT)

    async def one(self, payload: bytes) -> bytes:
        """All the way."""
        envelope = from_fields(decode_fields(payload), signed=True)
        answer = await self.messenger.handlers[OrderPlace](envelope)
        assert isinstance(answer, OrderResults)
        if answer.results[0].status is OrderStatus.REJECTED:
            raise AssertionError(answer)
        reply = Envelope(
            id=envelope.id, source=self.address, type="wattmesh.market.results.v1", time_ns=0, session="s",
            sequence=0, expires_ns=2**62, data=answer, correlation_id=envelope.id,
        )  # fmt: skip
        return encode(reply)


async def sustained(folder: Path, count: int, waiting: int, each: int) -> tuple[float, float, int, int]:
    """With so many agents that each wait for their answer before the next message, which has ``each`` orders.

    Returns:
        Orders a second, the process's microseconds of CPU an order, trades, the ledger's sum.
    """
    path, rest = Way(folder), iter(payloads(count, each))

    async def agent() -> None:
        for payload in rest:
            await path.one(payload)

    began, worked = time.perf_counter(), time.process_time()
    await asyncio.gather(*(agent() for _ in range(waiting)))
    spent, worked = time.perf_counter() - began, time.process_time() - worked
    engine = path.service.engine
    return count / spent, worked / count * 1e6, len(engine.trades), engine.ledger.total()


async def paced(folder: Path, rate: float, seconds: float) -> list[float]:
    """Milliseconds from an order's due time to its answer; an order that starts late counts its wait."""
    path, load = Way(folder), payloads(int(rate * seconds))
    took: list[float] = []

    async def send(payload: bytes, due: float) -> None:
        await path.one(payload)
        took.append((time.perf_counter() - due) * 1000)

    tasks = set()
    began = time.perf_counter()
    for number, payload in enumerate(load):
        due = began + number / rate
        while time.perf_counter() < due:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(send(payload, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return took


def path() -> Iterator[Row]:
    for each in (1, 16):
        with tempfile.TemporaryDirectory() as folder:
            gc.collect()
            rate, cpu, trades, total = asyncio.run(sustained(Path(folder), 64_000, 500, each))
            more = {"trades": trades, "ledger_sum": total, "cpu_us_an_order": round(cpu, 1)}
            yield row(f"path.sustained.{each}_orders_a_message", rate, "orders/s", 20_000, at_least=True, **more)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        took = asyncio.run(paced(Path(folder), 5_000, SECONDS[0]))
        for share in (0.5, 0.99, 0.999):
            goal = 10.0 if share == 0.99 else None
            yield row(f"path.at_5000_a_second.p{share * 100:g}", percentile(took, share), "ms", goal)


# -- over MQTT


def keys(people: int) -> dict[str, bytes]:
    return {f"p{i}": bytes([i]) * 32 for i in range(people)}


def serve(url: str, folder: str, people: int, stop: object) -> None:
    """The market's own process."""

    async def run() -> None:
        address = Address("o", CLOUD_UNIT, MARKET_AGENT)
        store = SqliteDedupe(Path(folder) / "answers.sqlite")
        cloud = Delivery(
            MqttTransport(url, str(address)), address, SystemClock(), keys=KeyRing(keys(people)), store=store
        )
        rows = SqliteStore(Path(folder) / "store.sqlite")
        service = MarketService(area(people), rows, cloud, SystemClock(), Path(folder), "o")
        service.register()
        await cloud.start()
        task = asyncio.create_task(service.run())
        while not stop.is_set():
            await asyncio.sleep(0.1)
        task.cancel()
        await cloud.stop()

    asyncio.run(run())


async def agents(url: str, people: int, rate: float, seconds: float) -> tuple[list[float], int, int]:
    """(milliseconds from order to acknowledged trade of all orders that traded, orders, those without an answer in 15 s)."""
    clock, rng = SystemClock(), random.Random(3)
    to, made = Address("o", CLOUD_UNIT, MARKET_AGENT), []

    async def acknowledge(envelope: Envelope) -> Acknowledged:
        return Acknowledged()

    for i in range(people):
        own = Address("o", f"p{i}", "gateway")
        transport = MqttTransport(url, str(own))
        agent = Delivery(transport, own, clock, keys=KeyRing({f"p{i}": keys(people)[f"p{i}"]}))
        agent.on_request(Executions, acknowledge)
        await agent.start()
        await transport.wait_connected(10)
        made.append(agent)
    await asyncio.sleep(2)
    slots, took = next_slots(clock.utc_ns()), []
    unanswered: list[int] = []

    async def send(number: int, due: float) -> None:
        who = number % people
        order = random_order(rng, number, f"p{who}", slots)
        message = OrderPlace(participant_id=f"p{who}", area_id="bench", orders=(order,))
        try:
            answer = await made[who].request(to, message, expires_ns=clock.utc_ns() + 15 * NS)
        except ExpiredError:
            unanswered.append(number)
            return
        assert isinstance(answer, OrderResults), answer
        if answer.results[0].trades:
            took.append((time.perf_counter() - due) * 1000)

    tasks, began = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        while time.perf_counter() < due:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(number, due)))
    await asyncio.gather(*tasks)
    for agent in made:
        await agent.stop()
    return took, len(tasks), len(unanswered)


async def over_mqtt(people: int, rate: float, seconds: float) -> tuple[list[float], int, int, str]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        async with provision_broker(Path(folder) / "broker", port) as broker:
            context = multiprocessing.get_context("spawn")
            stop = context.Event()
            market = context.Process(target=serve, args=(broker.url, folder, people, stop))
            market.start()
            try:
                await asyncio.sleep(3)
                took, count, unanswered = await agents(broker.url, people, rate, seconds)
            finally:
                stop.set()
                await asyncio.to_thread(market.join, 10)
                if market.is_alive():
                    market.kill()
            return took, count, unanswered, broker.description


def mqtt() -> Iterator[Row]:
    took, count, unanswered, broker = asyncio.run(over_mqtt(100, 500, SECONDS[0]))
    more = {"orders": count, "that_traded": len(took), "unanswered": unanswered, "broker": broker}
    for share in (0.5, 0.99):
        goal = 100.0 if share == 0.99 else None
        value = percentile(took, share) if took and not unanswered else float("inf")
        yield row(f"mqtt.100_agents_500_a_second.p{share * 100:g}", value, "ms", goal, **more)


# -- the call auction, settlement


def auction() -> Iterator[Row]:
    rng = random.Random(4)
    rows = [(i % 1000, i % 2, 3000 + round(rng.gauss(0, 500)), rng.randrange(1, 1000)) for i in range(ORDERS)]
    columns = [array("q", column) for column in zip(*rows, strict=True)]
    spent, volume, trades = [], 0, 0
    for _ in range(7):
        began = time.perf_counter()
        book = Book(-100_000, 100_000, matching=False)
        book.load(*columns)
        result = book.uncross()
        made = book.fills()
        spent.append((time.perf_counter() - began) * 1000)
        volume, trades = result[1], len(made)
    yield row(
        "auction.100k_orders",
        min(spent),
        "ms",
        50.0,
        volume_wh=volume,
        trades=trades,
        median=round(sorted(spent)[3], 3),
    )
    yield from closures(rows)


def closures(rows: list[tuple[int, int, int, int]]) -> Iterator[Row]:
    """The gate of a product closes in an engine: the auction in its book alone, and all with trades, ledger and commitments."""
    alone, whole, trades = [], [], 0
    for _ in range(3):
        engine, slot = MarketEngine(area(1000, "call")), 2_000_000 * SLOT
        for i, (owner, side, price, quantity) in enumerate(rows):
            order = Order(
                client_order_id=f"o{i:06}", participant_id=f"p{owner // 2 * 2 + side}", area_id="bench", slot_start_ns=slot,
                side=Side.SELL if side else Side.BUY, price_ticks=price, quantity_wh=quantity,
            )  # fmt: skip
            found = engine.place(order.participant_id, (order,), slot - 3600 * NS + i * 1000)
            assert found[0].status is OrderStatus.ACCEPTED, found
        state = engine.slots[slot].book.dump()
        copy = Book(-100_000, 100_000, matching=False)
        copy.restore(state)
        gc.collect()
        began = time.perf_counter()
        copy.uncross()
        copy.fills()
        alone.append((time.perf_counter() - began) * 1000)
        gc.collect()
        began = time.perf_counter()
        engine.clear(slot)
        whole.append((time.perf_counter() - began) * 1000)
        trades = len(engine.slots[slot].trades)
        assert engine.ledger.total() == 0
    yield row("auction.100k_resting_orders_of_an_engine", min(alone), "ms", 50.0, trades=trades)
    yield row("auction.gate_closure_of_an_engine_with_100k_orders", min(whole), "ms", trades=trades)


def settlement() -> Iterator[Row]:
    rng, people, spent = random.Random(5), 100, []
    for _ in range(ROUNDS):
        engine, start = MarketEngine(area(people)), 2_000_000 * SLOT
        number = 0
        for index in range(96):
            slot = start + index * SLOT
            for pair in range(105):
                price, quantity = rng.randrange(1000, 3000), rng.randrange(1, 500)
                for who, side in ((pair % 50, Side.BUY), (50 + (pair * 7) % 50, Side.SELL)):
                    number += 1
                    order = Order(
                        client_order_id=f"o{number}", participant_id=f"p{who}", area_id="bench", slot_start_ns=slot,
                        side=side, quantity_wh=quantity, price_ticks=price + (1000 if side is Side.BUY else -1000),
                    )  # fmt: skip
                    engine.place(f"p{who}", (order,), slot - 3600 * NS)
            engine.clear(slot)
        readings = [[rng.randrange(-500, 500) for _ in range(people)] for _ in range(96)]
        gc.collect()
        began = time.perf_counter()
        for index, metered in enumerate(readings):
            for who, energy in enumerate(metered):
                engine.settle(start + index * SLOT, f"p{who}", energy)
        spent.append(time.perf_counter() - began)
    done = sum(len(slot.settlements) for slot in engine.slots.values())
    yield row(
        "settlement.day_of_96_slots", min(spent), "s", 1.0,
        trades=len(engine.trades), settlements=done, ledger_sum=engine.ledger.total(), bookings=engine.ledger.count,
    )  # fmt: skip


def resident_mb() -> float:
    """What the process holds now, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def year() -> Iterator[Row]:
    """A year of slots with 20 participants, archived daily as the service does: memory after 60 days and after 365."""
    people, day = 20, 86_400 * NS
    engine, rng, start = MarketEngine(area(people, "call")), random.Random(6), 19_676 * 86_400 * NS
    held: dict[int, float] = {}
    for number in range(365):
        for slot in range(start + number * day, start + (number + 1) * day, SLOT):
            for i in range(people):
                order = Order(
                    client_order_id=f"o{slot // NS}-{i}", participant_id=f"p{i}", area_id="bench", slot_start_ns=slot,
                    side=Side.SELL if i % 2 else Side.BUY, quantity_wh=rng.randrange(1, 500), price_ticks=rng.randrange(1000, 3000),
                )  # fmt: skip
                engine.place(order.participant_id, (order,), slot - 3600 * NS)
            engine.clear(slot)
            for i in range(people):
                engine.settle(slot, f"p{i}", rng.randrange(-500, 500))
        engine.archive(start + (number - 31) * day)
        if number + 1 in (60, 365):
            held[number + 1] = resident_mb()
    more = {
        "slots_held": len(engine.slots),
        "slots_in_sums": engine.sums.slots_settled,
        "trades": engine.sums.trades + len(engine.trades),
        "ledger_sum": engine.ledger.total(),
    }
    yield row("year.resident_after_60_days", held[60], "MB")
    yield row("year.resident_after_365_days", held[365], "MB", **more)
    yield row("year.growth_from_day_60_to_365", held[365] - held[60], "MB", 10.0)


PARTS = {"book": book, "path": path, "mqtt": mqtt, "auction": auction, "settlement": settlement, "year": year}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--peers", type=Path, help="a site-packages folder with the peers")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the parts that are paced")
    arguments = parser.parse_args()
    SECONDS[0] = arguments.seconds
    gc.set_threshold(*GC_THRESHOLD)  # as `wattmesh cloud run` does
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    for part in arguments.only:
        for found in PARTS[part]():
            if arguments.json:
                print(json.dumps(found), flush=True)
            else:
                told = "" if "goal" not in found else f"  goal {found['goal']:,}: {'met' if found['met'] else 'MISSED'}"
                more = {
                    key: value for key, value in found.items() if key not in {"name", "value", "unit", "goal", "met"}
                }
                print(f"{found['name']:<60}{found['value']:>15,} {found['unit']}{told}  {more or ''}", flush=True)


if __name__ == "__main__":
    main()
