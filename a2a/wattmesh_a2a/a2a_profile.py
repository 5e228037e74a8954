"""Plain A2A over MQTT (the published profile): agents of other makes ask ours in JSON-RPC, on the same topics.

A request is ``SendMessage`` with a client-made ``taskId`` (the key by which a repetition is recognised) and one part: ``data``
with ``{"type": …, "data": …}`` of our vocabulary, or ``text``, which is answered with what the agent takes. It comes without our
signature and is served as such: what moves power or money is refused. Answers are A2A tasks.

Anything else goes to the agent's own handler, if it has one (:mod:`wattmesh_a2a.plain`).

Sources: A2A specification 1.0; A2A over MQTT v0.1, whose error codes collide with the core's, hence ``error.data.a2a_error``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import Address, Envelope, TaskState
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import Refused

SUBMITTED, WORKING, COMPLETED, FAILED, CANCELED, REJECTED, INPUT_REQUIRED = (
    f"TASK_STATE_{name}"
    for name in ("SUBMITTED", "WORKING", "COMPLETED", "FAILED", "CANCELED", "REJECTED", "INPUT_REQUIRED")
)
TERMINAL = frozenset({COMPLETED, FAILED, CANCELED, REJECTED})
"""No message follows."""
ENDS = TERMINAL | {INPUT_REQUIRED, "TASK_STATE_AUTH_REQUIRED"}
"""A stream ends."""
METHODS = frozenset({"SendMessage", "SendStreamingMessage", "GetTask", "CancelTask"})

_VALID_S = 60
_NOT_CANCELABLE = -32002
_PARSE, _METHOD, _PARAMS, _TASK = -32700, -32601, -32602, -32001
_EXPIRED, _UNAVAILABLE, _PROTOCOL = -32003, -32004, -32005
_ERRORS = {_EXPIRED: "request_expired", _UNAVAILABLE: "responder_unavailable", _PROTOCOL: "transport_protocol_error"}
_ID_AT_MOST = 128


class RpcError(Exception):
    """A JSON-RPC error to be answered."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def looks_like_rpc(payload: bytes) -> bool:
    """Whether a request is JSON-RPC rather than one of our envelopes; cheap."""
    return b'"jsonrpc"' in payload[:4000] and b'"specversion"' not in payload


def requester_of(response_topic: str, reply_prefix: str) -> Address:
    """Who asks, by the topic on which it wants its answer; raises :class:`InvalidMessageError`."""
    parts = response_topic.removeprefix(f"{reply_prefix}/").split("/")
    if not response_topic.startswith(f"{reply_prefix}/") or len(parts) != 4 or {"+", "#"} & set(parts):
        raise InvalidMessageError("a response topic that is no reply topic")
    return Address(*parts[:3])


def parse_rpc(payload: bytes) -> tuple[str | int | None, str, dict[str, Any]]:
    """Id, method and parameters; raises :class:`RpcError`."""
    try:
        fields = codec.decode_fields(payload)
    except InvalidMessageError as error:
        raise RpcError(_PARSE, "not JSON that we take") from error
    found, method, params = fields.get("id"), fields.get("method"), fields.get("params", {})
    if isinstance(found, bool) or not isinstance(found, str | int | None) or len(str(found)) > _ID_AT_MOST:
        found = None
    if fields.get("jsonrpc") != "2.0" or not isinstance(method, str) or not isinstance(params, dict):
        raise RpcError(_PARAMS, "no JSON-RPC 2.0 request")
    return found, method, params


def task_id_of(method: str, params: dict[str, Any]) -> str:
    """The client's task; raises :class:`RpcError`."""
    if method not in METHODS:
        raise RpcError(_METHOD, f"{method[:40]} is not served here")
    of_task = method in {"GetTask", "CancelTask"}
    message = params if of_task else params.get("message")
    if not isinstance(message, dict):
        raise RpcError(_PARAMS, "params.message is missing")
    task = message.get("id" if of_task else "taskId")
    if not isinstance(task, str) or not 0 < len(task) <= _ID_AT_MOST or not task.isprintable():
        raise RpcError(_PROTOCOL, "the requester makes the task's id: message.taskId is missing")
    return task


