"""Agents of other makes: plain A2A over MQTT in JSON-RPC, and its public SDK as a peer."""

import asyncio
import contextlib
import json
import shutil
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a import a2a_profile as rpc
from wattmesh_a2a.broker import provision_broker
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messages import Acknowledged, CommitmentQuery, Strategy
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.memory import MemoryTransport
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, PEER = Address("o", "home-1", "gateway"), Address("o", "default", "client")
QUERY = {"type": "wattmesh.market.commitment.query.v1", "data": {"participant_id": "p", "from_ns": 7}}
HAS_MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is not None


async def turns(count=40):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def ask(ends):
    world, answers, effects = ends(), [], []

    async def handle(envelope):
        effects.append(envelope)
        return Acknowledged(detail=str(envelope.data))

    def prepare(delivery):
        delivery.on_request(CommitmentQuery, handle)
        delivery.on_request(Strategy, handle)

    await world.join(SITE, prepare=prepare)
    hand = MemoryTransport(world.broker)
    await hand.subscribe("a2a/v1/reply/#", answers.append)
    await hand.start()

    async def send(message, *, method="SendMessage", reply=f"a2a/v1/reply/{PEER}/s", correlation=b"c", raw=None):
        before = len(answers)
        params = message if method == "GetTask" else {"message": message}
        payload = raw or json.dumps({"jsonrpc": "2.0", "id": 5, "method": method, "params": params}).encode()
        await hand.publish(f"a2a/v1/request/{SITE}", payload, response_topic=reply, correlation_data=correlation)
        await turns()
        return [json.loads(one.payload) for one in answers[before:]]

    send.effects = effects
    return send


def message(part, task="t-1"):
    return {"messageId": "m", "role": "ROLE_USER", "taskId": task, "contextId": "x", "parts": [part]}


async def test_a_query_is_a_task_that_is_done_once(ask):
    (first,) = await ask(message({"data": QUERY}))
    task = first["result"]["task"]
    assert (task["id"], task["contextId"], task["status"]["state"]) == ("t-1", "x", "TASK_STATE_COMPLETED")
    assert task["artifacts"][0]["parts"][0]["data"]["type"] == "wattmesh.acknowledged.v1"
    assert await ask(message({"data": QUERY})) == [first]
    assert len(ask.effects) == 1
    (got,) = await ask({"id": "t-1"}, method="GetTask")
    assert got["result"]["task"]["artifacts"] == task["artifacts"]


async def test_nothing_that_moves_power_is_taken_from_who_does_not_sign(ask):
    data = {
        "site_id": "home-1",
        "expires_ns": 9,
        "reserve_soc_percent": 1,
        "peak_limit_w": None,
        "trade": True,
        "rationale": "r",
    }
    (answer,) = await ask(message({"data": {"type": "wattmesh.strategy.v1", "data": data}}))
    status = answer["result"]["task"]["status"]
    assert status["state"] == "TASK_STATE_REJECTED"
    assert "unsigned" in status["message"]["parts"][0]["text"]
    assert ask.effects == []


async def test_text_is_told_what_can_be_asked_and_strange_requests_get_typed_errors(ask):
    (answer,) = await ask(message({"text": "hello"}, task="t-2"))
    text = answer["result"]["task"]["artifacts"][0]["parts"][0]["text"]
    assert QUERY["type"] in text
    assert "strategy" not in text
    for send, code in (
        (ask(message({"data": QUERY}), method="DeleteEverything"), -32601),
        (ask({"parts": []}), -32005),
        (ask(message({"data": QUERY}), correlation=None), -32005),
        (ask(message({"data": 5})), -32602),
        (ask({"id": "never"}, method="GetTask"), -32001),
        (ask({}, raw=b'{"jsonrpc": "2.0", '), -32700),
    ):
        (answer,) = await send
        assert answer["error"]["code"] == code
        assert (code != -32005) or answer["error"]["data"]["a2a_error"] == "transport_protocol_error"
    assert await ask(message({"data": QUERY}), reply="a2a/v1/reply/p/x/y/z") == []
    assert await ask(message({"data": QUERY}), reply="a2a/v1/request/o/x/y") == []


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200).map(lambda some: b'{"jsonrpc":' + some))
def test_no_bytes_raise_anything_but_the_one_error(payload):
    with contextlib.suppress(rpc.RpcError):
        rpc.asked({"message": {}, **rpc.parse_rpc(payload)[2]})


@pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")
async def test_the_public_sdk_talks_to_our_agent(tmp_path):
    sdk = pytest.importorskip("a2a_over_mqtt", reason="pip install a2a-over-mqtt")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    async with provision_broker(tmp_path / "broker", port, kind="mosquitto") as broker:
        address = Address("o", "default", "gateway")
        transport = MqttTransport(broker.url, str(address))
        agent = Delivery(transport, address, SystemClock(), topics=Topics(prefix="$a2a/v1"))
        await agent.announce({"name": "gateway of a test"})
        await agent.start()
        await transport.wait_connected(5)
        requester = sdk.Requester(sdk.MqttConfig(host="127.0.0.1", port=port), sdk.TopicSpace(org="o", unit="default"))
        request = sdk.A2ARequest(text="What can you do?", request_id="r-1")
        replies = [one async for one in requester.stream("gateway", request.to_json(), "corr-1")]
        assert replies[-1][0] == "terminal"
        assert "wattmesh.stats.query.v1" in replies[-1][1]
        card = sdk.parse_card(agent._cards[address])
        assert card is not None
        await agent.stop()
