"""The market's end of the action queue: what the action function accepted is done here, in order, by the market's own limits.

A message is deleted when its action was done or refused for good; one that could not be done now comes again, and a message that is
no action goes to the dead letters by the queue's own rule. SQS may give a message twice: the newest are remembered.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import TypeAdapter, ValidationError
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import InvalidMessageError, WattmeshError
from wattmesh_a2a.market import Order

from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.tools.base import ActionPort
from wattmesh_cloud.tools.energy_trading_actions import NewOrder

log = logging.getLogger(__name__)

_WAIT_S = 10
_PAUSE_S = 10.0
_REMEMBERED = 1000
_ORDERS: TypeAdapter[list[NewOrder]] = TypeAdapter(list[NewOrder])


class ActionQueue:
    """Takes actions from an SQS queue.

    Args:
        url: Of the queue (``ActionQueueUrl`` of the services' stack).
        port: Does them.
        audit: Gets each with its outcome.
        clock: Of the audit log.
        client: An SQS client.
    """

    def __init__(self, url: str, port: ActionPort, audit: AuditLog, clock: Clock, client: Any = None) -> None:
        self._url, self._port, self._audit, self._clock = url, port, audit, clock
        self._client = client or boto3.client("sqs")
        self._done: OrderedDict[str, None] = OrderedDict()
        self._said = False

    async def run(self) -> None:
        """Take what comes, for ever; a queue that is away is asked again."""
        while True:
            try:
                await self.step(_WAIT_S)
                self._said = False
            except (BotoCoreError, ClientError) as error:
                if not self._said:
                    self._said = True
                    log.error("the action queue cannot be read (%s); trying again until it can", error)
                await asyncio.sleep(_PAUSE_S)

    async def step(self, wait_s: int) -> int:
        """Take the next one, waiting for it up to ``wait_s`` of real time; returns how many actions were settled."""
        answer = await asyncio.to_thread(
            self._client.receive_message, QueueUrl=self._url, MaxNumberOfMessages=1, WaitTimeSeconds=wait_s
        )
        settled = 0
        for message in answer.get("Messages", ()):
            if await self._take(str(message["MessageId"]), str(message["Body"])):
                handle = message["ReceiptHandle"]
                await asyncio.to_thread(self._client.delete_message, QueueUrl=self._url, ReceiptHandle=handle)
                settled += 1
        return settled  # what was not settled comes again, and what is behind it after it

    async def _take(self, name: str, body: str) -> bool:
        """Whether the message is settled."""
        if name in self._done:
            return True
        outcome, detail = "done", {"message": name, "action": body[:500]}
        try:
            detail["result"] = json.dumps(await self._do(body))[:500]
        except WattmeshError as error:
            outcome, detail["error"] = "failed" if error.retryable else "refused", str(error)
        await asyncio.to_thread(
            self._audit.write, self._clock.utc_ns(), "action-queue", "market.action", outcome, detail
        )
        if outcome == "refused" and detail["error"].startswith("no action"):
            return False  # left for the dead letters, where somebody sees it
        if outcome != "failed":
            self._done[name] = None
            while len(self._done) > _REMEMBERED:
                self._done.popitem(last=False)
        return outcome != "failed"

    async def _do(self, body: str) -> Any:
        try:
            given = json.loads(body)
            match given["action"]:
                case "halt":
                    return await self._port.halt(str(given["reason"]))
                case "resume":
                    return await self._port.resume()
                case "suspend":
                    return await self._port.suspend(str(given["site"]), str(given["reason"]))
                case "reinstate":
                    return await self._port.reinstate(str(given["site"]))
                case "order":
                    site, slot = str(given["site"]), int(given["slot_start_ns"])
                    orders = _ORDERS.validate_json(json.dumps(given["orders"]), strict=True)
                    return await self._port.order(site, slot, tuple(_order(site, slot, one) for one in orders))
                case _:
                    raise InvalidMessageError("no action of this name")
        except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
            raise InvalidMessageError(f"no action: {type(error).__name__}") from error


def _order(site: str, slot: int, one: NewOrder) -> Order:
    return Order(
        client_order_id=one.client_order_id, participant_id=site, area_id="", slot_start_ns=slot, side=one.side,
        quantity_wh=one.quantity_wh, price_ticks=one.price_ticks,
    )  # fmt: skip
