"""historical-data: what was measured, metered, decided and settled."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field
from wattmesh_a2a.errors import InvalidMessageError

from wattmesh_cloud.store.base import Table
from wattmesh_cloud.tools.base import MOST_ROWS, Caller, Context, Limit, Nanoseconds, Point, SiteId, rows, window

_NS = 1_000_000_000


def metered_energy(
    context: Context, caller: Caller, site_id: SiteId, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 96
) -> list[dict[str, Any]]:
    """Import, export, production, battery and demand of a site in watt-hours a slot, newest first."""
    return rows(context, Table.CONSUMER_METRICS, site_id, start_ns, end_ns, limit)


def samples(
    context: Context,
    caller: Caller,
    site_id: SiteId,
    points: Annotated[list[Point], Field(min_length=1, max_length=20)],
    start_ns: Nanoseconds,
    end_ns: Nanoseconds,
    step_s: Annotated[int, Field(ge=1, le=86_400, description="Means of so many seconds")] = 900,
) -> list[dict[str, Any]]:
    """Means of a site's measured points; a step without a good value has no row. At most 1000 steps."""
    window(start_ns, end_ns)
    if (end_ns - start_ns) // (step_s * _NS) > MOST_ROWS:
        raise InvalidMessageError(f"more than {MOST_ROWS} steps; take a larger step_s or a shorter window")
    found = context.store.samples(site_id, points, start_ns, end_ns, step_s=step_s)
    return [
        {
            "point": one.column,
            "times_ns": list(one.times_ns),
            "values": [None if math.isnan(value) else value for value in one.values],
        }
        for one in found
    ]


def decisions(
    context: Context, caller: Caller, site_id: SiteId, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 100
) -> list[dict[str, Any]]:
    """What a site's arbiter decided and why, newest first."""
    return rows(context, Table.PRODUCER_METRICS, f"{site_id}#decisions", start_ns, end_ns, limit)


def settlements(
    context: Context, caller: Caller, site_id: SiteId, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 96
) -> list[dict[str, Any]]:
    """What a site paid and got, a slot, newest first."""
    return rows(context, Table.TRADE_DATA, f"{site_id}#settlements", start_ns, end_ns, limit)
