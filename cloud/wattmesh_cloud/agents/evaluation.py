"""Evaluation: situations with checkable expectations, for the policy, for a model, and for proposals that must be stopped.

A case is a situation, what has to be proposed (and take effect), what must never take effect, and hostile proposals with the name
of the guard that has to stop each. The same cases run on the policy, on a scripted model and on a real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.agents.contract import ModelOutcome, Reasoner, Task
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.guards import Guards, Origin
from wattmesh_cloud.agents.proposals import Proposal, dump
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.agents.situations import Situation, restored

_TOKENS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One situation and what has to come of it."""

    name: str
    agent: AgentDefinition
    situation: Situation
    expect: tuple[Mapping[str, Any], ...]
    """Proposals that have to take effect or wait for a person (``waits: true``), by their fields: a value, or ``[low, high]``."""
    never: tuple[str, ...]
    """Kinds that must not take effect, whoever proposes them."""
    nothing: bool
    """Nothing at all may be proposed by the policy."""
    hostile: tuple[Mapping[str, Any], ...]
    """``{proposal: …, stopped_by: GUARD}`` each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How a case went."""

    case: Case
    wrong: tuple[str, ...]
    """Empty where every expectation held."""
    said: str
    """What was proposed, in short."""
    outcome: str = ""
    """Of the model; empty for the policy."""

    @property
    def passed(self) -> bool:
        """Whether every expectation held."""
        return not self.wrong


def load(agents: Sequence[str] | None = None) -> list[Case]:
    """The cases of all agents or of some.

    Raises:
        ConfigurationError: No such agent, or a case that is none.
    """
    found = []
    for name in agents or ROSTER:
        if name not in ROSTER:
            raise ConfigurationError(f"no agent {name!r}; there are: {', '.join(ROSTER)}")
        agent = ROSTER[name]
        document = yaml.safe_load(agent.cases_text())
        for row in document["cases"]:
            values = {**document["base"], **row.get("situation", {})}
            try:
                situation = restored(agent.situation, values)
            except (TypeError, KeyError, ValueError) as error:
                raise ConfigurationError(f"{name}: case {row.get('name')!r}: {error}") from error
            found.append(
                Case(
                    name=row["name"],
                    agent=agent,
                    situation=situation,
                    expect=tuple(row.get("expect", ())),
                    never=tuple(row.get("never", ())),
                    nothing=bool(row.get("nothing", False)),
                    hostile=tuple(row.get("hostile", ())),
                )
            )
    return found


def judge_policy(case: Case) -> Judged:
    """The policy's answer to a case, through the guards."""
    proposals = case.agent.policy(case.situation)
    wrong = []
    if case.nothing and proposals:
        wrong.append(f"nothing was to be done, but {_short(proposals)}")
    return _judged(case, proposals, Origin.POLICY, wrong)


async def judge_model(case: Case, reasoner: Reasoner, deadline_s: float) -> Judged:
    """A model's answer to a case: what it adds must be allowed, and never what is forbidden.

    That it proposes what the policy does is not asked for: the policy's answer is in force whatever it says.
    """
    policy = case.agent.policy(case.situation)
    task = Task(
        id=f"eval-{case.name}",
        agent=case.agent,
        situation=case.situation,
        proposed=tuple(policy),
        deadline_s=deadline_s,
        tokens=_TOKENS,
    )
    given = await reasoner.refine(task)
    with TemporaryDirectory() as folder:
        database = Database(Path(folder) / "agents.sqlite")
        guards = Guards(database)
        wrong, said = [], []
        for raw in given.proposals:
            proposal, verdict = guards.read(raw)
            if proposal is not None:
                verdict = guards.check(case.agent, proposal, case.situation, Origin.MODEL)
            kind = "?" if proposal is None else proposal.kind
            said.append(f"{kind}:{verdict.outcome}" + (f":{verdict.guard}" if verdict.guard else ""))
            if verdict.passed and kind in case.never:
                wrong.append(f"{kind} took effect")
        database.close()
    if given.outcome not in (ModelOutcome.REFINED, ModelOutcome.AGREED):
        wrong.append(f"{given.outcome}: {given.detail}")
    return Judged(case=case, wrong=tuple(wrong), said=" ".join(said) or given.text[:80], outcome=given.outcome)


def judge_hostile(case: Case) -> list[tuple[Mapping[str, Any], str, str, str]]:
    """Each hostile proposal of a case with the guard that has to stop it, what became of it, and which guard that was."""
    found = []
    for row in case.hostile:
        with TemporaryDirectory() as folder:
            database = Database(Path(folder) / "agents.sqlite")
            guards = Guards(database)
            proposal, verdict = guards.read(row["proposal"])
            if proposal is not None:
                verdict = guards.check(case.agent, proposal, case.situation, Origin.MODEL)
            database.close()
        found.append((row, str(row["stopped_by"]), verdict.outcome, str(verdict.guard)))
    return found


def _judged(case: Case, proposals: Sequence[Proposal], origin: Origin, wrong: list[str]) -> Judged:
    with TemporaryDirectory() as folder:
        database = Database(Path(folder) / "agents.sqlite")
        guards = Guards(database)
        outcomes = [(one, guards.check(case.agent, one, case.situation, origin)) for one in proposals]
        database.close()
    for one, verdict in outcomes:
        if verdict.outcome == "stopped":
            wrong.append(f"{one.kind} of the policy was stopped by {verdict.guard}: {verdict.reason}")
        if verdict.passed and one.kind in case.never:
            wrong.append(f"{one.kind} took effect")
    for wanted in case.expect:
        fields = {name: value for name, value in wanted.items() if name != "waits"}
        fits = [verdict for one, verdict in outcomes if _fits(dump(one), fields)]
        if not fits:
            wrong.append(f"missing: {fields}; there was {_short(proposals)}")
        elif any(verdict.passed for verdict in fits) == bool(wanted.get("waits", False)):
            wrong.append(f"{fields['kind']} had to {'wait' if wanted.get('waits') else 'take effect'}")
    return Judged(case=case, wrong=tuple(wrong), said=_short(proposals))


def _fits(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    for name, value in wanted.items():
        own = given.get(name)
        if isinstance(value, list):
            if not isinstance(own, int | float) or not value[0] <= own <= value[1]:
                return False
        elif isinstance(value, str) and name == "rationale":
            if value not in str(own):
                return False
        elif own != value:
            return False
    return True


def _short(proposals: Sequence[Proposal]) -> str:
    parts = []
    for one in proposals:
        values = [
            f"{key}={value}" for key, value in dump(one).items() if key not in ("kind", "rationale", "site_id", "area")
        ]
        parts.append(f"{one.kind}({', '.join(values)})")
    return ", ".join(parts) or "nothing"
