"""The tools as AWS Lambda handlers for AgentCore Gateway: one function a service, the tool named by the gateway.

The gateway puts the tool's name into the client context (``bedrockAgentCoreToolName``, with the target's name and ``___`` in
front) and the arguments into the event. Who calls is what the function's own environment says (``WATTMESH_ROLES``, and the
role it runs as): a gateway's caller is authorised by the gateway, and its arguments can name nobody.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError, WattmeshError
from wattmesh_a2a.market import Order

from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.store.base import JsonValue
from wattmesh_cloud.tools.base import Caller, Context, error_code
from wattmesh_cloud.tools.catalogue import CATALOGUE, tool

_TOOL_NAME = "bedrockAgentCoreToolName"
_MOST_ANSWER_BYTES = 5_000_000
"""Below Lambda's 6 MB."""


class QueuedActions:
    """Actions to the market's writer by an SQS FIFO queue, which drops repetitions; answered "accepted", not "done".

    Args:
        url: Of the queue.
        area: The message group: one writer, in order.
        client: An SQS client.
    """

    def __init__(self, url: str, area: str, client: Any = None) -> None:
        self._url, self._area = url, area
        self._client = client or boto3.client("sqs")

    async def halt(self, reason: str) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        return self._send({"action": "halt", "reason": reason})

    async def resume(self) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        return self._send({"action": "resume"})

    async def order(self, site_id: str, slot_start_ns: int, orders: tuple[Order, ...]) -> list[dict[str, JsonValue]]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        plain = [
            {
                "client_order_id": one.client_order_id,
                "side": one.side.value,
                "quantity_wh": one.quantity_wh,
                "price_ticks": one.price_ticks,
            }
            for one in orders
        ]
        return [self._send({"action": "order", "site": site_id, "slot_start_ns": slot_start_ns, "orders": plain})]

    def _send(self, message: Mapping[str, Any]) -> dict[str, JsonValue]:
        try:
            answer = self._client.send_message(
                QueueUrl=self._url, MessageBody=json.dumps(message, sort_keys=True), MessageGroupId=self._area
            )
        except Exception as error:
            raise UnavailableError(f"the market's queue does not take it: {error}") from error
        return {"accepted": True, "message": str(answer["MessageId"])}


@cache
def context() -> Context:
    """What the handlers work on, once an execution environment, by its environment variables."""
    from wattmesh_cloud.store.dynamodb import DynamoStore

    area, queue = os.environ["WATTMESH_AREA"], os.environ.get("WATTMESH_ACTION_QUEUE")
    audit = AuditLog(Path(os.environ.get("WATTMESH_AUDIT", "/tmp/wattmesh/audit.log")))  # noqa: S108 - Lambda's only writable folder
    return Context(
        store=DynamoStore(os.environ["WATTMESH_TABLE_PREFIX"]),
        clock=SystemClock(),
        area=area,
        audit=audit,
        actions=QueuedActions(queue, area) if queue else None,
    )


def handle(service: str, event: object, runtime: object) -> dict[str, Any]:
    """Do what the gateway asks of one service; an error is an answer with its code, never an exception with a trace."""
    try:
        name = _tool_name(runtime, event)
        found = tool(name)
        if found is None or found.service != service:
            raise InvalidMessageError(f"{service} has no tool {name[:80]!r}")
        if not isinstance(event, Mapping):
            raise InvalidMessageError("the arguments are no object")
        roles = frozenset(os.environ.get("WATTMESH_ROLES", "reader").split(","))
        sites = os.environ.get("WATTMESH_SITES")
        caller = Caller(
            id=os.environ.get("WATTMESH_CALLER", f"lambda:{service}"),
            roles=roles,
            sites=frozenset(sites.split(",")) if sites else None,
        )
        arguments = {key: value for key, value in event.items() if key != "toolName"}
        result = asyncio.run(found.call(context(), caller, arguments))
        if len(json.dumps(result)) > _MOST_ANSWER_BYTES:
            raise InvalidMessageError("the answer is too large; ask for a shorter window or fewer rows")
    except WattmeshError as error:
        return {"error": {"code": error_code(error), "message": str(error), "retryable": error.retryable}}
    return {"result": result}


def _tool_name(runtime: object, event: object) -> str:
    custom = getattr(getattr(runtime, "client_context", None), "custom", None) or {}
    name = custom.get(_TOOL_NAME) if isinstance(custom, Mapping) else None
    if name is None and isinstance(event, Mapping):
        name = event.get("toolName")  # a direct call, as tests and operators make it
    if not isinstance(name, str):
        raise InvalidMessageError("the event names no tool")
    return name


def weather_forecast(event: object, runtime: object) -> dict[str, Any]:
    """Lambda handler of the service weather-forecast."""
    return handle("weather-forecast", event, runtime)


def historical_data(event: object, runtime: object) -> dict[str, Any]:
    """Lambda handler of the service historical-data."""
    return handle("historical-data", event, runtime)


def trading_api(event: object, runtime: object) -> dict[str, Any]:
    """Lambda handler of the service trading-api."""
    return handle("trading-api", event, runtime)


def grid_management(event: object, runtime: object) -> dict[str, Any]:
    """Lambda handler of the service grid-management."""
    return handle("grid-management", event, runtime)


def energy_trading_actions(event: object, runtime: object) -> dict[str, Any]:
    """Lambda handler of the service energy-trading-actions."""
    return handle("energy-trading-actions", event, runtime)


def gateway_schema(service: str) -> list[dict[str, Any]]:
    """A service's tools as AgentCore Gateway takes them (``ToolSchema.InlinePayload``)."""
    return [
        {"name": one.name, "description": one.description, "inputSchema": _inlined(one.schema())}
        for one in CATALOGUE
        if one.service == service
    ]


_KEPT = ("type", "description", "properties", "required", "items")


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of JSON Schema that the gateway knows: types, texts, properties, items; references put in place."""
    definitions = schema.get("$defs", {})

    def plain(one: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in one:
            one = {**definitions[one["$ref"].rsplit("/", 1)[-1]], **{k: v for k, v in one.items() if k != "$ref"}}
        kept = {key: one[key] for key in _KEPT if key in one}
        if "properties" in kept:
            kept["properties"] = {name: plain(value) for name, value in kept["properties"].items()}
        if "items" in kept:
            kept["items"] = plain(kept["items"])
        kept.setdefault("type", "string")
        return kept

    return plain(schema)
