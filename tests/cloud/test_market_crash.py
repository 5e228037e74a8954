"""kill -9 at any moment, a file cut at any byte: what was acknowledged is there, once, and the state is that of no crash."""

import contextlib
import json
import os
import random
import signal

import pytest
from market_inputs import random_inputs
from wattmesh_a2a.codec import message_to_json
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.messages import OrderBatch
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.market.replica import Replica, Standby, read_snapshot, recovered, write_snapshot

POINTS = 500


def entries_of(seed, count):
    """Inputs as they stand in a journal."""
    now = 0
    for method, arguments, options in random_inputs(seed, count):
        match method:
            case "submit":
                who, slot, orders, now = arguments
                batch = OrderBatch(participant_id=who, area_id="area-1", slot_start_ns=slot, orders=tuple(orders))
                yield {"what": "orders", "now": now, "batch": message_to_json(batch)}
            case "clear_due":
                yield {"what": "time", "now": now}
            case "settle":
                slot, who, metered = arguments
                yield {"what": "settle", "slot": slot, "participant": who, "metered": metered, **options}
            case "pay_flexibility":
                event, who, units = arguments
                yield {"what": "flexibility", "event": event, "participant": who, "units": units}
            case "halt":
                yield {"what": "halt", "reason": "test"}
            case "resume":
                yield {"what": "resume"}


@pytest.fixture(scope="module")
def story():
    """Sixty entries, and the hash of the market after each of them."""
    from wattmesh_cloud.market.config import MarketConfig

    people = [
        {"id": name, "import_limit_w": 8000, "export_limit_w": 4000, "credit_limit": 100.0}
        for name in ("ann", "bob", "cem")
    ]
    tariff = {"feed_in_price": 0.05, "default_price": 0.30}
    config = MarketConfig.model_validate(
        {"area": "area-1", "mechanism": "continuous", "tariff": tariff, "participants": people}
    )
    entries = list(entries_of(7, 60))
    replica = Replica(config)
    hashes = [replica.state_hash()]
    for entry in entries:
        replica.apply(entry)
        hashes.append(replica.state_hash())
    assert replica.engine.trades
    return config, entries, hashes


def work(config, entries, folder, told, seed):
    """The market's process: group after group durable, applied, acknowledged; a snapshot now and then."""
    rng = random.Random(seed)
    journal = Journal(folder / "j")
    replica = Replica(config)
    at = 0
    while at < len(entries):
        size = rng.randrange(1, 6)
        group = entries[at : at + size]
        journal._commit([json.dumps(entry).encode() for entry in group])
        for entry in group:
            replica.apply(entry)
        at += len(group)
        os.write(told, bytes([at]))
        if rng.random() < 0.2:
            write_snapshot(folder / "s", replica.dump(), journal.chain)


