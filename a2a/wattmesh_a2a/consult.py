"""One agent asks another for what it knows: words and figures, never an action."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConsult:
    """A question of one agent to another about a subject; answered by :class:`AgentAdvice`."""

    conversation: str
    """What it belongs to; the same in every question that follows from it."""
    subject: str
    """A site, a market area, or ``fleet``."""
    question: str
    deadline_ns: int
    """UTC by which the asker needs the answer; an agent that asks on passes an earlier one down."""
    budget_tokens: int = 0
    """What a language model of the answerer may use; 0 for an answer by the policy alone."""
    depth: int = 1
    """1 for a first question, one more for each that follows from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAdvice:
    """What an agent knows about a subject; an opinion, which nobody has to follow."""

    conversation: str
    agent: str
    subject: str
    text: str
    source: str
    """``policy`` or ``model``."""
    citations: tuple[str, ...] = ()
    """Ids of the records that it rests on."""
    spent_tokens: int = 0
