"""Shadow and jobs: what is asked for is believed for its signature alone, tried, and its end is told with a reason."""

import asyncio
import functools
import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest
import yaml
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.signing import KeyRing, generate_key
from wattmesh_a2a.transports.base import Inbound
from wattmesh_edge.changes import CONFIGURE, UPGRADE, Changes, signed_content
from wattmesh_edge.versions import Health, Trial, Versions

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"
THINGS = "$aws/things/home-1"
CLOUD, GATEWAY = Address("demo", "cloud", "configuration"), Address("demo", "home-1", "gateway")
WELL = Health(answering=frozenset({"meter"}), healthy=True, agent_failures=0)
ILL = Health(answering=frozenset(), healthy=False, agent_failures=0)


class Broker:
    """A transport whose other side is the test."""

    def __init__(self):
        self.sent, self.handlers, self.hello, self.there = [], {}, [], True

    async def subscribe(self, topic, handler, *, qos=1):
        self.handlers[topic] = handler

    async def publish(self, topic, payload, **_options):
        if not self.there:
            raise UnavailableError("not connected")
        self.sent.append((topic.removeprefix(THINGS + "/"), json.loads(payload)))

    def on_connected(self, callback):
        self.hello.append(callback)


class Bench:
    def __init__(self, folder, releases=None):
        self.folder, self.releases = folder, releases
        self.file = folder / "home-1.yaml"
        if not self.file.exists():
            self.file.write_text(EXAMPLE.read_text())
            generate_key(folder / "home-1.key")
        self.keys = KeyRing.of_site("home-1", folder / "home-1.key")
        self.start()

    def start(self):
        """The gateway, anew: as after a restart."""
        self.versions = Versions(self.file, self.folder / "config")
        self.site = self.versions.load()
        self.broker, self.jobs = Broker(), []
        self.changes = Changes(
            "home-1", "demo", GATEWAY, versions=self.versions, releases=self.releases,
            trial=Trial(None, cycles=3, bad_cycles=2) if self.versions.trial else None, keys=self.keys,
            transport=self.broker, things=THINGS, folder=self.folder, spawn=self.jobs.append,
        )  # fmt: skip

    async def connect(self):
        await self.changes.start()
        for callback in self.broker.hello:
            callback()
        await self.run()

    async def run(self):
        while self.jobs:
            await self.jobs.pop(0)

    async def hear(self, topic, fields):
        payload = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        self.broker.handlers[f"{THINGS}/{topic}"](Inbound(topic=topic, payload=payload))
        await self.run()

    def sign(self, operation, version, content, *, site="home-1"):
        digest = hashlib.sha256(content).hexdigest()
        return self.keys.sign(CLOUD, GATEWAY, signed_content(operation, site, version, digest))

    async def delta(self, version, text, signature=None):
        wanted = {"version": version, "text": text}
        wanted["signature"] = self.sign(CONFIGURE, version, str(text).encode()) if signature is None else signature
        await self.hear("shadow/name/config/update/delta", {"version": 9, "state": {"configuration": wanted}})

    def reported(self):
        states = [one["state"] for topic, one in self.broker.sent if topic == "shadow/name/config/update"]
        return states[-1]["reported"]["configuration"], states[-1].get("desired", "kept")

    def told(self):
        return [
            (one["status"], one["statusDetails"]["reason"])
            for topic, one in self.broker.sent
            if "jobs/j1/update" in topic
        ]


@pytest.fixture
async def bench(tmp_path):
    one = Bench(tmp_path)
    await one.connect()
    return one


def gentle(reserve=30):
    model = yaml.safe_load(EXAMPLE.read_text())
    model["control"]["reserve_soc_percent"] = reserve
    return yaml.safe_dump(model)


async def test_with_the_connection_it_tells_what_runs_and_asks_what_is_wanted(bench):
    assert [topic for topic, _ in bench.broker.sent] == [
        "shadow/name/config/update", "shadow/name/config/get", "jobs/$next/get",
    ]  # fmt: skip
    assert bench.reported()[0]["version"] == 0


