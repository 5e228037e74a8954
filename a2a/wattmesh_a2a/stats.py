"""Figures of messaging: what happened, by type and peer, and how long it took; bounded whatever comes in."""

from __future__ import annotations

import math
from collections import Counter

from wattmesh_a2a.messages import StatsRow

_ROWS_AT_MOST = 2000
_REPORTED_AT_MOST = 300
_STEPS_AN_OCTAVE = 4
_FIRST_S = 1e-5
_BUCKETS = 100


class Latencies:
    """A histogram with steps of a quarter of an octave from 10 µs on: a quantile is right within ±9 %."""

    __slots__ = ("_counts", "count")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count one."""
        at = 0 if seconds <= _FIRST_S else math.ceil(math.log2(seconds / _FIRST_S) * _STEPS_AN_OCTAVE)
        self._counts[min(at, _BUCKETS - 1)] += 1
        self.count += 1

    def quantile_ms(self, share: float) -> float | None:
        """The middle of the step in which the quantile lies; none when nothing was counted."""
        wanted, seen = share * self.count, 0
        if not self.count:
            return None
        for at, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return float(1000 * _FIRST_S * 2 ** ((at - 0.5) / _STEPS_AN_OCTAVE))
        return None


class Stats:
    """Counts by (event, type, peer); beyond a bound, types and peers that nobody knew before share one row."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[str, str, str]] = Counter()
        self._latencies: dict[tuple[str, str, str], Latencies] = {}
        self.totals: Counter[str] = Counter()
        """By event alone."""

    def count(self, event: str, type_name: str = "-", peer: str = "-", latency_s: float | None = None) -> None:
        """Something happened."""
        self.totals[event] += 1
        key = (event, type_name, peer)
        if key not in self._rows and len(self._rows) >= _ROWS_AT_MOST:
            key = (event, "*", "*")
        self._rows[key] += 1
        if latency_s is not None:
            found = self._latencies.get(key)
            if found is None:
                found = self._latencies[key] = Latencies()
            found.add(latency_s)

    def rows(self) -> tuple[StatsRow, ...]:
        """The busiest rows first, bounded so that they fit one message."""
        made = []
        for key, count in self._rows.most_common(_REPORTED_AT_MOST):
            latency = self._latencies.get(key)
            p50, p99 = (latency.quantile_ms(0.5), latency.quantile_ms(0.99)) if latency else (None, None)
            made.append(
                StatsRow(
                    event=key[0],
                    type=key[1],
                    peer=key[2],
                    count=count,
                    p50_ms=None if p50 is None else round(p50, 3),
                    p99_ms=None if p99 is None else round(p99, 3),
                )
            )
        return tuple(made)
