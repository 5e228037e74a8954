"""Call for offers, contract, commit with deadline: one manager and many contractors (contract net, FIPA SC00029H).

1. The *call* goes to everybody at once; whoever can and wants answers with an offer, until ``offers_until_ns``.
2. ``choose`` sees the offers and says whom to *award* what. It is asked again after each round, with what became of the awards, so
   that another contractor can step in for one that declined.
3. An award that is answered before ``commit_until_ns`` is a *commitment*. Afterwards it can have no effect any more: the receiver
   refuses it (:mod:`wattmesh_a2a.fates`, step 8). Whoever was not reached in time is asked on until the outcome is known.

Every step is stored before it shows, and every request has an id that is made of the tender's: a manager that crashes goes on where
it was, and no contractor is committed twice. While an outcome is not known the award has to be counted as one that may be in force.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from wattmesh_a2a import codec
from wattmesh_a2a.clock import Clock
from wattmesh_a2a.dedupe import KEEP_AFTER_EXPIRY_NS
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.errors import ExpiredError, InvalidMessageError, UnavailableError
from wattmesh_a2a.fates import Fate
from wattmesh_a2a.messages import Message, Refused
from wattmesh_a2a.messenger import Messenger

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Real seconds for the answers to one round, all at the same time: who is absent delays the others by no more."""
_ROUNDS_AT_MOST = 20
_CONTRACTORS_AT_MOST = 5000
_MAYBE_DONE = frozenset({Fate.INTERRUPTED.value, "internal"})
"""Refusals after which nobody can say whether there was an effect."""


class Outcome(StrEnum):
    """What became of an award."""

    UNKNOWN = "unknown"
    """Not answered yet, or the contractor failed in the middle of it (then with its answer): it may be in force."""
    COMMITTED = "committed"
    """The contractor took it, before the deadline."""
    DECLINED = "declined"
    """It has no effect and will have none: refused, or it came after the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tender:
    """What is asked for, and until when."""

    id: str
    """Of this tender alone, at most 60 characters: what makes a repetition after a crash one and the same."""
    call: Message
    to: tuple[Address, ...]
    offers_until_ns: int
    """UTC from which on the call is not answered any more."""
    commit_until_ns: int
    """UTC from which on an award cannot take effect any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """An award and what became of it."""

    award: Message
    outcome: Outcome
    answer: Message | None = None
    """The contractor's; none while it has not answered."""


@dataclass(slots=True)
class Course:
    """How a tender has gone so far."""

    tender: Tender
    called: bool = False
    """Whether the offers are in; none is taken afterwards."""
    offers: dict[Address, Message] = field(default_factory=dict)
    contracts: dict[Address, Contract] = field(default_factory=dict)
    """At most one a contractor."""
    closed: bool = False
    """Nobody is awarded anything any more; what is unknown is still asked after."""

    def of(self, *outcomes: Outcome) -> dict[Address, Contract]:
        """Contracts by their outcome."""
        return {address: one for address, one in self.contracts.items() if one.outcome in outcomes}


Choose = Callable[[Course], Mapping[Address, Message]]
"""Awards to make now, by contractor; those that have one already are not awarded again. Nothing more: an empty mapping. It gets all
that is known and may be called again after a restart, so it decides by the course alone."""
Settled = Callable[[Course, Address], None]
"""An outcome became known after :meth:`Coordinator.run` had returned."""


class CourseStore(Protocol):
    """Keeps courses over a restart."""

    def save(self, tender_id: str, text: str, *, forget_ns: int) -> None:
        """Replace what is kept of a tender, durably."""
        ...

    def load(self, tender_id: str) -> str | None:
        """What is kept of a tender."""
        ...

    def ids(self) -> list[str]:
        """All tenders that are kept."""
        ...

    def forget_before(self, now_ns: int) -> None:
        """Drop what nobody can ask for any more."""
        ...


class MemoryCourses:
    """For tests: survives what its owner survives."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, int]] = {}

    def save(self, tender_id: str, text: str, *, forget_ns: int) -> None:
        """See :class:`CourseStore`."""
        self._kept[tender_id] = (text, forget_ns)

    def load(self, tender_id: str) -> str | None:
        """See :class:`CourseStore`."""
        found = self._kept.get(tender_id)
        return found[0] if found else None

    def ids(self) -> list[str]:
        """See :class:`CourseStore`."""
        return list(self._kept)

    def forget_before(self, now_ns: int) -> None:
        """See :class:`CourseStore`."""
        for name in [name for name, (_, forget_ns) in self._kept.items() if forget_ns < now_ns]:
            del self._kept[name]


class SqliteCourses:
    """On disk; what is awarded survives a power cut as well."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS courses (id TEXT PRIMARY KEY, course TEXT NOT NULL, forget_ns INTEGER NOT NULL)"
        )

    def save(self, tender_id: str, text: str, *, forget_ns: int) -> None:
        """See :class:`CourseStore`."""
        self._db.execute("INSERT OR REPLACE INTO courses VALUES (?, ?, ?)", (tender_id, text, forget_ns))

    def load(self, tender_id: str) -> str | None:
        """See :class:`CourseStore`."""
        row = self._db.execute("SELECT course FROM courses WHERE id = ?", (tender_id,)).fetchone()
        return str(row[0]) if row else None

    def ids(self) -> list[str]:
        """See :class:`CourseStore`."""
        return [str(row[0]) for row in self._db.execute("SELECT id FROM courses ORDER BY rowid")]

    def forget_before(self, now_ns: int) -> None:
        """See :class:`CourseStore`."""
        self._db.execute("DELETE FROM courses WHERE forget_ns < ?", (now_ns,))

    def close(self) -> None:
        """Release the file."""
        self._db.close()


