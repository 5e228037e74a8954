"""The agents on Bedrock AgentCore: the entry point of the five runtimes, the way to them, and their memory. Extra ``agentcore``.

A runtime runs this file with ``WATTMESH_AGENT`` set, takes a task (:func:`task_of`), asks its model and gives back what the model
proposed. It proposes and has no other power: the guards stand in the cloud's process, before anything has an effect. Tools come
from the AgentCore Gateway, the other agents by their runtimes' ``prod`` endpoints.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # the runtime starts this file, not the package
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import boto3
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from wattmesh_a2a.errors import ConfigurationError, InvalidMessageError, UnavailableError

from wattmesh_cloud.agents.config import ModelConfig
from wattmesh_cloud.agents.contract import ModelOutcome, Record, Refinement, Task
from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.proposals import dump, parse
from wattmesh_cloud.agents.roster import ROSTER
from wattmesh_cloud.agents.situations import (
    ForecastSituation,
    GridSituation,
    MarketSituation,
    SiteSituation,
    Situation,
    plain,
    restored,
    subject_of,
)
from wattmesh_cloud.agents.toolbox import Toolbox, Used
from wattmesh_cloud.tools.catalogue import tool

_MOST_PAYLOAD = 500_000
MEMORY_S = 10.0
"""How long one call of the memory may take."""
_SESSION = 33
"""Characters that a runtime's session id has at least."""


# -- both ends of the wire


def payload_of(task: Task) -> dict[str, Any]:
    """A task as a runtime takes it."""
    return {
        "id": task.id,
        "situation": plain(task.situation),
        "proposed": [dump(one) for one in task.proposed],
        "deadline_s": task.deadline_s,
        "tokens": task.tokens,
        "remembered": [dict(one) for one in task.remembered],
        "question": task.question,
    }


