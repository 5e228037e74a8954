"""The way out: by priority, within what the transport and each peer can take."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from wattmesh_a2a.errors import InvalidMessageError, UnavailableError
from wattmesh_a2a.transports.base import Transport

_WAITING_AT_MOST = 2000
_NEGLIGIBLE_S = 1e-6
"""Below what timers and sums of floats can tell apart."""


class Priority(IntEnum):
    """Who goes first when not all can go."""

    COMMAND = 0
    """Requests and their answers, presence."""
    TELEMETRY = 1
    """Live measurements and events."""
    BACKLOG = 2
    """What was kept while there was no connection."""


class TokenBucket:
    """So many a second, and so many at once after a pause.

    Args:
        per_s: Refill; none for no limit.
        burst: What a full bucket holds.
        now: Seconds, monotonic.
    """

    __slots__ = ("_at", "_burst", "_now", "_per_s", "_tokens")

    def __init__(self, per_s: float | None, burst: float, now: Callable[[], float]) -> None:
        self._per_s, self._burst, self._now = per_s, burst, now
        self._tokens, self._at = burst, now()

    def wait_s(self, amount: float = 1.0) -> float:
        """Seconds until ``amount`` is there; 0 when it is. More than the bucket holds waits for a full one."""
        if self._per_s is None:
            return 0.0
        now = self._now()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        wait_s = (min(amount, self._burst) - self._tokens) / self._per_s
        return wait_s if wait_s > _NEGLIGIBLE_S else 0.0

    def take(self, amount: float = 1.0) -> None:
        """Use up ``amount``; what comes in unasked may leave the bucket in debt."""
        if self._per_s is not None:
            self._tokens -= amount

    def try_take(self, amount: float = 1.0) -> bool:
        """Take ``amount`` if it is there."""
        if self.wait_s(amount):
            return False
        self.take(amount)
        return True


class Lanes:
    """Publishes for :class:`wattmesh_a2a.delivery.Delivery`, obeying :class:`TransportLimits`.

    Args:
        transport: Where to.
        now: Seconds, monotonic; the loop's time where none is given.
    """

    def __init__(self, transport: Transport, now: Callable[[], float] | None = None) -> None:
        limits = transport.limits
        now = now or asyncio.get_running_loop().time
        self._transport = transport
        self._limits = limits
        rate = limits.max_publishes_per_s
        self._publishes = TokenBucket(rate, max(1.0, (rate or 1.0) / 2), now)
        self._bytes = TokenBucket(limits.max_bytes_per_s, limits.max_bytes_per_s or 1.0, now)
        self._heap: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.waited = 0
        """How many had to wait."""
        transport.on_room(self._drain)

    async def publish(self, priority: Priority, topic: str, payload: bytes, **options: Any) -> None:
        """Publish when it is this one's turn.

        Raises:
            UnavailableError: Not connected, or too many wait already.
            InvalidMessageError: The topic is not legal on this transport.
        """
        limits = self._limits
        if topic.count("/") > limits.max_topic_slashes or len(topic) > limits.max_topic_bytes:
            raise InvalidMessageError(f"topic {topic!r} is not legal on this transport")
        if not self._transport.connected:
            raise UnavailableError("not connected to the broker")
        if self._heap or self._wait_s(len(payload)) != 0:
            await self._turn(priority, len(payload))
            if not self._transport.connected:
                raise UnavailableError("not connected to the broker")
        self._publishes.take()
        self._bytes.take(len(payload))
        await self._transport.publish(topic, payload, **options)

    def came_in(self, size: int) -> None:
        """Something was received: on AWS it counts against the same limits."""
        if self._limits.counts_inbound:
            self._publishes.take()
            self._bytes.take(size)

    async def _turn(self, priority: Priority, size: int) -> None:
        if len(self._heap) >= _WAITING_AT_MOST:
            raise UnavailableError("too many messages wait to be sent")
        self.waited += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (priority, next(self._order), size, turn))
        self._drain()
        await turn

    def _wait_s(self, size: int) -> float | None:
        """Seconds until one of this size may go; none: until the transport says that there is room."""
        if self._transport.in_flight >= self._limits.max_in_flight:
            return None
        return max(self._publishes.wait_s(), self._bytes.wait_s(size))

    def _drain(self) -> None:
        """Let one go; it lets the next one go in turn, so that each is counted before the next is asked."""
        while self._heap:
            _, _, size, turn = self._heap[0]
            if turn.done():
                heapq.heappop(self._heap)
                continue
            wait_s = self._wait_s(size) if self._transport.connected else 0.0
            if wait_s == 0.0:
                heapq.heappop(self._heap)
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._drain)
            elif wait_s is not None and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._due)
            return

    def _due(self) -> None:
        self._timer = None
        self._drain()

    def stop(self) -> None:
        """Let nobody wait any more."""
        if self._timer is not None:
            self._timer.cancel()
        for *_, turn in self._heap:
            turn.cancel()
        self._heap.clear()
