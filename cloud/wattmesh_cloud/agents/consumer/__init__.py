"""The consumer agent's cloud side: the import peaks of one site."""

from wattmesh_cloud.agents.consumer.guardrails import guardrail
from wattmesh_cloud.agents.consumer.policy import policy
from wattmesh_cloud.agents.consumer.tools import TOOLS
from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.situations import SiteSituation

AGENT = AgentDefinition(
    name="consumer",
    folder="consumer",
    situation=SiteSituation,
    policy=policy,
    guardrail=guardrail,
    may=frozenset({"set_peak_limit", "raise_alarm"}),
    tools=TOOLS,
    consults=frozenset({"forecasting"}),
)
