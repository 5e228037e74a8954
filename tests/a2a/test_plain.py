"""Plain A2A with streams, cancelling and input that is asked for, in virtual conditions: loss, repetition, two listeners."""

import asyncio
import json

import pytest
from wattmesh_a2a.a2a_profile import INPUT_REQUIRED
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.messages import Acknowledged, CommitmentQuery
from wattmesh_a2a.plain import PlainClient, PlainError

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "a2a")


def says(text, **more):
    return {
        "messageId": more.pop("id", "m-1"),
        "role": "ROLE_USER",
        "taskId": "t-1",
        "contextId": "c",
        "parts": [{"text": text}],
    }


async def agent(task):
    """Counts to what is asked; asks back, or fails, where it is told to."""
    if task.text == "who?":
        yield {"message": {"parts": [{"text": "me"}]}}
    elif task.text == "ask back":
        yield {"statusUpdate": {"status": {"state": INPUT_REQUIRED}}}
    elif task.text == "wait":
        yield {"statusUpdate": {"status": {"state": "TASK_STATE_WORKING"}}}
        await asyncio.Event().wait()
    elif task.text == "fail":
        raise RuntimeError("of the handler")
    else:
        yield {"statusUpdate": {"status": {"state": "TASK_STATE_WORKING"}}}
        for number in range(int(task.text)):
            yield {
                "artifactUpdate": {
                    "artifact": {"artifactId": "a", "parts": [{"text": str(number)}]},
                    "append": number > 0,
                }
            }


@pytest.fixture
async def pair(ends):
    world = ends()
    site, transport = await world.join(SITE, prepare=lambda delivery: delivery.on_plain(agent))
    cloud, _ = await world.join(CLOUD)
    cloud.site_transport = transport
    return cloud, site


async def all_of(cloud, message, method="SendStreamingMessage"):
    params = message if method in {"GetTask", "CancelTask"} else {"message": message}
    return [one async for one in cloud.ask_plain(SITE, method, params)]


def states(results):
    return [one["statusUpdate"]["status"]["state"][11:] for one in results if "statusUpdate" in one]


async def test_a_stream_comes_in_order_and_ends_and_its_outcome_is_told_again(pair):
    cloud, _ = pair
    results = await all_of(cloud, says("3"))
    assert states(results) == ["WORKING", "COMPLETED"]
    parts = [one["artifactUpdate"]["artifact"]["parts"][0]["text"] for one in results if "artifactUpdate" in one]
    assert parts == ["0", "1", "2"]
    (again,) = await all_of(cloud, says("3"))
    assert [part["text"] for part in again["task"]["artifacts"][0]["parts"]] == parts
    assert await all_of(cloud, {"id": "t-1"}, "GetTask") == [again]


