"""What API and console may see: one read-only object over the running services and the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_a2a.alarms import Severity
from wattmesh_a2a.cards import AgentRegistry
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_to_json
from wattmesh_a2a.messages import GatewayStatus
from wattmesh_a2a.plans import SitePlan

from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.alarms import AlarmBook
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.service import MarketService
from wattmesh_cloud.store.base import Item, Series, Store, Table

_FOR_EVER = 2**62
STALE_NS = 120 * NS_PER_S
"""A site whose newest reading is older shows what was, not what is."""


@dataclass(slots=True, kw_only=True)
class CloudView:
    """See the module. Methods that read the store block and are bounded in rows."""

    clock: Clock
    store: Store
    live: LiveView
    ingest: Ingest
    market: MarketService
    markets: Markets
    forecasting: ForecastingService
    grid: GridService
    strategy: AgentsService
    alarms: AlarmBook = field(default_factory=AlarmBook)
    announcements: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Site → its announcement, from the retained cards."""
    online: set[str] = field(default_factory=set)
    away_since_ns: dict[str, int] = field(default_factory=dict)
    health: dict[str, GatewayStatus] = field(default_factory=dict)
    plans: Mapping[str, SitePlan] = field(default_factory=dict)
    """Site → the newest plan that its gateway has taken."""
    unplanned: Mapping[str, str] = field(default_factory=dict)
    """Site → why it has no new plan."""
    registry: AgentRegistry | None = None
    """Who is there; none where nobody listens to cards."""

    def agents(self, *, online: bool | None, takes: str | None, limit: int) -> list[dict[str, Any]]:
        """Agents that fit, by address: version, requests, whether they are there, when they were last heard."""
        found = [] if self.registry is None else self.registry.agents(online=online, takes=takes)
        return [
            {
                "agent": str(one.address), "name": one.name, "version": one.version, "session": one.session,
                "requests": list(one.requests), "online": one.online, "last_seen_ns": one.last_seen_ns,
            }
            for one in found[:limit]
        ]  # fmt: skip

    def site_ids(self) -> list[str]:
        """Every site that was announced, has data or may trade."""
        traders = (one.id for area in self.markets.areas.values() for one in area.config.participants)
        return sorted({*self.announcements, *self.live.sites, *traders})

    def site(self, site_id: str) -> dict[str, Any]:
        """A site as it stands in the list: how it is, what is wrong, what flows."""
        live, health = self.live.sites.get(site_id), self.health.get(site_id)
        state, problem = self.state_of(site_id)
        return {
            "id": site_id,
            "state": state,
            "problem": problem,
            "online": site_id in self.online,
            "time_ns": None if live is None or not live.time_ns else live.time_ns,
            "flows": {} if live is None else live.flows,
            "plan_source": None if health is None else health.plan_source,
        }

    def state_of(self, site_id: str) -> tuple[str, str | None]:
        """How a site is (see :class:`wattmesh_cloud.api.models.SiteState`) and why, the worst first."""
        standing = self.alarms.of(site_id)
        if standing and standing[0].alarm.severity is Severity.CRITICAL:
            return "alarm", standing[0].alarm.text
        now, live = self.clock.utc_ns(), self.live.sites.get(site_id)
        if site_id not in self.online:
            since = self.away_since_ns.get(site_id)
            return "away", "never seen" if site_id not in self.announcements else (
                f"away for {_span(now - since)}" if since is not None else "away"
            )
        if live is None or not live.time_ns:
            return "stale", "no reading yet"
        if now - live.time_ns > STALE_NS:
            return "stale", f"no reading for {_span(now - live.time_ns)}"
        if standing and standing[0].alarm.severity is Severity.WARNING:
            return "warning", standing[0].alarm.text
        return "ok", None

    def detail(self, site_id: str) -> dict[str, Any]:
        """All of a site: what it is, its assets with their newest values, its gateway's health."""
        announced = self.announcements.get(site_id) or {}
        live, health = self.live.sites.get(site_id), self.health.get(site_id)
        points: dict[str, dict[str, float | None]] = {}
        for name, value in (live.points if live is not None else {}).items():
            asset, _, point = name.partition(".")
            points.setdefault(asset, {})[point] = value
        known = [dict(asset) for asset in announced.get("assets", ())]
        names = {asset["id"] for asset in known}
        known += [
            {"id": asset, "kind": "unknown", "template": "", "rated_power_w": None, "rated_energy_wh": None}
            for asset in sorted(points.keys() - names)
        ]
        return {
            **self.site(site_id),
            **{
                name: announced.get(name)
                for name in (
                    "time_zone", "import_limit_w", "export_limit_w", "frequency_response", "software", "started_ns",
                    "market_area",
                )
            },
            "agents": list(announced.get("agents", ())),
            "assets": [{**asset, "points": points.get(asset["id"], {})} for asset in known],
            "health": message_to_json(health) if health is not None else None,
        }  # fmt: skip

    def recent(self, site_id: str) -> list[dict[str, Any]]:
        """Power flows of the last batches, oldest first."""
        live = self.live.sites.get(site_id)
        return [] if live is None else [{"time_ns": time, **flows} for time, flows in list(live.recent)]

    def series(self, site_id: str, columns: list[str], start_ns: int, end_ns: int, step_s: int | None) -> list[Series]:
        """Stored samples."""
        return self.store.samples(site_id, columns, start_ns, end_ns, step_s=step_s)

    def items(self, table: Table, partition: str, limit: int) -> list[Item]:
        """The newest rows of a partition, newest first."""
        return self.store.query(table, partition, 0, _FOR_EVER, limit=limit, newest_first=True)

    def on_presence(self, site_id: str, announcement: Mapping[str, Any] | None) -> None:
        """A gateway has come (with its announcement) or gone."""
        if announcement is None:
            if site_id in self.online:
                self.away_since_ns[site_id] = self.clock.utc_ns()
            self.online.discard(site_id)
            return
        self.away_since_ns.pop(site_id, None)
        self.online.add(site_id)
        self.announcements[site_id] = announcement


def _span(nanoseconds: int) -> str:
    seconds = max(0, nanoseconds) // NS_PER_S
    for length, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {name}"
    return f"{seconds} s"
