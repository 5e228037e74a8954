"""Requests, events, presence and telemetry over any transport; what happens to a message is written in ``fates``."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wattmesh_a2a import __version__, codec, tracing
from wattmesh_a2a import a2a_profile as rpc
from wattmesh_a2a.cards import standard_card
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.deadletters import DeadLetters
from wattmesh_a2a.dedupe import KEEP_AFTER_EXPIRY_NS, DedupeStore, MemoryDedupe
from wattmesh_a2a.envelope import STATS_AGENT, Address, Envelope, TaskState
from wattmesh_a2a.errors import ExpiredError, InvalidMessageError, UnavailableError, WattmeshError
from wattmesh_a2a.events import Arrival, EventTracks
from wattmesh_a2a.fates import Fate, Gate, known, refusal
from wattmesh_a2a.lanes import Lanes, Priority, TokenBucket
from wattmesh_a2a.messages import (
    SIGNED_NAMES,
    SIGNED_TYPES,
    TYPE_NAMES,
    Acknowledged,
    Message,
    Refused,
    Revoke,
    StatsQuery,
    StatsReport,
)
from wattmesh_a2a.messenger import (
    CrashHandler,
    EventHandler,
    GapHandler,
    OutcomeHandler,
    RequestHandler,
    TelemetryHandler,
    TransactionHandler,
)
from wattmesh_a2a.outgoing import OutgoingStore, Pending
from wattmesh_a2a.parts import Assembler, split
from wattmesh_a2a.plain import PlainClient, PlainDesk, PlainHandler
from wattmesh_a2a.signing import Signer
from wattmesh_a2a.stats import Stats
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.base import Inbound, Transport

log = logging.getLogger(__name__)

PresenceHandler = Callable[[Address, Mapping[str, object] | None], None]

RefusalHandler = Callable[[Address, str, Fate], None]
"""Gets who it says it is from (unproven where the fate is ``unsigned`` or ``foreign``), the message's type, and why."""

RETRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Real seconds between repetitions, ±20 %; the last one repeats (A2A over MQTT profile: 1, 2, 4 s)."""
PEER_REQUESTS_PER_S = 1000.0
"""What one peer may ask of a gateway or the cloud, with a burst of twice that: far above any use, below what stops the others."""
_SUBMITTED_PAUSE_S = 30.0
"""Between repetitions once the receiver said that it has the request and will answer later (the profile's idle time)."""
_HANDLERS_AT_ONCE = 64
_HELD_AT_MOST = 256
_PEERS_AT_MOST = 5000
_FORGET_EVERY = 500
_PLAIN_EXPIRY_S = 15
"""Of a plain request on its way: what its sender no longer waits for must not arrive."""
_SIGNED = tuple(SIGNED_TYPES)


class Timer(Protocol):
    """What :data:`After` gives."""

    def cancel(self) -> None:
        """Let nothing happen."""
        ...


After = Callable[[float, Callable[[], None]], Timer]
"""Call a function after so many real seconds; ``loop.call_later``, but for tests."""


@dataclass(frozen=True, slots=True)
class _Handler:
    run: RequestHandler | None = None
    in_transaction: TransactionHandler | None = None
    idempotent: bool = False
    after_crash: CrashHandler | None = None
    latest_only: bool = False


@dataclass(slots=True)
class _Waiting:
    """A request of ours under way."""

    asked: Address
    pool: bool
    answer: Message | None = None
    submitted: bool = False
    turn: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)


@dataclass(slots=True)
class _UnderWay:
    """A request of a peer that is held or handled."""

    held: asyncio.Event | None = None
    """Set when a held one is revoked."""
    revoked: str = field(default="")


class _RefusedError(Exception):
    """Ends a transaction without its effect."""

    def __init__(self, answer: Refused) -> None:
        super().__init__(answer.error)
        self.answer = answer


