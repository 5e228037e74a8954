"""PUBLISH as we read and write it, against paho's own general code, and under broken bytes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from wattmesh_a2a.transports.packets import PackedProperties, read_publish

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def theirs(expiry, response, correlation, users):
    made = Properties(PacketTypes.PUBLISH)
    if expiry is not None:
        made.MessageExpiryInterval = expiry
    if response:
        made.ResponseTopic = response
    if correlation:
        made.CorrelationData = correlation
    for pair in users:
        made.UserProperty = pair
    return made


EXPIRY = st.none() | st.integers(0, 2**32 - 1)
RESPONSE = st.none() | TEXT
CORRELATION = st.none() | st.binary(max_size=300)
USERS = st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple)


@given(
    EXPIRY, RESPONSE, CORRELATION, USERS, TEXT, st.binary(max_size=50), st.sampled_from([0, 1]), st.integers(1, 65_535)
)
def test_what_paho_packs_is_read_and_what_we_pack_is_the_same(
    expiry, response, correlation, users, topic, payload, qos, packet_id
):
    packed = theirs(expiry, response, correlation, users).pack()
    ours = PackedProperties(
        expiry_s=expiry, response_topic=response, correlation_data=correlation, user_properties=users
    )
    assert ours.pack() == packed
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + (packet_id.to_bytes(2, "big") if qos else b"") + packed + payload
    found = read_publish(0x30 | qos << 1, body)
    assert (found.topic, found.payload, found.packet_id) == (topic, payload, packet_id if qos else 0)
    assert (found.response_topic or None, found.correlation_data or None) == (response or None, correlation or None)
    assert found.user_properties == users


def test_properties_that_we_do_not_use_are_passed_over():
    made = Properties(PacketTypes.PUBLISH)
    made.PayloadFormatIndicator = 1
    made.ContentType = "application/json"
    made.TopicAlias = 7
    made.SubscriptionIdentifier = 300
    made.ResponseTopic = "r"
    found = read_publish(0x30, b"\x00\x01t" + made.pack() + b"x")
    assert (found.response_topic, found.payload) == ("r", b"x")


def test_broken_packets_raise_one_kind_of_error():
    """60,000 of them: cut, changed, or made of chance."""
    chance = random.Random(7)
    packed = theirs(30, "a2a/v1/reply/o/cloud/x/s", b"c" * 32, (("a", "b"),)).pack()
    good = b"\x00\x03a/b\x00\x07" + packed + b"payload"
    for number in range(60_000):
        if number % 3 == 0:
            body = good[: chance.randrange(len(good))]
        elif number % 3 == 1:
            changed = bytearray(good)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            body = bytes(changed)
        else:
            body = chance.randbytes(chance.randrange(60))
        try:
            found = read_publish(0x32, body)
        except ValueError:
            continue
        assert len(found.payload) <= len(body)


def test_what_is_too_long_for_a_field_is_refused():
    with pytest.raises(ValueError, match="longer"):
        PackedProperties(expiry_s=None, response_topic=None, correlation_data=bytes(65_536), user_properties=())
