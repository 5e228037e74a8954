"""What an agent sees of messaging; :class:`wattmesh_a2a.delivery.Delivery` is the implementation.

The order in which a receiver checks: size → schema → signature → expiry → duplicate (a repetition gets the stored answer)
→ handler → the answer is stored → the answer is sent. What fails a check is counted, logged once a cause, and dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.messages import Message

M = TypeVar("M", bound=Message)

RequestHandler = Callable[[Envelope], Awaitable[Message]]
"""Gets a checked envelope, returns the answer. An exception that is a ``WattmeshError`` becomes a ``Refused``; only an
answer that may be repeated for ever is stored, a retryable ``Refused`` is not."""
EventHandler = Callable[[Envelope], None]
TelemetryHandler = Callable[[str, str, bytes], None]
"""Site id (from the topic), stream, payload."""


class Messenger(Protocol):
    """Requests, events and telemetry of one agent address over one transport."""

    address: Address
    session: str

    async def start(self) -> None:
        """Subscribe and begin; handlers should be registered before."""
        ...

    async def stop(self) -> None:
        """Stop in good order; requests under way raise ``UnavailableError``."""
        ...

    async def request(
        self,
        to: Address,
        message: Message,
        *,
        expires_ns: int,
        timeout_s: float | None = None,
        as_agent: Address | None = None,
    ) -> Message:
        """Send and wait for the answer, repeating with the same id until it comes.

        Retry pauses and ``timeout_s`` are real time; ``expires_ns`` is UTC on the injected clock. A lost answer is
        covered by the receiver's stored one, so the effect is at most once.

        Raises:
            ExpiredError: The message expired before an answer came; whether it had an effect is then unknown.
            UnavailableError: ``timeout_s`` passed, or this messenger was stopped.
        """
        ...

    def on_request(
        self, kind: type[M], handler: RequestHandler, *, as_agent: Address | None = None, idempotent: bool = False
    ) -> None:
        """Answer requests of this type, sent to ``address`` (or to ``as_agent``, an address also served here).

        With ``idempotent`` a repetition is handled again and no answer is stored: for what changes nothing the second time.
        """
        ...

    async def emit(self, message: Message, *, as_agent: Address | None = None, valid_for_s: float = 60.0) -> None:
        """Broadcast an event, once, unacknowledged; lost when not connected. Validity is in time of the clock."""
        ...

    def on_event(self, kind: type[M], handler: EventHandler, *, source: str = "+/+/+") -> None:
        """Call ``handler`` for events of this type from addresses that match the filter ``org/unit/agent``."""
        ...

    async def announce(self, card: Mapping[str, object]) -> None:
        """Publish the retained agent card of ``address``, now and after every reconnect."""
        ...

    def on_presence(self, handler: Callable[[Address, Mapping[str, object] | None], None]) -> None:
        """Call ``handler`` with every agent's card, or with none when it is gone."""
        ...

    async def send_telemetry(self, stream: str, payload: bytes) -> None:
        """Publish a batch (``wattmesh_a2a.telemetry``), once; raises ``UnavailableError`` when not connected.

        The caller keeps it until a :class:`wattmesh_a2a.messages.TelemetryAck` comes as a request from the cloud.
        """
        ...

    def on_telemetry(self, handler: TelemetryHandler) -> None:
        """Take every site's telemetry (cloud only)."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Monotonic counts: sent, received, retried, duplicate, expired, invalid, unsigned, refused and more."""
        ...
