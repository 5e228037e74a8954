"""The tools' schemas as AgentCore Gateway takes them."""

from __future__ import annotations

from typing import Any

from wattmesh_cloud.tools.catalogue import CATALOGUE


def gateway_schema(service: str) -> list[dict[str, Any]]:
    """A service's tools as AgentCore Gateway takes them (``ToolSchema.InlinePayload``)."""
    return [
        {"name": one.name, "description": one.description, "inputSchema": inlined(one.schema())}
        for one in CATALOGUE
        if one.service == service
    ]


_KEPT = ("type", "description", "properties", "required", "items")


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of JSON Schema that the gateway knows: types, texts, properties, items; references put in place."""
    definitions = schema.get("$defs", {})

    def plain(one: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in one:
            one = {**definitions[one["$ref"].rsplit("/", 1)[-1]], **{k: v for k, v in one.items() if k != "$ref"}}
        kept = {key: one[key] for key in _KEPT if key in one}
        if "properties" in kept:
            kept["properties"] = {name: plain(value) for name, value in kept["properties"].items()}
        if "items" in kept:
            kept["items"] = plain(kept["items"])
        kept.setdefault("type", "string")
        return kept

    return plain(schema)
