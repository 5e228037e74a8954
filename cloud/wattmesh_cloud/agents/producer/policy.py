"""The producer's policy: keep what the house and its peaks need, trade while trading pays and can be kept."""

from __future__ import annotations

from wattmesh_cloud.agents.proposals import Proposal, SetReserve, SetTrading
from wattmesh_cloud.agents.situations import SLOTS_A_DAY, SiteSituation

BASE_PERCENT, ALERT_PERCENT, EMERGENCY_PERCENT = 5.0, 20.0, 50.0
STALE_S = 7200.0
_FEW_QUARTERS = 4
_WORTH_LOOKING_WH = 1000
"""Of energy traded in a day: below it, what was missed says nothing."""


def policy(situation: SiteSituation) -> list[Proposal]:
    """A reserve and whether to trade; nothing for a site that has told too little."""
    if len(situation.net_wh) < _FEW_QUARTERS:
        return []
    reserve, why = _reserve(situation)
    trade, because = _trade(situation)
    return [
        SetReserve(site_id=situation.site_id, reserve_soc_percent=reserve, rationale=why),
        SetTrading(site_id=situation.site_id, trade=trade, rationale=because),
    ]


def _reserve(situation: SiteSituation) -> tuple[float, str]:
    if situation.battery_wh == 0:
        return BASE_PERCENT, "no battery: nothing to keep"
    if situation.grid_status == "emergency":
        return EMERGENCY_PERCENT, f"the grid is in an emergency: {EMERGENCY_PERCENT:.0f} % kept for the house"
    if situation.grid_status == "alert":
        return ALERT_PERCENT, f"the grid is on alert: {ALERT_PERCENT:.0f} % kept for the house"
    if situation.battery_wh and len(situation.net_wh) >= SLOTS_A_DAY:
        share = situation.settings["peak_reserve"]
        percent = max(BASE_PERCENT, 100 * share)
        return percent, f"{percent:.0f} % of {situation.battery_wh / 1000:.1f} kWh kept for peaks and the house"
    return BASE_PERCENT, f"{BASE_PERCENT:.0f} % kept for the house"


def _trade(situation: SiteSituation) -> tuple[bool, str]:
    age = situation.forecast_age_s
    if not situation.expected_net_wh or age is None:
        return False, "no forecast: nothing can be promised"
    if age > STALE_S:
        return False, f"the forecast is {age / 3600:.1f} h old: nothing can be promised"
    if not situation.online:
        return False, "the gateway is not online: nobody could keep a promise"
    if situation.missing:
        return False, f"no values of {', '.join(situation.missing[:3])}: what the site can deliver is not known"
    traded, missed = situation.committed_wh, situation.missed_wh
    if traded >= _WORTH_LOOKING_WH and situation.miss_cost_units > situation.gain_units:
        return False, (
            f"{missed} of {traded} Wh traded yesterday were missed, which cost {situation.miss_cost_units / 1e7:.2f} "
            f"against a gain of {situation.gain_units / 1e7:.2f}"
        )
    return True, f"forecast {age / 60:.0f} min old, {missed} of {traded} Wh traded in the last day missed"
