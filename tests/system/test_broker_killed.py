"""kill -9 of a real broker while telemetry and acknowledgements are on their way: nothing measured is lost or there twice."""

import asyncio
import random
import socket
from array import array

import pytest
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, INGEST_AGENT, Address
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.mqtt import MqttTransport
from wattmesh_cloud.ingest import Ingest, IngestLimits
from wattmesh_cloud.store.sqlite import SqliteStore
from wattmesh_edge.outbox import Outbox
from wattmesh_edge.uplink import Uplink, UplinkProfile

pytestmark = [pytest.mark.system]
KEY = b"k" * 32
T = 1_700_000_000_000_000_000


async def until(condition, limit_s=60.0):
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


def quick(transport):
    """Reconnect at once: the pauses are not what is tested."""
    transport._client.reconnect_delay_set(min_delay=1, max_delay=1)
    return transport


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(4, marks=pytest.mark.timeout(120)),
        pytest.param(205, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
async def test_the_broker_is_killed(tmp_path, kills):
    rng, clock = random.Random(kills), SystemClock()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = KeyRing({"home-1": KEY})
    async with provision_broker(tmp_path / "broker", port) as broker:
        here, there = Address("demo", CLOUD_UNIT, INGEST_AGENT), Address("demo", "home-1", GATEWAY_AGENT)
        cloud = Delivery(quick(MqttTransport(broker.url, str(here))), here, clock, keys=keys)
        store = SqliteStore(tmp_path / "store.sqlite")
        ingest = Ingest(store, cloud, clock, "demo", limits=IngestLimits(linger_s=0.0, ack_every_s=0.0))
        ingest.register()
        site = Delivery(quick(MqttTransport(broker.url, str(there))), there, clock, keys=keys)
        outbox = Outbox(tmp_path / "outbox", "home-1", "s", ["meter.active_power_w"], batch_rows=2)
        uplink = Uplink(outbox, site, profile=UplinkProfile(again_after_s=0.5))
        await cloud.start()
        await site.start()
        running = asyncio.create_task(ingest.run())
        second = 0

        async def pump():
            nonlocal second
            while True:
                if outbox.waiting() < 60:
                    outbox.add_row(T + second * 10**9, [array("d", [float(second)])], [b"\0"])
                    second += 1
                await uplink.pump()
                await asyncio.sleep(0.002)

        pumping = asyncio.create_task(pump())
        try:
            for _ in range(kills):
                before = uplink.acknowledged
                await until(lambda before=before: uplink.acknowledged > before)
                wanted = uplink.acknowledged + rng.randrange(6)  # in the middle of whatever goes on then
                await until(lambda wanted=wanted: uplink.acknowledged >= wanted)
                broker.kill()
                broker.start()
            pumping.cancel()
            outbox.seal()
            assert await uplink.drain(60.0)
        finally:
            pumping.cancel()
            running.cancel()
            await asyncio.gather(pumping, running, return_exceptions=True)
            await ingest.stop()
            await site.stop()
            await cloud.stop()
        (series,) = store.samples("home-1", ["meter.active_power_w"], T, T + 10**9 * (second + 1))
        assert series.values.tolist() == [float(number) for number in range(second)]
        assert store.sequences("home-1", "points") == (store.sequences("home-1", "points")[0], second)
        assert store.gaps("home-1", "points") == []
        outbox.close()
        store.close()
