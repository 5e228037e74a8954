"""A2A over HTTP in front of agents on MQTT alone: who may do what, tasks, cards, pushes; the official client on one side."""

import asyncio
import hashlib
import json
import socket
import ssl
import types

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wattmesh_a2a.cards import AgentRegistry
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.messages import Strategy
from wattmesh_a2a.pki import Authority
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_cloud.access.model import Role as ApiRole
from wattmesh_cloud.access.model import Tenants
from wattmesh_cloud.access.store import AccessStore
from wattmesh_cloud.config import A2aModel
from wattmesh_cloud.tools.base import Caller

pytest.importorskip("a2a", reason="the extra a2a is not installed")

from a2a.auth.user import User
from a2a.client import ClientConfig, ClientFactory
from a2a.server.context import ServerCallContext
from a2a.types import ListTasksRequest, Message, Part, Role, SendMessageRequest, Task, TaskState
from a2a.utils.errors import A2AError
from a2a.utils.signing import create_signature_verifier
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from wattmesh_a2a.certificates import CertificateKeys
from wattmesh_cloud.a2a_http.access import ApiTokens, FirstOf, MachineTokens
from wattmesh_cloud.a2a_http.cards import http_card
from wattmesh_cloud.a2a_http.push import PinnedTransport, PushGuard, push_client
from wattmesh_cloud.a2a_http.serve import a2a_server, identity_in
from wattmesh_cloud.a2a_http.server import A2aHttp, Wiring
from wattmesh_cloud.a2a_http.tasks import AgentPushes, AgentTasks, Tasks

SITE, OTHER, CLOUD = (
    Address("o", "home-1", "gateway"),
    Address("o", "home-2", "gateway"),
    Address("o", "cloud", "ingest"),
)
RING = KeyRing({"home-1": b"k" * 32, "home-2": b"j" * 32})
URL = "http://bridge"
CALLERS = {
    "reader": ["reader"],
    "operator": ["operator"],
    "narrow": ["operator"],
    "nobody": ["visitor"],
}
STRATEGY = {
    "site_id": "home-1", "expires_ns": 9 * 10**18, "reserve_soc_percent": 5, "peak_limit_w": None, "trade": True, "rationale": "r",
}  # fmt: skip


def tokens_file(folder):
    entries = [
        {"id": name, "sha256": hashlib.sha256(f"token-{name}".encode()).hexdigest(), "roles": roles}
        for name, roles in CALLERS.items()
    ]
    entries[2]["sites"] = ["home-2"]
    entries.append({"id": "machine", "certificate": "urn:wattmesh:o:partner", "roles": ["reader"]})
    path = folder / "tokens.json"
    path.write_text(json.dumps(entries))
    return path


async def talk(task):
    """The site's own handler."""
    if task.text == "wait":
        yield {"statusUpdate": {"status": {"state": "TASK_STATE_WORKING"}}}
        await asyncio.Event().wait()
    yield {"artifactUpdate": {"artifact": {"parts": [{"text": f"heard {task.text}"}]}}}


class House:
    """A broker in memory, two sites, and the bridge in the cloud."""

    def __init__(self, folder):
        self.folder, self.effects, self.audited, self.ends = folder, [], [], []
        self.broker, self.clock = MemoryBroker(), SystemClock()

    async def join(self, address, prepare=lambda delivery: None, serve=()):
        transport = MemoryTransport(self.broker)
        delivery = Delivery(transport, address, self.clock, keys=RING, serve=serve)
        prepare(delivery)
        await delivery.announce({})
        await delivery.start()
        self.ends.append(delivery)
        return delivery, transport

    async def open(self):
        async def handle(envelope):
            self.effects.append(envelope)
            return ACKNOWLEDGED

        def as_site(delivery):
            delivery.on_request(Strategy, handle)
            delivery.on_plain(talk)

        registries = []
        market = Address("o", "cloud", "market-supervisor")
        self.cloud, _ = await self.join(
            CLOUD, lambda delivery: registries.append(AgentRegistry(delivery, self.clock)), [market]
        )
        _, self.site_transport = await self.join(SITE, as_site)
        await self.join(OTHER, as_site)
        for _ in range(20):
            await asyncio.sleep(0)
        self.registry = registries[0]
        self.bridge = A2aHttp(
            Wiring(
                messenger=self.cloud, agents=self.registry.agents, agent=self.registry.get, clock=self.clock,
                authenticator=MachineTokens(tokens_file(self.folder)), audit=self.audit, org="o", url=URL,
                state=self.folder,
            )
        )  # fmt: skip
        return self

    def audit(self, actor, action, outcome, detail):
        if actor == "a2a:nowhere":
            raise UnavailableError("the disk is full")
        self.audited.append((actor, action, outcome))

    async def close(self):
        await self.bridge.aclose()
        for one in self.ends:
            await one.stop()

    def http(self, who="reader"):
        headers = {"A2A-Version": "1.0"} | ({"Authorization": f"Bearer token-{who}"} if who else {})
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.bridge), base_url=URL, headers=headers)

    async def client(self, who="reader", agent=SITE, **config):
        http = self.http(who)
        return await ClientFactory(ClientConfig(httpx_client=http, **config)).create_from_url(
            f"{URL}/a2a/{agent.unit}/{agent.agent}"
        )


