"""Tenders: under random schedules in virtual time, and what a single one does."""

import pytest
from coordination_chaos import run
from wattmesh_a2a.coordination import Coordinator, MemoryCourses, Outcome, SqliteCourses, Tender
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError
from wattmesh_a2a.messages import Acknowledged, Commitment, CommitmentList, CommitmentQuery, Refused

SITES = tuple(Address("o", f"site-{number}", "gateway") for number in range(3))
CLOUD = Address("o", "cloud", "grid-optimisation")
NS = 1_000_000_000


@pytest.mark.parametrize("chunk", [0, 1, *(pytest.param(number, marks=pytest.mark.long) for number in range(2, 40))])
def test_nobody_is_bound_twice_or_late_and_the_manager_learns_every_outcome(chunk):
    totals = run(chunk * 500, 500)
    assert totals["offers"] > 800  # the schedules are neither harmless nor hopeless
    assert totals["committed"] > 400
    assert totals["declined"] > 150
    assert totals["replaced"] > 10
    assert totals["settled"] > 50


class Post:
    """A messenger whose receivers are functions; what was asked under which id is kept."""

    def __init__(self, receivers):
        self.receivers, self.asked = receivers, []

    async def request(self, to, message, *, request_id, **options):
        self.asked.append(request_id)
        answer = self.receivers[to](message)
        if isinstance(answer, Exception):
            raise answer
        return answer


def offering(then=None):
    """A contractor: its offer is an (empty) list of commitments, its word on an award is ``then``."""
    return lambda message: CommitmentList(commitments=()) if isinstance(message, CommitmentQuery) else then


def tender(clock, name="t-1", **changes):
    now = clock.utc_ns()
    wanted = {
        "id": name, "call": CommitmentQuery(participant_id="p", from_ns=1), "to": SITES,
        "offers_until_ns": now + NS, "commit_until_ns": now + 10 * NS,
    }  # fmt: skip
    return Tender(**{**wanted, **changes})


def award(number):
    return Commitment(
        participant_id="p", area_id="a", slot_start_ns=number, slot_s=900, net_wh=1, clearing_price_ticks=1, trades=()
    )


def one_of_them(course):
    """One at a time, in order of their names, until one has committed itself."""
    if course.of(Outcome.COMMITTED, Outcome.UNKNOWN):
        return {}
    left = [one for one in sorted(course.offers, key=str) if one not in course.contracts]
    return {left[0]: award(1)} if left else {}


@pytest.fixture
def clock(ends):
    return ends().clock


async def test_another_steps_in_for_who_declines_and_who_made_no_offer_is_not_asked(clock):
    no = Refused(error="no", detail="", retryable=False)
    post = Post(
        {SITES[0]: lambda _: UnavailableError("away"), SITES[1]: offering(no), SITES[2]: offering(Acknowledged())}
    )
    course = await Coordinator(post, clock, MemoryCourses(), patience_s=1).run(
        tender(clock), one_of_them, offer=CommitmentList
    )
    assert course.closed
    assert set(course.offers) == {SITES[1], SITES[2]}
    assert {one.unit: contract.outcome.value for one, contract in course.contracts.items()} == {
        "site-1": "declined",
        "site-2": "committed",
    }
    assert post.asked[3:] == ["t-1/award/site-1/gateway", "t-1/award/site-2/gateway"]


async def test_a_contractor_that_failed_in_the_middle_may_be_bound(clock):
    failed = Refused(error="interrupted", detail="", retryable=False)
    post = Post(dict.fromkeys(SITES, offering(failed)))
    course = await Coordinator(post, clock, MemoryCourses(), patience_s=1).run(
        tender(clock), one_of_them, offer=CommitmentList
    )
    (contract,) = course.contracts.values()
    assert contract.outcome is Outcome.UNKNOWN
    assert contract.answer == failed


async def test_after_the_deadline_nobody_is_awarded_anything(clock):
    post = Post(dict.fromkeys(SITES, offering(Acknowledged())))

    def everybody(course):
        return dict.fromkeys(course.offers, award(1))

    over = clock.utc_ns() - 1
    course = await Coordinator(post, clock, MemoryCourses(), patience_s=1).run(
        tender(clock, offers_until_ns=over, commit_until_ns=over), everybody, offer=CommitmentList
    )
    assert len(course.offers) == 3
    assert course.contracts == {}


async def test_a_course_outlives_its_process_and_keeps_its_terms(clock, tmp_path):
    away = Post({SITES[0]: offering(UnavailableError("away")), **dict.fromkeys(SITES[1:], offering())})
    store = SqliteCourses(tmp_path / "courses.sqlite")
    first = await Coordinator(away, clock, store, patience_s=1).run(tender(clock), one_of_them, offer=CommitmentList)
    assert first.of(Outcome.UNKNOWN).keys() == {SITES[0]}
    store.close()

    told = []
    store = SqliteCourses(tmp_path / "courses.sqlite")
    again = Post({SITES[0]: offering(Acknowledged())})
    manager = Coordinator(
        again, clock, store, patience_s=1, on_settled=lambda course, to: told.append((course.tender.id, to))
    )
    assert manager.courses() == [first]
    manager.resume()
    await manager._wait("t-1")
    assert told == [("t-1", SITES[0])]
    assert again.asked == ["t-1/award/site-0/gateway"]
    assert manager.course("t-1").contracts[SITES[0]].outcome is Outcome.COMMITTED
    ended = await manager.run(
        tender(clock, commit_until_ns=clock.utc_ns() + 99 * NS), one_of_them, offer=CommitmentList
    )
    assert ended.tender == first.tender
    assert len(again.asked) == 1  # it is closed: nobody is asked anything
    await clock.advance(3 * 86_400)
    assert Coordinator(again, clock, store).courses() == []
    store.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "x" * 61}, "60"),
        ({"name": ""}, "60"),
        ({"to": (SITES[0], SITES[0])}, "twice"),
        ({"offers_until_ns": 5, "commit_until_ns": 4}, "before"),
    ],
    ids=["long id", "no id", "one twice", "no time"],
)
async def test_a_tender_that_cannot_be_is_refused(clock, changes, said):
    with pytest.raises(InvalidMessageError, match=said):
        await Coordinator(Post({}), clock, MemoryCourses()).run(
            tender(clock, **changes), one_of_them, offer=CommitmentList
        )
