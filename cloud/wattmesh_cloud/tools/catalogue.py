"""The five tool services as plain typed functions over the view: one implementation, later also MCP and Lambda.

Reads are bounded; the one action passes the market's own limits. Nothing here knows of a model.
"""

from __future__ import annotations

from typing import Any

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView

_ROWS = 1000


def _known(view: CloudView, site_id: str) -> str:
    if site_id not in view.site_ids():
        raise ConfigurationError(f"there is no site {site_id!r}")
    return site_id


def weather_forecast(view: CloudView, site_id: str) -> dict[str, Any]:
    """weather-forecast: what the site is expected to produce, as quantiles a slot (no weather provider yet)."""
    forecast = view.forecasting.latest.get(_known(view, site_id), {}).get("pv_wh")
    if forecast is None:
        return {"site": site_id, "available": False}
    return {"site": site_id, "available": True, "start_ns": forecast.start_ns, "values": forecast.values}


def historical_data(view: CloudView, site_id: str, limit: int = 96) -> list[dict[str, Any]]:
    """historical-data: metered energy a slot, newest first."""
    items = view.items(Table.CONSUMER_METRICS, _known(view, site_id), _bounded(limit))
    return [dict(item.data) for item in items]


def trading_api(view: CloudView, limit: int = 96) -> dict[str, Any]:
    """trading-api: the area's figures and its last clearings."""
    items = view.items(Table.MARKET_DATA, f"{view.market.config.area}#slots", _bounded(limit))
    return {"market": view.market.snapshot(), "slots": [{"slot_ns": item.time_ns, **item.data} for item in items]}


def grid_management(view: CloudView) -> dict[str, Any]:
    """grid-management: frequency, status and demand response."""
    return view.grid.snapshot()


async def energy_trading_actions(
    view: CloudView, action: str, reason: str, role: str, participant: str = ""
) -> dict[str, Any]:
    """energy-trading-actions: ``halt`` or ``resume`` the area, ``suspend`` or ``reinstate`` a participant; for operators alone."""
    if role != "operator":
        raise ConfigurationError(f"{role!r} may not {action} the market; an operator may")
    if action == "halt":
        await view.market.halt(reason)
    elif action == "resume":
        await view.market.resume()
    elif action == "suspend":
        await view.market.suspend(_known(view, participant), reason)
    elif action == "reinstate":
        await view.market.reinstate(_known(view, participant))
    else:
        raise ConfigurationError(f"unknown action {action!r}; there are: halt, resume, suspend, reinstate")
    return {"halted": view.market.engine.halted, "suspended": dict(view.market.engine.risk.suspended)}


def _bounded(limit: int) -> int:
    if not 1 <= limit <= _ROWS:
        raise ConfigurationError(f"limit {limit} is outside 1 to {_ROWS}")
    return limit
