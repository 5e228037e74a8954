"""What an agent is: a folder with instructions, tools, a policy, guardrails, evaluation cases and a card, tied together here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from wattmesh_a2a.cards import standard_card
from wattmesh_a2a.envelope import Address

from wattmesh_cloud.agents.proposals import Proposal
from wattmesh_cloud.agents.situations import Situation

Policy = Callable[[Any], list[Proposal]]
"""The deterministic answer to a situation: no input or output, milliseconds, the same answer every time."""
Guardrail = Callable[[Proposal, Any], str | None]
"""Why a proposal is out of physical or risk limits in a situation; none where it is inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDefinition:
    """One of the five agents."""

    name: str
    """Its address' last part: ``market-supervisor``."""
    folder: str
    situation: type[Situation]
    policy: Policy
    guardrail: Guardrail
    may: frozenset[str]
    """Kinds of proposals that it may make."""
    tools: tuple[str, ...]
    """Read-only tools (:mod:`wattmesh_cloud.tools.catalogue`) that its model may call."""
    consults: frozenset[str] = frozenset()
    """Agents that it may ask."""

    def instructions(self) -> str:
        """What its model is told first."""
        return self._text("instructions.md")

    def cases_text(self) -> str:
        """Its evaluation cases, YAML."""
        return self._text("cases.yaml")

    def card(self, org: str, requests: Sequence[str], version: str) -> dict[str, object]:
        """Its A2A card: the standard fields, and what its folder says of its skills."""
        own = json.loads(self._text("card.json"))
        return {**standard_card(Address(org, "cloud", self.name), requests, version), **own}

    def _text(self, name: str) -> str:
        return (resources.files("wattmesh_cloud.agents") / self.folder / name).read_text(encoding="utf-8")