async def test_what_the_shadow_desires_is_tried_and_kept_when_it_works(bench):
    await bench.delta(3, gentle())
    reported, desired = bench.reported()
    assert (reported["trial"], reported["refused"]) == (3, None)
    assert desired == {"configuration": None}, "else the delta would come for ever"
    async with asyncio.timeout(5):
        await bench.changes.changed.wait()
    bench.start()
    await bench.connect()
    assert bench.site.model.control.reserve_soc_percent == 30
    for _ in range(3):
        bench.changes.judge(lambda: WELL)
    await bench.run()
    assert bench.reported()[0]["version"] == 3
    assert bench.reported()[0]["last"] == {"version": 3, "outcome": "good"}


async def test_what_makes_the_site_worse_is_taken_back_and_told(bench):
    await bench.delta(3, gentle())
    bench.start()
    await bench.connect()
    bench.changes.judge(lambda: ILL)
    assert not bench.changes.changed.is_set()
    bench.changes.judge(lambda: ILL)
    await bench.run()
    assert bench.changes.changed.is_set()
    assert bench.reported()[0]["version"] == 0
    assert bench.reported()[0]["last"]["outcome"] == "taken back: setpoints do not arrive"
    bench.start()
    assert bench.site.model.control.reserve_soc_percent == 5


@pytest.mark.parametrize(
    ("version", "text", "signature", "reason"),
    [
        (3, gentle(), "", "not signed by the cloud"),
        (3, gentle(), "eyJhbGciOiJIUzI1NiJ9..AAAA", "not signed by the cloud"),
        (3, gentle(), 7, "not signed by the cloud"),
        (3, "site: [", None, "not YAML"),
        (3, gentle().replace("import_limit_w: 12000", "import_limit_w: 90000"), None, "above the owner's 12000"),
        (3, gentle().replace("control:", "controll:"), None, "did you mean 'control'"),
        ("3", gentle(), None, "a version, a whole number, and a text"),
        (True, gentle(), None, "version is missing"),
        (3, None, "", "not signed"),
    ],
    ids=["unsigned", "forged", "no-text", "no-yaml", "wider", "unknown", "words", "bool", "nothing"],
)
async def test_what_is_refused_is_told_with_its_reason(bench, version, text, signature, reason):
    await bench.delta(version, text, signature)
    reported, desired = bench.reported()
    assert reason in reported["reason"]
    assert reported["refused"] == version
    assert (reported["version"], reported["trial"], desired) == (0, None, {"configuration": None})
    assert bench.versions.newest == 0


async def test_an_older_version_and_another_site_s_are_refused(bench):
    await bench.delta(5, gentle())
    bench.versions.roll_back("test")
    await bench.delta(4, gentle())
    assert "not newer than 5" in bench.reported()[0]["reason"]
    content = gentle().encode()
    await bench.delta(6, gentle(), bench.sign(CONFIGURE, 6, content, site="home-2"))
    assert "not signed" in bench.reported()[0]["reason"]
    await bench.delta(6, gentle(), bench.sign(UPGRADE, 6, content))
    assert "not signed" in bench.reported()[0]["reason"]


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"7", b'{"state": 5}', b'{"state": {"configuration": [1]}}', b"x" * 200_000]
)
async def test_nonsense_on_the_topics_does_nothing(bench, payload):
    before = len(bench.broker.sent)
    for topic in bench.broker.handlers:
        topic = topic.removeprefix(f"{THINGS}/")
        await bench.hear(topic, payload)
    assert len(bench.broker.sent) == before


@pytest.fixture
def shelf(tmp_path):
    """A loopback web server with artifacts."""
    folder = tmp_path / "shelf"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(5)
    server.server_close()


def document(bench, shelf, content, *, operation=CONFIGURE, version=3):
    folder, url = shelf
    (folder / "artifact").write_bytes(content)
    return {
        "operation": operation, "version": version,
        "artifact": {"url": f"{url}/artifact", "sha256": hashlib.sha256(content).hexdigest()},
        "signature": bench.sign(operation, version, content),
    }  # fmt: skip


def queued(jobs_document, status="QUEUED"):
    return {
        "timestamp": 1,
        "execution": {"jobId": "j1", "status": status, "versionNumber": 1, "jobDocument": jobs_document},
    }


