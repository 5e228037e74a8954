"""Values by subscription: what was granted, the dead band, and whether it still lives (OPC 10000-4, 5.13 and 5.14)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from asyncua import ua

from wattmesh_drivers.opcua.session import Session
from wattmesh_drivers.template import SubscriptionModel

_HEARTBEAT = ua.NodeId(ua.ObjectIds.Server_ServerStatus_CurrentTime)
_HEARTBEAT_MS = 1000.0
"""Most servers move their clock once a second: asking more often tells nothing more."""
_SILENT_PERIODS, _SILENT_S = 3, 5.0
"""Publishing intervals, and seconds, without a heartbeat after which a subscription is dead: the longer of both."""
_LIFETIME_MS = 60_000.0
_KEEP_ALIVE_MS = 2000.0
_NO_FILTER = {
    ua.StatusCodes.BadFilterNotAllowed, ua.StatusCodes.BadMonitoredItemFilterUnsupported,
    ua.StatusCodes.BadMonitoredItemFilterInvalid, ua.StatusCodes.BadDeadbandFilterInvalid,
}  # fmt: skip
_HEARTBEAT_HANDLE, _FIRST_HANDLE = 1, 2
"""Client handles of the heartbeat and of item 0; 0 and 2³² − 1 are none to some servers (node-opcua makes 0 of the latter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One point to be told of.

    Attributes:
        index: Of the point; it comes back with each value.
        node: Its node.
        dead_band: Changes up to this are not told, in raw units; 0: all are.
    """

    index: int
    node: ua.NodeId
    dead_band: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What a server made of the wishes (its revised values)."""

    publishing_ms: float
    lifetime_count: int
    """Publishing intervals without a publish request after which the server ends the subscription."""
    keep_alive_count: int
    """Publishing intervals without a change after which it says that it lives."""
    sampling_ms: Mapping[int, float]
    """By the item's index."""
    queue_size: Mapping[int, int]
    no_server_dead_band: frozenset[int]
    """Items whose dead band the server refused: it is ours alone."""
    heartbeat: bool
    """Whether it has a clock to watch; else every publish response is a sign of life."""

    def differences(self, wanted: SubscriptionModel) -> str:
        """What differs from the wishes, for people; empty where nothing does."""
        found = []
        if self.publishing_ms != wanted.publishing_ms:
            found.append(f"publishing every {self.publishing_ms:g} ms instead of {wanted.publishing_ms:g}")
        for name, unit, given, wish in (
            ("sampling every", " ms", self.sampling_ms, wanted.sampling_ms),
            ("a queue of", "", self.queue_size, wanted.queue_size),
        ):
            others = [value for value in given.values() if value != wish]
            if others:
                span = f"{min(others):g}" if min(others) == max(others) else f"{min(others):g} to {max(others):g}"
                found.append(f"{name} {span}{unit} instead of {wish:g} for {len(others)} of {len(given)} points")
        if self.no_server_dead_band:
            found.append(f"no dead band at the server for {len(self.no_server_dead_band)} points, for which we keep it")
        return "; ".join(found)


class Subscription:
    """The monitored items of one device, and a heartbeat among them.

    Args:
        session: An open one.
        model: What is wished.
        told: Called with each notification: the item's index and its value.
        monotonic: Real time, s.
    """

    def __init__(
        self,
        session: Session,
        model: SubscriptionModel,
        told: Callable[[int, ua.DataValue], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._session = session
        self._model = model
        self._told = told
        self._monotonic = monotonic
        self._id = 0
        self._next_sequence: int | None = None
        self.beat_at = monotonic()
        """When the server's clock was heard last."""
        self.ended: str | None = None
        """Why the server ended it."""
        self.lost = 0
        """Notifications of the server that never came."""
        self.monitored: set[int] = set()
        """Items that the server watches."""
        self.granted = Granted(
            publishing_ms=model.publishing_ms, lifetime_count=0, keep_alive_count=0, sampling_ms={}, queue_size={},
            no_server_dead_band=frozenset(), heartbeat=False,
        )  # fmt: skip

    @property
    def silent_limit_s(self) -> float:
        """How long it may be without a heartbeat."""
        return max(_SILENT_PERIODS * self.granted.publishing_ms / 1000, _SILENT_S)

    def silence(self) -> str | None:
        """Why no value of it counts any more; none while it lives."""
        if self.ended is not None:
            return f"its subscription ended ({self.ended})"
        silent_s = self._monotonic() - self.beat_at
        if silent_s > self.silent_limit_s:
            return f"its subscription gave no sign of life for {silent_s:.1f} s"
        return None

    async def open(self) -> None:
        """Make the subscription and its heartbeat; raises :class:`~wattmesh_a2a.errors.UnavailableError`."""
        wanted = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=self._model.publishing_ms,
            RequestedLifetimeCount=max(10, math.ceil(_LIFETIME_MS / self._model.publishing_ms)),
            RequestedMaxKeepAliveCount=max(1, math.floor(_KEEP_ALIVE_MS / self._model.publishing_ms)),
            MaxNotificationsPerPublish=0,
            PublishingEnabled=True,
        )
        result = await self._session.subscribe(wanted, self._published)
        self._id = result.SubscriptionId
        self.beat_at = self._monotonic()
        pace = max(self._model.publishing_ms, _HEARTBEAT_MS)
        (beat,) = await self._session.monitor(self._id, [_request(_HEARTBEAT_HANDLE, _HEARTBEAT, pace, 1, 0.0)])
        self.granted = Granted(
            publishing_ms=result.RevisedPublishingInterval,
            lifetime_count=result.RevisedLifetimeCount,
            keep_alive_count=result.RevisedMaxKeepAliveCount,
            sampling_ms={},
            queue_size={},
            no_server_dead_band=frozenset(),
            heartbeat=beat.StatusCode.is_good(),
        )

    async def add(self, items: Sequence[Item]) -> dict[int, str]:
        """Have items watched; gives those that the server refuses, by index, with its reason.

        A refused dead band is left to us and the item asked for again without it.

        Raises:
            UnavailableError: No answer.
        """
        results = await self._session.monitor(self._id, [self._wish(item, item.dead_band) for item in items])
        answered = list(zip(items, results, strict=True))
        again = [item for item, result in answered if item.dead_band and result.StatusCode.value in _NO_FILTER]
        bare = await self._session.monitor(self._id, [self._wish(item, 0.0) for item in again]) if again else []
        repeated = {item.index for item in again}
        answered = [(item, result) for item, result in answered if item.index not in repeated]
        answered += zip(again, bare, strict=True)
        good = {item.index: result for item, result in answered if result.StatusCode.is_good()}
        self.monitored |= good.keys()
        before = self.granted
        self.granted = Granted(
            publishing_ms=before.publishing_ms,
            lifetime_count=before.lifetime_count,
            keep_alive_count=before.keep_alive_count,
            sampling_ms={**before.sampling_ms, **{index: one.RevisedSamplingInterval for index, one in good.items()}},
            queue_size={**before.queue_size, **{index: one.RevisedQueueSize for index, one in good.items()}},
            no_server_dead_band=before.no_server_dead_band | (repeated & good.keys()),
            heartbeat=before.heartbeat,
        )
        return {item.index: str(one.StatusCode.name) for item, one in answered if not one.StatusCode.is_good()}

    def _wish(self, item: Item, dead_band: float) -> ua.MonitoredItemCreateRequest:
        return _request(
            item.index + _FIRST_HANDLE, item.node, self._model.sampling_ms, self._model.queue_size, dead_band
        )

    def _published(self, result: ua.PublishResult) -> None:
        """One publish response: notifications, or a keep-alive, which has none (OPC 10000-4, 5.14.1.2)."""
        message = result.NotificationMessage
        if not self.granted.heartbeat:
            self.beat_at = self._monotonic()
        if self._next_sequence is not None and message.SequenceNumber > self._next_sequence:
            self.lost += message.SequenceNumber - self._next_sequence
        notifications = message.NotificationData or ()
        self._next_sequence = message.SequenceNumber + (1 if notifications else 0)
        for data in notifications:
            if isinstance(data, ua.DataChangeNotification):
                for one in data.MonitoredItems:
                    if one.ClientHandle == _HEARTBEAT_HANDLE:
                        self._beat(one.Value)
                    else:
                        self._told(one.ClientHandle - _FIRST_HANDLE, one.Value)
            elif isinstance(data, ua.StatusChangeNotification):
                self.ended = str(data.Status.name)

    def _beat(self, value: ua.DataValue) -> None:
        if value.StatusCode is None or value.StatusCode.is_good():
            self.beat_at = self._monotonic()


def _request(
    handle: int, node: ua.NodeId, sampling_ms: float, queue_size: int, dead_band: float
) -> ua.MonitoredItemCreateRequest:
    parameters = ua.MonitoringParameters(
        ClientHandle=handle, SamplingInterval=sampling_ms, QueueSize=queue_size, DiscardOldest=True
    )
    if dead_band:
        parameters.Filter = ua.DataChangeFilter(
            Trigger=ua.DataChangeTrigger.StatusValue, DeadbandType=ua.DeadbandType.Absolute, DeadbandValue=dead_band
        )
    return ua.MonitoredItemCreateRequest(
        ItemToMonitor=ua.ReadValueId(NodeId=node, AttributeId=ua.AttributeIds.Value),
        MonitoringMode=ua.MonitoringMode.Reporting,
        RequestedParameters=parameters,
    )
