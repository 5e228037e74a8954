"""YAML files checked against a pydantic model; every mistake names file, line, field and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wattmesh_a2a.errors import ConfigurationError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is there: ten times as fast, and a gateway starts with many templates."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of all file models: immutable, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_yaml_model(path: Path, model: type[ModelT]) -> ModelT:
    """The file at ``path`` as ``model``.

    Raises:
        ConfigurationError: The file cannot be read, is no YAML, has a key twice, or does not fit the model; the text has one
            line a mistake: ``file:line: field: what is wrong and what is allowed``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    try:
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            _refuse_double_keys(path, node)
            data = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigurationError(f"{path}:{line}: not YAML: {getattr(error, 'problem', error)}") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [
            f"{path}:{_line_told(text, node, detail)}: {_name(detail['loc'])}: {_explain(detail, model)}"
            # What is misspelt before what is missing: the one is usually the cause of the other.
            for detail in sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        ]
        raise ConfigurationError("\n".join(lines)) from error


def place(path: Path, *location: int | str) -> str:
    """``file:line: field`` of a place in a file that could be read, for checks that look beyond the file."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_LOADER)
    return f"{path}:{_line_of(node, location)}: {_name(location)}"


def _line_told(text: str, node: yaml.Node | None, detail: Any) -> int:
    """Line of a mistake; one of the file as a whole is at the first line that has what its text quotes."""
    if not detail["loc"]:
        for word in re.findall(r"'([^']+)'", str(detail["msg"])):
            for number, line in enumerate(text.splitlines(), start=1):
                if re.search(rf"(?<![A-Za-z0-9_.-]){re.escape(word)}(?![A-Za-z0-9_.-])", line):
                    return number
    return _line_of(node, detail["loc"])


def _refuse_double_keys(path: Path, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigurationError(f"{path}:{key.start_mark.line + 1}: {key.value}: stands twice; keep one")
            seen.add(key.value)
            _refuse_double_keys(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_double_keys(path, value)


def _line_of(node: yaml.Node | None, location: Sequence[int | str]) -> int:
    """Line of the deepest part of ``location`` that the file has."""
    line = node.start_mark.line if node else 0
    for part in location:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, found = key.start_mark.line, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line
        if found is None:
            continue  # a tag of a union, or a missing field: the parent's line stands
        node = found
    return line + 1


def _name(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "file"


def _explain(detail: Any, model: type[BaseModel]) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        import difflib  # only for a mistake; a gateway's memory is counted

        known = _field_names(model)
        name = str(detail["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1)
        return f"unknown field; did you mean {near[0]!r}?" if near else "unknown field"
    given = detail.get("input")
    shown = f" (found {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{str(detail['msg'])[:1].lower()}{str(detail['msg'])[1:]}{shown}"


def _field_names(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> set[str]:
    """Every field name (or alias) of a model and the models inside it."""
    seen = set() if seen is None else seen
    if model in seen:
        return set()
    seen.add(model)
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(field.alias or name)
        for inner in _models_in(field.annotation):
            names |= _field_names(inner, seen)
    return names


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in getattr(annotation, "__args__", ()) for inner in _models_in(argument)]
