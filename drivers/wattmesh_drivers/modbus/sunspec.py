"""SunSpec: finding the models of a device, and where their points are.

Source: SunSpec Device Information Model Specification 1.2, and the model definitions in ``firmware_configs/sunspec``.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers.modbus.link import ModbusLink, RefusedError

BASES = (40000, 0, 50000)
"""Where the marker "SunS" may stand (0-based), the usual one first."""
_MARKER = (0x5375, 0x6E53)
_END = 0xFFFF
_MODELS_AT_MOST = 100

TYPES: dict[str, tuple[str, int | None]] = {
    "int16": ("s16", -0x8000), "uint16": ("u16", 0xFFFF), "acc16": ("u16", None), "enum16": ("u16", 0xFFFF),
    "bitfield16": ("u16", 0xFFFF), "count": ("u16", None), "sunssf": ("s16", -0x8000), "int32": ("s32", -0x80000000),
    "uint32": ("u32", 0xFFFFFFFF), "acc32": ("u32", None), "enum32": ("u32", 0xFFFFFFFF),
    "bitfield32": ("u32", 0xFFFFFFFF), "int64": ("s64", -0x8000000000000000), "uint64": ("u64", -1),
    "acc64": ("u64", None), "float32": ("f32", None), "float64": ("f64", None),
}  # fmt: skip
"""SunSpec type → our register type and the raw value that means "not implemented" (as a signed number where 64 bit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a point is, and how it scales."""

    address: int
    type: str
    sentinel: int | None
    scale_address: int | None
    """Register of the scale factor; none where the value is not scaled."""
    fixed_exponent: int


@cache
def model_definition(model: int) -> dict[str, Any]:
    """The definition of a model; raises :class:`ConfigurationError`."""
    path = importlib.resources.files("firmware_configs") / "sunspec" / f"model_{model}.json"
    if not path.is_file():
        raise ConfigurationError(f"SunSpec model {model} has no definition in firmware_configs/sunspec")
    definition: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    group: dict[str, Any] = definition["group"]
    return group


async def discover(link: ModbusLink) -> dict[int, int]:
    """Model → address of its first register (the ID), the first of each.

    Raises:
        ConfigurationError: There is no SunSpec map.
        UnavailableError: The device does not answer.
    """
    for base in BASES:
        try:
            marker = await link.read(3, base, 2)
        except RefusedError:
            continue
        if tuple(marker) == _MARKER:
            return await _walk(link, base + 2)
    raise ConfigurationError(f"{link.host}:{link.port} unit {link.unit} has no SunSpec map at 40000, 0 or 50000")


async def _walk(link: ModbusLink, address: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for _ in range(_MODELS_AT_MOST):
        model = (await link.read(3, address, 1))[0]  # some devices do not answer the end model's length: ID alone
        if model == _END:
            return found
        length = (await link.read(3, address + 1, 1))[0]
        found.setdefault(model, address)
        address += 2 + length
        if address > 65_000:
            break
    raise UnavailableError(f"{link.host}:{link.port} unit {link.unit}: the SunSpec model chain has no end")


def place_of(model: int, start: int, point: str, *, group: str | None = None, index: int = 0) -> Place:
    """Where a point is in a model that starts at ``start``; raises :class:`ConfigurationError`."""
    definition = model_definition(model)
    outer, size = _offsets(definition)
    if group is None:
        inner, base = outer, start
    else:
        nested = next((g for g in definition.get("groups", []) if g["name"] == group), None)
        if nested is None:
            raise ConfigurationError(f"SunSpec model {model} has no group {group!r}")
        inner, width = _offsets(nested)
        base = start + size + index * width
    if point not in inner:
        raise ConfigurationError(f"SunSpec model {model} has no point {point!r}")
    offset, definition_of_point = inner[point]
    kind = definition_of_point["type"]
    if kind not in TYPES:
        raise ConfigurationError(f"SunSpec point {model}.{point} of type {kind} is not a number")
    type_, sentinel = TYPES[kind]
    factor = definition_of_point.get("sf")
    scale_address = None
    if isinstance(factor, str):
        if factor in inner:
            scale_address = base + inner[factor][0]
        elif factor in outer:
            scale_address = start + outer[factor][0]
        else:
            raise ConfigurationError(f"SunSpec point {model}.{point}: its scale factor {factor} does not exist")
    return Place(
        address=base + offset,
        type=type_,
        sentinel=sentinel,
        scale_address=scale_address,
        fixed_exponent=factor if isinstance(factor, int) else 0,
    )


def _offsets(group: dict[str, Any]) -> tuple[dict[str, tuple[int, dict[str, Any]]], int]:
    """Offset and definition of each point of a group's own, and the group's size in registers."""
    offset = 0
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for point in group["points"]:
        found[point["name"]] = (offset, point)
        offset += point["size"]
    return found, offset
