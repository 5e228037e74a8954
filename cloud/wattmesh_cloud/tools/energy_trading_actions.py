"""energy-trading-actions: the few things that change something.

Each needs a role and an idempotency key, and passes the market's own limits.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.market import Order, Side

from wattmesh_cloud.tools.base import ActionPort, Caller, Context, Key, Nanoseconds, SiteId

_Reason = Annotated[str, Field(min_length=3, max_length=200, description="Why, for the log")]


class NewOrder(BaseModel):
    """A limit order as a tool takes it."""

    model_config = ConfigDict(extra="forbid")

    client_order_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
    side: Side
    quantity_wh: Annotated[int, Field(gt=0, le=10_000_000)]
    price_ticks: Annotated[int, Field(ge=-1_000_000, le=1_000_000, description="0.01 ct/kWh")]


async def halt_market(context: Context, caller: Caller, reason: _Reason, idempotency_key: Key) -> dict[str, Any]:
    """Take no more orders in the area until it is resumed."""
    return await _port(context).halt(f"{caller.id}: {reason}")


async def resume_market(context: Context, caller: Caller, reason: _Reason, idempotency_key: Key) -> dict[str, Any]:
    """Take orders again after a halt."""
    return await _port(context).resume()


async def suspend_participant(
    context: Context, caller: Caller, site_id: SiteId, reason: _Reason, idempotency_key: Key
) -> dict[str, Any]:
    """Switch a participant off: its open orders are withdrawn, new ones refused; what it has traded stands."""
    return await _port(context).suspend(site_id, f"{caller.id}: {reason}")


async def reinstate_participant(
    context: Context, caller: Caller, site_id: SiteId, reason: _Reason, idempotency_key: Key
) -> dict[str, Any]:
    """Let a suspended participant trade again."""
    return await _port(context).reinstate(site_id)


async def submit_orders(
    context: Context,
    caller: Caller,
    site_id: SiteId,
    slot_start_ns: Nanoseconds,
    orders: Annotated[list[NewOrder], Field(max_length=20)],
    idempotency_key: Key,
) -> list[dict[str, Any]]:
    """Replace a site's orders of one slot (none takes them back); one result an order, by the market's own limits."""
    made = tuple(
        Order(
            client_order_id=one.client_order_id,
            participant_id=site_id,
            area_id=context.area,
            slot_start_ns=slot_start_ns,
            side=one.side,
            quantity_wh=one.quantity_wh,
            price_ticks=one.price_ticks,
        )
        for one in orders
    )
    return await _port(context).order(site_id, slot_start_ns, made)


def _port(context: Context) -> ActionPort:
    if context.actions is None:
        raise UnavailableError("no market runs here; actions go to the process that has it")
    return context.actions
