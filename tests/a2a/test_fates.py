"""What happens to a message: each step of ``wattmesh_a2a.fates``, seen from outside."""

import asyncio
import itertools
import json
import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.deadletters import DeadLetters
from wattmesh_a2a.dedupe import MemoryDedupe, SqliteDedupe
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address, Envelope, TaskState
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError
from wattmesh_a2a.events import Arrival, EventTracks
from wattmesh_a2a.fates import CLOCK_SKEW_NS, MAX_VALIDITY_NS
from wattmesh_a2a.lanes import Lanes, Priority, TokenBucket
from wattmesh_a2a.messages import (
    MESSAGE_TYPES,
    Acknowledged,
    CommitmentQuery,
    MarketRules,
    Refused,
    Revoke,
    StatsQuery,
    Strategy,
)
from wattmesh_a2a.outgoing import MemoryOutgoing, SqliteOutgoing
from wattmesh_a2a.parts import Assembler, split
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.stats import Latencies, Stats
from wattmesh_a2a.transports.base import AWS_IOT_CORE, GREENGRASS_LITE, TransportLimits
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "producer")
RING = KeyRing({"home-1": b"k" * 32})
RULES = MarketRules(
    area_id="a", slot_s=900, gate_open_s=9, gate_close_s=1, currency="EUR", feed_in_ticks=1, halted=False
)


def strategy(text="r"):
    return Strategy(
        site_id="home-1", expires_ns=9 * 10**18, reserve_soc_percent=5, peak_limit_w=None, trade=True, rationale=text
    )


async def turns(count=60):
    for _ in range(count):
        await asyncio.sleep(0)


class Wire:
    """A site that takes strategies, and a hand that publishes what it likes and sees the answers."""

    def __init__(self, world, site, transport, hand, answers, effects):
        self.world, self.site, self.transport, self.hand = world, site, transport, hand
        self.answers, self.effects = answers, effects

    def envelope(self, **changes):
        now = self.world.clock.utc_ns()
        fields = {
            "id": f"id-{random.getrandbits(64):x}", "source": CLOUD, "destination": SITE, "type": "wattmesh.strategy.v1",
            "time_ns": now, "session": "s", "sequence": 1, "expires_ns": now + 60 * NS_PER_S, "data": strategy(),
        }  # fmt: skip
        return Envelope(**{**fields, **changes})

    async def send(self, envelope, *, signed=True, topic=None, reply=None, mangle=None):
        fields = codec.to_fields(envelope)
        signature = RING.sign(CLOUD, SITE, codec.canonical(fields)) if signed else None
        if mangle:
            mangle(fields)
        before = len(self.answers)
        await self.hand.publish(
            topic or f"a2a/v1/request/{SITE}",
            codec.encode_fields(fields, signature),
            response_topic=reply or f"a2a/v1/reply/{CLOUD}/x",
            correlation_data=b"c",
        )
        await turns()
        return [codec.from_fields(codec.decode_fields(one.payload)) for one in self.answers[before:]]


@pytest.fixture
async def wire(ends):
    world, answers, effects = ends(), [], []

    async def handle(envelope):
        effects.append(envelope)
        return Acknowledged(detail=envelope.data.rationale)

    site, transport = await world.join(SITE, keys=RING, prepare=lambda d: d.on_request(Strategy, handle))
    hand = MemoryTransport(world.broker)
    await hand.subscribe("a2a/v1/reply/#", answers.append)
    await hand.start()
    return Wire(world, site, transport, hand, answers, effects)


def error(answers):
    assert len(answers) == 1
    assert isinstance(answers[0].data, Refused)
    assert answers[0].state is TaskState.REJECTED
    return answers[0].data.error


async def test_what_is_right_takes_effect_once_and_its_repetition_gets_the_same_answer(wire):
    one = wire.envelope()
    first = await wire.send(one)
    again = await wire.send(one)
    assert first[0].data == Acknowledged(detail="r")
    assert first[0].state is TaskState.COMPLETED
    assert first == again
    assert len(wire.effects) == 1
    assert wire.site.counters()["duplicate"] == 1


