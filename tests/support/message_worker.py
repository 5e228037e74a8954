"""One end of a conversation as a process of its own, to be killed at any moment: ``receive URL FOLDER`` or ``send URL FOLDER``."""

import asyncio
import sqlite3
import sys
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, SystemClock
from wattmesh_a2a.dedupe import SqliteDedupe
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.messages import Strategy
from wattmesh_a2a.outgoing import SqliteOutgoing
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.mqtt import MqttTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "producer")
RING = KeyRing({"home-1": b"k" * 32})


async def receive(url, folder):
    store = SqliteDedupe(folder / "answers.sqlite")
    store.connection.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT, late INTEGER)")
    clock = SystemClock()

    def handle(envelope, connection):
        connection.execute("INSERT INTO effects VALUES (?, ?)", (envelope.id, clock.utc_ns() >= envelope.expires_ns))
        return ACKNOWLEDGED

    site = Delivery(MqttTransport(url, str(SITE)), SITE, clock, keys=RING, store=store)
    site.on_request_in_transaction(Strategy, handle)
    await site.start()
    await asyncio.Event().wait()


async def send(url, folder):
    told = sqlite3.connect(folder / "told.sqlite", isolation_level=None)
    told.execute("PRAGMA journal_mode=WAL")
    told.execute("CREATE TABLE IF NOT EXISTS told (id TEXT, outcome TEXT)")
    clock = SystemClock()
    outgoing = SqliteOutgoing(folder / "outgoing.sqlite")
    cloud = Delivery(MqttTransport(url, str(CLOUD)), CLOUD, clock, keys=RING, outgoing=outgoing)
    cloud.on_outcome(lambda name, answer: told.execute("INSERT INTO told VALUES (?, ?)", (name, repr(answer))))
    await cloud.start()
    while not (folder / "enough").exists():
        now = clock.utc_ns()
        valid_ns = (1 + (now // 1000) % 9) * NS_PER_S  # 1 to 9 s: some expire while somebody is dead
        strategy = Strategy(
            site_id="home-1", expires_ns=now, reserve_soc_percent=5.0, peak_limit_w=None, trade=True, rationale="r"
        )
        if len(outgoing.pending()) < 50:
            await cloud.request_durably(SITE, strategy, expires_ns=now + valid_ns)
        await asyncio.sleep(0.02)
    while outgoing.pending():
        await asyncio.sleep(0.05)
    (folder / "done").touch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run({"receive": receive, "send": send}[sys.argv[1]](sys.argv[2], Path(sys.argv[3])))
