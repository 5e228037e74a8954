"""The tools as AWS Lambda handlers for AgentCore Gateway: one function a service, the tool named by the gateway.

The gateway puts the tool's name into the client context (``bedrockAgentCoreToolName``, with the target's name and ``___`` in
front) and the arguments into the event. Who calls is what the function's own environment says (``WATTMESH_ROLES``, and the
role it runs as): a gateway's caller is authorised by the gateway, and its arguments can name nobody. The same functions
answer action groups of Bedrock Agents, in that service's form (:mod:`wattmesh_cloud.tools.classic`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.codec import canonical, encode, parse_record, to_fields, type_name
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, INGEST_AGENT, Address, Envelope
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError, WattmeshError
from wattmesh_a2a.market import Order
from wattmesh_a2a.messages import TelemetryAck
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.topics import MAX_PAYLOAD_BYTES, Topics

from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.emf import emf_line
from wattmesh_cloud.frames import Samples, decode_frame
from wattmesh_cloud.ingest import IngestLimits, items_of
from wattmesh_cloud.store.base import Derived, FrameRow, Item, JsonValue, Store, Table
from wattmesh_cloud.tools.base import Caller, Context, Tool, error_code
from wattmesh_cloud.tools.catalogue import tool
from wattmesh_cloud.tools.classic import answer as classic_answer
from wattmesh_cloud.tools.classic import is_classic

log = logging.getLogger(__name__)

_TOOL_NAME = "bedrockAgentCoreToolName"
_ACK_SEQUENCES = 500
_LAKE_AFTER_S = 600
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

    async def suspend(self, site_id: str, reason: str) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        return self._send({"action": "suspend", "site": site_id, "reason": reason})

    async def reinstate(self, site_id: str) -> dict[str, JsonValue]:
        """See :class:`wattmesh_cloud.tools.base.ActionPort`."""
        return self._send({"action": "reinstate", "site": site_id})

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
        except (BotoCoreError, ClientError) as error:
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
    """Do what the gateway, or an action group of Bedrock Agents, asks of one service.

    An error is an answer with its code, never an exception with a trace.
    """
    if is_classic(event) and _gateway_name(runtime) is None:
        assert isinstance(event, Mapping)
        return classic_answer(event, lambda found, arguments: _done(service, found, found.name, arguments))
    try:
        name = _tool_name(runtime, event)
        found = tool(name)
        if not isinstance(event, Mapping):
            raise InvalidMessageError("the arguments are no object")
        arguments = {key: value for key, value in event.items() if key != "toolName"}
        result = _done(service, found, name, arguments)
    except WattmeshError as error:
        return {"error": {"code": error_code(error), "message": str(error), "retryable": error.retryable}}
    return {"result": result}


def _done(service: str, found: Tool | None, name: str, arguments: Mapping[str, Any]) -> Any:
    """One call with the authority that the function's environment gives, whoever asks."""
    if found is None or found.service != service:
        raise InvalidMessageError(f"{service} has no tool {name[:80]!r}")
    sites = os.environ.get("WATTMESH_SITES")
    caller = Caller(
        id=os.environ.get("WATTMESH_CALLER", f"lambda:{service}"),
        roles=frozenset(os.environ.get("WATTMESH_ROLES", "reader").split(",")),
        sites=frozenset(sites.split(",")) if sites else None,
    )
    result = asyncio.run(found.call(context(), caller, arguments))
    if len(json.dumps(result)) > _MOST_ANSWER_BYTES:
        raise InvalidMessageError("the answer is too large; ask for a shorter window or fewer rows")
    return result


def _gateway_name(runtime: object) -> object:
    custom = getattr(getattr(runtime, "client_context", None), "custom", None) or {}
    return custom.get(_TOOL_NAME) if isinstance(custom, Mapping) else None


def _tool_name(runtime: object, event: object) -> str:
    name = _gateway_name(runtime)
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


