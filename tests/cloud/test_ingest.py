"""Telemetry from a gateway to the store over the in-memory broker: durable, then acknowledged; once; what it claims to be."""

import asyncio
import contextlib
from array import array

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, INGEST_AGENT, Address
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.messages import IntervalEnergy, TelemetryAck, TelemetryHeld, TelemetryResend
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns, encode_records
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_cloud.ingest import Ingest, IngestLimits
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.store.dead import DeadLetters

KEY = b"k" * 32
AT_ONCE = IngestLimits(linger_s=0.0, ack_every_s=0.0)


class Site:
    """A gateway that sends frames and notes what is acknowledged."""

    def __init__(self, broker, clock, name="home-1"):
        self.name = name
        self.transport = MemoryTransport(broker)
        self.delivery = Delivery(self.transport, Address("demo", name, GATEWAY_AGENT), clock, keys=KeyRing({name: KEY}))
        self.acknowledged: list[tuple[str, int]] = []
        self.at_acknowledgement = lambda: None

        async def take(envelope):
            assert isinstance(envelope.data, TelemetryAck)
            self.at_acknowledgement()
            self.acknowledged += [(envelope.data.stream, sequence) for sequence in envelope.data.sequences]
            return ACKNOWLEDGED

        self.delivery.on_request(TelemetryAck, take, idempotent=True)


@pytest.fixture
def dead(tmp_path):
    opened = DeadLetters(tmp_path / "dead.sqlite", site_letters=4)
    yield opened
    opened.close()


@pytest.fixture
async def fleet(store, clock, dead):
    """Ingest at work, and a function that makes connected sites."""
    broker = MemoryBroker()
    keys = KeyRing({f"home-{number}": KEY for number in range(1, 10)})
    cloud = Delivery(MemoryTransport(broker), Address("demo", CLOUD_UNIT, INGEST_AGENT), clock, keys=keys)
    ingest = Ingest(store, cloud, clock, "demo", dead=dead, limits=AT_ONCE)
    ingest.register()
    await cloud.start()
    running = asyncio.create_task(ingest.run())
    sites = []

    async def site(name="home-1"):
        made = Site(broker, clock, name)
        await made.delivery.start()
        sites.append(made)
        return made

    yield ingest, site
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await ingest.stop()
    for made in sites:
        await made.delivery.stop()
    await cloud.stop()


async def quiet(ingest):
    """All that was sent is committed, handed on and acknowledged."""
    for _ in range(20):
        await asyncio.sleep(0)
    await ingest.settle(5)
    async with asyncio.timeout(5):
        while ingest._tasks:
            await asyncio.wait(ingest._tasks)


def samples(sequence, clock, site="home-1", stream="points"):
    return ColumnBatch(
        site_id=site,
        session="s",
        stream=stream,
        sequence=sequence,
        columns=("meter.active_power_w", "meter.frequency_hz"),
        times_ns=array("q", [clock.utc_ns()]),
        values=(array("d", [1.0]), array("d", [60.0])),
        qualities=(b"\0", b"\0"),
    )


def lines(sequence, *messages, site="home-1", extra=()):
    raw = (*(record_line(message) for message in messages), *extra)
    return RecordBatch(site_id=site, session="s", stream="records", sequence=sequence, lines=raw)


async def test_a_batch_is_durable_before_it_is_acknowledged(fleet, clock, store):
    ingest, make_site = fleet
    site = await make_site()
    seen = []
    site.at_acknowledgement = lambda: seen.append(store.sequences("home-1", "points"))
    await site.delivery.send_telemetry("points", encode_columns(samples(7, clock)))
    await quiet(ingest)
    assert site.acknowledged == [("points", 7)]
    assert seen == [(1, 2)]
    assert ingest.counts["records"] == 2


