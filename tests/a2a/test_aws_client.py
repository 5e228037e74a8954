"""AWS's own MQTT 5 client with client certificates against mosquitto, which keeps IoT Core's limits."""

import asyncio
import shutil
import socket

import pytest

pytest.importorskip("awscrt", reason="the extra iot is not installed")
pytest.importorskip("cryptography")

import getpass

from wattmesh_a2a.broker import BrokerProcess
from wattmesh_a2a.certificates import CertificateKeys
from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messages import Strategy
from wattmesh_a2a.pki import Authority
from wattmesh_a2a.pki_cli import write_broker
from wattmesh_a2a.transports.aws import AwsIotTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "producer")
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_signed_commands_cards_and_wills_pass_and_outlive_a_killed_broker(tmp_path):
    authority = Authority.create(tmp_path / "ca", "o")
    for name in ("home-1", "cloud"):
        authority.issue(name)
    authority.issue("broker", hosts=["127.0.0.1", "localhost"])
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config, _ = write_broker(authority.folder, tmp_path / "broker", "o", port, bind="127.0.0.1")
    config.write_text(f"user {getpass.getuser()}\n" + config.read_text())
    clock, seen, taken = SystemClock(), [], []

    async def handle(envelope):
        taken.append(envelope)
        return ACKNOWLEDGED

    def end(name, address):
        folder, ca = authority.folder / name, authority.folder / "ca.pem"
        files = {"certificate": folder / "certificate.pem", "key": folder / "key.pem", "ca": ca}
        return Delivery(
            AwsIotTransport(f"mqtts://127.0.0.1:{port}", name, **files), address, clock, keys=CertificateKeys(**files)
        )

    async with BrokerProcess([MOSQUITTO, "-c", str(config)], port, "mosquitto", tmp_path / "broker", {}) as broker:
        site, cloud = end("home-1", SITE), end("cloud", CLOUD)
        site.on_request(Strategy, handle)
        cloud.on_presence(lambda who, card: seen.append((str(who), card is not None)))
        await site.announce({"x": 1})
        for one in (cloud, site):
            await one.start()
            await one._transport.wait_connected(10)
        strategy = Strategy(
            site_id="home-1", expires_ns=9 * 10**18, reserve_soc_percent=5, peak_limit_w=None, trade=True, rationale="r"
        )
        expires = clock.utc_ns() + 60 * NS_PER_S
        for _ in range(20):
            assert await cloud.request(SITE, strategy, expires_ns=expires, timeout_s=20) == ACKNOWLEDGED
        assert (str(SITE), True) in seen
        broker.kill()
        waiting = asyncio.create_task(cloud.request(SITE, strategy, expires_ns=expires))
        await asyncio.sleep(0)
        broker.start()
        assert await asyncio.wait_for(waiting, 40) == ACKNOWLEDGED
        assert len(taken) == 21
        for one in (site, cloud):
            await one.stop()
