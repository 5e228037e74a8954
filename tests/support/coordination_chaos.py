"""Tenders under a bad network and crashes of manager and contractors, in virtual time.

The model is each site's own list of what it committed itself to, and when; it knows nothing of courses.
"""

import asyncio
import contextlib
import logging

from message_chaos import CLOUD, Crash, End, World
from virtual_time import NS, VirtualLoop
from wattmesh_a2a.coordination import Coordinator, MemoryCourses, Outcome, Tender
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import UnavailableError, WattmeshError
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseOffer, DemandResponseState
from wattmesh_a2a.messages import Acknowledged, Refused
from wattmesh_a2a.signing import KeyRing

SITES = [Address("o", f"home-{number}", "gateway") for number in range(1, 5)]
RING = KeyRing({site.unit: bytes([65 + number]) * 32 for number, site in enumerate(SITES)})
NEED_W = 2500


class Courses:
    """The manager's store on the disk of a process that may end before and after each write."""

    def __init__(self, kept, fuse):
        self.kept, self.fuse = kept, fuse

    def save(self, *arguments, **options):
        self.fuse.step()
        self.kept.save(*arguments, **options)
        self.fuse.step()

    def __getattr__(self, name):
        return getattr(self.kept, name)


def event_of(now, start):
    return DemandResponseEvent(
        id="dr", start_ns=start, end_ns=start + 3600 * NS, target_w=-NEED_W, price_ticks=30,
        state=DemandResponseState.ANNOUNCED, reason="test",
    )  # fmt: skip


def choose(course):
    """Cheapest first, as much as is not surely covered; what is unknown counts as covered."""
    left = NEED_W + sum(one.award.power_w for one in course.of(Outcome.COMMITTED, Outcome.UNKNOWN).values())
    awards = {}
    for address, offer in sorted(course.offers.items(), key=lambda pair: (pair[1].price_ticks, str(pair[0]))):
        power = min(left, -offer.offered_w)
        if power > 0 and address not in course.contracts:
            left -= power
            awards[address] = DemandResponseDispatch(
                event_id="dr", site_id=address.unit, start_ns=1, end_ns=2, power_w=-power, baseline_w=0, price_ticks=1
            )
    return awards


def as_contractor(moody, calls):
    def prepare(end):
        async def on_call(envelope):
            end.fuse.step()
            calls.append(end.address)
            return DemandResponseOffer(
                event_id="dr",
                site_id=end.address.unit,
                offered_w=-1000,
                price_ticks=len(end.address.unit),
                baseline_w=5,
            )

        def on_award(envelope, staged):
            end.fuse.step()
            if moody:
                return Refused(error="changed_my_mind", detail="", retryable=False)
            end.delivery._store.staged.append((envelope.data.power_w, end.world.clock.utc_ns()))
            end.fuse.step()
            return Acknowledged()

        end.delivery.on_request(DemandResponseEvent, on_call)
        end.delivery.on_request_in_transaction(DemandResponseDispatch, on_award)

    return prepare


async def tender(seed, loop):
    world = World(seed, loop)
    kept, running, settled, calls = MemoryCourses(), [], [], []
    now = world.clock.utc_ns()
    commit_until = now + round(world.chance.choice([3, 10, 40]) * NS)
    wanted = Tender(
        id="dr", call=event_of(now, commit_until), to=tuple(SITES), offers_until_ns=now + 3 * NS, commit_until_ns=commit_until
    )  # fmt: skip

    def as_manager(end):
        end.coordinator = Coordinator(
            end.delivery, world.clock, Courses(kept, end.fuse), on_settled=lambda course, to: settled.append(to)
        )
        running.append(loop.create_task(manage(end)))

    async def manage(end):
        await asyncio.sleep(0.01)
        # Ended in the middle, or refused by a messenger that was stopped: the next life goes on.
        with contextlib.suppress(Crash, UnavailableError):
            end.coordinator.resume()
            course = await end.coordinator.run(wanted, choose, offer=DemandResponseOffer)
            assert course.closed

    chance = world.chance
    sites = [End(world, one, as_contractor(chance.random() < 0.2, calls), ring=RING) for one in SITES]
    cloud = End(world, CLOUD, as_manager, ring=RING)
    for end in (cloud, *sites):
        await end.start(world.steps())
    await world.keep_alive([cloud, *sites], chance.uniform(3, 20))
    end_at = loop.time() + 3600
    while loop.time() < end_at:
        course = cloud.coordinator.course("dr")
        if course is not None and course.closed and not course.of(Outcome.UNKNOWN):
            break
        await asyncio.sleep(5)
    for task in running:
        task.cancel()
    for one in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(one, Exception) and not isinstance(one, WattmeshError):
            raise one
    cloud.coordinator.stop()
    for end in (cloud, *sites):
        await end.delivery.stop()

    assert course is not None, f"seed {seed}: the tender was never begun"
    assert course.closed, f"seed {seed}: the tender never ended"
    committed_w = 0
    for end in sites:
        assert len(end.disk.effects) <= 1, f"seed {seed}: {end.address} is bound twice"
        contract = course.contracts.get(end.address)
        outcome = contract.outcome if contract else Outcome.DECLINED
        assert outcome is not Outcome.UNKNOWN, f"seed {seed}: the manager never learned of {end.address}"
        assert (outcome is Outcome.COMMITTED) == bool(end.disk.effects), f"seed {seed}: {end.address} {outcome}"
        for power_w, moment in end.disk.effects:
            assert moment < commit_until, f"seed {seed}: {end.address} is bound after the deadline"
            assert power_w == contract.award.power_w
            committed_w -= power_w
    assert committed_w <= NEED_W, f"seed {seed}: {committed_w} W are bound, {NEED_W} W were wanted"
    declined = len(course.of(Outcome.DECLINED))
    return {
        "offers": len(course.offers), "committed": len(course.of(Outcome.COMMITTED)), "declined": declined,
        "covered": committed_w == NEED_W, "replaced": declined > 0 and committed_w == NEED_W, "settled": len(settled),
    }  # fmt: skip


def run(first, count):
    """Run so many tenders; returns sums of what they came to."""
    logging.disable(logging.CRITICAL)
    totals = {}
    loop = VirtualLoop()
    loop.set_exception_handler(lambda *_: None)
    asyncio.set_event_loop(loop)
    try:
        for seed in range(first, first + count):
            for name, value in loop.run_until_complete(tender(seed, loop)).items():
                totals[name] = totals.get(name, 0) + value
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
        logging.disable(logging.NOTSET)
    return totals
