"""The decoding kernel against struct, over all types, orders and lengths."""

import math
import struct
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_drivers.decode import decode
from wattmesh_drivers.modbus.driver import CODES, WORDS, encode_value

FORMATS = {"u16": ">H", "s16": ">h", "u32": ">I", "s32": ">i", "u64": ">Q", "s64": ">q", "f32": ">f", "f64": ">d"}


def run(registers, type_, *, offset=0, little=False, factor=1.0, sentinel=None):
    values, qualities = array("d", [7.0]), bytearray([9])
    good = decode(
        array("H", registers), array("i", [offset]), array("i", [CODES[type_]]), bytes([little]), array("d", [factor]),
        array("q", [sentinel or 0]), bytes([sentinel is not None]), array("i", [0]), values, qualities,
    )  # fmt: skip
    assert good == (qualities[0] == 0)
    return values[0], qualities[0]


@settings(max_examples=2000, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.binary(min_size=8, max_size=8),
    st.booleans(),
    st.sampled_from([1, -1, 0.1, 1000]),
)
def test_every_bit_pattern_decodes_as_struct_does(type_, content, little, factor):
    words = WORDS[type_]
    registers = list(struct.unpack(f">{words}H", content[: words * 2]))
    (wanted,) = struct.unpack(FORMATS[type_], content[: words * 2])
    value, quality = run(registers[::-1] if little else registers, type_, little=little, factor=factor)
    if math.isfinite(wanted):
        assert quality == 0
        assert value == float(wanted) * factor
    else:
        assert quality == 2
        assert math.isnan(value)


@given(st.sampled_from(sorted(FORMATS)), st.integers(-5, 12), st.integers(0, 6))
def test_a_point_outside_the_block_is_bad_and_nothing_is_read_there(type_, offset, length):
    value, quality = run([1] * length, type_, offset=offset)
    if offset < 0 or offset + WORDS[type_] > length:
        assert quality == 2
        assert math.isnan(value)
    else:
        assert quality == 0


def test_sentinels_are_no_data():
    assert run([0x8000], "s16", sentinel=-0x8000)[1] == 2
    assert run([0x8001], "s16", sentinel=-0x8000) == (-32767.0, 0)
    assert run([0xFFFF], "u16", sentinel=0xFFFF)[1] == 2
    assert run([0xFFFF] * 4, "u64", sentinel=-1)[1] == 2
    assert run([0x8000, 0], "s32", sentinel=-0x80000000)[1] == 2


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(["u16", "s16", "u32", "s32", "f32"]), st.booleans(), st.integers(-30_000, 30_000))
def test_what_is_encoded_decodes_to_itself(type_, little, number):
    number = abs(number) if type_[0] == "u" else number
    assert run(encode_value(number, type_, little=little), type_, little=little) == (float(number), 0)
