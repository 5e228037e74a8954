"""Token buckets: how often somebody may come."""

from __future__ import annotations

from collections import OrderedDict

_KEYS_AT_MOST = 10_000


class Buckets:
    """A bucket a key, for a bounded number of keys.

    Args:
        per_s: Refilled so fast.
        burst: Holds so much.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now_s: float) -> float:
        """Take one; 0 where there was one, else the seconds until there is."""
        level, since = self._levels.pop(key, (self._burst, now_s))
        level = min(self._burst, level + max(0.0, now_s - since) * self._per_s)
        wait = 0.0 if level >= 1 else (1 - level) / self._per_s
        self._levels[key] = (level if wait else level - 1, now_s)
        if len(self._levels) > _KEYS_AT_MOST:
            self._levels.popitem(last=False)
        return wait
