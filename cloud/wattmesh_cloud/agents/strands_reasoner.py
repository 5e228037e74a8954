"""A language model through Strands: Bedrock, or any provider that it has. Needs the extra ``bedrock``; nothing else imports this.

Each question runs on a thread of its own with a loop of its own: a provider that hangs holds up neither the cloud's loop nor the
threads that the store needs. Whatever goes wrong comes back as a :class:`ModelOutcome`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.eventstream
import urllib3.exceptions
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EventStreamError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ReadTimeoutError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from strands import Agent
from strands.agent.agent_result import AgentResult
from strands.hooks import AfterToolsEvent, BeforeToolCallEvent, HookProvider, HookRegistry
from strands.models import BedrockModel, Model
from strands.tools.tools import PythonAgentTool
from strands.types.exceptions import (
    ContextWindowOverflowException,
    EventLoopException,
    MaxTokensReachedException,
    ModelThrottledException,
)
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.agents.config import ModelConfig
from wattmesh_cloud.agents.contract import ModelOutcome, Refinement, Task
from wattmesh_cloud.agents.desk import MODELS_AT_ONCE
from wattmesh_cloud.agents.prompts import prompt, system_prompt
from wattmesh_cloud.agents.toolbox import Specification, Toolbox, Used

_MOST_TEXT = 20_000
_CODES: dict[str, ModelOutcome] = {
    "ThrottlingException": ModelOutcome.THROTTLED,
    "TooManyRequestsException": ModelOutcome.THROTTLED,
    "ServiceQuotaExceededException": ModelOutcome.THROTTLED,
    "ExpiredTokenException": ModelOutcome.CREDENTIALS,
    "ExpiredToken": ModelOutcome.CREDENTIALS,
    "UnrecognizedClientException": ModelOutcome.CREDENTIALS,
    "InvalidSignatureException": ModelOutcome.CREDENTIALS,
    "IncompleteSignature": ModelOutcome.CREDENTIALS,
    "MissingAuthenticationTokenException": ModelOutcome.CREDENTIALS,
    "AccessDeniedException": ModelOutcome.CREDENTIALS,
    "ResourceNotFoundException": ModelOutcome.RETIRED_MODEL,
    "modelStreamErrorException": ModelOutcome.BROKEN_STREAM,
    "ModelStreamErrorException": ModelOutcome.BROKEN_STREAM,
    "internalServerException": ModelOutcome.BROKEN_STREAM,
    "InternalServerException": ModelOutcome.UNAVAILABLE,
    "ServiceUnavailableException": ModelOutcome.UNAVAILABLE,
    "ModelNotReadyException": ModelOutcome.UNAVAILABLE,
    "ModelTimeoutException": ModelOutcome.UNAVAILABLE,
}
_RETIRED = (
    "end of its life",
    "end of life",
    "legacy",
    "identifier is invalid",
    "isn't supported",
    "not supported",
    "retired",
)
_TOO_LONG = ("too long", "too large", "maximum context", "exceeds the maximum")
_NAMES: dict[str, ModelOutcome] = {  # other providers, by the names that their libraries use
    "RateLimitError": ModelOutcome.THROTTLED,
    "AuthenticationError": ModelOutcome.CREDENTIALS,
    "PermissionDeniedError": ModelOutcome.CREDENTIALS,
    "NotFoundError": ModelOutcome.RETIRED_MODEL,
    "APITimeoutError": ModelOutcome.LATE,
    "APIConnectionError": ModelOutcome.UNAVAILABLE,
    "ConnectError": ModelOutcome.UNAVAILABLE,
    "ReadTimeout": ModelOutcome.LATE,
}
_STOPS: dict[str, ModelOutcome] = {
    "content_filtered": ModelOutcome.REFUSED,
    "guardrail_intervened": ModelOutcome.REFUSED,
    "refusal": ModelOutcome.REFUSED,
    "malformed_model_output": ModelOutcome.MALFORMED,
    "malformed_tool_use": ModelOutcome.MALFORMED,
    "model_context_window_exceeded": ModelOutcome.TOO_LARGE,
    "max_tokens": ModelOutcome.TOO_LARGE,
    "cancelled": ModelOutcome.LATE,
}


class _Limits(HookProvider):  # type: ignore[misc]  # Strands is not followed by mypy
    """Ends an answer that calls too many tools or uses too many tokens."""

    def __init__(self, calls: int, tokens: int, used: Used) -> None:
        self._calls, self._tokens, self._used = calls, tokens, used
        self.called = 0
        self.ended: ModelOutcome | None = None

    def register_hooks(self, registry: HookRegistry, **_: Any) -> None:
        """See Strands' ``HookProvider``."""
        registry.add_callback(BeforeToolCallEvent, self._before)
        registry.add_callback(AfterToolsEvent, self._after)

    def _before(self, event: BeforeToolCallEvent) -> None:
        self.called += 1
        if event.selected_tool is None:
            self._used.unknown.append(str(event.tool_use.get("name"))[:64])
        if self.called > self._calls:
            self.ended = ModelOutcome.TOOL_LOOP
            event.cancel_tool = "no more tools in this answer"

    def _after(self, event: AfterToolsEvent) -> None:
        if event.agent.event_loop_metrics.accumulated_usage["totalTokens"] >= self._tokens:
            self.ended = self.ended or ModelOutcome.OVER_BUDGET
        if self.ended is not None:
            event.end_turn = True


