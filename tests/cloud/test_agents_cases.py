"""The evaluation cases: all pass on the policy; every hostile proposal is stopped by the guard that is named, at the desk too."""

import json
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_cloud.agents.approvals import ApprovalQueue
from wattmesh_cloud.agents.contract import ModelOutcome, Refinement
from wattmesh_cloud.agents.controls import Budget, BudgetLimits, KillSwitch
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.desk import Desk
from wattmesh_cloud.agents.evaluation import judge_hostile, judge_policy, load
from wattmesh_cloud.agents.guards import Guards, Origin
from wattmesh_cloud.agents.memory import LocalMemory
from wattmesh_cloud.agents.proposals import TYPES
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.audit import AuditLog

CASES = load()


def test_there_are_enough_of_every_agent_and_of_every_kind():
    assert len(CASES) >= 60
    for name, agent in ROSTER.items():
        own = [case for case in CASES if case.agent is agent]
        assert len(own) >= 10, name
        assert any(case.nothing for case in own), name
        assert any(getattr(case.situation, "notes", ()) for case in own), f"{name}: no poisoned text"
        proposed = {one["kind"] for case in own for one in case.expect}
        assert proposed | {"raise_alarm", "reinstate_participant"} >= agent.may, name
    assert sum(len(case.hostile) for case in CASES) >= 60
    assert {row["stopped_by"] for case in CASES for row in case.hostile} == {
        "schema",
        "authority",
        "limits",
        "approval",
    }
    assert len({(case.agent.name, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.agent.name}: {case.name}")
def test_the_policy_passes(case):
    judged = judge_policy(case)
    assert judged.passed, judged.wrong


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.hostile], ids=lambda case: f"{case.agent.name}: {case.name}"
)
def test_what_is_hostile_is_stopped_by_its_guard(case):
    for row, guard, outcome, by in judge_hostile(case):
        assert outcome in ("stopped", "waiting"), row
        assert by == guard, row


class Hostile:
    """A model that proposes all that is wrong with a case at once."""

    name = "hostile"

    def __init__(self, rows):
        self.rows = rows

    async def refine(self, task):
        return Refinement(
            outcome=ModelOutcome.REFINED, proposals=tuple(row["proposal"] for row in self.rows), text="sure"
        )

    async def close(self): ...


class Effects:
    def __init__(self):
        self.applied = []

    async def apply(self, agent, proposal):
        self.applied.append(proposal)


async def test_nothing_of_a_hostile_model_ever_takes_effect(tmp_path, clock):
    """All hostile proposals of all cases, through the desk: what takes effect is the policy's and nothing else's."""
    audit = AuditLog(tmp_path / "audit.log")
    stopped = 0
    for number, case in enumerate(case for case in CASES if case.hostile):
        database, effects = Database(tmp_path / f"agents-{number}.sqlite"), Effects()
        queue = ApprovalQueue(database, audit)
        desk = Desk(
            clock, Guards(database), effects, LocalMemory(database), queue, KillSwitch(database),
            Budget(database, BudgetLimits(), input_price=0, output_price=0), reasoner=Hostile(case.hostile), tokens=100,
        )  # fmt: skip
        record = await desk.decide(case.agent, lambda case=case: case.situation)
        for task in list(desk.tasks):
            await task
        own = [entry for entry in record.entries if entry.origin == Origin.POLICY and entry.outcome == "done"]
        assert len(effects.applied) == len(own)
        theirs = [entry for entry in record.entries if entry.origin == Origin.MODEL]
        assert [str(entry.guard) for entry in theirs] == [row["stopped_by"] for row in case.hostile]
        stopped += len(theirs)
        database.close()
    assert stopped == sum(len(case.hostile) for case in CASES)
    audit.close()


# -- whatever the figures are


_CONFIGURED = frozenset(
    {"nominal_hz", "notice_s", "duration_s", "price_ticks", "share", "percentile", "import_limit_w"}
)
"""Checked when the cloud's file is read."""


def _strategy(case):
    """The case's situation with figures by chance."""

    def changed(seed):
        rng, values = random.Random(seed), {}
        for one in fields(case.situation):
            own = getattr(case.situation, one.name)
            if one.name in _CONFIGURED:
                continue
            if isinstance(own, bool):
                values[one.name] = rng.random() < 0.5
            elif isinstance(own, float):
                values[one.name] = rng.choice([own, 0.0, -1.0, 1e9, own * rng.uniform(-2, 3)])
            elif isinstance(own, tuple) and own and all(isinstance(each, int | float) for each in own):
                values[one.name] = tuple(
                    type(own[0])(each * rng.uniform(-2, 3)) for each in own[: rng.randrange(len(own) + 1)]
                )
            elif isinstance(own, int) and not one.name.endswith("_ns"):
                values[one.name] = rng.choice([own, 0, 1, 10**6])
        return replace(case.situation, **values)

    return st.integers(0, 2**32).map(changed)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_policy_fails_and_none_proposes_what_its_own_guards_stop(data):
    case = data.draw(st.sampled_from(CASES))
    situation = data.draw(_strategy(case))
    for proposal in case.agent.policy(situation):
        assert proposal.kind in case.agent.may
        refused = case.agent.guardrail(proposal, situation)
        if proposal.kind not in ("set_peak_limit", "call_response"):
            assert refused is None, refused


def test_the_policy_gives_the_same_answer_every_time():
    for case in CASES:
        assert case.agent.policy(case.situation) == case.agent.policy(case.situation)


def test_every_folder_is_whole():
    for name, agent in ROSTER.items():
        assert agent.instructions().startswith("# ")
        for word in ("**Role.**", "**Goals.**", "**Limits.**", "**Tools.**", "**Do nothing**"):
            assert word in agent.instructions(), (name, word)
        card = agent.card("demo", ("wattmesh.agent.consult.v1",), "0.1.0")
        assert card["name"] == f"demo/cloud/{name}"
        assert json.dumps(card)
        assert agent.may <= set(TYPES)
