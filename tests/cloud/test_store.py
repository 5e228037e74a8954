"""The contract of the store, on SQLite and on two stand-ins for DynamoDB: once, durable, in order, bounded."""

import itertools
import math
import os
import shutil
import socket
import subprocess
import time
from array import array
from pathlib import Path

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns, encode_records
from wattmesh_cloud.store.base import Item, Retention, Table
from wattmesh_cloud.store.sqlite import SqliteStore

T = 1_700_000_000 * NS_PER_S


MODULES = Path(os.environ.get("WATTMESH_NODE_PEERS", Path(__file__).parents[2] / ".wattmesh" / "node")) / "node_modules"
PREFIXES = (f"test{number}-" for number in itertools.count())


@pytest.fixture(scope="module")
def dynalite():
    """A server of dynalite, which checks requests otherwise than moto does; ended with the module."""
    program = MODULES / "dynalite" / "cli.js"
    if not program.is_file() or shutil.which("node") is None:
        pytest.skip(
            f"dynalite is not in {MODULES}: npm install dynalite there, or name its folder in WATTMESH_NODE_PEERS"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "node",
        program,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--createTableMs",
        "0",
        "--deleteTableMs",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, "dynalite ended at once"
        assert time.monotonic() < deadline, "dynalite does not listen"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


class OneByOne:
    """A client of dynalite, which has no transactions: their writes one after the other, the conditional one first.

    So dynalite is the second opinion on keys, expressions, types, paging and limits; on all-or-nothing moto alone is.
    """

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        return getattr(self._client, name)

    def transact_write_items(self, TransactItems):
        from botocore.exceptions import ClientError

        for index, one in enumerate(TransactItems):
            ((kind, arguments),) = one.items()
            try:
                getattr(self._client, {"Put": "put_item", "Update": "update_item"}[kind])(**arguments)
            except ClientError as error:
                if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise
                assert index == 0, "a condition after a write: this stand-in cannot take the write back"
                reasons = [{"Code": "ConditionalCheckFailed"}, *({"Code": "None"} for _ in TransactItems[1:])]
                answer = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
                raise ClientError(answer, "TransactWriteItems") from error


def dynamo_store(client, prefix):
    from wattmesh_cloud.store.dynamodb import DynamoStore, table_definition

    for table in Table:
        client.create_table(**table_definition(prefix, table))
    for table in Table:
        client.get_waiter("table_exists").wait(TableName=prefix + table, WaiterConfig={"Delay": 1})
    return DynamoStore(prefix, client=client, writers=1)  # neither is made for threads


@pytest.fixture(params=["sqlite", "dynamodb", "dynalite"])
def store(request, tmp_path, monkeypatch):
    """The same contract over all."""
    if request.param == "sqlite":
        opened = SqliteStore(tmp_path / "store.sqlite")
        yield opened
        opened.close()
        return
    if request.param == "dynalite":
        boto3 = pytest.importorskip("boto3")
        url = request.getfixturevalue("dynalite")
        client = boto3.client(
            "dynamodb", region_name="eu-central-1", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x"
        )
        opened = dynamo_store(OneByOne(client), next(PREFIXES))
        yield opened
        opened.close()
        return
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with moto.mock_aws():
        import boto3

        opened = dynamo_store(boto3.client("dynamodb", region_name="eu-central-1"), "test-")
        yield opened
        opened.close()


def columns(
    sequence, times_s, values, *, site="home-1", stream="points", names=("meter.active_power_w",), quality=None
):
    times = array("q", [T + second * NS_PER_S for second in times_s])
    return ColumnBatch(
        site_id=site,
        session="s",
        stream=stream,
        sequence=sequence,
        columns=names,
        times_ns=times,
        values=tuple(array("d", values) for _ in names),
        qualities=tuple(quality or bytes(len(times)) for _ in names),
    )


def records(sequence, site="home-1"):
    return RecordBatch(site_id=site, session="s", stream="records", sequence=sequence, lines=(b"{}", b"{}"))


def item(time_ns, name="a", partition="home-1", **data):
    return Item(partition=partition, time_ns=time_ns, id=name, data=data)


def frame_row(batch):
    return (batch.site_id, batch.stream, batch.sequence, T, T, batch.records, encode_columns(batch))


def test_a_batch_counts_once_by_site_stream_and_sequence(store):
    assert store.append([columns(1, [0, 1], [1.0, 2.0]), columns(2, [2], [3.0])], {}) == 2
    assert store.append([columns(2, [2], [3.0]), columns(3, [3], [4.0]), columns(3, [3], [4.0])], {}) == 1
    assert store.append([columns(1, [0], [1.0], site="home-2"), records(1)], {}) == 2
    assert store.sequences("home-1", "points") == (3, 4)
    assert store.sequences("home-1", "records") == (1, 2)
    assert store.sequences("home-9", "points") == (0, 0)
    assert store.streams() == [("home-1", "points"), ("home-1", "records"), ("home-2", "points")]


def test_frames_say_which_were_new_and_a_repeated_one_changes_nothing(store):
    one, two = columns(1, [0], [1.0]), columns(2, [1], [2.0])
    derived = [(Table.CONSUMER_METRICS, item(T, value=1))]
    assert store.append_frames([(frame_row(one), derived), (frame_row(one), [])]) == [True, False]
    late = [(Table.CONSUMER_METRICS, item(T, value=99))]
    assert store.append_frames([(frame_row(one), late), (frame_row(two), [])]) == [False, True]
    (row,) = store.query(Table.CONSUMER_METRICS, "home-1", 0, 2**62)
    assert row.data == {"value": 1}


def test_all_of_a_group_or_nothing(store):
    bad = [(Table.CONSUMER_METRICS, item(T, value=math.nan))]
    with pytest.raises(ValueError, match="JSON"):
        store.append_frames([(frame_row(columns(1, [0], [1.0])), bad)])
    assert store.sequences("home-1", "points") == (0, 0)
    with pytest.raises(ValueError, match="JSON"):
        store.append([columns(1, [0], [1.0])], {Table.CONSUMER_METRICS: [item(T), item(T, "b", value=math.inf)]})
    assert store.sequences("home-1", "points") == (0, 0)
    assert store.query(Table.CONSUMER_METRICS, "home-1", 0, 2**62) == []


def test_what_was_written_is_there_for_the_next_process(tmp_path):
    first = SqliteStore(tmp_path / "s.sqlite")
    first.append([columns(1, [0], [5.0])], {Table.GRID_METRICS: [item(T, value=2)]})
    again = SqliteStore(tmp_path / "s.sqlite")  # without a close: the power went
    assert again.append([columns(1, [0], [5.0])], {}) == 0
    assert again.query(Table.GRID_METRICS, "home-1", T, T + 1) == [item(T, value=2)]
    assert again.samples("home-1", ["meter.active_power_w"], T, T + 1)[0].values.tolist() == [5.0]
    again.close()
    first.close()


def test_which_sequences_of_a_run_are_held(store):
    store.append([columns(n, [n], [1.0]) for n in (0, 1, 4, 9_998, 9_999, 10_000, 10_003)], {})
    assert store.held("home-1", "points", 0, 5) == [0, 1, 4]
    assert store.held("home-1", "points", 1, 4) == [1, 4]
    assert store.held("home-1", "points", 9_999, 10_003) == [9_999, 10_000, 10_003]
    assert store.held("home-1", "records", 0, 5) == []
    assert store.held("home-2", "points", 0, 5) == []


def test_rows_are_replaced_by_identity_and_come_in_order(store):
    store.put(Table.MARKET_DATA, [item(T + 2), item(T, "b"), item(T, "a", old=True), item(T + 1)])
    store.put(Table.MARKET_DATA, [item(T, "a", old=False)])
    store.put(Table.TRADE_DATA, [item(T, "elsewhere")])
    store.put(Table.MARKET_DATA, [item(T, "other", partition="home-2")])
    found = store.query(Table.MARKET_DATA, "home-1", T, T + 3)
    assert [(one.time_ns - T, one.id) for one in found] == [(0, "a"), (0, "b"), (1, "a"), (2, "a")]
    assert found[0].data == {"old": False}
    assert store.partitions(Table.MARKET_DATA) == ["home-1", "home-2"]


def test_a_query_has_an_open_end_and_a_limit_from_either_side(store):
    store.put(Table.MARKET_DATA, [item(T + second) for second in range(10)])
    times = lambda rows: [row.time_ns - T for row in rows]  # noqa: E731 - shorter here
    assert times(store.query(Table.MARKET_DATA, "home-1", T + 2, T + 5)) == [2, 3, 4]
    assert times(store.query(Table.MARKET_DATA, "home-1", 0, 2**62, limit=3)) == [0, 1, 2]
    assert times(store.query(Table.MARKET_DATA, "home-1", 0, 2**62, limit=3, newest_first=True)) == [9, 8, 7]


def test_samples_across_batches_in_time_order_within_the_window(store):
    store.append([columns(2, [10, 11], [3.0, 4.0]), columns(1, [0, 5], [1.0, 2.0]), records(1)], {})
    (series,) = store.samples("home-1", ["meter.active_power_w"], T + 5 * NS_PER_S, T + 11 * NS_PER_S)
    assert [(time - T) // NS_PER_S for time in series.times_ns] == [5, 10]
    assert series.values.tolist() == [2.0, 3.0]
    unknown = store.samples("home-1", ["meter.nothing"], T, T + 99 * NS_PER_S)[0]
    assert (unknown.column, len(unknown.times_ns)) == ("meter.nothing", 0)


def test_several_points_come_in_the_order_asked_for(store):
    store.append([columns(1, [0], [1.0], names=("a.x", "b.y"))], {})
    found = store.samples("home-1", ["b.y", "a.x"], T, T + NS_PER_S)
    assert [series.column for series in found] == ["b.y", "a.x"]


def test_a_step_is_the_mean_of_good_values_and_absent_without_one(store):
    nan = math.nan
    store.append(
        [columns(1, [0, 10, 20, 70, 130], [1.0, 3.0, 100.0, nan, 8.0], quality=bytes([0, 1, 2, 0, 0]))],
        {},
    )
    start = T - T % (60 * NS_PER_S)
    (series,) = store.samples("home-1", ["meter.active_power_w"], start, T + 200 * NS_PER_S, step_s=60)
    by_minute = dict(zip(series.times_ns, series.values, strict=True))
    wanted = {}
    for second, value in ((0, 1.0), (10, 3.0), (130, 8.0)):
        moment = T + second * NS_PER_S
        wanted.setdefault(moment - moment % (60 * NS_PER_S), []).append(value)
    assert by_minute == {minute: sum(values) / len(values) for minute, values in wanted.items()}
    assert series.qualities == bytes(len(by_minute))


# -- rolled-up chunks and retention

HOUR = 3600
START = T - T % (86_400 * NS_PER_S)
KEEP = Retention(frames_s=2 * 86_400, minutes_s=4 * 86_400, quarters_s=400 * 86_400)
NAME = "meter.active_power_w"


def day_of(sequence, day, *, offset_s=0, value=1.0, every_s=30, hours=24):
    """A batch an hour, of samples every half minute."""
    made = []
    for hour in range(hours):
        first = START + (day * 86_400 + hour * HOUR + offset_s) * NS_PER_S
        times = array("q", [first + second * NS_PER_S for second in range(0, HOUR, every_s)])
        made.append(
            ColumnBatch(
                site_id="home-1", session="s", stream="points", sequence=sequence + hour, columns=(NAME,), times_ns=times,
                values=(array("d", [value + hour] * len(times)),), qualities=(bytes(len(times)),),
            )
        )  # fmt: skip
    return made


def at(day, seconds=0):
    return START + (day * 86_400 + seconds) * NS_PER_S


@pytest.fixture
def short(tmp_path):
    opened = SqliteStore(tmp_path / "short.sqlite", KEEP)
    yield opened
    opened.close()


def means(store, start, end, step_s):
    (series,) = store.samples("home-1", [NAME], start, end, step_s=step_s)
    return dict(zip(series.times_ns, series.values, strict=True))


@pytest.mark.parametrize("step_s", [60, 300, 900, 3600, 7200])
def test_rolled_up_means_are_the_means_of_the_frames(short, step_s):
    short.append(day_of(0, 0), {})
    windows = [(at(0), at(1)), (at(0, 90), at(0, 5 * HOUR + 17)), (at(0, 100), at(0, 130))]
    before = [means(short, *window, step_s) for window in windows]
    short.maintain(at(0, 20 * HOUR))
    part = [means(short, *window, step_s) for window in windows]
    short.maintain(at(1, HOUR))
    assert part == before
    assert [means(short, *window, step_s) for window in windows] == before
    assert len(before[0]) == 86_400 // step_s


def test_an_hour_that_a_late_batch_touches_is_rolled_up_again(short):
    short.append(day_of(0, 0), {})
    short.maintain(at(1, HOUR))
    assert means(short, at(0), at(0, HOUR), 3600) == {at(0): 1.0}
    short.append(day_of(100, 0, offset_s=15, value=3.0, hours=1), {})
    assert means(short, at(0), at(0, 2 * HOUR), 3600) == {at(0): 2.0, at(0, HOUR): 2.0}
    short.maintain(at(1, HOUR))
    assert means(short, at(0), at(0, 2 * HOUR), 3600) == {at(0): 2.0, at(0, HOUR): 2.0}


def test_frames_go_after_their_time_and_the_lake_has_them_and_still_count(short):
    short.append(day_of(0, 0), {})
    short.append(day_of(24, 5), {})
    before = means(short, at(0), at(1), 900)
    short.maintain(at(6))
    assert list(short.raw("home-1", at(0), at(1))) != [], "the lake has not got them yet"
    for site, day, version in short.days_due(at(6)):
        short.day_done(site, day, version)
    short.maintain(at(6))
    assert list(short.raw("home-1", at(0), at(1))) == []
    assert means(short, at(0), at(1), 900) == before
    assert means(short, at(0), at(1), 60) == {}, "minutes are kept for four days here"
    assert short.sequences("home-1", "points") == (48, 48 * 120)
    assert short.gaps("home-1", "points") == []
    assert short.append(day_of(0, 0), {}) == 0, "a forgotten batch is known for ever"


def test_what_is_late_beyond_the_frames_is_added_once(short):
    short.append(day_of(0, 0), {})
    short.append(day_of(24, 3), {})
    for _ in range(2):
        for site, day, version in short.days_due(at(4)):
            short.day_done(site, day, version)
        short.maintain(at(4))
    assert list(short.raw("home-1", at(0), at(1))) == []
    for sequence in (100, 200):
        assert short.append(day_of(sequence, 0, offset_s=15, value=3.0, hours=1), {}) == 1
        assert short.days_due(at(4)) == [("home-1", at(0), 1)], "the lake gets it too"
        short.day_done("home-1", at(0), 1)
        for _ in range(2):
            short.maintain(at(4))
        assert list(short.raw("home-1", at(0), at(1))) == []
    assert means(short, at(0), at(0, 2 * HOUR), 3600) == {at(0): pytest.approx((1 + 3 + 3) / 3), at(0, HOUR): 2.0}
    assert means(short, at(0), at(0, HOUR), 60) != {}


def test_gaps_between_sequences(short):
    short.append([columns(number, [number], [1.0]) for number in (3, 4, 7, 12)], {})
    assert short.gaps("home-1", "points") == [(5, 6), (8, 11)]
    assert short.gaps("home-2", "points") == []


def test_a_file_of_an_earlier_version_is_rolled_up_too(tmp_path):
    first = SqliteStore(tmp_path / "old.sqlite", KEEP)
    first.append(day_of(0, 0), {})
    with first._transaction() as db:
        for table in ("hours", "days", "marks"):
            db.execute(f"DELETE FROM {table}")
    first.close()
    again = SqliteStore(tmp_path / "old.sqlite", KEEP)
    assert len(again.days_due(at(2))) == 1
    again.maintain(at(2))
    assert again._connection().execute("SELECT COUNT(*) FROM chunks").fetchone() == (
        25,
    )  # 24 hours and a day of one point
    again.close()


def test_a_day_that_changes_while_the_lake_takes_it_stays_due(short):
    short.append(day_of(0, 0), {})
    assert short.days_due(at(1) - 1) == []
    ((site, day, version),) = short.days_due(at(1))
    short.append(day_of(100, 0, offset_s=15, hours=1), {})
    short.day_done(site, day, version)
    ((_, _, newer),) = short.days_due(at(1))
    short.day_done(site, day, newer)
    assert short.days_due(at(1)) == []


def test_what_cannot_be_stored_is_a_value_error(store):
    with pytest.raises(ValueError, match="cannot be stored"):
        store.put(Table.MARKET_DATA, [item(2**70)])


def test_a_disk_that_is_away_is_retryable(tmp_path):
    store = SqliteStore(tmp_path / "s.sqlite")
    store.close()
    store._path = store._path / "nowhere" / "s.sqlite"
    with pytest.raises(UnavailableError):
        store.put(Table.MARKET_DATA, [item(1)])


def test_days_are_due_until_the_lake_has_them_in_both_stores(store):
    store.append([columns(1, [0, 86_400 - 1], [1.0, 2.0]), columns(1, [5], [1.0], site="home-2")], {})
    due = store.days_due(T + 3 * 86_400 * NS_PER_S)
    assert [(site, day % (86_400 * NS_PER_S)) for site, day, _ in due] == [("home-1", 0), ("home-2", 0), ("home-1", 0)]
    for one in due:
        store.day_done(*one)
    assert store.days_due(T + 3 * 86_400 * NS_PER_S) == []
    store.append([columns(2, [7], [1.0])], {})
    assert [site for site, _, _ in store.days_due(T + 3 * 86_400 * NS_PER_S)] == ["home-1"]


def test_days_of_records_are_due_until_the_lake_has_them(store):
    day = 86_400 * NS_PER_S
    start = T - T % day

    def row(sequence, came):
        return ("home-1", "records", sequence, came, came, 2, encode_records(records(sequence))), []

    store.append_frames([row(1, start + 5), row(2, start + day - 1), row(3, start + day)])
    assert store.record_days_due(start + day - 1) == []
    ((site, due, version),) = store.record_days_due(start + day)
    assert (site, due) == ("home-1", start)
    held = [(came - start, batch.sequence) for came, batch in store.raw_records("home-1", due, due + day)]
    assert held == [(5, 1), (day - 1, 2)]
    store.append_frames([row(4, start + 6)])
    store.record_day_done(site, due, version)
    assert [one[1] for one in store.record_days_due(start + day)] == [start], "what came meanwhile is due again"
    assert store.days_due(start + 9 * day) == [], "of samples there are none"


def test_rows_of_many_months_come_in_order_page_by_page(store):
    month = 30 * 86_400 * NS_PER_S
    store.put(Table.TRADE_DATA, [item(number * month, number=number) for number in range(150)])
    store.put(Table.TRADE_DATA, [])
    found = store.query(Table.TRADE_DATA, "home-1", 0, 2**62, limit=120)
    assert [row.data["number"] for row in found] == list(range(120))
    newest = store.query(Table.TRADE_DATA, "home-1", 0, 2**62, limit=3, newest_first=True)
    assert [row.data["number"] for row in newest] == [149, 148, 147]
    assert store.query(Table.TRADE_DATA, "home-1", 0, 2**62, limit=0) == []
    assert store.query(Table.TRADE_DATA, "nobody' OR '1'='1", 0, 2**62) == []


def test_gaps_in_both_stores(store):
    store.append([columns(number, [number], [1.0]) for number in (3, 4, 7, 12, 20_005)], {})
    assert store.gaps("home-1", "points") == [(5, 6), (8, 11), (13, 20_004)]


def test_a_frame_and_its_rows_are_one(store):
    rows = [(Table.GRID_METRICS, item(T + number, f"n{number}")) for number in range(30)]
    assert store.append_frames([(frame_row(columns(1, [0], [1.0])), rows)]) == [True]
    assert store.append_frames([(frame_row(columns(1, [0], [1.0])), [(Table.GRID_METRICS, item(T, "other"))])]) == [
        False
    ]
    assert len(store.query(Table.GRID_METRICS, "home-1", 0, 2**62)) == 30
    assert store.partitions(Table.GRID_METRICS) == ["home-1"]
