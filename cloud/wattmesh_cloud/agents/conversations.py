"""Agents ask each other, by A2A: who may ask whom, until when, with which budget; every turn is kept and can be replayed.

An advice is an opinion: it changes nothing, and whoever asked passes the same guards as before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.consult import AgentAdvice, AgentConsult
from wattmesh_a2a.envelope import CLOUD_UNIT, Address, Envelope
from wattmesh_a2a.errors import (
    ExpiredError,
    InvalidMessageError,
    UnauthorisedError,
    WattmeshError,
)
from wattmesh_a2a.messages import Message
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.agents.contract import ModelOutcome, Reasoner, Task
from wattmesh_cloud.agents.controls import Budget, KillSwitch
from wattmesh_cloud.agents.database import Database
from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.desk import Look
from wattmesh_cloud.agents.memory import LocalMemory
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.agents.situations import (
    ForecastSituation,
    GridSituation,
    MarketSituation,
    SiteSituation,
    Situation,
    plain,
    restored,
)

MOST_DEPTH = 2
MOST_TURNS = 40
"""Of one conversation."""
_MARGIN_NS = NS_PER_S
"""What an agent keeps of its deadline when it asks on."""
_QUESTION, _REAL_S = 400, 20.0
_CITED = 3

_LOOKED_AT = 2000
"""Newest turns whose conversations are listed."""
_ABOUT = "(? OR json_extract(body, '$.subject') IN (SELECT value FROM json_each(?)))"
"""A turn that does not tell its subject (kept by an older version) is the fleet's operator's alone."""

LookFor = Callable[[str, str], Look | None]
"""(agent, subject) → how it looks at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation as it is kept."""

    number: int
    time_ns: int
    speaker: str
    listener: str
    what: str
    """``question``, ``answer`` or ``refusal``."""
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A conversation in one line."""

    id: str
    began_ns: int
    last_ns: int
    turns: int
    refusals: int
    agents: tuple[str, ...]
    """Who spoke."""
    subjects: tuple[str, ...]