async def test_a_repetition_without_its_signature_learns_nothing(wire):
    one = wire.envelope()
    await wire.send(one)
    assert error(await wire.send(one, signed=False)) == "unsigned"


async def test_a_signed_message_for_another_or_changed_on_the_way_is_refused(wire):
    assert error(await wire.send(wire.envelope(destination=Address("o", "home-2", "gateway")))) == "foreign"
    assert (
        error(await wire.send(wire.envelope(), mangle=lambda f: f["data"].update(reserve_soc_percent=99))) == "unsigned"
    )
    assert (
        error(await wire.send(wire.envelope(), mangle=lambda f: f.update(expiresns=f["expiresns"] + 1))) == "unsigned"
    )
    assert wire.effects == []


async def test_another_organisation_gets_no_effect_and_no_answer(wire):
    stranger = Address("p", "cloud", "producer")
    answers = await wire.send(wire.envelope(source=stranger), reply=f"a2a/v1/reply/{stranger}/x")
    assert answers == []
    assert await wire.send(wire.envelope(), reply="a2a/v1/reply/o/home-2/gateway/x") == []
    assert wire.site.counters()["foreign"] == 2
    assert wire.effects == []


async def test_validity_is_bounded_and_the_skew_stated(wire):
    now = wire.world.clock.utc_ns()
    assert error(await wire.send(wire.envelope(expires_ns=now + MAX_VALIDITY_NS + 2 * CLOCK_SKEW_NS))) == "unreasonable"
    assert error(await wire.send(wire.envelope(time_ns=0, expires_ns=now + NS_PER_S))) == "unreasonable"
    assert error(await wire.send(wire.envelope(time_ns=now + CLOCK_SKEW_NS + 1))) == "unreasonable"
    assert error(await wire.send(wire.envelope(expires_ns=now))) == "expired"
    assert wire.effects == []
    assert (await wire.send(wire.envelope(time_ns=now + CLOCK_SKEW_NS)))[0].data == Acknowledged(detail="r")


async def test_a_clock_set_back_does_not_revive_what_expired(wire):
    one = wire.envelope(expires_ns=wire.world.clock.utc_ns())
    assert error(await wire.send(one)) == "expired"
    wire.world.clock.utc_offset_ns -= 100 * NS_PER_S
    assert error(await wire.send(one)) == "expired"
    assert wire.effects == []


async def test_unknown_types_versions_and_broken_data_are_answered(wire):
    for kind in ("wattmesh.strategy.v2", "wattmesh.novelty.v1"):
        assert error(await wire.send(wire.envelope(), mangle=lambda f, kind=kind: f.update(type=kind))) == "unknown"
    unsigned = wire.envelope(
        type="wattmesh.market.commitment.query.v1", data=CommitmentQuery(participant_id="p", from_ns=1)
    )
    assert error(await wire.send(unsigned)) == "unknown"
    wire.site.on_request(CommitmentQuery, None)
    assert error(await wire.send(unsigned, mangle=lambda f: f["data"].update(from_ns="soon"))) == "invalid"


async def test_too_early_is_held_and_told_and_takes_effect_in_time(wire):
    clock = wire.world.clock
    one = wire.envelope(not_before_ns=clock.utc_ns() + 20 * NS_PER_S)
    answers = await wire.send(one)
    assert [answer.state for answer in answers] == [TaskState.SUBMITTED]
    assert [answer.state for answer in await wire.send(one)] == [TaskState.SUBMITTED]
    await clock.advance(19.9)
    assert wire.effects == []
    before = len(wire.answers)
    await clock.advance(0.2)
    await turns()
    assert len(wire.effects) == 1
    (last,) = [codec.from_fields(codec.decode_fields(answer.payload)) for answer in wire.answers[before:]]
    assert last.state is TaskState.COMPLETED


