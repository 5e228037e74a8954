"""The desk: the policy never waits, every guard has its name, people decide once, and one switch ends all models."""

import asyncio
from dataclasses import replace

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import ConflictError, ExpiredError, InvalidMessageError, UnavailableError
from wattmesh_cloud.agents.approvals import ApprovalQueue, ApprovalState
from wattmesh_cloud.agents.contract import ModelOutcome, Refinement
from wattmesh_cloud.agents.controls import Budget, BudgetLimits, KillSwitch
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.desk import MOST_PROPOSALS, Desk
from wattmesh_cloud.agents.guards import Guard, Guards, Origin
from wattmesh_cloud.agents.memory import LocalMemory, Mirror
from wattmesh_cloud.agents.proposals import CallResponse, DeclareStatus, SetReserve, SetTrading, dump, parse, schema
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.agents.situations import GridSituation, SiteSituation
from wattmesh_cloud.audit import AuditLog, verify

PRODUCER, GRID = ROSTER["producer"], ROSTER["grid-optimisation"]


class Done:
    """Effects that keep what they were told, or fail as told."""

    def __init__(self):
        self.applied, self.error = [], None

    async def apply(self, agent, proposal):
        if self.error is not None:
            raise self.error
        self.applied.append(proposal)


class Scripted:
    """A model that answers as told, when told."""

    name = "scripted"

    def __init__(self):
        self.answer = Refinement(outcome=ModelOutcome.AGREED)
        self.release = asyncio.Event()
        self.release.set()
        self.tasks = []

    async def refine(self, task):
        self.tasks.append(task)
        await self.release.wait()
        return self.answer

    def proposes(self, *raw, **changes):
        self.answer = Refinement(
            outcome=ModelOutcome.REFINED, proposals=raw, input_tokens=100, output_tokens=10, **changes
        )

    async def close(self): ...


class World:
    def __init__(self, tmp_path, clock):
        self.clock, self.folder = clock, tmp_path
        self.database = Database(tmp_path / "agents.sqlite")
        self.audit = AuditLog(tmp_path / "audit.log")
        self.queue = ApprovalQueue(self.database, self.audit)
        self.switch = KillSwitch(self.database, self.audit)
        limits = BudgetLimits(tokens=10_000, cost=1.0, calls=5)
        self.budget = Budget(self.database, limits, input_price=3.0, output_price=15.0)
        self.memory, self.effects, self.model = LocalMemory(self.database), Done(), Scripted()
        self.desk = self.make(self.model)
        self.changes = {}

    def make(self, model, deadline_s=5.0):
        return Desk(
            self.clock, Guards(self.database), self.effects, self.memory, self.queue, self.switch, self.budget,
            reasoner=model, deadline_s=deadline_s, tokens=1000, approval_s=600.0,
        )  # fmt: skip

    def site(self):
        values = {"net_wh": (250,) * 96, "expected_net_wh": (250.0,) * 96, "forecast_age_s": 60.0}
        return SiteSituation(
            site_id="ann", now_ns=self.clock.utc_ns(), import_limit_w=8000.0, **{**values, **self.changes}
        )

    def grid(self):
        now = self.clock.utc_ns()
        values = {"start_ns": now, "expected_w": (4000.0,) * 192, "forecast_age_s": 60.0}
        return GridSituation(now_ns=now, **{**values, **self.changes})

    async def settled(self, desk=None):
        while tasks := [task for task in (desk or self.desk).tasks if not task.done()]:
            await asyncio.wait(tasks)

    def close(self):
        self.database.close()
        self.audit.close()


@pytest.fixture
def world(tmp_path, clock):
    made = World(tmp_path, clock)
    yield made
    made.close()


def reserve(percent, **changes):
    return {"kind": "set_reserve", "site_id": "ann", "reserve_soc_percent": percent, "rationale": "because", **changes}


# -- the policy first