class Conversations:
    """See the module.

    Args:
        database: Keeps the turns.
        memory: For the records that an advice cites.
        messenger: Carries questions and answers; serves the agents' addresses.
        clock: Of the deadlines.
        org: Of all addresses.
        look_for: How each agent looks at a subject.
        reasoner: A model that may word an answer where a budget is given; none for policies alone.
        switch: Turns it off.
        budget: What it may use.
    """

    def __init__(
        self,
        database: Database,
        memory: LocalMemory,
        messenger: Messenger,
        clock: Clock,
        org: str,
        look_for: LookFor,
        *,
        reasoner: Reasoner | None,
        switch: KillSwitch,
        budget: Budget,
    ) -> None:
        self._database, self._memory, self._messenger, self._clock, self._org = database, memory, messenger, clock, org
        self._look_for, self._reasoner, self._switch, self._budget = look_for, reasoner, switch, budget

    def register(self) -> None:
        """Answer questions at every agent's address."""
        for agent in ROSTER.values():
            address = Address(self._org, CLOUD_UNIT, agent.name)
            self._messenger.on_request(AgentConsult, self._handler(agent), as_agent=address, idempotent=True)

    # -- asking

    async def ask(self, asker: str, to: str, consult: AgentConsult) -> AgentAdvice:
        """One agent's question to another, and its answer.

        Raises:
            UnauthorisedError: This agent may not ask that one, or too deep.
            ExpiredError, UnavailableError: No answer in time.
            InvalidMessageError: An answer that is none.
        """
        may = ROSTER[asker].consults if asker in ROSTER else frozenset()
        if to not in may or consult.depth > MOST_DEPTH:
            raise UnauthorisedError(f"{asker[:64]} may not ask {to[:64]} (depth {consult.depth})")
        left_ns = consult.deadline_ns - self._clock.utc_ns()
        if left_ns <= 0:
            raise ExpiredError("no time is left to ask")
        question = {"subject": consult.subject, "question": consult.question, "depth": consult.depth}
        await asyncio.to_thread(self._keep, consult.conversation, asker, to, "question", question)
        source = Address(self._org, CLOUD_UNIT, asker)
        try:
            answer = await self._messenger.request(
                Address(self._org, CLOUD_UNIT, to), consult, expires_ns=consult.deadline_ns,
                timeout_s=min(_REAL_S, left_ns / NS_PER_S), as_agent=source,
            )  # fmt: skip
        except WattmeshError as error:
            refusal = {"subject": consult.subject, "error": str(error)[:300]}
            await asyncio.to_thread(self._keep, consult.conversation, to, asker, "refusal", refusal)
            raise
        if not isinstance(answer, AgentAdvice) or answer.conversation != consult.conversation:
            detail = getattr(answer, "detail", type(answer).__name__)
            refusal = {"subject": consult.subject, "error": str(detail)[:300]}
            await asyncio.to_thread(self._keep, consult.conversation, to, asker, "refusal", refusal)
            raise InvalidMessageError(f"{to} gave no advice: {detail}")
        return answer

    async def round(
        self, asker: str, topics: list[tuple[str, str, str]], conversation: str, deadline_s: float
    ) -> list[AgentAdvice]:
        """Ask several agents at the same time: (agent, subject, question); who does not answer is left out."""
        deadline = self._clock.utc_ns() + round(deadline_s * NS_PER_S)
        asked = [
            self.ask(
                asker, agent,
                AgentConsult(conversation=conversation, subject=subject, question=question, deadline_ns=deadline),
            )
            for agent, subject, question in topics
        ]  # fmt: skip
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, WattmeshError):
                raise answer
        return [answer for answer in answers if isinstance(answer, AgentAdvice)]

    async def consult_tool(self, to: str, subject: str, question: str, task: Task) -> dict[str, Any]:
        """The same as a model's tool: deadline and budget of its own task go down, with something kept back."""
        deadline = self._clock.utc_ns() + round(task.deadline_s / 2 * NS_PER_S)
        consult = AgentConsult(
            conversation=task.id,
            subject=subject[:64],
            question=question[:_QUESTION],
            deadline_ns=deadline,
            budget_tokens=task.tokens // 4,
        )
        answer = await self.ask(task.agent.name, to, consult)
        return {"agent": to, "text": answer.text, "source": answer.source, "citations": list(answer.citations)}

    # -- answering

    def _handler(self, agent: AgentDefinition) -> Callable[[Envelope], Any]:
        async def answer(envelope: Envelope) -> Message:
            consult = envelope.data
            assert isinstance(consult, AgentConsult)
            source = envelope.source
            if (
                source.unit != CLOUD_UNIT
                or source.agent not in ROSTER
                or agent.name not in ROSTER[source.agent].consults
            ):
                raise UnauthorisedError(f"{source} may not ask {agent.name}")
            if consult.depth > MOST_DEPTH:
                raise UnauthorisedError(f"questions go {MOST_DEPTH} deep")
            if consult.deadline_ns <= self._clock.utc_ns():
                raise ExpiredError("the answer would be late")
            return await self.answer(agent, consult, source.agent)

        return answer

    async def answer(self, agent: AgentDefinition, consult: AgentConsult, asker: str) -> AgentAdvice:
        """What an agent knows of a subject.

        Raises:
            InvalidMessageError: It knows nothing of it.
            UnauthorisedError: The conversation has gone on for too long.
        """
        look = self._look_for(agent.name, consult.subject)
        if look is None:
            raise InvalidMessageError(f"{agent.name} knows nothing of {consult.subject[:64]}")
        if await asyncio.to_thread(self._turns, consult.conversation) >= MOST_TURNS:
            raise UnauthorisedError(f"{MOST_TURNS} turns are enough for one conversation")
        situation = look()
        known = await asyncio.to_thread(self._memory.recall, consult.subject, agent=agent.name, limit=_CITED)
        text, source, spent = await asyncio.to_thread(advice_of, agent, situation), "policy", 0
        worded = await self._worded(agent, situation, consult)
        if worded is not None:
            text, source, spent = worded[0], "model", worded[1]
        citations = tuple(one["id"] for one in known)
        body = {
            "subject": consult.subject, "situation": plain(situation), "text": text, "source": source,
            "citations": list(citations),
        }  # fmt: skip
        await asyncio.to_thread(self._keep, consult.conversation, agent.name, asker, "answer", body)
        return AgentAdvice(
            conversation=consult.conversation,
            agent=agent.name,
            subject=consult.subject,
            text=text,
            source=source,
            citations=citations,
            spent_tokens=spent,
        )

    async def _worded(
        self, agent: AgentDefinition, situation: Situation, consult: AgentConsult
    ) -> tuple[str, int] | None:
        """A model's words inside the asker's deadline and budget; none where the policy's have to do."""
        tokens, now = consult.budget_tokens, self._clock.utc_ns()
        if self._reasoner is None or tokens <= 0 or not (await asyncio.to_thread(self._switch.state)).on:
            return None
        if await asyncio.to_thread(self._budget.reserve, agent.name, tokens, now) is not None:
            return None
        left_s = (consult.deadline_ns - now - _MARGIN_NS) / NS_PER_S
        used = (tokens, 0)
        try:
            async with asyncio.timeout(max(0.0, min(left_s, _REAL_S))):
                task = Task(
                    id=consult.conversation, agent=agent, situation=situation, proposed=(), deadline_s=left_s,
                    tokens=tokens, question=consult.question,
                )  # fmt: skip
                given = await self._reasoner.refine(task)
                used = (given.input_tokens, given.output_tokens)
                if given.outcome is ModelOutcome.AGREED and given.text.strip():
                    return given.text.strip()[:2000], sum(used)
        except TimeoutError:
            pass
        finally:
            await asyncio.to_thread(self._budget.settle, agent.name, tokens, *used, now)
        return None

    # -- keeping and replaying

    def _turns(self, conversation: str) -> int:
        count: int = self._database.rows("SELECT count(*) FROM turns WHERE conversation = ?", (conversation,))[0][0]
        return count

    def _keep(self, conversation: str, speaker: str, listener: str, what: str, body: dict[str, Any]) -> None:
        self._database.write(
            (
                "INSERT INTO turns SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ?, ?, ? FROM turns WHERE conversation = ?",
                (
                    conversation[:128],
                    self._clock.utc_ns(),
                    speaker,
                    listener,
                    what,
                    json.dumps(body),
                    conversation[:128],
                ),
            )
        )

    def turns(self, conversation: str) -> list[Turn]:
        """A conversation, in its order. Blocks."""
        return turns_of(self._database, conversation)

    def replay(self, conversation: str) -> list[str]:
        """Make every policy's answer anew from the situation it was given in; the differences, none where all are the same."""
        found = []
        for turn in self.turns(conversation):
            if turn.what != "answer" or turn.body["source"] != "policy":
                continue
            agent = ROSTER[turn.speaker]
            text = advice_of(agent, restored(agent.situation, turn.body["situation"]))
            if text != turn.body["text"]:
                found.append(f"turn {turn.number}: {turn.speaker} now says {text!r}")
        return found