class Coordinator:
    """The manager's side; contractors need none: they answer the call and the award as any other request.

    Args:
        messenger: Carries calls and awards.
        clock: Of the deadlines.
        store: Keeps the courses.
        as_agent: In whose name; the messenger's own where none is given.
        patience_s: Real seconds for the answers to one round. Never waited for by a runner of simulated time.
        on_settled: Told of outcomes that became known later.
    """

    def __init__(
        self,
        messenger: Messenger,
        clock: Clock,
        store: CourseStore,
        *,
        as_agent: Address | None = None,
        patience_s: float = PATIENCE_S,
        on_settled: Settled | None = None,
    ) -> None:
        self._messenger, self._clock, self._store = messenger, clock, store
        self._as_agent = as_agent
        self._patience_s = patience_s
        self._on_settled = on_settled
        self._courses: dict[str, Course] = {}
        self._asking: dict[tuple[str, Address], asyncio.Task[None]] = {}
        store.forget_before(clock.utc_ns())

    def courses(self) -> list[Course]:
        """All that are kept: open ones are to be run again after a restart, with the same tender."""
        return [course for name in self._store.ids() if (course := self.course(name)) is not None]

    def course(self, tender_id: str) -> Course | None:
        """How a tender has gone so far, also before a restart."""
        if tender_id in self._courses:
            return self._courses[tender_id]
        text = self._store.load(tender_id)
        return None if text is None else _parsed(text)

    def resume(self) -> None:
        """After a restart: ask on for outcomes of closed courses that are not known. Open ones are the caller's to run."""
        for course in self.courses():
            if course.closed and course.of(Outcome.UNKNOWN):
                self._courses[course.tender.id] = course
                for address in course.of(Outcome.UNKNOWN):
                    self._ask_for_outcome(course, address)

    async def run(self, tender: Tender, choose: Choose, *, offer: type[Any]) -> Course:
        """Call, choose, award, until ``choose`` has nothing more or the deadline is there; then the course, closed.

        A tender whose id is kept goes on where it was; its own terms stand, not new ones. Outcomes that are unknown at the return
        are asked after in the background until a day beyond the deadline (``on_settled``).

        Args:
            tender: What is asked for.
            choose: Decides; see :data:`Choose`.
            offer: Type of a valid offer; any other answer is none.

        Raises:
            InvalidMessageError: The tender itself cannot be sent.
        """
        _check(tender)
        course = self._courses[tender.id] = self.course(tender.id) or Course(tender)
        tender = course.tender
        if not course.called:
            self._save(course)
            course.offers = await self._call(tender, offer)
            course.called = True
            self._save(course)
        for _ in range(_ROUNDS_AT_MOST):
            if course.closed:
                break
            self._award(course, choose(course))
            if not course.of(Outcome.UNKNOWN):
                break
            known = len(course.of(Outcome.COMMITTED, Outcome.DECLINED))
            await self._wait(tender.id)
            if len(course.of(Outcome.COMMITTED, Outcome.DECLINED)) == known:
                break  # nobody answers: what choose could do now it did
        course.closed = True
        self._save(course)
        self._let_go(course)
        return course

    def stop(self) -> None:
        """Ask nobody any more; after the next start :meth:`resume` goes on."""
        for task in self._asking.values():
            task.cancel()

    async def _call(self, tender: Tender, offer: type[Any]) -> dict[Address, Message]:
        async def ask(to: Address) -> Message | None:
            try:
                return await self._messenger.request(
                    to,
                    tender.call,
                    expires_ns=tender.offers_until_ns,
                    timeout_s=self._patience_s,
                    as_agent=self._as_agent,
                    request_id=f"{tender.id}/call/{to.unit}/{to.agent}",
                )
            except (ExpiredError, UnavailableError) as error:
                log.info("%s made no offer for %s: %s", to, tender.id, error)
                return None

        answers = await asyncio.gather(*(ask(to) for to in tender.to))
        return {to: one for to, one in zip(tender.to, answers, strict=True) if isinstance(one, offer)}

    def _award(self, course: Course, awards: Mapping[Address, Message]) -> None:
        """Store all new awards together, then send them; also again those of before a crash."""
        if self._clock.utc_ns() < course.tender.commit_until_ns:
            for address, award in awards.items():
                if address in course.offers and address not in course.contracts:
                    course.contracts[address] = Contract(award=award, outcome=Outcome.UNKNOWN)
            self._save(course)
        for address in course.of(Outcome.UNKNOWN):
            self._ask_for_outcome(course, address)

    def _ask_for_outcome(self, course: Course, address: Address) -> None:
        key = (course.tender.id, address)
        if key not in self._asking and course.contracts[address].answer is None:
            task = asyncio.get_running_loop().create_task(self._settle(course, address))
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))

    async def _settle(self, course: Course, address: Address) -> None:
        contract = course.contracts[address]
        try:
            answer = await self._messenger.request(
                address,
                contract.award,
                expires_ns=course.tender.commit_until_ns,
                as_agent=self._as_agent,
                request_id=f"{course.tender.id}/award/{address.unit}/{address.agent}",
                ask_after=True,
            )
        except (ExpiredError, UnavailableError) as error:
            log.warning("what became of %s's award in %s is not known: %s", address, course.tender.id, error)
            return
        outcome = Outcome.DECLINED if isinstance(answer, Refused) else Outcome.COMMITTED
        if isinstance(answer, Refused) and answer.error in _MAYBE_DONE:
            outcome = Outcome.UNKNOWN
        course.contracts[address] = Contract(award=contract.award, outcome=outcome, answer=answer)
        self._save(course)
        if course.closed:
            self._let_go(course)
            if self._on_settled is not None:
                self._on_settled(course, address)

    async def _wait(self, tender_id: str) -> None:
        """Until all outcomes of a tender are known, or the patience ends."""
        tasks = [task for (name, _), task in self._asking.items() if name == tender_id]
        if tasks:
            await asyncio.wait(tasks, timeout=self._patience_s)

    def _save(self, course: Course) -> None:
        forget_ns = course.tender.commit_until_ns + 2 * KEEP_AFTER_EXPIRY_NS
        self._store.save(course.tender.id, _text(course), forget_ns=forget_ns)

    def _let_go(self, course: Course) -> None:
        if course.closed and not course.of(Outcome.UNKNOWN):
            self._courses.pop(course.tender.id, None)
            self._store.forget_before(self._clock.utc_ns())


