"""The tools as action groups of Bedrock Agents ("Classic"), which is closed to new customers: for those who have it already.

Two event forms (AWS, Bedrock user guide, "Configure Lambda functions"): ``function`` with ``parameters`` for action groups with
function schemas, ``apiPath`` and ``httpMethod`` with ``parameters`` and ``requestBody`` for those with API schemas. Every value is
text; the tool's own schema says what it is, never the event. Session attributes go back as they came and name nobody. Tools that
act are refused: a model proposes, and has no way to act.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from wattmesh_a2a.errors import InvalidMessageError, UnauthorisedError, WattmeshError

from wattmesh_cloud.tools.base import Tool, error_code
from wattmesh_cloud.tools.catalogue import tool
from wattmesh_cloud.tools.schemas import inlined

_VERSION = "1.0"
_MOST_ANSWER_BYTES = 24_000
"""Below the service's 25 KB of an action group's answer."""
_MOST_PARAMETERS, _MOST_TEXT = 20, 10_000
_STATUS = {"invalid": 400, "forbidden": 403, "conflict": 409, "unavailable": 503}
_FAILURES = frozenset({"unavailable", "failed"})
"""What ends the agent's turn; anything else is told to its model, which may ask in another way."""


def is_classic(event: object) -> bool:
    """Whether an event comes from an agent of Bedrock Agents."""
    return isinstance(event, Mapping) and "messageVersion" in event and "actionGroup" in event


def answer(event: Mapping[str, Any], call: Callable[[Tool, Mapping[str, Any]], Any]) -> dict[str, Any]:
    """Do what an action group's event asks, and say it in the form of the event.

    Args:
        event: As Bedrock Agents sends it (:func:`is_classic`).
        call: Does it with the function's own authority; raises :class:`WattmeshError`.
    """
    try:
        found, arguments = _asked(event)
        text = _text({"result": call(found, arguments)})
        made = _response(event, text)
        if len(_text(made).encode()) > _MOST_ANSWER_BYTES:
            raise InvalidMessageError("the answer is too large; ask for a shorter window or fewer rows")
    except WattmeshError as error:
        code = error_code(error)
        told = {"error": {"code": code, "message": str(error)[:2000], "retryable": error.retryable}}
        return _response(event, _text(told), code)
    return made


def _asked(event: Mapping[str, Any]) -> tuple[Tool, dict[str, Any]]:
    """The tool and its arguments, typed by the tool's schema."""
    if event["messageVersion"] != _VERSION:
        raise InvalidMessageError(
            f"messageVersion {str(event['messageVersion'])[:20]!r}; {_VERSION} is understood here"
        )
    name = event["apiPath"] if "apiPath" in event else event.get("function")
    if not isinstance(name, str):
        raise InvalidMessageError("the event names no function and no apiPath")
    short = name.removeprefix("/") if "apiPath" in event else name
    found = tool(short)
    if found is None or found.name != short:
        raise InvalidMessageError(f"no tool {name[:80]!r}")
    if found.action:
        raise UnauthorisedError(f"{found.name} acts: it is not for models")
    schema = inlined(found.schema())["properties"]
    return found, {key: _typed(key, text, schema.get(key, {})) for key, text in _parameters(event).items()}


def _parameters(event: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts out of ``parameters`` and of the request's body; each name once."""
    body = event.get("requestBody")
    content = body.get("content") if isinstance(body, Mapping) else None
    media = content.get("application/json") if isinstance(content, Mapping) else None
    lists = [event.get("parameters"), media.get("properties") if isinstance(media, Mapping) else None]
    found: dict[str, str] = {}
    for given in lists:
        if given is None:
            continue
        if not isinstance(given, list):
            raise InvalidMessageError("parameters are no list")
        for one in given:
            name, value = (one.get("name"), one.get("value")) if isinstance(one, Mapping) else (None, None)
            if not isinstance(name, str) or not isinstance(value, str) or len(value) > _MOST_TEXT:
                raise InvalidMessageError(
                    f"a parameter has a name and a value of at most {_MOST_TEXT} characters, as text"
                )
            if name in found or len(found) >= _MOST_PARAMETERS:
                raise InvalidMessageError(f"parameter {name[:64]!r} is one too many")
            found[name] = value
    return found


def _typed(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """A parameter's text as what the tool's schema says; what is not that is left to the tool's own check."""
    try:
        match schema.get("type"):
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "boolean":
                return {"true": True, "false": False}[text.strip().lower()]
            case "array":
                return _array(text)
            case _:
                return text
    except (ValueError, KeyError, RecursionError) as error:
        raise InvalidMessageError(f"{name[:64]}: no {schema['type']}: {text[:80]!r}") from error


def _array(text: str) -> list[Any]:
    """A list: JSON, or as models write it, ``[a, b]`` without quotation marks."""
    try:
        made = json.loads(text)
    except ValueError:
        inner = text.strip().removeprefix("[").removesuffix("]")
        return [part for one in inner.split(",") if (part := one.strip().strip("\"'"))]
    return made if isinstance(made, list) else [made]


def _response(event: Mapping[str, Any], text: str, code: str | None = None) -> dict[str, Any]:
    """The answer in the form of the event; an error has a state that its agent understands."""
    said: dict[str, Any] = {"actionGroup": str(event["actionGroup"])[:200]}
    if "apiPath" in event:
        said |= {
            "apiPath": str(event["apiPath"])[:200],
            "httpMethod": str(event.get("httpMethod", ""))[:10],
            "httpStatusCode": 200 if code is None else _STATUS.get(code, 500),
            "responseBody": {"application/json": {"body": text}},
        }
    else:
        of_function: dict[str, Any] = {"responseBody": {"TEXT": {"body": text}}}
        if code is not None:
            of_function["responseState"] = "FAILURE" if code in _FAILURES else "REPROMPT"
        said |= {"function": str(event.get("function", ""))[:200], "functionResponse": of_function}
    made: dict[str, Any] = {"messageVersion": _VERSION, "response": said}
    for kept in ("sessionAttributes", "promptSessionAttributes"):
        given = event.get(kept)
        if isinstance(given, Mapping) and len(_text(given)) <= _MOST_TEXT // 5:
            made[kept] = dict(given)
    return made


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
