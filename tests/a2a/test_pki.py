"""The private authority, signatures with its keys, and a real mosquitto that lets in whom it should."""

import base64
import json
import shutil
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from wattmesh_a2a.broker import BrokerProcess
from wattmesh_a2a.certificates import CertificateKeys
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.messages import Strategy
from wattmesh_a2a.pki import Authority
from wattmesh_a2a.pki_cli import main, write_broker
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, OTHER, CLOUD = (
    Address("o", "home-1", "gateway"),
    Address("o", "home-2", "gateway"),
    Address("o", "cloud", "producer"),
)
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    one = Authority.create(tmp_path_factory.mktemp("pki") / "ca", "o")
    for name in ("home-1", "home-2", "cloud"):
        one.issue(name)
    one.issue("broker", hosts=["127.0.0.1", "localhost"])
    return one


def keys(authority, name, **more):
    folder = authority.folder / name
    return CertificateKeys(folder / "certificate.pem", folder / "key.pem", authority.folder / "ca.pem", **more)


def test_who_signed_is_known_and_speaks_for_itself_alone(authority):
    site, cloud, other = (keys(authority, name) for name in ("home-1", "cloud", "home-2"))
    signature = cloud.sign(CLOUD, SITE, b"content")
    assert site.verify(CLOUD, SITE, b"content", signature)
    assert not site.verify(CLOUD, SITE, b"other content", signature)
    assert not site.verify(OTHER, SITE, b"content", signature)
    assert other.sign(CLOUD, SITE, b"content") is None
    assert not site.verify(CLOUD, SITE, b"content", other.sign(OTHER, CLOUD, b"content"))
    assert not site.verify(OTHER, SITE, b"content", other.sign(OTHER, CLOUD, b"content"))
    assert not site.verify(Address("p", "cloud", "producer"), SITE, b"content", signature)


def test_a_certificate_of_another_authority_or_algorithm_is_nobody(authority, tmp_path):
    stranger = Authority.create(tmp_path / "other", "o")
    stranger.issue("cloud")
    site = keys(authority, "home-1")
    assert not site.verify(CLOUD, SITE, b"x", keys(stranger, "cloud").sign(CLOUD, SITE, b"x"))
    header, _, mac = keys(authority, "cloud").sign(CLOUD, SITE, b"x").partition("..")
    fields = json.loads(base64.urlsafe_b64decode(header + "=="))
    for wrong in (
        {**fields, "alg": "none"},
        {**fields, "alg": "HS256"},
        {**fields, "crit": []},
        {**fields, "x5c": []},
        [],
    ):
        forged = base64.urlsafe_b64encode(json.dumps(wrong).encode()).decode().rstrip("=")
        assert not site.verify(CLOUD, SITE, b"x", f"{forged}..{mac}")


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
)
def test_no_text_is_a_signature_and_none_raises(authority, text):
    site = keys(authority, "home-1")
    assert not site.verify(CLOUD, SITE, b"x", text)
    assert not site.verify(CLOUD, SITE, b"x", f"{text}..{'A' * 86}")


def test_what_is_revoked_or_over_is_refused(tmp_path):
    moment = datetime.now(UTC)
    one = Authority.create(tmp_path / "ca", "o")
    one.issue("cloud")
    one.issue("home-1")
    time_s = [moment.timestamp()]
    site = keys(one, "home-1", crl=one.folder / "crl.pem", now=lambda: time_s[0])
    old = keys(one, "cloud").sign(CLOUD, SITE, b"x")
    assert site.verify(CLOUD, SITE, b"x", old)
    one.rotate("cloud")
    new = keys(one, "cloud").sign(CLOUD, SITE, b"x")
    assert site.verify(CLOUD, SITE, b"x", old)
    assert site.verify(CLOUD, SITE, b"x", new)
    assert len(one.revoke("cloud", keep_newest=True)) == 1
    site._crl_looked = -1e9
    assert not site.verify(CLOUD, SITE, b"x", old)
    assert site.verify(CLOUD, SITE, b"x", new)
    (one.folder / "crl.pem").write_text("damaged")
    site._crl_looked = -1e9
    assert not site.verify(CLOUD, SITE, b"x", old)
    time_s[0] += timedelta(days=400).total_seconds()
    assert not site.verify(CLOUD, SITE, b"x", new)


