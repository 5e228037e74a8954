"""What API, console and tools may see: one read-only object over the running services and the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_a2a.cards import AgentRegistry
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.codec import message_to_json
from wattmesh_a2a.messages import GatewayStatus

from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.service import MarketService
from wattmesh_cloud.store.base import Item, Series, Store, Table

_FOR_EVER = 2**62


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
    announcements: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Site → its announcement, from the retained cards."""
    online: set[str] = field(default_factory=set)
    health: dict[str, GatewayStatus] = field(default_factory=dict)
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
        """One site: what it is, how it is, what it does now."""
        live = self.live.sites.get(site_id)
        health = self.health.get(site_id)
        return {
            "id": site_id,
            "online": site_id in self.online,
            "announcement": self.announcements.get(site_id),
            "health": message_to_json(health) if health is not None else None,
            "live": None if live is None else {"time_ns": live.time_ns, "flows": live.flows, "points": live.points},
        }

    def recent(self, site_id: str) -> list[dict[str, Any]]:
        """Power flows of the last batches, oldest first."""
        live = self.live.sites.get(site_id)
        return [] if live is None else [{"time_ns": time, **flows} for time, flows in live.recent]

    def series(self, site_id: str, columns: list[str], start_ns: int, end_ns: int, step_s: int | None) -> list[Series]:
        """Stored samples."""
        return self.store.samples(site_id, columns, start_ns, end_ns, step_s=step_s)

    def items(self, table: Table, partition: str, limit: int) -> list[Item]:
        """The newest rows of a partition, newest first."""
        return self.store.query(table, partition, 0, _FOR_EVER, limit=limit, newest_first=True)

    def overview(self) -> dict[str, Any]:
        """The fleet in one object, once a second for whoever looks."""
        return {
            "time_ns": self.clock.utc_ns(),
            "sites": {
                site: {
                    "online": site in self.online,
                    "flows": live.flows if (live := self.live.sites.get(site)) is not None else None,
                    "plan_source": health.plan_source if (health := self.health.get(site)) is not None else None,
                }
                for site in self.site_ids()
            },
            "grid": self.grid.snapshot(),
            "records": self.ingest.counts["records"],
        }