class StrandsReasoner:
    """See the module, and :class:`wattmesh_cloud.agents.contract.Reasoner`.

    Args:
        config: Provider, model and limits.
        toolbox: What the model may use.
        session: AWS credentials; the usual chain where left out.

    Raises:
        ConfigurationError: The provider's package is missing, or its key file cannot be read.
    """

    def __init__(self, config: ModelConfig, toolbox: Toolbox, *, session: boto3.Session | None = None) -> None:
        self.name = f"{config.provider}/{config.id}"
        self._config, self._toolbox, self._session = config, toolbox, session
        self._errors: tuple[type[Exception], ...] = (
            *(BotoCoreError, ClientError, ResponseParserError),
            *(botocore.eventstream.ParserError, urllib3.exceptions.HTTPError),
            *(ContextWindowOverflowException, EventLoopException, MaxTokensReachedException, ModelThrottledException),
            *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
        )
        self._pool = ThreadPoolExecutor(MODELS_AT_ONCE, thread_name_prefix="model")
        self._key = _key(config)
        if config.provider != "bedrock":
            import httpx

            self._errors += (httpx.HTTPError, *_provider_errors(config.provider))
        logging.getLogger("strands").setLevel(logging.CRITICAL)  # every outcome is told by name; nothing twice

    def _model(self) -> Model:
        config = self._config
        if config.provider == "bedrock":
            client = Config(
                read_timeout=config.deadline_s,
                connect_timeout=min(5.0, config.deadline_s),
                retries={"total_max_attempts": 1},
            )
            options = {"model_id": config.id, "max_tokens": config.answer_tokens, **config.options}
            session = self._session or boto3.Session(region_name=config.region)
            return BedrockModel(boto_session=session, boto_client_config=client, endpoint_url=config.url, **options)
        if config.provider == "openai":
            from strands.models.openai import OpenAIModel

            arguments = {
                "base_url": config.url,
                "api_key": self._key or "none",
                "timeout": config.deadline_s,
                "max_retries": 0,
            }
            parameters = {"max_tokens": config.answer_tokens, **config.options}
            return OpenAIModel(client_args=arguments, model_id=config.id, params=parameters)
        from strands.models.ollama import OllamaModel

        return OllamaModel(config.url or "http://127.0.0.1:11434", model_id=config.id, max_tokens=config.answer_tokens)

    async def refine(self, task: Task) -> Refinement:
        """See :class:`wattmesh_cloud.agents.contract.Reasoner`."""
        loop, agents = asyncio.get_running_loop(), list[Agent]()
        try:
            return await loop.run_in_executor(self._pool, self._run, task, loop, agents)
        except asyncio.CancelledError:
            for agent in agents:
                agent.cancel()
            raise

    async def close(self) -> None:
        """See :class:`wattmesh_cloud.agents.contract.Reasoner`; a thread under way ends by its provider's time-out."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- on the model's thread

    def _run(self, task: Task, loop: asyncio.AbstractEventLoop, agents: list[Agent]) -> Refinement:
        used = Used()
        limits = _Limits(self._config.tool_calls, task.tokens, used)
        agent: Agent | None = None
        try:
            agent = Agent(
                model=self._model(),
                tools=[self._tool(one, task, used, loop) for one in self._toolbox.offered(task)],
                system_prompt=system_prompt(task),
                callback_handler=None,
                hooks=[limits],
                retry_strategy=None,
            )
            agents.append(agent)
            result = asyncio.run(agent.invoke_async(prompt(task)))
        except self._errors as error:
            outcome, detail = outcome_of(error)
            return self._given(outcome, detail, "", used, agent)
        return self._judged(result, used, limits, agent)

    def _judged(self, result: AgentResult, used: Used, limits: _Limits, agent: Agent) -> Refinement:
        text = "".join(part.get("text", "") for part in result.message.get("content", ()))
        if limits.ended is not None:
            return self._given(limits.ended, f"{limits.called} tool calls", "", used, agent)
        if result.stop_reason in _STOPS:
            return self._given(_STOPS[result.stop_reason], result.stop_reason, "", used, agent)
        if len(text) > _MOST_TEXT:
            return self._given(ModelOutcome.TOO_LARGE, f"{len(text)} characters", "", used, agent)
        if agent.event_loop_metrics.accumulated_usage["totalTokens"] == 0 and self._config.provider == "bedrock":
            return self._given(ModelOutcome.BROKEN_STREAM, "the stream ended without its metadata", "", used, agent)
        if used.proposals:
            return self._given(ModelOutcome.REFINED, "", text, used, agent)
        if used.unknown:
            return self._given(
                ModelOutcome.MALFORMED, f"unknown tools: {', '.join(used.unknown[:5])}", text, used, agent
            )
        outcome = ModelOutcome.AGREED if text.strip() else ModelOutcome.EMPTY
        return self._given(outcome, text.strip()[:300], text, used, agent)

    def _given(self, outcome: ModelOutcome, detail: str, text: str, used: Used, agent: Agent | None) -> Refinement:
        usage = agent.event_loop_metrics.accumulated_usage if agent is not None else {}
        return Refinement(
            outcome=outcome,
            detail=detail,
            proposals=tuple(used.proposals) if outcome is ModelOutcome.REFINED else (),
            text=text,
            tools=tuple(used.calls),
            cited=tuple(used.cited),
            input_tokens=int(usage.get("inputTokens", 0)),
            output_tokens=int(usage.get("outputTokens", 0)),
        )

    def _tool(self, one: Specification, task: Task, used: Used, loop: asyncio.AbstractEventLoop) -> PythonAgentTool:
        """A tool whose work is done on the cloud's loop."""

        async def call(tool_use: dict[str, Any], **_: Any) -> dict[str, Any]:
            work = self._toolbox.call(task, used, one.name, tool_use.get("input"))
            text = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
            status = "error" if text.startswith('{"error"') else "success"
            return {"toolUseId": tool_use["toolUseId"], "status": status, "content": [{"text": text}]}

        specification: Any = {
            "name": one.name,
            "description": one.description,
            "inputSchema": {"json": {"type": "object", **one.schema}},
        }
        return PythonAgentTool(one.name, specification, call)