def test_keys_are_their_owners_alone_and_nothing_is_replaced_by_accident(authority, tmp_path, capsys):
    for path in (authority.folder / "ca.key", authority.folder / "home-1/key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="already"):
        Authority.create(authority.folder, "o")
    with pytest.raises(ConfigurationError, match="make one"):
        Authority(tmp_path)
    for name in ("../x", "a/b", "", ".hidden", "ca.key"):
        with pytest.raises(ConfigurationError):
            authority.issue(name)
    with pytest.raises(ConfigurationError, match="never had"):
        authority.revoke("nobody")
    folder = tmp_path / "by-command"
    assert main(["init", str(folder), "o"]) == 0
    for words in (["issue", "x"], ["rotate", "x"], ["revoke", "x", "--keep-newest"], ["crl"], ["list"]):
        assert main([words[0], str(folder), *words[1:]]) == 0
    assert "PRIVATE" not in capsys.readouterr().out
    open_key = tmp_path / "open.key"
    shutil.copy(authority.folder / "home-1/key.pem", open_key)
    open_key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        CertificateKeys(authority.folder / "home-1/certificate.pem", open_key, authority.folder / "ca.pem")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def broker(authority, folder, port):
    config, _ = write_broker(authority.folder, folder, "o", port, bind="127.0.0.1")
    if Path("/etc/passwd").exists():  # started as root it would change to a user who may not write here
        import getpass

        config.write_text(f"user {getpass.getuser()}\n" + config.read_text())
    return BrokerProcess([MOSQUITTO, "-c", str(config)], port, "mosquitto", folder, {})


def transport(authority, port, name, client_id):
    folder = authority.folder / name
    return MqttTransport(
        f"mqtts://127.0.0.1:{port}",
        client_id,
        ca=authority.folder / "ca.pem",
        certificate=folder / "certificate.pem",
        key=folder / "key.pem",
    )


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_mosquitto_with_the_shipped_configuration(authority, tmp_path):
    clock, port, taken, seen = SystemClock(), free_port(), [], []

    async def handle(envelope):
        taken.append(envelope)
        return ACKNOWLEDGED

    async with broker(authority, tmp_path / "broker", port):
        ends = []
        for name, address in (("home-1", SITE), ("cloud", CLOUD)):
            one = Delivery(transport(authority, port, name, str(address)), address, clock, keys=keys(authority, name))
            if name == "home-1":
                one.on_request(Strategy, handle)
            else:
                one.on_presence(lambda who, card: seen.append((str(who), card is not None)))
            await one.announce({"x": 1})
            await one.start()
            await one._transport.wait_connected(5)
            ends.append(one)
        _, cloud = ends
        strategy = Strategy(
            site_id="home-1", expires_ns=9 * 10**18, reserve_soc_percent=5, peak_limit_w=None, trade=True, rationale="r"
        )  # fmt: skip
        expires = clock.utc_ns() + 10 * NS_PER_S
        assert await cloud.request(SITE, strategy, expires_ns=expires, timeout_s=5) == ACKNOWLEDGED
        assert taken[0].signed
        assert (str(SITE), True) in seen

        # Another site of the same authority: it can neither read nor write what is not its own.
        thief, got = transport(authority, port, "home-2", str(OTHER)), []
        for name in ("a2a/v1/request/o/home-1/+", "a2a/v1/reply/o/cloud/+/+", "wattmesh/v1/telemetry/#", "#"):
            await thief.subscribe(name, got.append)
        liar = Delivery(thief, OTHER, clock, keys=keys(authority, "home-2"))
        await liar.start()
        await thief.wait_connected(5)
        await thief.publish(f"a2a/v1/discovery/{SITE}", b'{"status":"offline","session":"x"}', retain=True)
        with pytest.raises(UnavailableError):  # the broker does not let it through, and it would be unsigned
            await liar.request(SITE, strategy, expires_ns=expires, timeout_s=0.5)
        answer = await cloud.request(SITE, strategy, expires_ns=expires, timeout_s=5)
        assert answer == ACKNOWLEDGED
        assert len(taken) == 2
        assert not [one for one in got if "/home-2/" not in one.topic and "/discovery/o/cloud/" not in one.topic]
        assert (str(SITE), False) not in seen
        await liar.stop()

        # Nobody without a certificate of ours gets in.
        nobody = MqttTransport(f"mqtts://127.0.0.1:{port}", "x", ca=authority.folder / "ca.pem")
        await nobody.start()
        with pytest.raises(UnavailableError):
            await nobody.wait_connected(0.5)
        await nobody.stop()
        for one in ends:
            await one.stop()

    authority.revoke("home-2")
    async with broker(authority, tmp_path / "broker", port):
        for name, welcome in (("home-2", False), ("home-1", True)):
            one = transport(authority, port, name, name)
            await one.start()
            if welcome:
                await one.wait_connected(5)
            else:
                with pytest.raises(UnavailableError):
                    await one.wait_connected(1)
            await one.stop()