def killed_somewhere(config, entries, folder, seed):
    """Let a process do the work, kill it somewhere; how many entries it had acknowledged."""
    rng = random.Random(seed)
    ears, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ears)
            work(config, entries, folder, told, seed)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(told)
    acknowledged, wanted = 0, rng.randrange(0, len(entries))
    while acknowledged < wanted:
        news = os.read(ears, 1)
        if not news:
            break
        acknowledged = news[0]
    for _ in range(rng.randrange(0, 20_000)):  # anywhere inside the next group
        pass
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while news := os.read(ears, 100):
        acknowledged = news[-1]
    os.close(ears)
    return acknowledged


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork beside xdist's thread
def test_killed_at_five_hundred_random_moments(story, tmp_path):
    config, entries, hashes = story
    ends = set()
    for seed in range(POINTS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        acknowledged = killed_somewhere(config, entries, folder, seed)
        journal = Journal(folder / "j")
        replica = recovered(config, journal, folder / "s")
        assert acknowledged <= journal.count, "an acknowledged entry is lost"
        assert list(journal.entries()) == entries[: journal.count]
        assert replica.state_hash() == hashes[journal.count], f"seed {seed}"
        journal.close()
        ends.add(journal.count)
    assert len(ends) > 20, "the crashes have to happen in many places to say anything"


def test_cut_at_every_byte(story, tmp_path):
    config, entries, hashes = story
    entries = entries[:12]
    path = tmp_path / "j"
    journal, ends = Journal(path), []
    for index in range(0, 12, 3):
        journal._commit([json.dumps(entry).encode() for entry in entries[index : index + 3]])
        ends.append(path.stat().st_size)
    journal.close()
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        journal = Journal(path)
        whole = sum(end <= cut for end in ends)
        assert journal.count == 3 * whole
        assert journal.torn == cut - (ends[whole - 1] if whole else 0)
        if cut % 50 == 0:
            assert recovered(config, journal, tmp_path / "none").state_hash() == hashes[3 * whole]
        journal.close()


def test_a_snapshot_is_used_only_when_it_is_whole_and_belongs_to_the_journal(story, tmp_path, caplog):
    config, entries, hashes = story
    journal, replica = Journal(tmp_path / "j"), Replica(config)
    for entry in entries[:30]:
        journal.append_now(entry)
        replica.apply(entry)
    path = tmp_path / "s"
    write_snapshot(path, replica.dump(), journal.chain)
    for entry in entries[30:]:
        journal.append_now(entry)
    assert read_snapshot(path)["count"] == 30
    assert recovered(config, journal, path).state_hash() == hashes[-1]
    assert not caplog.records
    content = path.read_bytes()
    for bad in (content[:-1], content[:70] + b"x" + content[71:], b"", b"{}"):
        path.write_bytes(bad)
        assert recovered(config, journal, path).state_hash() == hashes[-1]
        assert "damaged snapshot" in caplog.text
        caplog.clear()
    write_snapshot(path, {**replica.dump(), "count": 29}, journal.chain)
    assert recovered(config, journal, path).state_hash() == hashes[-1]
    assert "does not belong" in caplog.text
    journal.close()


def test_a_standby_follows_and_takes_over_when_the_writer_is_gone(story, tmp_path):
    config, entries, hashes = story
    standby = Standby(config, tmp_path / "j")
    assert standby.catch_up() == 0
    journal = Journal(tmp_path / "j")
    for number, entry in enumerate(entries[:40], 1):
        journal.append_now(entry)
        if number % 7 == 0:
            assert standby.catch_up() == 7
            assert standby.replica.state_hash() == hashes[number]
    whole = (tmp_path / "j").read_bytes()
    with (tmp_path / "j").open("ab") as file:
        file.write(whole[:50])  # a block under way is not read
    assert standby.catch_up() == 5
    assert standby.replica.state_hash() == hashes[40]
    with pytest.raises(ConfigurationError, match="another process writes it"):
        Journal(tmp_path / "j")
    journal.close()
    successor = Journal(tmp_path / "j")
    assert (successor.torn, successor.count) == (50, 40)
    for entry in entries[40:]:
        successor.append_now(entry)
    assert standby.catch_up() == 20
    assert standby.replica.state_hash() == hashes[-1]
    successor.close()


def test_blocks_that_are_whole_but_not_the_next_ones_are_damage(tmp_path):
    path = tmp_path / "j"
    journal, ends = Journal(path), [0]
    for number in range(3):
        journal.append_now({"what": "halt", "reason": str(number)})
        ends.append(path.stat().st_size)
    journal.close()
    content = path.read_bytes()
    first, second, third = (content[ends[i] : ends[i + 1]] for i in range(3))
    for wrong in (first + third, first + first, second + third, first + second + second):
        path.write_bytes(wrong)
        with pytest.raises(ConfigurationError, match="does not follow the one before"):
            Journal(path)
    path.write_bytes(b"an old file of another kind")
    with pytest.raises(ConfigurationError, match="no journal of a market"):
        Journal(path)
    assert path.read_bytes() == b"an old file of another kind"
