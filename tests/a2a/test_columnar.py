"""The kernel of telemetry frames and the same in Python: neither a bit apart, on any values."""

import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_a2a import columnar, telemetry
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.telemetry import ColumnBatch

DECIMAL = st.builds(lambda number, power: number / 10**power, st.integers(-(2**33), 2**33), st.integers(0, 5))
TENTHS = st.builds(
    lambda number, factor: number * factor, st.integers(-(2**31), 2**31), st.sampled_from([0.1, 0.01, 0.001, 0.0001])
)
EDGES = st.sampled_from(
    [0.0, -0.0, 2.0**31 - 1, 2.0**31, -(2.0**31), 1e308, -1e308, 5e-324, 0.1 + 0.2, math.inf, -math.inf]
)
VALUE = DECIMAL | TENTHS | EDGES | st.floats(allow_nan=False)


@st.composite
def batches(draw):
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(0, 6))
    qualities = [
        bytes(draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=rows, max_size=rows))) for _ in range(columns)
    ]
    values = []
    for quality in qualities:
        kind = draw(st.sampled_from([DECIMAL, TENTHS, VALUE]))
        kept = draw(st.booleans())  # a bad value that is still a number
        values.append(array("d", [math.nan if bad == 2 and not kept else draw(kind) for bad in quality]))
    return ColumnBatch(
        site_id="home-1", session="s", stream="points", sequence=1, columns=tuple(f"c{n}" for n in range(columns)),
        times_ns=array("q", [10**18 + row * 10**9 for row in range(rows)]), values=tuple(values), qualities=tuple(qualities),
    )  # fmt: skip


@settings(max_examples=600)
@given(batches())
def test_the_kernel_and_python_pack_and_unpack_alike(batch):
    rows = len(batch.times_ns)
    packed = columnar.pack(b"".join(batch.values), b"".join(batch.qualities), rows)
    modes, shuffled, _ = packed
    if batch.columns:
        assert packed == telemetry._pack(batch)
    kept = [quality for mode, quality in zip(modes, batch.qualities, strict=True) if mode != telemetry.RAW]
    decimals = modes.replace(telemetry.RAW, "")
    kernel = columnar.unpack(shuffled, b"".join(kept), decimals, rows)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(telemetry, "columnar", None)
        python = telemetry._unpack(shuffled, kept, decimals, rows)
        frame = telemetry.encode_columns(batch)
    as_bits = array("d", kernel).tolist(), array("d", python).tolist()
    assert [math.isnan(one) or one for one in as_bits[0]] == [math.isnan(one) or one for one in as_bits[1]]
    assert frame == telemetry.encode_columns(batch)
    if any(map(math.isinf, (value for column in batch.values for value in column))):
        with pytest.raises(InvalidMessageError, match="infinite"):
            telemetry.decode(frame)
        return
    again = telemetry.decode(frame)
    for before, after, quality in zip(batch.values, again.values, batch.qualities, strict=True):
        for one, other, bad in zip(before, after, quality, strict=True):
            assert one == other or (math.isnan(one) and math.isnan(other) and bad == 2)


def test_lengths_that_do_not_fit_are_refused():
    for values, qualities, rows in ((b"\0" * 8, b"\0\0", 1), (b"\0" * 16, b"\0", 1), (b"\0" * 24, b"\0\0\0", 2)):
        with pytest.raises(ValueError, match="fit"):
            columnar.pack(values, qualities, rows)
    with pytest.raises(ValueError, match="fit"):
        columnar.unpack(b"\0" * 4, b"", "0", 1)
    with pytest.raises(ValueError, match="not found"):
        columnar.unpack(b"\0" * 4, b"\0", "z", 1)


def test_a_batch_without_rows_goes_without_the_kernel():
    empty = ColumnBatch(
        site_id="home-1", session="s", stream="points", sequence=1, columns=("a",), times_ns=array("q"), values=(array("d"),),
        qualities=(b"",),
    )  # fmt: skip
    assert telemetry.decode(telemetry.encode_columns(empty)) == empty
