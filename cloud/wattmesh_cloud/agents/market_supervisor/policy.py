"""The market supervisor's policy: nothing on most days; a halt, a suspension or an alarm where the figures leave their band."""

from __future__ import annotations

from wattmesh_cloud.agents.proposals import (
    HaltMarket,
    Proposal,
    RaiseAlarm,
    ResumeMarket,
    SuspendParticipant,
)
from wattmesh_cloud.agents.situations import Activity, MarketSituation

CAUSE = "market-supervisor"
"""The agent's own halts; it never ends those of others."""
STALE_S = 3 * 3600.0
ABOVE_MEDIAN, ABOVE_RETAIL = 3.0, 1.5
_FEW_PRICES = 8
MOST_SHARE, SELLERS = 0.6, 3
MOST_CANCELLED, ENOUGH_ORDERS = 0.9, 50


def policy(situation: MarketSituation) -> list[Proposal]:
    """See the module."""
    area = situation.area
    found: list[Proposal] = []
    ground = halt_ground(situation)
    if ground is not None and CAUSE not in situation.halts:
        found.append(HaltMarket(area=area, rationale=ground))
    elif ground is None and CAUSE in situation.halts:
        found.append(ResumeMarket(area=area, rationale=f"over: {situation.halts[CAUSE]}"[:400]))
    for name in sorted(situation.participants):
        why = suspension_ground(situation, name)
        if why is not None and name not in situation.suspended:
            found.append(SuspendParticipant(area=area, participant_id=name, rationale=why))
    if situation.ledger_sum_units:
        why = f"the ledger sums to {situation.ledger_sum_units}, not to 0"
        found.append(RaiseAlarm(subject=area, severity="critical", rationale=why))
    elif situation.slots_unsettled:
        why = f"{situation.slots_unsettled} slots are over and not settled"
        found.append(RaiseAlarm(subject=area, severity="warning", rationale=why))
    else:
        owing = [name for name, one in sorted(situation.participants.items()) if one.exposure_share > 1]
        if owing:
            why = f"beyond their credit: {', '.join(owing[:5])}"
            found.append(RaiseAlarm(subject=area, severity="warning", rationale=why))
    return found


def halt_ground(situation: MarketSituation) -> str | None:
    """Why the area has to be halted by the figures; none where it need not be."""
    if situation.ledger_sum_units:
        return f"the ledger sums to {situation.ledger_sum_units}, not to 0"
    if situation.grid_status == "emergency":
        return "the grid is in an emergency"
    age = situation.forecast_age_s
    if age is not None and age > STALE_S:
        return f"the newest forecast is {age / 3600:.1f} h old"
    prices = situation.prices_ticks
    if len(prices) >= _FEW_PRICES:
        usual = sorted(prices[:-1])[(len(prices) - 1) // 2]
        last = prices[-1]
        retail = situation.retail_ticks
        if last > ABOVE_MEDIAN * max(usual, 1) and last > ABOVE_RETAIL * max(retail, 1):
            times = last / max(usual, 1)
            return f"the last price of {last} ticks is {times:.1f} times the day's median and above retail ({retail})"
    return None


def suspension_ground(situation: MarketSituation, name: str) -> str | None:
    """Why a participant looks like somebody who moves the market and does not trade in it; none where it does not."""
    one: Activity = situation.participants[name]
    if one.orders >= ENOUGH_ORDERS and one.cancelled > MOST_CANCELLED * one.orders and one.bought_wh + one.sold_wh == 0:
        return f"{name} cancelled {one.cancelled} of {one.orders} orders and traded nothing"
    sellers = [other for other in situation.participants.values() if other.sold_wh > 0]
    total = sum(other.sold_wh for other in sellers)
    prices = situation.prices_ticks
    if len(sellers) >= SELLERS and one.sold_wh > MOST_SHARE * total and len(prices) >= _FEW_PRICES:
        usual = sorted(prices[:-1])[(len(prices) - 1) // 2]
        if prices[-1] > ABOVE_RETAIL * max(situation.retail_ticks, usual, 1):
            return f"{name} sold {one.sold_wh / total:.0%} of the day's energy at {prices[-1]} ticks, above retail"
    return None