async def test_the_policy_is_done_while_the_model_still_thinks(world):
    world.model.release.clear()
    record = await world.desk.decide(PRODUCER, world.site)
    assert [type(one) for one in world.effects.applied] == [SetReserve, SetTrading]
    assert [entry.outcome for entry in record.entries] == ["done", "done"]
    world.model.proposes(reserve(12.0))
    world.model.release.set()
    await world.settled()
    assert world.effects.applied[-1].reserve_soc_percent == 12.0
    (kept,) = world.memory.recall("ann")
    assert kept["model"] == "refined"
    assert [entry["origin"] for entry in kept["entries"]] == ["policy", "policy", "model"]


async def test_a_memory_elsewhere_gets_the_policys_decision_and_then_the_models(world):
    class Elsewhere:
        def __init__(self):
            self.kept = []

        def remember(self, record):
            self.kept.append((record.id, record.revision, [entry.origin for entry in record.entries]))

    remote = Elsewhere()
    mirror = Mirror(remote)
    world.memory = LocalMemory(world.database, mirror)
    desk = world.make(world.model)
    world.model.proposes(reserve(12.0))
    record = await desk.decide(PRODUCER, world.site)
    await world.settled(desk)
    await asyncio.to_thread(mirror.flush)
    mirror.close()
    assert remote.kept == [
        (record.id, 0, ["policy", "policy"]),
        (record.id, 1, ["policy", "policy", "model"]),
    ]


async def test_a_model_that_never_answers_is_late_and_nothing_else(world):
    desk = world.make(world.model, deadline_s=0.05)
    world.model.release.clear()
    await desk.decide(PRODUCER, world.site)
    await world.settled(desk)
    (kept,) = world.memory.recall("ann")
    assert kept["model"] == "late"
    assert [entry["outcome"] for entry in kept["entries"]] == ["done", "done"]


async def test_an_answer_about_a_world_that_moved_on_is_late(world):
    world.model.release.clear()
    world.model.proposes(reserve(12.0))
    await world.desk.decide(PRODUCER, world.site)
    await world.clock.advance(901)
    world.model.release.set()
    await world.settled()
    assert world.memory.recall("ann")[0]["model"] == "late"
    assert len(world.effects.applied) == 2


async def test_the_guards_look_at_the_world_as_it_is_when_the_answer_comes(world):
    world.model.release.clear()
    world.model.proposes({"kind": "set_trading", "site_id": "ann", "trade": True, "rationale": "because"})
    await world.desk.decide(PRODUCER, world.site)
    world.changes = {"online": False}
    world.model.release.set()
    await world.settled()
    entry = world.memory.recall("ann")[0]["entries"][-1]
    assert (entry["outcome"], entry["guard"]) == ("stopped", "limits")


async def test_an_effect_that_fails_is_written_down(world):
    world.effects.error = UnavailableError("no market runs here")
    record = await world.desk.decide(PRODUCER, world.site)
    assert {(entry.outcome, entry.reason) for entry in record.entries} == {("failed", "no market runs here")}


# -- guards


