"""The market supervisor: watches one market area, halts and resumes it, asks the other agents."""

from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.market_supervisor.guardrails import guardrail
from wattmesh_cloud.agents.market_supervisor.policy import policy
from wattmesh_cloud.agents.market_supervisor.tools import TOOLS
from wattmesh_cloud.agents.situations import MarketSituation

AGENT = AgentDefinition(
    name="market-supervisor",
    folder="market_supervisor",
    situation=MarketSituation,
    policy=policy,
    guardrail=guardrail,
    may=frozenset({"halt_market", "resume_market", "suspend_participant", "reinstate_participant", "raise_alarm"}),
    tools=TOOLS,
    consults=frozenset({"forecasting", "producer", "consumer", "grid-optimisation"}),
)