class Delivery:
    """The :class:`wattmesh_a2a.messenger.Messenger` over any transport.

    Args:
        transport: Carries the bytes; started and stopped by this object.
        address: Ours, on whose reply topic the answers come.
        clock: Time of validity windows.
        topics: Names on the wire.
        keys: Signs and verifies; none where nothing is signed (then what must be signed is refused).
        store: Answers already given.
        outgoing: Durable requests; none where there are none.
        dead: Dead letters; none where they are only counted.
        serve: Further addresses whose requests are taken here.
        figures: Whether this process answers for its unit at ``ORG/UNIT/stats``: one of each unit does.
        peer_requests_per_s: Token bucket a peer for what comes in; none for no limit.
        after: Real-time timer, injected by tests.
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
        outgoing: OutgoingStore | None = None,
        dead: DeadLetters | None = None,
        serve: Sequence[Address] = (),
        figures: bool = False,
        peer_requests_per_s: float | None = None,
        after: After | None = None,
    ) -> None:
        self.address = address
        self.session = uuid.uuid4().hex[:12]
        self.stats = Stats()
        self._transport = transport
        self._clock = clock
        self._topics = topics or Topics()
        self._keys = keys
        self._gate = Gate(keys)
        self._store = store or MemoryDedupe()
        self._outgoing = outgoing
        self._dead = dead
        self._served = (address, *serve)
        self._peer_rate = peer_requests_per_s
        self._after = after
        self._figures = Address(address.org, address.unit, STATS_AGENT) if figures else None
        self._pools: list[str] = []
        self._sequences: Counter[tuple[Address, Address | None]] = Counter()
        self._handlers: dict[tuple[Address, str], _Handler] = {}
        self._event_handlers: list[tuple[str, str, EventHandler, bool, GapHandler | None]] = []
        self._presence_handlers: list[PresenceHandler] = []
        self._telemetry_handler: TelemetryHandler | None = None
        self._telemetry_group: str | None = None
        self._outcome_handler: OutcomeHandler | None = None
        self._refusal_handlers: dict[Address, RefusalHandler] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._under_way: dict[str, _UnderWay] = {}
        self._held = 0
        self._answering = 0
        self._buckets: OrderedDict[Address, TokenBucket] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_HANDLERS_AT_ONCE)
        self._lanes: Lanes | None = None
        self._parts = Assembler()
        self._tracks = EventTracks()
        self._desk = PlainDesk(self, clock)
        self._plain = PlainClient(self._send_plain)
        self._stored = 0
        self._said: set[str] = set()
        self._cards: dict[Address, bytes] = {}
        self._online: dict[Address, str] = {}
        self._stopped = False
        for served in self._served:
            self._handlers[served, TYPE_NAMES[StatsQuery]] = _Handler(run=self._tell_stats, idempotent=True)
            self._handlers[served, TYPE_NAMES[Revoke]] = _Handler(run=self._revoke)
        if self._figures is not None:
            self._handlers[self._figures, TYPE_NAMES[StatsQuery]] = _Handler(run=self._tell_stats, idempotent=True)

    # -- life cycle

    async def start(self) -> None:
        """Subscribe and begin to connect; see :class:`wattmesh_a2a.messenger.Messenger`."""
        topics, org = self._topics, self.address.org
        offline = json.dumps({"status": "offline", "session": self.session}).encode()
        self._transport.set_will(topics.discovery(self.address), offline)
        self._transport.on_connected(self._on_connected)
        self._lanes = Lanes(self._transport)
        for served in (*self._served, *([self._figures] if self._figures else [])):
            await self._subscribe(topics.request(served), self._request_taker(served))
        for pool in self._pools:
            member = Address(org, self.address.unit, pool)
            await self._subscribe(topics.shared_pool(org, self.address.unit, pool), self._request_taker(member))
        await self._subscribe(topics.reply(self.address, "+"), self._on_reply)
        for source in _widest({_of_org(source, org) for source, *_ in self._event_handlers}):
            await self._subscribe(f"{topics.prefix}/event/{source}", self._on_event_message)
        if self._presence_handlers:
            await self._subscribe(f"{topics.prefix}/discovery/{org}/+/+", self._on_card)
        else:  # our own, to repair a late will of an earlier session
            await self._subscribe(topics.discovery(self.address), self._on_card)
        if self._telemetry_handler is not None:
            shared = "" if self._telemetry_group is None else f"$share/{self._telemetry_group}/"
            await self._subscribe(f"{shared}{topics.telemetry_prefix}/telemetry/{org}/+/+", self._on_telemetry_message)
        await self._transport.start()
        if self._outgoing is not None:
            for pending in self._outgoing.pending():
                self._spawn(self._settle(pending))

    async def _subscribe(self, topic_filter: str, take: Callable[[Inbound, bytes], None]) -> None:
        """Hand over whole messages: size checked, parts put together."""

        def taken(inbound: Inbound) -> None:
            assert self._lanes is not None
            self._lanes.came_in(len(inbound.payload))
            try:
                if len(inbound.payload) > self._transport.limits.max_payload_bytes:
                    raise InvalidMessageError(f"message of {len(inbound.payload)} bytes is too large for one publish")
                payload = self._parts.take(inbound.topic, inbound.payload)
            except InvalidMessageError as error:
                self._drop(Fate.INVALID, str(error), inbound)
                return
            if payload is not None:
                take(inbound, payload)

        await self._transport.subscribe(topic_filter, taken)

    async def stop(self) -> None:
        """Say goodbye and stop; see :class:`wattmesh_a2a.messenger.Messenger`."""
        self._stopped = True
        for waiting in self._waiting.values():
            waiting.wake()
        self._desk.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._transport.connected:
            offline = json.dumps({"status": "offline", "session": self.session}).encode()
            for served in self._cards:
                await self._try_publish(self._topics.discovery(served), offline, retain=True)
        if self._lanes is not None:
            self._lanes.stop()
        await self._transport.stop()

    def _on_connected(self) -> None:
        for waiting in self._waiting.values():
            waiting.wake()
        if self._cards:
            self._spawn(self._publish_cards())

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.stats.count(Fate.FAILED)
            log.error("handling a message failed", exc_info=task.exception())

    # -- sending requests

    async def request(
        self,
        to: Address,
        message: Message,
        *,
        expires_ns: int,
        timeout_s: float | None = None,
        as_agent: Address | None = None,
        not_before_ns: int = 0,
        pool: bool = False,
        request_id: str | None = None,
        ask_after: bool = False,
    ) -> Message:
        """Send and wait for the answer; see :class:`wattmesh_a2a.messenger.Messenger`.

        With ``pool``, ``to.agent`` names a pool of ``to.unit``, of which any one member answers; a repetition may reach another
        member, so that a pool is for what may happen twice.
        """
        envelope = self._envelope(
            message, as_agent or self.address, expires_ns, destination=to, not_before_ns=not_before_ns, name=request_id
        )
        payload = self._encode(envelope)
        pending = Pending(envelope.id, str(to), payload, expires_ns)
        until_ns = expires_ns + KEEP_AFTER_EXPIRY_NS if ask_after else None
        if timeout_s is None:
            return await self._until_answered(pending, to, envelope.type, until_ns=until_ns, pool=pool)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._until_answered(pending, to, envelope.type, until_ns=until_ns, pool=pool)
        except TimeoutError:
            self.stats.count("unanswered", envelope.type, str(to))
            raise UnavailableError(f"{to} did not answer {envelope.type} within {timeout_s} s") from None

    async def request_durably(
        self,
        to: Address,
        message: Message,
        *,
        expires_ns: int,
        as_agent: Address | None = None,
        not_before_ns: int = 0,
    ) -> str:
        """Store, then send until the outcome is known; see :class:`wattmesh_a2a.messenger.Messenger`."""
        if self._outgoing is None:
            raise UnavailableError("this messenger has no store for durable requests")
        envelope = self._envelope(
            message, as_agent or self.address, expires_ns, destination=to, not_before_ns=not_before_ns
        )
        pending = Pending(envelope.id, str(to), self._encode(envelope), expires_ns)
        self._outgoing.add(pending)
        self._spawn(self._settle(pending))
        return envelope.id

    def on_outcome(self, handler: OutcomeHandler) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._outcome_handler = handler

    async def _settle(self, pending: Pending) -> None:
        """Bring a durable request to its outcome, and forget it only after somebody was told."""
        assert self._outgoing is not None
        answer: Message | None
        try:
            answer = await self._until_answered(
                pending,
                Address.parse(pending.destination),
                "durable",
                until_ns=pending.expires_ns + KEEP_AFTER_EXPIRY_NS,
            )
        except ExpiredError:
            answer = None
        except UnavailableError:
            return  # we are being stopped: after the next start it goes on
        if self._outcome_handler is not None:
            self._outcome_handler(pending.id, answer)
        self._outgoing.remove(pending.id)

    async def _until_answered(
        self, pending: Pending, to: Address, name: str, *, until_ns: int | None = None, pool: bool = False
    ) -> Message:
        loop = asyncio.get_running_loop()
        after = self._after or loop.call_later
        waiting = self._waiting[pending.id] = _Waiting(to, pool)
        began = loop.time()
        topics = self._topics
        topic = topics.pool(to.org, to.unit, to.agent) if pool else topics.request(to)
        try:
            for attempt in itertools.count():
                if self._stopped:
                    raise UnavailableError("messaging was stopped")
                now = self._clock.utc_ns()
                if now >= (until_ns or pending.expires_ns):
                    self._bury(pending, name, topic)
                    raise ExpiredError(f"{name} to {to} expired without an answer")
                if attempt:
                    self.stats.count("retried", name, str(to))
                waiting.turn = loop.create_future()
                await self._try_publish(
                    topic,
                    pending.payload,
                    expiry_s=max(1, min((pending.expires_ns - now) // NS_PER_S, 604_800)),
                    response_topic=topics.reply(self.address, self.session),
                    correlation_data=pending.id.encode(),
                )
                pause = _SUBMITTED_PAUSE_S if waiting.submitted else RETRY_PAUSES_S[min(attempt, 3)]
                timer = after(pause * random.uniform(0.8, 1.2), waiting.wake)
                try:
                    if waiting.answer is None:
                        await waiting.turn
                finally:
                    timer.cancel()
                if waiting.answer is not None:
                    self.stats.count("answered", name, str(to), loop.time() - began)
                    return waiting.answer
            raise AssertionError("the attempts never end")
        finally:
            self._waiting.pop(pending.id, None)

    def _bury(self, pending: Pending, name: str, topic: str) -> None:
        self.stats.count("expired_unanswered", name, pending.destination)
        if self._dead is not None:
            self._dead.keep(
                self._clock.utc_ns(), "out", "expired without an answer",
                type_name=name, peer=pending.destination, topic=topic, payload=pending.payload,
            )  # fmt: skip

    def _on_reply(self, inbound: Inbound, payload: bytes) -> None:
        if self._plain.take(inbound.correlation_data, payload):
            return
        judged = self._gate.reply(payload, self.address)
        head = judged.head
        if judged.fate is not None or head is None:
            self._drop(judged.fate or Fate.INVALID, judged.cause, inbound, payload)
            return
        waiting = self._waiting.get(head["correlation_id"] or "")
        if waiting is None:
            self.stats.count(Fate.LATE, head["type"], str(head["source"]))
            return
        asked: Address = waiting.asked
        if head["source"] != asked and not (waiting.pool and head["source"].unit == asked.unit):
            self._drop(Fate.INVALID, f"an answer of {asked} given by {head['source']}", inbound, payload)
            return
        try:
            envelope = judged.envelope()
        except InvalidMessageError as error:
            self._drop(Fate.INVALID, str(error), inbound, payload)
            return
        if envelope.state is not None and not envelope.state.final:
            waiting.submitted = True
        elif isinstance(envelope.data, Refused) and envelope.data.error == Fate.BUSY and envelope.data.retryable:
            self.stats.count("told_busy", envelope.type, str(envelope.source))
        else:
            waiting.answer = envelope.data
            waiting.wake()

    # -- answering requests

    def on_request(
        self,
        kind: type[Any],
        handler: RequestHandler,
        *,
        as_agent: Address | None = None,
        idempotent: bool = False,
        after_crash: CrashHandler | None = None,
        latest_only: bool = False,
    ) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._handlers[as_agent or self.address, TYPE_NAMES[kind]] = _Handler(
            run=handler, idempotent=idempotent, after_crash=after_crash, latest_only=latest_only
        )

    def on_request_in_transaction(
        self,
        kind: type[Any],
        handler: TransactionHandler,
        *,
        as_agent: Address | None = None,
        latest_only: bool = False,
    ) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._handlers[as_agent or self.address, TYPE_NAMES[kind]] = _Handler(
            in_transaction=handler, latest_only=latest_only
        )

    def on_refusal(self, handler: RefusalHandler, *, as_agent: Address | None = None) -> None:
        """Be told of requests of known types that are refused before a handler sees them: malformed, late, unsigned, not theirs."""
        self._refusal_handlers[as_agent or self.address] = handler

    def _tell_refusal(self, served: Address, head: dict[str, Any], fate: Fate) -> None:
        handler = self._refusal_handlers.get(served)
        if handler is not None and (served, head["type"]) in self._handlers:
            handler(head["source"], head["type"], fate)

    def serve_pool(self, pool: str, kind: type[Any], handler: RequestHandler) -> None:
        """Take requests of this type as one member of a pool of our unit; to be called before :meth:`start`."""
        if pool not in self._pools:
            self._pools.append(pool)
        member = Address(self.address.org, self.address.unit, pool)
        self._handlers[member, TYPE_NAMES[kind]] = _Handler(run=handler, idempotent=True)

    def _request_taker(self, served: Address) -> Callable[[Inbound, bytes], None]:
        def take(inbound: Inbound, payload: bytes) -> None:
            if inbound.response_topic is None:
                self._drop(Fate.INVALID, "a request without a response topic", inbound, payload)
                return
            answering = self._answer_plain if rpc.looks_like_rpc(payload) else self._answer
            self._answering += 1
            self._spawn(self._counted(answering(served, inbound, payload, inbound.response_topic)))

        return take

    async def _counted(self, answering: Awaitable[None]) -> None:
        """How many are being answered says whether a commit may wait for company."""
        try:
            await answering
        finally:
            self._answering -= 1

    async def _answer_plain(self, served: Address, inbound: Inbound, payload: bytes, response_topic: str) -> None:
        """Plain A2A of another make: the same steps, but never signed, and answered as an A2A task."""
        try:
            source = rpc.requester_of(response_topic, f"{self._topics.prefix}/reply")
        except InvalidMessageError as error:
            self._drop(Fate.FOREIGN, str(error), inbound, payload)
            return
        if source.org != served.org:
            self._drop(Fate.FOREIGN, f"a request of {source}, of another organisation", inbound, payload)
            return
        wrong = await self._desk.answer(served, source, payload, response_topic, inbound.correlation_data)
        if wrong is not None:
            self.stats.count(Fate.INVALID, "a2a", str(source))

    async def take_plain(self, served: Address, source: Address, task: str, name: str, data: object) -> bytes:
        """See :class:`wattmesh_a2a.plain.PlainHost`."""
        key = f"{source}:a2a-{task}"
        fields = rpc.request_fields(source, served, task, name, data, self._clock)
        judged = self._gate.request(
            codec.encode_fields(fields), served, f"{self._topics.prefix}/reply",
            self._topics.reply(source, "a2a"), self._clock.utc_ns(),
        )  # fmt: skip
        head = judged.head
        if head is None or (judged.fate is None and key in self._under_way) or not self.within_pace(source):
            raise rpc.protocol_error("it is under way, or too many are" if head else judged.cause)
        if judged.fate is not None:
            payload = self._reply(served, head, judged.refusal(), TaskState.REJECTED)
            self.stats.count(judged.fate, head["type"], str(source))
            return payload
        under_way = self._under_way[key] = _UnderWay()
        try:
            async with self._slots:
                fate, payload = await self._take_effect(served, key, judged, under_way)
        finally:
            del self._under_way[key]
        self.stats.count(fate, head["type"], str(source))
        return payload

    def takes(self, served: Address) -> list[str]:
        """See :class:`wattmesh_a2a.plain.PlainHost`."""
        return [name for one, name in self._handlers if one == served and name not in SIGNED_NAMES]

    def stored_answer(self, key: str) -> bytes | None:
        """See :class:`wattmesh_a2a.plain.PlainHost`."""
        return self._store.get(key)

    def keep_answer(self, key: str, payload: bytes, expires_ns: int) -> None:
        """See :class:`wattmesh_a2a.plain.PlainHost`."""
        self._keep(key, payload, expires_ns)

    async def reply_plain(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """See :class:`wattmesh_a2a.plain.PlainHost`."""
        await self._store.settled()
        await self._try_publish(topic, payload, correlation_data=correlation)

    def on_plain(self, handler: PlainHandler, *, as_agent: Address | None = None) -> None:
        """Have plain A2A messages that are not in our vocabulary handled; see :data:`wattmesh_a2a.plain.PlainHandler`."""
        self._desk.on_plain(as_agent or self.address, handler)

    def ask_plain(self, to: Address, method: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Ask an agent by plain A2A; see :meth:`wattmesh_a2a.plain.PlainClient.ask`."""
        return self._plain.ask(to, method, params)

    async def _send_plain(self, to: Address, payload: bytes, correlation: bytes) -> None:
        await self._try_publish(
            self._topics.request(to),
            payload,
            expiry_s=_PLAIN_EXPIRY_S,
            response_topic=self._topics.reply(self.address, self.session),
            correlation_data=correlation,
        )

    async def _answer(self, served: Address, inbound: Inbound, payload: bytes, response_topic: str) -> None:
        """Steps 2 to 12 of :mod:`wattmesh_a2a.fates`, in that order."""
        reply_prefix = f"{self._topics.prefix}/reply"
        judged = self._gate.request(payload, served, reply_prefix, response_topic, self._clock.utc_ns())
        head = judged.head

        async def send(answer: bytes) -> None:
            await self._try_publish(response_topic, answer, correlation_data=inbound.correlation_data)

        if judged.fate is not None or head is None:
            self._drop(judged.fate or Fate.INVALID, judged.cause, inbound, payload)
            if head is not None:
                self._tell_refusal(served, head, judged.fate or Fate.INVALID)
                await send(self._reply(served, head, judged.refusal(), TaskState.REJECTED))
            return
        source, name, expires_ns = head["source"], head["type"], head["expires_ns"]
        key = f"{source}:{head['id']}"
        stored = self._store.get(key)
        if stored is not None:
            self.stats.count(Fate.DUPLICATE, name, str(source))
            await self._store.settled()
            await send(stored)
            return
        under_way = self._under_way.get(key)
        if under_way is not None:
            self.stats.count(Fate.DUPLICATE, name, str(source))
            if under_way.held is not None:
                await send(self._reply(served, head, Acknowledged(detail="held"), TaskState.SUBMITTED))
            return
        if not self.within_pace(source):
            self.stats.count(Fate.BUSY, name, str(source))
            await send(self._reply(served, head, refusal(Fate.BUSY, "too many requests"), TaskState.REJECTED))
            return
        under_way = self._under_way[key] = _UnderWay()
        began = asyncio.get_running_loop().time()
        try:
            if head["not_before_ns"] > self._clock.utc_ns() and expires_ns > self._clock.utc_ns():
                waited = await self._hold(under_way, head, served, send)
                if not waited:
                    return
            async with self._slots:
                fate, answer = await self._take_effect(served, key, judged, under_way)
        finally:
            del self._under_way[key]
        await self._store.settled(at_once=self._answering == 1)
        self.stats.count(fate, name, str(source), asyncio.get_running_loop().time() - began)
        await send(answer)

    def within_pace(self, source: Address) -> bool:
        """See :class:`wattmesh_a2a.plain.PlainHost`."""
        if self._peer_rate is None:
            return True
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = TokenBucket(self._peer_rate, 2 * self._peer_rate, asyncio.get_running_loop().time)
            self._buckets[source] = bucket
            if len(self._buckets) > _PEERS_AT_MOST:
                self._buckets.popitem(last=False)
        return bucket.try_take()

    async def _hold(
        self, under_way: _UnderWay, head: dict[str, Any], served: Address, send: Callable[[bytes], Awaitable[None]]
    ) -> bool:
        """Wait until ``not_before``; false when there is no room, and the sender was told to try again."""
        if self._held >= _HELD_AT_MOST:
            self.stats.count(Fate.BUSY, head["type"], str(head["source"]))
            await send(self._reply(served, head, refusal(Fate.BUSY, "too many are held"), TaskState.REJECTED))
            return False
        self.stats.count(Fate.HELD, head["type"], str(head["source"]))
        under_way.held = asyncio.Event()
        self._held += 1
        try:
            await send(self._reply(served, head, Acknowledged(detail="held"), TaskState.SUBMITTED))
            revoked = asyncio.ensure_future(under_way.held.wait())
            try:
                while (left_ns := head["not_before_ns"] - self._clock.utc_ns()) > 0 and not revoked.done():
                    sleep = asyncio.ensure_future(self._clock.sleep_until_ns(self._clock.monotonic_ns() + left_ns))
                    try:
                        await asyncio.wait({revoked, sleep}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        sleep.cancel()
            finally:
                revoked.cancel()
        finally:
            self._held -= 1
            under_way.held = None
        return True

    async def _take_effect(self, served: Address, key: str, judged: Any, under_way: _UnderWay) -> tuple[Fate, bytes]:
        """The last steps; whatever is answered for good is stored before it is sent."""
        head = judged.head
        expires_ns = head["expires_ns"]

        def final(fate: Fate, answer: Message, state: TaskState, *, keep: bool = True) -> tuple[Fate, bytes]:
            payload = self._reply(served, head, answer, state)
            if keep:
                self._keep(key, payload, expires_ns)
            return fate, payload

        handler = self._handlers.get((served, head["type"]))
        if handler is not None and handler.after_crash is not None and self._store.begun(key):
            answer = await handler.after_crash(judged.envelope())
            if answer is not None:  # it took effect in time; only its answer was lost
                return final(Fate.HANDLED, answer, TaskState.COMPLETED)
        if under_way.revoked:
            return final(Fate.REVOKED, refusal(Fate.REVOKED, under_way.revoked), TaskState.CANCELED)
        if expires_ns <= self._clock.utc_ns():
            refused = refusal(Fate.EXPIRED, "came after its expiry")
            # Kept where it was signed: who is not known must not fill the disk with what is late.
            self._tell_refusal(served, head, Fate.EXPIRED)
            return final(Fate.EXPIRED, refused, TaskState.REJECTED, keep=judged.signed)
        if handler is None:
            fate, cause = Fate.UNKNOWN, f"{served} takes no {head['type']}"
            if not known(head["type"]):
                cause = f"{head['type']} is no type, or no version of it, that is known here"
            return final(fate, refusal(fate, cause), TaskState.REJECTED, keep=False)
        try:
            envelope: Envelope = judged.envelope()
        except InvalidMessageError as error:
            self._tell_refusal(served, head, Fate.INVALID)
            return final(Fate.INVALID, refusal(Fate.INVALID, str(error)), TaskState.REJECTED, keep=False)
        stream = f"{envelope.source}>{served}:{envelope.type}"
        if handler.latest_only and self._is_overtaken(stream, envelope):
            return final(Fate.SUPERSEDED, refusal(Fate.SUPERSEDED, "a newer one took effect"), TaskState.REJECTED)
        with (
            tracing.within(envelope.traceparent),
            tracing.span(f"handle {envelope.type}", source=str(envelope.source), message=envelope.id),
        ):
            try:
                if handler.in_transaction is not None:
                    return self._in_transaction(handler, envelope, stream, final)
                answer = await self._run(handler, envelope, key)
                if handler.latest_only and not isinstance(answer, Refused):
                    self._store.set_latest(stream, envelope.session, envelope.sequence, envelope.time_ns)
            except _RefusedError as error:
                fate = Fate.EXPIRED if error.answer.error == Fate.EXPIRED else Fate.REFUSED
                return final(fate, error.answer, TaskState.REJECTED, keep=not error.answer.retryable)
            except WattmeshError as error:
                refused = Refused(error=type(error).__name__, detail=str(error)[:200], retryable=error.retryable)
                return final(
                    Fate.REFUSED,
                    refused,
                    TaskState.REJECTED,
                    keep=not error.retryable and handler.after_crash is not None,
                )
            except Exception:
                log.exception("handling %s of %s failed", envelope.type, envelope.source)
                failed = Refused(error="internal", detail="the receiver failed", retryable=False)
                return final(Fate.FAILED, failed, TaskState.FAILED)
        if isinstance(answer, Refused):
            fate = Fate.INTERRUPTED if answer.error == Fate.INTERRUPTED else Fate.REFUSED
            return final(fate, answer, TaskState.REJECTED, keep=not (handler.idempotent or answer.retryable))
        return final(Fate.HANDLED, answer, TaskState.COMPLETED, keep=not handler.idempotent)

    async def _run(self, handler: _Handler, envelope: Envelope, key: str) -> Message:
        assert handler.run is not None
        if handler.after_crash is not None:
            self._store.begin(key, envelope.expires_ns)
            await self._store.settled()
        return await handler.run(envelope)

    def _in_transaction(
        self, handler: _Handler, envelope: Envelope, stream: str, final: Callable[..., tuple[Fate, bytes]]
    ) -> tuple[Fate, bytes]:
        """Effect and answer in one commit. A handler that raises has no effect, and its refusal is stored alone.

        One that was not done before the expiry has no effect either: it is looked at once more before the commit.
        """
        assert handler.in_transaction is not None
        with self._store.transaction() as connection:
            answer = handler.in_transaction(envelope, connection)  # type: ignore[arg-type]  # none with a memory store
            if isinstance(answer, Refused):
                raise _RefusedError(answer)
            if envelope.expires_ns <= self._clock.utc_ns():
                raise _RefusedError(refusal(Fate.EXPIRED, "was not done before its expiry"))
            if handler.latest_only:
                self._store.set_latest(stream, envelope.session, envelope.sequence, envelope.time_ns)
            return final(Fate.HANDLED, answer, TaskState.COMPLETED)

    def _is_overtaken(self, stream: str, envelope: Envelope) -> bool:
        newest = self._store.latest(stream)
        if newest is None:
            return False
        session, sequence, time_ns = newest
        if session == envelope.session:
            return envelope.sequence < sequence
        return envelope.time_ns < time_ns

    def _keep(self, key: str, payload: bytes, expires_ns: int) -> None:
        self._store.put(key, payload, expires_ns)
        self._stored += 1
        if self._stored % _FORGET_EVERY == 0:
            self._store.forget_before(self._clock.utc_ns() - KEEP_AFTER_EXPIRY_NS - NS_PER_S)

    def _reply(self, served: Address, head: dict[str, Any], answer: Message, state: TaskState) -> bytes:
        """The answer's payload; one that is too large becomes a refusal, so that the effect is not asked for again."""
        reply = self._envelope(
            answer, served, head["expires_ns"],
            destination=head["source"], correlation_id=head["id"], state=state,
        )  # fmt: skip
        try:
            return self._encode(reply)
        except InvalidMessageError as error:
            log.error("the answer to %s of %s cannot be sent: %s", head["type"], head["source"], error)
            refused = Refused(error="answer_too_large", detail=str(error), retryable=False)
            return self._reply(served, head, refused, TaskState.FAILED)

    async def _revoke(self, envelope: Envelope) -> Message:
        """Take back a held request, or one that has not come yet."""
        revoke = envelope.data
        assert isinstance(revoke, Revoke)
        key = f"{envelope.source}:{revoke.request_id}"
        under_way = self._under_way.get(key)
        if under_way is not None and under_way.held is not None:
            under_way.revoked = revoke.reason or "revoked"
            under_way.held.set()
            return ACKNOWLEDGED
        if under_way is not None or self._store.get(key) is not None or self._store.begun(key):
            return Refused(error="too_late", detail="it was answered already, or is being handled", retryable=False)
        assert envelope.destination is not None
        head = {
            "source": envelope.source,
            "id": revoke.request_id,
            "expires_ns": envelope.expires_ns,
            "type": "revoked",
        }
        refused = refusal(Fate.REVOKED, revoke.reason)
        payload = self._reply(envelope.destination, head, refused, TaskState.CANCELED)
        self._keep(key, payload, max(envelope.expires_ns, self._clock.utc_ns()) + 7 * KEEP_AFTER_EXPIRY_NS)
        return ACKNOWLEDGED

    async def _tell_stats(self, envelope: Envelope) -> Message:
        return StatsReport(session=self.session, rows=self.stats.rows())

    # -- events, presence, telemetry

    async def emit(self, message: Message, *, as_agent: Address | None = None, valid_for_s: float = 60.0) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        source = as_agent or self.address
        envelope = self._envelope(message, source, self._clock.utc_ns() + round(valid_for_s * NS_PER_S))
        await self._try_publish(
            self._topics.event(source),
            codec.encode(envelope),
            priority=Priority.TELEMETRY,
            qos=0,
            expiry_s=max(1, round(valid_for_s)),
        )

    def on_event(
        self,
        kind: type[Any],
        handler: EventHandler,
        *,
        source: str = "+/+/+",
        latest_only: bool = False,
        on_gap: GapHandler | None = None,
    ) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._event_handlers.append((source, TYPE_NAMES[kind], handler, latest_only, on_gap))

    def _on_event_message(self, inbound: Inbound, payload: bytes) -> None:
        judged = self._gate.event(payload, self.address.org, self._clock.utc_ns())
        head = judged.head
        if judged.fate is not None or head is None:
            self._drop(judged.fate or Fate.INVALID, judged.cause, inbound, payload)
            return
        source: Address = head["source"]
        if inbound.topic != self._topics.event(source):
            self._drop(Fate.FOREIGN, f"an event of {source} on another's topic", inbound, payload)
            return
        try:
            envelope = judged.envelope()
        except InvalidMessageError as error:
            self._drop(Fate.INVALID, str(error), inbound, payload)
            return
        arrival = self._tracks.arrived(source, envelope.session, envelope.sequence)
        if arrival is Arrival.REPEATED:
            self.stats.count(Fate.DUPLICATE, envelope.type, str(source))
            return
        self.stats.count("events", envelope.type, str(source))
        for pattern, name, handler, latest_only, on_gap in self._event_handlers:
            if not _matches(pattern, str(source)):
                continue
            if arrival is Arrival.AFTER_GAP and on_gap is not None:
                on_gap(source)
            if name == envelope.type and not (latest_only and arrival is Arrival.OVERTAKEN):
                handler(envelope)

    async def announce(self, card: Mapping[str, object]) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`; each further address served here gets a card of its own."""
        for served in self._served:
            requests = [name for one, name in self._handlers if one == served]
            more = card if served == self.address else {"runsIn": str(self.address)}
            whole = {
                **standard_card(served, requests, __version__),
                **more,
                "status": "online",
                "session": self.session,
            }
            self._cards[served] = json.dumps(whole, separators=(",", ":")).encode()
            for handler in self._presence_handlers:
                handler(served, whole)
        if self._transport.connected:
            await self._publish_cards()

    async def _publish_cards(self) -> None:
        for served, card in self._cards.items():
            await self._try_publish(self._topics.discovery(served), card, retain=True)

    def on_presence(self, handler: PresenceHandler) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._presence_handlers.append(handler)

    def _on_card(self, inbound: Inbound, payload: bytes) -> None:
        try:
            address = Address.parse("/".join(inbound.topic.split("/")[-3:]))
            card = codec.decode_fields(payload)
        except InvalidMessageError as error:
            self._drop(Fate.INVALID, f"agent card: {error}", inbound, payload)
            return
        session = str(card.get("session", ""))
        offline = card.get("status") == "offline"
        if address in self._served:
            if offline and session != self.session and self._cards:
                self._spawn(self._publish_cards())
            return
        if offline and self._online.get(address, session) != session:
            return  # the late will of an earlier session
        if offline:
            self._online.pop(address, None)
        else:
            self._online[address] = session
            if len(self._online) > _PEERS_AT_MOST:
                del self._online[next(iter(self._online))]
        for handler in self._presence_handlers:
            handler(address, None if offline else card)

    async def send_telemetry(self, stream: str, payload: bytes, *, backlog: bool = False) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        topic = self._topics.telemetry(self.address.org, self.address.unit, stream)
        await self._publish(topic, payload, Priority.BACKLOG if backlog else Priority.TELEMETRY)
        self.stats.count("telemetry_sent")

    def on_telemetry(self, handler: TelemetryHandler, *, group: str | None = None) -> None:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        self._telemetry_handler = handler
        self._telemetry_group = group

    def _on_telemetry_message(self, inbound: Inbound, payload: bytes) -> None:
        try:
            org, site, stream = self._topics.parse_telemetry(inbound.topic)
        except InvalidMessageError as error:
            self._drop(Fate.INVALID, str(error), inbound, payload)
            return
        if org != self.address.org:
            self._drop(Fate.FOREIGN, f"telemetry of {org}, another organisation", inbound, payload)
            return
        if self._telemetry_handler is not None:
            self.stats.count("telemetry_received", "-", site)
            self._telemetry_handler(site, stream, payload)

    def counters(self) -> Mapping[str, int]:
        """See :class:`wattmesh_a2a.messenger.Messenger`."""
        return dict(self.stats.totals)

    # -- common

    def _envelope(
        self,
        message: Message,
        source: Address,
        expires_ns: int,
        *,
        destination: Address | None = None,
        correlation_id: str | None = None,
        not_before_ns: int = 0,
        state: TaskState | None = None,
        name: str | None = None,
    ) -> Envelope:
        # Answers share one count: who asks under many names must not make us remember them all.
        counted = (source, destination if correlation_id is None else source)
        self._sequences[counted] += 1
        return Envelope(
            id=name or uuid.uuid4().hex,
            source=source,
            type=codec.type_name(message),
            time_ns=self._clock.utc_ns(),
            session=self.session,
            sequence=self._sequences[counted],
            expires_ns=expires_ns,
            not_before_ns=not_before_ns,
            data=message,
            destination=destination,
            correlation_id=correlation_id,
            state=state,
            traceparent=tracing.child(),
        )

    def _encode(self, envelope: Envelope) -> bytes:
        """The payload, signed where its type asks for it and a key is at hand."""
        fields, signature = codec.to_fields(envelope), None
        if self._keys is not None and envelope.destination is not None and isinstance(envelope.data, _SIGNED):
            signature = self._keys.sign(envelope.source, envelope.destination, codec.canonical(fields))
        return codec.encode_fields(fields, signature)

    async def _publish(self, topic: str, payload: bytes, priority: Priority, **options: Any) -> None:
        if self._lanes is None:
            raise UnavailableError("messaging was not started")
        for part in split(payload, self._transport.limits.max_payload_bytes):
            await self._lanes.publish(priority, topic, part, **options)

    async def _try_publish(
        self, topic: str, payload: bytes, priority: Priority = Priority.COMMAND, **options: Any
    ) -> None:
        try:
            await self._publish(topic, payload, priority, **options)
            self.stats.totals["sent"] += 1
        except UnavailableError:
            self.stats.totals["unsent"] += 1  # a request is repeated, an event is lost, an answer is asked for again

    def _drop(self, fate: Fate, cause: str, inbound: Inbound, payload: bytes | None = None) -> None:
        self.stats.count(fate)
        kind = cause.split(":", maxsplit=1)[0][:60]
        if kind not in self._said and len(self._said) < 200:
            self._said.add(kind)
            log.warning("dropped a message: %s (further ones of this kind are only counted)", cause[:200])
        if self._dead is not None:
            self._dead.keep(
                self._clock.utc_ns(), "in", f"{fate}: {cause}",
                type_name="-", peer="-", topic=inbound.topic, payload=inbound.payload if payload is None else payload,
            )  # fmt: skip


def _matches(pattern: str, address: str) -> bool:
    return all(want in {"+", got} for want, got in zip(pattern.split("/"), address.split("/"), strict=True))


def _of_org(pattern: str, org: str) -> str:
    """A filter of addresses narrowed to one organisation: nobody listens to another's."""
    first, _, rest = pattern.partition("/")
    return f"{org if first == '+' else first}/{rest}"


def _widest(patterns: set[str]) -> list[str]:
    """Without those that another one covers: a broker would send the same event once a filter."""
    return [
        one for one in sorted(patterns) if not any(other != one and _matches(other, one) for other in sorted(patterns))
    ]


ACKNOWLEDGED = Acknowledged()
"""The plain answer."""