@pytest.mark.parametrize(
    ("raw", "guard"),
    [
        ("rm -rf", "schema"),
        ({"kind": "write_register", "site_id": "ann"}, "schema"),
        (reserve("12"), "schema"),
        (reserve(12.0, device="battery-1"), "schema"),
        (reserve(-1.0), "schema"),
        (reserve(float("nan")), "schema"),
        (reserve(12.0, rationale="x" * 401), "schema"),
        (reserve(12.0, rationale="a\nb\x1b[31m"), "schema"),
        (reserve(12.0, site_id="../../etc"), "schema"),
        (reserve(12.0, site_id="bob"), "authority"),
        ({"kind": "halt_market", "area": "area-1", "rationale": "because"}, "authority"),
        ({"kind": "set_peak_limit", "site_id": "ann", "limit_w": 100.0, "rationale": "because"}, "authority"),
        (reserve(90.0), "limits"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_stopped_by_its_guard(world, raw, guard):
    world.model.proposes(raw)
    await world.desk.decide(PRODUCER, world.site)
    await world.settled()
    entry = world.memory.recall("ann")[0]["entries"][-1]
    assert (entry["outcome"], entry["guard"]) == ("stopped", guard)
    assert entry["reason"]
    assert len(world.effects.applied) == 2


async def test_too_many_at_once_are_no_answer(world):
    world.model.proposes(*[reserve(12.0)] * (MOST_PROPOSALS + 1))
    await world.desk.decide(PRODUCER, world.site)
    await world.settled()
    assert world.memory.recall("ann")[0]["model"] == "too_large"
    assert len(world.effects.applied) == 2


def test_a_model_uses_up_its_own_rate_and_not_the_policys(world):
    guards, proposal = Guards(world.database), parse(reserve(12.0))
    verdicts = [guards.check(PRODUCER, proposal, world.site(), Origin.MODEL) for _ in range(13)]
    assert [one.passed for one in verdicts] == [True] * 12 + [False]
    assert verdicts[-1].guard is Guard.RATE
    assert guards.check(PRODUCER, proposal, world.site(), Origin.POLICY).passed
    world.clock.set_ns(3601 * NS_PER_S)
    assert guards.check(PRODUCER, proposal, world.site(), Origin.MODEL).passed


def test_every_kind_comes_back_from_its_plain_values_and_has_a_schema():
    for agent in ROSTER.values():
        assert len(schema(agent.may)["anyOf"]) == len(agent.may)
    proposal = parse(reserve(12.0))
    assert parse(dump(proposal)) == proposal
    with pytest.raises(InvalidMessageError, match="there are: "):
        parse({"kind": "open_breaker"})


# -- a person


def call(world, **changes):
    values = {
        "start_ns": world.clock.utc_ns() + 7200 * NS_PER_S,
        "duration_s": 3600,
        "target_w": -1000,
        "price_ticks": 3000,
    }
    return dump(CallResponse(rationale="because", **{**values, **changes}))


async def test_what_a_model_calls_waits_for_a_person_and_takes_effect_once(world):
    world.changes = {"response_enabled": True}
    world.model.proposes(call(world))
    await world.desk.decide(GRID, world.grid)
    await world.settled()
    (waiting,) = world.queue.requests(now_ns=world.clock.utc_ns())
    before = len(world.effects.applied)
    approved = world.queue.approve(waiting.id, "operator:ann", world.clock.utc_ns(), "go")
    assert approved.state is ApprovalState.APPROVED
    (due,) = world.queue.approved()
    assert await world.desk.carry_out(due, GRID, world.grid) is ApprovalState.DONE
    assert world.effects.applied[before:] == [waiting.proposal]
    assert world.queue.approved() == []
    with pytest.raises(ConflictError, match="done by operator:ann already"):
        world.queue.refuse(waiting.id, "operator:bob", world.clock.utc_ns())
    assert verify((world.folder / "audit.log").read_bytes()).fault is None


async def test_what_was_approved_is_looked_at_again(world):
    world.model.proposes(call(world))
    await world.desk.decide(GRID, world.grid)
    await world.settled()
    (waiting,) = world.queue.requests(now_ns=world.clock.utc_ns())
    approved = world.queue.approve(waiting.id, "operator:ann", world.clock.utc_ns())
    before = len(world.effects.applied)
    world.changes = {"response_enabled": False}
    assert await world.desk.carry_out(approved, GRID, world.grid) is ApprovalState.STOPPED
    assert len(world.effects.applied) == before
    assert "switched demand response off" in world.queue.get(waiting.id).note


async def test_a_model_switched_off_meanwhile_has_no_effect_even_if_approved(world):
    world.model.proposes(call(world))
    await world.desk.decide(GRID, world.grid)
    await world.settled()
    (waiting,) = world.queue.requests(now_ns=world.clock.utc_ns())
    approved = world.queue.approve(waiting.id, "operator:ann", world.clock.utc_ns())
    world.switch.off("operator:ann", "strange answers", world.clock.utc_ns())
    assert await world.desk.carry_out(approved, GRID, world.grid) is ApprovalState.STOPPED


def test_waiting_ends_after_a_restart_too(world):
    proposal = DeclareStatus(status="emergency", rationale="because")
    now = world.clock.utc_ns()
    made = world.queue.ask("grid-optimisation", "policy", proposal, "a person", decision="d-1", now_ns=now, valid_s=600)
    again = ApprovalQueue(Database(world.folder / "agents.sqlite"), world.audit)
    assert [one.id for one in again.requests(now_ns=now + 599 * NS_PER_S)] == [made.id]
    with pytest.raises(ExpiredError):
        again.approve(made.id, "operator:ann", now + 600 * NS_PER_S)
    assert world.queue.get(made.id).state is ApprovalState.EXPIRED
    with pytest.raises(InvalidMessageError):
        again.approve("d-9.0", "operator:ann", now)
    again._database.close()


def test_a_newer_request_about_the_same_takes_the_olders_place_and_nobody_decides_without_a_name(world):
    now = world.clock.utc_ns()
    asked = [
        world.queue.ask(
            "grid-optimisation", "policy", DeclareStatus(status="emergency", rationale=f"reason {number}"), "a person",
            decision=f"d-{number}", now_ns=now, valid_s=600,
        )
        for number in range(2)
    ]  # fmt: skip
    assert [one.id for one in world.queue.requests(now_ns=now)] == [asked[1].id]
    with pytest.raises(InvalidMessageError, match="name"):
        world.queue.approve(asked[1].id, " ", now)
    assert asked[1].plain()["proposal"]["status"] == "emergency"


# -- switch and budgets


async def test_the_switch_is_immediate_and_stays_thrown_over_a_restart(world):
    world.model.release.clear()
    world.model.proposes(reserve(12.0))
    await world.desk.decide(PRODUCER, world.site)
    KillSwitch(Database(world.folder / "agents.sqlite")).off("operator:ann", "strange answers", world.clock.utc_ns())
    world.model.release.set()  # it was asked before and answers after
    await world.settled()
    assert len(world.effects.applied) == 2
    assert world.memory.recall("ann")[0]["model"] == "switched_off"
    asked = len(world.model.tasks)
    record = await world.make(world.model).decide(PRODUCER, world.site)
    assert record.model == "switched_off"
    assert "strange answers" in record.model_detail
    assert len(world.model.tasks) == asked
    world.switch.on("operator:ann", "fine again", world.clock.utc_ns())
    assert world.switch.state().on


async def test_a_day_has_so_many_calls_and_tokens(world):
    world.model.proposes()
    for _ in range(7):
        await world.desk.decide(PRODUCER, world.site)
        await world.settled()
    models = [one["model"] for one in world.memory.recall("ann")]
    assert sorted(models) == ["over_budget"] * 2 + ["refined"] * 5
    spent = world.budget.spent("producer", world.clock.utc_ns())
    assert (spent.tokens, spent.calls) == (550, 5)
    assert spent.cost == pytest.approx(5 * (100 * 3 + 10 * 15) / 1e6, abs=1e-5)
    await world.clock.advance(86_400)
    assert (await world.desk.decide(PRODUCER, world.site)).model != "over_budget"
    await world.settled()


def test_what_is_reserved_counts_until_it_is_settled(world):
    now = world.clock.utc_ns()
    assert world.budget.reserve("producer", 6000, now) is None
    assert "6000 of 10000 tokens" in world.budget.reserve("producer", 6000, now)
    assert world.budget.reserve("consumer", 6000, now) is None
    world.budget.settle("producer", 6000, 500, 100, now)
    assert world.budget.spent("producer", now).tokens == 600
    assert world.budget.reserve("producer", 9000, now) is None


async def test_no_more_models_at_once_than_may_be(world):
    world.model.release.clear()
    records = [await world.desk.decide(PRODUCER, world.site) for _ in range(5)]
    assert records[-1].model == "busy"
    assert [entry.outcome for entry in records[-1].entries] == ["done", "done"]
    world.model.release.set()
    await world.settled()


def test_the_situation_is_never_changed(world):
    with pytest.raises(AttributeError):
        world.site().net_wh = ()
    assert replace(world.site(), online=False).online is False
