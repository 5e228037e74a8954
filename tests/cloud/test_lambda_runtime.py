"""Handlers under AWS's own runtime client, against a small Runtime API of ours; DynamoDB is moto's server on loopback."""

import base64
import json
import os
import queue
import subprocess
import sys
import threading
import urllib.request
from array import array
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from wattmesh_a2a.signing import generate_key
from wattmesh_a2a.telemetry import ColumnBatch, encode_columns
from wattmesh_cloud.store.base import Item, Table

pytest.importorskip("awslambdaric")
moto_server = pytest.importorskip("moto.server")

NEXT = "/2018-06-01/runtime/invocation/next"
T = 1_700_000_000_000_000_000


class RuntimeApi:
    """Gives events to the runtime client and takes its answers."""

    def __init__(self):
        self.events: queue.Queue = queue.Queue()
        self.answers: queue.Queue = queue.Queue()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                event, context = api.events.get()
                if event is None:
                    self.close_connection = True
                    return
                body = json.dumps(event).encode()
                self.send_response(200)
                for name, value in {
                    "Lambda-Runtime-Aws-Request-Id": "request-1",
                    "Lambda-Runtime-Deadline-Ms": "99999999999999",
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:111122223333:function:x",
                    "Lambda-Runtime-Client-Context": json.dumps(context),
                    "Content-Type": "application/json",
                    "Content-Length": str(len(body)),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                api.answers.put((self.path.rsplit("/", 1)[1], json.loads(body or b"null")))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def invoke(self, event, tool=None):
        self.events.put((event, {"custom": {"bedrockAgentCoreToolName": tool}} if tool else {}))
        return self.answers.get(timeout=60)

    def close(self):
        self.events.put((None, None))
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """moto's server with the seven tables and an hour of metered energy."""
    import boto3
    from wattmesh_cloud.store.dynamodb import DynamoStore, table_definition

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_REGION": "eu-central-1", "WATTMESH_TABLE_PREFIX": "run-",
        "WATTMESH_AREA": "area-1", "WATTMESH_AUDIT": str(tmp_path / "audit.log"), "WATTMESH_ORG": "demo",
        "AWS_LAMBDA_FUNCTION_NAME": "x", "AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_LOG_GROUP_NAME": "x", "AWS_LAMBDA_LOG_STREAM_NAME": "x",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # moto's state outlives its server
    client = boto3.client("dynamodb", endpoint_url=settings["AWS_ENDPOINT_URL"])
    for table in Table:
        client.create_table(**table_definition("run-", table))
    store = DynamoStore("run-", client=client, writers=1)
    store.put(
        Table.CONSUMER_METRICS,
        [Item(partition="ann", time_ns=T + n * 900 * 10**9, id="interval", data={"import_wh": n}) for n in range(4)],
    )
    store.close()
    yield settings
    server.stop()


def started(api, handler, **settings):
    """A process of AWS's runtime client with one of our handlers."""
    return subprocess.Popen(
        [sys.executable, "-m", "awslambdaric", f"wattmesh_cloud.tools.lambdas.{handler}"],
        env={
            **os.environ, "AWS_LAMBDA_RUNTIME_API": api.address, "PYTHONPATH": os.pathsep.join(sys.path), **settings,
        },
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def sqs_event(*bodies):
    """As Lambda's poller hands messages of a queue over (Lambda developer guide, "Using Lambda with Amazon SQS")."""
    return {
        "Records": [
            {
                "messageId": f"message-{number}", "receiptHandle": "AQEB", "body": body,
                "attributes": {
                    "ApproximateReceiveCount": "1", "SentTimestamp": "1700000000000", "SenderId": "AROA:IoT",
                    "ApproximateFirstReceiveTimestamp": "1700000000001",
                },
                "messageAttributes": {}, "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3", "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-central-1:111122223333:wattmesh-test-telemetry",
                "awsRegion": "eu-central-1",
            }
            for number, body in enumerate(bodies)
        ]
    }  # fmt: skip


def telemetry_body(sequence, site="ann", topic_site="ann", time_ns=T):
    """What the IoT rule puts into the queue."""
    batch = ColumnBatch(
        site_id=site, session="s", stream="points", sequence=sequence, columns=("meter.active_power_w",),
        times_ns=array("q", [time_ns]), values=(array("d", [1.5]),), qualities=(b"\0",),
    )  # fmt: skip
    frame = base64.b64encode(encode_columns(batch)).decode()
    return json.dumps({"topic": f"$aws/rules/r/wattmesh/v1/telemetry/demo/{topic_site}/points", "frame": frame})


@pytest.mark.timeout(120)
def test_telemetry_of_a_queue_under_the_runtime_client(environment, tmp_path):
    """Good and bad messages of one event: each bad one fails alone, each good one is stored once, however often it comes."""
    from wattmesh_cloud.store.dynamodb import DynamoStore

    (tmp_path / "keys").mkdir()
    generate_key(tmp_path / "keys" / "ann.key")
    api = RuntimeApi()
    process = started(api, "telemetry", WATTMESH_KEYS=str(tmp_path / "keys"))
    ahead = telemetry_body(9, time_ns=4_000_000_000_000_000_000)
    try:
        event = sqs_event(
            telemetry_body(0),
            "no json",
            telemetry_body(1),
            telemetry_body(2, topic_site="bob"),
            ahead,
            '{"topic": "x"}',
        )
        for _ in range(2):
            kind, answer = api.invoke(event)
            assert kind == "response"
            failed = [one["itemIdentifier"] for one in answer["batchItemFailures"]]
            assert failed == ["message-1", "message-3", "message-4", "message-5"]
        # What is no event of a queue is the caller's mistake: the runtime reports it, and goes on.
        kind, answer = api.invoke({"Records": [{"body": "x"}]})
        assert kind == "error"
        assert api.invoke(sqs_event(telemetry_body(2)))[1] == {"batchItemFailures": []}
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        api.close()
    store = DynamoStore("run-", writers=1)
    assert store.sequences("ann", "points") == (3, 3)
    assert store.held("ann", "points", 0, 10) == [0, 1, 2]
    assert store.sequences("bob", "points") == (0, 0)
    store.close()


@pytest.mark.timeout(120)
def test_the_lake_under_the_runtime_client(environment, tmp_path):
    """The schedule's event: days that are over are in the bucket afterwards, once."""
    import boto3
    from wattmesh_cloud.lake import Lake
    from wattmesh_cloud.lake.s3 import S3Storage
    from wattmesh_cloud.store.dynamodb import DynamoStore

    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="the-lake", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    store = DynamoStore("run-", writers=1)
    times = array("q", [T + second * 10**9 for second in range(50)])
    values = array("d", map(float, range(50)))
    store.append(
        [
            ColumnBatch(
                site_id="ann", session="s", stream="points", sequence=0, columns=("meter.active_power_w",),
                times_ns=times, values=(values,), qualities=(bytes(50),),
            )
        ],
        {},
    )  # fmt: skip
    store.close()
    api = RuntimeApi()
    process = started(api, "lake", WATTMESH_LAKE="the-lake")
    try:
        event = {"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
        assert api.invoke(event) == ("response", {"days": 1})
        assert api.invoke(event) == ("response", {"days": 0})
    finally:
        process.kill()
        process.wait()
        api.close()
    (rows,) = Lake(S3Storage("the-lake")).files().values()
    assert rows == 50


@pytest.mark.timeout(120)
def test_a_tool_runs_under_the_runtime_client(environment, tmp_path):
    api = RuntimeApi()
    process = started(api, "historical_data")
    try:
        event = {"site_id": "ann", "start_ns": T, "end_ns": T + 86_400 * 10**9, "limit": 2}
        kind, answer = api.invoke(event, "historical-data___metered-energy")
        assert kind == "response"
        assert [row["import_wh"] for row in answer["result"]] == [3, 2]
        for bad, tool in (
            ({**event, "limit": -1}, "historical-data___metered-energy"),
            ({**event, "site_id": "ann' OR 1=1"}, "historical-data___metered-energy"),
            (event, "historical-data___halt-market"),
            ([1, 2], "historical-data___metered-energy"),
            (event, None),
        ):
            kind, answer = api.invoke(bad, tool)
            assert (kind, answer["error"]["code"]) == ("response", "invalid")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        api.close()
    lines = (tmp_path / "audit.log").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["done", "refused", "refused"]
