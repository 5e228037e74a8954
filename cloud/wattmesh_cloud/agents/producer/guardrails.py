"""What no producer strategy may be, whoever proposes it."""

from __future__ import annotations

from wattmesh_cloud.agents.producer.policy import STALE_S
from wattmesh_cloud.agents.proposals import Proposal, SetReserve, SetTrading
from wattmesh_cloud.agents.situations import SiteSituation

MOST_RESERVE_PERCENT = 50.0
"""The gateway keeps to it, too."""


def guardrail(proposal: Proposal, situation: SiteSituation) -> str | None:
    """Physical and risk limits."""
    match proposal:
        case SetReserve():
            if proposal.reserve_soc_percent > MOST_RESERVE_PERCENT:
                return f"a reserve of {proposal.reserve_soc_percent:.0f} % is above {MOST_RESERVE_PERCENT:.0f} %"
            if situation.battery_wh == 0:
                return "the site has no battery" if proposal.reserve_soc_percent > MOST_RESERVE_PERCENT / 10 else None
            if situation.grid_status == "emergency" and proposal.reserve_soc_percent < MOST_RESERVE_PERCENT / 2:
                return "no low reserve while the grid is in an emergency"
        case SetTrading(trade=True):
            age = situation.forecast_age_s
            if not situation.expected_net_wh or age is None or age > STALE_S:
                return "no trading without a fresh forecast"
            if not situation.online or situation.missing:
                return "no trading while the gateway or one of its devices is away"
        case _:
            pass
    return None
