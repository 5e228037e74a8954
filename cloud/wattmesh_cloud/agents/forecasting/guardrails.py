"""What nobody may do to the forecasts, whoever proposes it."""

from __future__ import annotations

from wattmesh_cloud.agents.forecasting.policy import ABSENT_S, ENOUGH_SLOTS, retrain_ground
from wattmesh_cloud.agents.proposals import ChooseModel, Proposal, Retrain
from wattmesh_cloud.agents.situations import ForecastSituation


def guardrail(proposal: Proposal, situation: ForecastSituation) -> str | None:
    """Risk limits."""
    match proposal:
        case Retrain():
            if situation.reading_age_s is None or situation.reading_age_s > ABSENT_S:
                return "no fresh readings to learn from"
            if retrain_ground(situation) is None:
                return "the errors are the usual ones, or the model learnt anew lately"
        case ChooseModel():
            losses = situation.losses.get(proposal.quantity, {})
            now = situation.in_charge.get(proposal.quantity)
            if proposal.model not in losses or proposal.model == now:
                return f"{proposal.model} is no other model of {proposal.quantity}"
            if situation.scored_slots.get(proposal.quantity, 0) < ENOUGH_SLOTS:
                return f"fewer than {ENOUGH_SLOTS} slots were scored"
            if now is not None and now in losses and losses[proposal.model] > losses[now]:
                return f"{proposal.model} was worse than {now}"
        case _:
            pass
    return None
