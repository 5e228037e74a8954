"""The operator's instructions at a gateway: in force at their rank, over by themselves, and a drill moves nothing."""

import sqlite3

import pytest
from wattmesh_a2a.control import GRID_CONNECTION, Priority, Proposal
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import UnauthorisedError
from wattmesh_a2a.grid import GridInstruction, InstructionKind
from wattmesh_a2a.messages import SIGNED_TYPES
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.image import BatteryImage, ImageMaker, SiteImage, Value
from wattmesh_edge.instructions import Instructions, Operator
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.memory import Memory

S = 10**9
GRID = Address("demo", "cloud", "grid-optimisation")


def instruction(clock, **changes):
    values = {
        "id": "e1", "site_id": "home-1", "kind": InstructionKind.SHED, "stage": 2, "start_ns": clock.utc_ns(),
        "end_ns": clock.utc_ns() + 300 * S, "import_limit_w": 500, "export_limit_w": None, "drill": False, "reason": "r",
    }  # fmt: skip
    return GridInstruction(**{**values, **changes})


class Plan:
    name = "plan"

    def propose(self, image, _traded):
        return [
            Proposal(
                asset_id=GRID_CONNECTION, priority=Priority.MARKET_COMMITMENT, source="plan", target_w=3000.0,
                expires_ns=image.monotonic_ns + 10 * S,
            )
        ]  # fmt: skip


class Wire:
    """A messenger that hands over what it is given."""

    address = Address("demo", "home-1", "gateway")

    def on_request(self, kind, handler, **options):
        assert kind is GridInstruction
        self.handler = handler

    async def send(self, message, source=GRID):
        return await self.handler(
            Envelope(id="1", source=source, type="t", time_ns=1, session="s", sequence=1, expires_ns=2, data=message)
        )


class Site:
    def __init__(self, devices, clock):
        self.devices, self.clock = devices, clock
        self.instructions = Instructions(period_s=1.0)
        self.control = ControlCycle(
            devices, ImageMaker(devices, "meter", 1.0), [self.instructions, Plan()],
            {"battery": BatteryLimits(rated_power_w=5000, rated_energy_wh=6400)},
            SiteLimits(import_limit_w=12_000, export_limit_w=8000), clock, period_s=1.0, record=lambda *row: None,
            traded_wh=lambda: 0.0, real_ns=lambda: 0,
        )  # fmt: skip
        self.memory = Memory(sqlite3.connect(":memory:"))
        self.wire = Wire()
        Operator(self.instructions, self.control, self.wire, self.memory, clock).register()

    def written(self):
        return [value for name, value in self.devices["battery"].written if name == "active_power_w"]


@pytest.fixture
async def site(devices, clock):
    devices["battery"].set(soc_percent=50.0)
    devices["meter"].set(active_power_w=2000.0)
    made = Site(devices, clock)
    await made.control.cycle()
    assert made.written() == [1000], "the plan charges up to 3 kW"
    return made


async def test_it_holds_from_the_next_cycle_above_the_market_and_says_what_it_does(site, clock):
    result = await site.wire.send(instruction(clock))
    assert (result.before_w, result.expected_w, result.unmet_w) == (2000, 500, 0)
    assert result.setpoints_w == {"battery": -1500.0}
    assert site.written() == [1000], "the answer writes nothing"
    await site.control.cycle()
    assert site.written()[-1] == -1500


async def test_it_is_over_by_itself(site, clock):
    await site.wire.send(instruction(clock))
    clock.set_ns(299 * S)
    await site.control.cycle()
    assert site.written()[-1] == -1500
    clock.set_ns(301 * S)
    await site.control.cycle()
    assert site.written()[-1] == 1000
    assert site.instructions.standing == {}


async def test_a_release_ends_it_at_once(site, clock):
    await site.wire.send(instruction(clock))
    await site.wire.send(instruction(clock, kind=InstructionKind.RELEASE, import_limit_w=None))
    await site.control.cycle()
    assert site.written()[-1] == 1000


async def test_a_drill_answers_the_same_and_writes_nothing_ever(site, clock):
    result = await site.wire.send(instruction(clock, drill=True))
    assert (result.drill, result.expected_w, result.setpoints_w) == (True, 500, {"battery": -1500.0})
    for second in range(1, 60):
        clock.set_ns(second * S)
        await site.control.cycle()
    assert set(site.written()) == {1000}
    assert site.instructions.standing == {}
    assert site.memory.recall("instruction", clock.utc_ns()) == {}


async def test_what_cannot_be_met_is_told(site, clock):
    site.devices["meter"].set(active_power_w=9000.0)
    await site.control.cycle()
    result = await site.wire.send(instruction(clock, kind=InstructionKind.ISLAND, import_limit_w=0, export_limit_w=0))
    assert result.setpoints_w == {"battery": -5000.0}
    assert result.unmet_w == 4000


async def test_only_the_grid_agent_instructs_and_only_for_this_site(site, clock):
    for source, site_id in ((Address("demo", "cloud", "producer"), "home-1"), (Address("demo", "home-2", "gateway"), "home-1"),
                            (GRID, "home-2")):  # fmt: skip
        with pytest.raises(UnauthorisedError):
            await site.wire.send(instruction(clock, site_id=site_id), source)
    assert site.instructions.standing == {}
    assert GridInstruction in SIGNED_TYPES


async def test_it_outlives_a_restart_and_not_its_end(site, clock):
    await site.wire.send(instruction(clock))
    again = Instructions(period_s=1.0)
    Operator(again, site.control, Wire(), site.memory, clock)
    assert list(again.standing) == ["e1"]
    clock.set_ns(400 * S)
    later = Instructions(period_s=1.0)
    Operator(later, site.control, Wire(), site.memory, clock)
    assert later.standing == {}


def test_before_the_first_measurement_nothing_is_known(clock):
    found = Instructions(period_s=1.0).result(
        instruction(clock), None, [], {}, SiteLimits(import_limit_w=1, export_limit_w=1), {}
    )
    assert (found.before_w, found.expected_w, found.setpoints_w) == (None, None, {})


def test_proposals_never_outlive_the_instruction(clock):
    standing = Instructions(period_s=1.0)
    standing.take(instruction(clock, end_ns=clock.utc_ns() + 2 * S))
    image = SiteImage(
        time_ns=clock.utc_ns(), monotonic_ns=77, grid_power_w=Value(value=1.0, quality=Quality.GOOD), pv_power_w=0.0,
        batteries={"battery": BatteryImage(active_power_w=0.0, soc_percent=50.0)}, frequency_hz=None,
    )  # fmt: skip
    (proposal,) = standing.propose(image, 0.0)
    assert proposal.expires_ns == 77 + 2 * S
    assert proposal.priority is Priority.GRID_INSTRUCTION
