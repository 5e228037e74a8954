"""The journal: durable in order, a torn end is cut, damage in the middle is never guessed over."""

import asyncio
import errno
import os
import threading

import pytest
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_cloud.market.journal import Journal

ENTRIES = [{"what": "orders", "n": 1}, {"what": "clear", "slot": 900}, {"what": "halt", "reason": "müde"}]


@pytest.fixture
def written(tmp_path):
    """A closed journal of three entries, and where each ends."""
    path = tmp_path / "market.journal"
    journal, ends = Journal(path), []
    for entry in ENTRIES:
        journal.append_now(entry)
        ends.append(path.stat().st_size)
    journal.close()
    return path, ends


def reopened(path):
    journal = Journal(path)
    try:
        return list(journal.entries()), journal.torn
    finally:
        journal.close()


def test_what_was_written_is_read_again(written):
    path, _ = written
    assert reopened(path) == (ENTRIES, 0)


def test_a_file_cut_anywhere_in_its_last_two_entries_keeps_the_whole_ones(written):
    path, ends = written
    content = path.read_bytes()
    for cut in range(ends[0], ends[2]):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        entries, torn = reopened(path)
        assert entries == ENTRIES[:whole]
        assert torn == cut - ends[whole - 1]
        assert path.stat().st_size == ends[whole - 1], "the torn end is gone from the disk"


def test_after_a_cut_end_new_entries_follow_the_whole_ones(written):
    path, ends = written
    path.write_bytes(path.read_bytes()[: ends[2] - 1])
    journal = Journal(path)
    journal.append_now({"what": "resume"})
    journal.close()
    assert reopened(path)[0] == [*ENTRIES[:2], {"what": "resume"}]


def test_a_flipped_bit_in_the_last_entry_is_a_torn_end(written):
    path, ends = written
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert reopened(path) == (ENTRIES[:2], ends[2] - ends[1])


def test_damage_before_whole_entries_is_an_error_that_names_the_byte_and_changes_nothing(written):
    path, ends = written
    whole = path.read_bytes()
    for at in range(ends[1]):
        content = bytearray(whole)
        content[at] ^= 0xFF
        path.write_bytes(content)
        start = 0 if at < ends[0] else ends[0]
        with pytest.raises(ConfigurationError, match=rf"market\.journal: damaged at byte {start}, .*backup"):
            Journal(path)
        assert path.read_bytes() == bytes(content)


async def test_callers_take_effect_in_the_order_of_the_file_and_share_a_write(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    writes, effects = [], []
    real = journal._write
    first_write, go_on = threading.Event(), threading.Event()

    def slow(content):
        writes.append(content)
        if len(writes) == 1:
            first_write.set()
            assert go_on.wait(5)
        real(content)

    monkeypatch.setattr(journal, "_write", slow)

    async def commit(number):
        await journal.append({"n": number})
        effects.append(number)
        if number == 0:  # something new while others still wait
            await commit(100)

    tasks = [asyncio.create_task(commit(0))]
    await asyncio.to_thread(first_write.wait, 5)
    tasks += [asyncio.create_task(commit(number)) for number in range(1, 20)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*tasks)
    journal.close()
    assert len(writes) <= 4, "19 entries that wait together are one write"
    assert effects == [entry["n"] for entry in reopened(tmp_path / "j")[0]]
    assert effects[0] == 0
    assert sorted(effects) == [*range(20), 100]


async def test_nothing_is_acknowledged_before_it_is_on_disk(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    reached, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def held(number):
        reached.set()
        assert go_on.wait(5)
        real(number)

    monkeypatch.setattr("wattmesh_cloud.market.journal.os.fdatasync", held)
    task = asyncio.create_task(journal.append({"n": 1}))
    await asyncio.to_thread(reached.wait, 5)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await task
    journal.close()


async def test_a_caller_that_gives_up_takes_nobody_with_it(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    reached, go_on = threading.Event(), threading.Event()
    real = journal._write

    def held(content):
        reached.set()
        assert go_on.wait(5)
        real(content)

    monkeypatch.setattr(journal, "_write", held)
    first = asyncio.create_task(journal.append({"n": 1}))
    await asyncio.to_thread(reached.wait, 5)
    second = asyncio.create_task(journal.append({"n": 2}))
    await asyncio.sleep(0)
    first.cancel()
    go_on.set()
    async with asyncio.timeout(5):
        await second
    journal.close()
    assert reopened(tmp_path / "j")[0] == [{"n": 1}, {"n": 2}]


async def test_a_full_disk_is_an_error_for_everyone_and_leaves_no_half_entry(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    await journal.append({"n": 1})
    full = True
    real = os.write

    def write(number, content):
        if not full:
            return real(number, content)
        if len(content) > 10:
            return real(number, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wattmesh_cloud.market.journal.os.write", write)
    results = await asyncio.gather(journal.append({"n": 22222}), journal.append({"n": 33333}), return_exceptions=True)
    assert [type(one) for one in results] == [UnavailableError, UnavailableError]
    full = False
    await journal.append({"n": 4})
    journal.close()
    assert reopened(tmp_path / "j") == ([{"n": 1}, {"n": 4}], 0)
