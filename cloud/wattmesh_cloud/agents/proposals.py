"""All that an agent can ask for: a fixed set of typed proposals. None of them names a device, a register or a power setpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from wattmesh_a2a.errors import InvalidMessageError

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Why = Annotated[
    str,
    Field(
        min_length=3,
        max_length=400,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="One sentence with the figures it rests on",
    ),
]
Quantity = Literal["load_wh", "pv_wh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReserve:
    """Producer: how much charge a site keeps for its own emergencies."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["set_reserve"] = "set_reserve"
    site_id: Name
    reserve_soc_percent: Annotated[float, Field(ge=0, le=100)]
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTrading:
    """Producer: whether a site sends orders to the market."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["set_trading"] = "set_trading"
    site_id: Name
    trade: bool
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPeakLimit:
    """Consumer: a wished upper limit of a site's import; none takes it back."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["set_peak_limit"] = "set_peak_limit"
    site_id: Name
    limit_w: float | None
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltMarket:
    """Market supervisor: take no more orders."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["halt_market"] = "halt_market"
    area: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeMarket:
    """Market supervisor: take orders again after a halt of its own."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["resume_market"] = "resume_market"
    area: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendParticipant:
    """Market supervisor: switch a participant off and withdraw its orders."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["suspend_participant"] = "suspend_participant"
    area: Name
    participant_id: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinstateParticipant:
    """Market supervisor: let a participant trade again."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["reinstate_participant"] = "reinstate_participant"
    area: Name
    participant_id: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResponse:
    """Grid optimisation: a demand-response event of the fleet."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["call_response"] = "call_response"
    start_ns: Annotated[int, Field(ge=0, le=2**62)]
    duration_s: Annotated[int, Field(ge=900, le=14_400, multiple_of=900)]
    target_w: Annotated[
        int, Field(lt=0, ge=-(10**9), description="Change of the fleet's grid power; negative: less import")
    ]
    price_ticks: Annotated[int, Field(ge=0, le=1_000_000, description="Payment in ticks of 0.01 ct/kWh")]
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResponse:
    """Grid optimisation: take back an event that is only announced."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["cancel_response"] = "cancel_response"
    event_id: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclareStatus:
    """Grid optimisation: the grid's state, told to everybody."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["declare_status"] = "declare_status"
    status: Literal["normal", "alert", "emergency"]
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Forecasting: learn a site's model anew from what was metered."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["retrain"] = "retrain"
    site_id: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseModel:
    """Forecasting: which of the models is in charge of a quantity."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["choose_model"] = "choose_model"
    site_id: Name
    quantity: Quantity
    model: Name
    rationale: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseAlarm:
    """Any agent: something that a person should know of."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["raise_alarm"] = "raise_alarm"
    subject: Name
    """A site, the market area or ``fleet``."""
    severity: Literal["info", "warning", "critical"]
    rationale: Why


Proposal = (
    SetReserve
    | SetTrading
    | SetPeakLimit
    | HaltMarket
    | ResumeMarket
    | SuspendParticipant
    | ReinstateParticipant
    | CallResponse
    | CancelResponse
    | DeclareStatus
    | Retrain
    | ChooseModel
    | RaiseAlarm
)

TYPES: dict[str, type[Proposal]] = {one.__dataclass_fields__["kind"].default: one for one in get_args(Proposal)}
"""Kind → type."""

_ADAPTERS: dict[str, TypeAdapter[Proposal]] = {}


def _adapter(kind: str) -> TypeAdapter[Proposal]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(TYPES[kind])
    return _ADAPTERS[kind]


def parse(raw: object) -> Proposal:
    """A proposal of plain values as a model gives them.

    Raises:
        InvalidMessageError: An unknown kind, a wrong type, a missing or unknown field, a value out of the schema.
    """
    if not isinstance(raw, dict):
        raise InvalidMessageError(f"a proposal is an object, not {type(raw).__name__}")
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in TYPES:
        raise InvalidMessageError(f"no proposal {str(kind)[:64]!r}; there are: {', '.join(sorted(TYPES))}")
    try:
        return _adapter(kind).validate_json(json.dumps(raw, allow_nan=False))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidMessageError(
            f"{kind}: {'.'.join(map(str, first['loc'])) or 'proposal'}: {first['msg']}"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessageError(f"{kind}: not plain JSON values") from error


def dump(proposal: Proposal) -> dict[str, Any]:
    """Plain values, as :func:`parse` takes them."""
    return {one.name: getattr(proposal, one.name) for one in fields(proposal)}


def schema(kinds: frozenset[str]) -> dict[str, Any]:
    """JSON Schema of an object of one of these kinds, for a model's tool."""
    return {"anyOf": [_adapter(kind).json_schema() for kind in sorted(kinds)]}


def subject(proposal: Proposal) -> str:
    """What it is about: a site, an area, an event or ``fleet``."""
    match proposal:
        case SetReserve() | SetTrading() | SetPeakLimit() | Retrain() | ChooseModel():
            return proposal.site_id
        case SuspendParticipant() | ReinstateParticipant():
            return proposal.participant_id
        case HaltMarket() | ResumeMarket():
            return proposal.area
        case CancelResponse():
            return proposal.event_id
        case RaiseAlarm():
            return proposal.subject
        case CallResponse() | DeclareStatus():
            return "fleet"
