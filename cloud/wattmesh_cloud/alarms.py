"""Which alarms stand: raised and not cleared, with who has seen them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.codec import message_from_json
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import Message

from wattmesh_cloud.store.base import Item, Store, Table

_OPEN_PER_SITE = 500
_LOOK_BACK = 500
_ORDER = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An alarm that stands."""

    alarm: Alarm
    acknowledged_by: str | None = None


class AlarmBook:
    """Alarms that stand, by site; fed with records as they become durable."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, Standing]] = {}
        self._listeners: list[Callable[[Alarm], None]] = []

    def listen(self, listener: Callable[[Alarm], None]) -> None:
        """Be told of every alarm that is raised or cleared from now on, once each."""
        self._listeners.append(listener)

    def on_record(self, site: str, message: Message) -> None:
        """Take an alarm."""
        if not isinstance(message, Alarm) or message.site_id != site:
            return
        changed = self._take(message)
        if changed:
            for listener in self._listeners:
                listener(message)

    def _take(self, alarm: Alarm) -> bool:
        standing = self._open.setdefault(alarm.site_id, {})
        if alarm.cleared_ns is not None:
            return standing.pop(alarm.id, None) is not None
        known = standing.get(alarm.id)
        if known is not None and known.alarm == alarm:
            return False
        if known is None and len(standing) >= _OPEN_PER_SITE:
            del standing[min(standing, key=lambda one: standing[one].alarm.raised_ns)]
        standing[alarm.id] = Standing(alarm=alarm, acknowledged_by=known.acknowledged_by if known else None)
        return known is None

    def restore(self, store: Store) -> None:
        """Take what stood when the process ended; blocks."""
        for partition in store.partitions(Table.GRID_METRICS):
            site, _, aspect = partition.partition("#")
            if aspect == "alarms":
                rows = store.query(Table.GRID_METRICS, partition, 0, 2**62, limit=_LOOK_BACK, newest_first=True)
                self._restore_site(site, rows[::-1], store)

    def _restore_site(self, site: str, rows: Iterable[Item], store: Store) -> None:
        seen = {
            row.id: str(row.data.get("by"))
            for row in store.query(Table.GRID_METRICS, f"{site}#seen", 0, 2**62, limit=_LOOK_BACK, newest_first=True)
        }
        for row in rows:
            try:
                alarm = message_from_json("wattmesh.alarm.v1", dict(row.data))
            except InvalidMessageError:
                continue  # a row of an older version: not shown as standing
            if isinstance(alarm, Alarm):
                self._take(alarm)
                if alarm.id in seen and alarm.id in self._open[alarm.site_id]:
                    self.acknowledge(alarm.site_id, alarm.id, seen[alarm.id])

    def acknowledge(self, site: str, alarm_id: str, who: str) -> Alarm | None:
        """Note that somebody has seen an alarm; none where it does not stand."""
        standing = self._open.get(site, {}).get(alarm_id)
        if standing is None:
            return None
        self._open[site][alarm_id] = Standing(alarm=standing.alarm, acknowledged_by=who)
        return standing.alarm

    def of(self, site: str) -> list[Standing]:
        """Those of a site, the worst and newest first."""
        return sorted(
            self._open.get(site, {}).values(),
            key=lambda one: (_ORDER.index(one.alarm.severity), -one.alarm.raised_ns, one.alarm.id),
        )
