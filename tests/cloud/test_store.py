"""The contract of the store, on SQLite: once, durable, in order, bounded."""

import math
from array import array

import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, encode_columns
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.store.sqlite import SqliteStore

T = 1_700_000_000 * NS_PER_S


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
