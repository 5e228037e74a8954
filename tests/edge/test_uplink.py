"""What the gateway sends, forgets, and sends again when the cloud misses it."""

import asyncio
from array import array

import pytest
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import UnauthorisedError
from wattmesh_a2a.messages import TelemetryAck, TelemetryHeld, TelemetryResend
from wattmesh_a2a.telemetry import decode
from wattmesh_edge.outbox import POINTS, Outbox
from wattmesh_edge.uplink import Uplink


class Messenger:
    def __init__(self):
        self.sent, self.handlers = [], {}

    def on_request(self, kind, handler, *, as_agent=None, idempotent=False):
        self.handlers[kind] = handler

    async def send_telemetry(self, stream, frame, *, backlog=False):
        self.sent.append((stream, frame))


class Asked:
    def __init__(self, data, unit="cloud"):
        self.data, self.source = data, Address("demo", unit, "ingest")


@pytest.fixture
def outbox(tmp_path):
    opened = Outbox(tmp_path, "home-1", "s", ["meter.active_power_w"], batch_rows=1)
    for second in range(6):
        opened.add_row(10**18 + second * 10**9, [array("d", [1.0])], [b"\0"])
    yield opened
    opened.close()


async def test_what_the_cloud_misses_is_sent_again_at_once(outbox):
    messenger = Messenger()
    uplink = Uplink(outbox, messenger, now=lambda: 0.0)
    await uplink.pump()
    assert len(messenger.sent) == 4, "a few at a time"
    await uplink.pump()
    assert len(messenger.sent) == 6
    await messenger.handlers[TelemetryAck](Asked(TelemetryAck(stream=POINTS, sequences=(0, 1, 4))))
    await uplink.pump()
    assert len(messenger.sent) == 6, "under way, and not long enough"
    answer = await messenger.handlers[TelemetryResend](Asked(TelemetryResend(stream=POINTS, first=1, last=3)))
    assert answer == TelemetryHeld(stream=POINTS, first=1, last=3, held=2)
    await uplink.pump()
    assert len(messenger.sent) == 8
    gone = await messenger.handlers[TelemetryResend](Asked(TelemetryResend(stream=POINTS, first=0, last=1)))
    assert gone.held == 0


async def test_only_the_cloud_may_ask(outbox):
    messenger = Messenger()
    Uplink(outbox, messenger, now=lambda: 0.0)
    with pytest.raises(UnauthorisedError):
        await messenger.handlers[TelemetryResend](Asked(TelemetryResend(stream=POINTS, first=0, last=9), "home-2"))


async def test_what_is_live_goes_at_once_and_before_the_backlog(outbox, tmp_path):
    """The pause between two looks ends with a new batch, and the newest batch is the first that is sent."""
    messenger = Messenger()
    uplink = Uplink(outbox, messenger)
    for _ in range(4):
        await uplink.pump()
    resting = asyncio.create_task(uplink.rest())
    await asyncio.sleep(0)
    outbox.add_row(10**18 + 99 * 10**9, [array("d", [7.0])], [b"\0"])
    await asyncio.wait_for(resting, 5)
    await uplink.pump()
    assert decode(messenger.sent[-1][1]).values[0][0] == 7.0
    fresh = Uplink(outbox, Messenger())
    await fresh.pump()
    assert decode(fresh._messenger.sent[0][1]).values[0][0] == 7.0
