"""The same conversation over mosquitto and over the small broker, on real sockets."""

import asyncio
import random
import shutil
import socket

import pytest
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import Acknowledged, CommitmentQuery
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "market-supervisor")
HAS_MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is not None
KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")),
    "small",
]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_retained_cards_and_wills_pass(tmp_path, kind):
    clock, seen = SystemClock(), []

    async def handle(envelope):
        return Acknowledged(detail=str(envelope.data.from_ns))

    async with provision_broker(tmp_path / "broker", free_port(), kind=kind) as broker:
        cloud = Delivery(MqttTransport(broker.url, str(CLOUD)), CLOUD, clock)
        cloud.on_request(CommitmentQuery, handle)
        cloud.on_presence(lambda who, card: seen.append((str(who), card is not None)))
        transport = MqttTransport(broker.url, str(SITE))
        site = Delivery(transport, SITE, clock)
        await site.announce({"hello": 1})
        await site.start()
        await transport.wait_connected(5)
        await cloud.start()
        answers = await asyncio.gather(
            *(
                site.request(
                    CLOUD, CommitmentQuery(participant_id="p", from_ns=n), expires_ns=clock.utc_ns() + 20 * 10**9
                )
                for n in range(50)
            )
        )
        assert [answer.detail for answer in answers] == [str(n) for n in range(50)]
        await until(lambda: (str(SITE), True) in seen)
        transport._client._sock.shutdown(socket.SHUT_RDWR)  # lost without a word: the will comes, then the rebirth
        await until(lambda: (str(SITE), False) in seen or seen.count((str(SITE), True)) > 1)
        await until(lambda: seen[-1] == (str(SITE), True))
        await site.stop()
        await until(lambda: seen[-1] == (str(SITE), False))
        await cloud.stop()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_outlives_a_killed_broker(tmp_path, kind):
    clock, effects = SystemClock(), []

    async def handle(envelope):
        effects.append(envelope.data.from_ns)
        return Acknowledged()

    async with provision_broker(tmp_path / "broker", free_port(), kind=kind) as broker:
        cloud = Delivery(MqttTransport(broker.url, str(CLOUD)), CLOUD, clock)
        cloud.on_request(CommitmentQuery, handle)
        site = Delivery(MqttTransport(broker.url, str(SITE)), SITE, clock)
        await cloud.start()
        await site.start()
        expires = clock.utc_ns() + 60 * 10**9
        await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=expires)
        broker.kill()
        waiting = asyncio.create_task(
            site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=2), expires_ns=expires)
        )
        await asyncio.sleep(0)
        broker.start()
        assert await asyncio.wait_for(waiting, 30) == Acknowledged()
        assert effects == [1, 2]
        await site.stop()
        await cloud.stop()


async def test_garbage_ends_a_connection_to_the_small_broker_and_nothing_else(tmp_path):
    chance = random.Random(3)
    async with provision_broker(tmp_path / "broker", free_port(), kind="small") as broker:
        witness = MqttTransport(broker.url, "o/u/witness")
        got = []
        await witness.subscribe("t/#", got.append)
        await witness.start()
        await witness.wait_connected(5)
        for _ in range(150):
            reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
            head = bytes.fromhex("101000044d515454050200140000036f2f78") if chance.random() < 0.5 else b""
            writer.write(head + chance.randbytes(chance.randrange(1, 300)))
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
        await witness.publish("t/x", b"still here")
        await until(lambda: got and got[-1].payload == b"still here")
        await witness.stop()


async def test_a_port_that_is_taken_is_one_clear_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="cannot be used"):
            async with provision_broker(tmp_path / "broker", taken.getsockname()[1], kind="small"):
                pass


def test_plain_text_stays_on_this_machine():
    with pytest.raises(ConfigurationError, match="mqtts"):
        MqttTransport("mqtt://broker.example:1883", "o/u/a")
    with pytest.raises(ConfigurationError, match="mqtt://host:port"):
        MqttTransport("http://localhost", "o/u/a")