async def test_without_a_stream_there_is_one_answer(pair):
    cloud, _ = pair
    (task,) = await all_of(cloud, says("2"), "SendMessage")
    assert task["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
    assert len(task["task"]["artifacts"][0]["parts"]) == 2
    (message,) = await all_of(cloud, says("who?") | {"taskId": "t-2"}, "SendMessage")
    assert message["message"]["parts"] == [{"text": "me"}]


async def test_input_is_asked_for_and_given(pair):
    cloud, _ = pair
    results = await all_of(cloud, says("ask back"))
    assert states(results) == ["INPUT_REQUIRED"]
    (task,) = await all_of(cloud, {"id": "t-1"}, "GetTask")
    assert task["task"]["status"]["state"] == INPUT_REQUIRED
    assert await all_of(cloud, says("ask back")) == [task]  # a repetition of the message is no answer to the question
    results = await all_of(cloud, says("1", id="m-2"))
    assert states(results) == ["WORKING", "COMPLETED"]


async def test_cancelling_ends_a_task_once(pair):
    cloud, site = pair
    stream = cloud.ask_plain(SITE, "SendStreamingMessage", {"message": says("wait")})
    assert states([await anext(stream)]) == ["WORKING"]
    (task,) = await all_of(cloud, {"id": "t-1"}, "CancelTask")
    assert task["task"]["status"]["state"] == "TASK_STATE_CANCELED"
    assert states([one async for one in stream]) == ["CANCELED"]
    assert not site._desk._running
    with pytest.raises(PlainError) as refused:
        await all_of(cloud, {"id": "t-1"}, "CancelTask")
    assert refused.value.code == -32002
    with pytest.raises(PlainError) as refused:
        await all_of(cloud, {"id": "never"}, "CancelTask")
    assert refused.value.code == -32001


async def test_a_handler_that_fails_is_a_failed_task_and_no_more(pair, caplog):
    cloud, _ = pair
    results = await all_of(cloud, says("fail"))
    assert states(results) == ["FAILED"]
    assert "of the handler" not in str(results)
    assert "of the handler" in caplog.text


async def test_a_repetition_hears_the_rest_of_the_stream(pair):
    cloud, _ = pair
    first = cloud.ask_plain(SITE, "SendStreamingMessage", {"message": says("wait")})
    await anext(first)
    second = cloud.ask_plain(SITE, "SendStreamingMessage", {"message": says("wait")})
    assert (await anext(second))["task"]["status"]["state"] == "TASK_STATE_WORKING"
    await all_of(cloud, {"id": "t-1"}, "CancelTask")
    assert states([one async for one in first]) == states([one async for one in second]) == ["CANCELED"]


async def test_what_is_in_our_vocabulary_goes_its_usual_way(ends):
    world = ends()

    async def handle(envelope):
        return Acknowledged(detail=str(envelope.data.from_ns))

    def prepare(delivery):
        delivery.on_plain(agent)
        delivery.on_request(CommitmentQuery, handle)

    await world.join(SITE, prepare=prepare)
    cloud, _ = await world.join(CLOUD)
    query = {"type": "wattmesh.market.commitment.query.v1", "data": {"participant_id": "p", "from_ns": 7}}
    (answer,) = await all_of(cloud, says("") | {"parts": [{"data": query}]})
    assert answer["task"]["artifacts"][0]["parts"][0]["data"]["data"] == {"detail": "7"}


async def test_silence_is_told_and_requests_are_repeated_with_new_correlations():
    sent = []

    async def send(to, payload, correlation):
        sent.append((json.loads(payload), correlation))

    client = PlainClient(send, first_s=0.01, idle_s=0.01)
    with pytest.raises(UnavailableError, match="does not answer"):
        await all_of_client(client)
    assert len(sent) == 3
    assert len({correlation for _, correlation in sent}) == 3
    assert len({one["params"]["message"]["taskId"] for one, _ in sent}) == 1
    assert not client._asked
    assert not client.take(sent[0][1], b"{}")  # nobody waits for it any more


async def all_of_client(client):
    return [one async for one in client.ask(SITE, "SendMessage", {"message": says("x")})]


@pytest.mark.parametrize(
    "reply", [b"no json", b"[]", b'{"result": 5}', b"{}"], ids=["text", "list", "number", "nothing"]
)
async def test_a_strange_answer_is_a_typed_error(reply):
    async def send(to, payload, correlation):
        client.take(correlation, reply)

    client = PlainClient(send)
    with pytest.raises(PlainError):
        await all_of_client(client)


async def test_an_answer_without_end_is_cut_off_with_a_typed_error():
    async def send(to, payload, correlation):
        part = {"artifactUpdate": {"artifact": {"artifactId": "a", "parts": [{"text": "x" * 900_000}]}}}
        for _ in range(30):
            client.take(correlation, json.dumps({"jsonrpc": "2.0", "id": 1, "result": part}).encode())

    client = PlainClient(send)
    with pytest.raises(PlainError, match="more than"):
        async for _ in client.ask(SITE, "SendStreamingMessage", {"message": says("x")}):
            pass
    assert not client._asked
