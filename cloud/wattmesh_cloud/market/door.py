"""In front of the journal: who sends more than it has room for, and counts of what is refused before it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.market import RejectReason
from wattmesh_a2a.messages import OrderBatch, OrderPlace

from wattmesh_cloud.market.answers import OrderMessage
from wattmesh_cloud.market.risk import Risk

_MOST_REFUSED = 100
_BURST_NS = 8_000_000_000
_STRANGERS_PACE_NS = 100_000_000
_WITH_ORDERS = (OrderBatch, OrderPlace)


class Door:
    """Nothing here is part of the market's state: what is turned away has never been an input, only its count is one.

    Args:
        risk: Knows who trades here, and how fast they may.
        clock: Real pace of messages.
    """

    def __init__(self, risk: Risk, clock: Clock) -> None:
        self._risk, self._clock = risk, clock
        self._busy_until: dict[str, int] = {}
        self._refused: Counter[tuple[str, str]] = Counter()

    def floods(self, source: Address, message: OrderMessage) -> bool:
        """Whether somebody sends more than the journal has room for; then it is counted, and stands there no longer by itself.

        The engine's own limit is stricter, and decided from what the journal has. This one is before it, for what has no limit
        there (cancellations, empty messages), and for refusals, which take room as well: at twice a participant's rate, eight
        seconds' worth at once. All strangers share one allowance.
        """
        limits, now = self._risk.limits.get(source.unit), self._clock.monotonic_ns()
        unit, pace_ns = ("?", _STRANGERS_PACE_NS) if limits is None else (source.unit, limits.pace_ns // 2)
        orders = len(message.orders) if isinstance(message, _WITH_ORDERS) else 1
        busy = max(self._busy_until.get(unit, 0), now) + (orders or 1) * pace_ns
        if busy - now > max(_BURST_NS, pace_ns):
            self.note(source, RejectReason.RATE_LIMIT)
            return True
        self._busy_until[unit] = busy
        return False

    def note(self, source: Address, reason: str) -> None:
        """Count a refusal. Bounded: whoever may publish must not fill memory and disk with what nobody can read."""
        key = (str(reason), str(source))
        if key not in self._refused and len(self._refused) >= _MOST_REFUSED:
            key = (str(reason), "others")
        self._refused[key] += 1

    def drained(self) -> list[dict[str, Any]]:
        """The counts since the last time, as entries for the journal."""
        refused, self._refused = self._refused, Counter()
        return [
            {"what": "refused", "reason": reason, "source": source, "count": count}
            for (reason, source), count in sorted(refused.items())
        ]