async def test_no_acknowledgement_while_the_store_writes_or_when_it_cannot(fleet, clock, store, monkeypatch):
    ingest, make_site = fleet
    site = await make_site()
    order = []
    real = store.append_frames

    def slow(frames):
        order.append("begin")
        result = real(frames)
        order.append("durable")
        return result

    monkeypatch.setattr(store, "append_frames", slow)
    site.at_acknowledgement = lambda: order.append("acknowledged")
    ingest.on_columns(lambda batch: order.append("handed on"))
    await site.delivery.send_telemetry("points", encode_columns(samples(1, clock)))
    await quiet(ingest)
    assert order == ["begin", "durable", "handed on", "acknowledged"]


async def test_a_repeated_batch_is_acknowledged_again_and_has_no_other_effect(fleet, clock, store, make_interval):
    ingest, make_site = fleet
    site = await make_site()
    got_columns, got_records = [], []
    ingest.on_columns(got_columns.append)
    ingest.on_record(lambda name, message: got_records.append((name, message)))
    reading = make_interval("home-1", clock.utc_ns())
    points, records = encode_columns(samples(1, clock)), encode_records(lines(1, reading))
    for _ in range(3):  # in one group, and after it
        await site.delivery.send_telemetry("points", points)
        await site.delivery.send_telemetry("points", points)
        await site.delivery.send_telemetry("records", records)
        await quiet(ingest)
    assert len(got_columns) == 1
    assert got_records == [("home-1", reading)]
    assert ingest.counts["records"] == 2
    assert (ingest.counts["batches"], ingest.counts["duplicates"]) == (2, 7)
    assert site.acknowledged.count(("points", 1)) == 6
    assert site.acknowledged.count(("records", 1)) == 3
    assert len(store.query(Table.CONSUMER_METRICS, "home-1", 0, 2**62)) == 1


async def test_the_same_sequence_of_another_site_or_stream_is_another_batch(fleet, clock, store, make_interval):
    ingest, make_site = fleet
    one, two = await make_site("home-1"), await make_site("home-2")
    await one.delivery.send_telemetry("points", encode_columns(samples(1, clock)))
    await two.delivery.send_telemetry("points", encode_columns(samples(1, clock, "home-2")))
    await one.delivery.send_telemetry("records", encode_records(lines(1, make_interval("home-1", 0))))
    await quiet(ingest)
    assert ingest.counts["batches"] == 3
    assert (one.acknowledged, two.acknowledged) == ([("points", 1), ("records", 1)], [("points", 1)])


async def test_garbage_is_counted_and_neither_stored_nor_acknowledged(fleet, clock, store):
    ingest, make_site = fleet
    site = await make_site()
    whole = encode_columns(samples(1, clock))
    for payload in (b"", b"WM1", b"garbage" * 20, whole[:-3], whole[:4] + b"\0" * 40):
        await site.delivery.send_telemetry("points", payload)
    await site.delivery.send_telemetry("points", encode_columns(samples(2, clock)))
    await quiet(ingest)
    assert ingest.counts["invalid"] == 5
    assert site.acknowledged == [("points", 2)], "the good one among them is taken"
    assert store.sequences("home-1", "points") == (1, 2)


async def test_a_site_cannot_send_in_anothers_name(fleet, clock, store, caplog):
    ingest, make_site = fleet
    thief = await make_site("home-2")
    victim = await make_site("home-1")
    await thief.delivery.send_telemetry("points", encode_columns(samples(1, clock, "home-1")))
    await thief.delivery.send_telemetry("points", encode_columns(samples(2, clock, "home-2", stream="records")))
    await quiet(ingest)
    assert ingest.counts["invalid"] == 2
    assert store.streams() == []
    assert (thief.acknowledged, victim.acknowledged) == ([], [])
    assert "home-2" in caplog.text


async def test_a_reading_of_another_site_makes_no_row(fleet, clock, store, make_interval):
    ingest, make_site = fleet
    site = await make_site("home-2")
    await site.delivery.send_telemetry("records", encode_records(lines(1, make_interval("home-1", 0), site="home-2")))
    await quiet(ingest)
    assert store.partitions(Table.CONSUMER_METRICS) == []
    assert site.acknowledged == [("records", 1)]