def turns_of(database: Database, conversation: str, subjects: Collection[str] | None = None) -> list[Turn]:
    """A conversation as it was kept, in its order; with ``subjects``, what was said of these alone."""
    rows = database.rows(
        f"SELECT number, time_ns, speaker, listener, what, body FROM turns WHERE conversation = ? AND {_ABOUT} "  # noqa: S608
        "ORDER BY number",
        (conversation, *_about(subjects)),
    )
    return [
        Turn(number=row[0], time_ns=row[1], speaker=row[2], listener=row[3], what=row[4], body=json.loads(row[5]))
        for row in rows
    ]


def newest_of(database: Database, limit: int, subjects: Collection[str] | None = None) -> list[Summary]:
    """The newest conversations among the last turns that are kept, newest first; with ``subjects``, their turns alone."""
    rows = database.rows(
        "SELECT conversation, MIN(time_ns), MAX(time_ns), COUNT(*), SUM(what = 'refusal'), GROUP_CONCAT(DISTINCT speaker), "  # noqa: S608
        "GROUP_CONCAT(DISTINCT json_extract(body, '$.subject')) FROM turns WHERE conversation IN "
        f"(SELECT conversation FROM turns ORDER BY time_ns DESC LIMIT {_LOOKED_AT}) AND {_ABOUT} "
        "GROUP BY conversation ORDER BY MAX(time_ns) DESC, conversation LIMIT ?",
        (*_about(subjects), limit),
    )
    return [
        Summary(
            id=row[0], began_ns=row[1], last_ns=row[2], turns=row[3], refusals=row[4], agents=tuple(sorted(row[5].split(","))),
            subjects=tuple(sorted((row[6] or "").split(","))) if row[6] else (),
        )
        for row in rows
    ]  # fmt: skip


def _about(subjects: Collection[str] | None) -> tuple[bool, str]:
    """Values of ``_ABOUT``."""
    return subjects is None, json.dumps(sorted(subjects or ()))


def advice_of(agent: AgentDefinition, situation: Situation) -> str:
    """What the policy would do, and the figures it looks at, in words."""
    proposals = agent.policy(situation)
    wants = "; ".join(f"{one.kind}: {one.rationale}" for one in proposals) or "nothing to do"
    return f"{_figures(situation)}. {wants}."[:2000]


def _figures(situation: Situation) -> str:
    match situation:
        case SiteSituation():
            soc = "unknown" if situation.soc_percent is None else f"{situation.soc_percent:.0f} %"
            there = "online" if situation.online else "away"
            missing = f", no values of {', '.join(situation.missing)}" if situation.missing else ""
            return (
                f"{situation.site_id} is {there}{missing}, state of charge {soc}; in the last day {situation.missed_wh} of "
                f"{situation.committed_wh} Wh traded were missed"
            )
        case MarketSituation():
            halted = "; ".join(f"{cause}: {why}" for cause, why in situation.halts.items()) or "open"
            price = f"{situation.prices_ticks[-1]} ticks" if situation.prices_ticks else "none yet"
            return f"{situation.area} is {halted}, last price {price}, grid {situation.grid_status}"
        case GridSituation():
            values = sorted(situation.frequency_hz.values())
            hertz = f"{values[len(values) // 2]:.3f} Hz" if values else "unknown"
            return f"grid {situation.status}, frequency {hertz}, {situation.online} of {situation.sites} gateways there"
        case ForecastSituation():
            age = "none" if situation.issued_age_s is None else f"{situation.issued_age_s / 60:.0f} min old"
            return f"forecast of {situation.site_id}: {age}"
