"""The tools that a model gets: reading the records of its own subject, asking other agents, and making proposals. Nothing else."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_a2a.errors import InvalidMessageError, UnauthorisedError, WattmeshError

from wattmesh_cloud.agents.contract import Task
from wattmesh_cloud.agents.proposals import schema
from wattmesh_cloud.agents.situations import ForecastSituation, SiteSituation
from wattmesh_cloud.tools.base import READER, Caller, Context, error_code
from wattmesh_cloud.tools.catalogue import tool

_ANSWER_BYTES = 12_000
"""Of one tool's answer: what is longer is cut and says so."""
PROPOSE, CONSULT = "propose", "consult"

Consult = Callable[[str, str, str, Task], Awaitable[Mapping[str, Any]]]
"""(agent, subject, question, task) → advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """A tool as a model sees it."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(slots=True)
class Used:
    """What a model did with its tools in one answer."""

    proposals: list[object] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    cited: list[str] = field(default_factory=list)
    """Ids of the records that it was given."""


class Toolbox:
    """Tools of every agent over one context.

    Args:
        context: What the read-only tools work on.
        consult: Asks another agent; none where agents do not talk here.
    """

    def __init__(self, context: Context, consult: Consult | None = None) -> None:
        self._context, self.consult = context, consult

    def offered(self, task: Task) -> list[Specification]:
        """What an agent may use for a task; an operator's question brings no proposals."""
        found = []
        for name in task.agent.tools:
            one = tool(name)
            if one is not None and not one.action:
                found.append(Specification(name=name, description=one.description, schema=one.schema()))
        if task.question is None:
            proposal = {"type": "object", "properties": {"proposal": schema(task.agent.may)}, "required": ["proposal"]}
            text = "Propose one thing. Guards decide whether it has an effect. Again for another."
            found.append(Specification(name=PROPOSE, description=text, schema=proposal))
        if task.agent.consults and self.consult is not None:
            found.append(Specification(name=CONSULT, description="Ask another agent.", schema=_consult_schema(task)))
        return found

    async def call(self, task: Task, used: Used, name: str, arguments: object) -> str:
        """What a tool answers, as JSON text; errors are answers too.

        Nothing that a model says here has an effect: proposals are only collected.
        """
        used.calls.append(name[:64])
        short = name.rsplit("__", 1)[-1].lstrip("_")  # a gateway's prefix
        try:
            if not isinstance(arguments, dict):
                raise InvalidMessageError("arguments are an object")
            if short == PROPOSE and task.question is None:
                used.proposals.append(arguments.get("proposal", arguments))
                return json.dumps({"taken": True, "note": "the guards decide"})
            if short == CONSULT and task.agent.consults:
                return await self._consulted(task, used, arguments)
            if short not in task.agent.tools:
                used.unknown.append(short[:64])
                raise InvalidMessageError(f"no tool {short[:64]!r}")
            return await self._read(task, used, short, arguments)
        except WattmeshError as error:
            return json.dumps({"error": error_code(error), "detail": str(error)[:300]})

    async def _read(self, task: Task, used: Used, name: str, arguments: Mapping[str, Any]) -> str:
        one = tool(name)
        if one is None or one.action:
            raise UnauthorisedError(f"{name} is not for models")
        about = task.situation
        sites = frozenset({about.site_id}) if isinstance(about, SiteSituation | ForecastSituation) else None
        caller = Caller(id=f"agent:{task.agent.name}", roles=frozenset({READER}), sites=sites)
        result = await one.call(self._context, caller, arguments)
        if isinstance(result, list):
            used.cited += [f"{name}/{row['time_ns']}/{row['id']}" for row in result if "id" in row and "time_ns" in row]
        return _quoted(result)

    async def _consulted(self, task: Task, used: Used, arguments: Mapping[str, Any]) -> str:
        agent, about, question = (str(arguments.get(name, ""))[:400] for name in ("agent", "subject", "question"))
        if self.consult is None or agent not in task.agent.consults:
            raise UnauthorisedError(f"{task.agent.name} may not ask {agent[:64]!r}")
        advice = await self.consult(agent, about, question, task)
        used.cited += [str(one) for one in advice.get("citations", ())]
        return _quoted(advice)


def _quoted(result: Any) -> str:
    text = json.dumps({"data": result}, default=str)
    return text if len(text) <= _ANSWER_BYTES else text[:_ANSWER_BYTES] + '… cut: ask for fewer rows"'


def _consult_schema(task: Task) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "agent": {"type": "string", "enum": sorted(task.agent.consults)},
            "subject": {"type": "string", "description": "a site, or fleet"},
            "question": {"type": "string", "maxLength": 400},
        },
        "required": ["agent", "subject", "question"],
        "additionalProperties": False,
    }