async def test_a_record_that_is_not_understood_does_not_hold_up_the_others(fleet, clock, store, make_interval):
    ingest, make_site = fleet
    site = await make_site()
    got = []
    ingest.on_record(lambda name, message: got.append(message))
    batch = lines(1, make_interval("home-1", 900), extra=(b'{"type": "from.the.future.v9", "data": {}}', b"no json"))
    await site.delivery.send_telemetry("records", encode_records(batch))
    await quiet(ingest)
    assert [type(message) for message in got] == [IntervalEnergy]
    assert ingest.counts["invalid_records"] == 2
    assert site.acknowledged == [("records", 1)]


async def test_when_too_much_waits_frames_are_left_to_come_again(store, clock, messenger):
    frame = encode_columns(samples(0, clock))
    limits = IngestLimits(queue_bytes=5 * len(frame), site_share=0.5, linger_s=0.0, ack_every_s=0.0)
    ingest = Ingest(store, messenger, clock, "demo", limits=limits)
    ingest.register()
    for sequence in range(5):
        messenger.telemetry("home-1", "points", encode_columns(samples(sequence, clock)))
    messenger.telemetry("home-2", "points", encode_columns(samples(9, clock, "home-2")))
    assert ingest.counts["refused_busy"] == 3, "one site fills its share of the queue, and the others still get in"
    messenger.telemetry("home-2", "points", b"x" * 100_001)
    assert ingest.counts["oversized"] == 1
    running = asyncio.create_task(ingest.run())
    await quiet(ingest)
    assert sorted(one.message.sequences for one in messenger.sent(TelemetryAck)) == [(0, 1), (9,)]
    messenger.telemetry("home-1", "points", encode_columns(samples(4, clock)))
    await quiet(ingest)
    running.cancel()
    assert ingest.counts["batches"] == 4, "there is room again"


async def test_dead_letters_are_kept_listed_and_taken_when_the_cause_is_gone(fleet, clock, store, dead):
    ingest, make_site = fleet
    site = await make_site()
    future = samples(5, clock)
    future.times_ns[0] += 2 * 86_400 * NS_PER_S
    frame = encode_columns(future)
    for payload in (b"garbage", frame, b"garbage"):
        await site.delivery.send_telemetry("points", payload)
    await quiet(ingest)
    letters = {letter.payload: letter for letter in dead.letters()}
    assert (letters[b"garbage"].times, letters[b"garbage"].sequence) == (2, None)
    assert letters[frame].sequence == 5
    assert "clock" in letters[frame].reason
    assert site.acknowledged == [("points", 5)], "certain of its number and kept: the gateway need not send it for ever"
    assert store.sequences("home-1", "points") == (0, 0)
    await clock.advance(2 * 86_400)
    assert dead.mark() == 2
    assert await ingest.replay() == 1
    assert store.sequences("home-1", "points") == (1, 2)
    assert [letter.payload for letter in dead.letters()] == [b"garbage"]
    assert await ingest.replay() == 0, "what fails again waits for somebody to mark it again"


async def test_a_record_not_understood_is_a_dead_letter_of_its_own(fleet, clock, store, dead, make_interval):
    ingest, make_site = fleet
    site = await make_site()
    got = []
    ingest.on_record(lambda name, message: got.append(message))
    reading = make_interval("home-1", 900)
    await site.delivery.send_telemetry("records", encode_records(lines(1, extra=(b"no json",))))
    await quiet(ingest)
    (letter,) = dead.letters(site="home-1")
    assert (letter.kind, letter.sequence, letter.payload) == ("record", 1, b"no json")
    with dead._transaction() as db:  # as after an update that understands it
        db.execute("UPDATE letters SET payload = ?", (record_line(reading),))
    dead.mark([letter.id])
    assert await ingest.replay() == 1
    assert got == [reading]
    assert len(store.query(Table.CONSUMER_METRICS, "home-1", 0, 2**62)) == 1
    assert [item.data["pv_wh"] for item in store.query(Table.PRODUCER_METRICS, "home-1", 0, 2**62)] == [reading.pv_wh]


