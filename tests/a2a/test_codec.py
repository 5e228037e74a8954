"""Messages survive the wire, and nothing else gets through."""

import contextlib
import json
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wattmesh_a2a import codec
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_a2a.messages import MESSAGE_TYPES, Acknowledged

st.register_type_strategy(float, st.floats(-1e6, 1e6).map(lambda value: round(value, 3)))
st.register_type_strategy(int, st.integers(-(2**53), 2**53))
st.register_type_strategy(str, st.text(max_size=12))


@pytest.mark.parametrize("name", sorted(MESSAGE_TYPES))
def test_every_message_comes_back_as_it_was(name):
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_type(MESSAGE_TYPES[name]))
    def check(message):
        assert codec.parse_record(codec.record_line(message)) == message

    check()


def envelope(**more):
    fields = {
        "id": "i", "source": Address("o", "u", "a"), "type": "wattmesh.acknowledged.v1", "time_ns": 5, "session": "s",
        "sequence": 1, "expires_ns": 9, "data": Acknowledged(detail="ä"), **more,
    }  # fmt: skip
    return Envelope(**fields)


@given(
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.one_of(st.none(), st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=50)),
)
def test_envelopes_come_back_as_they_were(time_ns, not_before, correlation):
    one = envelope(time_ns=time_ns, not_before_ns=not_before, correlation_id=correlation)
    assert codec.from_fields(codec.decode_fields(codec.encode(one))) == one


@settings(max_examples=4000, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_only_ever_raises_the_one_error(garbage):
    with pytest.raises(InvalidMessageError):
        codec.from_fields(codec.decode_fields(garbage))


@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_a_message_with_one_wrong_field_is_refused_or_still_valid(data):
    fields = json.loads(codec.encode(envelope()))
    key = data.draw(st.sampled_from(sorted(fields)))
    fields[key] = data.draw(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
    )
    with contextlib.suppress(InvalidMessageError):
        codec.from_fields(codec.decode_fields(json.dumps(fields).encode()))


def test_unknown_fields_are_ignored_and_unknown_types_refused():
    fields = {**json.loads(codec.encode(envelope())), "novel": 1}
    fields["data"]["more"] = [1]
    assert codec.from_fields(fields) == envelope()
    fields["type"] = "wattmesh.acknowledged.v2"
    with pytest.raises(InvalidMessageError, match="unknown message type"):
        codec.from_fields(fields)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_number_is_refused(number):
    with pytest.raises(InvalidMessageError):
        codec.decode_fields(b'{"x": %s}' % number.encode())


def test_too_large_is_refused_on_both_sides():
    with pytest.raises(InvalidMessageError, match="over"):
        codec.encode(envelope(data=Acknowledged(detail="x" * 2_000_001)))
    with pytest.raises(InvalidMessageError, match="over"):
        codec.decode_fields(b" " * 2_000_001)


def test_every_member_of_the_union_has_a_name():
    from wattmesh_a2a.messages import Message

    assert set(typing.get_args(Message)) == set(MESSAGE_TYPES.values())


@pytest.mark.parametrize(
    "field",
    [b'"raised_ns":1180591620717411303424', b'"raised_ns":1e999', b'"raised_ns":-1e999', b'"id":"\\ud800"'],
)
def test_numbers_and_texts_that_no_store_takes_are_refused(field):
    data = b'{"site_id":"s","asset_id":null,"severity":"info","text":"t","raised_ns":1,"id":"a",%s}' % field
    with pytest.raises(InvalidMessageError):
        codec.parse_record(b'{"type":"wattmesh.alarm.v1","data":%s}' % data)


def test_characters_beyond_the_first_plane_pass():
    one = Acknowledged(detail="☀ 🔋")
    assert codec.parse_record(codec.record_line(one)) == one


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5"),
        (-0.0, "0"),
        (9007199254740994.0, "9007199254740994"),
        (1e16, "10000000000000000"),
        (0.1, "0.1"),
        (1e-7, "1e-7"),
    ],
    ids=["whole", "minus zero", "beyond 2^53", "sixteen zeros", "a tenth", "tiny"],
)
def test_numbers_stand_as_ecmascript_writes_them(value, text):
    assert codec.canonical({"a": [{"b": value}]}) == f'{{"a":[{{"b":{text}}}]}}'.encode()
