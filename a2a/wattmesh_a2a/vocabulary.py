"""The vocabulary as documents: a JSON Schema and an example for every message type, written to ``docs/messages``.

Made from the types themselves, so that they cannot tell another story; a test holds the folder in step. Not imported at run time.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from wattmesh_a2a import codec
from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.consult import AgentAdvice, AgentConsult
from wattmesh_a2a.control import Decision
from wattmesh_a2a.devices import AssetKind
from wattmesh_a2a.envelope import Address, Envelope, TaskState
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import (
    DemandResponseDispatch,
    DemandResponseEvent,
    DemandResponseOffer,
    DemandResponseState,
    FrequencyEvent,
    FrequencyEventKind,
    GridEvent,
    GridStatus,
)
from wattmesh_a2a.market import Order, OrderStatus, RejectReason, Side, Trade
from wattmesh_a2a.messages import (
    MESSAGE_TYPES,
    SIGNED_NAMES,
    Acknowledged,
    AssetSummary,
    Commitment,
    CommitmentList,
    CommitmentQuery,
    Executions,
    ForecastIssued,
    GatewayStatus,
    IntervalEnergy,
    MarketData,
    MarketLevel,
    MarketRules,
    Message,
    OrderAmend,
    OrderBatch,
    OrderBatchResult,
    OrderCancel,
    OrderPlace,
    OrderResult,
    OrderResults,
    ProductData,
    Refused,
    Revoke,
    SiteAnnouncement,
    StatsQuery,
    StatsReport,
    StatsRow,
    Strategy,
    TelemetryAck,
)
from wattmesh_a2a.plans import CoordinationReply, CoordinationRound, PlannedLoad, SitePlan

_NOON = 1_782_820_800_000_000_000  # 2026-06-30T12:00:00Z
_SLOT = 900_000_000_000
_ORDER = Order(
    client_order_id="home-1-7f3a", participant_id="home-1", area_id="area-1", slot_start_ns=_NOON + 4 * _SLOT,
    side=Side.SELL, quantity_wh=750, price_ticks=1850,
)  # fmt: skip
_COMMITMENT = Commitment(
    participant_id="home-1", area_id="area-1", slot_start_ns=_NOON + 4 * _SLOT, slot_s=900, net_wh=-750,
    clearing_price_ticks=1925,
    trades=(
        Trade(
            id="area-1-20260630T1300-1", area_id="area-1", slot_start_ns=_NOON + 4 * _SLOT, buyer_id="home-2",
            seller_id="home-1", quantity_wh=750, price_ticks=1925, buy_order_id="home-2-11c0", sell_order_id="home-1-7f3a",
        ),
    ),
)  # fmt: skip

EXAMPLES: tuple[Message, ...] = (
    SiteAnnouncement(
        site_id="home-1", gateway_id="demo/home-1/gateway", session="5f0c9a4be1d2", started_ns=_NOON, software="wattmesh 0.1.0",
        time_zone="Europe/Berlin", market_area="area-1", import_limit_w=17000.0, export_limit_w=7000.0,
        assets=(
            AssetSummary(
                id="battery", kind=AssetKind.BATTERY, rated_power_w=5000.0, rated_energy_wh=10000.0, template="byd-hvs"
            ),
        ),
        agents=("producer", "consumer"), frequency_response=True,
    ),
    TelemetryAck(stream="points", sequences=(4711, 4712)),
    IntervalEnergy(
        site_id="home-1", slot_start_ns=_NOON, slot_s=900, import_wh=0, export_wh=420, pv_wh=900, battery_charge_wh=250,
        battery_discharge_wh=0, load_wh=230, method="register", complete=True,
    ),
    OrderBatch(participant_id="home-1", area_id="area-1", slot_start_ns=_NOON + 4 * _SLOT, orders=(_ORDER,)),
    OrderBatchResult(
        slot_start_ns=_NOON + 4 * _SLOT,
        results=(
            OrderResult(client_order_id="home-1-7f3a", status=OrderStatus.ACCEPTED),
            OrderResult(
                client_order_id="home-1-7f3b", status=OrderStatus.REJECTED, reason=RejectReason.GATE_CLOSED, detail="closed"
            ),
        ),
    ),
    OrderPlace(participant_id="home-1", area_id="area-1", orders=(_ORDER,)),
    OrderAmend(
        participant_id="home-1",
        area_id="area-1",
        slot_start_ns=_NOON + 4 * _SLOT,
        client_order_id="home-1-7f3a",
        quantity_wh=200,
        price_ticks=1900,
    ),
    OrderCancel(
        participant_id="home-1", area_id="area-1", slot_start_ns=_NOON + 4 * _SLOT, client_order_ids=("home-1-7f3a",)
    ),
    OrderResults(
        results=(OrderResult(client_order_id="home-1-7f3a", status=OrderStatus.PARTIALLY_FILLED, filled_wh=150, open_wh=50),)
    ),
    Executions(participant_id="home-1", area_id="area-1", trades=_COMMITMENT.trades),
    MarketData(
        area_id="area-1",
        time_ns=_NOON,
        halted=None,
        products=(
            ProductData(
                slot_start_ns=_NOON + 4 * _SLOT,
                status="continuous",
                bids=(MarketLevel(price_ticks=1800, quantity_wh=300, orders=2),),
                asks=(MarketLevel(price_ticks=2000, quantity_wh=100, orders=1),),
                open_ticks=1900,
                high_ticks=1950,
                low_ticks=1900,
                close_ticks=1950,
                volume_wh=250,
                trades=2,
                index_ticks=1930,
            ),
        ),
    ),
    MarketRules(
        area_id="area-1", slot_s=900, gate_open_s=21600, gate_close_s=300, currency="EUR", feed_in_ticks=810, halted=False
    ),
    _COMMITMENT,
    CommitmentQuery(participant_id="home-1", from_ns=_NOON),
    CommitmentList(commitments=(_COMMITMENT,)),
    ForecastIssued(
        forecasts=(
            Forecast(
                site_id="home-1", quantity="load_wh", issued_ns=_NOON, start_ns=_NOON, slot_s=900, levels=(0.1, 0.5, 0.9),
                values=((90.0, 120.0, 210.0), (85.0, 118.0, 190.0)), model="profile",
            ),
        )
    ),
    AgentConsult(
        conversation="market-supervisor-1767225600-7",
        subject="home-1",
        question="Could it have delivered what it sold?",
        deadline_ns=_NOON + 10_000_000_000,
        budget_tokens=0,
    ),
    AgentAdvice(
        conversation="market-supervisor-1767225600-7",
        agent="producer",
        subject="home-1",
        text="5 % kept for the house; forecast 10 min old, 0 of 4000 Wh traded in the last day missed.",
        source="policy",
        citations=("producer-1767225600-3",),
    ),
    Strategy(
        site_id="home-1", expires_ns=_NOON + 12 * _SLOT, reserve_soc_percent=20.0, peak_limit_w=4000.0, trade=True,
        rationale="a cold evening is forecast",
    ),
    SitePlan(
        site_id="home-1", issued_ns=_NOON, expires_ns=_NOON + 8 * _SLOT, start_ns=_NOON, slot_s=900, grid_w=(0, 1200),
        battery_w=(-800, 400), stored_wh=(4800, 4895), min_grid_w=(0, 1200), max_grid_w=(0, 2500),
        loads=(PlannedLoad(device="ev", power_w=(0, 3600)),), reasons=("load: gap: 2 of 48 h",),
    ),
    CoordinationRound(
        site_id="home-1", agreement_id="area-1-20260630T1200", number=3, final=False, expires_ns=_NOON + 4 * _SLOT,
        start_ns=_NOON, slot_s=3600, wish_w=(400, -200), weight_ticks=50.0,
    ),
    CoordinationReply(site_id="home-1", agreement_id="area-1-20260630T1200", number=3, grid_w=(500, 0)),
    DemandResponseEvent(
        id="dr-20260630-1", start_ns=_NOON + 4 * _SLOT, end_ns=_NOON + 8 * _SLOT, target_w=20000, price_ticks=4000,
        state=DemandResponseState.ANNOUNCED, reason="transformer T4 above 90 %",
    ),
    DemandResponseOffer(event_id="dr-20260630-1", site_id="home-1", offered_w=3000, price_ticks=3500, baseline_w=1200),
    DemandResponseDispatch(
        event_id="dr-20260630-1", site_id="home-1", start_ns=_NOON + 4 * _SLOT, end_ns=_NOON + 8 * _SLOT, power_w=3000,
        baseline_w=1200, price_ticks=4000,
    ),
    FrequencyEvent(
        id="home-1-3", site_id="home-1", kind=FrequencyEventKind.UNDER_FREQUENCY, start_ns=_NOON, end_ns=_NOON + 6_000_000_000,
        extreme_frequency_hz=49.71, extreme_rocof_hz_per_s=-0.62, response_w=-2400.0, detection_to_write_ns=4_100_000,
    ),
    GridEvent(id="grid-12", time_ns=_NOON, status=GridStatus.ALERT, frequency_hz=49.79, reason="below 49.8 Hz at 3 sites"),
    Alarm(
        id="home-1-inverter-1", site_id="home-1", asset_id="inverter", severity=Severity.WARNING,
        text="no answer for 60 s", raised_ns=_NOON,
    ),
    Decision(asset_id="battery", time_ns=_NOON, target_w=-1500.0, decided_by="market", limited_by=None, requested_w=-1500.0),
    Acknowledged(detail="kept"),
    Refused(error="expired", detail="came after its expiry", retryable=False),
    Revoke(request_id="9b2f6d7cf2a04a0b8d6c6a0f1f1f2a3b", reason="the grid is normal again"),
    StatsQuery(),
    StatsReport(
        session="5f0c9a4be1d2",
        rows=(
            StatsRow(
                event="handled", type="wattmesh.strategy.v1", peer="demo/cloud/producer", count=12, p50_ms=0.42, p99_ms=3.1
            ),
        ),
    ),
    GatewayStatus(
        site_id="home-1", session="5f0c9a4be1d2", time_ns=_NOON, cycles=86400, cycle_overrun_max_ms=3.5, records_measured=5184000,
        batches_pending=0, commands_sent=1440, commands_applied=1440, commands_expired=0, frequency_hz=49.99,
        rocof_hz_per_s=0.01, frequency_events=0, resident_mb=61.5, cpu_s=1210.0, plan_source="market",
    ),
)  # fmt: skip
"""One of each type, as it could be sent."""


def examples() -> dict[str, Message]:
    """One message of each type: a written one of :data:`EXAMPLES`, or else one that is made of the fields' types."""
    written = {codec.type_name(one): one for one in EXAMPLES}
    return {name: written.get(name) or _made(kind, name) for name, kind in MESSAGE_TYPES.items()}


