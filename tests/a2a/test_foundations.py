"""Clocks, tariffs, files, topics, telemetry: what everything stands on."""

import asyncio
import contextlib
import subprocess
import sys
import zlib
from array import array
from datetime import UTC, datetime, time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.config_file import StrictModel, load_yaml_model
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError
from wattmesh_a2a.tariff import Tariff, TariffPeriod, slot_start_ns
from wattmesh_a2a.tariff_file import TariffModel
from wattmesh_a2a.telemetry import ColumnBatch, RecordBatch, decode, encode_columns, encode_records
from wattmesh_a2a.topics import MAX_SLASHES, MAX_TOPIC_BYTES, Topics


async def test_virtual_time_wakes_everybody_at_exactly_his_time():
    clock, seen = ManualClock(), []

    async def loop(name, every):
        with clock.runner():
            while True:
                await clock.sleep_until_ns(clock.monotonic_ns() + every * NS_PER_S)
                seen.append((clock.monotonic_ns() // NS_PER_S, name))

    tasks = [asyncio.create_task(loop("a", 2)), asyncio.create_task(loop("b", 3))]
    await clock.advance(6)
    assert seen[:3] == [(2, "a"), (3, "b"), (4, "a")]
    assert sorted(seen[3:]) == [(6, "a"), (6, "b")]
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    await clock.advance(3)
    assert seen[-1] == (9, "b")
    tasks[1].cancel()


ZONE = "America/Los_Angeles"
TARIFF = Tariff(
    default_price=0.21, feed_in_price=0.05, time_zone=ZONE,
    periods=(
        TariffPeriod(price=0.54, months=(6, 7, 8, 9), days="weekday", start=time(15), end=time(20)),
        TariffPeriod(price=0.11, start=time(23), end=time(5)),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("local", "ticks"),
    [
        ("2022-09-01T15:00-07:00", 5400),
        ("2022-09-01T14:59-07:00", 2100),
        ("2022-09-01T20:00-07:00", 2100),
        ("2022-09-03T16:00-07:00", 2100),  # a Saturday
        ("2022-12-01T16:00-08:00", 2100),
        ("2022-12-01T23:30-08:00", 1100),
        ("2022-12-01T04:59-08:00", 1100),  # over midnight
        ("2022-12-01T05:00-08:00", 2100),
    ],
)
def test_tariffs_follow_the_clock_on_the_wall(local, ticks):
    moment = datetime.fromisoformat(local).astimezone(UTC)
    assert TARIFF.import_price_ticks(int(moment.timestamp()) * NS_PER_S) == ticks


def test_an_unknown_zone_is_named():
    with pytest.raises(ConfigurationError, match="Mars/Base"):
        Tariff(default_price=1, feed_in_price=0, time_zone="Mars/Base").zone()


def test_slots_are_aligned_to_utc():
    assert slot_start_ns(1_000_000 * NS_PER_S, 900) % (900 * NS_PER_S) == 0


class Inner(StrictModel):
    height_m: float = Field(gt=0)


class File(StrictModel):
    name: str
    inner: Inner
    several: tuple[Inner, ...] = ()
    tariff: TariffModel | None = None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\ninner:\n  height_m: -1\n", ":3: inner.height_m: input should be greater than 0 (found -1)"),
        ("name: x\ninner:\n  hight_m: 1\n", ":3: inner.hight_m: unknown field; did you mean 'height_m'?"),
        ("name: x\n", "inner: is missing"),
        ("name: x\ninner: {height_m: 1}\nseveral:\n  - {height_m: 1}\n  - {height_m: x}\n", ":5: several[1].height_m"),
        ("name: x\nname: y\n", ":2: name: stands twice"),
        ("name: [\n", "not YAML"),
        (
            "name: x\ninner: {height_m: 1}\ntariff: {feed_in_price: 1, default_price: 1, periods: [{price: 1, from: soon}]}\n",
            ":3: tariff.periods[0].from",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path, text, told):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_yaml_model(path, File)
    assert told in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.yaml: cannot be read"):
        load_yaml_model(tmp_path / "none.yaml", File)


def test_every_topic_is_legal_on_aws_iot_core():
    topics, longest = Topics(), Address("o" * 64, "u" * 64, "a" * 64)
    made = [topics.discovery(longest), topics.request(longest), topics.event(longest), topics.reply(longest, "s" * 12),
            topics.telemetry("o" * 64, "s" * 64, "points")]  # fmt: skip
    assert all(topic.count("/") <= MAX_SLASHES and len(topic) <= MAX_TOPIC_BYTES and topic[0] != "$" for topic in made)
    assert topics.parse_telemetry(topics.telemetry("o", "s", "points")) == ("o", "s", "points")
    with pytest.raises(InvalidMessageError):
        topics.parse_telemetry("a/b/c")


def batch(rows, columns):
    return ColumnBatch(
        site_id="s", session="x", stream="points", sequence=3, columns=tuple(f"a.p{c}" for c in range(columns)),
        times_ns=array("q", [10**18 + row * 10**9 for row in range(rows)]),
        values=tuple(array("d", [row + c / 7 for row in range(rows)]) for c in range(columns)),
        qualities=tuple(bytes([c % 3] * rows) for c in range(columns)),
    )  # fmt: skip


def test_telemetry_comes_back_as_it_was_and_small():
    one = batch(10, 64)
    assert decode(encode_columns(one)) == one
    assert len(encode_columns(one)) < 7000
    lines = RecordBatch(site_id="s", session="x", stream="records", sequence=1, lines=(b"{}", b'{"a":1}'))
    assert decode(encode_records(lines)) == lines


@settings(max_examples=3000, deadline=None)
@given(st.data())
def test_damaged_telemetry_only_ever_raises_the_one_error(data):
    frame = bytearray(encode_columns(batch(3, 4)))
    body = bytearray(zlib.decompress(bytes(frame[4:])))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    with contextlib.suppress(InvalidMessageError):
        decode(bytes(frame[:4]) + zlib.compress(bytes(body)))


@given(st.binary(max_size=200))
def test_garbage_is_no_telemetry(garbage):
    with pytest.raises(InvalidMessageError):
        decode(b"WM1C" + garbage)


def test_a_compression_bomb_is_refused():
    with pytest.raises(InvalidMessageError, match="too large"):
        decode(b"WM1C" + zlib.compress(bytes(50_000_000)))


def test_the_shared_types_need_the_standard_library_alone():
    code = (
        "import sys; import wattmesh_a2a.messages, wattmesh_a2a.messenger, wattmesh_a2a.topics, wattmesh_a2a.clock, "
        "wattmesh_a2a.tariff, wattmesh_a2a.telemetry; "
        "assert not {'pydantic', 'paho', 'yaml', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_times_at_the_end_of_the_world_are_refused():
    frame = encode_columns(batch(2, 1))
    body = zlib.decompress(frame[4:]).replace(b'"first_ns":1000000000000000000', b'"first_ns":9223372036854775807')
    with pytest.raises(InvalidMessageError):
        decode(frame[:4] + zlib.compress(body))


REGISTER = st.one_of(
    st.integers(-(10**9), 10**9).map(lambda number: number / 10),
    st.floats(width=32, allow_infinity=False, allow_nan=False).map(lambda number: number + 0.0),
    st.floats(allow_infinity=False, allow_nan=False).map(lambda number: number + 0.0),
    st.sampled_from([0.0, 1e300, 2.0**53, -(2.0**53), 5e-324]),
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 6), st.data())
def test_telemetry_comes_back_whatever_the_values(rows, data):
    columns = []
    for _ in range(data.draw(st.integers(0, 4))):
        kind = data.draw(
            st.sampled_from([st.integers(-300, 300).map(lambda n: n / 100), st.just(float("nan")), REGISTER])
        )
        columns.append(array("d", data.draw(st.lists(kind, min_size=rows, max_size=rows))))
    one = ColumnBatch(
        site_id="s", session="x", stream="points", sequence=3, columns=tuple(f"c{n}" for n in range(len(columns))),
        times_ns=array("q", [10**18 + row * 10**9 for row in range(rows)]), values=tuple(columns),
        qualities=tuple(bytes(data.draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))) for _ in columns),
    )  # fmt: skip
    other = decode(encode_columns(one))
    assert isinstance(other, ColumnBatch)
    assert [list(map(repr, column)) for column in other.values] == [list(map(repr, column)) for column in columns]
    assert (other.qualities, other.times_ns, other.columns) == (one.qualities, one.times_ns, one.columns)
