"""A component's MQTT by the nucleus, against a stand-in that ends the connection past the lite one's limits."""

import asyncio
import os

import pytest

pytest.importorskip("awsiot.greengrasscoreipc", reason="the extra greengrass is not installed")

from nucleus import Nucleus
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError
from wattmesh_a2a.messages import Acknowledged, CommitmentQuery, Strategy
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.choose import transport_for
from wattmesh_a2a.transports.greengrass import SOCKET_VARIABLE, TOKEN_VARIABLE, GreengrassTransport
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "producer")
RING = KeyRing({"home-1": b"k" * 32})


async def until(condition, seconds=15.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "ipc.socket")


async def join(path, address, prepare=lambda delivery: None):
    transport = GreengrassTransport(path, "svc")
    delivery = Delivery(transport, address, SystemClock(), keys=RING)
    prepare(delivery)
    await delivery.start()
    await transport.wait_connected(10)
    return delivery


async def acknowledge(_envelope):
    return ACKNOWLEDGED


def expires():
    return SystemClock().utc_ns() + 30 * NS_PER_S


async def test_signed_commands_telemetry_and_properties_pass(path):
    taken, frames = [], []

    async def handle(envelope):
        taken.append(envelope)
        return ACKNOWLEDGED

    async with Nucleus(path) as nucleus:
        site = await join(path, SITE, lambda one: one.on_request(Strategy, handle))
        cloud = await join(path, CLOUD, lambda one: one.on_telemetry(lambda *frame: frames.append(frame)))
        strategy = Strategy(
            site_id="home-1", expires_ns=9 * 10**18, reserve_soc_percent=5, peak_limit_w=None, trade=True, rationale="r"
        )
        assert await cloud.request(SITE, strategy, expires_ns=expires(), timeout_s=10) == ACKNOWLEDGED
        assert taken[0].signed
        await site.send_telemetry("points", bytes(range(256)))
        await until(lambda: frames)
        assert frames == [("home-1", "points", bytes(range(256)))]
        asked = next(one for one in nucleus.published if one["topicName"].startswith("a2a/v1/request/o/home-1"))
        assert asked["responseTopic"].startswith("a2a/v1/reply/o/cloud/producer/")
        assert asked["correlationData"]
        assert 0 < asked["messageExpiryIntervalSeconds"] <= 30
        assert asked["qos"] == "1"
        for one in (site, cloud):
            await one.stop()


async def test_a_storm_stays_in_the_window_and_large_messages_travel_in_parts(path):
    async def handle(envelope):
        return Acknowledged(detail=envelope.data.participant_id)

    async with Nucleus(path, answer_s=0.02) as nucleus:
        site = await join(path, SITE, lambda one: one.on_request(CommitmentQuery, handle))
        cloud = await join(path, CLOUD)
        large = "x" * 20_000  # several parts, each way
        answers = await asyncio.gather(
            cloud.request(SITE, CommitmentQuery(participant_id=large, from_ns=0), expires_ns=expires(), timeout_s=25),
            *(
                cloud.request(
                    SITE, CommitmentQuery(participant_id=str(n), from_ns=n), expires_ns=expires(), timeout_s=25
                )
                for n in range(60)
            ),
        )
        assert [one.detail for one in answers] == [large, *(str(n) for n in range(60))]
        assert nucleus.ended == []
        assert nucleus.most_unanswered <= 10
        for one in (site, cloud):
            await one.stop()


async def test_the_stand_in_ends_the_connection_past_the_limits_as_the_lite_nucleus_does(path):
    async with Nucleus(path) as nucleus:
        transport = GreengrassTransport(path, "svc")
        await transport.start()
        await transport.wait_connected(10)
        with pytest.raises(InvalidMessageError):
            await transport.publish("t", bytes(7001))
        transport.limits = type(transport.limits)(max_payload_bytes=100_000, max_in_flight=1000)
        await transport.publish("t", bytes(8000))
        await until(lambda: nucleus.ended)
        await until(lambda: not transport.connected)
        await transport.wait_connected(10)  # and it comes back
        await transport.stop()


async def test_requests_outlive_a_nucleus_that_restarts(path):
    async with Nucleus(path) as nucleus:
        site = await join(path, SITE, lambda one: one.on_request(CommitmentQuery, acknowledge))
        cloud = await join(path, CLOUD)
        query = CommitmentQuery(participant_id="p", from_ns=1)
        assert await cloud.request(SITE, query, expires_ns=expires(), timeout_s=10) == ACKNOWLEDGED
        nucleus.drop()
        await until(lambda: not cloud._transport.connected or not site._transport.connected)
        assert await cloud.request(SITE, query, expires_ns=expires(), timeout_s=20) == ACKNOWLEDGED
        for one in (site, cloud):
            await one.stop()


async def test_what_a_component_is_not_is_a_clear_error(path, monkeypatch):
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match="nucleus"):
        GreengrassTransport()
    transport = GreengrassTransport(path, "svc")
    with pytest.raises(ConfigurationError, match="pool"):
        await transport.subscribe("$share/g/a/b", print)
    with pytest.raises(UnavailableError):
        await transport.publish("t", b"")
    await transport.start()
    with pytest.raises(UnavailableError, match="no connection to the nucleus"):
        await transport.wait_connected(0.3)
    await transport.stop()
    async with Nucleus(path, token="another") as nucleus:
        stranger = GreengrassTransport(path, "svc")
        await stranger.start()
        await until(lambda: nucleus.refused)
        assert not stranger.connected
        await stranger.stop()


@pytest.mark.skipif(SOCKET_VARIABLE not in os.environ, reason=f"no nucleus: {SOCKET_VARIABLE} is not set")
async def test_against_a_real_nucleus():
    """As a component whose recipe allows publish and subscribe on `wattmesh-test/#`."""
    assert TOKEN_VARIABLE in os.environ
    got = []
    transport = GreengrassTransport()
    await transport.subscribe("wattmesh-test/#", got.append)
    await transport.start()
    await transport.wait_connected(20)
    for number in range(200):
        while transport.in_flight >= transport.limits.max_in_flight:
            await asyncio.sleep(0.01)
        await transport.publish("wattmesh-test/storm", b"%d" % number, response_topic="wattmesh-test/reply")
    await until(lambda: len(got) == 200, 60)
    assert got[0].response_topic == "wattmesh-test/reply"
    await transport.stop()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://x", "mqtt://host:port"),
        ("iot-core://x.amazonaws.com", "certificate and key"),
        ("mqtt://x.example", "plain text"),
    ],
    ids=["another protocol", "no certificate", "plain text"],
)
def test_a_way_to_a_broker_that_cannot_be_is_a_clear_error(url, said):
    with pytest.raises(ConfigurationError, match=said):
        transport_for(url, "home-1")


def test_only_the_chosen_transport_is_made(path, monkeypatch, tmp_path):
    monkeypatch.setenv(SOCKET_VARIABLE, path)
    monkeypatch.setenv(TOKEN_VARIABLE, "svc")
    assert isinstance(transport_for("greengrass:", "home-1"), GreengrassTransport)
    assert isinstance(transport_for("mqtt://127.0.0.1:1", "home-1"), MqttTransport)
