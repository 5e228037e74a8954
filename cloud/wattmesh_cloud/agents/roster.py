"""The five agents by name."""

from __future__ import annotations

from wattmesh_cloud.agents import consumer, forecasting, grid_optimisation, market_supervisor, producer
from wattmesh_cloud.agents.definition import AgentDefinition

ROSTER: dict[str, AgentDefinition] = {
    one.AGENT.name: one.AGENT for one in (forecasting, producer, consumer, market_supervisor, grid_optimisation)
}