def task_of(agent: str, payload: object) -> Task:
    """A task out of a payload.

    Raises:
        InvalidMessageError: It is none.
    """
    if not isinstance(payload, dict):
        raise InvalidMessageError("a payload is an object")
    definition = ROSTER[agent]
    try:
        remembered = payload.get("remembered") or []
        question = payload.get("question")
        return Task(
            id=str(payload["id"])[:128],
            agent=definition,
            situation=_situation(definition, payload),
            proposed=tuple(parse(one) for one in payload.get("proposed") or ()),
            deadline_s=min(300.0, float(payload["deadline_s"])),
            tokens=min(200_000, int(payload["tokens"])),
            remembered=tuple(one for one in remembered if isinstance(one, dict))[:20],
            question=None if question is None else str(question)[:400],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidMessageError(f"payload: {type(error).__name__}: {error}") from error


def _situation(definition: AgentDefinition, payload: Mapping[str, Any]) -> Situation:
    """What the asker knows; an agent that is only asked about a subject begins with its name and reads the rest by its tools."""
    if "situation" in payload:
        found: Situation = restored(definition.situation, payload["situation"])
        return found
    about, now = str(payload["about"])[:64], int(payload["now_ns"])
    if definition.situation is SiteSituation:
        return SiteSituation(site_id=about, now_ns=now, import_limit_w=0.0)
    if definition.situation is ForecastSituation:
        return ForecastSituation(site_id=about, now_ns=now)
    if definition.situation is GridSituation:
        return GridSituation(now_ns=now)
    return MarketSituation(area=about, now_ns=now)


def given_of(refinement: Refinement) -> dict[str, Any]:
    """What a runtime answers."""
    return {name: getattr(refinement, name) for name in refinement.__slots__}


# -- in a runtime


class GatewayToolbox(Toolbox):
    """The tools over the AgentCore Gateway (MCP), signed with the runtime's own role, and the other agents by their runtimes.

    Args:
        url: The gateway's.
        region: Of the signature.
        others: Agent → its runtime's ARN.
        session: Credentials.
    """

    def __init__(self, url: str, region: str, others: Mapping[str, str], session: boto3.Session) -> None:
        self._url, self._region, self._session = url, region, session
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=False)
        self._others = dict(others)
        self._client = session.client("bedrock-agentcore", region_name=region, config=quick(30.0)) if others else None
        self.consult = self._ask_runtime if others else None

    async def _read(self, task: Task, used: Used, name: str, arguments: Mapping[str, Any]) -> str:
        one = tool(name)
        if one is None or one.action:
            raise InvalidMessageError(f"{name} is not for models")
        result = await asyncio.to_thread(self._call_gateway, f"{one.service}___{name}", dict(arguments))
        text = "".join(str(part.get("text", "")) for part in result.get("content", ()))
        try:
            rows = json.loads(text)
        except ValueError:
            rows = None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and "id" in row and "time_ns" in row:
                used.cited.append(f"{name}/{row['time_ns']}/{row['id']}")
        return json.dumps({"data": text[:12_000]})

    def _call_gateway(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One JSON-RPC ``tools/call``; raises :class:`UnavailableError` where no answer comes that is one."""
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        request = AWSRequest("POST", self._url, data=json.dumps(call), headers=headers)
        credentials = self._session.get_credentials()
        if credentials is None:
            raise UnavailableError("the runtime has no credentials")
        SigV4Auth(credentials, "bedrock-agentcore", self._region).add_auth(request)
        try:
            answer = self._http.request("POST", self._url, body=request.body, headers=dict(request.headers))
            text = answer.data.decode()
            if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                text = next(line[5:] for line in text.splitlines() if line.startswith("data:"))
            body = json.loads(text)
        except (urllib3.exceptions.HTTPError, ValueError, StopIteration) as error:
            raise UnavailableError(f"the gateway: {type(error).__name__}") from error
        if answer.status != 200 or "error" in body:
            raise UnavailableError(f"the gateway answered {answer.status}: {str(body.get('error', body))[:200]}")
        result: dict[str, Any] = body.get("result", {})
        return result

    async def _ask_runtime(self, agent: str, about: str, question: str, task: Task) -> Mapping[str, Any]:
        if agent not in self._others or self._client is None:
            raise InvalidMessageError(f"no runtime of {agent[:64]!r} is known here")
        payload = {
            "id": task.id,
            "about": about,
            "now_ns": task.situation.now_ns,
            "question": question,
            "deadline_s": task.deadline_s / 2,
            "tokens": task.tokens // 4,
        }
        answer = await asyncio.to_thread(invoke_runtime, self._client, self._others[agent], task.id, payload)
        return {"agent": agent, "text": str(answer.get("text", ""))[:4000], "citations": list(answer.get("cited", ()))}


def build_app(environment: Mapping[str, str]) -> Any:
    """The ``BedrockAgentCoreApp`` of the agent that the environment names: ``/ping`` and ``/invocations``.

    Raises:
        ConfigurationError: No such agent, or no gateway.
    """
    from bedrock_agentcore import BedrockAgentCoreApp

    from wattmesh_cloud.agents.strands_reasoner import StrandsReasoner

    agent, url = environment.get("WATTMESH_AGENT", ""), environment.get("WATTMESH_GATEWAY_URL", "")
    if agent not in ROSTER or not url:
        raise ConfigurationError(f"WATTMESH_AGENT ({', '.join(ROSTER)}) and WATTMESH_GATEWAY_URL have to be set")
    region = environment.get("AWS_REGION", "us-west-2")
    session = boto3.Session(region_name=region)
    others = {
        name: environment[key]
        for name in ROSTER
        if (key := f"WATTMESH_RUNTIME_{name.upper().replace('-', '_')}") in environment
    }
    config = ModelConfig(region=region, url=environment.get("WATTMESH_BEDROCK_URL"))
    if environment.get("WATTMESH_MODEL"):
        config = config.model_copy(update={"id": environment["WATTMESH_MODEL"]})
    model = StrandsReasoner(config, GatewayToolbox(url, region, others, session), session=session)
    app = BedrockAgentCoreApp()

    async def invoke(payload: dict[str, Any]) -> dict[str, Any]:
        """A task in, what the model proposed out; an error is an outcome, too."""
        try:
            task = task_of(agent, payload)
        except InvalidMessageError as error:
            return given_of(Refinement(outcome=ModelOutcome.MALFORMED, detail=str(error)[:300]))
        try:
            async with asyncio.timeout(task.deadline_s):
                return given_of(await model.refine(task))
        except TimeoutError:
            return given_of(Refinement(outcome=ModelOutcome.LATE, detail=f"no answer in {task.deadline_s:g} s"))

    app.entrypoint(invoke)
    return app


# -- in the cloud's process


class AgentCoreReasoner:
    """The runtimes behind the contract (:class:`wattmesh_cloud.agents.contract.Reasoner`).

    Args:
        runtimes: Agent → its runtime's ARN.
        region: Where they are.
        deadline_s: How long they are waited for.
        client: For tests; made where left out.
    """

    def __init__(self, runtimes: Mapping[str, str], region: str | None, deadline_s: float, client: Any = None) -> None:
        self.name = "agentcore"
        self._runtimes = dict(runtimes)
        self._client = client or boto3.client("bedrock-agentcore", region_name=region, config=quick(deadline_s))

    async def refine(self, task: Task) -> Refinement:
        """See :class:`wattmesh_cloud.agents.contract.Reasoner`."""
        arn = self._runtimes.get(task.agent.name)
        if arn is None:
            return Refinement(outcome=ModelOutcome.ABSENT, detail=f"no runtime of {task.agent.name}")
        try:
            answer = await asyncio.to_thread(invoke_runtime, self._client, arn, _session(task), payload_of(task))
        except InvalidMessageError as error:
            return Refinement(outcome=ModelOutcome.MALFORMED, detail=str(error)[:300])
        except (ClientError, BotoCoreError, OSError) as error:
            from wattmesh_cloud.agents.strands_reasoner import outcome_of

            outcome, detail = outcome_of(error)
            return Refinement(outcome=outcome, detail=detail)
        try:
            return Refinement(
                outcome=ModelOutcome(answer["outcome"]),
                detail=str(answer.get("detail", ""))[:300],
                proposals=tuple(answer.get("proposals", ())),
                text=str(answer.get("text", ""))[:20_000],
                tools=tuple(str(one)[:64] for one in answer.get("tools", ())),
                cited=tuple(str(one)[:200] for one in answer.get("cited", ())),
                input_tokens=int(answer.get("input_tokens", 0)),
                output_tokens=int(answer.get("output_tokens", 0)),
            )
        except (KeyError, ValueError, TypeError) as error:
            return Refinement(outcome=ModelOutcome.MALFORMED, detail=f"{type(error).__name__}: {error}"[:300])

    async def close(self) -> None:
        """See :class:`wattmesh_cloud.agents.contract.Reasoner`."""
        self._client.close()


class AgentCoreMemory:
    """Decisions in AgentCore Memory: an event a version (the policy's, then what a model added), and one for what came of it.

    Args:
        memory_id: The memory's.
        client: ``boto3.client("bedrock-agentcore")``.
    """

    def __init__(self, memory_id: str, client: Any) -> None:
        self._id, self._client = memory_id, client

    def remember(self, record: Record) -> None:
        """See :class:`wattmesh_cloud.agents.memory.Memory`; raises :class:`UnavailableError`."""
        self._put(record.agent, record.subject, record.time_ns, {"what": "decision", "record": record.plain()})

    def outcome(self, decision: str, came_of_it: Mapping[str, Any]) -> bool:
        """See :class:`wattmesh_cloud.agents.memory.Memory`; the decision's agent and subject stand in ``came_of_it``."""
        agent, about = str(came_of_it["agent"]), str(came_of_it["subject"])
        came = {name: value for name, value in came_of_it.items() if name not in ("agent", "subject", "time_ns")}
        body = {"what": "outcome", "decision": decision, "outcome": came}
        self._put(agent, about, int(came_of_it["time_ns"]), body)
        return True

    def recall(self, subject: str, *, agent: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """See :class:`wattmesh_cloud.agents.memory.Memory`; an agent has to be named."""
        if agent is None:
            raise InvalidMessageError("AgentCore keeps decisions by agent: name one")
        try:
            answer = self._client.list_events(
                memoryId=self._id,
                actorId=agent,
                sessionId=_subject_session(subject),
                includePayloads=True,
                maxResults=100,
            )
        except (ClientError, BotoCoreError) as error:
            raise UnavailableError(f"AgentCore memory: {error}") from error
        bodies = [
            json.loads(str(part["blob"])) for event in answer["events"] for part in event["payload"] if "blob" in part
        ]
        outcomes = {body["decision"]: body["outcome"] for body in bodies if body["what"] == "outcome"}
        records = [body["record"] for body in bodies if body["what"] == "decision"]
        newest = {one["id"]: one for one in sorted(records, key=lambda one: int(one.get("revision", 0)))}
        found = [{**record, "outcome": outcomes.get(record["id"])} for record in newest.values()]
        return sorted(found, key=lambda one: -int(one["time_ns"]))[:limit]

    def _put(self, agent: str, about: str, time_ns: int, body: Mapping[str, Any]) -> None:
        text = json.dumps(body, separators=(",", ":"))
        token = hashlib.sha256(text.encode()).hexdigest()
        try:
            self._client.create_event(
                memoryId=self._id,
                actorId=agent,
                sessionId=_subject_session(about),
                eventTimestamp=datetime.fromtimestamp(time_ns / 1e9, tz=UTC),
                payload=[{"blob": text}],
                clientToken=token,  # the same decision again is the same event
            )
        except (ClientError, BotoCoreError) as error:
            raise UnavailableError(f"AgentCore memory: {error}") from error


def invoke_runtime(client: Any, arn: str, session: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """One invocation of a runtime's ``prod`` endpoint; raises what botocore raises, and :class:`InvalidMessageError`."""
    text = json.dumps(payload)
    if len(text) > _MOST_PAYLOAD:
        raise InvalidMessageError(f"a payload of {len(text)} characters")
    answer = client.invoke_agent_runtime(
        agentRuntimeArn=arn,
        qualifier="prod",
        runtimeSessionId=session.ljust(_SESSION, "-")[:256],
        contentType="application/json",
        accept="application/json",
        payload=text.encode(),
    )
    try:
        body = json.loads(answer["response"].read(_MOST_PAYLOAD + 1))
    except ValueError as error:
        raise InvalidMessageError("the runtime's answer is no JSON") from error
    if not isinstance(body, dict):
        raise InvalidMessageError("the runtime's answer is no object")
    return body


def _session(task: Task) -> str:
    """One session an agent, subject and day: what the runtime keeps warm, and what its memory belongs to."""
    day = task.situation.now_ns // 86_400_000_000_000
    return f"wattmesh-{task.agent.name}-{subject_of(task.situation)}-{day}"


def _subject_session(about: str) -> str:
    return "subject-" + re.sub(r"[^A-Za-z0-9_-]", "_", about)[:90]


def quick(deadline_s: float) -> Config:
    """A client that answers or fails within a deadline, and does not try again."""
    return Config(read_timeout=deadline_s, connect_timeout=min(5.0, deadline_s), retries={"total_max_attempts": 1})


if __name__ == "__main__":
    build_app(os.environ).run()
