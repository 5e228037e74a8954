"""Several takers of one fleet's telemetry over one store, and a cloud that hands on what they have stored."""

import asyncio
from array import array

import pytest
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import TelemetryAck
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns, encode_records
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_cloud.config import load_cloud
from wattmesh_cloud.ingest import Ingest, IngestLimits
from wattmesh_cloud.store.sqlite import SqliteStore
from wattmesh_cloud.worker import GROUP, run

QUICK = IngestLimits(linger_s=0.0, ack_every_s=0.0)
KEYS = KeyRing({"home-1": b"k" * 32})


def frame(sequence, start_ns):
    return encode_columns(
        ColumnBatch(
            site_id="home-1", session="s", stream="points", sequence=sequence, columns=("meter.active_power_w",),
            times_ns=array("q", [start_ns + sequence * NS_PER_S]), values=(array("d", [float(sequence)]),),
            qualities=(b"\0",),
        )
    )  # fmt: skip


async def test_two_workers_share_what_comes_and_each_batch_is_stored_once(tmp_path, midnight_ns, background):
    broker, clock = MemoryBroker(), ManualClock(midnight_ns)
    takers = []
    for number in (1, 2):
        messenger = Delivery(MemoryTransport(broker), Address("demo", "cloud", f"ingest-{number}"), clock, keys=KEYS)
        taker = Ingest(SqliteStore(tmp_path / "store.sqlite"), messenger, clock, "demo", limits=QUICK, group=GROUP)
        taker.register()
        await messenger.start()
        background(taker.run())
        takers.append(taker)
    acknowledged = []
    site = Delivery(MemoryTransport(broker), Address("demo", "home-1", "gateway"), clock, keys=KEYS)

    async def take(envelope):
        acknowledged.extend(envelope.data.sequences)
        return ACKNOWLEDGED

    site.on_request(TelemetryAck, take, idempotent=True)
    await site.start()
    for sequence in [*range(60), *range(30)]:  # half of them twice: their acknowledgement was lost
        await site.send_telemetry("points", frame(sequence, midnight_ns))
    async with asyncio.timeout(20):
        while len(acknowledged) < 90:
            await asyncio.sleep(0.01)
    assert sorted(set(acknowledged)) == list(range(60))
    assert [taker.counts["batches"] + taker.counts["duplicates"] for taker in takers] != [90, 0], "one did it all"
    assert sum(taker.counts["batches"] for taker in takers) == 60
    assert SqliteStore(tmp_path / "store.sqlite").sequences("home-1", "points") == (60, 60)
    for taker in takers:
        await taker.stop()
    await site.stop()


async def test_a_cloud_hands_on_what_workers_store_and_goes_on_after_a_restart(
    tmp_path, messenger, midnight_ns, make_interval, background
):
    clock, store = ManualClock(midnight_ns), SqliteStore(tmp_path / "store.sqlite")
    worker = SqliteStore(tmp_path / "store.sqlite")

    def put(sequence):
        points = frame(sequence, midnight_ns)
        line = record_line(make_interval("home-1", midnight_ns + sequence * 900 * NS_PER_S))
        records = encode_records(
            RecordBatch(site_id="home-1", session="s", stream="records", sequence=sequence, lines=(line, b"nothing"))
        )
        worker.append_frames(
            [
                (("home-1", "points", sequence, midnight_ns, midnight_ns, 1, points), []),
                (("home-1", "records", sequence, midnight_ns, midnight_ns, 2, records), []),
            ]
        )

    def follower():
        made = Ingest(store, messenger, clock, "demo")
        columns, records = [], []
        made.on_columns(lambda batch: columns.append(batch.sequence))
        made.on_record(lambda site, message: records.append((message.slot_start_ns - midnight_ns) // (900 * NS_PER_S)))
        return made, columns, records

    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    put(0)
    put(1)
    first, columns, records = follower()
    task = background(first.follow(0.01))
    await until(lambda: len(records) == 2)
    put(2)
    await until(lambda: len(records) == 3)
    assert columns == records == [0, 1, 2]
    await until(lambda: store.followed() == 6)
    task.cancel()
    put(3)
    again, columns, records = follower()
    background(again.follow(0.01))
    await until(lambda: len(records) == 1)
    assert columns == records == [3]
    assert again.counts["batches"] == 2


def test_what_is_followed_comes_in_the_order_of_its_commits(store, midnight_ns):
    rows = [(("home-1", "points", n, midnight_ns, midnight_ns, 1, frame(n, midnight_ns)), []) for n in (5, 1, 9, 5)]
    for row in rows:
        store.append_frames([row])
    cursor, batches = store.stored_since(0, 2)
    assert [batch.sequence for batch in batches] == [5, 1]
    cursor, batches = store.stored_since(cursor, 2)
    assert [batch.sequence for batch in batches] == [9]
    assert store.stored_since(cursor, 2) == (cursor, [])
    assert store.stored_since(10**9, 2) == (cursor, []), "a cursor beyond all there is"


async def test_a_worker_that_the_file_does_not_have_is_refused(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "cloud.yaml").write_text(
        "version: 1\norg: demo\nstate: state\nbroker: mqtt://127.0.0.1:1\nkeys: keys\ningest: {workers: 2}\n"
        "market: {area: a, tariff: {feed_in_price: 0.05, default_price: 0.2},"
        " participants: [{id: x, import_limit_w: 1, export_limit_w: 1, credit_limit: 1}]}\n"
    )
    config = load_cloud(tmp_path / "cloud.yaml")
    with pytest.raises(ConfigurationError, match="worker 3"):
        await run(config, ManualClock(0), 3, asyncio.Event())
