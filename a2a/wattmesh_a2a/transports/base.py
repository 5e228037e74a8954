"""The contract of a transport: it carries bytes between topics and promises nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """What a transport cannot exceed; the delivery layer obeys (:mod:`wattmesh_a2a.lanes`, :mod:`wattmesh_a2a.parts`)."""

    max_payload_bytes: int = 100_000
    """Of one publish; a larger message travels in parts."""
    max_publishes_per_s: float | None = None
    max_bytes_per_s: float | None = None
    counts_inbound: bool = False
    """Whether what comes in counts against the two rates as well."""
    max_in_flight: int = 100
    """Unacknowledged QoS 1 publishes."""
    max_topic_slashes: int = 7
    max_topic_bytes: int = 256
    max_subscriptions: int = 50


MOSQUITTO = TransportLimits()
"""A broker of one's own: it has no rates, and the rest is kept anyway, so that a site can move to AWS unchanged."""
AWS_IOT_CORE = TransportLimits(max_publishes_per_s=100.0, max_bytes_per_s=512 * 1024.0, counts_inbound=True)
"""AWS IoT Core's quotas a connection (developer guide, "AWS IoT Core message broker and protocol limits and quotas")."""
GREENGRASS_LITE = TransportLimits(max_payload_bytes=7_000, max_publishes_per_s=50.0, max_in_flight=10)
"""The lite nucleus: past about 7.2 KB or 10 unacknowledged publishes its stream ends without a clear error (measured)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A message as it came in: nothing about it has been checked."""

    topic: str
    payload: bytes
    response_topic: str | None = None
    correlation_data: bytes | None = None
    retained: bool = False
    user_properties: tuple[tuple[str, str], ...] = field(default=())


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic fits a filter with ``+`` and ``#`` (MQTT 5, section 4.7)."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(given) or part not in {"+", given[index]}:
            return False
    return len(wanted) == len(given)


def unshared(topic_filter: str) -> str:
    """The filter inside a shared one (``$share/GROUP/FILTER``), or the filter itself."""
    return topic_filter.split("/", 2)[2] if topic_filter.startswith("$share/") else topic_filter


class Transport(Protocol):
    """Publish and subscribe. All calls and callbacks are on the event loop's thread."""

    limits: TransportLimits

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        ...

    @property
    def in_flight(self) -> int:
        """Unacknowledged QoS 1 publishes; 0 where nothing is acknowledged."""
        ...

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever :attr:`in_flight` fell, and after the connection was lost or found."""
        ...

    def set_will(self, topic: str, payload: bytes) -> None:
        """What the broker publishes, retained, when this client is lost; to be called before :meth:`start`."""
        ...

    async def start(self) -> None:
        """Begin to connect and keep connecting for good, with growing pauses; returns without waiting for success."""
        ...

    async def wait_connected(self, timeout_s: float) -> None:
        """Return once connected; raises :class:`wattmesh_a2a.errors.UnavailableError` with the last cause."""
        ...

    async def stop(self) -> None:
        """Disconnect in good order (the will is then published by us, not by the broker)."""
        ...

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Hand one message over.

        Raises:
            wattmesh_a2a.errors.UnavailableError: Not connected, or too many in flight. Nothing is queued in memory for
                later: the caller owns what has to survive.
        """
        ...

    async def subscribe(self, topic_filter: str, handler: Callable[[Inbound], None], *, qos: int = 1) -> None:
        """Call ``handler`` for what matches, from now on and after every reconnect. Handlers return at once."""
        ...

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after every (re)connect, when the subscriptions stand again."""
        ...
