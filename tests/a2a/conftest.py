"""Two ends of a conversation over an in-memory broker, without real time."""

import asyncio

import pytest
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "market-supervisor")
KEY = b"k" * 32


class NoPause:
    """A timer without real time: it gives everybody else a few turns."""

    def __init__(self, _seconds, callback):
        self.callback, self.turns = callback, 8
        self.step()

    def step(self):
        self.turns -= 1
        if self.callback and not self.turns:
            self.callback()
        elif self.callback:
            asyncio.get_running_loop().call_soon(self.step)

    def cancel(self):
        self.callback = None


class Ends:
    """Makes deliveries on one broker and clock."""

    def __init__(self, **faults):
        self.broker = MemoryBroker(**faults)
        self.clock = ManualClock()
        self.made = []

    async def join(self, address, *, keys=None, store=None, prepare=None):
        transport = MemoryTransport(self.broker)
        delivery = Delivery(transport, address, self.clock, keys=keys, store=store, after=NoPause)
        if prepare:
            prepare(delivery)
        await delivery.start()
        self.made.append((delivery, transport))
        return delivery, transport


@pytest.fixture
async def ends():
    made = []

    def make(**faults):
        made.append(Ends(**faults))
        return made[-1]

    yield make
    for one in made:
        for delivery, _ in one.made:
            await delivery.stop()


@pytest.fixture
def addresses():
    return SITE, CLOUD


@pytest.fixture
def ring():
    return lambda **keys: KeyRing({name.replace("_", "-"): key for name, key in keys.items()})
