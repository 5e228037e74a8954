"""From a task of the SDK to an agent over MQTT and back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.types import Message, Part, Role, Task, TaskArtifactUpdateEvent, TaskState, TaskStatus, TaskStatusUpdateEvent
from a2a.utils.errors import InternalError, UnsupportedOperationError
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from wattmesh_a2a import a2a_profile as rpc
from wattmesh_a2a import codec, messages
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError, WattmeshError
from wattmesh_a2a.plain import PlainError

from wattmesh_cloud.a2a_http.access import READ_ONLY, may_ask
from wattmesh_cloud.tools.base import Caller

log = logging.getLogger(__name__)

_VALID_S = 60
_ANSWER_S = 15.0

Audit = Callable[[str, str, str, dict[str, Any]], None]
"""(actor, action, outcome, details); raises :class:`UnavailableError` when it cannot be written."""


class BridgeMessenger(Protocol):
    """What the bridge needs of :class:`wattmesh_a2a.delivery.Delivery`."""

    async def request(
        self,
        to: Address,
        message: messages.Message,
        *,
        expires_ns: int,
        timeout_s: float | None = None,
        as_agent: Address | None = None,
        request_id: str | None = None,
    ) -> messages.Message:
        """Ask in our vocabulary."""
        ...

    def ask_plain(self, to: Address, method: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Ask by plain A2A."""
        ...


class BridgeExecutor(AgentExecutor):
    """Executes tasks by asking one agent.

    Data parts of our vocabulary become requests, signed where the cloud's key is at hand and the caller's role allows the type.
    Everything else is handed on as it is.

    Args:
        messenger: Asks.
        agent: Whom.
        as_agent: In whose name typed requests go.
        clock: Of their validity.
        is_there: Whether the agent is connected.
        audit: Writes down who asked for an action.
    """

    def __init__(
        self,
        messenger: BridgeMessenger,
        agent: Address,
        as_agent: Address,
        clock: Clock,
        is_there: Callable[[Address], bool],
        audit: Audit,
    ) -> None:
        self._messenger, self._agent, self._as_agent = messenger, agent, as_agent
        self._clock, self._is_there, self._audit = clock, is_there, audit

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """See ``a2a.server.agent_execution.AgentExecutor``."""
        assert context.message is not None
        out = _Out(context, event_queue)
        message = _plain(MessageToDict(context.message))
        if not self._is_there(self._agent):
            await out.status(TaskState.TASK_STATE_FAILED, f"{self._agent} is not connected; try again later")
            return
        try:
            wanted = rpc.asked({"message": message}) if context.current_task is None else None
        except rpc.RpcError as error:
            await out.status(TaskState.TASK_STATE_REJECTED, str(error))
            return
        try:
            if wanted is not None:
                await self._typed(context, out, *wanted)
            else:
                await self._handed_on(out, message)
        except PlainError as error:
            refused = error.code == -32602 or error.a2a_error == "transport_protocol_error"
            state = TaskState.TASK_STATE_REJECTED if refused else TaskState.TASK_STATE_FAILED
            await out.status(state, str(error))
        except WattmeshError as error:
            await out.status(TaskState.TASK_STATE_FAILED, str(error))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """See ``a2a.server.agent_execution.AgentExecutor``."""
        try:
            async for _ in self._messenger.ask_plain(self._agent, "CancelTask", {"id": context.task_id}):
                pass
        except PlainError as error:
            raise UnsupportedOperationError(message=str(error)) from error
        except UnavailableError as error:
            raise InternalError(message=str(error)) from error
        await _Out(context, event_queue, begun=True).status(TaskState.TASK_STATE_CANCELED)

    async def _typed(self, context: RequestContext, out: _Out, name: str, data: object) -> None:
        caller: Caller = context.call_context.state["caller"]
        actor = f"a2a:{caller.id}"
        if not may_ask(caller, name, self._agent):
            self._audit(actor, f"a2a.{name[:100]}", "refused", {"agent": str(self._agent)})
            await out.status(TaskState.TASK_STATE_REJECTED, f"your role may not ask for {name[:100]}")
            return
        try:
            message = codec.message_from_json(name, data)
        except InvalidMessageError as error:
            await out.status(TaskState.TASK_STATE_REJECTED, str(error))
            return
        if name not in READ_ONLY:  # before the effect: what cannot be written down is not done
            self._audit(actor, f"a2a.{name}", "asked", {"agent": str(self._agent), "task": context.task_id})
        await out.begin()
        answer = await self._messenger.request(
            self._agent,
            message,
            expires_ns=self._clock.utc_ns() + _VALID_S * NS_PER_S,
            timeout_s=_ANSWER_S,
            as_agent=self._as_agent,
            request_id=f"a2a-{context.task_id}",
        )
        if isinstance(answer, messages.Refused):
            await out.status(TaskState.TASK_STATE_REJECTED, f"{answer.error}: {answer.detail}")
            return
        found = {"type": codec.type_name(answer), "data": codec.message_to_json(answer)}
        await out.result(
            {"artifactUpdate": {"artifact": {"artifactId": f"{context.task_id}-answer", "parts": [{"data": found}]}}}
        )
        await out.status(TaskState.TASK_STATE_COMPLETED)

    async def _handed_on(self, out: _Out, message: dict[str, Any]) -> None:
        async for result in self._messenger.ask_plain(self._agent, "SendStreamingMessage", {"message": message}):
            await out.result(result)