@pytest.fixture
async def house(tmp_path):
    found = await House(tmp_path).open()
    yield found
    await found.close()


def text(said, task=""):
    return SendMessageRequest(
        message=Message(message_id="m", role=Role.ROLE_USER, task_id=task, parts=[Part(text=said)])
    )


def typed(name, data):
    value = ParseDict({"type": name, "data": data}, Value())
    return SendMessageRequest(message=Message(message_id="m", role=Role.ROLE_USER, parts=[Part(data=value)]))


async def all_of(client, request):
    return [one async for one in client.send_message(request)]


def final(results):
    """The state at the end, and the text that goes with it."""
    states = [one.status_update.status for one in results if one.HasField("status_update")]
    states += [one.task.status for one in results if one.HasField("task")][len(states) :]
    status = states[-1]
    return TaskState.Name(status.state)[11:], " ".join(part.text for part in status.message.parts)


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "one answer"])
async def test_the_official_client_talks_to_a_site(house, binding, streaming):
    client = await house.client(streaming=streaming, supported_protocol_bindings=[binding])
    results = await all_of(client, text("hello"))
    assert final(results)[0] == "COMPLETED"
    assert "heard hello" in str(results)


async def test_a_typed_question_is_answered_with_data(house):
    results = await all_of(await house.client(), typed("wattmesh.stats.query.v1", {}))
    assert final(results)[0] == "COMPLETED"
    assert "wattmesh.stats.report.v1" in str(results)
    assert house.audited == []


async def test_an_operator_moves_a_site_by_a_signed_request_and_a_reader_does_not(house):
    results = await all_of(await house.client("reader"), typed("wattmesh.strategy.v1", STRATEGY))
    assert final(results) == ("REJECTED", "your role may not ask for wattmesh.strategy.v1")
    assert house.effects == []
    results = await all_of(await house.client("operator"), typed("wattmesh.strategy.v1", STRATEGY))
    assert final(results)[0] == "COMPLETED"
    (envelope,) = house.effects
    assert envelope.signed
    assert str(envelope.source) == "o/cloud/a2a-http"
    assert envelope.data.expires_ns == STRATEGY["expires_ns"]
    assert house.audited == [
        ("a2a:reader", "a2a.wattmesh.strategy.v1", "refused"),
        ("a2a:operator", "a2a.wattmesh.strategy.v1", "asked"),
    ]


@pytest.mark.parametrize(
    "name",
    ["wattmesh.market.commitment.v1", "wattmesh.dr.dispatch.v1", "wattmesh.configuration.change.v1", "x.y", "z" * 500],
)
async def test_what_has_ways_of_its_own_has_none_through_here(house, name):
    results = await all_of(await house.client("operator"), typed(name, {}))
    assert final(results)[0] == "REJECTED"
    assert house.effects == []


async def test_data_that_breaks_its_schema_is_refused_with_what_is_wrong(house):
    results = await all_of(await house.client("operator"), typed("wattmesh.strategy.v1", {"site_id": 5}))
    state, why = final(results)
    assert state == "REJECTED"
    assert "site_id" in why


async def test_an_action_that_cannot_be_written_down_is_not_done(house):
    class Nowhere:
        def caller(self, authorization, certificate):
            return Caller(id="nowhere", roles=frozenset({"operator"}))

    object.__setattr__(house.bridge._wiring, "authenticator", Nowhere())
    results = await all_of(await house.client("operator"), typed("wattmesh.strategy.v1", STRATEGY))
    assert final(results) == ("FAILED", "the disk is full")
    assert house.effects == []