async def test_what_is_held_can_be_revoked_and_so_can_what_has_not_come_yet(wire):
    clock = wire.world.clock
    held = wire.envelope(not_before_ns=clock.utc_ns() + 20 * NS_PER_S)
    await wire.send(held)

    def revoke(request):
        return wire.envelope(type="wattmesh.revoke.v1", data=Revoke(request_id=request.id, reason="no more"))

    answers = await wire.send(revoke(held))
    assert {type(answer.data) for answer in answers} == {Acknowledged, Refused}
    assert next(answer for answer in answers if isinstance(answer.data, Refused)).state is TaskState.CANCELED
    later = wire.envelope()
    assert (await wire.send(revoke(later)))[0].data == Acknowledged()
    answer = (await wire.send(later))[0]
    assert (answer.state, answer.data.error) == (TaskState.CANCELED, "revoked")
    done = wire.envelope()
    await wire.send(done)
    assert (await wire.send(revoke(done)))[0].data.error == "too_late"
    assert error(await wire.send(revoke(done), signed=False)) == "unsigned"
    await clock.advance(30)
    assert len(wire.effects) == 1


async def test_only_the_newest_counts_where_that_was_asked_for(ends):
    world, seen = ends(), []

    async def handle(envelope):
        seen.append(envelope.data.from_ns)
        return Acknowledged()

    store = MemoryDedupe()
    await world.join(CLOUD, store=store, prepare=lambda d: d.on_request(CommitmentQuery, handle, latest_only=True))
    site, transport = await world.join(SITE)
    lost = []
    plain = transport.publish

    async def lose_first(topic, payload, **options):
        if b'"from_ns":1}' in payload and not lost:
            lost.append(payload)
            return
        await plain(topic, payload, **options)

    transport.publish = lose_first
    expires = world.clock.utc_ns() + 10**12
    old = asyncio.create_task(site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=expires))
    await asyncio.sleep(0)
    assert (
        await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=2), expires_ns=expires) == Acknowledged()
    )
    assert (await old).error == "superseded"
    assert seen == [2]


async def test_a_peer_that_asks_too_fast_is_told_and_its_sender_waits(ends):
    world = ends()

    async def handle(_):
        return Acknowledged()

    transport = MemoryTransport(world.broker)
    cloud = Delivery(transport, CLOUD, world.clock, peer_requests_per_s=5.0)
    cloud.on_request(CommitmentQuery, handle, idempotent=True)
    await cloud.start()
    site, _ = await world.join(SITE)
    expires = world.clock.utc_ns() + 10**12
    asked = [
        asyncio.create_task(site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=n), expires_ns=expires))
        for n in range(15)
    ]
    await turns()
    assert cloud.counters()["busy"] >= 5
    assert sum(one.done() for one in asked) == 10
    assert site.counters()["told_busy"] >= 5
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await cloud.stop()


async def test_events_come_once_gaps_are_told_and_overlapping_filters_do_no_harm(ends):
    world, seen, newest, gaps = ends(repeat=1.0), [], [], []

    def listen(delivery):
        delivery.on_event(MarketRules, seen.append)
        delivery.on_event(MarketRules, newest.append, source="o/cloud/+", latest_only=True, on_gap=gaps.append)

    _, transport = await world.join(SITE, prepare=listen)
    assert [name for name, _ in transport._handlers if "/event/" in name] == ["a2a/v1/event/o/+/+"]
    cloud, out = await world.join(CLOUD)
    await cloud.emit(RULES)
    await turns(5)
    out.partitioned = True
    await cloud.emit(RULES)
    out.heal()
    await cloud.emit(RULES)
    await turns(5)
    assert [one.sequence for one in seen] == [one.sequence for one in newest] == [1, 3]
    assert gaps == [CLOUD]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20)), max_size=40))
