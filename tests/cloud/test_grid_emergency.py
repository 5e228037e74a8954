"""Emergencies: two steps, stages, leases, release, black start, drills."""

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.grid import GridEvent, GridInstruction, GridInstructionResult, GridStatus, InstructionKind
from wattmesh_cloud.grid.areas import SiteMeasurement
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.emergency import Mode
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.store.base import Table

AREA = {
    "id": "north",
    "rated_w": 10_000,
    "sites": {"ann": "transformer", "bob": "transformer", "cem": "transformer", "dan": "transformer"},
    "critical": ["cem"],
    "grid_forming": {"ann": 5000, "bob": 5000},
}


class World:
    def __init__(self, store, messenger, clock, folder):
        self.store, self.messenger, self.clock, self.folder = store, messenger, clock, folder
        self.power = {"ann": 4000.0, "bob": 2000.0, "cem": 1000.0, "dan": -3000.0}
        self.config = {"areas": [AREA], "demand_response": {"enabled": False}}
        messenger.answer = self.answer
        self.service = self.started()

    def started(self):
        async def pay(*_):
            raise AssertionError("nobody is paid")

        return GridService(
            GridConfig.model_validate(self.config), self.store, self.messenger, self.clock, self.folder, "demo",
            forecasts=dict, pay=pay, measurements=self.measured,
        )  # fmt: skip

    def measured(self):
        return {
            name: SiteMeasurement(
                time_ns=self.clock.utc_ns(),
                grid_w=power,
                load_w=max(power, 500.0),
                soc_percent=80.0 if name == "bob" else 40.0,
            )
            for name, power in self.power.items()
        }

    def answer(self, to, message):
        limit = message.import_limit_w
        now = self.power[to.unit]
        expected = now if limit is None else min(now, limit)
        return GridInstructionResult(
            instruction_id=message.id, site_id=to.unit, drill=message.drill, before_w=round(now), expected_w=round(expected),
            unmet_w=0, setpoints_w={"battery": expected - now},
        )  # fmt: skip

    def told(self, *, since=0):
        """Newest instruction by site."""
        return {one.to.unit: one.message for one in self.messenger.sent(GridInstruction)[since:]}

    def emergency(self, mode=Mode.SHORTAGE, stage=1, **more):
        asked = self.service.declare_emergency(mode, stage, area_id="north", reason="line 4 is out", by="eve", **more)
        return self.service.confirm_emergency(asked.token, "adam")

    def emitted(self):
        return [one for one in self.messenger.emitted if isinstance(one, GridEvent)]


@pytest.fixture
def world(store, messenger, clock, tmp_path):
    return World(store, messenger, clock, tmp_path)


@pytest.fixture
async def running(world, background, clock, settled):
    background(world.service.run())
    await clock.advance(0)
    yield world
    await settled(world.service)


async def test_asking_shows_and_does_nothing(running):
    asked = running.service.declare_emergency(Mode.SHORTAGE, 2, area_id="north", reason="r", by="eve")
    assert asked.preview["ann"] == {"kind": "shed", "now_w": 4000.0, "import_limit_w": 2000, "export_limit_w": None}
    assert asked.preview["cem"]["import_limit_w"] is None, "critical: spared while the stage leaves something"
    await running.clock.advance(300)
    assert running.told() == {}
    assert running.service.status is GridStatus.NORMAL
    with pytest.raises(ConfigurationError, match="confirm it in time"):
        running.service.confirm_emergency(asked.token, "adam")


async def test_a_confirmed_stage_sheds_halts_and_is_renewed(running, settled, clock):
    running.emergency(stage=2)
    await settled(running.service)
    told = running.told()
    assert {site: one.import_limit_w for site, one in told.items()} == {"ann": 2000, "bob": 1000, "dan": 0}
    assert all(one.end_ns - one.start_ns == 300 * NS_PER_S and not one.drill for one in told.values())
    assert running.service.status is GridStatus.EMERGENCY, "which is what the market's guard looks at"
    (event,) = running.emitted()
    assert (event.status, event.stage, event.area_id, event.drill) == (GridStatus.EMERGENCY, 2, "north", False)
    count = len(running.messenger.sent(GridInstruction))
    running.power["ann"] = 100.0  # shares are of what was taken when it began
    await clock.advance(60)
    await settled(running.service)
    assert running.told(since=count)["ann"].import_limit_w == 2000
    view = running.service.emergency.view()["standing"][0]
    assert view["results"]["bob"]["expected_w"] == 1000


async def test_stages_rise_and_essential_loads_go_last(running, settled):
    running.emergency(stage=1)
    running.emergency(stage=3)
    await settled(running.service)
    assert {site: one.import_limit_w for site, one in running.told().items()} == {
        "ann": 0,
        "bob": 0,
        "cem": 0,
        "dan": 0,
    }
    assert len(running.service.emergency.standing) == 1
    running.emergency(stage=4)
    await settled(running.service)
    assert {one.kind for one in running.told().values()} == {InstructionKind.ISLAND}


async def test_too_much_power_is_curtailed(running, settled):
    running.emergency(Mode.SURPLUS, 2)
    await settled(running.service)
    assert running.told()["dan"].export_limit_w == 1500
    assert running.told()["dan"].kind is InstructionKind.CURTAIL
    assert running.told()["ann"].export_limit_w == 0


async def test_it_ends_stage_by_stage_when_it_is_quiet(running, clock, settled):
    running.power = dict.fromkeys(running.power, 1000.0)
    running.emergency(stage=3)
    await clock.advance(700)
    await settled(running.service)
    assert running.service.emergency.standing["north"].stage == 2
    await clock.advance(1300)
    await settled(running.service)
    assert running.service.emergency.standing == {}
    assert {one.kind for one in running.told().values()} == {InstructionKind.RELEASE}
    assert running.service.status is GridStatus.NORMAL
    assert running.service.emergency.over[0].ended_why == "quiet again"


