"""grid-management: frequency events, the grid's status, alarms, demand response."""

from __future__ import annotations

from typing import Any

from wattmesh_cloud.store.base import Table
from wattmesh_cloud.tools.base import Caller, Context, Limit, Nanoseconds, SiteId, rows


def grid_status(
    context: Context, caller: Caller, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 50
) -> list[dict[str, Any]]:
    """Changes of the grid's status with their reasons, newest first."""
    return rows(context, Table.GRID_METRICS, "fleet#grid", start_ns, end_ns, limit)


def demand_response(
    context: Context, caller: Caller, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 50
) -> list[dict[str, Any]]:
    """Demand-response events: asked, offered, dispatched, measured; newest first."""
    return rows(context, Table.GRID_METRICS, "fleet#demand-response", start_ns, end_ns, limit)


def frequency_events(
    context: Context, caller: Caller, site_id: SiteId, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 50
) -> list[dict[str, Any]]:
    """What a site's reflex saw of the grid and did about it, newest first."""
    return rows(context, Table.GRID_METRICS, f"{site_id}#frequency", start_ns, end_ns, limit)


def alarms(
    context: Context, caller: Caller, site_id: SiteId, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 50
) -> list[dict[str, Any]]:
    """A site's alarms, newest first."""
    return rows(context, Table.GRID_METRICS, f"{site_id}#alarms", start_ns, end_ns, limit)
