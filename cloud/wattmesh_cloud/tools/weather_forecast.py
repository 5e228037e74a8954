"""weather-forecast: what the sky is expected to do at a site, and what its plant makes of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from wattmesh_cloud.store.base import Table
from wattmesh_cloud.tools.base import Caller, Context, Limit, SiteId

_FOR_EVER = 2**62
_HOUR_NS = 3600 * 1_000_000_000
_LOOK_BACK_NS = 7 * 86_400 * 1_000_000_000

Quantity = Annotated[Literal["pv_wh", "load_wh"], Field(description="Production or demand, watt-hours a slot")]


def energy_forecast(context: Context, caller: Caller, site_id: SiteId, quantity: Quantity) -> dict[str, Any]:
    """The newest forecast of a site's production or demand, as quantiles a slot of 15 min."""
    start = max(0, context.clock.utc_ns() - _LOOK_BACK_NS)
    found = context.store.query(Table.FORECAST_DATA, site_id, start, _FOR_EVER, limit=200, newest_first=True)
    newest = next((item for item in found if item.id == quantity), None)
    if newest is None:
        return {"site_id": site_id, "quantity": quantity, "available": False}
    return {**newest.data, "site_id": site_id, "quantity": quantity, "available": True, "issued_ns": newest.time_ns}


def weather(context: Context, caller: Caller, site_id: SiteId, limit: Limit = 48) -> list[dict[str, Any]]:
    """Expected weather of a site from the running hour on: irradiance, cloud, wind, temperature, humidity, source, issue time."""
    now = context.clock.utc_ns()
    first = now - now % _HOUR_NS
    found = context.store.query(Table.FORECAST_DATA, f"{site_id}#weather", first, _FOR_EVER, limit=limit)
    return [{"time_ns": item.time_ns, **item.data} for item in found]