async def test_while_the_transformer_is_overloaded_it_goes_on(running, clock):
    running.power["ann"] = 12_000.0
    running.emergency(stage=1)
    await clock.advance(3600)
    assert running.service.emergency.standing["north"].stage == 1


async def test_it_ends_by_itself_after_its_longest_time(world, background, clock, settled):
    world.config |= {"emergency": {"longest_s": 600}}
    world.service = world.started()
    world.power["ann"] = 12_000.0
    background(world.service.run())
    await clock.advance(0)
    world.emergency()
    await clock.advance(660)
    await settled(world.service)
    assert world.service.emergency.standing == {}


async def test_released_by_hand(running, settled):
    running.emergency(stage=3)
    running.service.release_emergency("north", "repaired", "eve")
    await settled(running.service)
    assert {one.kind for one in running.told().values()} == {InstructionKind.RELEASE}
    assert running.emitted()[-1].status is GridStatus.NORMAL
    with pytest.raises(ConfigurationError, match="nothing stands"):
        running.service.release_emergency("north", "again", "eve")


async def test_a_drill_shows_everything_and_halts_nothing(running, settled):
    asked = running.service.start_drill(Mode.SHORTAGE, 3, area_id="north", by="eve")
    drill = running.service.confirm_emergency(asked.token, "eve")
    await settled(running.service)
    assert all(one.drill for one in running.told().values())
    assert running.service.status is GridStatus.NORMAL
    assert [(one.status, one.drill, one.stage) for one in running.emitted()] == [(GridStatus.NORMAL, True, 3)]
    assert drill.results["ann"]["setpoints_w"] == {"battery": -4000.0}
    rows = running.store.query(Table.GRID_METRICS, "fleet#emergency", 0, 2**62)
    assert rows[0].data["drill"] is True


async def test_the_real_thing_ends_a_drill_and_no_drill_begins_in_an_emergency(running, settled):
    asked = running.service.start_drill(Mode.SHORTAGE, 1, area_id="north", by="eve")
    running.service.confirm_emergency(asked.token, "eve")
    running.emergency(stage=2)
    await settled(running.service)
    assert [one.drill for one in running.service.emergency.over] == [True]
    assert not running.service.emergency.standing["north"].drill
    with pytest.raises(ConfigurationError, match="release it first"):
        running.service.start_drill(Mode.SHORTAGE, 1, area_id="north", by="eve")


async def test_two_persons_where_two_are_wanted(world):
    world.config |= {"emergency": {"two_persons": True}}
    world.service = world.started()
    asked = world.service.declare_emergency(Mode.SHORTAGE, 1, area_id="north", reason="r", by="eve")
    with pytest.raises(ConfigurationError, match="somebody else"):
        world.service.confirm_emergency(asked.token, "eve")
    world.service.confirm_emergency(asked.token, "adam")
    with pytest.raises(ConfigurationError, match="nothing to confirm"):
        world.service.confirm_emergency(asked.token, "adam")
    await world.service.finish()


async def test_a_black_start_goes_step_by_step(running, clock, settled):
    running.power = {"ann": 1000.0, "bob": 1000.0, "cem": 500.0, "dan": 1200.0}
    steps = running.service.emergency.order("north")
    assert [step.sites for step in steps] == [("bob",), ("ann",), ("cem",), ("dan",)], (
        "the fullest battery first, then critical"
    )
    assert steps[2].import_limit_w == {"cem": 1000}, "500 W before, twice as much after an outage"
    assert all(step.block_w <= 0.3 * 10_000 for step in steps)
    running.emergency(Mode.BLACK_START, 0)
    await clock.advance(60)
    await settled(running.service)
    told = running.told()
    assert (told["bob"].kind, told["bob"].import_limit_w) == (InstructionKind.RECONNECT, 2000)
    assert told["dan"].kind is InstructionKind.ISLAND
    await clock.advance(360)
    await settled(running.service)
    assert {one.kind for one in running.told().values()} == {InstructionKind.RECONNECT}
    await clock.advance(300)
    await settled(running.service)
    assert running.service.emergency.standing == {}
    assert running.service.emergency.over[0].ended_why == "every site is back"


async def test_a_restart_goes_on(world, background, clock, settled):
    first = background(world.service.run())
    await clock.advance(0)
    world.emergency(stage=2)
    await settled(world.service)
    first.cancel()
    world.service = world.started()
    count = len(world.messenger.sent(GridInstruction))
    background(world.service.run())
    await clock.advance(60)
    await settled(world.service)
    assert world.told(since=count)["ann"].import_limit_w == 2000
    assert world.service.status is GridStatus.EMERGENCY


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((Mode.SHORTAGE, 8, "north"), "no stage 8"),
        ((Mode.SHORTAGE, 1, "south"), "no area"),
        ((Mode.BLACK_START, 0, "all"), "no area"),
    ],
    ids=["stage", "area", "everywhere"],
)
async def test_what_makes_no_sense_is_refused(world, arguments, said):
    mode, stage, area = arguments
    with pytest.raises(ConfigurationError, match=said):
        world.service.declare_emergency(mode, stage, area_id=area, reason="r", by="eve")


async def test_a_site_that_does_not_answer_is_shown(running, settled, messenger):
    messenger.silent = {"bob"}
    running.emergency(stage=2)
    await settled(running.service)
    results = running.service.emergency.standing["north"].results
    assert "no answer" in results["bob"]["error"]
    assert "error" not in results["ann"]
