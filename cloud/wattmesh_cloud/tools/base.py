"""What all tools share: who calls, what they may, bounds of every read, and one way in for every face."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import (
    ConfigurationError,
    ConflictError,
    InvalidMessageError,
    UnauthorisedError,
    UnavailableError,
    WattmeshError,
)
from wattmesh_a2a.market import Order

from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

MOST_ROWS = 1000
MOST_DAYS = 400
_DAY_NS = 86_400 * 1_000_000_000

SiteId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="The site's name")]
Nanoseconds = Annotated[int, Field(ge=0, le=2**62, description="UTC, nanoseconds since 1970")]
Limit = Annotated[int, Field(ge=1, le=MOST_ROWS, description="Most rows, newest first")]
Point = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}\.[A-Za-z0-9_-]{1,100}$", description="asset.point")]
Key = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.:-]{8,64}$", description="Made by the caller, new for each action; again for a retry"),
]

READER, OPERATOR, TRADER = "reader", "operator", "trader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, as the face has established it; never what an argument says."""

    id: str
    roles: frozenset[str]
    sites: frozenset[str] | None = None
    """The sites it may see and act for; none for all."""


class ActionPort(Protocol):
    """The market's writer, wherever it runs. Its own deterministic limits hold for every caller."""

    async def halt(self, reason: str) -> dict[str, JsonValue]:
        """Take no more orders."""
        ...

    async def resume(self) -> dict[str, JsonValue]:
        """Take orders again."""
        ...

    async def suspend(self, site_id: str, reason: str) -> dict[str, JsonValue]:
        """Switch a participant off and withdraw its open orders."""
        ...

    async def reinstate(self, site_id: str) -> dict[str, JsonValue]:
        """Let a participant trade again."""
        ...

    async def order(self, site_id: str, slot_start_ns: int, orders: tuple[Order, ...]) -> list[dict[str, JsonValue]]:
        """Replace a site's orders of a slot; one result an order."""
        ...