def asked(params: dict[str, Any]) -> tuple[str, Any] | None:
    """Type and data of a message of our vocabulary; none for anything else. Raises :class:`RpcError`."""
    parts = params["message"].get("parts")
    if not isinstance(parts, list) or not parts or not all(isinstance(one, dict) for one in parts):
        raise RpcError(_PARAMS, "message.parts is missing")
    data = parts[0].get("data")
    if len(parts) != 1 or not isinstance(data, dict) or not isinstance(data.get("type"), str):
        return None
    return data["type"], data.get("data", {})


def request_fields(source: Address, served: Address, task: str, name: str, data: Any, clock: Clock) -> dict[str, Any]:
    """One of our envelopes, unsigned, for what a peer asked."""
    now = clock.utc_ns()
    return {
        "specversion": "1.0", "id": f"a2a-{task}", "source": str(source), "destination": str(served), "type": name[:200] or "-",
        "timens": now, "session": "a2a", "sequence": 0, "expiresns": now + _VALID_S * NS_PER_S, "data": data,
    }  # fmt: skip


def result(rpc_id: object, task: str, params: dict[str, Any], answer: Envelope) -> bytes:
    """The answer as an A2A task."""
    message = params.get("message")
    context = message.get("contextId") if isinstance(message, dict) else None
    state = (answer.state or TaskState.COMPLETED).value
    status: dict[str, Any] = {"state": state, "timestamp": timestamp(answer.time_ns)}
    made: dict[str, Any] = {"id": task, "contextId": context if isinstance(context, str) else "", "status": status}
    data = {"type": answer.type, "data": codec.message_to_json(answer.data)}
    if isinstance(answer.data, Refused):
        text = f"{answer.data.error}: {answer.data.detail}"
        status["message"] = {"messageId": answer.id, "role": "ROLE_AGENT", "parts": [{"text": text}, {"data": data}]}
    else:
        made["artifacts"] = [{"artifactId": answer.id, "name": answer.type, "parts": [{"data": data}]}]
    return response(rpc_id, {"task": made})


def text_result(rpc_id: object, task: str, served: Address, requests: list[str], moment_ns: int) -> bytes:
    """The answer to plain text: what can be asked."""
    text = f"I am {served}. Ask with a data part of one of these types: {', '.join(sorted(requests))}"
    status = {"state": COMPLETED, "timestamp": timestamp(moment_ns)}
    made = {
        "id": task,
        "contextId": "",
        "status": status,
        "artifacts": [{"artifactId": task, "parts": [{"text": text}]}],
    }
    return response(rpc_id, {"task": made})


def response(rpc_id: object, result: dict[str, Any]) -> bytes:
    """A result."""
    return _dumped({"jsonrpc": "2.0", "id": rpc_id, "result": result})


def timestamp(moment_ns: int) -> str:
    """A time as A2A writes it (RFC 3339, UTC, milliseconds)."""
    return datetime.fromtimestamp(moment_ns / NS_PER_S, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def failure(rpc_id: object, error: RpcError) -> bytes:
    """The answer to what cannot be served."""
    fields: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.code in _ERRORS:
        fields["data"] = {"a2a_error": _ERRORS[error.code]}
    return _dumped({"jsonrpc": "2.0", "id": rpc_id, "error": fields})


def no_such_task(task: str) -> RpcError:
    """For a task that nobody asked, or whose memory is over."""
    return RpcError(_TASK, f"there is no task {task}")


def not_understood() -> RpcError:
    """For parts that nobody here takes."""
    return RpcError(_PARAMS, 'a part is text, or data of the form {"type": …, "data": …}')


def not_cancelable(task: str) -> RpcError:
    """For a task that is over."""
    return RpcError(_NOT_CANCELABLE, f"task {task} is over")


def protocol_error(cause: str) -> RpcError:
    """For a request that breaks the profile."""
    return RpcError(_PROTOCOL, cause)


def _dumped(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
