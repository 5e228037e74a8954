"""Agent cards as A2A 1.0 names them, and the registry that is made of them: who is there, which version, what they take.

A card is retained by the broker; a will says when its agent is gone. Cards are looked at for discovery and by people: nothing that
moves power depends on what one claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messenger import Messenger

EXTENSION = "urn:wattmesh:a2a:energy:v1"
"""Our profile on top of A2A: signed commands with validity windows, the vocabulary in ``docs/messages``."""
BINDING = "urn:wattmesh:a2a:mqtt:v1"
_AGENTS_AT_MOST = 5000
_TEXT_AT_MOST, _LIST_AT_MOST = 200, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCard:
    """What an agent says of itself."""

    address: Address
    name: str
    version: str
    session: str
    """New at each of its starts."""
    requests: tuple[str, ...]
    """Types of the requests that it takes."""
    online: bool
    last_seen_ns: int
    """UTC at which its card, its will or a message of it came."""


def standard_card(address: Address, requests: Sequence[str], version: str) -> dict[str, object]:
    """The fields of an A2A card that every agent of ours has."""
    return {
        "name": str(address),
        "description": f"{address.agent} of {address.unit}",
        "version": version,
        "supportedInterfaces": [{"url": f"mqtt:{address}", "protocolBinding": BINDING, "protocolVersion": "1.0"}],
        "capabilities": {
            "extensions": [{"uri": EXTENSION, "required": True, "params": {"requests": sorted(requests)}}]
        },
        "defaultInputModes": ["application/json"],
        "defaultOutputModes": ["application/json"],
        "skills": [
            {"id": name, "name": name, "description": f"docs/messages/{name}.schema.json", "tags": ["wattmesh"]}
            for name in sorted(requests)
        ],
    }


def parse_card(address: Address, card: Mapping[str, Any], now_ns: int) -> AgentCard:
    """The card of another, read with care: what is missing or strange is empty, never an error."""
    extensions = _dict(card.get("capabilities")).get("extensions")
    requests: list[str] = []
    for one in extensions[:_LIST_AT_MOST] if isinstance(extensions, list) else ():
        found = _dict(_dict(one).get("params")).get("requests")
        if _dict(one).get("uri") == EXTENSION and isinstance(found, list):
            requests = [text for text in map(_text, found[:_LIST_AT_MOST]) if text]
    return AgentCard(
        address=address,
        name=_text(card.get("name")) or str(address),
        version=_text(card.get("version")),
        session=_text(card.get("session")),
        requests=tuple(requests),
        online=True,
        last_seen_ns=now_ns,
    )


class AgentRegistry:
    """All agents whose cards came, bounded; who is gone stays known as such.

    Args:
        messenger: Brings the cards; its :meth:`start` comes after this.
        clock: Of ``last_seen_ns``.
    """

    def __init__(self, messenger: Messenger, clock: Clock) -> None:
        self._clock = clock
        self._agents: dict[Address, AgentCard] = {}
        messenger.on_presence(self._heard)

    def _heard(self, address: Address, card: Mapping[str, object] | None) -> None:
        now = self._clock.utc_ns()
        if card is not None:
            self._agents.pop(address, None)
            self._agents[address] = parse_card(address, card, now)
        elif address in self._agents:
            session = self._agents[address].session
            for other, one in self._agents.items():
                # Agents of one process share its session, and the broker tells the will of one of them alone.
                if other == address or (session and one.session == session):
                    self._agents[other] = replace(one, online=False, last_seen_ns=now)
        while len(self._agents) > _AGENTS_AT_MOST:
            gone = next((one for one, entry in self._agents.items() if not entry.online), next(iter(self._agents)))
            del self._agents[gone]

    def seen(self, address: Address) -> None:
        """A message of an agent came."""
        found = self._agents.get(address)
        if found is not None:
            self._agents[address] = replace(found, last_seen_ns=self._clock.utc_ns())

    def get(self, address: Address) -> AgentCard | None:
        """An agent's newest card, or none."""
        return self._agents.get(address)

    def agents(self, *, online: bool | None = None, takes: str | None = None) -> list[AgentCard]:
        """All that fit, by address."""
        return sorted(
            (
                one
                for one in self._agents.values()
                if (online is None or one.online == online) and (takes is None or takes in one.requests)
            ),
            key=lambda one: str(one.address),
        )


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value[:_TEXT_AT_MOST] if isinstance(value, str) and value.isprintable() else ""