def _made(kind: Any, name: str) -> Any:
    """A value of a type, for a field of this name."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{one.name: _made(hints[one.name], one.name) for one in fields(kind)})
    if origin in {Union, UnionType}:
        return _made(next(one for one in arguments if one is not type(None)), name)
    if origin is tuple:
        return tuple(_made(one, name) for one in arguments if one is not Ellipsis)
    if origin in {list, frozenset, set}:
        return origin([_made(arguments[0], name)])
    if origin is not None and issubclass(origin, Mapping):
        return {_made(arguments[0], name): _made(arguments[1], name)}
    if origin is Literal:
        return arguments[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    plain: dict[Any, Any] = {str: name, int: _NOON if name.endswith("_ns") else 1, float: 1.5, bool: True}
    return plain.get(kind, name)


def documents() -> dict[str, str]:
    """File names below ``docs/messages`` and their contents."""
    files = {"README.md": _readme(), "envelope.schema.json": _text(envelope_schema())}
    for name, message in examples().items():
        files[f"{name}.schema.json"] = _text(schema(name))
        files[f"{name}.example.json"] = _text(example(message))
    return files


def write(folder: Path) -> None:
    """Write :func:`documents` and remove what is none of them any more."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = documents()
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a type's data (draft 2020-12), with the meaning of each field."""
    found = TypeAdapter(MESSAGE_TYPES[name]).json_schema()
    meanings = {one.__name__: one for one in _classes(MESSAGE_TYPES[name])}
    for title, part in [(MESSAGE_TYPES[name].__name__, found), *found.get("$defs", {}).items()]:
        if title in meanings and "properties" in part:
            for field, text in _meanings(meanings[title]).items():
                part["properties"][field]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{name.replace('.', ':')}", **found}