async def test_one_sites_garbage_has_an_end_and_leaves_room_for_others(fleet, dead):
    ingest, make_site = fleet
    site, other = await make_site("home-1"), await make_site("home-2")
    for number in range(9):
        await site.delivery.send_telemetry("points", b"garbage %d" % number)
    await other.delivery.send_telemetry("points", b"garbage")
    await quiet(ingest)
    assert dead.counts() == {"home-1": 4, "home-2": 1}
    assert ingest.counts["dead_letters_without_room"] == 5


async def test_a_store_that_fails_for_a_while_loses_nothing(fleet, clock, store, monkeypatch):
    monkeypatch.setattr("wattmesh_cloud.ingest._STORE_PAUSE_S", 0.0)
    ingest, make_site = fleet
    site = await make_site()
    real, failures = store.append_frames, iter([UnavailableError("disk full"), OSError("gone")])

    def failing(frames):
        for error in failures:
            raise error
        return real(frames)

    monkeypatch.setattr(store, "append_frames", failing)
    await site.delivery.send_telemetry("points", encode_columns(samples(1, clock)))
    await quiet(ingest)
    assert ingest.counts["store_failures"] == 2
    assert site.acknowledged == [("points", 1)]


async def test_what_cannot_be_stored_costs_itself_alone(fleet, clock, store, dead, monkeypatch):
    ingest, make_site = fleet
    site = await make_site()
    real = store.append_frames

    def picky(frames):
        if any(row[2] == 2 for row, _ in frames):
            raise ValueError("not this one")
        return real(frames)

    monkeypatch.setattr(store, "append_frames", picky)
    for sequence in (1, 2, 3):
        await site.delivery.send_telemetry("points", encode_columns(samples(sequence, clock)))
    await quiet(ingest)
    assert store.sequences("home-1", "points") == (2, 4)
    (letter,) = dead.letters()
    assert (letter.sequence, letter.reason) == (2, "cannot be stored: not this one")


async def test_a_gap_that_stays_is_asked_for_and_what_is_gone_is_counted_once(store, clock, messenger):
    ingest = Ingest(store, messenger, clock, "demo", limits=AT_ONCE)
    store.append([samples(sequence, clock) for sequence in (1, 4, 9)], {})
    store.append([samples(sequence, clock, "home-2") for sequence in (1, 3)], {})
    held = {2: 2, 5: 0}
    messenger.answer = lambda to, asked: TelemetryHeld(
        stream=asked.stream, first=asked.first, last=asked.last, held=held[asked.first]
    )

    async def round_of():
        messenger.requests.clear()
        await ingest.recall({"home-1"})
        while ingest._tasks:
            await asyncio.wait(ingest._tasks)
        return [(one.to.unit, one.message.first, one.message.last) for one in messenger.sent(TelemetryResend)]

    assert await round_of() == [], "a young gap closes by itself"
    assert sorted(await round_of()) == [("home-1", 2, 3), ("home-1", 5, 8)], "home-2 is not there to be asked"
    assert ingest.counts["batches_lost"] == 4
    assert await round_of() == [("home-1", 2, 3)], "what is gone is not asked for again"
    store.append([samples(2, clock), samples(3, clock)], {})
    assert await round_of() == []
    assert ingest.counts["batches_lost"] == 4


async def test_dead_letters_that_cannot_be_kept_for_a_while_do_not_make_new_batches_old(
    fleet, clock, dead, monkeypatch
):
    monkeypatch.setattr("wattmesh_cloud.ingest._STORE_PAUSE_S", 0.0)
    ingest, make_site = fleet
    site = await make_site()
    got, real, failures = [], dead.keep, iter([UnavailableError("disk full")])
    ingest.on_columns(got.append)

    def failing(letters):
        for error in failures:
            raise error
        return real(letters)

    monkeypatch.setattr(dead, "keep", failing)
    await site.delivery.send_telemetry("points", b"garbage")
    await site.delivery.send_telemetry("points", encode_columns(samples(1, clock)))
    await quiet(ingest)
    assert [batch.sequence for batch in got] == [1]
    assert site.acknowledged == [("points", 1)]
    assert dead.counts() == {"home-1": 1}
