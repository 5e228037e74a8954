"""A broker in the same process, for tests in virtual time: with loss, repetition, reordering and partitions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.transports.base import Inbound, TransportLimits, matches, unshared


class MemoryBroker:
    """Connects :class:`MemoryTransport` objects; all faults come from one seeded generator.

    Args:
        seed: Of the faults.
        loss: Share of messages that never arrive.
        repeat: Share that arrive twice.
        reorder: Share that arrive after the following ones.
        delay_s: Every copy takes a time of its own up to this, in the loop's time.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        loss: float = 0.0,
        repeat: float = 0.0,
        reorder: float = 0.0,
        delay_s: float = 0.0,
    ) -> None:
        self._random = random.Random(seed)
        self._loss, self._repeat, self._reorder, self._delay_s = loss, repeat, reorder, delay_s
        self._members: list[MemoryTransport] = []
        self._retained: dict[str, Inbound] = {}
        self._held: list[Inbound] = []

    def heal(self) -> None:
        """No more faults from now on."""
        self._loss = self._repeat = self._reorder = self._delay_s = 0.0

    def join(self, member: MemoryTransport) -> None:
        """A client connects and gets what is retained."""
        self._members.append(member)

    def leave(self, member: MemoryTransport, *, lost: bool) -> None:
        """A client is gone; its will is published when it was lost."""
        if member in self._members:
            self._members.remove(member)
            if lost and member.will is not None:
                topic, payload = member.will
                self.publish(Inbound(topic=topic, payload=payload, retained=True), retain=True)

    def retained_for(self, topic_filter: str) -> list[Inbound]:
        """What a new subscription gets at once."""
        return [message for topic, message in self._retained.items() if matches(topic_filter, topic)]

    def publish(self, message: Inbound, *, retain: bool) -> None:
        """Deliver a message, or do to it what the faults say."""
        if retain:
            self._retained[message.topic] = message
        if self._random.random() < self._loss:
            return
        copies = 2 if self._random.random() < self._repeat else 1
        if self._random.random() < self._reorder:
            self._held.extend([message] * copies)
            return
        for _ in range(copies):
            self._deliver(message)
        held, self._held = self._held, []
        for late in held:
            self._deliver(late)

    def _deliver(self, message: Inbound) -> None:
        if self._delay_s:
            delay_s = self._random.uniform(0, self._delay_s)
            asyncio.get_running_loop().call_later(delay_s, self._deliver_now, message)
        else:
            self._deliver_now(message)

    def _deliver_now(self, message: Inbound) -> None:
        loop = asyncio.get_running_loop()
        shared: dict[str, list[MemoryTransport]] = {}
        for member in self._members:
            if not member.partitioned:
                loop.call_soon(member.deliver, message)
                for name in member.shares(message.topic):
                    shared.setdefault(name, []).append(member)
        for name, members in shared.items():
            loop.call_soon(self._random.choice(members).deliver_shared, name, message)


class MemoryTransport:
    """See :class:`wattmesh_a2a.transports.base.Transport`."""

    def __init__(self, broker: MemoryBroker, *, limits: TransportLimits | None = None) -> None:
        self.limits = limits or TransportLimits()
        self.will: tuple[str, bytes] | None = None
        self.partitioned = False
        self._broker = broker
        self._joined = False
        self._handlers: list[tuple[str, Callable[[Inbound], None]]] = []
        self._callbacks: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        return self._joined and not self.partitioned

    @property
    def in_flight(self) -> int:
        """See :class:`wattmesh_a2a.transports.base.Transport`; nothing is acknowledged here."""
        return 0

    def on_room(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._callbacks.append(callback)

    def set_will(self, topic: str, payload: bytes) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self.will = (topic, payload)

    async def start(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._joined = True
        self._broker.join(self)
        for topic_filter, handler in self._handlers:
            for message in self._broker.retained_for(topic_filter):
                handler(message)
        for callback in self._callbacks:
            callback()

    async def wait_connected(self, timeout_s: float) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        if not self.connected:
            raise UnavailableError("partitioned")

    async def stop(self) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._joined = False
        self._broker.leave(self, lost=False)

    def crash(self) -> None:
        """Be gone without a word."""
        self._joined = False
        self._broker.leave(self, lost=True)

    def heal(self) -> None:
        """End a partition."""
        self.partitioned = False
        for callback in self._callbacks:
            callback()

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        if not self.connected:
            raise UnavailableError("not connected")
        message = Inbound(
            topic=topic,
            payload=payload,
            response_topic=response_topic,
            correlation_data=correlation_data,
            retained=retain,
            user_properties=user_properties,
        )
        self._broker.publish(message, retain=retain)

    async def subscribe(self, topic_filter: str, handler: Callable[[Inbound], None], *, qos: int = 1) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._handlers.append((topic_filter, handler))
        if self._joined:
            for message in self._broker.retained_for(topic_filter):
                handler(message)

    def on_connected(self, callback: Callable[[], None]) -> None:
        """See :class:`wattmesh_a2a.transports.base.Transport`."""
        self._callbacks.append(callback)

    def deliver(self, message: Inbound) -> None:
        """Called by the broker."""
        if self.connected:
            for topic_filter, handler in self._handlers:
                if matches(topic_filter, message.topic):
                    handler(message)

    def shares(self, topic: str) -> list[str]:
        """The shared filters (``$share/GROUP/FILTER``) of ours that a topic fits."""
        return [name for name, _ in self._handlers if name.startswith("$share/") and matches(unshared(name), topic)]

    def deliver_shared(self, name: str, message: Inbound) -> None:
        """Called by the broker with one member of a group."""
        if self.connected:
            for topic_filter, handler in self._handlers:
                if topic_filter == name:
                    handler(message)
