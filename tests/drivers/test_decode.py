"""The decoding kernel against struct, over all types, orders and lengths."""

import math
import struct
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wattmesh_drivers.decode import BlockDecoder
from wattmesh_drivers.modbus.driver import CODES, WORDS, encode_value

FORMATS = {"u16": ">H", "s16": ">h", "u32": ">I", "s32": ">i", "u64": ">Q", "s64": ">q", "f32": ">f", "f64": ">d"}


def run(registers, type_, *, offset=0, little=False, factor=1.0, sentinel=None):
    values, qualities = array("d", [7.0]), bytearray([9])
    decoder = BlockDecoder(
        array("i", [offset]), array("i", [CODES[type_]]), bytes([little]), array("d", [factor]),
        array("q", [sentinel or 0]), bytes([sentinel is not None]), array("i", [0]),
    )  # fmt: skip
    good = decoder.decode(array("H", registers), values, qualities)
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
    if math.isfinite(float(wanted) * factor):
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


def test_a_value_that_scaling_makes_infinite_is_bad():
    value, quality = run(struct.unpack(">4H", struct.pack(">d", 1e300)), "f64", factor=1e10)
    assert quality == 2
    assert math.isnan(value)


@pytest.mark.parametrize("offset", [2**31 - 1, 2**31 - 4, -(2**31)])
def test_an_offset_at_the_end_of_its_type_does_not_wrap_around(offset):
    assert run([1, 2, 3, 4], "u64", offset=offset)[1] == 2


def test_a_target_without_a_place_is_refused():
    one = array("i", [0])
    decoder = BlockDecoder(one, one, b"\0", array("d", [1.0]), array("q", [0]), b"\0", array("i", [3]))
    with pytest.raises(ValueError, match="shorter"):
        decoder.decode(array("H", [1]), array("d", [0.0] * 3), bytearray(3))
