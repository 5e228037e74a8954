"""A day of one site in the economy profile, in virtual time: what its messages cost in AWS IoT Core, counted, not supposed.

The gateway's own outbox and uplink speak to the telemetry function's own handler through a rule that is a function call here;
each publish, rule, action and delivery is metered in units of 5 KB begun, as IoT Core meters them.
"""

import base64
import json
import math
import random
from array import array
from collections import Counter
from types import SimpleNamespace

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messages import TelemetryAck
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.topics import Topics
from wattmesh_cloud.aws.cost import ECONOMY as ECONOMY_LOAD
from wattmesh_cloud.aws.cost import Prices, SiteLoad, site_month
from wattmesh_edge.outbox import Outbox
from wattmesh_edge.uplink import ECONOMY, LIVE, Uplink

pytest.importorskip("boto3")

POINTS = 200
UNIT = 5 * 1024
DAY_S = 86_400
TOPICS = Topics(telemetry_rule="wattmesh_telemetry")


class IotCore:
    """Rule, queue and function behind the uplink's messenger; meters what AWS would."""

    def __init__(self, lambdas, site):
        self._lambdas, self._site = lambdas, site
        self._queue, self._number = [], 0
        self.handlers, self.metered, self.bytes = {}, Counter(), Counter()
        self._acks = []
        self.lose = lambda: False

    def on_request(self, kind, handler, *, as_agent=None, idempotent=False):
        self.handlers[kind] = handler

    async def send_telemetry(self, stream, frame, *, backlog=False):
        units = math.ceil(len(frame) / UNIT)
        self.metered["rule"] += units
        self.metered["action"] += units
        self.bytes[stream] += len(frame)
        self.metered[f"batches.{stream}"] += 1
        topic = TOPICS.telemetry("demo", self._site, stream)
        assert topic.startswith("$aws/rules/"), "by Basic Ingest no message is metered"
        body = json.dumps({"topic": topic, "frame": base64.b64encode(frame).decode()})
        self._number += 1
        self._queue.append({"messageId": str(self._number), "body": body})

    def publish(self, **message):
        """The function's acknowledgement: in, out to the gateway, its answer in, and out."""
        self.metered["message"] += 2 * math.ceil(len(message["payload"]) / UNIT) + 2
        self.metered["acks"] += 1
        if not self.lose():
            self._acks.append(json.loads(message["payload"])["data"])

    async def work(self):
        """The queue's batch window is over."""
        if self._queue:
            answer = self._lambdas.telemetry({"Records": self._queue}, None)
            assert answer == {"batchItemFailures": []}
            self._queue = []
        acks, self._acks = self._acks, []
        for data in acks:
            ack = TelemetryAck(stream=data["stream"], sequences=tuple(data["sequences"]))
            await self.handlers[TelemetryAck](SimpleNamespace(data=ack, source=Address("demo", "cloud", "ingest")))


@pytest.fixture
def lambdas(store, midnight_ns, monkeypatch):
    from wattmesh_cloud.tools import lambdas as module

    monkeypatch.setattr(module, "context", lambda: SimpleNamespace(store=store))
    monkeypatch.setattr(module, "keys", lambda: KeyRing({"home-1": b"k" * 32}))
    monkeypatch.setattr(
        module, "SystemClock", lambda: SimpleNamespace(utc_ns=lambda: midnight_ns + 2 * DAY_S * NS_PER_S)
    )
    monkeypatch.setenv("WATTMESH_ORG", "demo")
    monkeypatch.setenv("WATTMESH_ACK_EVERY", "20")
    return module


def columns():
    return [f"inverter-{index // 20 + 1}.string_{index % 20}_power_w" for index in range(POINTS)]


