"""Answers of one turn of the loop are one commit: none is said before it, and a disk that does not take it lets none be said."""

import asyncio
import sqlite3

import pytest
from wattmesh_a2a.dedupe import SqliteDedupe
from wattmesh_a2a.delivery import ACKNOWLEDGED
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.messages import CommitmentQuery

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "market-supervisor")
NS = 1_000_000_000


def on_disk(path):
    """What another process sees, which is what a killed one leaves."""
    with sqlite3.connect(path) as other:
        return [row[0] for row in other.execute("SELECT key FROM outcomes WHERE answer IS NOT NULL ORDER BY key")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.sqlite"


@pytest.fixture
def store(path):
    made = SqliteDedupe(path)
    yield made
    made.close()


async def test_a_turn_is_one_commit(store, path):
    for number in range(5):
        store.put(f"k{number}", b"a", 9)
    assert store.get("k3") == b"a"
    assert on_disk(path) == []
    await asyncio.gather(*(store.settled() for _ in range(5)))
    assert on_disk(path) == [f"k{number}" for number in range(5)]
    await store.settled()  # nothing is open: at once


async def test_alone_it_is_committed_without_waiting(store, path):
    store.put("k", b"a", 9)
    waiting = asyncio.ensure_future(store.settled(at_once=True))
    await asyncio.sleep(0)
    assert on_disk(path) == ["k"]
    await waiting


async def test_a_transaction_ends_the_group_before_it(store, path):
    store.put("before", b"a", 9)

    def undone():
        with store.transaction():
            store.put("inside", b"a", 9)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        undone()
    assert on_disk(path) == ["before"]
    await store.settled()
    with store.transaction():
        store.put("inside", b"a", 9)
    assert on_disk(path) == ["before", "inside"]


def test_outside_a_loop_each_is_committed_at_once(store, path):
    store.put("k", b"a", 9)
    store.begin("b", 9)
    assert on_disk(path) == ["k"]
    assert store.begun("b")


class FullDisk:
    """A connection whose commits fail while the disk is full."""

    def __init__(self, inner):
        self.inner, self.full = inner, False

    def execute(self, statement, *values):
        if self.full and statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self.inner.execute(statement, *values)

    def __getattr__(self, name):
        return getattr(self.inner, name)


async def test_what_the_disk_did_not_take_is_not_answered_and_asked_again(ends, store, path, caplog):
    store._db = FullDisk(store._db)
    world, effects = ends(), []

    async def handle(envelope):
        effects.append(envelope.id)
        if len(effects) == 2:
            store._db.full = False
        return ACKNOWLEDGED

    await world.join(SITE, store=store, prepare=lambda one: one.on_request(CommitmentQuery, handle))
    cloud, _ = await world.join(CLOUD)
    query = CommitmentQuery(participant_id="p", from_ns=1)
    expires = world.clock.utc_ns() + 60 * NS
    store._db.full = True
    with pytest.raises(UnavailableError):
        await cloud.request(SITE, query, expires_ns=expires, timeout_s=0)
    assert await cloud.request(SITE, query, expires_ns=expires) == ACKNOWLEDGED
    assert len(on_disk(path)) == 1
    assert "handling a message failed" in caplog.text
