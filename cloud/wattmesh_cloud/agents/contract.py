"""Two kinds of reasoners, one contract: a situation in, proposals with a rationale out.

The policy is a function of the situation and always there. A model may refine its answer until a deadline; whatever becomes of that
has one of the names below, stands in the trace, and changes nothing of what the policy has done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.proposals import Proposal
from wattmesh_cloud.agents.situations import Situation


class ModelOutcome(StrEnum):
    """What became of asking a model."""

    ABSENT = "absent"
    """No model is configured."""
    SWITCHED_OFF = "switched_off"
    """The kill switch is thrown."""
    OVER_BUDGET = "over_budget"
    BUSY = "busy"
    """As many are asked already as may be."""
    REFINED = "refined"
    """It made proposals; the guards have the word."""
    AGREED = "agreed"
    """It answered and proposed nothing else."""
    EMPTY = "empty"
    """An answer without any content."""
    LATE = "late"
    """Not back by the deadline, or the world had moved on."""
    THROTTLED = "throttled"
    BROKEN_STREAM = "broken_stream"
    """The answer ended in the middle, or its frames did not check."""
    MALFORMED = "malformed"
    """Unknown tools, or calls that are no calls."""
    TOOL_LOOP = "tool_loop"
    """More tool calls than one answer may take."""
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    """The model or its provider's filter would not answer."""
    RETIRED_MODEL = "retired_model"
    """The model's id is unknown or past its end of life."""
    CREDENTIALS = "credentials"
    """Missing, expired or without the right."""
    UNAVAILABLE = "unavailable"
    """The provider does not answer."""
    FAILED = "failed"
    """Anything else; its type stands in the detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a model is asked."""

    id: str
    """Of the decision."""
    agent: AgentDefinition
    situation: Situation
    proposed: tuple[Proposal, ...]
    """What the policy wants."""
    deadline_s: float
    """Real seconds from now."""
    tokens: int
    """The most it may use."""
    remembered: tuple[Mapping[str, Any], ...] = ()
    """Earlier decisions about the subject with what came of them."""
    question: str | None = None
    """An operator's words; then the answer is text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What a model gave."""

    outcome: ModelOutcome
    detail: str = ""
    proposals: tuple[object, ...] = ()
    """As it said them: not checked yet."""
    text: str = ""
    tools: tuple[str, ...] = ()
    """Names of the tools that it called, in order."""
    cited: tuple[str, ...] = ()
    """Ids of records that its tools gave it."""
    input_tokens: int = 0
    output_tokens: int = 0


class Reasoner(Protocol):
    """A model behind the contract."""

    name: str
    """Provider and model id."""

    async def refine(self, task: Task) -> Refinement:
        """Never raises for what a provider or model does wrong: each has its :class:`ModelOutcome`."""
        ...

    async def close(self) -> None:
        """Release threads and connections."""
        ...


@dataclass(slots=True, kw_only=True)
class Entry:
    """One proposal on its way."""

    proposal: Mapping[str, Any]
    origin: str
    outcome: str
    """``done``, ``stopped``, ``waiting``, ``failed``."""
    guard: str | None = None
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class Record:
    """A decision as it is kept: what was known, what was wanted by whom, what stopped it, what was done."""

    id: str
    time_ns: int
    agent: str
    subject: str
    session: str
    situation: Mapping[str, Any]
    entries: list[Entry] = field(default_factory=list)
    model: str = ModelOutcome.ABSENT
    model_detail: str = ""
    tools: tuple[str, ...] = ()
    tokens: int = 0
    policy_ms: float = 0.0
    revision: int = 0
    """How often it was added to since it was made: 1 with what became of the model."""

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        row = {name: getattr(self, name) for name in self.__slots__ if name != "entries"}
        row["entries"] = [{name: getattr(one, name) for name in one.__slots__} for one in self.entries]
        return row


_LONG = 8


def summary(value: Any) -> Any:
    """A situation's plain values with long rows shortened to what a reader needs."""
    if isinstance(value, dict):
        return {key: summary(one) for key, one in value.items()}
    if isinstance(value, list):
        if len(value) <= _LONG:
            return [summary(one) for one in value]
        if type(value[0]) in (int, float):
            return {
                "count": len(value),
                "least": min(value),
                "most": max(value),
                "mean": round(sum(value) / len(value), 1),
                "last": value[-1],
            }
        return [*map(summary, value[:_LONG]), f"and {len(value) - _LONG} more"]
    return value
