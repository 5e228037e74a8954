"""What no grid action may be, whoever proposes it."""

from __future__ import annotations

from wattmesh_cloud.agents.grid_optimisation.policy import ALERT_SHARE, CALM_S, EMERGENCY_SHARE, STALE_S, mean_w
from wattmesh_cloud.agents.proposals import CallResponse, CancelResponse, DeclareStatus, Proposal
from wattmesh_cloud.agents.situations import SLOT_NS, GridSituation

MOST_SHARE = 0.5
"""Of the expected power of a window that may be asked for."""
LEAST_NOTICE_S = 900
MOST_NOTICE_S = 36 * 3600


def guardrail(proposal: Proposal, situation: GridSituation) -> str | None:
    """Physical and risk limits."""
    match proposal:
        case CallResponse():
            return _call(proposal, situation)
        case CancelResponse():
            event = next((one for one in situation.events if one.id == proposal.event_id), None)
            if event is None or event.state != "announced" or event.start_ns <= situation.now_ns:
                return f"{proposal.event_id} is no event that is only announced"
        case DeclareStatus():
            return _status(proposal, situation)
        case _:
            pass
    return None


def _call(proposal: CallResponse, situation: GridSituation) -> str | None:
    ahead_s = (proposal.start_ns - situation.now_ns) / 1e9
    end_ns = proposal.start_ns + proposal.duration_s * 1_000_000_000
    expected = mean_w(situation, proposal.start_ns, end_ns)
    age = situation.forecast_age_s
    if not situation.response_enabled:
        return "the operator has switched demand response off"
    if proposal.start_ns % SLOT_NS:
        return "the window does not begin with a quarter hour"
    if not max(LEAST_NOTICE_S, situation.notice_s) <= ahead_s <= MOST_NOTICE_S:
        return f"notice of {ahead_s / 60:.0f} min; at least {situation.notice_s / 60:.0f} min are agreed"
    if age is None or age > STALE_S or expected is None:
        return "no fresh forecast covers the window"
    if -proposal.target_w > MOST_SHARE * max(0.0, expected):
        return f"{-proposal.target_w} W are more than {MOST_SHARE:.0%} of the {expected:.0f} W expected"
    if proposal.price_ticks > situation.price_ticks:
        return f"{proposal.price_ticks} ticks are above the operator's {situation.price_ticks}"
    for event in situation.events:
        if event.state != "cancelled" and event.start_ns < end_ns and proposal.start_ns < event.end_ns:
            return f"{event.id} is in the same window"
    return None


def _status(proposal: DeclareStatus, situation: GridSituation) -> str | None:
    values = sorted(situation.frequency_hz.values())
    off = abs(values[len(values) // 2] - situation.nominal_hz) / situation.nominal_hz if values else 0.0
    if proposal.status == "emergency" and (off < EMERGENCY_SHARE or len(values) < 2):
        return f"a deviation of {off:.2%} over {len(values)} sites is no emergency"
    if proposal.status == "alert" and off < ALERT_SHARE:
        return f"a deviation of {off:.2%} is no alert"
    if proposal.status == "normal":
        if off >= ALERT_SHARE or not values:
            return "the frequency is not back, or nobody measures it"
        if situation.quiet_s is not None and situation.quiet_s <= CALM_S:
            return f"quiet for only {situation.quiet_s:.0f} s"
    return None
