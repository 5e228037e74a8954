"""Nothing measured is lost or doubled, wherever the gateway is killed."""

import json
import shutil
import sqlite3
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, decode
from wattmesh_edge.outbox import POINTS, RECORDS, Outbox

COLUMNS = ("meter.active_power_w", "battery.soc_percent")


def make(folder, session="s1", **options):
    return Outbox(folder, "home-1", session, COLUMNS, batch_rows=4, **options)


def add(outbox, number):
    outbox.add_row(10**18 + number * 10**9, [array("d", [float(number)]), array("d", [50.0])], [bytes([0]), bytes([1])])


def rows_of(outbox):
    found, sequences = [], []
    for pending in outbox.pending(1000, newest_first=False):
        batch = decode(pending.frame)
        if isinstance(batch, ColumnBatch):
            found += list(batch.values[0])
            sequences.append(pending.sequence)
    return found, sequences


def test_batches_hold_what_was_added(tmp_path):
    outbox = make(tmp_path)
    for number in range(9):
        add(outbox, number)
    outbox.add_record(b'{"type":"x","data":1}')
    outbox.seal()
    frames = [decode(one.frame) for one in outbox.pending(10, newest_first=False)]
    columns = [one for one in frames if isinstance(one, ColumnBatch)]
    assert [list(one.values[0]) for one in columns] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert columns[0].qualities == (bytes([0] * 4), bytes([1] * 4))
    assert list(columns[0].times_ns) == [10**18 + number * 10**9 for number in range(4)]
    (records,) = [one for one in frames if isinstance(one, RecordBatch)]
    assert records.lines == (b'{"type":"x","data":1}',)
    assert outbox.counters()["measured.points"] == 18
    assert outbox.counters()["measured.records"] == 1


def test_a_killed_gateway_gives_every_row_exactly_once(tmp_path):
    outbox = make(tmp_path)
    for number in range(6):
        add(outbox, number)
    # no close, no seal: killed
    again = make(tmp_path, "s2")
    found, sequences = rows_of(again)
    assert found == [0, 1, 2, 3, 4, 5]
    assert len(set(sequences)) == len(sequences)
    for number in range(6, 10):
        add(again, number)
    assert rows_of(make(tmp_path, "s3"))[0] == list(range(10))


def test_every_torn_tail_of_the_segment_keeps_all_whole_rows(tmp_path):
    outbox = make(tmp_path / "base")
    for number in range(3):
        add(outbox, number)
    content = (tmp_path / "base" / "open.segment").read_bytes()
    lengths = []
    for cut in range(len(content) + 1):
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "base", copy)
        (copy / "open.segment").write_bytes(content[:cut])
        found, _ = rows_of(make(copy))
        assert found == [0, 1, 2][: len(found)]
        lengths.append(len(found))
    assert lengths == sorted(lengths)
    assert lengths[-1] == 3


def test_a_crash_between_the_database_and_the_truncation_doubles_nothing(tmp_path):
    outbox = make(tmp_path)
    for number in range(3):
        add(outbox, number)
    segment = (tmp_path / "open.segment").read_bytes()
    outbox.seal()
    (tmp_path / "open.segment").write_bytes(segment)  # as if the truncation had not happened
    again = make(tmp_path, "s2")
    assert rows_of(again)[0] == [0, 1, 2]
    assert again.counters()["measured.points"] == 6


def test_only_an_acknowledgement_makes_it_forget(tmp_path):
    outbox = make(tmp_path)
    for number in range(8):
        add(outbox, number)
    assert outbox.waiting() == 2
    outbox.acknowledge(POINTS, [0])
    outbox.acknowledge(RECORDS, [1])
    assert [one.sequence for one in outbox.pending(10)] == [1]
    outbox.acknowledge(POINTS, [1, 7])
    assert outbox.waiting() == 0
    again = make(tmp_path, "s2")
    for number in range(4):
        add(again, number)
    assert [one.sequence for one in again.pending(10)] == [2], "a sequence number never comes again"
    assert again.counters()["measured.points"] == 24


def test_live_batches_come_before_the_backlog_and_those_in_flight_are_left_out(tmp_path):
    outbox = make(tmp_path)
    for number in range(20):
        add(outbox, number)
    assert [one.sequence for one in outbox.pending(2)] == [4, 3]
    assert [one.sequence for one in outbox.pending(2, skip=frozenset({(POINTS, 4)}))] == [3, 2]