async def test_nobody_gets_anything_without_saying_who_they_are(house):
    for who in (None, "wrong"):
        async with house.http(who) as http:
            for path in ("agents", "home-1/gateway/.well-known/agent-card.json", "home-1/gateway/tasks"):
                answer = await http.get(f"/a2a/{path}")
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert (await http.post("/a2a/home-1/gateway/", json={})).status_code == 401
    async with house.http(None) as http:
        answer = await http.get("/a2a/agents", headers={"Authorization": "Basic dG9rZW4tcmVhZGVyOg=="})
        assert answer.status_code == 401


async def test_a_caller_sees_its_sites_alone_and_another_role_may_only_talk(house):
    async with house.http("narrow") as http:
        listed = {one["agent"] for one in (await http.get("/a2a/agents")).json()}
        assert listed == {"o/home-2/gateway", "o/cloud/ingest", "o/cloud/market-supervisor"}
        for path in ("home-1/gateway", "home-9/gateway", "home-1/%2e%2e", "a b/gateway"):
            assert (await http.get(f"/a2a/{path}/.well-known/agent-card.json")).status_code == 404
    assert final(await all_of(await house.client("nobody"), text("hello")))[0] == "COMPLETED"
    results = await all_of(await house.client("nobody"), typed("wattmesh.stats.query.v1", {}))
    assert final(results)[0] == "REJECTED"


async def test_the_clouds_figures_are_for_who_sees_all_sites(house):
    question, ingest = typed("wattmesh.stats.query.v1", {}), CLOUD
    assert final(await all_of(await house.client("narrow", ingest), question))[0] == "REJECTED"
    assert final(await all_of(await house.client("reader", ingest), question))[0] == "COMPLETED"


def test_tokens_of_the_api_are_taken_with_their_role_and_sites(tmp_path):
    tenants = Tenants(sites={"village": frozenset({"home-1"})})
    store = AccessStore(tmp_path / "access.sqlite", SystemClock(), tenants, idle_s=60, longest_s=60)
    made = {
        role: store.add_token(str(role), tenant="village", role=role, valid_s=60)
        for role in (ApiRole.VIEWER, ApiRole.OPERATOR)
    }
    both = FirstOf(MachineTokens(tokens_file(tmp_path)), ApiTokens(store.of_token))
    found = both.caller(f"Bearer {made[ApiRole.OPERATOR]}", None)
    assert (found.id, found.roles, found.sites) == ("token:operator", {"operator"}, {"home-1"})
    assert both.caller(f"Bearer {made[ApiRole.VIEWER]}", None).roles == {"reader"}
    assert both.caller("Bearer token-reader", None).id == "reader"
    assert both.caller("Bearer other", "urn:wattmesh:o:partner") is None
    assert both.caller(None, "urn:wattmesh:o:partner").id == "machine"
    assert both.caller(None, None) is None
    store.revoke_token("operator")
    assert both.caller(f"Bearer {made[ApiRole.OPERATOR]}", None) is None
    store.close()


async def test_the_clouds_own_agents_have_cards_and_answer(house):
    client = await house.client(agent=Address("o", "cloud", "market-supervisor"))
    results = await all_of(client, text("who are you?"))
    assert "I am o/cloud/market-supervisor" in str(results)


async def test_tasks_are_their_owners(house):
    first = await all_of(await house.client("reader", streaming=False), text("hello"))
    name = first[-1].task.id
    async with house.http("operator") as http:
        answer = await http.get(f"/a2a/home-1/gateway/tasks/{name}")
        assert answer.status_code == 404
        assert (await http.get("/a2a/home-1/gateway/tasks")).json()["totalSize"] == 0
    async with house.http("reader") as http:
        assert (await http.get(f"/a2a/home-1/gateway/tasks/{name}")).json()["id"] == name
        assert (await http.get(f"/a2a/home-2/gateway/tasks/{name}")).status_code == 404  # another agent's
        listed = (await http.get("/a2a/home-1/gateway/tasks")).json()
        assert [one["id"] for one in listed["tasks"]] == [name]


async def test_cancelling_reaches_the_site(house):
    said = {
        "message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "wait"}]},
        "configuration": {"returnImmediately": True},
    }
    async with house.http("reader") as http:
        name = (await http.post("/a2a/home-1/gateway/message:send", json=said)).json()["task"]["id"]
        while not house.ends[1]._desk._running:
            await asyncio.sleep(0)
        answer = await http.post(f"/a2a/home-1/gateway/tasks/{name}:cancel", json={})
        assert answer.json()["status"]["state"] == "TASK_STATE_CANCELED"
        again = await http.post(f"/a2a/home-1/gateway/tasks/{name}:cancel", json={})
        assert again.status_code == 400
    for _ in range(20):
        await asyncio.sleep(0)
    assert not house.ends[1]._desk._running