def outcome_of(error: BaseException) -> tuple[ModelOutcome, str]:
    """The name of what a provider or Strands raised, with a detail for the trace."""
    if isinstance(error, EventLoopException):
        return outcome_of(error.original_exception)
    detail = f"{type(error).__name__}: {error}"[:300]
    match error:
        case ModelThrottledException():
            return ModelOutcome.THROTTLED, detail
        case ContextWindowOverflowException() | MaxTokensReachedException():
            return ModelOutcome.TOO_LARGE, detail
        case ReadTimeoutError() | TimeoutError() | urllib3.exceptions.ReadTimeoutError():
            return ModelOutcome.LATE, detail
        case ResponseParserError() | json.JSONDecodeError() | KeyError():  # frames that lack what the service promises
            return ModelOutcome.BROKEN_STREAM, detail
        case EventStreamError() | botocore.eventstream.ParserError() | urllib3.exceptions.ProtocolError():
            return _coded(error, ModelOutcome.BROKEN_STREAM), detail
        case ClientError():
            return _coded(error, ModelOutcome.FAILED), detail
        case NoCredentialsError() | PartialCredentialsError() | TokenRetrievalError() | NoRegionError():
            return ModelOutcome.CREDENTIALS, detail
        case ConnectTimeoutError() | BotoCoreError() | ConnectionError():
            streamed = "ResponseStreaming" in type(error).__name__ or "IncompleteRead" in type(error).__name__
            return (ModelOutcome.BROKEN_STREAM if streamed else ModelOutcome.UNAVAILABLE), detail
    return _NAMES.get(type(error).__name__, ModelOutcome.FAILED), detail


def _coded(error: BaseException, otherwise: ModelOutcome) -> ModelOutcome:
    response = getattr(error, "response", None) or {}
    code, text = str(response.get("Error", {}).get("Code", "")), str(error).lower()
    if code == "ValidationException":
        if any(word in text for word in _RETIRED):
            return ModelOutcome.RETIRED_MODEL
        return ModelOutcome.TOO_LARGE if any(word in text for word in _TOO_LONG) else ModelOutcome.FAILED
    if code == "throttlingException":
        return ModelOutcome.THROTTLED
    return _CODES.get(code, otherwise)


def _key(config: ModelConfig) -> str | None:
    if config.key_file is None:
        return None
    try:
        return Path(config.key_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"agents.model.key_file: {config.key_file} cannot be read ({error.strerror})"
        ) from error


def _provider_errors(provider: str) -> tuple[type[Exception], ...]:
    if provider == "openai":
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "agents.model.provider openai needs: pip install 'strands-agents[openai]'"
            ) from error
        return (openai.OpenAIError,)
    try:
        import ollama
    except ModuleNotFoundError as error:
        raise ConfigurationError("agents.model.provider ollama needs: pip install 'strands-agents[ollama]'") from error
    return (ollama.ResponseError, ollama.RequestError)
