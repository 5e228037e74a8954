"""The frequency of the last minute as gateways send it while somebody looks: ten samples a second or more."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

_KEPT = 1200
_SITES = 200


class FrequencyLive:
    """Rings of (real time in milliseconds, Hz, Hz/s), one a site."""

    def __init__(self) -> None:
        self._rings: dict[str, deque[tuple[int, float | None, float | None]]] = {}
        self._count: dict[str, int] = {}

    def add(self, site: str, rows: Sequence[tuple[int, float | None, float | None]]) -> None:
        """Take samples in order of time; what is not younger than the last is a repetition."""
        ring = self._rings.get(site)
        if ring is None:
            if len(self._rings) >= _SITES:
                return
            ring = self._rings[site] = deque(maxlen=_KEPT)
        for row in rows:
            if not ring or row[0] > ring[-1][0]:
                ring.append(row)
                self._count[site] = self._count.get(site, 0) + 1

    def since(self, seen: dict[str, int]) -> Mapping[str, list[tuple[int, float | None, float | None]]]:
        """What came since ``seen`` (samples a site), which is brought up to date."""
        found = {}
        for site, count in self._count.items():
            if new := min(count - seen.get(site, 0), len(self._rings[site])):
                found[site] = list(self._rings[site])[-new:]
                seen[site] = count
        return found

    def recent(self, site: str) -> list[tuple[int, float | None, float | None]]:
        """The last two minutes at most."""
        return list(self._rings.get(site, ()))
