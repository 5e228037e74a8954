"""What a gateway tells of itself: its announcement, its status every ten seconds, and its report on disk."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections import Counter
from collections.abc import Callable

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.messages import AssetSummary, FlexibleNeed, GatewayStatus, SiteAnnouncement

from wattmesh_edge.config import Site
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.frequency import FrequencyWatch
from wattmesh_edge.outbox import Outbox
from wattmesh_edge.panel import resident_bytes

SOFTWARE = "wattmesh 0.1.0"


class Reporter:
    """Figures of this start and of all before.

    Args:
        site: The site.
        control: Its control cycle.
        outbox: What waits for the cloud.
        messenger: Its own figures are among them.
        frequency: The reflex.
        db: The gateway's database.
        counts: Counters over all starts, by name; shared with whoever counts.
        clock: The gateway's.
        plan_source: What the battery follows at a time: ``market``, ``cloud``, ``plan``, ``tariff`` or ``self-consumption``.
        flexible: Loads that can wait.
    """

    def __init__(
        self,
        site: Site,
        control: ControlCycle,
        outbox: Outbox,
        messenger: Delivery,
        frequency: FrequencyWatch,
        db: sqlite3.Connection,
        *,
        counts: Counter[str],
        clock: Clock,
        plan_source: Callable[[int], str],
        flexible: tuple[FlexibleNeed, ...] = (),
    ) -> None:
        self._site = site
        self._site_id = site.model.site
        self._control = control
        self._outbox = outbox
        self._messenger = messenger
        self._frequency = frequency
        self._db = db
        self._counts = counts
        self._clock = clock
        self._plan_source = plan_source
        self._flexible = flexible

    def announcement(self) -> dict[str, object]:
        """What the retained card says of this site."""
        model = self._site.model
        announcement = SiteAnnouncement(
            site_id=self._site_id,
            gateway_id=str(self._messenger.address),
            session=self._messenger.session,
            started_ns=self._clock.utc_ns(),
            software=SOFTWARE,
            time_zone=model.time_zone,
            market_area=model.market.area if model.market else "",
            import_limit_w=model.connection.import_limit_w,
            export_limit_w=model.connection.export_limit_w,
            assets=tuple(
                AssetSummary(
                    id=device.id,
                    kind=self._site.templates[device.id].kind,
                    rated_power_w=device.rated_power_w,
                    rated_energy_wh=device.rated_energy_wh,
                    template=device.template,
                )
                for device in model.devices
            ),
            agents=model.agents,
            frequency_response=bool(self._frequency.responding),
            flexible=self._flexible,
        )
        line: dict[str, object] = json.loads(record_line(announcement))
        return line

    def status(self, now_ns: int) -> GatewayStatus:
        """The event of every ten seconds."""
        snapshot = self._frequency.reflex.snapshot() if self._frequency.reflex is not None else None
        counters = self._outbox.counters()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        totals = self.totals()
        return GatewayStatus(
            site_id=self._site_id,
            session=self._messenger.session,
            time_ns=now_ns,
            cycles=totals["cycles"],
            cycle_overrun_max_ms=self._control.overrun_max_ns / 1e6,
            records_measured=sum(value for name, value in counters.items() if name.startswith("measured.")),
            batches_pending=self._outbox.waiting(),
            commands_sent=totals["commands_sent"],
            commands_applied=totals["commands_applied"],
            commands_expired=totals["commands_expired"],
            frequency_hz=snapshot.frequency_hz if snapshot else None,
            rocof_hz_per_s=snapshot.rocof_hz_per_s if snapshot else None,
            frequency_events=len(self._frequency.rows),
            resident_mb=resident_bytes() / 1e6,
            cpu_s=usage.ru_utime + usage.ru_stime,
            plan_source=self._plan_source(now_ns),
        )

    def totals(self) -> dict[str, int]:
        """Counts of this start and of all before."""
        counts = self._control.counts
        names = (
            "cycles",
            "commands_sent",
            "commands_applied",
            "commands_clamped",
            "commands_rejected",
            "commands_failed",
        )
        totals = {name: self._counts.get(name, 0) + counts[name] for name in names}
        expired = self._counts.get("commands_expired", 0) + counts["proposals_expired"]
        return {**totals, "commands_expired": expired + self._messenger.counters().get("expired", 0)}

    def report(self) -> dict[str, object]:
        """Everything the fleet's report takes from this gateway."""
        snapshot = self._frequency.reflex.snapshot() if self._frequency.reflex is not None else None
        row = self._db.execute("SELECT COUNT(*), COALESCE(SUM(trades), 0) FROM commitments").fetchone()
        commitments = dict(self._db.execute("SELECT slot_ns, net_wh FROM commitments").fetchall())
        return {
            "site": self._site_id,
            "records": self._outbox.counters(),
            "batches_pending": self._outbox.waiting(),
            "segment_torn_bytes": self._outbox.torn,
            "totals": self.totals(),
            "counts": dict(self._counts),
            "messages": dict(self._messenger.counters()),
            "cycle_overrun_max_ms": self._control.overrun_max_ns / 1e6,
            "cycle_max_ms": self._control.cycle_max_ns / 1e6,
            "frequency_events": self._frequency.rows,
            "reflex": None
            if snapshot is None
            else {
                "responds": bool(self._frequency.responding),
                "why_watching": self._frequency.reflex.why_watching if self._frequency.reflex else None,
                "polls": snapshot.polls,
                "missed_deadlines": snapshot.missed_deadlines,
                "failures": snapshot.failures,
                "inhibited": snapshot.inhibited,
                "scheduling": snapshot.scheduling,
                "memory_locked": snapshot.memory_locked,
                "writes": snapshot.writes,
                "write_failures": snapshot.write_failures,
                "refresh_ms": snapshot.refresh_ms,
                "lateness_p50_ms": snapshot.lateness_p50_ms,
                "lateness_p99_ms": snapshot.lateness_p99_ms,
            },
            "commitments": {str(slot): net for slot, net in commitments.items()},
            "commitment_count": row[0],
            "trades": row[1],
        }

    def write(self) -> None:
        """Keep the counters and ``report.json``; raises OSError or ``sqlite3.Error``."""
        totals = self.totals()
        self._db.execute("INSERT OR REPLACE INTO state VALUES ('counts', ?)", (json.dumps({**self._counts, **totals}),))
        self._db.commit()
        target = self._site.state / "report.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(self.report()), encoding="ascii")
        draft.replace(target)