def test_no_event_is_taken_twice_whatever_the_order(arrivals):
    tracks, taken = EventTracks(), []
    for session, sequence in arrivals:
        if tracks.arrived(SITE, session, sequence) is not Arrival.REPEATED:
            taken.append((session, sequence))
    sessions = [session for session, _ in taken]
    unbroken = sum(one != other for one, other in itertools.pairwise(sessions)) <= 1
    assert not unbroken or len(taken) == len(set(taken))


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=5000).map(lambda some: b"{" + some), st.integers(40, 600), st.randoms())
def test_parts_make_the_message_in_any_order_and_nothing_else_does(payload, most, chance):
    parts = split(payload, most)
    assert all(len(part) <= most for part in parts)
    chance.shuffle(parts)
    assembler = Assembler()
    found = [whole for part in [*parts[: len(parts) // 2], *parts] if (whole := assembler.take("t", part)) is not None]
    assert found[0] == payload
    if len(parts) > 1:
        wrong = bytearray(parts[0])
        wrong[-1] ^= 1
        with pytest.raises(InvalidMessageError):
            _ = [assembler.take("u", part) for part in [bytes(wrong), *parts[1:]]]


def test_parts_are_bounded():
    assembler = Assembler()
    for number in range(1000):
        assembler.take(f"topic-{number}", split(bytes(5000), 1000)[0])
    assert len(assembler._open) <= 32
    assert assembler.given_up == 1000 - 32
    with pytest.raises(InvalidMessageError):
        split(bytes(3_000_000), 100_000)


async def test_a_large_message_travels_in_parts(ends):
    world = ends(loss=0.2, repeat=0.2, reorder=0.2, seed=5)

    async def handle(envelope):
        return Acknowledged(detail=envelope.data.participant_id[:3] + "y" * 150_000)

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, _ = await world.join(SITE)
    query = CommitmentQuery(participant_id="x" * 250_000, from_ns=1)
    answer = await site.request(CLOUD, query, expires_ns=world.clock.utc_ns() + 10**12)
    assert answer.detail == "xxx" + "y" * 150_000


async def test_a_pool_is_answered_by_one_of_its_members(ends):
    world, took = ends(), []

    def member(name):
        async def handle(envelope):
            took.append(name)
            return Acknowledged(detail=name)

        return lambda delivery: delivery.serve_pool("workers", CommitmentQuery, handle)

    for name in ("a", "b", "c"):
        await world.join(Address("o", "cloud", name), prepare=member(name))
    site, _ = await world.join(SITE)
    pool = Address("o", "cloud", "workers")
    for number in range(30):
        await site.request(
            pool,
            CommitmentQuery(participant_id="p", from_ns=number),
            expires_ns=world.clock.utc_ns() + 10**12,
            pool=True,
        )
    assert len(took) == 30
    assert set(took) == {"a", "b", "c"}


class SlowTransport(MemoryTransport):
    """Remembers what was handed over and when."""

    def __init__(self, limits):
        super().__init__(MemoryBroker(), limits=limits)
        self.sent, self.unacknowledged = [], 0

    @property
    def in_flight(self):
        return self.unacknowledged

    async def publish(self, topic, payload, **options):
        self.sent.append((asyncio.get_running_loop().time(), topic))
        self.unacknowledged += 1


def in_virtual_time(work):
    from virtual_time import VirtualLoop

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


@pytest.mark.parametrize("limits", [AWS_IOT_CORE, GREENGRASS_LITE], ids=["aws", "lite"])
def test_rates_are_kept_and_commands_go_first(limits):
    async def work():
        transport = SlowTransport(TransportLimits(max_publishes_per_s=limits.max_publishes_per_s, max_in_flight=10**6))
        await transport.start()
        lanes = Lanes(transport)
        sends = [asyncio.create_task(lanes.publish(Priority.BACKLOG, f"b{n}", b"x")) for n in range(500)]
        await asyncio.sleep(1)
        sends += [asyncio.create_task(lanes.publish(Priority.TELEMETRY, "t", b"x"))]
        sends += [asyncio.create_task(lanes.publish(Priority.COMMAND, "c", b"x"))]
        await asyncio.gather(*sends)
        return transport.sent

    sent = in_virtual_time(work)
    rate = limits.max_publishes_per_s
    times = [moment for moment, _ in sent]
    for at, moment in enumerate(times):
        assert sum(moment <= other < moment + 1 for other in times[at:]) <= 1.5 * rate + 1
    order = [topic for _, topic in sent]
    assert order.index("c") < order.index("t") < order.index("b499")
    assert order.index("t") - order.index("c") == 1
    assert [one for one in order if one.startswith("b")] == [f"b{n}" for n in range(500)]


def test_the_window_of_unacknowledged_messages_is_kept():
    async def work():
        transport = SlowTransport(GREENGRASS_LITE)
        await transport.start()
        lanes = Lanes(transport)
        sends = [asyncio.create_task(lanes.publish(Priority.COMMAND, f"{n}", b"x")) for n in range(25)]
        most = []
        for _ in range(200):
            await asyncio.sleep(0.1)
            most.append(transport.unacknowledged)
            transport.unacknowledged = 0
            for callback in transport._callbacks:
                callback()
        await asyncio.gather(*sends)
        return max(most), len(transport.sent)

    assert in_virtual_time(work) == (10, 25)


def test_a_topic_that_a_transport_does_not_take_is_refused_before_it():
    async def work():
        transport = SlowTransport(TransportLimits())
        await transport.start()
        with pytest.raises(InvalidMessageError):
            await Lanes(transport).publish(Priority.COMMAND, "/".join("abcdefghi"), b"x")

    in_virtual_time(work)


def test_a_bucket_gives_no_more_than_its_rate():
    now = [0.0]
    bucket, taken = TokenBucket(10, 5, lambda: now[0]), 0
    for step in range(1000):
        now[0] = step / 100
        taken += bucket.try_take()
    assert 95 <= taken <= 105


async def test_dead_letters_are_kept_bounded_and_can_be_sent_again(ends, tmp_path):
    world = ends()
    dead = DeadLetters(tmp_path / "dead.sqlite", most=20)
    transport = MemoryTransport(world.broker)
    cloud = Delivery(transport, CLOUD, world.clock, dead=dead)
    await cloud.start()
    for number in range(150):
        await transport.publish(f"a2a/v1/request/{CLOUD}", b"garbage %d" % number, response_topic="x")
    await turns()
    kept = dead.all()
    assert len(kept) == 20
    assert kept[0].payload == b"garbage 149"
    assert kept[0].cause.startswith("invalid")
    for _ in range(1000):
        await transport.publish(f"a2a/v1/request/{CLOUD}", b"flood", response_topic="x")
    await turns()
    assert dead.not_kept > 900
    dead.replayed(kept[0].number)
    with pytest.raises(InvalidMessageError):
        dead.get(10**9)
    again = DeadLetters(tmp_path / "dead.sqlite", most=20)
    assert len(again.all()) == 20
    again.close()
    await cloud.stop()


async def test_a_request_that_nobody_answers_is_a_dead_letter(ends, tmp_path):
    world = ends()
    dead = DeadLetters(tmp_path / "dead.sqlite")
    site = Delivery(MemoryTransport(world.broker), SITE, world.clock, dead=dead)
    await site.start()
    with pytest.raises(Exception, match="expired"):
        await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=world.clock.utc_ns())
    (letter,) = dead.all()
    assert (letter.direction, letter.peer) == ("out", str(CLOUD))
    assert codec.from_fields(codec.decode_fields(letter.payload)).data.from_ns == 1
    await site.stop()


async def test_figures_are_told_to_who_asks(ends):
    world = ends()

    async def handle(_):
        return Acknowledged()

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, _ = await world.join(SITE)
    expires = world.clock.utc_ns() + 10**12
    for number in range(5):
        await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=number), expires_ns=expires)
    report = await site.request(CLOUD, StatsQuery(), expires_ns=expires)
    (row,) = [one for one in report.rows if one.event == "handled" and "commitment" in one.type]
    assert (row.count, row.peer) == (5, str(SITE))
    assert row.p50_ms <= row.p99_ms


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200))
def test_a_quantile_is_right_within_a_step(values):
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    exact = sorted(values)[-(-len(values) // 2) - 1] * 1000
    assert exact / 1.2 <= latencies.quantile_ms(0.5) <= exact * 1.2


def test_figures_are_bounded():
    stats = Stats()
    for number in range(10_000):
        stats.count("invalid", "t", f"peer-{number}")
    assert stats.totals["invalid"] == 10_000
    assert len(stats._rows) <= 2001
    assert (
        len(
            codec.record_line(
                codec.message_from_json("wattmesh.stats.report.v1", {"session": "s", "rows": stats.rows()})
            )
        )
        < 100_000
    )


async def test_traces_go_through_a_handler_to_what_it_sends(ends):
    world, traces = ends(), []
    market = Address("o", "cloud", "market")

    async def leaf(envelope):
        traces.append(envelope.traceparent)
        return Acknowledged()

    await world.join(market, prepare=lambda d: d.on_request(CommitmentQuery, leaf))
    cloud, _ = await world.join(CLOUD)
    expires = world.clock.utc_ns() + 10**12

    async def forward(envelope):
        traces.append(envelope.traceparent)
        return await cloud.request(market, envelope.data, expires_ns=expires)

    cloud.on_request(CommitmentQuery, forward)
    site, _ = await world.join(SITE)
    await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=expires)
    await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=2), expires_ns=expires)
    ids = [one.split("-")[1] for one in traces]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert len(set(traces)) == 4


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_stores_keep_what_they_promise(tmp_path, kind):
    store = MemoryDedupe() if kind == "memory" else SqliteDedupe(tmp_path / "s.sqlite")
    store.begin("a", 5)
    assert store.begun("a")
    assert store.get("a") is None
    store.put("a", b"x", 5)
    assert not store.begun("a")

    def fail():
        with store.transaction():
            store.put("b", b"y", 9)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.get("b") is None
    with store.transaction():
        store.put("b", b"y", 9)
        store.set_latest("s", "x", 3, 4)
    store.forget_before(6)
    assert (store.get("a"), store.get("b"), store.latest("s")) == (None, b"y", ("x", 3, 4))


