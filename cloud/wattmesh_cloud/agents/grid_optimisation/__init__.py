"""The grid optimisation agent: demand response, the grid's status, early warnings."""

from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.grid_optimisation.guardrails import guardrail
from wattmesh_cloud.agents.grid_optimisation.policy import policy
from wattmesh_cloud.agents.grid_optimisation.tools import TOOLS
from wattmesh_cloud.agents.situations import GridSituation

AGENT = AgentDefinition(
    name="grid-optimisation",
    folder="grid_optimisation",
    situation=GridSituation,
    policy=policy,
    guardrail=guardrail,
    may=frozenset({"call_response", "cancel_response", "declare_status", "raise_alarm"}),
    tools=TOOLS,
    consults=frozenset({"forecasting"}),
)
