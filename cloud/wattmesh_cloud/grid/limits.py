"""How often sites were called, and who may not be called again: fatigue and fairness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.tariff import local_time

from wattmesh_cloud.grid.config import LimitsConfig

_DAY_NS = 86_400 * NS_PER_S
_KEPT_NS = 31 * _DAY_NS


class Calls:
    """Each site's calls of the last month.

    Args:
        config: The limits.
        zone: Where days begin.
    """

    def __init__(self, config: LimitsConfig, zone: tzinfo) -> None:
        self._config, self._zone = config, zone
        self._of: dict[str, list[tuple[int, int]]] = {}

    def note(self, sites: Iterable[str], start_ns: int, end_ns: int) -> None:
        """These are called for this time."""
        for site in sites:
            kept = [one for one in self._of.get(site, []) if one[1] > end_ns - _KEPT_NS]
            self._of[site] = [*kept, (start_ns, end_ns)]

    def tired(self, sites: Sequence[str], start_ns: int, end_ns: int) -> dict[str, str]:
        """Those that may not be called for a window, and why."""
        found = {}
        for site in sites:
            why = self._why(self._of.get(site, []), start_ns, end_ns)
            if why is not None:
                found[site] = why
        return found

    def _why(self, calls: Sequence[tuple[int, int]], start_ns: int, end_ns: int) -> str | None:
        config = self._config
        day = local_time(start_ns, self._zone).date()
        today = sum(local_time(start, self._zone).date() == day for start, _ in calls)
        if today >= config.events_per_day:
            return f"called {today} times that day"
        week = sum(0 <= start_ns - start < 7 * _DAY_NS for start, _ in calls)
        if week >= config.events_per_week:
            return f"called {week} times in seven days"
        hours = sum(end - start for start, end in calls if 0 <= start_ns - start < 30 * _DAY_NS) / 3.6e12
        if hours + (end_ns - start_ns) / 3.6e12 > config.hours_per_month:
            return f"called for {hours:.1f} h in thirty days"
        rest = config.rest_s * NS_PER_S
        if any(start - rest < end_ns and start_ns < end + rest for start, end in calls):
            return f"rests for {config.rest_s / 3600:g} h between two events"
        return None

    def recent(self, sites: Iterable[str], now_ns: int) -> dict[str, float]:
        """Hours that each was called in the thirty days before."""
        return {
            site: sum(end - start for start, end in self._of.get(site, []) if 0 <= now_ns - start < 30 * _DAY_NS)
            / 3.6e12
            for site in sites
        }

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return {site: [list(one) for one in calls] for site, calls in self._of.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`dump` saw."""
        self._of = {site: [(int(start), int(end)) for start, end in calls] for site, calls in state.items()}
