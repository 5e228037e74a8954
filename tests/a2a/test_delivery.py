"""At least once on the wire, once in effect, in time or not at all."""

import asyncio
import json

import pytest
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ExpiredError, InvalidMessageError, UnavailableError
from wattmesh_a2a.messages import (
    Acknowledged,
    Commitment,
    CommitmentList,
    CommitmentQuery,
    MarketRules,
    Refused,
    Strategy,
)
from wattmesh_a2a.signing import KeyRing, generate_key, read_key

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "market-supervisor")
KEY, OTHER = b"k" * 32, b"j" * 32


def query(number):
    return CommitmentQuery(participant_id="home-1", from_ns=number)


def strategy():
    return Strategy(
        site_id="home-1", expires_ns=9 * 10**18, reserve_soc_percent=5.0, peak_limit_w=None, trade=True, rationale="r"
    )


@pytest.mark.parametrize("seed", range(120))
async def test_over_a_bad_network_each_request_takes_effect_once_and_its_sender_learns_it(ends, seed):
    world = ends(seed=seed, loss=0.25, repeat=0.25, reorder=0.2)
    effects = []

    async def handle(envelope):
        effects.append(envelope.data.from_ns)
        await asyncio.sleep(0)
        return CommitmentList(commitments=())

    await world.join(CLOUD, keys=KeyRing({"home-1": KEY}), prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, _ = await world.join(SITE, keys=KeyRing({"home-1": KEY}))
    answers = await asyncio.gather(
        *(site.request(CLOUD, query(n), expires_ns=world.clock.utc_ns() + 10**12) for n in range(8))
    )
    assert answers == [CommitmentList(commitments=())] * 8
    assert sorted(effects) == list(range(8))


async def test_what_expired_has_no_effect_and_its_sender_is_told(ends):
    world, effects = ends(), []

    async def handle(envelope):
        effects.append(envelope)
        return Acknowledged()

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, transport = await world.join(SITE)
    with pytest.raises(ExpiredError):
        await site.request(CLOUD, query(1), expires_ns=world.clock.utc_ns())
    transport.partitioned = True
    waiting = asyncio.create_task(site.request(CLOUD, query(2), expires_ns=world.clock.utc_ns() + 10**9))
    await asyncio.sleep(0)
    world.clock.set_ns(2 * 10**9)
    with pytest.raises(ExpiredError):
        await waiting
    transport.heal()
    assert effects == []


async def test_a_request_outlives_a_partition(ends):
    world = ends()

    async def handle(_):
        return Acknowledged(detail="late")

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, transport = await world.join(SITE)
    transport.partitioned = True
    waiting = asyncio.create_task(site.request(CLOUD, query(1), expires_ns=world.clock.utc_ns() + 10**12))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not waiting.done()
    transport.heal()
    assert await waiting == Acknowledged(detail="late")


async def test_only_the_holder_of_the_key_moves_power(ends, ring):
    world, taken = ends(), []

    async def handle(envelope):
        taken.append(envelope)
        return Acknowledged()

    await world.join(SITE, keys=ring(home_1=KEY), prepare=lambda d: d.on_request(Strategy, handle))
    expires = world.clock.utc_ns() + 10**12
    for keys in (None, ring(home_1=OTHER), ring(home_2=KEY)):
        cloud, _ = await world.join(CLOUD, keys=keys)
        answer = await cloud.request(SITE, strategy(), expires_ns=expires)
        assert isinstance(answer, Refused)
        assert answer.error == "unsigned"
        await cloud.stop()
    assert taken == []
    cloud, _ = await world.join(CLOUD, keys=ring(home_1=KEY))
    assert await cloud.request(SITE, strategy(), expires_ns=expires) == Acknowledged()
    assert taken[0].signed


async def test_a_site_cannot_command_another_even_with_a_key(ends, ring):
    world = ends()

    async def handle(_):
        return Acknowledged()

    await world.join(SITE, keys=ring(home_1=KEY, home_2=OTHER), prepare=lambda d: d.on_request(Strategy, handle))
    neighbour, _ = await world.join(Address("o", "home-2", "gateway"), keys=ring(home_1=KEY, home_2=OTHER))
    answer = await neighbour.request(SITE, strategy(), expires_ns=world.clock.utc_ns() + 10**12)
    assert isinstance(answer, Refused)


async def test_garbage_on_every_topic_is_counted_and_said_once(ends, caplog):
    world = ends()

    def listen(delivery):
        delivery.on_event(MarketRules, lambda _: None)
        delivery.on_presence(lambda *_: None)
        delivery.on_telemetry(lambda *_: None)

    cloud, _ = await world.join(CLOUD, prepare=listen)
    _, loud = await world.join(SITE)
    topics = [f"a2a/v1/{kind}/{CLOUD}" for kind in ("request", "event", "discovery")] + [f"a2a/v1/reply/{CLOUD}/x"]
    for topic in topics:
        for payload in (b"\xff\x00", b"{}", b"[]", b'{"specversion":"1.0"}', b"x" * 200_000):
            for _ in range(20):
                await loud.publish(topic, payload, response_topic="a2a/v1/reply/o/home-1/gateway/s")
    for _ in range(50):
        await asyncio.sleep(0)
    assert cloud.counters()["invalid"] >= 300
    assert len([record for record in caplog.records if "dropped" in record.message]) < 12


async def test_an_event_on_somebody_elses_topic_is_dropped(ends):
    world, seen = ends(), []
    await world.join(CLOUD, prepare=lambda d: d.on_event(MarketRules, seen.append))
    site, transport = await world.join(SITE)
    rules = MarketRules(
        area_id="a", slot_s=900, gate_open_s=9, gate_close_s=1, currency="EUR", feed_in_ticks=1, halted=False
    )
    await site.emit(rules)
    await asyncio.sleep(0)
    assert len(seen) == 1
    payload = json.dumps({"specversion": "1.0"}).encode()
    await transport.publish("a2a/v1/event/o/cloud/market-supervisor", payload)
    await asyncio.sleep(0)
    assert len(seen) == 1


async def test_the_will_of_an_old_session_does_not_hide_a_new_birth(ends):
    world, seen = ends(), []
    await world.join(
        CLOUD, prepare=lambda d: d.on_presence(lambda who, card: seen.append((str(who), card is not None)))
    )
    first, old = await world.join(SITE)
    await first.announce({"x": 1})
    await asyncio.sleep(0)
    second, _ = await world.join(SITE)
    await second.announce({"x": 2})
    await asyncio.sleep(0)
    old.crash()  # its will comes after the birth
    for _ in range(10):
        await asyncio.sleep(0)
    assert seen[-1] == (str(SITE), True)
    retained = world.broker.retained_for(f"a2a/v1/discovery/{SITE}")
    assert json.loads(retained[0].payload)["status"] == "online"


async def test_a_stopped_messenger_lets_nobody_wait(ends):
    world = ends()
    site, _ = await world.join(SITE)
    waiting = asyncio.create_task(site.request(CLOUD, query(1), expires_ns=world.clock.utc_ns() + 10**12))
    await asyncio.sleep(0)
    await site.stop()
    with pytest.raises(UnavailableError):
        await waiting


def test_keys_are_files_of_their_owner_alone(tmp_path):
    path = tmp_path / "home-1.key"
    generate_key(path)
    assert len(read_key(path)) == 32
    with pytest.raises(FileExistsError):
        generate_key(path)
    path.chmod(0o644)
    with pytest.raises(Exception, match="chmod 600"):
        read_key(path)
    path.chmod(0o600)
    path.write_text("abcd")
    with pytest.raises(Exception, match="at least 32"):
        read_key(path)
    path.write_text("not hexadecimal, but secret")
    with pytest.raises(Exception, match="hexadecimal") as caught:
        read_key(path)
    assert "secret" not in str(caught.value)
    assert KeyRing.of_folder(tmp_path.parent) is not None


def test_addresses_are_checked():
    for wrong in ("a/b", "a/b/c/d", "a//c", "a/b c/d", "a/+/c", ""):
        with pytest.raises(InvalidMessageError):
            Address.parse(wrong)
    assert Commitment.__slots__  # the types stay slotted


async def test_a_mistake_in_a_handler_is_answered_once_and_its_effect_not_repeated(ends):
    world, effects = ends(repeat=0.5, seed=4), []

    async def handle(envelope):
        effects.append(envelope.data.from_ns)
        raise ZeroDivisionError

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, _ = await world.join(SITE)
    answer = await site.request(CLOUD, query(1), expires_ns=world.clock.utc_ns() + 10**12)
    assert isinstance(answer, Refused)
    assert answer.error == "internal"
    for _ in range(20):
        await asyncio.sleep(0)
    assert effects == [1]


async def test_an_unsigned_answer_that_binds_is_not_taken(ends, ring):
    world = ends()

    async def handle(_):
        return CommitmentList(commitments=())

    await world.join(CLOUD, prepare=lambda d: d.on_request(CommitmentQuery, handle))
    site, _ = await world.join(SITE, keys=ring(home_1=KEY))
    with pytest.raises(UnavailableError):
        await site.request(CLOUD, query(1), expires_ns=world.clock.utc_ns() + 10**12, timeout_s=0.05)
    assert site.counters()["unsigned"] > 0


@pytest.mark.parametrize("payload", [b'{"a":"\xed\xa0\x80"}', '{"specversion":"1.0"}'.encode("utf-16")])
async def test_bytes_that_are_no_utf8_are_counted_and_nothing_else(ends, payload, caplog):
    world = ends()
    cloud, _ = await world.join(CLOUD)
    _, loud = await world.join(SITE)
    for topic in ("a2a/v1/reply/o/home-1/#", "a2a/v1/reply/o/home-1/gateway/s"):
        await loud.publish(f"a2a/v1/request/{CLOUD}", payload, response_topic=topic)
    for _ in range(20):
        await asyncio.sleep(0)
    assert cloud.counters()["invalid"] == 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
