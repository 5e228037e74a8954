"""Telemetry into the store: checked, once, durable, and only then acknowledged to the gateway.

Frames wait in memory, bounded in bytes; what does not fit is not taken and comes again, since nobody acknowledged it. A thread
decodes a group of them into matrices and commits it in one transaction (one ``fsync`` for many frames); then the handlers see
the new ones and the gateways get their acknowledgements, collected a site. What cannot be taken goes to the dead letters. It
is acknowledged as well where its sender and number are certain: it would fill the gateway's window for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from wattmesh_a2a import tracing
from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.codec import message_to_json, parse_record
from wattmesh_a2a.control import Decision
from wattmesh_a2a.envelope import GATEWAY_AGENT, Address
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError, WattmeshError
from wattmesh_a2a.grid import FrequencyEvent
from wattmesh_a2a.messages import IntervalEnergy, Message, TelemetryAck, TelemetryHeld, TelemetryResend
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.telemetry import RecordBatch
from wattmesh_a2a.topics import MAX_PAYLOAD_BYTES

from wattmesh_cloud.frames import Samples, decode_frame, identity_of
from wattmesh_cloud.store.base import Derived, FollowedStore, FrameRow, Item, JsonValue, Table
from wattmesh_cloud.store.dead import DeadLetter, DeadLetters

log = logging.getLogger(__name__)

_ACK_SEQUENCES = 500
_STORE_PAUSE_S = 1.0
_ACK_VALID_S = 3600
_REPLAY_AT_ONCE = 100
_RECALLS_AT_ONCE = 20
_FOLLOW_AT_ONCE = 500
_TRACED_AT_ONCE = 5

ColumnHandler = Callable[[Samples], None]
RecordHandler = Callable[[str, Message], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """Bounds of what waits and of what is believed."""

    queue_bytes: int = 48_000_000
    """Of frames that wait. Beyond it frames are not taken: unacknowledged, they come again."""
    site_share: float = 0.5
    """Of the queue that one site may fill."""
    group_bytes: int = 4_000_000
    """Of frames in one transaction."""
    linger_s: float = 0.02
    """Real time that a group waits for company; an ``fsync`` costs the same for one frame as for a thousand."""
    ack_every_s: float = 0.25
    """Real time between two acknowledgements to one stream."""
    ahead_s: int = 86_400
    """Samples later than this from now come of a wrong clock."""


@dataclass(frozen=True, slots=True)
class _Frame:
    site: str
    stream: str
    payload: bytes


@dataclass(slots=True)
class _Group:
    """A group on its way through the thread."""

    frames: list[tuple[_Frame, Samples | RecordBatch, list[Message]]] = field(default_factory=list)
    rows: list[tuple[FrameRow, Derived]] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    new: list[bool] = field(default_factory=list)
    refused: list[tuple[str, str, int]] = field(default_factory=list)
    """Of the dead letters those that are kept and can be acknowledged: site, stream, sequence."""


class Ingest:
    """Takes all sites' telemetry.

    Args:
        store: Keeps it.
        messenger: Brings it, and takes the acknowledgements.
        clock: Of the acknowledgements' validity, and what samples' times are held against.
        org: Of the gateways.
        dead: Keeps what cannot be taken; without it that is only counted.
        limits: See :class:`IngestLimits`.
        group: Of the workers that share the telemetry, each in a process of its own over the same store.
    """

    def __init__(
        self,
        store: FollowedStore,
        messenger: Messenger,
        clock: Clock,
        org: str,
        *,
        dead: DeadLetters | None = None,
        limits: IngestLimits | None = None,
        group: str | None = None,
    ) -> None:
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._dead = dead
        self._limits = limits or IngestLimits()
        self._group = group
        self._queue: deque[_Frame] = deque()
        self._queued: Counter[str] = Counter()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._acking: set[tuple[str, str]] = set()
        self._column_handlers: list[ColumnHandler] = []
        self._record_handlers: list[RecordHandler] = []
        self._said: set[str] = set()
        self._gaps: set[tuple[str, str, int, int]] = set()
        self._gone: set[tuple[str, str, int, int]] = set()
        self.counts: Counter[str] = Counter()
        self.last_seen: dict[str, float] = {}

    def register(self) -> None:
        """Begin to take telemetry when the messenger starts."""
        self._messenger.on_telemetry(self._take, group=self._group)

    def on_columns(self, handler: ColumnHandler) -> None:
        """Call ``handler`` with every new batch of samples, after it is durable."""
        self._column_handlers.append(handler)

    def on_record(self, handler: RecordHandler) -> None:
        """Call ``handler(site, message)`` with every new record, after it is durable."""
        self._record_handlers.append(handler)

    def _take(self, site: str, stream: str, payload: bytes) -> None:
        size = len(payload)
        if size > MAX_PAYLOAD_BYTES:
            self.counts["oversized"] += 1
            return
        limits = self._limits
        if (
            self._queued_bytes + size > limits.queue_bytes
            or self._queued[site] + size > limits.queue_bytes * limits.site_share
        ):
            self.counts["refused_busy"] += 1
            return
        self._queue.append(_Frame(site, stream, payload))
        self._queued[site] += size
        self._queued_bytes += size
        self._idle.clear()
        self._arrived.set()

    def _next(self) -> list[_Frame]:
        group, size = [], 0
        while self._queue and size < self._limits.group_bytes:
            frame = self._queue.popleft()
            size += len(frame.payload)
            self._queued[frame.site] -= len(frame.payload)
            group.append(frame)
        self._queued_bytes -= size
        if not self._queue:
            self._queued.clear()
        return group

    async def run(self) -> None:
        """Commit what arrives, in groups, for ever."""
        while True:
            await self._arrived.wait()
            if self._limits.linger_s and self._queued_bytes < self._limits.group_bytes:
                await asyncio.sleep(self._limits.linger_s)
            self._arrived.clear()
            while self._queue:
                await self._commit(self._next())
            self._idle.set()

    async def follow(self, every_s: float = 0.25) -> None:
        """Hand on what workers have stored, in the order in which it became durable, for ever; for a process that takes nothing.

        The place that was reached is kept with the frames: after a restart it goes on there, and what was handed on since the
        last note comes again.
        """
        cursor = await asyncio.to_thread(self._store.followed)
        while True:
            cursor, frames = await asyncio.to_thread(self._store.stored_since, cursor, _FOLLOW_AT_ONCE)
            for batch in frames:
                messages: list[Message] = []
                if isinstance(batch, RecordBatch):
                    found = (self._message(batch.site_id, batch.stream, None, line, _Group()) for line in batch.lines)
                    messages = [message for message in found if message is not None]
                self.last_seen[batch.site_id] = time.monotonic()
                self.counts["batches"] += 1
                self._hand_on(batch, messages)
            if frames:
                await asyncio.to_thread(self._store.note_followed, cursor)
            else:
                await asyncio.sleep(every_s)

    async def settle(self, timeout_s: float) -> None:
        """Wait until all that arrived is committed, or the real time is over."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            log.warning("%d frames were not committed in %.0f s", len(self._queue), timeout_s)

    async def replay(self) -> int:
        """Try the dead letters again that somebody marked for it; returns how many were taken now."""
        if self._dead is None:
            return 0
        taken = 0
        while letters := await asyncio.to_thread(self._dead.marked, _REPLAY_AT_ONCE):
            for letter in letters:
                if await self._again(letter):
                    await asyncio.to_thread(self._dead.forget, [letter.id])
                    taken += 1
        self.counts["replayed"] += taken
        return taken

    async def _again(self, letter: DeadLetter) -> bool:
        """Whether a letter is taken now. One that is not is a dead letter as before, no longer marked."""
        if letter.kind == "frame":
            return await self._commit([_Frame(letter.site, letter.stream, letter.payload)])
        group = _Group()
        message = self._message(letter.site, letter.stream, letter.sequence, letter.payload, group)
        if message is None:
            await self._stored(group)
            return False
        by_table: dict[Table, list[Item]] = defaultdict(list)
        for table, item in items_of(letter.site, message):
            by_table[table].append(item)
        for table, items in by_table.items():
            await asyncio.to_thread(self._store.put, table, items)
        self._tell(letter.site, message)
        return True

    # -- one group

    async def _commit(self, frames: list[_Frame]) -> bool:
        """Whether all of them are in the store now."""
        group = await asyncio.to_thread(self._prepared, frames)
        try:
            await self._stored(group)
        except ValueError as error:
            if len(frames) > 1:  # what no check foresaw costs itself alone
                return all([await self._commit([frame]) for frame in frames])
            self._refuse(group, frames[0], f"cannot be stored: {error}")
            group.frames, group.rows = [], []
            await self._stored(group)
        self._trace(group)
        self.counts["batches"] += sum(group.new)
        self.counts["duplicates"] += len(group.new) - sum(group.new)
        for (_, batch, messages), first in zip(group.frames, group.new, strict=True):
            if first:
                self._hand_on(batch, messages)
            self._due[batch.site_id, batch.stream].append(batch.sequence)
        for site, stream, sequence in group.refused:
            self._due[site, stream].append(sequence)
        self._acknowledge()
        return not group.dead

    def _trace(self, group: _Group) -> None:
        """A few of a group's new batches as spans, each in the trace that its key names; for whoever records."""
        for (_, batch, _), first in list(zip(group.frames, group.new, strict=True))[:_TRACED_AT_ONCE]:
            if first:
                late = self._clock.utc_ns() - batch.span()[1] if isinstance(batch, Samples) else 0
                with (
                    tracing.within(tracing.of_batch(batch.site_id, batch.stream, batch.sequence)),
                    tracing.span(
                        "telemetry.stored", site=batch.site_id, sequence=batch.sequence, age_s=late / NS_PER_S
                    ),
                ):
                    pass

    def _prepared(self, frames: list[_Frame]) -> _Group:
        """Everything decoded and checked, on a thread."""
        group = _Group()
        now_ns = self._clock.utc_ns()
        for frame in frames:
            batch = self._decoded(frame, now_ns, group)
            if batch is None:
                continue
            messages: list[Message] = []
            span = (now_ns, now_ns)  # records: when they came, for the retention
            if isinstance(batch, Samples):
                span = batch.span()
            else:
                found = (self._message(frame.site, frame.stream, batch.sequence, line, group) for line in batch.lines)
                messages = [message for message in found if message is not None]
            row = (batch.site_id, batch.stream, batch.sequence, *span, batch.records, frame.payload)
            derived = [pair for message in messages for pair in items_of(batch.site_id, message)]
            group.frames.append((frame, batch, messages))
            group.rows.append((row, derived))
        return group

    def _decoded(self, frame: _Frame, now_ns: int, group: _Group) -> Samples | RecordBatch | None:
        """The batch, if it is what its topic says; else it is refused."""
        try:
            batch = decode_frame(frame.payload)
            if batch.site_id != frame.site or batch.stream != frame.stream:
                raise InvalidMessageError(f"frame of {batch.site_id}/{batch.stream} on another's topic")
            if isinstance(batch, Samples) and batch.span()[1] > now_ns + self._limits.ahead_s * NS_PER_S:
                raise InvalidMessageError("samples of the future: the gateway's clock is wrong")
        except InvalidMessageError as error:
            self._refuse(group, frame, str(error))
            return None
        self.last_seen[batch.site_id] = time.monotonic()
        return batch

    def _message(self, site: str, stream: str, sequence: int | None, line: bytes, group: _Group) -> Message | None:
        try:
            return parse_record(line)
        except InvalidMessageError as error:
            self.counts["invalid_records"] += 1
            self._say(f"a record of {site} is not understood: {error}")
            group.dead.append(self._letter(_Frame(site, stream, line), sequence, "record", str(error)))
            return None

    def _refuse(self, group: _Group, frame: _Frame, cause: str) -> None:
        self.counts["invalid"] += 1
        self._say(f"refused telemetry of {frame.site}: {cause}")
        identity = identity_of(frame.payload)
        known = identity is not None and identity[:2] == (frame.site, frame.stream)
        group.dead.append(self._letter(frame, identity[2] if identity and known else None, "frame", cause))

    def _say(self, text: str) -> None:
        if text[:60] not in self._said and len(self._said) < 100:
            self._said.add(text[:60])
            log.warning("%s (further ones are only counted)", text)

    def _letter(self, frame: _Frame, sequence: int | None, kind: str, reason: str) -> DeadLetter:
        now = self._clock.utc_ns()
        return DeadLetter(
            id=0, site=frame.site, stream=frame.stream, sequence=sequence, kind=kind, reason=reason[:500],
            first_ns=now, last_ns=now, times=1, payload=frame.payload,
        )  # fmt: skip

    async def _stored(self, group: _Group) -> None:
        """Commit; a disk that fails is tried again until it works: what is not acknowledged is lost nowhere."""
        said = False
        while True:
            try:
                await asyncio.to_thread(self._write, group)
                return
            except (UnavailableError, OSError) as error:
                self.counts["store_failures"] += 1
                if not said:
                    said = True
                    log.error("the store does not take anything (%s); trying again until it does", error)
                await asyncio.sleep(_STORE_PAUSE_S)

    def _write(self, group: _Group) -> None:
        if group.rows and not group.new:  # when the dead letters alone are tried again, new frames stay new
            group.new = self._store.append_frames(group.rows)
        if group.dead and self._dead is not None:
            kept = self._dead.keep(group.dead)
            self.counts["dead_letters"] += sum(kept)
            self.counts["dead_letters_without_room"] += len(kept) - sum(kept)
            group.refused = [
                (one.site, one.stream, one.sequence)
                for one, room in zip(group.dead, kept, strict=True)
                if room and one.kind == "frame" and one.sequence is not None
            ]

    def _hand_on(self, batch: Samples | RecordBatch, messages: Sequence[Message]) -> None:
        """New batches only: one that comes again is acknowledged again and has no other effect."""
        if isinstance(batch, Samples):
            self.counts["records"] += batch.records
            for columns in self._column_handlers:
                columns(batch)
        for message in messages:
            self._tell(batch.site_id, message)

    def _tell(self, site: str, message: Message) -> None:
        for records in self._record_handlers:
            records(site, message)

    # -- acknowledging

    def _acknowledge(self) -> None:
        """One acknowledgement a stream is under way; what becomes durable meanwhile goes with the next."""
        for key in self._due:
            if key not in self._acking:
                self._acking.add(key)
                task = asyncio.get_running_loop().create_task(self._send_acks(*key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send_acks(self, site: str, stream: str) -> None:
        """Until nothing is due; a lost acknowledgement is made up for by the batch coming again."""
        try:
            while due := self._due.pop((site, stream), None):
                for at in range(0, len(due), _ACK_SEQUENCES):
                    await self._send_ack(
                        site, TelemetryAck(stream=stream, sequences=tuple(due[at : at + _ACK_SEQUENCES]))
                    )
                if self._limits.ack_every_s:
                    await asyncio.sleep(self._limits.ack_every_s)
        finally:
            self._acking.discard((site, stream))

    async def _send_ack(self, site: str, ack: TelemetryAck) -> None:
        to = Address(self._org, site, GATEWAY_AGENT)
        expires_ns = self._clock.utc_ns() + _ACK_VALID_S * NS_PER_S
        try:
            await self._messenger.request(to, ack, expires_ns=expires_ns, timeout_s=20.0)
        except WattmeshError:
            self.counts["acks_unanswered"] += 1

    # -- what is missing

    async def recall(self, sites: Collection[str]) -> None:
        """Ask these sites for batches that are missing now and were at the last call; what they no longer have is lost.

        A gateway sends the newest first, so that young gaps close by themselves. Returns before the answers.
        """
        gaps: set[tuple[str, str, int, int]] = set()
        for site, stream in await asyncio.to_thread(self._store.streams):
            if site in sites:
                found = await asyncio.to_thread(self._store.gaps, site, stream)
                gaps.update((site, stream, first, last) for first, last in found)
        old = sorted((gaps & self._gaps) - self._gone)
        self._gaps = gaps
        for gap in old[:_RECALLS_AT_ONCE]:
            task = asyncio.get_running_loop().create_task(self._recall(*gap))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _recall(self, site: str, stream: str, first: int, last: int) -> None:
        to = Address(self._org, site, GATEWAY_AGENT)
        wanted = TelemetryResend(stream=stream, first=first, last=last)
        self.counts["recalls"] += 1
        try:
            expires_ns = self._clock.utc_ns() + _ACK_VALID_S * NS_PER_S
            answer = await self._messenger.request(to, wanted, expires_ns=expires_ns, timeout_s=20.0)
        except WattmeshError:
            return
        if isinstance(answer, TelemetryHeld) and answer.held == 0:
            self._gone.add((site, stream, first, last))
            self.counts["batches_lost"] += last - first + 1
            log.warning("%s has lost batches %d to %d of %s for good", site, first, last, stream)

    async def stop(self) -> None:
        """End the acknowledgements under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def items_of(site: str, message: Message) -> list[tuple[Table, Item]]:
    """The rows that a record is stored as, beside its batch."""
    data = message_to_json(message)
    match message:
        case IntervalEnergy(site_id=owner, slot_start_ns=slot) if owner == site:
            production: dict[str, JsonValue] = {
                "site_id": site,
                "slot_start_ns": slot,
                "slot_s": message.slot_s,
                "pv_wh": message.pv_wh,
                "battery_discharge_wh": message.battery_discharge_wh,
                "export_wh": message.export_wh,
                "complete": message.complete,
            }
            return [
                (Table.CONSUMER_METRICS, Item(partition=site, time_ns=slot, id="interval", data=data)),
                (Table.PRODUCER_METRICS, Item(partition=site, time_ns=slot, id="interval", data=production)),
            ]
        case FrequencyEvent(id=name, start_ns=start):
            return [(Table.GRID_METRICS, Item(partition=f"{site}#frequency", time_ns=start, id=name, data=data))]
        case Alarm(id=name, raised_ns=raised):
            return [(Table.GRID_METRICS, Item(partition=f"{site}#alarms", time_ns=raised, id=name, data=data))]
        case Decision(asset_id=asset, time_ns=moment):
            item = Item(partition=f"{site}#decisions", time_ns=moment, id=asset, data=data)
            return [(Table.PRODUCER_METRICS, item)]
        case _:
            return []
