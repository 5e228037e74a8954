"""Agents of other makes, both ways: plain A2A over MQTT as tasks with streams, cancelling and input that is asked for.

:class:`PlainDesk` serves: what is in our vocabulary goes the way of every request (:mod:`wattmesh_a2a.fates`), anything else to the
agent's own handler. :class:`PlainClient` asks. Wire forms are in :mod:`wattmesh_a2a.a2a_profile`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from wattmesh_a2a import a2a_profile as rpc
from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError, WattmeshError

log = logging.getLogger(__name__)

FIRST_REPLY_S, IDLE_S, ATTEMPTS = 15.0, 30.0, 3
"""Real seconds until the first reply and between two of a stream, and how often a request is sent (the profile's values)."""
_PAUSES_S = (1.0, 2.0, 4.0)
_RUNNING_AT_MOST, _PAUSED_AT_MOST, _LISTENERS_AT_MOST, _EVENTS_AT_MOST = 200, 1000, 8, 1000
_ASKED_AT_MOST = 2000
_ANSWER_AT_MOST = 8_000_000
"""Bytes of all that an agent answers to one request."""
_KEEP_NS = 3600 * NS_PER_S
"""For so long the outcome of a task is told again."""
_SEQUENCE = "wattmesh.sequence"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTask:
    """What an agent's own handler gets."""

    source: Address
    served: Address
    id: str
    context_id: str
    message: dict[str, Any]
    """The A2A message, as it came: nothing about its parts has been checked."""

    @property
    def text(self) -> str:
        """All its text parts."""
        parts = self.message.get("parts")
        found = [one.get("text") for one in parts if isinstance(one, dict)] if isinstance(parts, list) else []
        return "\n".join(one for one in found if isinstance(one, str))


PlainHandler = Callable[[PlainTask], AsyncIterator[dict[str, Any]]]
"""Yields A2A ``StreamResponse`` objects: ``{"statusUpdate": {"status": …}}``, ``{"artifactUpdate": {"artifact": …}}``, or a single
``{"message": …}``; ids and times are filled in. The task is completed when it ends, unless it said otherwise."""


class PlainHost(Protocol):
    """What the desk needs of :class:`wattmesh_a2a.delivery.Delivery`."""

    def stored_answer(self, key: str) -> bytes | None:
        """What was answered before."""
        ...

    def keep_answer(self, key: str, payload: bytes, expires_ns: int) -> None:
        """Keep an answer."""
        ...

    def takes(self, served: Address) -> list[str]:
        """Types that can be asked of an agent without a signature."""
        ...

    async def take_plain(self, served: Address, source: Address, task: str, name: str, data: object) -> bytes:
        """Handle a request of our vocabulary; the answer's envelope. Raises :class:`a2a_profile.RpcError`."""
        ...

    def within_pace(self, source: Address) -> bool:
        """Whether a peer may ask now."""
        ...

    async def reply_plain(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """Answer."""
        ...


@dataclass(frozen=True, slots=True)
class _Listener:
    topic: str
    correlation: bytes
    rpc_id: object
    streams: bool


@dataclass(slots=True)
class _Running:
    task: PlainTask
    listeners: list[_Listener]
    so_far: dict[str, Any]
    sequence: int = 0
    work: asyncio.Task[None] | None = None
    over: bool = False


class PlainDesk:
    """Serves agents of other makes.

    Args:
        host: Our messenger.
        clock: Of the time stamps.
    """

    def __init__(self, host: PlainHost, clock: Clock) -> None:
        self._host, self._clock = host, clock
        self._handlers: dict[Address, PlainHandler] = {}
        self._running: dict[str, _Running] = {}
        self._paused: OrderedDict[str, tuple[str, dict[str, Any]]] = OrderedDict()

    def on_plain(self, served: Address, handler: PlainHandler) -> None:
        """Have what is not in our vocabulary handled."""
        self._handlers[served] = handler

    def stop(self) -> None:
        """End what is under way."""
        for running in self._running.values():
            if running.work is not None:
                running.work.cancel()

    async def answer(
        self, served: Address, source: Address, payload: bytes, topic: str, correlation: bytes | None
    ) -> str | None:
        """Answer one JSON-RPC request; returns what was wrong with it, or none."""
        rpc_id: object = None
        try:
            rpc_id, method, params = rpc.parse_rpc(payload)
            if not correlation:
                raise rpc.protocol_error("correlation data is missing")
            listener = _Listener(topic, correlation, rpc_id, method == "SendStreamingMessage")
            answer = await self._one(served, source, listener, method, params)
        except rpc.RpcError as error:
            await self._host.reply_plain(topic, rpc.failure(rpc_id, error), correlation)
            return str(error)
        if answer is not None:
            await self._host.reply_plain(topic, answer, correlation)
        return None

    async def _one(
        self, served: Address, source: Address, listener: _Listener, method: str, params: dict[str, Any]
    ) -> bytes | None:
        task = rpc.task_id_of(method, params)
        key = f"{source}:a2a-{task}"
        running = self._running.get(key)
        if method == "CancelTask":
            return await self._cancel(key, task, listener.rpc_id)
        if method == "GetTask" and running is not None:
            return rpc.response(listener.rpc_id, {"task": running.so_far})
        if running is not None:
            return self._listen(running, listener)
        resumed = self._resumed(key, params) if method != "GetTask" else None
        stored = self._host.stored_answer(key) if resumed is None else None
        if stored is not None:
            return _told_again(listener.rpc_id, task, params, stored)
        if key in self._paused:  # asked for again, or the very message after which it waits
            return rpc.response(listener.rpc_id, {"task": self._paused[key][1]})
        if method == "GetTask":
            raise rpc.no_such_task(task)
        wanted = rpc.asked(params)
        if wanted is not None and resumed is None:
            answer = await self._host.take_plain(served, source, task, *wanted)
            return rpc.result(listener.rpc_id, task, params, codec.from_fields(codec.decode_fields(answer)))
        handler = self._handlers.get(served)
        if handler is None:
            if not any(isinstance(one.get("text"), str) for one in params["message"]["parts"]):
                raise rpc.not_understood()
            return rpc.text_result(listener.rpc_id, task, served, self._host.takes(served), self._clock.utc_ns())
        if len(self._running) >= _RUNNING_AT_MOST or not self._host.within_pace(source):
            raise rpc.protocol_error("too many are under way")
        self._begin(key, handler, served, source, task, params["message"], listener, resumed)
        return None

    def _resumed(self, key: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """The task so far, when this message continues one that had asked for input."""
        paused = self._paused.get(key)
        message = params.get("message")
        if paused is None or not isinstance(message, dict) or message.get("messageId") == paused[0]:
            return None
        del self._paused[key]
        return paused[1]

    def _begin(
        self,
        key: str,
        handler: PlainHandler,
        served: Address,
        source: Address,
        task_id: str,
        message: dict[str, Any],
        listener: _Listener,
        resumed: dict[str, Any] | None,
    ) -> None:
        context = message.get("contextId")
        context_id = context if isinstance(context, str) else ""
        task = PlainTask(source=source, served=served, id=task_id, context_id=context_id, message=message)
        so_far = resumed or {"id": task_id, "contextId": context_id}
        so_far["status"] = {"state": rpc.SUBMITTED, "timestamp": rpc.timestamp(self._clock.utc_ns())}
        running = self._running[key] = _Running(task, [listener], so_far)
        running.work = asyncio.get_running_loop().create_task(self._run(key, running, handler))

    async def _run(self, key: str, running: _Running, handler: PlainHandler) -> None:
        try:
            try:
                async for event in handler(running.task):
                    await self._event(key, running, event)
                    if running.over:
                        return
                if not running.over:
                    await self._event(key, running, _status(rpc.COMPLETED))
            except WattmeshError as error:
                await self._event(key, running, _status(rpc.FAILED, str(error)[:200]))
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("an agent's handler of plain A2A failed")
                await self._event(key, running, _status(rpc.FAILED, "the agent failed"))
        finally:
            self._running.pop(key, None)

    async def _event(self, key: str, running: _Running, event: dict[str, Any]) -> None:
        """Fill in, remember, tell everybody who listens; the last one is kept."""
        running.sequence += 1
        if running.sequence > _EVENTS_AT_MOST:
            raise InvalidMessageError("a task of too many events")
        task = running.task
        filled = _filled(event, task, self._clock.utc_ns(), running.sequence)
        state = _apply(running.so_far, filled)
        alone = "message" in filled
        running.over = alone or state in rpc.ENDS
        if alone or state in rpc.TERMINAL:
            kept = filled if alone else {"task": running.so_far}
            payload = json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()
            self._host.keep_answer(key, payload, self._clock.utc_ns() + _KEEP_NS)
        elif running.over:  # it waits for input
            self._paused[key] = (str(task.message.get("messageId")), running.so_far)
            if len(self._paused) > _PAUSED_AT_MOST:
                self._paused.popitem(last=False)
        for listener in list(running.listeners):
            if listener.streams:
                await self._tell(listener, filled)
            elif running.over:
                await self._tell(listener, filled if alone else {"task": running.so_far})

    async def _tell(self, listener: _Listener, result: dict[str, Any]) -> None:
        await self._host.reply_plain(listener.topic, rpc.response(listener.rpc_id, result), listener.correlation)

    def _listen(self, running: _Running, listener: _Listener) -> bytes | None:
        """A repetition: it hears the rest as well, and what there is so far."""
        if len(running.listeners) >= _LISTENERS_AT_MOST:
            raise rpc.protocol_error("it is under way, and too many listen")
        running.listeners.append(listener)
        if not listener.streams:
            return None
        so_far = {**running.so_far, "metadata": {_SEQUENCE: running.sequence}}
        return rpc.response(listener.rpc_id, {"task": so_far})

    async def _cancel(self, key: str, task: str, rpc_id: object) -> bytes:
        running = self._running.get(key)
        if running is not None and running.work is not None and not running.over:
            running.work.cancel()
            await asyncio.gather(running.work, return_exceptions=True)
            if not running.over:
                await self._event(key, running, _status(rpc.CANCELED))
            return rpc.response(rpc_id, {"task": running.so_far})
        paused = self._paused.pop(key, None)
        if paused is not None:
            so_far = paused[1]
            so_far["status"] = {"state": rpc.CANCELED, "timestamp": rpc.timestamp(self._clock.utc_ns())}
            kept = json.dumps({"task": so_far}, separators=(",", ":")).encode()
            self._host.keep_answer(key, kept, self._clock.utc_ns() + _KEEP_NS)
            return rpc.response(rpc_id, {"task": so_far})
        if self._host.stored_answer(key) is not None:
            raise rpc.not_cancelable(task)
        raise rpc.no_such_task(task)


def _status(state: str, text: str = "") -> dict[str, Any]:
    status: dict[str, Any] = {"state": state}
    if text:
        status["message"] = {"role": "ROLE_AGENT", "parts": [{"text": text}]}
    return {"statusUpdate": {"status": status}}


def _filled(event: dict[str, Any], task: PlainTask, now_ns: int, sequence: int) -> dict[str, Any]:
    ((kind, body),) = event.items()
    body = dict(body)
    if kind == "message":
        return {kind: {"messageId": uuid.uuid4().hex, "role": "ROLE_AGENT", "contextId": task.context_id, **body}}
    body |= {"taskId": task.id, "contextId": task.context_id, "metadata": {_SEQUENCE: sequence}}
    if kind == "statusUpdate":
        body["status"] = {"timestamp": rpc.timestamp(now_ns), **body["status"]}
        if "message" in body["status"]:
            ids = {"messageId": uuid.uuid4().hex, "taskId": task.id, "contextId": task.context_id}
            body["status"]["message"] = {**ids, **body["status"]["message"]}
    else:
        body["artifact"] = {"artifactId": uuid.uuid4().hex, **body["artifact"]}
    return {kind: body}


def _apply(so_far: dict[str, Any], event: dict[str, Any]) -> str:
    """Bring a task up to date; its state."""
    if "statusUpdate" in event:
        so_far["status"] = event["statusUpdate"]["status"]
    elif "artifactUpdate" in event:
        update = event["artifactUpdate"]
        artifacts = so_far.setdefault("artifacts", [])
        same = [one for one in artifacts if one["artifactId"] == update["artifact"]["artifactId"]]
        if same and update.get("append"):
            same[0]["parts"] = [*same[0]["parts"], *update["artifact"]["parts"]]
        elif same:
            same[0].update(update["artifact"])
        else:
            artifacts.append(dict(update["artifact"]))
    return str(so_far["status"]["state"])


def _told_again(rpc_id: object, task: str, params: dict[str, Any], stored: bytes) -> bytes:
    fields = codec.decode_fields(stored)
    if "specversion" in fields:
        return rpc.result(rpc_id, task, params, codec.from_fields(fields))
    return rpc.response(rpc_id, fields)


# -- asking


class PlainError(WattmeshError):
    """The other agent answered with a JSON-RPC error.

    Attributes:
        code: Of JSON-RPC or A2A.
        a2a_error: The profile's word for codes that collide with the core's, or none.
    """

    def __init__(self, code: int, message: str, a2a_error: str | None) -> None:
        super().__init__(f"{message[:200]} ({code})")
        self.code, self.a2a_error = code, a2a_error


@dataclass(slots=True)
class _Asked:
    replies: asyncio.Queue[dict[str, Any]] = field(default_factory=lambda: asyncio.Queue(_EVENTS_AT_MOST))
    size: int = 0


class PlainClient:
    """Asks agents by plain A2A.

    Args:
        send: Publishes (address of the agent, payload, correlation data).
        first_s: Real seconds to the first reply.
        idle_s: Between two of a stream.
    """

    def __init__(
        self,
        send: Callable[[Address, bytes, bytes], Awaitable[None]],
        *,
        first_s: float = FIRST_REPLY_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._send, self._first_s, self._idle_s = send, first_s, idle_s
        self._asked: dict[bytes, _Asked] = {}

    def take(self, correlation: bytes | None, payload: bytes) -> bool:
        """A message on our reply topic: whether it answers something asked here."""
        asked = self._asked.get(correlation) if correlation else None
        if asked is None:
            return False
        asked.size += len(payload)
        try:
            fields = codec.decode_fields(payload)
        except InvalidMessageError:
            fields = {"error": {"code": -32700, "message": "the agent answered with something that is no JSON"}}
        if asked.size > _ANSWER_AT_MOST:
            fields = {
                "error": {"code": -32603, "message": f"the agent answered with more than {_ANSWER_AT_MOST} bytes"}
            }
            while not asked.replies.empty():
                asked.replies.get_nowait()
        if not asked.replies.full():
            asked.replies.put_nowait(fields)
        return True

    async def ask(self, to: Address, method: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """All results of a request, up to the one that ends its stream; for anything but streams there is one.

        It is repeated with the same contents until the first reply; then the agent's silence ends it.

        Raises:
            PlainError: The agent's error.
            UnavailableError: It does not answer, or no more.
        """
        if len(self._asked) >= _ASKED_AT_MOST:
            raise UnavailableError("too many requests of other makes are under way")
        asked, correlations, seen, body = _Asked(), [], 0, {"jsonrpc": "2.0", "method": method, "params": params}
        try:
            reply: dict[str, Any] | None = None
            for attempt in range(ATTEMPTS):
                correlation = uuid.uuid4().hex.encode()
                correlations.append(correlation)
                self._asked[correlation] = asked
                payload = json.dumps({**body, "id": correlation.decode()}, separators=(",", ":"), ensure_ascii=False)
                await self._send(to, payload.encode(), correlation)
                pause_s = (
                    self._first_s
                    if attempt == ATTEMPTS - 1
                    else min(self._first_s, _PAUSES_S[attempt] * random.uniform(0.8, 1.2))
                )
                reply = await _within(asked.replies, pause_s)
                if reply is not None:
                    break
            while reply is not None:
                result = _result(reply)
                sequence, ends = _read(result)
                if sequence is None or sequence > seen:
                    seen = sequence or seen
                    yield result
                if ends or method != "SendStreamingMessage":
                    return
                reply = await _within(asked.replies, self._idle_s)
            raise UnavailableError(f"{to} does not answer")
        finally:
            for correlation in correlations:
                self._asked.pop(correlation, None)


async def _within(replies: asyncio.Queue[dict[str, Any]], seconds: float) -> dict[str, Any] | None:
    if not replies.empty():
        return replies.get_nowait()
    try:
        async with asyncio.timeout(seconds):
            return await replies.get()
    except TimeoutError:
        return None


def _result(reply: dict[str, Any]) -> dict[str, Any]:
    error = reply.get("error")
    if isinstance(error, dict):
        data, code = error.get("data"), error.get("code")
        word = data.get("a2a_error") if isinstance(data, dict) else None
        raise PlainError(
            code if isinstance(code, int) else -32603,
            str(error.get("message", "")),
            word if isinstance(word, str) else None,
        )
    result = reply.get("result")
    if not isinstance(result, dict):
        raise PlainError(-32603, "the agent answered with neither result nor error", None)
    return result


def _read(result: dict[str, Any]) -> tuple[int | None, bool]:
    """The place in its stream, taken off, and whether nothing follows."""
    for kind in ("statusUpdate", "artifactUpdate", "task"):
        body = result.get(kind)
        if isinstance(body, dict):
            status = body.get("status")
            state = status.get("state") if isinstance(status, dict) else None
            metadata = body.pop("metadata", None)
            place = metadata.get(_SEQUENCE) if isinstance(metadata, dict) else None
            return (place if isinstance(place, int) else None), state in rpc.ENDS
    return None, True