class _Out:
    """Events of one execution, in the order that the SDK wants: a task before its updates, or a message alone."""

    def __init__(self, context: RequestContext, queue: EventQueue, *, begun: bool = False) -> None:
        self._context, self._queue = context, queue
        known = context.current_task
        self._context_id = known.context_id if known is not None else context.context_id
        self._begun = begun or known is not None

    async def begin(self) -> None:
        """Make the task known."""
        if self._begun:
            return
        self._begun = True
        context = self._context
        assert context.message is not None
        task = Task(id=context.task_id, context_id=self._context_id, history=[context.message])
        task.status.CopyFrom(_now(TaskState.TASK_STATE_SUBMITTED))
        await self._queue.enqueue_event(task)

    async def status(self, state: int, text: str = "") -> None:
        """Tell a state."""
        await self.begin()
        status = _now(state)
        if text:
            status.message.CopyFrom(self._message(text))
        await self._queue.enqueue_event(
            TaskStatusUpdateEvent(task_id=self._context.task_id, context_id=self._context_id, status=status)
        )

    async def result(self, result: dict[str, Any]) -> None:
        """Hand on what the agent said; raises :class:`PlainError` when that is no A2A."""
        try:
            if "message" in result and not self._begun:
                await self._queue.enqueue_event(
                    self._own(ParseDict(result["message"], Message(), ignore_unknown_fields=True))
                )
                return
            await self.begin()
            if "statusUpdate" in result:
                event = self._own(
                    ParseDict(result["statusUpdate"], TaskStatusUpdateEvent(), ignore_unknown_fields=True)
                )
                if not event.status.HasField("timestamp"):
                    event.status.timestamp.GetCurrentTime()
                await self._queue.enqueue_event(event)
            elif "artifactUpdate" in result:
                await self._queue.enqueue_event(
                    self._own(
                        ParseDict(result["artifactUpdate"], TaskArtifactUpdateEvent(), ignore_unknown_fields=True)
                    )
                )
            elif "task" in result:
                await self._task(ParseDict(result["task"], Task(), ignore_unknown_fields=True))
            elif "message" in result:  # the SDK takes none after a task
                said = ParseDict(result["message"], Message(), ignore_unknown_fields=True)
                await self.status(TaskState.TASK_STATE_COMPLETED, "\n".join(one.text for one in said.parts if one.text))
        except (ParseError, TypeError, ValueError) as error:
            raise PlainError(-32603, f"the agent's answer is no A2A: {error}", None) from error

    async def _task(self, found: Task) -> None:
        """A whole task from the agent, as updates of ours."""
        for artifact in found.artifacts:
            event = TaskArtifactUpdateEvent(artifact=artifact)
            await self._queue.enqueue_event(self._own(event))
        status = TaskStatusUpdateEvent(status=found.status)
        await self._queue.enqueue_event(self._own(status))

    def _own(self, event: Any) -> Any:
        """With our ids, whatever the agent wrote."""
        if not isinstance(event, Message):
            event.task_id = self._context.task_id
        event.context_id = self._context_id
        return event

    def _message(self, text: str) -> Message:
        context = self._context
        return Message(
            message_id=f"{context.task_id}-status",
            role=Role.ROLE_AGENT,
            task_id=context.task_id,
            context_id=self._context_id,
            parts=[Part(text=text)],
        )


def _now(state: int) -> TaskStatus:
    status = TaskStatus(state=state)  # type: ignore[arg-type]  # the stub wants the enumeration's wrapper
    status.timestamp.GetCurrentTime()
    return status


def _plain(value: Any) -> Any:
    """JSON with whole numbers as such: protobuf has doubles alone."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value
