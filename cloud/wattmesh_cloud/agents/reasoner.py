"""The contract of reasoning: a situation in, typed proposals with a rationale out. The policy is always there.

A language model may stand behind the same contract later; it can propose no more than these types, and each proposal passes
the same checks (:func:`within_limits`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from wattmesh_a2a.messages import Strategy

MOST_RESERVE_PERCENT = 50.0
_DAY_SLOTS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSituation:
    """What a strategy for one site rests on."""

    site_id: str
    now_ns: int
    net_wh: tuple[int, ...]
    """Metered load less PV of the last quarter hours, oldest first: what the forecast is about, without the battery."""
    expected_net_wh: tuple[float, ...]
    """Forecast load less PV of the coming quarter hours (medians)."""
    import_limit_w: float


class Reasoner(Protocol):
    """Makes a strategy of a situation, or none when nothing should change."""

    async def strategy(self, situation: SiteSituation, expires_ns: int) -> Strategy | None:
        """At most one proposal; it has to be back within two seconds."""
        ...


class PolicyReasoner:
    """The deterministic policy: sound without any model."""

    async def strategy(self, situation: SiteSituation, expires_ns: int) -> Strategy | None:
        """A limit of import where the coming peak stands far above the usual one; trading unless there is no forecast.

        Both peaks are of load less PV. What is usual takes a whole day to know: before that, no limit.
        """
        if len(situation.net_wh) < 4:
            return None
        expected_w = max((net * 4 for net in situation.expected_net_wh), default=0.0)
        limit: float | None = None
        why = f"expected peak of load less PV {expected_w:.0f} W"
        if len(situation.net_wh) >= _DAY_SLOTS:
            usual_w = sorted(situation.net_wh)[int(len(situation.net_wh) * 0.95)] * 4.0
            why += f", usual peak {usual_w:.0f} W"
            if expected_w > 1.5 * usual_w > 0:
                limit = max(1.2 * usual_w, 0.5 * expected_w)
                why += f": import limited to {limit:.0f} W"
        else:
            why += ", usual peak not known yet"
        return Strategy(
            site_id=situation.site_id,
            expires_ns=expires_ns,
            reserve_soc_percent=5.0,
            peak_limit_w=limit,
            trade=bool(situation.expected_net_wh),
            rationale=why,
        )


def within_limits(strategy: Strategy, situation: SiteSituation) -> Strategy | None:
    """The strategy if it may be sent, whoever made it; none when it is about another site or out of every limit."""
    if strategy.site_id != situation.site_id or strategy.expires_ns <= situation.now_ns:
        return None
    if not 0 <= strategy.reserve_soc_percent <= MOST_RESERVE_PERCENT:
        return None
    limit = strategy.peak_limit_w
    if limit is not None and not 0 < limit:
        return None
    if limit is not None and limit > situation.import_limit_w:
        return replace(strategy, peak_limit_w=situation.import_limit_w)
    return strategy
