"""From the outbox to the cloud: live data first, a window of unacknowledged batches, again after a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from wattmesh_a2a.delivery import ACKNOWLEDGED
from wattmesh_a2a.envelope import CLOUD_UNIT, Envelope
from wattmesh_a2a.errors import UnauthorisedError, UnavailableError
from wattmesh_a2a.messages import Message, TelemetryAck, TelemetryHeld, TelemetryResend
from wattmesh_a2a.messenger import Messenger

from wattmesh_edge.outbox import Outbox

_AT_ONCE = 4
"""Batches that are read from disk together: reading a whole window would hold up a control cycle, and what is live meanwhile."""
PAUSE_S = 0.1
"""Between two looks at the outbox, but for what is live, which is sent at once."""
_MOST_SAMPLES = 30_000
"""In one batch: even what hardly compresses (3 bytes a sample) stays below what one message may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkProfile:
    """How often a gateway speaks: soon, or seldom where each message has its price."""

    batch_rows: int = 10
    """Cycles in a batch."""
    window: int = 32
    """Batches that may be unacknowledged."""
    again_after_s: float = 5.0
    """Real seconds without an acknowledgement after which a batch is sent again; longer than its receiver takes."""
    status_s: float = 10.0
    """Between two status events."""

    def rows(self, columns: int) -> int:
        """Cycles in a batch of so many columns."""
        return max(1, min(self.batch_rows, _MOST_SAMPLES // max(1, columns)))


LIVE = UplinkProfile()
ECONOMY = UplinkProfile(batch_rows=60, window=128, again_after_s=1800.0, status_s=600.0)
"""Batches of a minute at 1 Hz; the receiver acknowledges every twentieth with those before it, every 20 min."""
PROFILES = {"live": LIVE, "economy": ECONOMY}


class Uplink:
    """Sends what waits and forgets what is acknowledged.

    Args:
        outbox: Owns the batches.
        messenger: The way to the cloud.
        now: Real time in seconds, injected by tests.
        profile: How soon and how much.
    """

    def __init__(
        self,
        outbox: Outbox,
        messenger: Messenger,
        now: Callable[[], float] | None = None,
        profile: UplinkProfile = LIVE,
    ) -> None:
        self._outbox = outbox
        self._messenger = messenger
        self._profile = profile
        self._now = now or asyncio.get_running_loop().time
        self._sent: dict[tuple[str, int], float] = {}
        self.sent = 0
        self.acknowledged = 0
        self._live = asyncio.Event()
        self._progress = False
        outbox.on_sealed = self._live.set
        messenger.on_request(TelemetryAck, self._on_ack, idempotent=True)
        messenger.on_request(TelemetryResend, self._on_resend, idempotent=True)

    async def pump(self) -> None:
        """Send what fits the window; returns at once when there is nothing to do or no connection."""
        now = self._now()
        for key in [key for key, at in self._sent.items() if now - at > self._profile.again_after_s]:
            del self._sent[key]
        room = self._profile.window - len(self._sent)
        if room <= 0:
            return
        self._progress = False
        for number, batch in enumerate(self._outbox.pending(min(room, _AT_ONCE), skip=frozenset(self._sent))):
            key = batch.stream, batch.sequence
            self._sent[key] = now  # before it is sent: its acknowledgement may be quicker than our own return
            try:
                await self._messenger.send_telemetry(batch.stream, batch.frame, backlog=number > 0)
            except UnavailableError:
                self._sent.pop(key, None)
                return
            self.sent += 1
            self._progress = True
            await asyncio.sleep(0)  # a control cycle that is due comes before the next batch

    async def rest(self) -> None:
        """Until there may be something to send: at once when a batch was made, else after a pause, a short one with a backlog."""
        room = len(self._sent) < self._profile.window and self._outbox.waiting() > len(self._sent)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._live.wait(), PAUSE_S / 5 if room and self._progress else PAUSE_S)
        self._live.clear()

    async def drain(self, timeout_s: float) -> bool:
        """Send until nothing waits or the real time is over; returns whether nothing waits."""
        deadline = self._now() + timeout_s
        while self._outbox.waiting():
            if self._now() > deadline:
                return False
            await self.pump()
            await asyncio.sleep(0.02)
        return True

    async def _on_ack(self, envelope: Envelope) -> Message:
        ack = envelope.data
        assert isinstance(ack, TelemetryAck)
        if envelope.source.unit != CLOUD_UNIT:
            raise UnauthorisedError(f"{envelope.source} may not acknowledge telemetry")
        await asyncio.to_thread(self._outbox.acknowledge, ack.stream, ack.sequences)
        for sequence in ack.sequences:
            if self._sent.pop((ack.stream, sequence), None) is not None:
                self.acknowledged += 1
        return ACKNOWLEDGED

    async def _on_resend(self, envelope: Envelope) -> Message:
        wanted = envelope.data
        assert isinstance(wanted, TelemetryResend)
        if envelope.source.unit != CLOUD_UNIT:
            raise UnauthorisedError(f"{envelope.source} may not ask for telemetry")
        held = self._outbox.held(wanted.stream, wanted.first, wanted.last)
        for sequence in held:  # not under way any more: the next pump sends it again
            self._sent.pop((wanted.stream, sequence), None)
        return TelemetryHeld(stream=wanted.stream, first=wanted.first, last=wanted.last, held=len(held))