async def test_a_site_that_is_away_is_a_failed_task_at_once(house):
    house.site_transport.crash()
    for _ in range(10):
        await asyncio.sleep(0)
    results = await all_of(await house.client(), text("hello"))
    assert final(results) == ("FAILED", "o/home-1/gateway is not connected; try again later")


async def test_bounds_of_bodies_and_rates(house):
    async with house.http("reader") as http:
        big = await http.post(
            "/a2a/home-1/gateway/message:send", content=b"x" * 1_000_001, headers={"content-type": "application/json"}
        )
        assert big.status_code == 413
        found = {(await http.get("/a2a/agents")).status_code for _ in range(250)}
        assert found == {200, 429}
    async with house.http("operator") as http:
        assert (await http.get("/a2a/agents")).status_code == 200


async def test_media_types_and_versions(house):
    async with house.http("reader") as http:
        said = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "hello"}]}}
        path = "/a2a/home-1/gateway/message:send"
        assert (await http.post(path, json=said)).headers["content-type"] == "application/json"
        newer = await http.post(path, json=said, headers={"Accept": "application/a2a+json"})
        assert newer.headers["content-type"] == "application/a2a+json"
        assert (await http.post(path, content=b"x", headers={"content-type": "text/plain"})).status_code == 415
        rpc = await http.post("/a2a/home-1/gateway/", content=b"x", headers={"content-type": "text/plain"})
        assert rpc.json()["error"]["code"] == -32005
        other = await http.post(path, json=said, headers={"A2A-Version": "99.0"})
        assert other.status_code == 400
        said["message"]["parts"] = [{"raw": "AAAA", "mediaType": "image/png"}]
        assert (await http.post(path, json=said)).json()["error"]["details"][0][
            "reason"
        ] == "CONTENT_TYPE_NOT_SUPPORTED"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["jsonrpc", "id", "method", "params", "message", "parts", "data", "taskId", "role"])
                | st.text(max_size=8),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
    path=st.sampled_from(["", "message:send", "message:stream", "tasks/x:cancel", "tasks/x/pushNotificationConfigs"]),
)
async def test_no_body_is_an_error_of_ours(house, body, path):
    house.bridge._buckets.clear()
    async with house.http("reader") as http:
        answer = await http.post(
            f"/a2a/home-1/gateway/{path}", content=body, headers={"content-type": "application/json"}
        )
    assert answer.status_code < 500
    assert house.effects == []


# -- cards


async def test_a_card_is_signed_with_the_clouds_key_and_the_official_verifier_takes_it(house, tmp_path):
    authority = Authority.create(tmp_path / "ca", "o")
    authority.issue("cloud")
    folder = authority.folder / "cloud"
    keys = CertificateKeys(folder / "certificate.pem", folder / "key.pem", authority.folder / "ca.pem")
    card = http_card(house.registry.get(SITE), f"{URL}/a2a/home-1/gateway/", signer=keys)
    public = x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    verify = create_signature_verifier(lambda kid, jku: pem, ["ES256"])
    verify(card)
    card.skills[0].name = "another"
    with pytest.raises(Exception, match="signature"):
        verify(card)
    protected = card.signatures[0].protected
    assert not keys.verify(CLOUD, SITE, b"x", f"{protected}..{card.signatures[0].signature}")  # no message's signature


async def test_every_agent_of_a_process_that_is_lost_is_away(house):
    house.ends[0]._transport.crash()
    for _ in range(10):
        await asyncio.sleep(0)
    registry = AgentRegistry(types.SimpleNamespace(on_presence=lambda handler: None), house.clock)
    for name in ("ingest", "market-supervisor"):
        registry._heard(Address("o", "cloud", name), {"session": "s"})
    registry._heard(SITE, {"session": "t"})
    registry._heard(CLOUD, None)
    assert [one.address for one in registry.agents(online=True)] == [SITE]


# -- pushes


def guard(*origins, **names):
    async def resolve(host, port):
        return names.get(host.replace(".", "_"), [])

    return PushGuard(origins, resolve)


