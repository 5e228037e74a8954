"""What every message travels in, and who talks to whom."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import Message

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """An agent: ``org/unit/agent`` as the A2A-over-MQTT profile names it.

    Sites are units (``demo/home-1/gateway``); the cloud's agents share the unit ``cloud`` (``demo/cloud/market``).
    """

    org: str
    unit: str
    agent: str

    def __post_init__(self) -> None:
        """Refuse what the profile does not allow as an identifier."""
        for part in (self.org, self.unit, self.agent):
            if not _ID.match(part):
                raise InvalidMessageError(f"{part!r} is no agent identifier (letters, digits, _ . -, 1 to 64)")

    def __str__(self) -> str:
        return f"{self.org}/{self.unit}/{self.agent}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address written as ``org/unit/agent``; raises :class:`InvalidMessageError`."""
        parts = text.split("/")
        if len(parts) != 3:
            raise InvalidMessageError(f"{text!r} is no address (org/unit/agent)")
        return cls(*parts)


CLOUD_UNIT = "cloud"
GATEWAY_AGENT = "gateway"
"""Every site's messages go to its gateway, which hands them to its agents."""
STATS_AGENT = "stats"
"""Of every unit: tells its messaging's figures and takes nothing else, so that people who look need no other inbox."""
OPERATOR_UNIT = "operator"
"""People's certificates bear this name; the broker's access list lets them read all and ask for figures."""
INGEST_AGENT = "ingest"
MARKET_AGENT = "market-supervisor"
FORECAST_AGENT = "forecasting"
GRID_AGENT = "grid-optimisation"
PRODUCER_AGENT = "producer"
CONSUMER_AGENT = "consumer"


class TaskState(StrEnum):
    """How far a request has come, in A2A's words; stands on every answer."""

    SUBMITTED = "TASK_STATE_SUBMITTED"
    """Received and valid, and held (too early still): the first acknowledgement. A final answer follows."""
    COMPLETED = "TASK_STATE_COMPLETED"
    """It took effect, once."""
    FAILED = "TASK_STATE_FAILED"
    """The receiver failed while it handled it; it is not handled again."""
    CANCELED = "TASK_STATE_CANCELED"
    """Revoked before it took effect."""
    REJECTED = "TASK_STATE_REJECTED"
    """Refused; it had no effect."""

    @property
    def final(self) -> bool:
        """Whether no other answer follows."""
        return self is not TaskState.SUBMITTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message and its attributes, named as in CloudEvents 1.0 where it has them."""

    id: str
    """Unique; the key by which a receiver recognises a repetition. A retry keeps it."""
    source: Address
    type: str
    """Name in :data:`wattmesh_a2a.messages.MESSAGE_TYPES`."""
    time_ns: int
    """UTC at which it was issued."""
    session: str
    """Of the sender; new at each of its starts."""
    sequence: int
    """Counts, from 1 within a session: a source's events, or its messages to one destination. A gap means loss."""
    expires_ns: int
    """UTC from which on the message must not have an effect any more."""
    data: Message
    not_before_ns: int = 0
    """UTC before which it must not have an effect."""
    correlation_id: str | None = None
    """Id of the message this one answers."""
    traceparent: str | None = None
    """W3C trace context."""
    destination: Address | None = None
    """Whom a request or an answer is for, so that it cannot be turned to another; none for events."""
    state: TaskState | None = None
    """On answers: how far the request has come."""
    signed: bool = False
    """Set by the receiver when a valid signature of ``source`` was found; never on the wire."""