async def test_effect_and_answer_are_one_commit_in_sqlite(ends, tmp_path):
    world = ends()
    store = SqliteDedupe(tmp_path / "s.sqlite")
    store.connection.execute("CREATE TABLE effects (number INTEGER)")

    def handle(envelope, connection):
        connection.execute("INSERT INTO effects VALUES (?)", (envelope.data.from_ns,))
        if envelope.data.from_ns == 13:
            raise ZeroDivisionError
        return Acknowledged()

    await world.join(CLOUD, store=store, prepare=lambda d: d.on_request_in_transaction(CommitmentQuery, handle))
    site, _ = await world.join(SITE)
    expires = world.clock.utc_ns() + 10**12
    for number in (12, 13, 14):
        answer = await site.request(CLOUD, CommitmentQuery(participant_id="p", from_ns=number), expires_ns=expires)
        assert isinstance(answer, Refused) == (number == 13)
    assert store.connection.execute("SELECT number FROM effects").fetchall() == [(12,), (14,)]


async def test_a_durable_request_needs_a_store_and_survives_a_restart(ends, tmp_path):
    world, told = ends(), []
    site, _ = await world.join(SITE)
    with pytest.raises(UnavailableError, match="no store"):
        await site.request_durably(CLOUD, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=1)
    outgoing = SqliteOutgoing(tmp_path / "out.sqlite")
    two = Address("o", "home-2", "gateway")
    first = Delivery(MemoryTransport(world.broker), two, world.clock, outgoing=outgoing)
    await first.start()
    name = await first.request_durably(
        CLOUD, CommitmentQuery(participant_id="p", from_ns=1), expires_ns=world.clock.utc_ns() + 10**10
    )
    await turns()
    await first.stop()
    assert [one.id for one in outgoing.pending()] == [name]

    async def handle(_):
        return Acknowledged(detail="done")

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    second = Delivery(MemoryTransport(world.broker), two, world.clock, outgoing=outgoing)
    second.on_outcome(lambda *outcome: told.append(outcome))
    await second.start()
    await turns()
    assert told == [(name, Acknowledged(detail="done"))]
    assert outgoing.pending() == []
    await second.stop()


