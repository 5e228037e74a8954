"""The way of every proposal to its effect, whoever made it: schema, authority, limits, rate, approval. One no stops it.

Each stop has the guard's name and a reason; the policy's answer stands in the place of what was stopped.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from wattmesh_a2a.errors import InvalidMessageError

from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.proposals import (
    CallResponse,
    CancelResponse,
    DeclareStatus,
    HaltMarket,
    Proposal,
    RaiseAlarm,
    ReinstateParticipant,
    ResumeMarket,
    SuspendParticipant,
    parse,
    subject,
)
from wattmesh_cloud.agents.situations import MarketSituation, Situation, subject_of

_HOUR_NS = 3600 * 1_000_000_000
_DAY_NS = 24 * _HOUR_NS


class Guard(StrEnum):
    """Who stopped it."""

    SCHEMA = "schema"
    AUTHORITY = "authority"
    LIMITS = "limits"
    RATE = "rate"
    APPROVAL = "approval"


class Origin(StrEnum):
    """Who made it."""

    POLICY = "policy"
    MODEL = "model"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a proposal."""

    outcome: str
    """``passed``, ``stopped`` or ``waiting`` (for a person)."""
    guard: Guard | None = None
    """Which one stopped it or made it wait."""
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether its effect may be made now."""
        return self.outcome == "passed"


PASSED = Verdict(outcome="passed")

RATES: dict[str, tuple[int, int]] = {
    "set_reserve": (12, _HOUR_NS),
    "set_trading": (12, _HOUR_NS),
    "set_peak_limit": (12, _HOUR_NS),
    "halt_market": (4, _DAY_NS),
    "resume_market": (4, _DAY_NS),
    "suspend_participant": (2, _DAY_NS),
    "reinstate_participant": (2, _DAY_NS),
    "call_response": (2, _DAY_NS),
    "cancel_response": (4, _DAY_NS),
    "declare_status": (12, _HOUR_NS),
    "retrain": (1, _DAY_NS),
    "choose_model": (2, _DAY_NS),
    "raise_alarm": (2, _DAY_NS),
}
"""Kind → most of them about one subject in a span of time; models, policies and operators are counted apart."""

APPROVED_BY_A_PERSON = frozenset({"suspend_participant", "reinstate_participant", "declare_status:emergency"})
"""Always. What a model proposes needs one more often: :data:`MODELS_NEED_A_PERSON`."""
MODELS_NEED_A_PERSON = frozenset({"call_response", "cancel_response", "resume_market"})


class Guards:
    """See the module.

    Args:
        database: Remembers how often.
        approval: Kinds that need a person, whoever proposes them (``declare_status:emergency`` for one of a kind's values).
    """

    def __init__(self, database: Database, approval: Collection[str] = APPROVED_BY_A_PERSON) -> None:
        self._database = database
        self._approval = frozenset(approval)

    def read(self, raw: object) -> tuple[Proposal | None, Verdict]:
        """The schema: what a model said, as a proposal."""
        try:
            return parse(raw), PASSED
        except InvalidMessageError as error:
            return None, Verdict(outcome="stopped", guard=Guard.SCHEMA, reason=str(error)[:300])

    def check(
        self,
        agent: AgentDefinition,
        proposal: Proposal,
        situation: Situation,
        origin: Origin,
        *,
        approved: bool = False,
    ) -> Verdict:
        """All guards after the schema; a passed one is counted against its rate.

        Args:
            agent: Who proposes.
            proposal: What.
            situation: What it was proposed in, or what is known now.
            origin: Whether policy, model or operator made it.
            approved: A person has said yes.
        """
        refused = authority(agent, proposal, situation)
        if refused is not None:
            return Verdict(outcome="stopped", guard=Guard.AUTHORITY, reason=refused)
        refused = agent.guardrail(proposal, situation)
        if refused is not None:
            return Verdict(outcome="stopped", guard=Guard.LIMITS, reason=refused)
        if not approved:
            refused = self._too_often(agent.name, proposal, origin, situation.now_ns)
            if refused is not None:
                return Verdict(outcome="stopped", guard=Guard.RATE, reason=refused)
            needed = self._person(proposal, origin)
            if needed is not None:
                return Verdict(outcome="waiting", guard=Guard.APPROVAL, reason=needed)
        return PASSED

    def _too_often(self, agent: str, proposal: Proposal, origin: Origin, now_ns: int) -> str | None:
        most, span = RATES[proposal.kind]
        key = f"{origin}/{agent}/{proposal.kind}/{subject(proposal)}"
        counted = self._database.write(
            (
                "INSERT INTO rates SELECT ?, ? WHERE (SELECT count(*) FROM rates WHERE key = ? AND time_ns > ?) < ?",
                (key, now_ns, key, now_ns - span, most),
            )
        )
        return None if counted else f"{most} {proposal.kind} about {subject(proposal)} in {span // _HOUR_NS} h already"

    def _person(self, proposal: Proposal, origin: Origin) -> str | None:
        names: set[str] = {proposal.kind}
        if isinstance(proposal, DeclareStatus):
            names.add(f"{proposal.kind}:{proposal.status}")
        if names & self._approval:
            return f"{min(names & self._approval)} needs a person"
        if origin is not Origin.POLICY and proposal.kind in MODELS_NEED_A_PERSON:
            return f"{proposal.kind} by {origin} needs a person"
        return None


def authority(agent: AgentDefinition, proposal: Proposal, situation: Situation) -> str | None:
    """Whether this agent may ask for this, of that subject."""
    if proposal.kind not in agent.may:
        return f"{agent.name} may not {proposal.kind}"
    about = subject_of(situation)
    match proposal:
        case CallResponse() | CancelResponse() | DeclareStatus():
            mine = about == "fleet"
        case HaltMarket() | ResumeMarket():
            mine = proposal.area == about
        case SuspendParticipant() | ReinstateParticipant():
            assert isinstance(situation, MarketSituation)
            known = proposal.participant_id in situation.participants or proposal.participant_id in situation.suspended
            mine = proposal.area == about and known
        case RaiseAlarm():
            mine = proposal.subject == about
        case _:
            mine = proposal.site_id == about
    return None if mine else f"the situation is about {about}, the proposal about {subject(proposal)}"