@dataclass(kw_only=True)
class Context:
    """What the tools work on."""

    store: Store
    clock: Clock
    area: str
    audit: AuditLog
    actions: ActionPort | None = None
    """None where no market runs: then actions are refused as unavailable."""
    busy: dict[str, asyncio.Lock] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One function that models, operators and other programs may call."""

    name: str
    service: str
    """Which of the five it belongs to."""
    function: Callable[..., Any]
    """``function(context, caller, …)``; the other parameters are the tool's arguments."""
    roles: frozenset[str]
    action: bool = False

    @property
    def description(self) -> str:
        """The function's documentation."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def model(self) -> type[BaseModel]:
        """Its arguments, checked."""
        hints = inspect.get_annotations(self.function, eval_str=True)
        fields: dict[str, Any] = {
            name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in self.parameters().items()
        }
        return create_model(self.name.replace("-", "_"), __config__=ConfigDict(extra="forbid", strict=True), **fields)

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its arguments' parameters."""
        return dict(list(inspect.signature(self.function).parameters.items())[2:])

    def schema(self) -> dict[str, Any]:
        """Its arguments as JSON Schema."""
        return self.model.model_json_schema()

    async def call(self, context: Context, caller: Caller, arguments: Mapping[str, Any]) -> Any:
        """Check, do, and write it into the audit log.

        Raises:
            InvalidMessageError: Arguments that break the schema or its bounds.
            UnauthorisedError: Not for this caller, or not for this site.
            ConfigurationError, ConflictError, UnavailableError: As the function says.
        """
        outcome, detail = "failed", {"arguments": _summary(arguments)}
        try:
            if not caller.roles & self.roles:
                raise UnauthorisedError(f"{self.name} is for {' or '.join(sorted(self.roles))}")
            try:
                checked = self.model.model_validate_json(json.dumps(dict(arguments), allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                if not isinstance(error, ValidationError):
                    raise InvalidMessageError(f"{self.name}: arguments that are no JSON") from error
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise InvalidMessageError(f"{self.name}: {where or 'arguments'}: {first['msg']}") from error
            values = {name: getattr(checked, name) for name in type(checked).model_fields}
            site = values.get("site_id")
            if caller.sites is not None and site is not None and site not in caller.sites:
                raise UnauthorisedError(f"{caller.id} may not see or act for {site}")
            result = await self._done(context, caller, values)
            outcome = "done"
        except (InvalidMessageError, UnauthorisedError, ConfigurationError, ConflictError) as error:
            outcome, detail["error"] = "refused", str(error)
            raise
        except UnavailableError as error:
            detail["error"] = str(error)
            raise
        finally:
            entry = (context.clock.utc_ns(), caller.id, f"tool.{self.name}", outcome, detail)
            await asyncio.to_thread(context.audit.write, *entry)
        return result

    async def _done(self, context: Context, caller: Caller, values: dict[str, Any]) -> Any:
        if not self.action:
            return await asyncio.to_thread(self.function, context, caller, **values)
        begun = (context.clock.utc_ns(), caller.id, f"tool.{self.name}", "begun", {"arguments": _summary(values)})
        await asyncio.to_thread(context.audit.write, *begun)  # where it cannot be written down it is not done
        return await once(context, caller, self, values)


async def once(context: Context, caller: Caller, tool: Tool, values: dict[str, Any]) -> Any:
    """An action once by caller and idempotency key: again with the same arguments gives the same answer, with others a conflict."""
    key = f"{caller.id}/{values['idempotency_key']}"
    digest = hashlib.sha256(json.dumps([tool.name, values], sort_keys=True, default=_json).encode()).hexdigest()
    partition = f"{context.area}#actions"
    lock = context.busy.setdefault(key, asyncio.Lock())
    try:
        async with lock:
            # The key's own time: a row is found again by the key alone.
            moment = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
            rows = await asyncio.to_thread(context.store.query, Table.TRADE_DATA, partition, moment, moment + 1)
            known = next((row for row in rows if row.id == key), None)
            if known is not None and known.data["digest"] != digest:
                raise ConflictError("this idempotency key was used for something else")
            if known is not None:
                return known.data["result"]
            answer = tool.function(context, caller, **values)
            result = await answer if isinstance(answer, Awaitable) else answer
            data = {"tool": tool.name, "digest": digest, "result": result, "done_ns": context.clock.utc_ns()}
            row = Item(partition=partition, time_ns=moment, id=key, data=data)
            await asyncio.to_thread(context.store.put, Table.TRADE_DATA, [row])
            return result
    finally:
        if not lock.locked():
            context.busy.pop(key, None)


def window(start_ns: int, end_ns: int) -> tuple[int, int]:
    """A bounded span of time."""
    if not start_ns < end_ns or end_ns - start_ns > MOST_DAYS * _DAY_NS:
        raise InvalidMessageError(f"end_ns has to be after start_ns, by at most {MOST_DAYS} days")
    return start_ns, end_ns


def rows(
    context: Context, table: Table, partition: str, start_ns: int, end_ns: int, limit: int
) -> list[dict[str, Any]]:
    """The newest rows of a partition in a bounded span."""
    found = context.store.query(table, partition, *window(start_ns, end_ns), limit=limit, newest_first=True)
    return [{"time_ns": item.time_ns, "id": item.id, **item.data} for item in found]


def error_code(error: WattmeshError) -> str:
    """The name that faces give an error."""
    match error:
        case InvalidMessageError() | ConfigurationError():
            return "invalid"
        case UnauthorisedError():
            return "forbidden"
        case ConflictError():
            return "conflict"
        case UnavailableError():
            return "unavailable"
        case _:
            return "failed"


def _json(value: object) -> object:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)


def _summary(arguments: Mapping[str, Any]) -> str:
    return json.dumps(dict(arguments), default=_json)[:500]
