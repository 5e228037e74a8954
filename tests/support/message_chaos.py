"""Random schedules of a bad network and of crashes, in virtual time, and what may never happen under any of them.

The model knows nothing of how delivery works: it is a list of effects with their times, and the commands' own windows.
"""

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass, field

from virtual_time import NS, LoopClock, VirtualLoop
from wattmesh_a2a.dedupe import MemoryDedupe
from wattmesh_a2a.delivery import Delivery
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.messages import Acknowledged, Refused, Strategy, TelemetryAck
from wattmesh_a2a.outgoing import MemoryOutgoing
from wattmesh_a2a.signing import KeyRing
from wattmesh_a2a.transports.memory import MemoryBroker, MemoryTransport
from wattmesh_edge.uplink import Uplink

SITE, CLOUD = Address("o", "home-1", "gateway"), Address("o", "cloud", "producer")
RING = KeyRing({"home-1": b"k" * 32})


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Fuse:
    """Counts the steps of one end's life; at the chosen one the process ends. A dead one's every step fails."""

    steps_left: int
    dead: bool = False

    def step(self):
        if self.dead:
            raise Crash
        self.steps_left -= 1
        if self.steps_left < 0:
            self.dead = True
            raise Crash


@dataclass
class Disk:
    """What survives a crash."""

    answers: MemoryDedupe = field(default_factory=MemoryDedupe)
    outgoing: MemoryOutgoing = field(default_factory=MemoryOutgoing)
    effects: list = field(default_factory=list)
    frames: set = field(default_factory=set)
    outbox: dict = field(default_factory=dict)


class Answers:
    """A store on the disk of a process that may end before and after each access, and in the middle of a commit."""

    def __init__(self, disk, fuse):
        self.disk, self.fuse, self.staged = disk, fuse, None

    def __getattr__(self, name):
        stored = getattr(self.disk.answers, name)

        def access(*arguments):
            if self.staged is None:
                self.fuse.step()
            found = stored(*arguments)
            if self.staged is None:
                self.fuse.step()
            return found

        return access

    async def settled(self, *, at_once=False):
        self.fuse.step()

    @contextlib.contextmanager
    def transaction(self):
        self.fuse.step()
        self.staged = []
        try:
            with self.disk.answers.transaction():
                yield self
                self.fuse.step()
            self.disk.effects += self.staged
        finally:
            self.staged = None
        self.fuse.step()


class Outgoing:
    def __init__(self, disk, fuse):
        self.disk, self.fuse = disk, fuse

    def add(self, pending):
        self.fuse.step()
        self.disk.outgoing.add(pending)
        self.fuse.step()

    def remove(self, request_id):
        self.fuse.step()
        self.disk.outgoing.remove(request_id)
        self.fuse.step()

    def pending(self):
        return self.disk.outgoing.pending()


class Outbox:
    """As much of the gateway's outbox as the uplink asks for."""

    def __init__(self, disk, fuse):
        self.disk, self.fuse = disk, fuse

    def pending(self, limit, newest_first=True, skip=frozenset()):
        rows = [one for key, one in sorted(self.disk.outbox.items(), reverse=True) if key not in skip]
        return rows[:limit]

    def acknowledge(self, stream, sequences):
        self.fuse.step()
        for sequence in sequences:
            self.disk.outbox.pop((stream, sequence), None)
        self.fuse.step()


@dataclass
class Batch:
    stream: str
    sequence: int
    frame: bytes


class Transport(MemoryTransport):
    def __init__(self, broker, fuse):
        super().__init__(broker)
        self.fuse = fuse

    async def publish(self, *arguments, **options):
        self.fuse.step()
        await super().publish(*arguments, **options)
        self.fuse.step()


