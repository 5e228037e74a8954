"""What happens to a message, in one place: at least once on the wire, once in effect, in time or not at all.

Receiving: size → schema → signature → expiry → repetition (gets the stored answer) → handler → answer stored → answer sent.
Sending: a request is repeated with the same id until its answer comes, it expires, or the caller's patience ends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.dedupe import DedupeStore, MemoryDedupe
from wattmesh_a2a.envelope import CLOUD_UNIT, Address, Envelope
from wattmesh_a2a.errors import ExpiredError, InvalidMessageError, UnavailableError, WattmeshError
from wattmesh_a2a.messages import SIGNED_TYPES, TYPE_NAMES, Acknowledged, Message, Refused
from wattmesh_a2a.messenger import EventHandler, RequestHandler, TelemetryHandler
from wattmesh_a2a.signing import Signer, site_of
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.base import Inbound, Transport

log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
PresenceHandler = Callable[[Address, Mapping[str, object] | None], None]

RETRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Real seconds between repetitions, ±20 %; the last one repeats (A2A over MQTT profile: 1, 2, 4 s)."""
_HANDLERS_AT_ONCE = 64
_FORGET_EVERY = 500


@dataclass(frozen=True, slots=True)
class _Handler:
    run: RequestHandler
    idempotent: bool