def test_past_its_bound_the_oldest_go_and_are_counted(tmp_path):
    outbox = make(tmp_path, keep_bytes=120_000)
    for number in range(4000):
        add(outbox, number)
    dropped = 0
    while count := outbox.bound():
        dropped += count
    assert dropped > 0
    assert outbox.counters()["dropped.points"] == dropped * 8
    assert outbox.counters()["measured.points"] == 8000
    assert min(one.sequence for one in outbox.pending(10_000)) == dropped


def test_measurements_go_by_age_and_records_stay(tmp_path):
    outbox = make(tmp_path, keep_days=1.0)
    hour = 3600 * 10**9
    for number in range(4 * 150):
        outbox.add_row(10**18 + number * hour // 4, [array("d", [1.0]), array("d", [2.0])], [b"\0", b"\0"])
        if number == 3:
            outbox.add_record(b'{"type":"x","data":1}')
    while outbox.bound():
        pass
    kept = outbox.pending(10_000, newest_first=False)
    points = [decode(one.frame) for one in kept if one.stream == POINTS]
    newest = points[-1].times_ns[-1]
    assert newest - 24 * hour - 51 * hour <= points[0].times_ns[-1], "a day before the middle of the newest hundred"
    assert len(points) < 120
    assert [one.stream for one in kept].count(RECORDS) == 1
    assert outbox.waiting() == len(kept)
    assert outbox.counters()["dropped.points"] == (150 - len(points)) * 8


@pytest.mark.parametrize("jump_days", [-20_000, 20_000])
def test_a_clock_that_jumps_drops_nothing(tmp_path, jump_days):
    outbox = make(tmp_path, keep_days=1.0)
    for number in range(4 * 150):
        away = jump_days * 86_400 * 10**9 if 500 <= number < 600 else 0
        outbox.add_row(10**18 + number * 10**9 + away, [array("d", [1.0]), array("d", [2.0])], [b"\0", b"\0"])
    assert outbox.bound() == 0


def test_records_go_last_when_there_is_no_room(tmp_path):
    outbox = make(tmp_path, keep_bytes=90_000)
    for number in range(200):
        outbox.add_record(b'{"type":"x","data":"%s"}' % (b"%d" % number * 100))
        outbox.seal()
    for number in range(2000):
        add(outbox, number)
    while outbox.bound():
        pass
    kept = outbox.pending(10_000)
    assert [one.stream for one in kept].count(RECORDS) in range(1, 201)
    assert [one.stream for one in kept].count(POINTS) == 0 or [one.stream for one in kept].count(RECORDS) == 200
    assert outbox.counters()["dropped.points"] > 0


def test_a_database_that_takes_nothing_costs_bounded_memory_and_no_number_twice(tmp_path):
    outbox = make(tmp_path)
    for number in range(8):
        add(outbox, number)
    outbox._db.execute("PRAGMA query_only=1")
    failures = 0
    for number in range(8, 2008):
        try:
            add(outbox, number)
        except sqlite3.OperationalError:
            failures += 1
    assert failures == 500, "tried with every fourth row, not with each"
    assert len(outbox._rows) == 600
    outbox._db.execute("PRAGMA query_only=0")
    outbox.seal()
    found, sequences = rows_of(outbox)
    assert found == [*range(8), *range(1408, 2008)]
    assert len(set(sequences)) == len(sequences)
    assert outbox.counters()["dropped.points"] == 2 * 1400


def test_a_database_of_an_older_version_is_taken_over(tmp_path):
    db = sqlite3.connect(tmp_path / "outbox.sqlite")
    db.execute(
        "CREATE TABLE batches (stream TEXT, sequence INTEGER, frame BLOB, records INTEGER, UNIQUE (stream, sequence))"
    )
    db.execute("INSERT INTO batches VALUES ('points', 0, x'00', 1)")
    db.commit()
    db.close()
    outbox = make(tmp_path)
    assert outbox.waiting() == 1
    assert outbox.bound() == 0, "its age is not known, so it is not too old"
    outbox.acknowledge(POINTS, [0])
    assert outbox.waiting() == 0


@pytest.mark.parametrize("name", ["outbox.sqlite"])
def test_a_folder_that_cannot_be_used_says_so(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(Exception, match="unable to open"):
        make(tmp_path)


def test_killed_at_200_random_moments_nothing_acknowledged_is_lost_or_doubled(tmp_path):
    killer = Path(__file__).parents[1] / "support" / "outbox_killer.py"
    done = subprocess.run(
        [sys.executable, str(killer), str(tmp_path / "outbox"), "200", "7"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 200
    assert found["acknowledged"] > 200
    assert (found["lost"], found["doubled"], found["differ"]) == (0, 0, 0)
    assert found["worst_open_s"] < 5
