"""Telemetry into the store: checked, once, durable, and only then acknowledged to the gateway."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattmesh_a2a import telemetry
from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_to_json, parse_record
from wattmesh_a2a.control import Decision
from wattmesh_a2a.envelope import GATEWAY_AGENT, Address
from wattmesh_a2a.errors import InvalidMessageError, WattmeshError
from wattmesh_a2a.grid import FrequencyEvent
from wattmesh_a2a.messages import IntervalEnergy, Message, TelemetryAck
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.store.sqlite import FrameRow, SqliteStore

log = logging.getLogger(__name__)

_QUEUE_FRAMES = 20_000
"""Beyond it frames are not taken: unacknowledged, they come again."""
_GROUP_FRAMES = 2_000
_ACK_SEQUENCES = 500
_STORE_PAUSE_S = 1.0
_ACK_VALID_S = 3600

ColumnHandler = Callable[[telemetry.ColumnBatch], None]
RecordHandler = Callable[[str, Message], None]


@dataclass(frozen=True, slots=True)
class _Frame:
    site: str
    stream: str
    payload: bytes


class Ingest:
    """Takes all sites' telemetry.

    Args:
        store: Keeps it.
        messenger: Brings it, and takes the acknowledgements.
        clock: Of the acknowledgements' validity.
        org: Of the gateways.
    """

    def __init__(self, store: SqliteStore, messenger: Messenger, clock: Clock, org: str) -> None:
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._queue: list[_Frame] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._column_handlers: list[ColumnHandler] = []
        self._record_handlers: list[RecordHandler] = []
        self._said: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.last_seen: dict[str, float] = {}

    def register(self) -> None:
        """Begin to take telemetry when the messenger starts."""
        self._messenger.on_telemetry(self._take)

    def on_columns(self, handler: ColumnHandler) -> None:
        """Call ``handler`` with every new batch of samples, after it is durable."""
        self._column_handlers.append(handler)

    def on_record(self, handler: RecordHandler) -> None:
        """Call ``handler(site, message)`` with every new record, after it is durable."""
        self._record_handlers.append(handler)

    def _take(self, site: str, stream: str, payload: bytes) -> None:
        if len(self._queue) >= _QUEUE_FRAMES:
            self.counts["refused_busy"] += 1
            return
        self._queue.append(_Frame(site, stream, payload))
        self._idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Commit what arrives, in groups, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                group, self._queue = self._queue[:_GROUP_FRAMES], self._queue[_GROUP_FRAMES:]
                await self._commit(group)
            self._idle.set()

    async def settle(self, timeout_s: float) -> None:
        """Wait until all that arrived is committed, or the real time is over."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log.warning("%d frames were not committed in %.0f s", len(self._queue), timeout_s)

    async def _commit(self, group: list[_Frame]) -> None:
        batches: list[tuple[_Frame, telemetry.ColumnBatch | telemetry.RecordBatch]] = []
        for frame in group:
            batch = self._decoded(frame)
            if batch is not None:
                batches.append((frame, batch))
        parsed = {id(batch): self._parsed(batch) for _, batch in batches if isinstance(batch, telemetry.RecordBatch)}
        frames = [
            (
                (batch.site_id, batch.stream, batch.sequence, *_span(batch), batch.records, frame.payload),
                [row for message in parsed.get(id(batch), ()) for row in items_of(batch.site_id, message)],
            )
            for frame, batch in batches
        ]
        try:
            new = await self._stored(frames)
        except (
            ValueError,
            OverflowError,
            sqlite3.DataError,
            sqlite3.InterfaceError,
            sqlite3.ProgrammingError,
        ) as error:
            if len(group) == 1:  # what no check foresaw costs itself alone
                self._drop(group[0], f"cannot be stored: {error}")
                return
            for frame in group:
                await self._commit([frame])
            return
        self.counts["batches"] += sum(new)
        self.counts["duplicates"] += len(new) - sum(new)
        self._hand_on([batch for (_, batch), first in zip(batches, new, strict=True) if first], parsed)
        self._acknowledge([batch for _, batch in batches])

    async def _stored(self, frames: Sequence[tuple[FrameRow, Sequence[tuple[Table, Item]]]]) -> list[bool]:
        """Commit; a disk that fails is tried again until it works: what is not acknowledged is lost nowhere."""
        said = False
        while True:
            try:
                return await asyncio.to_thread(self._store.append_frames, frames)
            except (sqlite3.OperationalError, OSError) as error:
                self.counts["store_failures"] += 1
                if not said:
                    said = True
                    log.error("the store does not take anything (%s); trying again until it does", error)
                await asyncio.sleep(_STORE_PAUSE_S)

    def _drop(self, frame: _Frame, cause: str) -> None:
        self.counts["invalid"] += 1
        if cause[:40] not in self._said and len(self._said) < 100:
            self._said.add(cause[:40])
            log.warning("dropped telemetry of %s: %s (further ones are only counted)", frame.site, cause)

    def _decoded(self, frame: _Frame) -> telemetry.ColumnBatch | telemetry.RecordBatch | None:
        """The batch, if it is what its topic says; else it is counted and said once."""
        try:
            batch = telemetry.decode(frame.payload)
            if batch.site_id != frame.site or batch.stream != frame.stream:
                raise InvalidMessageError(f"frame of {batch.site_id}/{batch.stream} on another's topic")
        except InvalidMessageError as error:
            self._drop(frame, str(error))
            return None
        self.last_seen[batch.site_id] = time.monotonic()
        return batch

    def _parsed(self, batch: telemetry.RecordBatch) -> list[Message]:
        messages = []
        for line in batch.lines:
            try:
                messages.append(parse_record(line))
            except InvalidMessageError as error:
                self.counts["invalid_records"] += 1
                log.warning("a record of %s is not understood: %s", batch.site_id, error)
        return messages

    def _hand_on(
        self,
        batches: list[telemetry.ColumnBatch | telemetry.RecordBatch],
        parsed: dict[int, list[Message]],
    ) -> None:
        """New batches only: one that comes again is acknowledged again and has no other effect."""
        for batch in batches:
            if isinstance(batch, telemetry.ColumnBatch):
                self.counts["records"] += batch.records
                for columns in self._column_handlers:
                    columns(batch)
            for message in parsed.get(id(batch), ()):
                for records in self._record_handlers:
                    records(batch.site_id, message)

    def _acknowledge(self, batches: list[telemetry.ColumnBatch | telemetry.RecordBatch]) -> None:
        """Tell the gateways; a lost acknowledgement is made up for by the batch coming again."""
        done: dict[tuple[str, str], list[int]] = defaultdict(list)
        for batch in batches:
            done[batch.site_id, batch.stream].append(batch.sequence)
        for (site, stream), sequences in done.items():
            for at in range(0, len(sequences), _ACK_SEQUENCES):
                ack = TelemetryAck(stream=stream, sequences=tuple(sequences[at : at + _ACK_SEQUENCES]))
                task = asyncio.get_running_loop().create_task(self._send_ack(site, ack))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send_ack(self, site: str, ack: TelemetryAck) -> None:
        to = Address(self._org, site, GATEWAY_AGENT)
        expires_ns = self._clock.utc_ns() + _ACK_VALID_S * NS_PER_S
        try:
            await self._messenger.request(to, ack, expires_ns=expires_ns, timeout_s=20.0)
        except WattmeshError:
            self.counts["acks_unanswered"] += 1

    async def stop(self) -> None:
        """End the acknowledgements under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _span(batch: telemetry.ColumnBatch | telemetry.RecordBatch) -> tuple[int, int]:
    if isinstance(batch, telemetry.ColumnBatch) and batch.times_ns:
        return batch.times_ns[0], batch.times_ns[-1]
    return 0, 0


def items_of(site: str, message: Message) -> list[tuple[Table, Item]]:
    """The rows that a record is stored as, beside its batch."""
    data = message_to_json(message)
    match message:
        case IntervalEnergy(site_id=owner, slot_start_ns=slot) if owner == site:
            return [(Table.CONSUMER_METRICS, Item(partition=site, time_ns=slot, id="interval", data=data))]
        case FrequencyEvent(id=name, start_ns=start):
            return [(Table.GRID_METRICS, Item(partition=f"{site}#frequency", time_ns=start, id=name, data=data))]
        case Alarm(id=name, raised_ns=raised):
            return [(Table.GRID_METRICS, Item(partition=f"{site}#alarms", time_ns=raised, id=name, data=data))]
        case Decision(asset_id=asset, time_ns=moment):
            item = Item(partition=f"{site}#decisions", time_ns=moment, id=asset, data=data)
            return [(Table.PRODUCER_METRICS, item)]
        case _:
            return []
