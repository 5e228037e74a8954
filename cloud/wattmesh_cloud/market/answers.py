"""Messages to and from participants: what each is called in the journal, and answers that fit a transport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wattmesh_a2a.market import OrderStatus, RejectReason
from wattmesh_a2a.messages import (
    Commitment,
    Message,
    OrderAmend,
    OrderBatch,
    OrderBatchResult,
    OrderCancel,
    OrderPlace,
    OrderResult,
    OrderResults,
)

from wattmesh_cloud.market.replica import named_orders

MOST_TRADES = 200
"""In one message: it has to stay under the transports' 100 KB."""

ENTRIES = {OrderBatch: "orders", OrderPlace: "place", OrderAmend: "amend", OrderCancel: "cancel"}
"""What a message is called in the journal."""


OrderMessage = OrderBatch | OrderPlace | OrderAmend | OrderCancel


def too_fast(message: OrderMessage) -> Message:
    """The answer to what is not even looked at."""
    reason, status = RejectReason.RATE_LIMIT, OrderStatus.REJECTED
    results = tuple(OrderResult(client_order_id=name, status=status, reason=reason) for name in named_orders(message))
    if isinstance(message, OrderBatch):
        return OrderBatchResult(slot_start_ns=message.slot_start_ns, results=results)
    return OrderResults(results=results)


def short(commitment: Commitment, trades: int = MOST_TRADES) -> Commitment:
    """A commitment that fits a message: without its trades where they are too many. What binds is the net."""
    return commitment if len(commitment.trades) <= trades else replace(commitment, trades=())


def answer(results: Sequence[OrderResult]) -> OrderResults:
    """Results that fit a message: where an order swept the book, how much it traded without every trade."""
    if sum([len(one.trades) for one in results]) > MOST_TRADES:
        results = [
            replace(one, trades=(), detail=f"{len(one.trades)} trades") if one.trades else one for one in results
        ]
    return OrderResults(results=tuple(results))
