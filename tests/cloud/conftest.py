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
from wattmesh_cloud.access.commands import Commands
from wattmesh_cloud.access.door import Access
from wattmesh_cloud.access.jobs import Jobs
from wattmesh_cloud.access.model import Role, Tenants
from wattmesh_cloud.access.store import AccessStore
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.api import Services, create_api
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.store.sqlite import SqliteStore
from wattmesh_cloud.view import CloudView

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


@pytest.fixture
def view(store, messenger, clock, make_config, tmp_path, access):
    """A cloud whose services stand and do not run."""
    common = (store, messenger, clock, tmp_path, "demo")
    forecasting = ForecastingService(ForecastingConfig(), *common)

    async def pay(*what) -> None: ...

    markets = Markets([make_config()], *common)
    yield CloudView(
        clock=clock,
        store=store,
        live=LiveView(),
        ingest=Ingest(store, messenger, clock, "demo"),
        market=markets.first,
        markets=markets,
        forecasting=forecasting,
        grid=GridService(GridConfig(), *common, forecasts=lambda: forecasting.latest, pay=pay),
        strategy=AgentsService(
            AgentsConfig(),
            Sources(market_config=make_config(), forecasts=lambda: forecasting.latest),
            *common,
            audit=access.audit,
        ),
    )
    markets.close()


@pytest.fixture
def real() -> ManualClock:
    """The machine's clock, as sessions and second steps see it."""
    return ManualClock(MIDNIGHT_NS)


@pytest.fixture
def access(tmp_path, clock, real):
    """The door of a fleet with one tenant beside its operator: ``acme`` has ann alone."""
    audit = AuditLog(tmp_path / "audit.log")
    store = AccessStore(
        tmp_path / "access.sqlite", real, Tenants(sites={"acme": frozenset({"ann"})}), idle_s=1800, longest_s=43_200
    )
    yield Access(
        store=store,
        audit=audit,
        fleet=clock,
        hosts=frozenset({"test", "127.0.0.1", "localhost", "testserver"}),
        requests_per_s=10_000.0,
    )
    store.close()
    audit.close()


@pytest.fixture
def services(view, access, clock, real, tmp_path):
    commands = Commands(tmp_path / "commands.sqlite", access.audit, clock, real)
    yield Services(
        view=view, access=access, commands=commands, jobs=Jobs(tmp_path / "jobs", clock), audit=tmp_path / "audit.log"
    )
    commands.close()


@pytest.fixture
def api(services):
    return create_api(services)


@pytest.fixture
def token(access):
    """A machine token of a role and tenant; the same one again for the same."""
    made: dict[tuple[str, str], str] = {}

    def make(role: str = "admin", tenant: str = "fleet") -> str:
        if (role, tenant) not in made:
            made[role, tenant] = access.store.add_token(
                f"{tenant}-{role}", tenant=tenant, role=Role(role), valid_s=3600.0
            )
        return made[role, tenant]

    return make