class Delivery:
    """The :class:`wattmesh_a2a.messenger.Messenger` over any transport.

    Args:
        transport: Carries the bytes; started and stopped by this object.
        address: Ours, on whose reply topic the answers come.
        clock: Time of validity windows.
        topics: Names on the wire.
        keys: Signs and verifies; none where nothing is signed (then what must be signed is refused).
        store: Answers already given.
        serve: Further addresses whose requests are taken here.
        sleep: Real-time pause, injected by tests.
    """

    def __init__(
        self,
        transport: Transport,
        address: Address,
        clock: Clock,
        *,
        topics: Topics | None = None,
        keys: Signer | None = None,
        store: DedupeStore | None = None,
        serve: Sequence[Address] = (),
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.address = address
        self.session = uuid.uuid4().hex[:12]
        self._transport = transport
        self._clock = clock
        self._topics = topics or Topics()
        self._keys = keys
        self._store = store or MemoryDedupe()
        self._served = (address, *serve)
        self._sleep = sleep
        self._sequence = itertools.count(1)
        self._handlers: dict[tuple[Address, str], _Handler] = {}
        self._event_handlers: list[tuple[str, str, EventHandler]] = []
        self._presence_handlers: list[PresenceHandler] = []
        self._telemetry_handler: TelemetryHandler | None = None
        self._waiting: dict[str, tuple[asyncio.Future[Message], Address]] = {}
        self._handling: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_HANDLERS_AT_ONCE)
        self._counts: Counter[str] = Counter()
        self._said: set[str] = set()
        self._card: bytes | None = None
        self._online: dict[Address, str] = {}
        self._reconnected = asyncio.Event()
        self._stopped = False

    # -- life cycle

    async def start(self) -> None:
        """Subscribe and begin to connect; see :class:`wattmesh_a2a.messenger.Messenger`."""
        topics = self._topics
        offline = json.dumps({"status": "offline", "session": self.session}).encode()
        self._transport.set_will(topics.discovery(self.address), offline)
        self._transport.on_connected(self._on_connected)
        for served in self._served:
            await self._transport.subscribe(topics.request(served), self._request_taker(served))
        await self._transport.subscribe(topics.reply(self.address, "+"), self._on_reply)
        for source in sorted({source for source, _, _ in self._event_handlers}):
            await self._transport.subscribe(f"{topics.prefix}/event/{source}", self._on_event_message)
        if self._presence_handlers:
            await self._transport.subscribe(f"{topics.prefix}/discovery/+/+/+", self._on_card)
        else:  # our own, to repair a late will of an earlier session
            await self._transport.subscribe(topics.discovery(self.address), self._on_card)
        if self._telemetry_handler is not None:
            await self._transport.subscribe(f"{topics.telemetry_prefix}/telemetry/+/+/+", self._on_telemetry_message)
        await self._transport.start()

    async def stop(self) -> None:
        """Say goodbye and stop; see :class:`wattmesh_a2a.messenger.Messenger`."""
        self._stopped = True
        for future, _ in list(self._waiting.values()):
            if not future.done():
                future.set_exception(UnavailableError("messaging was stopped"))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._transport.connected and self._card is not None:
            offline = json.dumps({"status": "offline", "session": self.session}).encode()
            await self._try_publish(self._topics.discovery(self.address), offline, retain=True)
        await self._transport.stop()

    def _on_connected(self) -> None:
        self._reconnected.set()
        self._reconnected = asyncio.Event()
        if self._card is not None:
            self._spawn(self._publish_card())

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._counts["failed"] += 1
            log.error("handling a message failed", exc_info=task.exception())

    # -- requests

    async def request(
        self,
        to: Address,
        message: Message,
        *,
        expires_ns: int,
        timeout_s: float | None = None,
        as_agent: Address | None = None,
    ) -> Message:
        """Send and wait for the answer; see :class:`wattmesh_a2a.messenger.Messenger`."""
        if self._stopped:
            raise UnavailableError("messaging was stopped")
        envelope = self._envelope(message, as_agent or self.address, expires_ns)
        payload = self._encode(envelope, to)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[envelope.id] = (future, to)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._until_answered(envelope, payload, to, future)
        except TimeoutError:
            raise UnavailableError(f"{to} did not answer {envelope.type} within {timeout_s} s") from None
        finally:
            del self._waiting[envelope.id]

    async def _until_answered(
        self, envelope: Envelope, payload: bytes, to: Address, future: asyncio.Future[Message]
    ) -> Message:
        pauses = itertools.chain(RETRY_PAUSES_S, itertools.repeat(RETRY_PAUSES_S[-1]))
        for attempt, pause in enumerate(pauses):
            left_ns = envelope.expires_ns - self._clock.utc_ns()
            if left_ns <= 0:
                self._counts["expired_unanswered"] += 1
                raise ExpiredError(f"{envelope.type} to {to} expired without an answer")
            if attempt:
                self._counts["retried"] += 1
            reconnected = self._reconnected
            await self._try_publish(
                self._topics.request(to),
                payload,
                expiry_s=max(1, min(left_ns // NS_PER_S, 604_800)),
                response_topic=self._topics.reply(self.address, self.session),
                correlation_data=envelope.id.encode(),
            )
            await self._first_of(future, reconnected, pause * random.uniform(0.8, 1.2))
            if future.done():
                return future.result()
        raise AssertionError("the pauses never end")

    async def _first_of(self, future: asyncio.Future[Message], event: asyncio.Event, pause_s: float) -> None:
        """Return when the answer is there, the broker is back, or the pause is over."""
        timer = asyncio.ensure_future(self._sleep(pause_s))
        back = asyncio.ensure_future(event.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {future, timer, back}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            back.cancel()

    def on_request(
        self,
        kind: type[Any],
        handler: RequestHandler,
        *,
        as_agent: Address | None = None,
        idempotent: bool = False,
    ) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._handlers[as_agent or self.address, TYPE_NAMES[kind]] = _Handler(handler, idempotent)

    def _request_taker(self, served: Address) -> Callable[[Inbound], None]:
        def take(inbound: Inbound) -> None:
            if inbound.response_topic is None:
                self._drop("invalid", "a request without a response topic")
                return
            self._spawn(self._answer(served, inbound, inbound.response_topic))

        return take

    async def _answer(self, served: Address, inbound: Inbound, response_topic: str) -> None:
        envelope = self._open(inbound.payload, served)
        if envelope is None:
            return
        own = f"{self._topics.prefix}/reply/{envelope.source.org}/{envelope.source.unit}/"
        if not response_topic.startswith(own) or {"+", "#", "\0"} & set(response_topic) or len(response_topic) > 250:
            self._drop("invalid", "a response topic that is not the requester's")
            return
        key = f"{envelope.source}:{envelope.id}"
        stored = self._store.get(key)
        if stored is not None:
            self._counts["duplicate"] += 1
            await self._try_publish(response_topic, stored, correlation_data=inbound.correlation_data)
            return
        if key in self._handling:
            self._counts["duplicate"] += 1
            return
        self._handling.add(key)
        try:
            async with self._slots:
                answer, keep = await self._handle(served, envelope)
            payload = self._reply(served, envelope, answer)
            if keep:
                self._store.put(key, payload, envelope.expires_ns)
                if self._counts["stored"] % _FORGET_EVERY == 0:
                    self._store.forget_before(self._clock.utc_ns() - 3600 * NS_PER_S)
                self._counts["stored"] += 1
        finally:
            self._handling.discard(key)
        await self._try_publish(response_topic, payload, correlation_data=inbound.correlation_data)

    def _reply(self, served: Address, envelope: Envelope, answer: Message) -> bytes:
        """The answer's payload; one that is too large becomes a refusal, so that the effect is not asked for again."""
        reply = self._envelope(answer, served, envelope.expires_ns, correlation_id=envelope.id)
        try:
            return self._encode(reply, envelope.source)
        except InvalidMessageError as error:
            log.error("the answer to %s of %s cannot be sent: %s", envelope.type, envelope.source, error)
            refusal = Refused(error="answer_too_large", detail=str(error), retryable=False)
            reply = self._envelope(refusal, served, envelope.expires_ns, correlation_id=envelope.id)
            return self._encode(reply, envelope.source)

    async def _handle(self, served: Address, envelope: Envelope) -> tuple[Message, bool]:
        handler = self._handlers.get((served, envelope.type))
        if handler is None:
            return Refused(error="unknown_request", detail=f"{served} takes no {envelope.type}", retryable=False), False
        if isinstance(envelope.data, tuple(SIGNED_TYPES)) and not envelope.signed:
            self._drop("unsigned", f"{envelope.type} from {envelope.source} without a valid signature")
            return Refused(error="unsigned", detail="a valid signature is needed", retryable=False), False
        if envelope.expires_ns <= self._clock.utc_ns():
            self._counts["expired"] += 1
            return Refused(error="expired", detail="came after its expiry", retryable=False), False
        self._counts["received"] += 1
        try:
            return await handler.run(envelope), not handler.idempotent
        except WattmeshError as error:
            self._counts["refused"] += 1
            return Refused(error=type(error).__name__, detail=str(error), retryable=error.retryable), False
        except Exception:
            self._counts["failed"] += 1
            log.exception("handling %s of %s failed", envelope.type, envelope.source)
            return Refused(error="internal", detail="the receiver failed", retryable=False), True

    def _on_reply(self, inbound: Inbound) -> None:
        envelope = self._open(inbound.payload, self.address)
        if envelope is None:
            return
        waiting = self._waiting.get(envelope.correlation_id or "")
        if waiting is None:
            self._counts["late_reply"] += 1
            return
        future, asked = waiting
        if envelope.source != asked:
            self._drop("invalid", f"an answer of {asked} given by {envelope.source}")
            return
        if isinstance(envelope.data, tuple(SIGNED_TYPES)) and not envelope.signed:
            self._drop("unsigned", f"an answer {envelope.type} of {envelope.source} without a valid signature")
            return
        if not future.done():
            future.set_result(envelope.data)

    # -- events, presence, telemetry

    async def emit(self, message: Message, *, as_agent: Address | None = None, valid_for_s: float = 60.0) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        source = as_agent or self.address
        envelope = self._envelope(message, source, self._clock.utc_ns() + round(valid_for_s * NS_PER_S))
        await self._try_publish(
            self._topics.event(source), codec.encode(envelope), qos=0, expiry_s=max(1, round(valid_for_s))
        )

    def on_event(self, kind: type[Any], handler: EventHandler, *, source: str = "+/+/+") -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._event_handlers.append((source, TYPE_NAMES[kind], handler))

    def _on_event_message(self, inbound: Inbound) -> None:
        envelope = self._open(inbound.payload, None)
        if envelope is None:
            return
        if inbound.topic != self._topics.event(envelope.source):
            self._drop("invalid", f"an event of {envelope.source} on another's topic")
            return
        if envelope.expires_ns <= self._clock.utc_ns():
            self._counts["expired"] += 1
            return
        self._counts["events"] += 1
        for source, name, handler in self._event_handlers:
            if name == envelope.type and _matches(source, str(envelope.source)):
                handler(envelope)

    async def announce(self, card: Mapping[str, object]) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._card = json.dumps({**card, "status": "online", "session": self.session}, separators=(",", ":")).encode()
        if self._transport.connected:
            await self._publish_card()

    async def _publish_card(self) -> None:
        if self._card is not None:
            await self._try_publish(self._topics.discovery(self.address), self._card, retain=True)

    def on_presence(self, handler: PresenceHandler) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._presence_handlers.append(handler)

    def _on_card(self, inbound: Inbound) -> None:
        try:
            address = Address.parse("/".join(inbound.topic.split("/")[-3:]))
            card = codec.decode_fields(inbound.payload)
        except InvalidMessageError as error:
            self._drop("invalid", f"agent card: {error}")
            return
        session = str(card.get("session", ""))
        offline = card.get("status") == "offline"
        if address == self.address:
            if offline and session != self.session and self._card is not None:
                self._spawn(self._publish_card())
            return
        if offline and self._online.get(address, session) != session:
            return  # the late will of an earlier session
        if offline:
            self._online.pop(address, None)
        else:
            self._online[address] = session
        for handler in self._presence_handlers:
            handler(address, None if offline else card)

    async def send_telemetry(self, stream: str, payload: bytes) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        topic = self._topics.telemetry(self.address.org, self.address.unit, stream)
        await self._transport.publish(topic, payload)
        self._counts["telemetry_sent"] += 1

    def on_telemetry(self, handler: TelemetryHandler) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._telemetry_handler = handler

    def _on_telemetry_message(self, inbound: Inbound) -> None:
        try:
            _, site, stream = self._topics.parse_telemetry(inbound.topic)
        except InvalidMessageError as error:
            self._drop("invalid", str(error))
            return
        if self._telemetry_handler is not None:
            self._counts["telemetry_received"] += 1
            self._telemetry_handler(site, stream, inbound.payload)

    def counters(self) -> Mapping[str, int]:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        return dict(self._counts)

    # -- common

    def _envelope(
        self, message: Message, source: Address, expires_ns: int, *, correlation_id: str | None = None
    ) -> Envelope:
        return Envelope(
            id=uuid.uuid4().hex,
            source=source,
            type=codec.type_name(message),
            time_ns=self._clock.utc_ns(),
            session=self.session,
            sequence=next(self._sequence),
            expires_ns=expires_ns,
            data=message,
            correlation_id=correlation_id,
        )

    def _encode(self, envelope: Envelope, to: Address) -> bytes:
        """The payload, signed where its type asks for it and a key is at hand."""
        signature = None
        if self._keys is not None and isinstance(envelope.data, tuple(SIGNED_TYPES)):
            site = site_of(envelope.source.unit, to.unit)
            signature = self._keys.sign(site, codec.canonical(codec.to_fields(envelope)))
        return codec.encode(envelope, signature)

    def _open(self, payload: bytes, served: Address | None) -> Envelope | None:
        """The checked envelope, or none after counting why not."""
        try:
            fields = codec.decode_fields(payload)
            signed = served is not None and self._is_signed(fields, served)
            return codec.from_fields(fields, signed=signed)
        except InvalidMessageError as error:
            self._drop("invalid", str(error))
            return None

    def _is_signed(self, fields: dict[str, Any], served: Address) -> bool:
        signature, source = fields.get("signature"), fields.get("source")
        if self._keys is None or not isinstance(signature, str) or not isinstance(source, str):
            return False
        unit = Address.parse(source).unit
        if unit != CLOUD_UNIT and served.unit not in {CLOUD_UNIT, unit}:
            return False  # a site speaks to the cloud and to itself
        return self._keys.verify(site_of(unit, served.unit), codec.canonical(fields), signature)

    async def _try_publish(self, topic: str, payload: bytes, **options: Any) -> None:
        try:
            await self._transport.publish(topic, payload, **options)
            self._counts["sent"] += 1
        except UnavailableError:
            self._counts["unsent"] += 1  # a request is repeated, an event is lost, an answer is asked for again

    def _drop(self, count: str, cause: str) -> None:
        self._counts[count] += 1
        kind = cause.split(":", maxsplit=1)[0][:60]
        if kind not in self._said and len(self._said) < 200:
            self._said.add(kind)
            log.warning("dropped a message: %s (further ones of this kind are only counted)", cause[:200])


def _matches(pattern: str, address: str) -> bool:
    return all(want in {"+", got} for want, got in zip(pattern.split("/"), address.split("/"), strict=True))


ACKNOWLEDGED = Acknowledged()
"""The plain answer."""
