"""What the cloud's tests share: a market area, orders, meter readings, and a messenger that answers as told."""

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.envelope import CLOUD_UNIT, INGEST_AGENT, Address
from wattmesh_a2a.errors import ExpiredError, UnavailableError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.market import Order, Side
from wattmesh_a2a.messages import Acknowledged, IntervalEnergy, Message
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.store.sqlite import SqliteStore

MIDNIGHT_NS = 19_676 * 86_400 * NS_PER_S
SLOT_NS = 900 * NS_PER_S


class RecordingMessenger:
    """A messenger that keeps what is sent and answers by ``answer(to, message)``; an exception there is raised."""

    def __init__(self) -> None:
        self.address = Address("demo", CLOUD_UNIT, INGEST_AGENT)
        self.session = "test"
        self.requests: list[SimpleNamespace] = []
        self.emitted: list[Message] = []
        self.handlers: dict[type, Callable] = {}
        self.events: dict[type, Callable] = {}
        self.answer: Callable[[Address, Message], Message] = lambda to, message: Acknowledged()
        self.silent: set[str] = set()
        """Sites that never answer: a wait with a time limit ends in it, one without waits for ever."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def request(self, to, message, *, expires_ns, timeout_s=None, as_agent=None):
        self.requests.append(
            SimpleNamespace(to=to, message=message, expires_ns=expires_ns, timeout_s=timeout_s, source=as_agent)
        )
        if to.unit in self.silent:
            if timeout_s is None:
                await asyncio.Event().wait()
            raise UnavailableError("no answer")
        return self.answer(to, message)

    def on_request(self, kind, handler, *, as_agent=None, idempotent=False) -> None:
        self.handlers[kind] = handler

    async def emit(self, message, *, as_agent=None, valid_for_s=60.0) -> None:
        self.emitted.append(message)

    def on_event(self, kind, handler, *, source="+/+/+") -> None:
        self.events[kind] = handler

    async def announce(self, card) -> None: ...

    def on_presence(self, handler) -> None: ...

    async def send_telemetry(self, stream, payload) -> None:
        raise ExpiredError("the cloud sends no telemetry")

    def on_telemetry(self, handler, *, group=None) -> None:
        self.telemetry = handler

    def counters(self) -> dict[str, int]:
        return {}

    def sent(self, kind: type) -> list[SimpleNamespace]:
        return [one for one in self.requests if isinstance(one.message, kind)]


@pytest.fixture
def midnight_ns() -> int:
    return MIDNIGHT_NS


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(MIDNIGHT_NS)


@pytest.fixture
def messenger() -> RecordingMessenger:
    return RecordingMessenger()


@pytest.fixture
def store(tmp_path):
    opened = SqliteStore(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def make_config():
    def make(**changes) -> MarketConfig:
        people = [
            {"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0}
            for name in ("ann", "bob", "cem")
        ]
        data = {
            "area": "area-1",
            "tariff": {"feed_in_price": 0.05, "default_price": 0.30},
            "participants": people,
        }
        return MarketConfig.model_validate({**data, **changes})

    return make


@pytest.fixture
def make_order():
    def make(who: str, side: str, quantity_wh: int, price_ticks: int, *, name: str = "", slot_ns: int = 0) -> Order:
        return Order(
            client_order_id=name or f"{who}-{side}-{quantity_wh}-{price_ticks}",
            participant_id=who,
            area_id="area-1",
            slot_start_ns=slot_ns,
            side=Side(side),
            quantity_wh=quantity_wh,
            price_ticks=price_ticks,
        )

    return make


@pytest.fixture
def make_interval():
    def make(site: str, slot_ns: int, **changes) -> IntervalEnergy:
        values = {
            "site_id": site,
            "slot_start_ns": slot_ns,
            "slot_s": 900,
            "import_wh": 500,
            "export_wh": 0,
            "pv_wh": 0,
            "battery_charge_wh": 0,
            "battery_discharge_wh": 0,
            "load_wh": 500,
            "method": "register",
            "complete": True,
        }
        return IntervalEnergy(**{**values, **changes})

    return make


@pytest.fixture
def make_forecast():
    def make(site: str, quantity: str, start_ns: int, wh: list[float]) -> Forecast:
        return Forecast(
            site_id=site,
            quantity=quantity,
            issued_ns=start_ns,
            start_ns=start_ns,
            slot_s=900,
            levels=(0.1, 0.5, 0.9),
            values=tuple((0.8 * value, value, 1.2 * value) for value in wh),
            model="test",
        )

    return make


@pytest.fixture
def settled():
    """Wait for the tasks that a service has spawned."""

    async def wait(service) -> None:
        while tasks := [task for task in service._tasks if not task.done()]:
            await asyncio.wait(tasks)

    return wait


@pytest.fixture
async def background():
    """Start a loop that runs for ever; it ends with the test, and its error is the test's."""
    tasks: list[asyncio.Task] = []

    def start(work) -> asyncio.Task:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
