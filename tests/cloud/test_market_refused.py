"""What is no order, late, unsigned or somebody else's: refused with a reason, counted, in the journal, and nothing else changes."""

import json

import pytest
from wattmesh_a2a import codec
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, MARKET_AGENT, Address
from wattmesh_a2a.market import Order, OrderStatus, Side
from wattmesh_a2a.messages import OrderPlace
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.topics import Topics
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.market.journal import Journal
from wattmesh_cloud.market.replica import recovered

MARKET, ANN = Address("demo", CLOUD_UNIT, MARKET_AGENT), Address("demo", "ann", "gateway")
KEYS = {"ann": b"a" * 32, "bob": b"b" * 32}
NOW = 19_676 * 86_400 * NS_PER_S
SLOT = NOW + 4 * 900 * NS_PER_S


class Wire:
    """A market behind a real delivery, and a sender that may send anything."""

    def __init__(self, make_config, store, folder):
        self.config, self.folder = make_config(), folder
        self.clock, self.broker = ManualClock(NOW), MemoryBroker()
        self.cloud = Delivery(MemoryTransport(self.broker), MARKET, self.clock, keys=KeyRing(KEYS))
        self.markets = Markets([self.config], store, self.cloud, self.clock, folder, "demo")
        self.service = self.markets.first
        self.sender, self.answers = MemoryTransport(self.broker), []
        self.number = 0

    async def start(self):
        self.markets.register()
        self.cloud.on_refusal(self.markets.on_refusal, as_agent=MARKET)
        await self.cloud.start()
        await self.sender.start()
        await self.sender.subscribe("a2a/v1/reply/demo/+/+/+", lambda one: self.answers.append(json.loads(one.payload)))

    async def stop(self):
        await self.cloud.stop()
        await self.sender.stop()
        self.markets.close()

    async def send(self, *, key=KEYS["ann"], source=ANN, change=None, **terms):
        """An order of ann's, spoilt by ``change(fields)``; the answer's data."""
        self.number += 1
        order = Order(
            **{
                "client_order_id": f"o{self.number}", "participant_id": "ann", "area_id": "area-1", "slot_start_ns": SLOT,
                "side": Side.BUY, "quantity_wh": 100, "price_ticks": 2000, **terms,
            }
        )  # fmt: skip
        now = self.clock.utc_ns()
        fields = {
            "specversion": "1.0", "id": f"m{self.number}", "source": str(source), "type": "wattmesh.market.place.v1",
            "timens": now, "session": "s", "sequence": self.number, "expiresns": now + 60 * NS_PER_S,
            "destination": str(MARKET),
            "data": codec.message_to_json(OrderPlace(participant_id="ann", area_id="area-1", orders=(order,))),
        }  # fmt: skip
        if change is not None:
            change(fields)
        signature = KeyRing({source.unit: key}).sign(source, MARKET, codec.canonical(fields)) if key else None
        topics, before = Topics(), len(self.answers)
        await self.sender.publish(
            topics.request(MARKET), codec.encode_fields(fields, signature), response_topic=topics.reply(source, "s"),
            correlation_data=b"x",
        )  # fmt: skip
        for _ in range(2000):
            if len(self.answers) > before:
                return self.answers[-1]["data"]
            await self.clock.advance(0)
        raise AssertionError("no answer")


@pytest.fixture
async def wire(make_config, store, tmp_path):
    made = Wire(make_config, store, tmp_path)
    await made.start()
    yield made
    await made.stop()


def spoilt(path, value):
    def change(fields):
        at = fields
        for name in path[:-1]:
            at = at[name]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value

    return change


ORDER = ("data", "orders", 0)
BAD = {
    "a negative text for a number": spoilt((*ORDER, "quantity_wh"), "-5x"),
    "half a watt-hour": spoilt((*ORDER, "quantity_wh"), 0.5),
    "no side": spoilt((*ORDER, "side"), None),
    "a side of its own": spoilt((*ORDER, "side"), "steal"),
    "no orders": spoilt(("data", "orders"), None),
    "orders that are none": spoilt(("data", "orders"), "all"),
    "no participant": spoilt(("data", "participant_id"), None),
    "data that is a list": spoilt(("data",), []),
}


@pytest.mark.parametrize("name", sorted(BAD))
async def test_what_is_no_order_is_refused_counted_and_journaled(wire, name):
    before = wire.service.engine.dump()
    answer = await wire.send(change=BAD[name])
    assert answer["error"] == "invalid"
    assert not answer["retryable"]
    await wire.service._step()
    after = wire.service.engine.dump()
    assert after["rejects"] == {"invalid": 1}
    assert {**after, "rejects": {}} == before
    good = await wire.send()
    assert good["results"][0]["status"] == "accepted"


async def test_late_unsigned_foreign_and_misdirected_ones(wire, tmp_path):
    def late(fields):
        fields["timens"] -= 120 * NS_PER_S
        fields["expiresns"] = wire.clock.utc_ns() - 1

    assert (await wire.send(change=late))["error"] == "expired"
    assert (await wire.send(key=b"z" * 32))["error"] == "unsigned"
    assert (await wire.send(key=None))["error"] == "unsigned"
    assert (await wire.send(source=Address("demo", "bob", "gateway"), key=KEYS["bob"]))["error"] == "UnauthorisedError"
    far = wire.clock.utc_ns() + 3600 * NS_PER_S
    assert (await wire.send(change=lambda fields: fields.update(timens=far)))["error"] == "unreasonable"
    wrong = {
        "bad_quantity": {"quantity_wh": -5},
        "bad_price": {"price_ticks": 10**9},
        "unknown_product": {"slot_start_ns": SLOT + 1},
        "gate_closed": {"slot_start_ns": SLOT - 900 * NS_PER_S * 100},
        "not_authorised": {"participant_id": "bob"},
    }
    for reason, terms in wrong.items():
        (result,) = (await wire.send(**terms))["results"]
        assert (result["status"], result["reason"]) == (OrderStatus.REJECTED, reason)
    await wire.service._step()
    expected = {
        "expired": 1, "unsigned": 2, "unreasonable": 1, "not_authorised": 2, "bad_quantity": 1, "bad_price": 1,
        "unknown_product": 1, "gate_closed": 1,
    }  # fmt: skip
    assert wire.service.engine.rejects == expected
    assert wire.service.engine.slots == {}, "nothing else has changed"
    hashed = wire.service.engine.state_hash()
    wire.markets.close()
    journal = Journal(tmp_path / "market-area-1.journal")
    assert recovered(wire.config, journal, tmp_path / "none").engine.state_hash() == hashed
    sources = {(one["reason"], one["source"]) for one in journal.entries() if one["what"] == "refused"}
    assert ("unsigned", "demo/ann/gateway") in sources
    wire.service._journal = journal  # closed by the fixture


async def test_a_flood_of_rubbish_under_many_names_takes_bounded_room(wire):
    for number in range(1000):
        wire.service.note_refusal(Address("demo", f"x{number}", "gateway"), "unsigned")
    size = wire.service._journal.count
    await wire.service._step()
    assert wire.service._journal.count - size <= 101
    assert wire.service.engine.rejects == {"unsigned": 1000}


async def test_the_same_message_again_is_one_order(wire):
    first = await wire.send()
    wire.number -= 1
    again = await wire.send()
    assert again == first
    assert len(wire.service.engine.slots[SLOT].entries) == 1
