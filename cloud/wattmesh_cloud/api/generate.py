"""Writes the Python client from the API's own routes: ``python -m wattmesh_cloud.api.generate``; a test keeps the two in step."""

from __future__ import annotations

import re
import sys
from typing import Any

from fastapi import FastAPI

_HEADER = '''"""The typed Python client; written by wattmesh_cloud.api.generate, and kept in step with the API by a test.

    with Client("https://fleet.example.org", token=token) as fleet:
        for site in fleet.list_sites().rows:
            print(site.id, site.flows.grid_w)
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

import httpx
from pydantic import TypeAdapter

from wattmesh_cloud.api import grid, lab, reports
from wattmesh_cloud.api import models as m


class ApiError(Exception):
    """The API refuses; ``status`` is HTTP's, the text says what to do."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Client:
    """One connection pool to one fleet.

    Args:
        url: Of the cloud, without a path.
        token: A machine token; none for the demo.
        transport: httpx's, for tests.
    """

    def __init__(self, url: str, token: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30.0, transport=transport)

    def __enter__(self) -> Client:
        """Use it in a ``with``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, query: dict[str, Any], body: Any = None) -> httpx.Response:
        given = {name: value for name, value in query.items() if value is not None}
        answer = self._http.request(method, path, params=given, json=body)
        if answer.status_code >= 400:
            try:
                detail = str(answer.json()["detail"])
            except (ValueError, KeyError, TypeError):
                detail = answer.text[:300]
            raise ApiError(answer.status_code, detail)
        return answer
'''
_LEFT_OUT = frozenset({"get_live", "begin_oidc", "end_oidc", "login"})
"""For browsers, or a stream that is no single answer."""
_PLAIN = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}


def client_text(app: FastAPI) -> str:
    """The module as text."""
    paths: dict[str, Any] = app.openapi()["paths"]
    found = [
        (operation["operationId"], method, path, operation)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if operation["operationId"] not in _LEFT_OUT
    ]
    return _HEADER + "".join(_method(*one) for one in sorted(found, key=lambda one: one[0]))


def _method(name: str, method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = operation.get("parameters", [])
    inside = [one for one in parameters if one["in"] == "path"]
    query = [one for one in parameters if one["in"] == "query" and one["name"] != "format"]
    exports = any(one["name"] == "format" for one in parameters)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    result = _result(operation)
    signature = [f"{one['name']}: str" for one in inside]
    if body is not None:
        signature.append(f"body: {_type(body)}")
    keyword = [f"{one['name']}: {_type(one['schema'])}{_default(one)}" for one in query]
    if exports:
        keyword.append('as_file: Literal["csv", "parquet"] | None = None')
    if keyword:
        signature += ["*", *keyword]
    target = re.sub(r"\{(\w+)\}", r"{\1}", path)
    prefix = "f" if inside else ""
    values = ", ".join(f'"{one["name"]}": {one["name"]}' for one in query)
    if exports:
        values = f'{values}, "format": as_file' if values else '"format": as_file'
    content = ', body.model_dump(mode="json", exclude_unset=True)' if body is not None else ""
    if method != "get" and body is None:
        content = ", {}"
    kind = f"{result} | bytes" if exports else result
    lines = [
        "",
        f"    def {name}(self, {', '.join(signature)}) -> {kind}:" if signature else f"    def {name}(self) -> {kind}:",
        f'        """{operation["description"].splitlines()[0]}"""',
        f'        answer = self._ask("{method.upper()}", {prefix}"{target}", {{{values}}}{content})',
    ]
    if exports:
        lines += ["        if as_file is not None:", "            return answer.content"]
    if result == "bytes":
        lines.append("        return answer.content")
    elif result == "str":
        lines.append("        return answer.text")
    else:
        lines.append(f"        return TypeAdapter({result}).validate_json(answer.content)")
    return "\n".join(lines) + "\n"


def _result(operation: dict[str, Any]) -> str:
    for status in ("200", "201"):
        content = operation["responses"].get(status, {}).get("content", {})
        if "application/json" in content:
            return _type(content["application/json"]["schema"])
        if "application/octet-stream" in content:
            return "bytes"
        if "text/plain" in content:
            return "str"
    return "bytes"


def _default(parameter: dict[str, Any]) -> str:
    if parameter.get("required"):
        return ""
    return f" = {parameter['schema'].get('default')!r}"


def _type(schema: dict[str, Any]) -> str:
    """A schema as a type of ours."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if page := re.fullmatch(r"Page_(\w+?)_", name):
            return f"m.Page[{_named(page[1])}]"
        return _named(name)
    if "anyOf" in schema:
        return " | ".join("None" if one.get("type") == "null" else _type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list[{_type(schema['items'])}]"
    if "enum" in schema or "const" in schema:
        return "str"
    return _PLAIN.get(str(schema.get("type")), "Any")


def _named(name: str) -> str:
    from wattmesh_cloud.api import grid, lab, reports
    from wattmesh_cloud.api import models as m

    for prefix, module in (("m", m), ("grid", grid), ("lab", lab), ("reports", reports)):
        if hasattr(module, name) and getattr(module, name).__module__ == module.__name__:
            return f"{prefix}.{name}"
    raise LookupError(name)


def described() -> FastAPI:
    """The application without anything behind it: routes and types alone."""
    from unittest.mock import MagicMock

    from wattmesh_cloud.api import Services, create_api

    return create_api(Services(**{name: MagicMock() for name in ("view", "access", "commands", "jobs", "audit")}))


if __name__ == "__main__":
    sys.stdout.write(client_text(described()))
