"""What an agent sees of messaging; :class:`wattmesh_a2a.delivery.Delivery` is the implementation.

What happens to a message, step by step, is written in :mod:`wattmesh_a2a.fates`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.messages import Message

M = TypeVar("M", bound=Message)

RequestHandler = Callable[[Envelope], Awaitable[Message]]
"""Gets a checked envelope, returns the answer. An exception that is a ``WattmeshError`` becomes a ``Refused``; only an
answer that may be repeated for ever is stored, a retryable ``Refused`` is not."""
EventHandler = Callable[[Envelope], None]
TransactionHandler = Callable[[Envelope, sqlite3.Connection], Message]
"""Makes its effect in the given connection and returns the answer; both are committed together, or neither is. A ``Refused``,
an exception, or an expiry that passed meanwhile undoes whatever it did."""
CrashHandler = Callable[[Envelope], Awaitable[Message | None]]
"""Asked after a crash in the middle of a handler: the answer if the effect was made, none if it certainly was not."""
OutcomeHandler = Callable[[str, Message | None], None]
"""Id of a durable request and its answer; none when it expired and the receiver could not be asked (its effect is unknown).
Called once, but for a crash in the middle of it: then again."""
GapHandler = Callable[[Address], None]
"""Events of this source were missed, or it began a new session: ask it for its state."""
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
        not_before_ns: int = 0,
        request_id: str | None = None,
        ask_after: bool = False,
    ) -> Message:
        """Send and wait for the answer, repeating with the same id until it comes.

        Retry pauses and ``timeout_s`` are real time; ``expires_ns`` is UTC on the injected clock. A lost answer is
        covered by the receiver's stored one, so the effect is at most once. With a ``request_id`` of one's own (at most 200
        characters, never used for anything else) this holds over a restart of the sender too. With ``ask_after`` the receiver is
        asked on for a day beyond the expiry, so that the answer says whether the message took effect.

        Raises:
            ExpiredError: The message expired before an answer came; whether it had an effect is then unknown.
            UnavailableError: ``timeout_s`` passed, or this messenger was stopped.
        """
        ...

    def on_request(
        self,
        kind: type[M],
        handler: RequestHandler,
        *,
        as_agent: Address | None = None,
        idempotent: bool = False,
        after_crash: CrashHandler | None = None,
        latest_only: bool = False,
    ) -> None:
        """Answer requests of this type, sent to ``address`` (or to ``as_agent``, an address also served here).

        With ``idempotent`` a repetition is handled again and no answer is stored: for what changes nothing the second time.
        With ``after_crash`` the beginning is stored before the handler runs, and a repetition that finds no answer asks it.
        With neither, a crash between effect and stored answer makes the effect again: for what replaces what was there.
        With ``latest_only`` a request is refused when a newer one of its source and type took effect already.
        """
        ...

    def on_request_in_transaction(
        self, kind: type[M], handler: TransactionHandler, *, as_agent: Address | None = None, latest_only: bool = False
    ) -> None:
        """Answer requests of this type with a handler whose effect and answer are one commit: exactly once, whatever crashes."""
        ...

    async def request_durably(
        self,
        to: Address,
        message: Message,
        *,
        expires_ns: int,
        as_agent: Address | None = None,
        not_before_ns: int = 0,
    ) -> str:
        """Store, then send until the outcome is known, whatever restarts; returns the request's id at once.

        The outcome goes to :meth:`on_outcome`'s handler. After the expiry the receiver is asked on (it keeps its answers a day).
        """
        ...

    def on_outcome(self, handler: OutcomeHandler) -> None:
        """Take the outcomes of durable requests; to be called before :meth:`start`."""
        ...

    async def emit(self, message: Message, *, as_agent: Address | None = None, valid_for_s: float = 60.0) -> None:
        """Broadcast an event, once, unacknowledged; lost when not connected. Validity is in time of the clock."""
        ...

    def on_event(
        self,
        kind: type[M],
        handler: EventHandler,
        *,
        source: str = "+/+/+",
        latest_only: bool = False,
        on_gap: GapHandler | None = None,
    ) -> None:
        """Call ``handler`` for events of this type from addresses of our organisation that match ``org/unit/agent``.

        Each event comes once. With ``latest_only`` one that was overtaken by a newer of its source does not come at all.
        """
        ...

    async def announce(self, card: Mapping[str, object]) -> None:
        """Publish the retained agent card of ``address``, now and after every reconnect."""
        ...

    def on_presence(self, handler: Callable[[Address, Mapping[str, object] | None], None]) -> None:
        """Call ``handler`` with every agent's card, or with none when it is gone."""
        ...

    async def send_telemetry(self, stream: str, payload: bytes, *, backlog: bool = False) -> None:
        """Publish a batch (``wattmesh_a2a.telemetry``), once; raises ``UnavailableError`` when not connected.

        The caller keeps it until a :class:`wattmesh_a2a.messages.TelemetryAck` comes as a request from the cloud.
        """
        ...

    def on_telemetry(self, handler: TelemetryHandler, *, group: str | None = None) -> None:
        """Take every site's telemetry (cloud only); with ``group`` our share of it, as one of those that take it together."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Monotonic counts: sent, received, retried, duplicate, expired, invalid, unsigned, refused and more."""
        ...
