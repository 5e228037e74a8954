"""The forecasting agent: watches the models and their readings, retrains, warns."""

from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.forecasting.guardrails import guardrail
from wattmesh_cloud.agents.forecasting.policy import policy
from wattmesh_cloud.agents.forecasting.tools import TOOLS
from wattmesh_cloud.agents.situations import ForecastSituation

AGENT = AgentDefinition(
    name="forecasting",
    folder="forecasting",
    situation=ForecastSituation,
    policy=policy,
    guardrail=guardrail,
    may=frozenset({"retrain", "choose_model", "raise_alarm"}),
    tools=TOOLS,
)
