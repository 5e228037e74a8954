"""The five tool services with all their tools: one implementation; in process here, by MCP and as Lambda functions beside.

Reads are bounded in rows and time; the actions pass the market's own limits. Nothing here knows of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wattmesh_a2a.codec import message_to_json
from wattmesh_a2a.market import Order
from wattmesh_a2a.messages import OrderBatchResult

from wattmesh_cloud.store.base import JsonValue
from wattmesh_cloud.tools import (
    energy_trading_actions,
    grid_management,
    historical_data,
    trading_api,
    weather_forecast,
)
from wattmesh_cloud.tools.base import OPERATOR, READER, TRADER, Tool

if TYPE_CHECKING:
    from wattmesh_cloud.market.areas import (
        Markets,  # its kernel is compiled: not where only the tools' names are needed
    )

_READERS = frozenset({READER, OPERATOR, TRADER})


def _tools(service: str, *functions: Callable[..., Any]) -> list[Tool]:
    return [
        Tool(name=function.__name__.replace("_", "-"), service=service, function=function, roles=_READERS)
        for function in functions
    ]


def _action(function: Callable[..., Any], *roles: str) -> Tool:
    name = function.__name__.replace("_", "-")
    return Tool(name=name, service="energy-trading-actions", function=function, roles=frozenset(roles), action=True)


CATALOGUE: tuple[Tool, ...] = (
    *_tools("weather-forecast", weather_forecast.energy_forecast, weather_forecast.weather),
    *_tools(
        "historical-data",
        historical_data.metered_energy,
        historical_data.samples,
        historical_data.decisions,
        historical_data.settlements,
    ),
    *_tools("trading-api", trading_api.cleared_slots, trading_api.trades),
    *_tools(
        "grid-management",
        grid_management.grid_status,
        grid_management.demand_response,
        grid_management.frequency_events,
        grid_management.alarms,
    ),
    _action(energy_trading_actions.halt_market, OPERATOR),
    _action(energy_trading_actions.resume_market, OPERATOR),
    _action(energy_trading_actions.suspend_participant, OPERATOR),
    _action(energy_trading_actions.reinstate_participant, OPERATOR),
    _action(energy_trading_actions.submit_orders, TRADER),
)

SERVICES = tuple(dict.fromkeys(tool.service for tool in CATALOGUE))


def tool(name: str) -> Tool | None:
    """A tool by its name; a gateway's prefix (``service___name``, ``service__name``) is taken off."""
    short = name.rsplit("__", 1)[-1].lstrip("_")
    return next((one for one in CATALOGUE if one.name == short), None)


class MarketActions:
    """The actions over the markets in this process; see :class:`wattmesh_cloud.tools.base.ActionPort`.

    A halt is of every area; a participant's actions reach the area in which it trades.
    """

    def __init__(self, markets: Markets) -> None:
        self._markets = markets

    async def halt(self, reason: str) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        for market in self._markets.areas.values():
            await market.halt(reason)
        return {"halted": self._markets.first.engine.halted}

    async def resume(self) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        for market in self._markets.areas.values():
            await market.resume()
        return {"halted": self._markets.first.engine.halted}

    async def suspend(self, site_id: str, reason: str) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        return {"suspended": site_id, "withdrawn_orders": await self._markets.suspend(site_id, reason)}

    async def reinstate(self, site_id: str) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        await self._markets.reinstate(site_id)
        return {"reinstated": site_id}

    async def order(self, site_id: str, slot_start_ns: int, orders: tuple[Order, ...]) -> list[dict[str, JsonValue]]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        area = self._markets.of_participant(site_id).config.area
        own = tuple(replace(order, area_id=area) for order in orders)
        results = await self._markets.submit(site_id, slot_start_ns, own)
        answer = message_to_json(OrderBatchResult(slot_start_ns=slot_start_ns, results=tuple(results)))
        return list(answer["results"])