async def run_site(lambdas, folder, monkeypatch, midnight_ns, make_interval, seconds, lose=lambda: False):
    """The site at 1 Hz; registers walk, and each is a whole number times 0.1."""
    rng, now = random.Random(3), [0.0]
    core = IotCore(lambdas, "home-1")
    core.lose = lose
    monkeypatch.setattr(lambdas, "iot", lambda: SimpleNamespace(publish=core.publish))
    outbox = Outbox(folder, "home-1", "0123456789ab", columns(), batch_rows=ECONOMY.rows(POINTS))
    uplink = Uplink(outbox, core, lambda: now[0], ECONOMY)
    walk = array("q", (rng.randrange(1000, 20_000) for _ in range(POINTS)))
    steps = [round(rng.gauss(0, 10)) for _ in range(9973)]
    good = bytes(POINTS)
    for second in range(seconds):
        now[0] = float(second)
        at = rng.randrange(len(steps) - POINTS)
        walk = array("q", map(int.__add__, walk, steps[at : at + POINTS]))
        outbox.add_row(midnight_ns + second * NS_PER_S, [array("d", [value * 0.1 for value in walk])], [good])
        if second % 900 == 450:
            for _ in range(2):  # an interval's energy and a decision are of one batch
                outbox.add_record(record_line(make_interval("home-1", midnight_ns + (second - 450) * NS_PER_S)))
        if second % 5 == 4:
            await uplink.pump()
            await core.work()
    waiting = outbox.waiting()
    outbox.close()
    return core, uplink, waiting


@pytest.mark.parametrize("part", [12, pytest.param(1, marks=pytest.mark.long)], ids=["two-hours", "a-day"])
async def test_a_site_costs_ten_cents_a_month(lambdas, tmp_path, monkeypatch, midnight_ns, make_interval, store, part):
    seconds = DAY_S // part
    core, _, waiting = await run_site(lambdas, tmp_path, monkeypatch, midnight_ns, make_interval, seconds)
    price, metered = Prices(), core.metered
    assert metered["batches.points"] == seconds // 60, "each once: nothing is sent again while acknowledgements arrive"
    assert store.sequences("home-1", "points") == (seconds // 60, seconds * POINTS), "full resolution"
    assert waiting <= 30, "what is not acknowledged is a few minutes, and lone batches of records"
    month = 30 * part
    telemetry = month * (metered["rule"] * price.rule + metered["action"] * price.action)
    acks = month * metered["message"] * price.message
    status = 30 * DAY_S / ECONOMY.status_s * 2 * price.message
    requests = 30 * ECONOMY_LOAD.requests_a_day * price.message
    connection = 30 * 1440 * price.connection_minute
    total = telemetry + acks + status + requests + connection
    assert total <= 0.10, metered
    # The model says what was counted: its total within 5 %.
    model = site_month(ECONOMY_LOAD)
    assert model.total == pytest.approx(total, rel=0.05)
    mean = core.bytes["points"] / metered["batches.points"]
    assert math.ceil(mean / UNIT) == math.ceil(ECONOMY_LOAD.batch_bytes / UNIT)
    assert mean < ECONOMY_LOAD.batch_bytes
    assert ECONOMY_LOAD.batch_s == ECONOMY.batch_rows
    assert ECONOMY_LOAD.status_s == ECONOMY.status_s


async def test_lost_acknowledgements_cost_a_repetition_and_nothing_else(
    lambdas, tmp_path, monkeypatch, midnight_ns, make_interval, store
):
    rng = random.Random(1)
    core, _, waiting = await run_site(
        lambdas, tmp_path, monkeypatch, midnight_ns, make_interval, 7200, lambda: rng.random() < 0.5
    )
    assert store.sequences("home-1", "points") == (120, 7200 * POINTS)
    assert core.metered["batches.points"] < 180
    assert waiting < 64


def test_the_profiles():
    assert ECONOMY.window * ECONOMY.batch_rows > ECONOMY.again_after_s, "the window is no brake between repetitions"
    assert ECONOMY.again_after_s > 20 * ECONOMY.batch_rows, "no repetition before the acknowledgement is due"
    assert LIVE.rows(200) == 10
    assert ECONOMY.rows(200) == 60
    assert ECONOMY.rows(2000) == 15, "one message takes it"
    assert site_month(SiteLoad()).total > 1.0, "the live profile is for brokers of one's own"