def _check(tender: Tender) -> None:
    if not 0 < len(tender.id) <= 60 or not tender.id.isprintable():
        raise InvalidMessageError(f"tender {tender.id[:70]!r}: an id has 1 to 60 printable characters")
    if len(set(tender.to)) != len(tender.to) or len(tender.to) > _CONTRACTORS_AT_MOST:
        raise InvalidMessageError(f"tender {tender.id}: contractors twice, or more than {_CONTRACTORS_AT_MOST}")
    if tender.commit_until_ns < tender.offers_until_ns:
        raise InvalidMessageError(f"tender {tender.id}: commitments end before the offers are in")


# -- as text


def _message(message: Message | None) -> Any:
    return None if message is None else [codec.type_name(message), codec.message_to_json(message)]


def _read(fields: Any) -> Message:
    return codec.message_from_json(fields[0], fields[1])


def _text(course: Course) -> str:
    tender = course.tender
    return json.dumps(
        {
            "id": tender.id,
            "call": _message(tender.call),
            "to": [str(one) for one in tender.to],
            "offers_until_ns": tender.offers_until_ns,
            "commit_until_ns": tender.commit_until_ns,
            "called": course.called,
            "closed": course.closed,
            "offers": {str(address): _message(one) for address, one in course.offers.items()},
            "contracts": {
                str(address): [_message(one.award), one.outcome.value, _message(one.answer)]
                for address, one in course.contracts.items()
            },
        },
        separators=(",", ":"),
    )


def _parsed(text: str) -> Course:
    fields = json.loads(text)
    tender = Tender(
        id=fields["id"],
        call=_read(fields["call"]),
        to=tuple(map(Address.parse, fields["to"])),
        offers_until_ns=fields["offers_until_ns"],
        commit_until_ns=fields["commit_until_ns"],
    )
    return Course(
        tender=tender,
        called=fields["called"],
        offers={Address.parse(address): _read(one) for address, one in fields["offers"].items()},
        contracts={
            Address.parse(address): Contract(
                award=_read(award), outcome=Outcome(outcome), answer=None if answer is None else _read(answer)
            )
            for address, (award, outcome, answer) in fields["contracts"].items()
        },
        closed=fields["closed"],
    )
