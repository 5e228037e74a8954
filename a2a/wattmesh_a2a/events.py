"""Events of many sources: each once, gaps noticed, overtaken ones recognised."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from wattmesh_a2a.envelope import Address

_SOURCES_AT_MOST = 5000
_REMEMBERED = 256


class Arrival(Enum):
    """How an event stands to those before it."""

    NEXT = "next"
    AFTER_GAP = "after a gap"
    """Events were missed, or the source began a new session."""
    OVERTAKEN = "overtaken"
    """A newer one of the source came before it."""
    REPEATED = "repeated"


@dataclass(slots=True)
class _Track:
    session: str
    highest: int
    recent: set[int] = field(default_factory=set)
    earlier: str = ""
    """The session before, whose late events are overtaken ones."""


class EventTracks:
    """Remembers the newest sequence numbers of each source, for a bounded number of sources."""

    def __init__(self) -> None:
        self._tracks: OrderedDict[Address, _Track] = OrderedDict()

    def arrived(self, source: Address, session: str, sequence: int) -> Arrival:
        """Judge an event and remember it."""
        track = self._tracks.get(source)
        if track is None:
            self._tracks[source] = _Track(session, sequence, {sequence})
            if len(self._tracks) > _SOURCES_AT_MOST:
                self._tracks.popitem(last=False)
            return Arrival.NEXT
        self._tracks.move_to_end(source)
        if session != track.session:
            if session == track.earlier:
                return Arrival.REPEATED
            self._tracks[source] = _Track(session, sequence, {sequence}, track.session)
            return Arrival.AFTER_GAP
        if sequence in track.recent or sequence <= track.highest - _REMEMBERED:
            return Arrival.REPEATED
        track.recent.add(sequence)
        if sequence < track.highest:
            return Arrival.OVERTAKEN
        gap = sequence > track.highest + 1
        track.highest = sequence
        if len(track.recent) > 2 * _REMEMBERED:
            track.recent = {one for one in track.recent if one > sequence - _REMEMBERED}
        return Arrival.AFTER_GAP if gap else Arrival.NEXT