PUBLIC = {"good_example": ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"]}


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://good.example/hook", True),
        ("http://good.example/hook", False),
        ("https://good.example:8443/hook?x=1", True),
        ("https://user:secret@good.example/", False),
        ("ftp://good.example/", False),
        ("https://unknown.example/", False),
        ("https://inside.example/", False),
        ("https://mixed.example/", False),
        ("https://metadata.example/", False),
        ("https://mapped.example/", False),
        ("https://sixtofour.example/", False),
        ("https://good.example:99999/", False),
        ("https://good.example/\nHost: other", False),
        ("https:///hook", False),
        ("", False),
        ("https://good.example/" + "x" * 2000, False),
        ("http://receiver.lan:8000/hook", True),
        ("http://receiver.lan:8001/hook", False),
        ("http://any.lan:1234/", True),
    ],
    ids=range(19),
)
async def test_pushes_go_where_they_may_and_nowhere_else(url, allowed):
    names = {
        **PUBLIC,
        "inside_example": ["10.0.0.7"],
        "mixed_example": ["93.184.216.34", "127.0.0.1"],
        "metadata_example": ["169.254.169.254"],
        "mapped_example": ["::ffff:127.0.0.1"],
        "sixtofour_example": ["2002:7f00:1::"],
        "receiver_lan": ["10.0.0.7"],
        "any_lan": ["10.0.0.8"],
    }
    assert await guard("http://receiver.lan:8000", "http://any.lan:*", **names).allows(url) is allowed


async def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to():
    seen = []

    async def inner(request):
        seen.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        return httpx.Response(302, headers={"Location": "http://127.0.0.1/"})

    client = push_client(guard(**PUBLIC))
    client._transport = PinnedTransport(guard(**PUBLIC), httpx.MockTransport(inner))
    answer = await client.post("https://good.example/hook", json={})
    assert answer.status_code == 302  # not followed
    assert seen == [("93.184.216.34", "good.example", "good.example")]
    client._transport = PinnedTransport(guard(good_example=["127.0.0.1"]), httpx.MockTransport(inner))
    with pytest.raises(httpx.ConnectError):
        await client.post("https://good.example/hook", json={})
    assert len(seen) == 1
    await client.aclose()


async def test_a_push_that_is_not_allowed_is_refused_when_it_is_registered(house):
    said = {
        "message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "hello"}]},
        "configuration": {"taskPushNotificationConfig": {"url": "http://127.0.0.1:9/"}},
    }
    async with house.http("reader") as http:
        answer = await http.post("/a2a/home-1/gateway/message:send", json=said)
    assert answer.status_code == 400
    assert "push notification URL" in answer.text


# -- tasks


class Owner(User):
    def __init__(self, name):
        self.name = name

    @property
    def is_authenticated(self):
        return True

    @property
    def user_name(self):
        return self.name


def context_of(name):
    return ServerCallContext(user=Owner(name))


def task_of(number, context="c", state=TaskState.TASK_STATE_COMPLETED):
    task = Task(id=f"t-{number:05}", context_id=context)
    task.status.state = state
    task.status.timestamp.FromNanoseconds(number * 10**9)
    return task


async def test_tasks_outlive_the_process_and_come_in_pages(tmp_path):
    tasks = Tasks(tmp_path / "tasks.sqlite")
    store, ann = AgentTasks(tasks, "o/home-1/gateway"), context_of("ann")
    for number in range(25):
        await store.save(task_of(number, "odd" if number % 2 else "even"), ann)
    tasks.close()
    tasks = Tasks(tmp_path / "tasks.sqlite")
    store = AgentTasks(tasks, "o/home-1/gateway")
    assert (tmp_path / "tasks.sqlite").stat().st_mode & 0o077 == 0
    seen, token = [], ""
    while True:
        page = await store.list(ListTasksRequest(page_size=10, page_token=token, context_id="odd"), ann)
        assert page.total_size == 12
        seen += [one.id for one in page.tasks]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"t-{number:05}" for number in range(23, 0, -2)]
    assert await store.get("t-00003", context_of("bob")) is None
    for wrong in ("", "!!", "YWJj"):
        request = ListTasksRequest(page_token=wrong)
        if wrong:
            with pytest.raises(A2AError):
                await store.list(request, ann)
    await store.delete("t-00003", ann)
    assert await store.get("t-00003", ann) is None
    tasks.close()


