"""Plans that come to a gateway: taken, refused, kept over a restart, and followed by the agents."""

import sqlite3
from types import SimpleNamespace

import pytest
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError, UnauthorisedError
from wattmesh_a2a.messages import Acknowledged
from wattmesh_a2a.plans import CoordinationReply, CoordinationRound, PlannedLoad, SitePlan
from wattmesh_a2a.tariff import Tariff
from wattmesh_edge.agents.base import Outlook
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.memory import Memory
from wattmesh_edge.planned import PlanInbox

PLANNING = Address("demo", "cloud", "planning")


class Messenger:
    """Keeps the handlers."""

    def __init__(self):
        self.handlers = {}

    def on_request(self, kind, handler, **_):
        self.handlers[kind] = handler


@pytest.fixture
def site(tmp_path):
    clock = ManualClock()
    db = sqlite3.connect(tmp_path / "gateway.sqlite")
    storage = Storage(energy_wh=6400, power_w=5000, reserve_wh=320)

    class Known(Outlook):
        def stored_wh(self, image):
            return 3000.0

    def start():
        messenger = Messenger()
        outlook = Known(tariff=Tariff(default_price=0.2, feed_in_price=0.05), storage=storage, trade=False)
        inbox = PlanInbox("home-1", outlook, messenger, Memory(db), clock, image=SimpleNamespace)
        return SimpleNamespace(outlook=outlook, inbox=inbox, clock=clock, handlers=messenger.handlers)

    yield start
    db.close()


def plan(now, **changes):
    base = {
        "site_id": "home-1", "issued_ns": now, "expires_ns": now + 7200 * NS_PER_S, "start_ns": now - now % (900 * NS_PER_S),
        "slot_s": 900, "grid_w": (100,) * 8, "battery_w": (0,) * 8, "stored_wh": (3000,) * 8, "min_grid_w": (0,) * 8,
        "max_grid_w": (2000,) * 8, "loads": (PlannedLoad(device="ev", power_w=(3600,) * 8),),
    }  # fmt: skip
    return SitePlan(**(base | changes))


def envelope(data, source=PLANNING):
    return SimpleNamespace(data=data, source=source)


async def test_a_plan_is_followed_until_it_expires_also_after_a_restart(site):
    one = site()
    now = one.clock.utc_ns()
    assert await one.handlers[SitePlan](envelope(plan(now))) == Acknowledged()
    assert one.outlook.band_w(now) == (0, 2000)
    assert one.inbox.load_w("ev", now) == 3600
    assert one.inbox.load_w("boiler", now) is None
    again = site()
    assert again.outlook.band_w(now) == (0, 2000)
    await again.clock.advance(7201)
    assert again.outlook.band_w(again.clock.utc_ns()) is None
    assert again.inbox.load_w("ev", again.clock.utc_ns()) is None
    assert site().outlook.site_plan is None, "what is over is not recalled"


async def test_an_older_plan_does_not_take_the_place_of_a_newer_one(site):
    one = site()
    now = one.clock.utc_ns()
    await one.handlers[SitePlan](envelope(plan(now, max_grid_w=(3000,) * 8)))
    await one.handlers[SitePlan](envelope(plan(now - NS_PER_S)))
    assert one.outlook.band_w(now) == (0, 3000)


async def test_plans_of_others_and_for_others_are_refused_and_nothing_changes(site):
    one = site()
    now = one.clock.utc_ns()
    with pytest.raises(UnauthorisedError):
        await one.handlers[SitePlan](envelope(plan(now), Address("demo", "home-2", "gateway")))
    with pytest.raises(ConfigurationError):
        await one.handlers[SitePlan](envelope(plan(now, site_id="home-2")))
    with pytest.raises(ConfigurationError):
        await one.handlers[SitePlan](envelope(plan(now, min_grid_w=(2500,) * 8)))
    with pytest.raises(UnauthorisedError):
        await one.handlers[CoordinationRound](envelope(wanted(now), Address("demo", "home-2", "gateway")))
    assert one.outlook.site_plan is None


def wanted(now, **changes):
    start = now - now % (3600 * NS_PER_S)
    base = {
        "site_id": "home-1", "agreement_id": "a", "number": 1, "final": False, "expires_ns": now + 7200 * NS_PER_S,
        "start_ns": start, "slot_s": 3600, "wish_w": (300,) * 12, "weight_ticks": 500.0,
    }  # fmt: skip
    return CoordinationRound(**(base | changes))


async def test_a_round_is_answered_with_the_exchange_alone_and_the_last_one_is_followed(site):
    one = site()
    now = one.clock.utc_ns()
    silent = await one.handlers[CoordinationRound](envelope(wanted(now)))
    assert silent == CoordinationReply(site_id="home-1", agreement_id="a", number=1, grid_w=()), (
        "nothing is expected yet"
    )
    one.outlook.profile = dict.fromkeys(range(96), (150.0, 0.0))
    reply = await one.handlers[CoordinationRound](envelope(wanted(now)))
    assert len(reply.grid_w) == 12
    assert one.outlook.site_plan is None
    last = await one.handlers[CoordinationRound](envelope(wanted(now, number=2, final=True)))
    assert one.outlook.site_plan.grid_w == last.grid_w
    assert one.outlook.followed(now) == "cloud"