class End:
    """One end over all its lives."""

    def __init__(self, world, address, prepare, ring=RING):
        self.world, self.address, self.prepare, self.ring = world, address, prepare, ring
        self.disk, self.delivery, self.transport, self.fuse = Disk(), None, None, None

    async def start(self, steps):
        self.fuse = Fuse(steps)
        self.transport = Transport(self.world.broker, self.fuse)
        self.delivery = Delivery(
            self.transport,
            self.address,
            self.world.clock,
            keys=self.ring,
            store=Answers(self.disk, self.fuse),
            outgoing=Outgoing(self.disk, self.fuse),
        )
        self.prepare(self)
        await self.delivery.start()

    def kill(self):
        self.fuse.dead = True
        self.transport.crash()
        for task in self.delivery._tasks:
            task.cancel()


class World:
    def __init__(self, seed, loop):
        self.chance = random.Random(seed)
        self.clock = LoopClock(loop)
        self.broker = MemoryBroker(
            seed=seed, loss=0.2, repeat=0.2, reorder=0.2, delay_s=self.chance.choice([0, 0.5, 3])
        )
        self.told = {}
        self.windows = {}

    def steps(self):
        return self.chance.choice([self.chance.randrange(4, 40), self.chance.randrange(4, 120), 10**9])

    async def keep_alive(self, ends, until_s):
        """Crash, restart, cut and mend until the time is over; then everything works again."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + until_s
        while loop.time() < end_at:
            await asyncio.sleep(self.chance.uniform(0.1, 3))
            for end in ends:
                if end.fuse.dead:
                    end.kill()
                    await asyncio.sleep(self.chance.uniform(0, 4))
                    await end.start(self.steps())
                elif self.chance.random() < 0.2:
                    end.transport.partitioned = True
                elif end.transport.partitioned:
                    end.transport.heal()
        self.broker.heal()
        for end in ends:
            end.kill()
        await asyncio.sleep(1)
        for end in ends:
            await end.start(10**9)


def strategy(world, expires_ns, number):
    return Strategy(
        site_id="home-1",
        expires_ns=expires_ns,
        reserve_soc_percent=5,
        peak_limit_w=None,
        trade=True,
        rationale=str(number),
    )


async def commands(seed, loop):
    """Durable commands from cloud to site; the two careful kinds of handlers take turns."""
    world = World(seed, loop)
    transactional = seed % 2 == 0

    def as_site(end):
        def effect(envelope):
            return (envelope.id, end.world.clock.utc_ns())

        def in_transaction(envelope, staged):
            end.fuse.step()
            end.delivery._store.staged.append(effect(envelope))
            end.fuse.step()
            return Acknowledged()

        async def recorded(envelope):
            end.fuse.step()
            end.disk.effects.append(effect(envelope))
            end.fuse.step()
            await asyncio.sleep(0)
            return Acknowledged()

        async def after_crash(envelope):
            return Acknowledged() if any(one == envelope.id for one, _ in end.disk.effects) else None

        if transactional:
            end.delivery.on_request_in_transaction(Strategy, in_transaction)
        else:
            end.delivery.on_request(Strategy, recorded, after_crash=after_crash)

    def as_cloud(end):
        def outcome(request_id, answer):
            end.fuse.step()
            world.told.setdefault(request_id, []).append(answer)
            end.fuse.step()

        end.delivery.on_outcome(outcome)

    site, cloud = End(world, SITE, as_site), End(world, CLOUD, as_cloud)
    await site.start(world.steps())
    await cloud.start(world.steps())

    async def issue(number):
        await asyncio.sleep(world.chance.uniform(0, 5))
        now = world.clock.utc_ns()
        expires = now + round(world.chance.choice([1, 5, 30]) * world.chance.uniform(0.5, 1.5) * NS)
        early = now + round(world.chance.uniform(0, 8) * NS) if world.chance.random() < 0.3 else 0
        with contextlib.suppress(Crash, UnavailableError):  # ended before it was stored: it was never issued
            await cloud.delivery.request_durably(
                SITE, strategy(world, expires, number), expires_ns=expires, not_before_ns=early
            )
        for pending in cloud.disk.outgoing.pending():
            if pending.expires_ns == expires:
                world.windows[pending.id] = (early, expires)

    issued = [loop.create_task(issue(number)) for number in range(world.chance.choice([1, 1, 2]))]
    await world.keep_alive([site, cloud], world.chance.uniform(3, 12))
    await asyncio.gather(*issued)
    end_at = loop.time() + 3600
    while cloud.disk.outgoing.pending() and loop.time() < end_at:
        await asyncio.sleep(5)
    for end in (site, cloud):
        await end.delivery.stop()

    effects = {}
    for name, moment in site.disk.effects:
        assert name in world.windows, f"seed {seed}: an effect that nobody asked for"
        assert name not in effects, f"seed {seed}: took effect twice"
        early, expires = world.windows[name]
        assert early <= moment < expires, f"seed {seed}: an effect outside its window"
        effects[name] = moment
    for name in world.windows:
        answers = world.told.get(name)
        assert answers, f"seed {seed}: the sender never learned the outcome"
        assert all(one == answers[0] for one in answers), f"seed {seed}: two outcomes of one command: {answers}"
        done = isinstance(answers[0], Acknowledged)
        assert done == (name in effects), f"seed {seed}: told {answers[0]}, but effect is {name in effects}"
        assert done or (isinstance(answers[0], Refused) and answers[0].error == "expired"), f"seed {seed}: {answers[0]}"
    return len(world.windows), len(effects)


async def telemetry(seed, loop):
    """Batches from site to cloud through the gateway's uplink."""
    world = World(seed, loop)

    def as_site(end):
        end.uplink = Uplink(Outbox(end.disk, end.fuse), end.delivery, now=loop.time)

    def as_cloud(end):
        def take(site, stream, frame):
            end.fuse.step()
            end.disk.frames.add((stream, int(frame)))
            end.fuse.step()
            ack = TelemetryAck(stream=stream, sequences=(int(frame),))
            end.delivery._spawn(acknowledge(ack))

        async def acknowledge(ack):
            with contextlib.suppress(UnavailableError):
                await end.delivery.request(SITE, ack, expires_ns=world.clock.utc_ns() + 60 * NS, timeout_s=10)

        def guarded(*arguments):
            with contextlib.suppress(Crash):  # in a callback of the network: the end is found dead and restarted
                take(*arguments)

        end.delivery.on_telemetry(guarded)

    site, cloud = End(world, SITE, as_site), End(world, CLOUD, as_cloud)
    await site.start(world.steps())
    await cloud.start(world.steps())
    wanted = {("points", number) for number in range(world.chance.randrange(1, 6))}

    async def pump():
        for stream, number in sorted(wanted):
            site.disk.outbox[stream, number] = Batch(stream, number, b"%d" % number)
        while True:
            with contextlib.suppress(Crash):
                await site.uplink.pump()
            await asyncio.sleep(1)

    pumping = loop.create_task(pump())
    await world.keep_alive([site, cloud], world.chance.uniform(3, 12))
    end_at = loop.time() + 3600
    while site.disk.outbox and loop.time() < end_at:
        await asyncio.sleep(2)
    pumping.cancel()
    for end in (site, cloud):
        await end.delivery.stop()
    assert cloud.disk.frames == wanted, f"seed {seed}: missing {wanted - cloud.disk.frames}"
    assert not site.disk.outbox, f"seed {seed}: never acknowledged"
    return len(wanted), 0


def run(first, count):
    """Run so many schedules; returns how many commands, effects and batches there were."""
    logging.disable(logging.CRITICAL)  # a crash in the middle of a handler is logged as what it is
    totals = {"commands": 0, "effects": 0, "batches": 0}
    loop = VirtualLoop()
    loop.set_exception_handler(lambda *_: None)
    asyncio.set_event_loop(loop)
    try:
        for seed in range(first, first + count):
            if seed % 5 == 4:
                totals["batches"] += loop.run_until_complete(telemetry(seed, loop))[0]
            else:
                issued, done = loop.run_until_complete(commands(seed, loop))
                totals["commands"] += issued
                totals["effects"] += done
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
        logging.disable(logging.NOTSET)
    return totals
