"""The consumer's policy: a limit of import that the battery can hold on most days, never below what people usually need."""

from __future__ import annotations

from collections.abc import Sequence

from wattmesh_cloud.agents.proposals import Proposal, SetPeakLimit
from wattmesh_cloud.agents.situations import SLOTS_A_DAY, SiteSituation

STALE_S = 7200.0
USABLE_SHARE = 0.7
"""Of the battery's energy: losses, the reserve, and what the plan has used before the peak."""
STANDS_OUT, ABOVE_USUAL = 1.5, 1.2
_DAYS = 7
_FEW_QUARTERS = 4


def policy(situation: SiteSituation) -> list[Proposal]:
    """At most one limit; taking it back (none) where there is no ground for one."""
    if len(situation.net_wh) < _FEW_QUARTERS or not situation.expected_net_wh:
        return []
    age = situation.forecast_age_s
    if age is None or age > STALE_S:
        return []
    limit, why = _limit(situation)
    return [SetPeakLimit(site_id=situation.site_id, limit_w=limit, rationale=why)]


def _limit(situation: SiteSituation) -> tuple[float | None, str]:
    expected_w = max(situation.expected_net_wh) * 4
    why = f"expected peak of load less PV {expected_w:.0f} W"
    if len(situation.net_wh) < SLOTS_A_DAY:
        return None, why + ", usual peak not known yet"
    usual_w = usual_peak_w(situation.net_wh)
    why += f", usual peak {usual_w:.0f} W"
    if usual_w <= 0:
        return None, why + ": no import to limit"
    if situation.battery_wh:
        level = held_level_w(situation)
        limit = max(level * situation.settings["peak_factor"], floor_w(situation.net_wh))
        why += f", {situation.battery_wh / 1000:.1f} kWh hold {level:.0f} W"
    elif expected_w > STANDS_OUT * usual_w:
        limit = max(ABOVE_USUAL * usual_w, 0.5 * expected_w)
    else:
        return None, why + ": no limit"
    if limit >= situation.import_limit_w:
        return None, why + ": the connection's limit is enough"
    return round(limit, 0), f"{why}: import limited to {limit:.0f} W"


def usual_peak_w(net_wh: Sequence[int]) -> float:
    """95th percentile of the quarter hours' mean power."""
    return sorted(net_wh)[int(len(net_wh) * 0.95)] * 4.0


def floor_w(net_wh: Sequence[int]) -> float:
    """What people usually take: the upper quartile of the quarter hours that import; no limit goes below it."""
    taking = sorted(net for net in net_wh if net > 0)
    return taking[int(len(taking) * 0.75)] * 4.0 if taking else 0.0


def held_level_w(situation: SiteSituation) -> float:
    """The import that the battery could have held on all but the worst of the last days, and can hold on the coming one."""
    usable = (situation.battery_wh or 0.0) * USABLE_SHARE
    net = situation.net_wh
    days = [net[max(0, end - SLOTS_A_DAY) : end] for end in range(len(net), SLOTS_A_DAY - 1, -SLOTS_A_DAY)][:_DAYS]
    levels = sorted(shaved_level_w(day, usable) for day in days)
    usual = levels[max(0, len(levels) - 2)]
    return max(usual, shaved_level_w(situation.expected_net_wh[:SLOTS_A_DAY], usable))


def shaved_level_w(net_wh: Sequence[float], usable_wh: float) -> float:
    """The lowest level under which all of a stretch stays with so much energy for each of its peaks.

    A peak is a run of quarter hours above the level; between two runs the battery is taken to be filled again. Bisection.
    """
    low, high = 0.0, max(0.0, *net_wh)
    for _ in range(15):
        middle, run = (low + high) / 2, 0.0
        for net in net_wh:
            if net <= middle:
                run = 0.0
                continue
            run += net - middle
            if run > usable_wh:
                low = middle
                break
        else:
            high = middle
    return high * 4
