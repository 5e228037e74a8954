"""What MCP's conformance suite calls by name, put onto a server of ours: its scenarios need these tools, resources and prompts."""

import base64
import json

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SILENCE = base64.b64encode(
    b"RIFF&\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\2\0\0\0\0\0"
).decode()


def put_on(server: MCPServer) -> None:
    """All fixtures."""
    _contents(server)
    _rounds(server)
    _notices(server)
    _resources(server)
    _prompts(server)


def _text(words: str) -> TextContent:
    return TextContent(type="text", text=words)


def _image() -> ImageContent:
    return ImageContent(type="image", data=PIXEL, mime_type="image/png")


def _embedded(uri: str, kind: str = "text/plain", text: str = "embedded") -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=kind, text=text))


def _contents(server: MCPServer) -> None:
    @server.tool(description="A fixture")
    def test_simple_text() -> str:
        return "This is a simple text response for testing."

    @server.tool(description="A fixture")
    def test_image_content() -> list[ImageContent]:
        return [_image()]

    @server.tool(description="A fixture")
    def test_audio_content() -> list[AudioContent]:
        return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]

    @server.tool(description="A fixture")
    def test_embedded_resource() -> list[EmbeddedResource]:
        return [_embedded("test://embedded-resource", text="This is an embedded resource content.")]

    @server.tool(description="A fixture")
    def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
        return [_text("Multiple content types test:"), _image(), _embedded("test://mixed", "application/json", "{}")]

    @server.tool(description="A fixture")
    def test_error_handling() -> str:
        raise ValueError("This tool intentionally returns an error for testing")

    @server.tool(description="A fixture")
    async def test_tool_with_progress(ctx: Context) -> str:
        for done in (0, 50, 100):
            await ctx.report_progress(progress=done, total=100, message=f"Completed step {done} of 100")
        return "done"

    @server.tool(description="A fixture")
    async def test_missing_capability(ctx: Context) -> str:
        known = ctx.session.client_capabilities
        if known is None or known.sampling is None:
            needs = {"requiredCapabilities": {"sampling": {}}}
            raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="needs sampling", data=needs)
        return "sampling"


def _ask(message: str, field: str = "name", kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _sample(words: str) -> CreateMessageRequest:
    messages = [SamplingMessage(role="user", content=_text(words))]
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=messages, max_tokens=50))


def _rounds(server: MCPServer) -> None:
    """Tools that ask back: the first call is answered by what is missing, the call with it by the result."""

    def asking(name: str, requests, *, state: str | None = None) -> None:
        async def tool(ctx: Context) -> str | InputRequiredResult:
            given = ctx.input_responses or {}
            if set(requests) <= set(given) and (state is None or ctx.request_state == state):
                return "state-ok: all is here: " + ", ".join(sorted(given))
            return InputRequiredResult(input_requests=requests, request_state=state)

        server.tool(name=f"test_input_required_result_{name}", description="A fixture")(tool)

    asking("elicitation", {"user_name": _ask("What is your name?")})
    asking("sampling", {"capital_question": _sample("What is the capital of France?")})
    asking("list_roots", {"client_roots": ListRootsRequest()})
    asking("request_state", {"confirm": _ask("Please confirm", "ok", "boolean")}, state="nonce")
    asking(
        "multiple_inputs",
        {"user_name": _ask("Name?"), "greeting": _sample("A greeting"), "client_roots": ListRootsRequest()},
        state="several",
    )
    asking("tampered_state", {"confirm": _ask("Please confirm", "ok", "boolean")}, state="round-1")

    @server.tool(description="A fixture")
    async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
        reached = json.loads(ctx.request_state) if ctx.request_state else 0
        given = ctx.input_responses or {}
        for step, question in ((1, _ask("Step 1: name?")), (2, _ask("Step 2: color?", "color"))):
            if reached < step or (reached == step and f"step{step}" not in given):
                return InputRequiredResult(input_requests={f"step{step}": question}, request_state=json.dumps(step))
            if reached == step and step == 1:
                reached = 1.5
        return "both steps are done"

    @server.tool(description="A fixture")
    async def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
        known, wanted = ctx.client_capabilities, {}
        if known is None or known.sampling is not None:
            wanted["sample"] = _sample("Say hello")
        if known is None or known.elicitation is not None:
            wanted["ask"] = _ask("What is your name?")
        return InputRequiredResult(input_requests=wanted, request_state="gated")


def _notices(server: MCPServer) -> None:
    @server.tool(description="A fixture")
    async def test_trigger_tool_change(ctx: Context) -> str:
        await ctx.notify_tools_changed()
        return "told"

    @server.tool(description="A fixture")
    async def test_trigger_prompt_change(ctx: Context) -> str:
        await ctx.notify_prompts_changed()
        return "told"


def _resources(server: MCPServer) -> None:
    @server.resource("test://static-text")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary")
    def static_binary() -> bytes:
        return base64.b64decode(PIXEL)

    @server.resource("test://template/{id}/data")
    def by_template(id: str) -> str:  # noqa: A002 - the template's name
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def _prompts(server: MCPServer) -> None:
    def user(content) -> UserMessage:
        return UserMessage(role="user", content=content)

    @server.prompt(description="A fixture")
    def test_simple_prompt() -> list[UserMessage]:
        return [user(_text("This is a simple prompt for testing."))]

    @server.prompt(description="A fixture")
    def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
        return [user(_text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))]

    @server.prompt(description="A fixture")
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
        return [user(_embedded(resourceUri)), user(_text("Please process the embedded resource above."))]

    @server.prompt(description="A fixture")
    def test_prompt_with_image() -> list[UserMessage]:
        return [user(_image()), user(_text("Please analyze the image above."))]

    @server.prompt(description="A fixture")
    async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
        given = ctx.input_responses or {}
        if "user_context" in given:
            return [user(_text("Use the context."))]
        return InputRequiredResult(input_requests={"user_context": _ask("What context?", "context")})

    @server.completion()
    async def complete(ref, argument, context) -> Completion:
        return Completion(values=[], total=0, has_more=False)
