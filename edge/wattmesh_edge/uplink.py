"""From the outbox to the cloud: live data first, a window of unacknowledged batches, again after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wattmesh_a2a.delivery import ACKNOWLEDGED
from wattmesh_a2a.envelope import CLOUD_UNIT, Envelope
from wattmesh_a2a.errors import UnauthorisedError, UnavailableError
from wattmesh_a2a.messages import Message, TelemetryAck, TelemetryHeld, TelemetryResend
from wattmesh_a2a.messenger import Messenger

from wattmesh_edge.outbox import Outbox

WINDOW = 32
_AT_ONCE = 8
"""Batches that are read from disk together: reading a whole window would hold up a control cycle."""
AGAIN_AFTER_S = 5.0
"""Real seconds without an acknowledgement after which a batch is sent again."""


class Uplink:
    """Sends what waits and forgets what is acknowledged.

    Args:
        outbox: Owns the batches.
        messenger: The way to the cloud.
        now: Real time in seconds, injected by tests.
    """

    def __init__(self, outbox: Outbox, messenger: Messenger, now: Callable[[], float] | None = None) -> None:
        self._outbox = outbox
        self._messenger = messenger
        self._now = now or asyncio.get_running_loop().time
        self._sent: dict[tuple[str, int], float] = {}
        self.sent = 0
        self.acknowledged = 0
        messenger.on_request(TelemetryAck, self._on_ack, idempotent=True)
        messenger.on_request(TelemetryResend, self._on_resend, idempotent=True)

    async def pump(self) -> None:
        """Send what fits the window; returns at once when there is nothing to do or no connection."""
        now = self._now()
        for key in [key for key, at in self._sent.items() if now - at > AGAIN_AFTER_S]:
            del self._sent[key]
        room = WINDOW - len(self._sent)
        if room <= 0:
            return
        for number, batch in enumerate(self._outbox.pending(min(room, _AT_ONCE), skip=frozenset(self._sent))):
            key = batch.stream, batch.sequence
            self._sent[key] = now  # before it is sent: its acknowledgement may be quicker than our own return
            try:
                await self._messenger.send_telemetry(batch.stream, batch.frame, backlog=number > 0)
            except UnavailableError:
                self._sent.pop(key, None)
                return
            self.sent += 1
            await asyncio.sleep(0)  # a control cycle that is due comes before the next batch

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
        self._outbox.acknowledge(ack.stream, ack.sequences)
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