def example(message: Message) -> dict[str, Any]:
    """A whole message with this data; what has to be signed shows where the signature stands."""
    name = codec.type_name(message)
    site, cloud = Address("demo", "home-1", "gateway"), Address("demo", "cloud", "market-supervisor")
    event = name in {
        codec.type_name(one) for one in EXAMPLES if isinstance(one, MarketRules | GatewayStatus | GridEvent)
    }
    answer = isinstance(
        message,
        Acknowledged
        | Refused
        | OrderBatchResult
        | OrderResults
        | CommitmentList
        | DemandResponseOffer
        | StatsReport
        | CoordinationReply,
    )
    whole = codec.to_fields(
        Envelope(
            id="0f6c2d1e9a7b4c5d8e3f2a1b0c9d8e7f",
            source=cloud,
            type=name,
            time_ns=_NOON,
            session="5f0c9a4be1d2",
            sequence=42,
            expires_ns=_NOON + 60_000_000_000,
            data=message,
            destination=None if event else site,
            correlation_id="7e8d9c0b1a2f3e8d5c4b7a9e1d2c6f0a" if answer else None,
            state=(TaskState.REJECTED if isinstance(message, Refused) else TaskState.COMPLETED) if answer else None,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
    )
    if name in SIGNED_NAMES:
        whole["signature"] = "eyJhbGciOiJFUzI1NiJ9..BASE64URL"
    return whole


def envelope_schema() -> dict[str, Any]:
    """The attributes around the data, named as in CloudEvents 1.0 where it has them."""
    address = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}/[A-Za-z0-9_.-]{1,64}/[A-Za-z0-9_.-]{1,64}$"}
    text = {"type": "string", "minLength": 1, "maxLength": 200}
    number = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    meanings = _meanings(Envelope)
    shapes: dict[str, tuple[str, dict[str, Any]]] = {
        "id": ("id", text), "source": ("source", address), "type": ("type", text), "timens": ("time_ns", number),
        "session": ("session", text), "sequence": ("sequence", number), "expiresns": ("expires_ns", number),
        "notbeforens": ("not_before_ns", number), "destination": ("destination", address),
        "correlationid": ("correlation_id", text), "state": ("state", {"enum": [one.value for one in TaskState]}),
        "traceparent": ("traceparent", text),
    }  # fmt: skip
    properties = {
        name: {**shape, **({"description": meanings[field]} if field in meanings else {})}
        for name, (field, shape) in shapes.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:wattmesh:envelope:v1",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "timens", "session", "sequence", "expiresns", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            **properties,
            "data": {"type": "object", "description": "By the type's own schema."},
            "signature": {
                "type": "string",
                "description": "Detached JWS over the canonical message without this field.",
            },
        },
    }


def _readme() -> str:
    rows = [
        f"| `{name}` | {(inspect.getdoc(kind) or '').splitlines()[0]} | {'yes' if name in SIGNED_NAMES else ''} |"
        for name, kind in sorted(MESSAGE_TYPES.items())
    ]
    return "\n".join(
        [
            "# Messages",
            "",
            "Generated by `wattmesh messages schemas docs/messages`; a test holds it in step. Every message travels in the",
            "[envelope](envelope.schema.json). Unknown fields are ignored; an unknown type or major version is refused. Beside",
            "each schema stands an example of a whole message.",
            "",
            "| type | meaning | signed |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _classes(kind: type) -> list[type]:
    """A type and the dataclasses that its modules offer for its fields."""
    modules = {inspect.getmodule(kind), *(inspect.getmodule(type(one)) for one in EXAMPLES)}
    return [kind, *(one for module in modules for one in vars(module).values() if isinstance(one, type))]


def _meanings(kind: type) -> dict[str, str]:
    """The docstring below each field."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found
