"""Nodes by namespace URI: node ids, browse paths, and the types of their values."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from asyncua import ua
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_drivers.template import PointModel

VARIANTS = {
    "double": ua.VariantType.Double, "float": ua.VariantType.Float, "boolean": ua.VariantType.Boolean,
    "int16": ua.VariantType.Int16, "uint16": ua.VariantType.UInt16, "int32": ua.VariantType.Int32,
    "uint32": ua.VariantType.UInt32, "int64": ua.VariantType.Int64, "uint64": ua.VariantType.UInt64,
}  # fmt: skip
_LARGEST_FLOAT = 3.4028234663852886e38
_RANGES: dict[str, tuple[float, float]] = {
    "double": (-sys.float_info.max, sys.float_info.max), "float": (-_LARGEST_FLOAT, _LARGEST_FLOAT), "boolean": (0, 1),
    "int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1), "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1),
}  # fmt: skip
"""Least and largest value of a type (OPC 10000-6, 5.2.2)."""
_ELEMENT = re.compile(r"(?:\{(?P<uri>[^{}]+)\})?(?P<name>(?:&.|[^&/{}])+)(?:/|$)")
_WHOLE_PATH = 0xFFFFFFFF
"""RemainingPathIndex of a target whose path was followed to its end (OPC 10000-4, 5.9.4)."""


@dataclass(frozen=True, slots=True)
class Element:
    """One step of a browse path."""

    uri: str
    name: str


def parse_path(path: str, namespace: str) -> tuple[Element, ...]:
    """A browse path, whose names are separated by ``/``; a reserved character in a name stands behind ``&`` (OPC 10000-4, A.2).

    Args:
        path: Like ``Battery/{urn:other}Power``.
        namespace: URI of names without braces.

    Raises:
        ConfigurationError: It cannot be read so.
    """
    elements, at = [], 0
    while at < len(path):
        found = _ELEMENT.match(path, at)
        if found is None:
            raise ConfigurationError(f"the browse path {path!r} cannot be read from {path[at:]!r} on")
        elements.append(Element(found["uri"] or namespace, re.sub("&(.)", r"\1", found["name"])))
        at = found.end()
    if not elements or (path.endswith("/") and not path.endswith("&/")):
        raise ConfigurationError(f"the browse path {path!r} ends without a name")
    return tuple(elements)


def node_id(node: str, index: int) -> ua.NodeId:
    """A node id (OPC 10000-6, 5.3.1.10) in a namespace.

    Args:
        node: Without its namespace, like ``s=Name``, ``i=7``, ``g=…`` or ``b=…``.
        index: Of the namespace in this session.

    Raises:
        ConfigurationError: It cannot be read so.
    """
    if not re.match(r"[isgb]=.", node):
        raise ConfigurationError(
            f"the node id {node!r} is none: s=, i=, g= or b= and no namespace, which the template names"
        )
    try:
        return ua.NodeId.from_string(f"ns={index};{node}")
    except (ua.UaError, ValueError) as error:
        raise ConfigurationError(f"the node id {node!r} cannot be read") from error


def browse_path(elements: Sequence[Element], namespaces: Sequence[str]) -> ua.BrowsePath | None:
    """The path from the Objects folder in a session's indices; none where the server lacks one of its namespaces."""
    steps = []
    for element in elements:
        if element.uri not in namespaces:
            return None
        name = ua.QualifiedName(element.name, namespaces.index(element.uri))
        steps.append(
            ua.RelativePathElement(
                ReferenceTypeId=ua.NodeId(ua.ObjectIds.HierarchicalReferences),
                IsInverse=False,
                IncludeSubtypes=True,
                TargetName=name,
            )
        )
    return ua.BrowsePath(ua.NodeId(ua.ObjectIds.ObjectsFolder), ua.RelativePath(steps))


def target_of(result: ua.BrowsePathResult) -> ua.NodeId | str:
    """The one node that a path leads to, or why there is none."""
    if not result.StatusCode.is_good():
        return str(result.StatusCode.name)
    nodes = {target.TargetId for target in result.Targets if target.RemainingPathIndex == _WHOLE_PATH}
    if len(nodes) != 1:
        return f"its path leads to {len(nodes)} nodes"
    (node,) = nodes
    return ua.NodeId(node.Identifier, node.NamespaceIndex, node.NodeIdType)


def variant_of(setting: PointModel, value: float) -> ua.Variant:
    """What is written for a setting's value.

    Args:
        setting: Its type, scale and sign.
        value: In its unit.

    Raises:
        ConfigurationError: The type cannot hold it.
    """
    kind = str(setting.type)
    raw = value / (setting.scale * setting.sign)
    low, high = _RANGES[kind]
    number: float | int = raw
    if math.isfinite(raw) and kind not in {"double", "float"}:
        number = round(raw)
    if not low <= number <= high:  # nan is in no range
        raise ConfigurationError(f"{setting.id} = {value:g} does not fit {kind}, which takes {low:g} to {high:g}")
    return ua.Variant(bool(number) if kind == "boolean" else number, VARIANTS[kind])
