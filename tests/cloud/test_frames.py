"""Frames into matrices: the same as the plain decoder gives, and nothing that it refuses."""

import json
import math
import struct
import zlib
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.telemetry import MAGIC, ColumnBatch, RecordBatch, decode, encode_columns, encode_records
from wattmesh_cloud.frames import Samples, decode_frame, identity_of, samples_of

T = 1_700_000_000_000_000_000


def batch(columns, qualities=None, *, sequence=1, names=None):
    rows = len(columns[0]) if columns else 0
    return ColumnBatch(
        site_id="home-1", session="s", stream="points", sequence=sequence,
        columns=tuple(names or (f"a.p{index}" for index in range(len(columns)))),
        times_ns=array("q", [T + row * 1_000_000_000 for row in range(rows)]),
        values=tuple(array("d", column) for column in columns),
        qualities=tuple(qualities or (bytes(rows) for _ in columns)),
    )  # fmt: skip


def same(one, two):
    return len(one) == len(two) and all(a == b or (a != a and b != b) for a, b in zip(one, two, strict=True))


def both(made):
    """The batch by the plain decoder and by ours, after a look that they agree."""
    frame = encode_columns(made)
    plain, ours = decode(frame), decode_frame(frame)
    assert isinstance(ours, Samples)
    assert (plain.site_id, plain.stream, plain.sequence, plain.columns) == (
        ours.site_id,
        ours.stream,
        ours.sequence,
        ours.columns,
    )
    assert plain.times_ns.tolist() == ours.times_ns.tolist()
    assert all(same(one, two) for one, two in zip(plain.values, ours.values.tolist(), strict=True))
    assert [list(one) for one in plain.qualities] == ours.qualities.tolist()
    return plain, ours


def first_version(made):
    """The frame as the first version wrote it."""
    fields = {"site": made.site_id, "session": made.session, "stream": made.stream, "sequence": made.sequence}
    more = {"columns": made.columns, "rows": len(made.times_ns), "first_ns": made.times_ns[0] if made.times_ns else 0}
    header = json.dumps({**fields, **more}, separators=(",", ":")).encode()
    offsets = array("i", [(time - made.times_ns[0]) // 1_000_000 for time in made.times_ns])
    parts = [struct.pack("<I", len(header)), header, offsets.tobytes()]
    for values, quality in zip(made.values, made.qualities, strict=True):
        parts += [values.tobytes(), quality]
    return MAGIC + b"C" + zlib.compress(b"".join(parts))


_VALUES = st.one_of(
    st.integers(-(2**33), 2**33).map(float),
    st.integers(-(10**7), 10**7).map(lambda number: number / 10),
    st.integers(-(10**7), 10**7).map(lambda number: number * 0.01),
    st.floats(allow_infinity=False),
    st.just(-0.0),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_value_comes_back_exactly(data):
    rows, count = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 6))
    columns = [data.draw(st.lists(_VALUES, min_size=rows, max_size=rows)) for _ in range(count)]
    qualities = [bytes(data.draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))) for _ in range(count)]
    made = batch(columns, qualities)
    plain, _ = both(made)
    assert all(same(one, two) for one, two in zip(plain.values, made.values, strict=True))
    assert plain.qualities == made.qualities
    old = first_version(made)
    assert all(same(one, two) for one, two in zip(decode(old).values, made.values, strict=True))
    ours = decode_frame(old)
    assert all(same(one, two) for one, two in zip(ours.values.tolist(), made.values, strict=True))


@pytest.mark.parametrize("scale", [1, 0.1, 0.01, 0.001, 0.0001])
def test_registers_times_a_scale_take_two_bytes_a_value_or_less(scale):
    columns = [
        [(10_000 + 37 * column + (column * row * 7919) % 50) * scale for row in range(10)] for column in range(200)
    ]
    frame = encode_columns(batch(columns))
    assert len(frame) < 2 * 2000
    both(batch(columns))


def test_bad_values_do_not_spoil_a_columns_mode():
    columns = [[100.1, math.nan, 100.3, 100.2]] * 50
    qualities = [bytes([0, 2, 1, 0])] * 50
    plain, _ = both(batch(columns, qualities))
    assert same(plain.values[0], columns[0])
    assert len(encode_columns(batch(columns, qualities))) < 400