def telemetry(event: Mapping[str, Any], runtime: object) -> dict[str, Any]:
    """Lambda handler of the telemetry queue: frames into the store, each exactly once, then acknowledged to its gateway.

    A message is what the IoT rule puts into the queue: ``{"topic": …, "frame": BASE64}``. One that can never be stored fails
    until the queue's redrive policy puts it to the dead letters; the others of its batch are not held up.
    """
    failures: list[str] = []
    frames: list[tuple[str, FrameRow, Derived]] = []
    now_ns = SystemClock().utc_ns()
    for record in event["Records"]:
        try:
            frames.append((record["messageId"], *_checked(record["body"], now_ns)))
        except (InvalidMessageError, KeyError, TypeError, ValueError) as error:
            log.warning("%s", json.dumps({"refused": str(error)[:300], "message": record["messageId"]}))
            failures.append(record["messageId"])
    done: dict[tuple[str, str], dict[int, bool]] = defaultdict(dict)
    store = context().store
    for name, row, derived in frames:
        try:
            (new,) = store.append_frames([(row, derived)])
            done[row[0], row[1]][row[2]] = new
        except (WattmeshError, ValueError) as error:
            log.warning("%s", json.dumps({"not_stored": str(error)[:300], "message": name}))
            failures.append(name)
    fresh = [row[5] for _, row, _ in frames if done.get((row[0], row[1]), {}).get(row[2])]
    _figures(
        wattmesh_ingest_batches_total=len(fresh),
        wattmesh_ingest_records_total=sum(fresh),
        wattmesh_ingest_duplicates_total=len(frames) - len(fresh),
        wattmesh_ingest_invalid_total=len(event["Records"]) - len(frames),
    )
    every = int(os.environ.get("WATTMESH_ACK_EVERY", "1"))
    for (site, stream), taken in done.items():
        for sequences in _due(store, site, stream, taken, every):
            _acknowledge(site, stream, sequences, now_ns)
    return {"batchItemFailures": [{"itemIdentifier": name} for name in failures]}


def _figures(**values: float) -> None:
    """Into the log as CloudWatch makes metrics of it, under the names that ``/metrics`` has."""
    if (namespace := os.environ.get("WATTMESH_METRICS")) is not None:
        sys.stdout.write(emf_line(namespace, SystemClock().utc_ns(), (), values) + "\n")


def lake(event: object, runtime: object) -> dict[str, Any]:
    """Lambda handler of the lake's schedule: days that are over go from the tables to the bucket. One at a time."""
    from wattmesh_cloud.lake import Lake
    from wattmesh_cloud.lake.s3 import S3Storage

    storage = S3Storage(os.environ["WATTMESH_LAKE"])
    days = Lake(storage).catch_up(context().store, SystemClock().utc_ns() - _LAKE_AFTER_S * NS_PER_S)
    return {"days": days}


def _due(store: Store, site: str, stream: str, taken: Mapping[int, bool], every: int) -> list[tuple[int, ...]]:
    """What to acknowledge now of the sequences taken (whether each was new).

    An acknowledgement costs as much as many batches by Basic Ingest, so one stands for ``every`` of them: each
    ``every``-th sequence acknowledges what is stored around it, whatever function took that. One that comes again says that
    its acknowledgement is missing.
    """
    if every <= 1:
        return [tuple(taken)]
    around: set[int] = set()
    for sequence, new in taken.items():
        if not new or sequence % every == every - 1:
            first, last = max(0, sequence - 2 * every + 1), sequence + every - 1
            around.update(store.held(site, stream, first, last))
    found = sorted(around)
    return [tuple(found[at : at + _ACK_SEQUENCES]) for at in range(0, len(found), _ACK_SEQUENCES)]


