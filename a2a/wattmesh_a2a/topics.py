"""Topics of the A2A-over-MQTT profile (v0.1), with the prefix as a setting, and our telemetry topic.

On AWS IoT Core nobody may create topics that begin with ``$`` (hence ``a2a/v1`` instead of the profile's ``$a2a/v1``),
a topic has at most 7 slashes and 256 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import InvalidMessageError

MAX_SLASHES = 7
MAX_TOPIC_BYTES = 256
BASIC_INGEST = "$aws/rules/"
"""What a topic begins with that goes to one rule and not through AWS IoT Core's broker."""
MAX_PAYLOAD_BYTES = 100_000
"""Of one publish: under every limit we know of (AWS IoT Core: 128 KB). What is larger travels in parts."""
MAX_MESSAGE_BYTES = 2_000_000
"""Of a message put together from its parts."""


def checked(topic: str) -> str:
    """``topic`` itself if it is legal on every broker we support; raises :class:`InvalidMessageError`."""
    if topic.count("/") > MAX_SLASHES or len(topic.encode()) > MAX_TOPIC_BYTES:
        raise InvalidMessageError(f"topic {topic!r} has more than {MAX_SLASHES} slashes or {MAX_TOPIC_BYTES} bytes")
    return topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """All topics under one prefix."""

    prefix: str = "a2a/v1"
    telemetry_prefix: str = "wattmesh/v1"
    telemetry_rule: str | None = None
    """The rule of AWS IoT Core that a gateway's batches go to without passing the broker (Basic Ingest)."""

    def discovery(self, agent: Address) -> str:
        """Retained agent card; also where the will says that the agent is gone."""
        return checked(f"{self.prefix}/discovery/{agent}")

    def request(self, agent: Address) -> str:
        """Where ``agent`` takes requests."""
        return checked(f"{self.prefix}/request/{agent}")

    def pool(self, org: str, unit: str, pool: str) -> str:
        """Where any one member of a pool takes a request."""
        return checked(f"{self.prefix}/request/{Address(org, unit, pool).org}/{unit}/pool/{pool}")

    def shared_pool(self, org: str, unit: str, pool: str) -> str:
        """The filter by which a pool's members share its requests; ``$share/GROUP/`` is no part of the topic."""
        return f"$share/{pool}/{self.pool(org, unit, pool)}"

    def event(self, agent: Address) -> str:
        """Where ``agent`` publishes events."""
        return checked(f"{self.prefix}/event/{agent}")

    def reply(self, agent: Address, suffix: str) -> str:
        """Where ``agent`` takes the answers to its requests."""
        return checked(f"{self.prefix}/reply/{agent}/{suffix}")

    def telemetry(self, org: str, site_id: str, stream: str) -> str:
        """Where a gateway publishes its batches. Basic Ingest's ``$aws/rules/RULE/`` counts as no level of the topic."""
        topic = checked(f"{self.telemetry_prefix}/telemetry/{org}/{site_id}/{stream}")
        return topic if self.telemetry_rule is None else f"{BASIC_INGEST}{self.telemetry_rule}/{topic}"

    def parse_telemetry(self, topic: str) -> tuple[str, str, str]:
        """Org, site and stream of a telemetry topic; raises :class:`InvalidMessageError`."""
        if topic.startswith(BASIC_INGEST):
            topic = topic.removeprefix(BASIC_INGEST).partition("/")[2]
        head = f"{self.telemetry_prefix}/telemetry/"
        parts = topic.removeprefix(head).split("/")
        if not topic.startswith(head) or len(parts) != 3:
            raise InvalidMessageError(f"{topic!r} is no telemetry topic")
        return parts[0], parts[1], parts[2]