def test_some_points_only():
    made = batch([[1.0, 2.0], [0.5, math.pi], [3.0, 4.0]])
    for frame in (encode_columns(made), first_version(made)):
        some = decode_frame(frame, frozenset({"a.p2", "a.p1", "none"}))
        assert some.columns == ("a.p1", "a.p2")
        assert some.values.tolist() == [[0.5, math.pi], [3.0, 4.0]]
    assert samples_of(made).values.tolist() == [list(column) for column in made.values]


def broken(change, body_change=lambda body: body, kind=b"D"):
    """A frame with another header or body."""
    made = batch([[1.0, 2.0], [0.5, 0.7]])
    body = zlib.decompress(encode_columns(made)[4:])
    (size,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + size])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    return MAGIC + kind + zlib.compress(struct.pack("<I", len(text)) + text + body_change(body[4 + size :]))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"WM1D",
        b"WM2D" + zlib.compress(b"x"),
        b"WM1Z" + zlib.compress(b"xxxxxxxx"),
        b"WM1D" + zlib.compress(b"\xff" * 40),
        b"WM1D" + zlib.compress(bytes(5_000_000)),
        b"WM1D" + zlib.compress(struct.pack("<I", 2) + b"[]"),
        broken(lambda header: header.update(modes="1")),
        broken(lambda header: header.update(modes="1z")),
        broken(lambda header: header.update(modes=["1", "1"])),
        broken(lambda header: header.update(modes=None)),
        broken(lambda header: header.update(rows=3)),
        broken(lambda header: header.update(rows=-1)),
        broken(lambda header: header.update(rows=2.0)),
        broken(lambda header: header.update(rows=10**9)),
        broken(lambda header: header.update(first_ns=-1)),
        broken(lambda header: header.update(first_ns=True)),
        broken(lambda header: header.update(sequence=-1)),
        broken(lambda header: header.update(sequence=2**70)),
        broken(lambda header: header.update(site=5)),
        broken(lambda header: header.update(site="x" * 201)),
        broken(lambda header: header.update(site="a\nb")),
        broken(lambda header: header.update(columns=["a"])),
        broken(lambda header: header.update(columns=[1, 2])),
        broken(lambda header: header.update(columns="ab")),
        broken(lambda header: header.pop("columns")),
        broken(lambda header: None, lambda body: body[:8] + b"\x07" + body[9:]),
        broken(lambda header: None, lambda body: body[:-1]),
        broken(lambda header: header.update(modes="xx"), lambda body: body[:12] + array("d", [math.inf] * 4).tobytes()),
        broken(lambda header: None, kind=b"C"),
    ],
)
def test_what_is_no_frame_is_refused_by_both(frame):
    for decoder in (decode, decode_frame):
        with pytest.raises(InvalidMessageError):
            decoder(frame)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
def test_damage_is_refused_or_decodes_alike(noise, place, byte):
    for frame in (MAGIC + b"D" + noise, _damaged(place, byte)):
        try:
            ours = decode_frame(frame)
        except InvalidMessageError:
            continue
        assert samples_of(decode(frame)).values.tolist() == ours.values.tolist()


def _damaged(place, byte):
    frame = bytearray(encode_columns(batch([[1.0, 2.5], [0.5, 0.7]])))
    frame[place % len(frame)] = byte
    return bytes(frame)


def test_a_name_twice_and_time_before_1970_are_refused():
    with pytest.raises(InvalidMessageError, match="twice"):
        decode_frame(encode_columns(batch([[1.0], [2.0]], names=("a.b", "a.b"))))
    early = batch([[1.0, 2.0]])
    early.times_ns[0], early.times_ns[1] = 1_000_000_000, -5_000_000_000
    with pytest.raises(InvalidMessageError, match="1970"):
        decode_frame(encode_columns(early))


def test_records_and_identity():
    records = RecordBatch(site_id="home-1", session="s", stream="records", sequence=9, lines=(b"{}",))
    assert decode_frame(encode_records(records)) == records
    assert identity_of(encode_records(records)) == ("home-1", "records", 9)
    assert identity_of(encode_columns(batch([[1.0]], sequence=4))) == ("home-1", "points", 4)
    for frame in (b"", b"WM1D", b"garbage!", encode_columns(batch([[1.0]]))[:-1]):
        assert identity_of(frame) is None
