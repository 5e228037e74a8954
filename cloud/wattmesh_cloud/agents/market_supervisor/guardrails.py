"""What nobody may do to the market, whoever proposes it: nothing without a ground in the figures."""

from __future__ import annotations

from wattmesh_cloud.agents.market_supervisor.policy import CAUSE, halt_ground, suspension_ground
from wattmesh_cloud.agents.proposals import HaltMarket, Proposal, ReinstateParticipant, ResumeMarket, SuspendParticipant
from wattmesh_cloud.agents.situations import MarketSituation


def guardrail(proposal: Proposal, situation: MarketSituation) -> str | None:
    """Risk limits."""
    match proposal:
        case HaltMarket():
            if CAUSE in situation.halts:
                return "the area is halted already"
            if halt_ground(situation) is None:
                return "no figure gives a ground for a halt"
        case ResumeMarket():
            if CAUSE not in situation.halts:
                return "there is no halt of this agent's own; others end theirs"
            ground = halt_ground(situation)
            if ground is not None:
                return f"the ground is still there: {ground}"
        case SuspendParticipant():
            if proposal.participant_id in situation.suspended:
                return f"{proposal.participant_id} is suspended already"
            if suspension_ground(situation, proposal.participant_id) is None:
                return f"no figure of {proposal.participant_id} gives a ground for a suspension"
        case ReinstateParticipant():
            if proposal.participant_id not in situation.suspended:
                return f"{proposal.participant_id} is not suspended"
        case _:
            pass
    return None
