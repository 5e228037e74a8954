"""Evaluators for IAM and IoT policy documents: enough of the language for our own, and a refusal of what they do not know.

Both say no by default, no where any statement denies, yes where one allows. ``*`` and ``?`` match any characters; IoT topic
filters keep their ``+`` and ``#`` as plain characters, as AWS does. Only an account proves what AWS itself decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from wattmesh_a2a.errors import ConfigurationError

_STATEMENT = {"Sid", "Effect", "Action", "Resource", "Condition", "NotAction", "NotResource"}
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def allowed(
    document: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str | Sequence[str]] | None = None
) -> bool:
    """Whether a policy allows an action on a resource in a context (condition keys and policy variables).

    Raises:
        ConfigurationError: The document uses something that this evaluator does not know.
    """
    values = dict(context or {})
    verdict = False
    for statement in _list(document["Statement"]):
        if unknown := set(statement) - _STATEMENT:
            raise ConfigurationError(f"policy statement with {', '.join(sorted(unknown))}")
        if "NotAction" in statement or "NotResource" in statement:
            raise ConfigurationError("NotAction and NotResource are not used here")
        if not any(_matches(pattern, action, values, fold=True) for pattern in _list(statement["Action"])):
            continue
        if not any(_matches(pattern, resource, values) for pattern in _list(statement["Resource"])):
            continue
        if not _conditions(statement.get("Condition", {}), values):
            continue
        if statement["Effect"] == "Deny":
            return False
        verdict = True
    return verdict


def _conditions(conditions: Mapping[str, Mapping[str, Any]], values: Mapping[str, str | Sequence[str]]) -> bool:
    for operator, pairs in conditions.items():
        for key, wanted in pairs.items():
            found = values.get(key)
            texts = [str(one) for one in _list(wanted)]
            match operator:
                case "StringEquals" | "ArnEquals":
                    fits = isinstance(found, str) and found in texts
                case "StringLike" | "ArnLike":
                    fits = isinstance(found, str) and any(_matches(one, found, values) for one in texts)
                case "ForAllValues:StringLike":
                    fits = all(any(_matches(one, each, values) for one in texts) for each in _list(found or []))
                case "Bool":
                    fits = found is not None and str(found).lower() in {one.lower() for one in texts}
                case _:
                    raise ConfigurationError(f"condition operator {operator} is not known here")
            if not fits:
                return False
    return True


def _matches(pattern: str, value: str, values: Mapping[str, str | Sequence[str]], *, fold: bool = False) -> bool:
    """A pattern whose variable has no value in the context matches nothing."""
    parts = _VARIABLE.split(pattern)
    text = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            text += "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in part)
            continue
        known = values.get(part)
        if not isinstance(known, str):
            return False
        text += re.escape(known)
    return _compiled(text, fold).fullmatch(value) is not None


@lru_cache(maxsize=4096)
def _compiled(text: str, fold: bool) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL | (re.IGNORECASE if fold else 0))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
