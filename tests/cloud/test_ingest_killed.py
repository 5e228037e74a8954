"""kill -9 at random moments of taking, committing, rolling up, forgetting and writing the lake: nothing acknowledged is lost."""

import multiprocessing
import random
import time
from array import array
from collections import Counter

import ingest_writer
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.codec import record_line
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns, encode_records
from wattmesh_cloud.lake import Lake
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.store.sqlite import SqliteStore

NAMES = ("meter.active_power_w", "meter.frequency_hz")
SITES = ("home-1", "home-2", "home-3")
EVERY_S = 20
ROWS = 30


def sample_frame(site, sequence, start_ns):
    """Ten minutes of samples; the value says which they are."""
    times = array("q", [start_ns + (sequence * ROWS + row) * EVERY_S * NS_PER_S for row in range(ROWS)])
    values = array("d", [float(sequence * ROWS + row) for row in range(ROWS)])
    batch = ColumnBatch(
        site_id=site, session="s", stream="points", sequence=sequence, columns=NAMES, times_ns=times,
        values=(values, values), qualities=(bytes(ROWS), bytes(ROWS)),
    )  # fmt: skip
    return encode_columns(batch)


def record_frame(site, sequence, reading):
    lines = (record_line(reading),)
    return encode_records(RecordBatch(site_id=site, session="s", stream="records", sequence=sequence, lines=lines))


def frame_of(key, start_ns, make_interval):
    site, stream, sequence = key
    if stream == "points":
        return sample_frame(site, sequence, start_ns)
    return record_frame(site, sequence, make_interval(site, start_ns + sequence * 900 * NS_PER_S))