async def test_tasks_are_bounded_and_their_pushes_go_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr("wattmesh_cloud.a2a_http.tasks._TASKS_AN_OWNER", 50)
    monkeypatch.setattr("wattmesh_cloud.a2a_http.tasks._TASKS", 120)
    now = [1000.0]
    tasks = Tasks(tmp_path / "tasks.sqlite", now=lambda: now[0])
    store, pushes = AgentTasks(tasks, "a"), AgentPushes(tasks, "a")
    for number in range(1000):
        now[0] += 1
        await store.save(task_of(number), context_of(f"owner-{number % 4}"))
        if number < 4:
            from a2a.types import TaskPushNotificationConfig

            config = TaskPushNotificationConfig(url="https://good.example/")
            await pushes.set_info(f"t-{number:05}", config, context_of(f"owner-{number}"))
    (count,) = tasks.db.execute("SELECT COUNT(*) FROM tasks").fetchone()
    assert count <= 120
    assert await pushes.get_info_for_dispatch("t-00001") == []
    now[0] += 8 * 86_400
    for _ in range(200):
        await store.save(task_of(5000), context_of("owner-0"))
    (count,) = tasks.db.execute("SELECT COUNT(*) FROM tasks").fetchone()
    assert count == 1
    tasks.close()


async def test_push_configurations_are_their_owners_and_few(tmp_path):
    from a2a.types import TaskPushNotificationConfig

    tasks = Tasks(tmp_path / "tasks.sqlite")
    pushes, ann, bob = AgentPushes(tasks, "a"), context_of("ann"), context_of("bob")
    for number in range(5):
        await pushes.set_info("t", TaskPushNotificationConfig(id=f"c-{number}", url="https://good.example/"), ann)
    with pytest.raises(A2AError, match="at most"):
        await pushes.set_info("t", TaskPushNotificationConfig(id="c-9", url="https://good.example/"), ann)
    assert await pushes.get_info("t", bob) == []
    await pushes.delete_info("t", bob, "c-1")
    assert len(await pushes.get_info("t", ann)) == 5
    await pushes.delete_info("t", ann, "c-1")
    assert [one.id for one in await pushes.get_info_for_dispatch("t")] == ["c-0", "c-2", "c-3", "c-4"]
    await pushes.delete_info("t", ann)
    assert await pushes.get_info("t", ann) == []
    tasks.close()


# -- on a socket


@pytest.mark.parametrize(
    "text", ["[]x", '[{"id": "a", "roles": ["reader"]}]', '[{"id": "a", "sha256": "x", "roles": ["reader"]}]', '[{"x": 1}]'],
    ids=["no json", "nothing to know it by", "no hash", "no id"],
)  # fmt: skip
def test_a_wrong_file_of_callers_is_one_clear_error(tmp_path, text):
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        MachineTokens(path)


async def test_client_certificates_say_who_calls_and_revoked_ones_do_not(house, tmp_path):
    authority = Authority.create(tmp_path / "ca", "o")
    for name in ("partner", "stranger", "revoked"):
        authority.issue(name)
    authority.issue("cloud", hosts=["127.0.0.1"])
    authority.revoke("revoked")
    ca, own = authority.folder / "ca.pem", authority.folder / "cloud"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    model = A2aModel(
        port=port,
        tokens=tmp_path / "tokens.json",
        certificate=own / "certificate.pem",
        key=own / "key.pem",
        client_ca=ca,
    )
    server = a2a_server(
        model, org="o", state=tmp_path / "s", messenger=house.cloud, registry=house.registry, clock=house.clock,
        audit=types.SimpleNamespace(write=lambda *_: None), keys=RING, crl=authority.folder / "crl.pem",
    )  # fmt: skip
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)

    async def ask(name=None, token=None):
        context = ssl.create_default_context(cafile=str(ca))
        if name:
            context.load_cert_chain(authority.folder / name / "certificate.pem", authority.folder / name / "key.pem")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(verify=context, headers=headers, trust_env=False) as http:
            return (await http.get(f"https://127.0.0.1:{port}/a2a/agents")).status_code

    try:
        assert await ask("partner") == 200
        assert await ask("stranger") == 401
        assert await ask() == 401
        assert await ask(token="token-reader") == 200
        assert await ask("partner", token="wrong") == 401
        with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
            await ask("revoked")
    finally:
        server.should_exit = True
        await serving


def test_no_certificate_has_no_identity():
    assert identity_in(None) is None
    assert identity_in({"subjectAltName": (("DNS", "x"),)}) is None
