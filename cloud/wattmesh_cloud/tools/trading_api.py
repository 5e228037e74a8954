"""trading-api: the market as everybody may see it."""

from __future__ import annotations

from typing import Any

from wattmesh_cloud.store.base import Table
from wattmesh_cloud.tools.base import Caller, Context, Limit, Nanoseconds, rows


def cleared_slots(
    context: Context, caller: Caller, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 96
) -> list[dict[str, Any]]:
    """Prices and volumes of the area's cleared slots, newest first."""
    return rows(context, Table.MARKET_DATA, f"{context.area}#slots", start_ns, end_ns, limit)


def trades(
    context: Context, caller: Caller, start_ns: Nanoseconds, end_ns: Nanoseconds, limit: Limit = 100
) -> list[dict[str, Any]]:
    """The area's trades, newest first; of callers with sites of their own, only those they are part of."""
    found = rows(context, Table.TRADE_DATA, f"{context.area}#trades", start_ns, end_ns, limit)
    if caller.sites is None:
        return found
    return [row for row in found if caller.sites & {str(value) for value in row.values()}]