def _checked(body: str, now_ns: int) -> tuple[FrameRow, Derived]:
    message = json.loads(body)
    topic = str(message["topic"])
    _, site, stream = Topics().parse_telemetry(topic)
    frame = base64.b64decode(str(message["frame"]), validate=True)
    if len(frame) > MAX_PAYLOAD_BYTES:
        raise InvalidMessageError(f"a frame of {len(frame)} bytes")
    batch = decode_frame(frame)
    if (batch.site_id, batch.stream) != (site, stream):
        raise InvalidMessageError(f"frame of {batch.site_id}/{batch.stream} on another's topic")
    span = (now_ns, now_ns)
    derived: list[tuple[Table, Item]] = []
    if isinstance(batch, Samples):
        span = batch.span()
        if span[1] > now_ns + IngestLimits().ahead_s * NS_PER_S:
            raise InvalidMessageError("samples of the future: the gateway's clock is wrong")
    else:
        for line in batch.lines:
            try:
                derived += items_of(site, parse_record(line))
            except InvalidMessageError as error:
                log.warning("%s", json.dumps({"record_not_understood": str(error)[:300], "site": site}))
    return (site, stream, batch.sequence, *span, batch.records, frame), derived


def _acknowledge(site: str, stream: str, sequences: tuple[int, ...], now_ns: int) -> None:
    """Tell the gateway; a lost acknowledgement is made up for by the batch coming again."""
    org = os.environ["WATTMESH_ORG"]
    source = Address(org, CLOUD_UNIT, INGEST_AGENT)
    ack = TelemetryAck(stream=stream, sequences=sequences)
    name = uuid.uuid4().hex
    gateway = Address(org, site, GATEWAY_AGENT)
    envelope = Envelope(
        id=name, source=source, destination=gateway, type=type_name(ack), time_ns=now_ns, session="lambda", sequence=0,
        expires_ns=now_ns + 3600 * NS_PER_S, data=ack,
    )  # fmt: skip
    signature = keys().sign(source, gateway, canonical(to_fields(envelope)))
    if signature is None:
        log.warning("%s", json.dumps({"not_acknowledged": "no key of this site", "site": site}))
        return
    try:
        iot().publish(
            topic=Topics().request(gateway),
            qos=1,
            payload=encode(envelope, signature),
            responseTopic=Topics().reply(source, "lambda"),
            correlationData=base64.b64encode(name.encode()).decode(),
            messageExpiry=3600,
        )
    except (BotoCoreError, ClientError) as error:
        log.warning("%s", json.dumps({"not_acknowledged": str(error)[:300], "site": site}))


class ParameterKeys:
    """The sites' keys in AWS Systems Manager, one encrypted parameter a site, each read once an execution environment.

    Args:
        prefix: In front of the sites' names, ``/wattmesh/production/keys/``.
        client: An SSM client.
    """

    def __init__(self, prefix: str, client: Any = None) -> None:
        self._prefix = prefix
        self._client = client or boto3.client("ssm")
        self._rings: dict[str, KeyRing] = {}

    def sign(self, source: Address, destination: Address, content: bytes) -> str | None:
        """See :class:`wattmesh_a2a.signing.Signer`; none for a site without a key, or while it cannot be read."""
        site = destination.unit
        if site not in self._rings:
            try:
                answer = self._client.get_parameter(Name=self._prefix + site, WithDecryption=True)
                self._rings[site] = KeyRing({site: bytes.fromhex(answer["Parameter"]["Value"].strip())})
            except (BotoCoreError, ClientError, ValueError) as error:
                # Never the value: what cannot be read is told by its kind alone.
                log.warning("%s", json.dumps({"no_key": type(error).__name__, "site": site}))
                return None
        return self._rings[site].sign(source, destination, content)


@cache
def keys() -> KeyRing | ParameterKeys:
    """The sites' keys: a gateway believes a signed acknowledgement alone. ``WATTMESH_KEYS`` is ``ssm:PREFIX`` or a folder."""
    where = os.environ["WATTMESH_KEYS"]
    return ParameterKeys(where[4:]) if where.startswith("ssm:") else KeyRing.of_folder(Path(where))


@cache
def iot() -> Any:
    """The client of IoT Core's data plane."""
    return boto3.client("iot-data")