@pytest.mark.timeout(280)
@pytest.mark.parametrize("kills", [15, pytest.param(220, marks=pytest.mark.long)])
def test_two_workers_over_one_store_one_killed_while_the_other_works(tmp_path, midnight_ns, make_interval, kills):
    """What a killed worker had is given to the other; what both were given, for its acknowledgement was lost, is there once."""
    rng = random.Random(kills)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ingest_writer"])
    acknowledged: Counter = Counter()
    waiting: list = []
    following: Counter = Counter()
    workers: list = []
    for _ in range(kills):
        while len(workers) < 2:
            here, there = context.Pipe()
            latest = ingest_writer.hours_later(midnight_ns, 3 + max(following.values(), default=0) // 6)
            process = context.Process(
                target=ingest_writer.work, args=(there, str(tmp_path), latest, False), daemon=True
            )
            process.start()
            there.close()
            workers.append((process, here))
        while len(waiting) < 40:
            site, stream = rng.choice(SITES), rng.choice(("points", "points", "records"))
            waiting.append((site, stream, following[site, stream]))
            following[site, stream] += 1
        old = rng.sample(sorted(acknowledged), min(5, len(acknowledged)))
        for key in rng.sample(waiting, len(waiting)) + old:
            frame = frame_of(key, midnight_ns, make_interval)
            for _, pipe in workers if rng.random() < 0.2 else [rng.choice(workers)]:
                pipe.send((key[0], key[1], frame))
        got = [take(pipe, acknowledged, 20.0) for _, pipe in workers]
        assert any(got), "neither worker answered at all"
        deadline = time.monotonic() + rng.random() * 0.03
        while (left := deadline - time.monotonic()) > 0 and any(
            take(pipe, acknowledged, left / 2) for _, pipe in workers
        ):
            pass
        victim, pipe = workers.pop(rng.randrange(2))
        victim.kill()
        victim.join()
        while take(pipe, acknowledged, 0):
            pass
        pipe.close()
        waiting = [key for key in waiting if key not in acknowledged]
    for process, pipe in workers:
        process.kill()
        process.join()
        while take(pipe, acknowledged, 0):
            pass
        pipe.close()
    check(tmp_path, acknowledged, following, midnight_ns)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("kills", [25, pytest.param(220, marks=pytest.mark.long)])
def test_what_was_acknowledged_is_stored_once_wherever_ingest_is_killed(tmp_path, midnight_ns, make_interval, kills):
    rng = random.Random(kills)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ingest_writer"])
    acknowledged: Counter = Counter()
    waiting: list = []
    following: Counter = Counter()
    made = 0
    for _ in range(kills):
        while len(waiting) < 40:
            site, stream = rng.choice(SITES), rng.choice(("points", "points", "records"))
            waiting.append((site, stream, following[site, stream]))
            following[site, stream] += 1
            made += 1
        here, there = context.Pipe()
        latest = ingest_writer.hours_later(midnight_ns, 3 + max(following.values()) // 6)
        process = context.Process(target=ingest_writer.work, args=(there, str(tmp_path), latest), daemon=True)
        process.start()
        there.close()
        old = rng.sample(sorted(acknowledged), min(5, len(acknowledged)))  # a lost acknowledgement: they come again
        for key in rng.sample(waiting, len(waiting)) + old:
            here.send((key[0], key[1], frame_of(key, midnight_ns, make_interval)))
        # The first answer says that it has begun to work; then it has up to 30 ms to live.
        got = take(here, acknowledged, 20.0)
        assert got, "the process did not answer at all"
        deadline = time.monotonic() + rng.random() * 0.03
        while (left := deadline - time.monotonic()) > 0 and take(here, acknowledged, left):
            pass
        process.kill()
        process.join()
        while take(here, acknowledged, 0):
            pass
        here.close()
        waiting = [key for key in waiting if key not in acknowledged]
    check(tmp_path, acknowledged, following, midnight_ns)


def take(pipe, acknowledged, timeout_s):
    """One acknowledgement, if there is one in time and it is whole."""
    try:
        if not pipe.poll(timeout_s):
            return False
        site, stream, sequences = pipe.recv()
    except (EOFError, OSError):
        return False
    acknowledged.update((site, stream, sequence) for sequence in sequences)
    return True


def check(folder, acknowledged, following, start_ns):
    store, lake = SqliteStore(folder / "store.sqlite", ingest_writer.RETENTION), Lake(folder / "lake")
    end_ns = ingest_writer.hours_later(start_ns, 10_000)
    assert len(acknowledged) > 50
    for site in SITES:
        held = store._connection().execute(
            "SELECT sequence, sequence FROM batches WHERE site = ?1 AND stream = 'points'"
            " UNION ALL SELECT first, last FROM forgotten WHERE site = ?1 AND stream = 'points'",
            (site,),
        )
        there = {n for first, last in held for n in range(first, last + 1)}
        stored = store.sequences(site, "points")
        sent = {n for name, stream, n in acknowledged if (name, stream) == (site, "points")}
        assert sent <= there
        assert len(there) == stored[0]
        assert stored[1] == stored[0] * ROWS * len(NAMES)
        assert len(sent) <= stored[0] <= following[site, "points"]
        # In the end the lake has every sample of every stored batch once, whatever round it was written in.
        lake.catch_up(store, end_ns)
        store.maintain(end_ns)
        ((rows, distinct),) = lake.query(
            f"SELECT count(*), count(DISTINCT (point, time_ns)) FROM samples WHERE site = '{site}'"
        )
        assert rows == distinct == stored[1]
        # So have the means of 15 min, which were rolled up between the kills: the count cannot be told, the mean can.
        (means,) = store.samples(site, [NAMES[0]], start_ns, end_ns, step_s=900)
        for moment, mean in zip(means.times_ns, means.values, strict=True):
            first = (moment - start_ns) // (EVERY_S * NS_PER_S)
            here = [n for n in range(first, first + 900 // EVERY_S) if n // ROWS in there]
            assert mean == pytest.approx(sum(here) / len(here))
        intervals = store.query(Table.CONSUMER_METRICS, site, 0, 2**62, limit=10_000)
        slots = {(item.time_ns - start_ns) // (900 * NS_PER_S) for item in intervals}
        told = {n for name, stream, n in acknowledged if (name, stream) == (site, "records")}
        assert told <= slots
        assert len(slots) == store.sequences(site, "records")[0]
    assert lake.verify() == []
    store.close()
