"""The producer agent's cloud side: reserve and trading of one site."""

from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.producer.guardrails import guardrail
from wattmesh_cloud.agents.producer.policy import policy
from wattmesh_cloud.agents.producer.tools import TOOLS
from wattmesh_cloud.agents.situations import SiteSituation

AGENT = AgentDefinition(
    name="producer",
    folder="producer",
    situation=SiteSituation,
    policy=policy,
    guardrail=guardrail,
    may=frozenset({"set_reserve", "set_trading", "raise_alarm"}),
    tools=TOOLS,
    consults=frozenset({"forecasting"}),
)
