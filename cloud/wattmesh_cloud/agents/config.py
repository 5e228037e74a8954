"""The agents' section of the cloud's file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel

from wattmesh_cloud.agents.controls import BudgetLimits
from wattmesh_cloud.agents.guards import APPROVED_BY_A_PERSON


class ModelConfig(StrictModel):
    """A language model that may refine the policies; needs the extra ``bedrock``."""

    provider: Literal["bedrock", "agentcore", "openai", "ollama"] = "bedrock"
    """``openai`` is any server with that interface; ``agentcore`` the five runtimes on AgentCore."""
    runtimes: dict[str, str] = Field(default_factory=dict, description="agent: ARN of its runtime, for agentcore")
    id: str = Field(default="global.anthropic.claude-sonnet-4-6", min_length=1, max_length=200)
    region: str | None = None
    url: str | None = Field(default=None, description="another endpoint than the provider's own")
    key_file: str | None = Field(default=None, description="file with the API key, for openai")
    options: dict[str, Any] = Field(default_factory=dict, description="for the Strands model, as they are")
    deadline_s: float = Field(default=20.0, gt=0, le=300)
    tool_calls: int = Field(default=8, ge=1, le=50, description="of one answer")
    answer_tokens: int = Field(default=1000, ge=100, le=20_000, description="written in one turn")
    tokens: int = Field(default=20_000, ge=500, le=200_000, description="read and written for one decision")
    tokens_a_day: int = Field(default=400_000, ge=0, description="of each agent")
    calls_a_day: int = Field(default=500, ge=0)
    cost_a_day: float = Field(default=5.0, ge=0, description="in the currency of the prices, of each agent")
    input_price: float = Field(default=3.0, ge=0, description="a million tokens read")
    output_price: float = Field(default=15.0, ge=0, description="a million tokens written")

    def limits(self) -> BudgetLimits:
        """A day's budget."""
        return BudgetLimits(tokens=self.tokens_a_day, cost=self.cost_a_day, calls=self.calls_a_day)


class AgentsConfig(StrictModel):
    """How the cloud's agents work."""

    model: ModelConfig | None = None
    """None for policies alone."""
    memory_id: str | None = Field(
        default=None, description="an AgentCore memory that gets every decision and what came of it, too"
    )
    learning: bool = Field(default=True, description="learn strategy parameters inside their stated values")
    approval: tuple[str, ...] = Field(
        default=tuple(sorted(APPROVED_BY_A_PERSON)), description="kinds of proposals that wait for a person"
    )
    approval_s: int = Field(default=3600, ge=60, le=7 * 86_400, description="how long they wait")
    demand_response: bool = Field(
        default=True, description="the grid agent calls the day's event in the grid service's place"
    )