async def test_a_job_is_carried_out_and_its_end_is_told_after_the_restart(bench, shelf):
    await bench.hear("jobs/notify-next", queued(document(bench, shelf, gentle().encode())))
    assert [status for status, _ in bench.told()] == ["IN_PROGRESS", "IN_PROGRESS"]
    await bench.hear("jobs/notify-next", queued(document(bench, shelf, gentle().encode())))
    assert len(bench.told()) == 2, "one at a time"
    bench.start()
    bench.broker.there = False
    await bench.connect()
    for _ in range(3):
        bench.changes.judge(lambda: WELL)
    await bench.run()
    bench.broker.there = True
    for callback in bench.broker.hello:
        callback()
    await bench.run()
    assert bench.told() == [("SUCCEEDED", "good")], "also where the broker was away when it was"
    bench.start()
    await bench.connect()
    assert bench.told() == [], "once"


async def test_a_job_whose_version_is_taken_back_has_failed(bench, shelf):
    await bench.hear("jobs/$next/get/accepted", queued(document(bench, shelf, gentle().encode())))
    bench.start()
    bench.start()  # it died in its trial
    await bench.connect()
    assert bench.told() == [("FAILED", "taken back: the gateway ended while it was on trial")]


async def test_a_job_that_nobody_here_knows_of_any_more_has_failed(bench, shelf):
    await bench.hear("jobs/notify-next", queued(document(bench, shelf, b"x"), status="IN_PROGRESS"))
    assert bench.told() == [("FAILED", "the gateway ended while it was under way")]
    await bench.hear("jobs/notify-next", {"execution": {}})
    assert len(bench.told()) == 1


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"signature": "no"}, "REJECTED", "not signed by the cloud"),
        ({"version": 4}, "REJECTED", "not signed by the cloud"),
        ({"operation": UPGRADE}, "REJECTED", "not signed by the cloud"),
        ({"operation": "explode"}, "FAILED", "has operation configure or upgrade"),
        ({"artifact": {"url": "http://127.0.0.1:1/x"}}, "FAILED", "an artifact has url and sha256"),
        ({"artifact": "x"}, "FAILED", "has operation configure or upgrade"),
    ],
    ids=["forged", "version", "operation", "unknown", "digest", "artifact"],
)
async def test_a_job_that_is_refused_says_why(bench, shelf, changes, status, reason):
    await bench.hear("jobs/notify-next", queued(document(bench, shelf, gentle().encode()) | changes))
    assert bench.told()[-1][0] == status
    assert reason in bench.told()[-1][1]
    assert bench.versions.newest == 0


async def test_an_artifact_that_is_another_or_elsewhere_is_refused(bench, shelf):
    made = document(bench, shelf, gentle().encode())
    (shelf[0] / "artifact").write_bytes(b"another")
    await bench.hear("jobs/notify-next", queued(made))
    assert "SHA-256" in bench.told()[-1][1]
    made["artifact"]["url"] = "http://example.com/artifact"
    await bench.hear("jobs/notify-next", queued(made))
    assert "artifacts come by https" in bench.told()[-1][1]
    made["artifact"]["url"] = "file:///etc/passwd"
    await bench.hear("jobs/notify-next", queued(made))
    assert "artifacts come by https" in bench.told()[-1][1]
    made["artifact"]["url"] = f"{shelf[1]}/nothing"
    await bench.hear("jobs/notify-next", queued(made))
    assert "404" in bench.told()[-1][1]
    assert not (bench.folder / "artifact").exists()
    upgrade = document(bench, shelf, b"no wheel", operation=UPGRADE, version="9.9.9")
    await bench.hear("jobs/notify-next", queued(upgrade))
    assert bench.told()[-1] == ("FAILED", "this gateway keeps no releases")


@pytest.mark.parametrize("status", ["QUEUED", "IN_PROGRESS"])
async def test_a_job_for_another_client_of_the_thing_is_left_alone(bench, status):
    await bench.hear("jobs/notify-next", queued({"version": "1.0", "steps": []}, status=status))
    assert bench.told() == []
