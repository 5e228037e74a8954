"""What no import limit may be, whoever proposes it."""

from __future__ import annotations

from wattmesh_cloud.agents.consumer.policy import STALE_S, floor_w
from wattmesh_cloud.agents.proposals import Proposal, SetPeakLimit
from wattmesh_cloud.agents.situations import SLOTS_A_DAY, SiteSituation


def guardrail(proposal: Proposal, situation: SiteSituation) -> str | None:
    """Physical and risk limits."""
    if not isinstance(proposal, SetPeakLimit) or proposal.limit_w is None:
        return None
    limit = proposal.limit_w
    if limit <= 0:
        return f"a limit of {limit:.0f} W is none"
    if limit > situation.import_limit_w:
        return f"{limit:.0f} W is above the connection's {situation.import_limit_w:.0f} W"
    if len(situation.net_wh) < SLOTS_A_DAY:
        return "what the site usually takes is not known yet"
    if limit < floor_w(situation.net_wh):
        return f"{limit:.0f} W is below what the site usually takes ({floor_w(situation.net_wh):.0f} W)"
    age = situation.forecast_age_s
    if age is None or age > STALE_S:
        return "no limit without a fresh forecast"
    return None
