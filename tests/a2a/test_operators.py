"""People's commands (`wattmesh messages`), and a site's broker as a bridge to IoT Core, on real mosquitto with certificates."""

import asyncio
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

pytest.importorskip("cryptography")

from wattmesh_a2a import codec
from wattmesh_a2a.broker import BrokerProcess, provision_broker
from wattmesh_a2a.certificates import CertificateKeys
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.deadletters import DeadLetters
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import CommitmentQuery, Strategy
from wattmesh_a2a.pki import Authority
from wattmesh_a2a.pki_cli import main as pki
from wattmesh_a2a.pki_cli import write_bridge, write_broker
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, OTHER, CLOUD = (
    Address("o", "home-1", "gateway"),
    Address("o", "home-2", "gateway"),
    Address("o", "cloud", "producer"),
)
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
STRATEGY = Strategy(
    site_id="home-1", expires_ns=9 * 10**18, reserve_soc_percent=5, peak_limit_w=None, trade=True, rationale="r"
)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def until(condition, seconds=15.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def authority(tmp_path):
    made = Authority.create(tmp_path / "ca", "o")
    for name in ("home-1", "home-2", "cloud", "operator"):
        made.issue(name)
    made.issue("broker", hosts=["127.0.0.1", "localhost"])
    return made


def tls_broker(authority, folder, port, more=""):
    config, acl = write_broker(authority.folder, folder, "o", port, bind="127.0.0.1")
    config.write_text(f"user {getpass.getuser()}\n" + config.read_text())
    acl.write_text(acl.read_text() + more)
    return BrokerProcess([MOSQUITTO, "-c", str(config)], port, "mosquitto", folder, {})


def files(authority, name):
    folder = authority.folder / name
    return {"certificate": folder / "certificate.pem", "key": folder / "key.pem", "ca": authority.folder / "ca.pem"}


async def join(url, address, *, prepare=None, tls=None, keys=None, figures=False):
    transport = MqttTransport(url, str(address), **(tls or {}))
    one = Delivery(transport, address, SystemClock(), keys=keys, figures=figures)
    if prepare:
        prepare(one)
    await one.announce({})
    await one.start()
    await transport.wait_connected(10)
    return one


def command(*arguments):
    """`wattmesh messages …` as its user runs it."""
    code = "import sys; from wattmesh_a2a.cli import messages; sys.exit(messages(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


async def said(*arguments):
    process = command(*arguments)
    out, err = await asyncio.to_thread(process.communicate, timeout=30)
    return process.returncode, out, err


async def acknowledge(_envelope):
    return ACKNOWLEDGED


def with_handler(kind):
    return lambda delivery: delivery.on_request(kind, acknowledge)


async def test_tap_stats_dead_and_replay(tmp_path):
    async with provision_broker(tmp_path / "broker", free_port(), kind="mosquitto") as broker:
        site = await join(broker.url, SITE, prepare=with_handler(CommitmentQuery), figures=True)
        cloud = await join(broker.url, CLOUD)
        tap = command("tap", "--broker", broker.url, "a2a/v1/request/#")
        query = CommitmentQuery(participant_id="p", from_ns=1)
        lines = []

        def read():
            lines.append(tap.stdout.readline())

        reading = asyncio.create_task(asyncio.to_thread(read))
        while not reading.done():  # until the tap listens
            await cloud.request(SITE, query, expires_ns=SystemClock().utc_ns() + 10 * NS_PER_S)
            await asyncio.sleep(0.05)
        tap.kill()
        tap.wait()
        assert "a2a/v1/request/o/home-1/gateway  wattmesh.market.commitment.query.v1" in lines[0]

        code, out, _ = await said("stats", "o/home-1", "--broker", broker.url)
        assert code == 0
        assert "handled" in out
        assert "wattmesh.market.commitment.query.v1" in out
        code, out, _ = await said("stats", "o/home-1/gateway", "--broker", broker.url, "--json")
        assert code == 0
        assert {json.loads(line)["event"] for line in out.splitlines()} >= {"handled"}

        letters = DeadLetters(tmp_path / "dead.sqlite")
        lost = Envelope(
            id="lost", source=CLOUD, destination=SITE, type="wattmesh.market.commitment.query.v1", time_ns=1, session="s",
            sequence=1, expires_ns=2, data=query,
        )  # fmt: skip
        letters.keep(
            5, "out", "expired without an answer", type_name=lost.type, peer=str(SITE),
            topic=f"a2a/v1/request/{SITE}", payload=codec.encode(lost),
        )  # fmt: skip
        letters.keep(
            6, "in", "invalid: \x1b[2J", type_name="-", peer="-", topic=f"a2a/v1/request/{SITE}", payload=b"\x00"
        )
        letters.close()
        code, out, _ = await said("dead", tmp_path / "dead.sqlite")
        assert code == 0
        assert len(out.splitlines()) == 2
        assert "\x1b" not in out
        before = site.counters()["handled"]
        code, out, _ = await said("replay", tmp_path / "dead.sqlite", 1, "--broker", broker.url)
        assert (code, "answered: Acknowledged" in out) == (0, True)
        assert site.counters()["handled"] == before + 1
        code, out, _ = await said("replay", tmp_path / "dead.sqlite", 2, "--broker", broker.url)
        assert code == 0
        await until(lambda: site.counters().get("invalid"))
        code, out, _ = await said("dead", tmp_path / "dead.sqlite")
        assert out.count("sent again 1 times") == 2
        for one in (site, cloud):
            await one.stop()


async def test_mistakes_are_one_clear_line(tmp_path):
    from wattmesh_a2a import messages_cli
    from wattmesh_a2a.errors import WattmeshError

    DeadLetters(tmp_path / "dead.sqlite").close()
    for arguments, what in (
        (["dead", str(tmp_path / "none.sqlite")], "no such file"),
        (["replay", str(tmp_path / "dead.sqlite"), "7"], "no dead letter 7"),
        (["tap", "--broker", "mqtt://example.com"], "plain text"),
    ):
        with pytest.raises(WattmeshError, match=what):
            await asyncio.to_thread(messages_cli.main, arguments)


async def test_an_operators_certificate_reads_all_and_asks_for_figures_alone(authority, tmp_path):
    port = free_port()
    url = f"mqtts://127.0.0.1:{port}"
    async with tls_broker(authority, tmp_path / "broker", port):
        site = await join(
            url, SITE, prepare=with_handler(CommitmentQuery), tls=files(authority, "home-1"), figures=True
        )
        mine = files(authority, "operator")
        options = ["--broker", url, *(word for name, path in mine.items() for word in (f"--{name}", path))]
        code, _, err = await said("stats", "o/home-1", *options)
        assert code == 0, err
        people = await join(url, Address("o", "operator", "ann"), tls=mine)
        expires = SystemClock().utc_ns() + 10 * NS_PER_S
        seen = site.counters().get("handled", 0)
        with pytest.raises(Exception, match="did not answer"):
            await people.request(
                SITE, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=expires, timeout_s=0.5
            )
        assert site.counters().get("handled", 0) == seen
        for one in (people, site):
            await one.stop()


async def test_a_bridge_to_iot_core_takes_commands_down_and_the_rest_up(authority, tmp_path):
    """The second mosquitto stands for IoT Core: TLS, a certificate a thing, the client id is the thing's name."""
    taken, seen, arrived = [], [], []
    up, down = free_port(), free_port()
    rules = "\nuser home-1\ntopic write $aws/rules/telemetry/#\nuser cloud\ntopic read $aws/rules/telemetry/#\n"
    core = tls_broker(authority, tmp_path / "core", up, rules)
    folder = tmp_path / "local"
    folder.mkdir()
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {down} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nuser {getpass.getuser()}\n"
        f"persistence true\npersistence_location {folder}/\nlog_dest file {folder}/mosquitto.log\n"
    )
    thing = files(authority, "home-1")
    write_bridge(
        config, endpoint=f"127.0.0.1:{up}", thing="home-1", certificate=thing["certificate"], key=thing["key"],
        ca=thing["ca"], org="o", unit="home-1", rule="telemetry",
    )  # fmt: skip
    config.write_text(config.read_text().replace("restart_timeout 2 60", "restart_timeout 1 1"))
    with pytest.raises(ConfigurationError, match="already"):
        write_bridge(
            config, endpoint="x", thing="t", certificate=thing["certificate"], key=thing["key"], ca=thing["ca"], org="o",
            unit="u", rule="r",
        )  # fmt: skip
    local = BrokerProcess([MOSQUITTO, "-c", str(config)], down, "mosquitto", folder, {})

    async def handle(envelope):
        taken.append(envelope)
        return ACKNOWLEDGED

    def keys(name):
        own = files(authority, name)
        return CertificateKeys(own["certificate"], own["key"], own["ca"])

    async with core, local:
        site = await join(
            f"mqtt://127.0.0.1:{down}", SITE, prepare=lambda one: one.on_request(Strategy, handle), keys=keys("home-1")
        )
        url = f"mqtts://127.0.0.1:{up}"
        cloud = await join(
            url, CLOUD, tls=files(authority, "cloud"), keys=keys("cloud"),
            prepare=lambda one: one.on_presence(lambda who, card: seen.append((who, card is not None))),
        )  # fmt: skip
        await cloud._transport.subscribe("$aws/rules/telemetry/#", arrived.append)
        await until(lambda: (SITE, True) in seen)
        expires = SystemClock().utc_ns() + 60 * NS_PER_S
        assert await cloud.request(SITE, STRATEGY, expires_ns=expires, timeout_s=10) == ACKNOWLEDGED
        assert taken[0].signed
        await site.send_telemetry("points", b"frame-1")
        await until(lambda: arrived)
        assert (arrived[0].topic, arrived[0].payload) == ("$aws/rules/telemetry/o/home-1/points", b"frame-1")

        # What another site may not say there does not come down either.
        liar = await join(url, OTHER, tls=files(authority, "home-2"), keys=keys("home-2"))
        await liar._transport.publish(f"a2a/v1/request/{SITE}", b"{}", response_topic=f"a2a/v1/reply/{OTHER}/x")
        before = dict(site.counters())
        assert await cloud.request(SITE, STRATEGY, expires_ns=expires, timeout_s=10) == ACKNOWLEDGED
        assert site.counters().get("invalid", 0) == before.get("invalid", 0)
        await liar.stop()

        # The link is away and comes back: what was queued goes up, and commands come down again.
        core.kill()
        for number in range(2, 5):
            await site.send_telemetry("points", b"frame-%d" % number)
        core.start()
        await until(lambda: {one.payload for one in arrived} >= {b"frame-2", b"frame-3", b"frame-4"}, 30)
        assert await cloud.request(SITE, STRATEGY, expires_ns=expires, timeout_s=20) == ACKNOWLEDGED
        for one in (site, cloud):
            await one.stop()


def test_the_bridges_mistakes_are_clear(authority, tmp_path):
    base = ["broker", str(authority.folder), str(tmp_path / "b"), "--iot-core", "x.iot.eu-west-1.amazonaws.com"]
    with pytest.raises(ConfigurationError, match="--thing, --thing-certificate"):
        pki(base)
    more = [
        "--thing",
        "home-1",
        "--thing-certificate",
        "none.pem",
        "--thing-key",
        "none.key",
        "--amazon-ca",
        "none.pem",
    ]
    with pytest.raises(ConfigurationError, match="no such file"):
        pki([*base, *more, "--unit", "home-1", "--rule", "telemetry"])