FUZZED = 60_000
PIECES = [
    b"\xff",
    b"{}",
    b"[]",
    b'"',
    b"null",
    b"1e999",
    b"NaN",
    b"\\ud800",
    b"WMP1",
    b"WM1C",
    b"\0" * 40,
    b"\xed\xa0\x80",
]


def damaged(chance, good):
    """Bytes of every kind of wrongness, most of them nearly right."""
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randrange(0, 120))
    payload = bytearray(chance.choice(good))
    if kind == 1:
        for _ in range(chance.randrange(1, 5)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
    elif kind == 2:
        del payload[chance.randrange(len(payload)) :]
    elif kind == 3:
        at = chance.randrange(len(payload))
        payload[at:at] = chance.choice(PIECES)
    elif kind == 4:
        fields = json.loads(bytes(payload))
        place = fields if chance.random() < 0.7 else fields["data"]
        if place:
            name = chance.choice(list(place))
            place[name] = chance.choice(
                [None, True, -1, 0, 10**18, 2**63, 1.5, "", "x", "a/b/c", [], {}, [[]], "x" * 300]
            )
        payload = bytearray(json.dumps(fields).encode())
    else:
        return b"WMP1" + chance.randbytes(chance.randrange(0, 60)) + bytes(payload)
    return bytes(payload)


@pytest.mark.parametrize("seed", range(4))
async def test_fuzzed_bytes_on_every_topic_are_counted_and_have_no_effect(ends, seed):
    from wattmesh_a2a import vocabulary

    logging.getLogger("wattmesh_a2a").setLevel(logging.ERROR)
    world, chance, effects, errors = ends(), random.Random(seed), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    transport = MemoryTransport(world.broker)
    site = Delivery(transport, SITE, world.clock, keys=RING, outgoing=MemoryOutgoing())
    world.made.append((site, transport))

    async def handle(envelope):
        effects.append(envelope)
        return Acknowledged()

    for kind in MESSAGE_TYPES.values():
        site.on_request(kind, handle)
        site.on_event(kind, lambda envelope: None)
    site.on_presence(lambda *_: None)
    site.on_telemetry(lambda *_: None)
    await site.start()
    good = [json.dumps(vocabulary.example(one)).encode() for one in vocabulary.EXAMPLES]
    _, loud = await world.join(CLOUD)
    topics = [
        f"a2a/v1/request/{SITE}", f"a2a/v1/reply/{SITE}/x", f"a2a/v1/event/{CLOUD}", "a2a/v1/event/o/x/y",
        f"a2a/v1/discovery/{CLOUD}", "a2a/v1/discovery/o/+/x", "wattmesh/v1/telemetry/o/home-1/points",
    ]  # fmt: skip
    for number in range(FUZZED // 4):
        await loud.publish(
            topics[number % len(topics)],
            damaged(chance, good),
            response_topic=chance.choice([None, f"a2a/v1/reply/{CLOUD}/x", "a2a/v1/reply/#", "", "x" * 300]),
            correlation_data=chance.choice([None, b"", b"\xff"]),
        )
        if number % 50 == 0:
            await turns(3)
    await turns()
    assert errors == []
    assert site.counters().get("failed", 0) == 0
    assert sum(site.counters().get(one, 0) for one in ("invalid", "foreign", "unsigned")) > 0.5 * FUZZED / 4
    signed = (Strategy, Revoke)
    assert not [one for one in effects if isinstance(one.data, signed)]
    one = Wire(world, site, transport, loud, [], effects)
    await one.send(one.envelope())
    assert isinstance(effects[-1].data, Strategy)  # and what is right still gets through
