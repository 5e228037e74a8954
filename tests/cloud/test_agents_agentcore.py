"""AgentCore: an entry point served as its runtime serves it, tools over the gateway, the cloud's way to it, and its memory."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import httpx
import pytest

boto3 = pytest.importorskip("boto3")
pytest.importorskip("strands", reason="the extra agentcore is not installed")
pytest.importorskip("bedrock_agentcore", reason="the extra agentcore is not installed")

from botocore.response import StreamingBody  # noqa: E402
from botocore.stub import ANY, Stubber  # noqa: E402
from converse_endpoint import ACCESS_KEY, SECRET_KEY, ConverseEndpoint, refused, results_of, text, tools  # noqa: E402
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError  # noqa: E402
from wattmesh_cloud.agents.agentcore import (  # noqa: E402
    AgentCoreMemory,
    AgentCoreReasoner,
    build_app,
    payload_of,
    task_of,
)
from wattmesh_cloud.agents.contract import Entry, ModelOutcome, Record, Task  # noqa: E402
from wattmesh_cloud.agents.database import Database  # noqa: E402
from wattmesh_cloud.agents.evaluation import load  # noqa: E402
from wattmesh_cloud.agents.memory import LocalMemory, Mirror  # noqa: E402
from wattmesh_cloud.agents.roster import ROSTER  # noqa: E402
from wattmesh_cloud.agents.situations import SiteSituation  # noqa: E402

RESERVE = {"kind": "set_reserve", "site_id": "ann", "reserve_soc_percent": 12.0, "rationale": "250 W is little"}
MEMORY = "wattmesh_staging-abcdefghij"


def task(**changes):
    situation = SiteSituation(site_id="ann", now_ns=10**18, import_limit_w=8000.0, net_wh=(250,) * 96)
    values = {"id": "d-1", "agent": ROSTER["producer"], "situation": situation, "proposed": ()}
    return Task(**{**values, "deadline_s": 5.0, "tokens": 5000, **changes})


@pytest.fixture
def gateway():
    """An AgentCore Gateway: MCP over HTTP, only for signed requests."""
    calls = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_): ...

        def do_POST(self):
            call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            signed = "bedrock-agentcore/aws4_request" in self.headers.get("Authorization", "")
            calls.append((call, signed))
            rows = [{"id": "interval", "time_ns": 5, "import_wh": 7}]
            result = {"content": [{"type": "text", "text": json.dumps(rows)}]}
            body = f"event: message\ndata: {json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': result})}\n\n".encode()
            self.send_response(200 if signed else 403)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/mcp", calls
    server.shutdown()
    server.server_close()


@pytest.fixture
def serve(gateway, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    endpoints = []

    def make(*steps, **changes):
        endpoint = ConverseEndpoint(*steps).__enter__()
        endpoints.append(endpoint)
        environment = {
            "WATTMESH_AGENT": "producer", "WATTMESH_GATEWAY_URL": gateway[0], "AWS_REGION": "eu-central-1",
            "WATTMESH_BEDROCK_URL": endpoint.url, "WATTMESH_MODEL": "eu.anthropic.claude-sonnet-4-6", **changes,
        }  # fmt: skip
        transport = httpx.ASGITransport(app=build_app(environment))
        return httpx.AsyncClient(transport=transport, base_url="http://runtime"), endpoint

    yield make
    for endpoint in endpoints:
        endpoint.__exit__()


async def test_a_runtime_is_healthy_and_proposes_with_tools_over_the_gateway(serve, gateway):
    window = {"site_id": "ann", "start_ns": 0, "end_ns": 10}
    client, endpoint = serve(
        tools(("metered-energy", window)), tools(("propose", {"proposal": RESERVE})), text("Done.")
    )
    async with client:
        assert (await client.get("/ping")).json()["status"] in ("Healthy", "HealthyBusy")
        answer = (await client.post("/invocations", json=payload_of(task()))).json()
    assert (answer["outcome"], answer["proposals"]) == ("refined", [RESERVE])
    assert answer["cited"] == ["metered-energy/5/interval"]
    ((call, signed),) = gateway[1]
    assert signed
    assert call["params"] == {"name": "historical-data___metered-energy", "arguments": window}
    assert endpoint.wrong == []
    assert "import_wh" in results_of(endpoint.requests[1])[0]["content"][0]["text"]


async def test_what_goes_wrong_in_a_runtime_is_an_outcome_too(serve):
    client, _ = serve(refused("ThrottlingException", "slow down", 429))
    async with client:
        assert (await client.post("/invocations", json=payload_of(task()))).json()["outcome"] == "throttled"
        for payload in (
            {},
            {"id": 1, "situation": {"site_id": 5}},
            {**payload_of(task()), "proposed": [{"kind": "x"}]},
        ):
            assert (await client.post("/invocations", json=payload)).json()["outcome"] == "malformed"


async def test_an_agent_that_is_asked_about_a_subject_answers_in_words(serve):
    client, endpoint = serve(text("Nothing strange."))
    asked = {
        "id": "d-1",
        "about": "ann",
        "now_ns": 10**18,
        "question": "What do you see?",
        "deadline_s": 5,
        "tokens": 500,
    }
    async with client:
        answer = (await client.post("/invocations", json=asked)).json()
    assert (answer["outcome"], answer["text"]) == ("agreed", "Nothing strange.")
    assert "propose" not in {one["toolSpec"]["name"] for one in endpoint.requests[0]["toolConfig"]["tools"]}


def test_an_entry_point_needs_its_agent():
    with pytest.raises(ConfigurationError, match="WATTMESH_AGENT"):
        build_app({"WATTMESH_AGENT": "oracle", "WATTMESH_GATEWAY_URL": "http://x"})


def test_every_case_comes_through_a_payload_unchanged():
    for case in load():
        one = task(agent=case.agent, situation=case.situation, proposed=tuple(case.agent.policy(case.situation)))
        back = task_of(case.agent.name, json.loads(json.dumps(payload_of(one))))
        assert (back.situation, back.proposed) == (one.situation, one.proposed), case.name
    with pytest.raises(InvalidMessageError):
        task_of("producer", [])


# -- the cloud's side


@pytest.fixture
def client():
    return boto3.client(
        "bedrock-agentcore", region_name="eu-central-1", aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY
    )


ARN = "arn:aws:bedrock-agentcore:eu-central-1:123456789012:runtime/wattmesh_staging_producer-abcdefghij"


async def answered(client, body, **expected):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Stubber(client) as stub:
        parameters = {
            "agentRuntimeArn": ARN, "qualifier": "prod", "runtimeSessionId": ANY, "contentType": "application/json",
            "accept": "application/json", "payload": ANY,
        }  # fmt: skip
        response = {"response": StreamingBody(BytesIO(raw), len(raw)), "contentType": "application/json"}
        stub.add_response("invoke_agent_runtime", response, parameters)
        return await AgentCoreReasoner({"producer": ARN}, None, 5.0, client).refine(task())


async def test_a_runtimes_proposals_are_proposals(client):
    given = await answered(client, {"outcome": "refined", "proposals": [RESERVE], "input_tokens": 5})
    assert (given.outcome, given.proposals, given.input_tokens) == (ModelOutcome.REFINED, (RESERVE,), 5)


@pytest.mark.parametrize("body", [b"<html>", [], {}, {"outcome": "fired"}, {"outcome": "refined", "proposals": 5}])
async def test_an_answer_that_is_none_is_malformed(client, body):
    assert (await answered(client, body)).outcome is ModelOutcome.MALFORMED


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("ThrottlingException", "throttled"),
        ("ResourceNotFoundException", "retired_model"),
        ("AccessDeniedException", "credentials"),
    ],
)
async def test_errors_of_the_service_have_names(client, code, outcome):
    with Stubber(client) as stub:
        stub.add_client_error("invoke_agent_runtime", code)
        assert (await AgentCoreReasoner({"producer": ARN}, None, 5.0, client).refine(task())).outcome == outcome


async def test_an_agent_without_a_runtime_is_absent(client):
    assert (await AgentCoreReasoner({}, None, 5.0, client).refine(task())).outcome is ModelOutcome.ABSENT


# -- memory


def record():
    entry = Entry(proposal=RESERVE, origin="policy", outcome="done")
    return Record(
        id="producer-1-0",
        time_ns=10**18,
        agent="producer",
        subject="home.1",
        session="s",
        situation={},
        entries=[entry],
    )


def test_decisions_and_outcomes_are_events_of_the_agent(client):
    with Stubber(client) as stub:
        common = {"memoryId": MEMORY, "actorId": "producer", "sessionId": "subject-home_1", "eventTimestamp": ANY}
        event = {
            "memoryId": MEMORY, "actorId": "producer", "sessionId": "s", "eventId": "0000001#a1b2c3d4", "payload": [],
            "eventTimestamp": 1.0,
        }  # fmt: skip
        for _ in range(2):
            stub.add_response("create_event", {"event": event}, {**common, "payload": ANY, "clientToken": ANY})
        memory = AgentCoreMemory(MEMORY, client)
        memory.remember(record())
        memory.outcome("producer-1-0", {"agent": "producer", "subject": "home.1", "time_ns": 10**18, "peak_w": 5})
        stub.assert_no_pending_responses()


def test_decisions_versions_and_outcomes_reach_the_service(client, tmp_path):
    """Through the local memory and its mirror to the calls that the service's model allows, with what they say."""
    sent = []
    client.meta.events.register(
        "provide-client-params.bedrock-agentcore.CreateEvent", lambda params, **_: sent.append(params)
    )
    event = {
        "memoryId": MEMORY, "actorId": "producer", "sessionId": "s", "eventId": "0000001#a1b2c3d4", "payload": [],
        "eventTimestamp": 1.0,
    }  # fmt: skip
    database = Database(tmp_path / "agents.sqlite")
    mirror = Mirror(AgentCoreMemory(MEMORY, client))
    memory = LocalMemory(database, mirror)
    with Stubber(client) as stub:
        for _ in range(2):
            stub.add_response("create_event", {"event": event})
        stub.add_client_error("create_event", "ThrottledException")
        for _ in range(2):
            stub.add_response("create_event", {"event": event})
        one = record()
        memory.remember(one)
        one.entries.append(Entry(proposal=RESERVE, origin="model", outcome="stopped", guard="rate"))
        one.revision = 1
        memory.remember(one)
        memory.outcome(one.id, {"peak_w": 5})
        mirror.flush()
        other = replace(
            record(), id="producer-1-1", entries=[Entry(proposal=RESERVE, origin="operator", outcome="done")]
        )
        memory.remember(other)
        mirror.flush()
        stub.assert_no_pending_responses()
    bodies = [json.loads(params["payload"][0]["blob"]) for params in sent]
    assert [body["what"] for body in bodies] == ["decision", "decision", "outcome", "outcome", "decision"]
    assert [len(body["record"]["entries"]) for body in bodies[:2]] == [1, 2]
    assert bodies[3] == bodies[2] == {"what": "outcome", "decision": "producer-1-0", "outcome": {"peak_w": 5}}
    assert bodies[4]["record"]["entries"][0]["origin"] == "operator"
    tokens = [params["clientToken"] for params in sent]
    assert tokens[2] == tokens[3], "the same again is the same event"
    assert len(set(tokens)) == 4
    mirror.close()
    database.close()


def test_what_is_recalled_has_what_came_of_it(client):
    refined = replace(record(), revision=1, tokens=9)
    bodies = [
        {"what": "decision", "record": refined.plain()},
        {"what": "decision", "record": record().plain()},
        {"what": "outcome", "decision": "producer-1-0", "outcome": {"peak_w": 5}},
    ]
    events = [
        {"memoryId": MEMORY, "actorId": "producer", "sessionId": "s", "eventId": "0000001#a1b2c3d4", "eventTimestamp": 1.0,
         "payload": [{"blob": json.dumps(body)}]}
        for body in bodies
    ]  # fmt: skip
    with Stubber(client) as stub:
        stub.add_response("list_events", {"events": events})
        (found,) = AgentCoreMemory(MEMORY, client).recall("home.1", agent="producer")
        assert (found["id"], found["outcome"]) == ("producer-1-0", {"peak_w": 5})
        assert found["tokens"] == 9, "the newest version, whatever order they come in"
        stub.add_client_error("list_events", "ServiceException")
        with pytest.raises(UnavailableError):
            AgentCoreMemory(MEMORY, client).recall("home.1", agent="producer")
