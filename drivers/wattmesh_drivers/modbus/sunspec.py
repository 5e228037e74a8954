"""SunSpec: finding the models of a device, and where their points are.

Source: SunSpec Device Information Model Specification 1.2, and the model definitions in ``firmware_configs/sunspec``.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

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


class ModelAt(NamedTuple):
    """Where a device has a model."""

    address: int
    """Of the first register, the ID."""
    length: int
    """L: registers after ID and L. A device may leave out the end of a model."""

    @property
    def end(self) -> int:
        """One past the model's last register: what is there belongs to the next model."""
        return self.address + 2 + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a point is, and how it scales."""

    address: int
    type: str
    sentinel: int | None
    scale_address: int | None
    """Register of the scale factor; none where the value is not scaled."""
    fixed_exponent: int
    end: int
    """One past the last register that the value, its scale factor or its group's count takes."""
    count_address: int | None = None
    """Register that says how often the point's group is repeated; none where it is not said."""


@cache
def model_definition(model: int) -> dict[str, Any]:
    """The definition of a model; raises :class:`ConfigurationError`."""
    path = importlib.resources.files("firmware_configs") / "sunspec" / f"model_{model}.json"
    if not path.is_file():
        raise ConfigurationError(f"SunSpec model {model} has no definition in firmware_configs/sunspec")
    definition: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    group: dict[str, Any] = definition["group"]
    return group


async def discover(link: ModbusLink) -> dict[int, ModelAt]:
    """Model → where it is, the first of each.

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
    raise ConfigurationError(f"{link.name} has no SunSpec map at 40000, 0 or 50000")


async def _walk(link: ModbusLink, address: int) -> dict[int, ModelAt]:
    found: dict[int, ModelAt] = {}
    for _ in range(_MODELS_AT_MOST):
        model = (await link.read(3, address, 1))[0]  # some devices do not answer the end model's length: ID alone
        if model == _END:
            return found
        length = (await link.read(3, address + 1, 1))[0]
        found.setdefault(model, ModelAt(address, length))
        address += 2 + length
        if address > 65_000:
            break
    raise UnavailableError(f"{link.name}: the SunSpec model chain has no end")


async def product_of(link: ModbusLink, models: Mapping[int, ModelAt]) -> str:
    """Manufacturer, model and serial number of the common model (1), as the device tells them; empty where it has none."""
    common = models.get(1)
    if common is None:
        return ""
    parts = []
    for name, size in (("Mn", 16), ("Md", 16), ("SN", 16)):
        offset = _offsets(model_definition(1))[0][name][0]
        words = await link.read(3, common.address + offset, size)
        text = b"".join(word.to_bytes(2, "big") for word in words).split(b"\0")[0]
        parts.append("".join(one for one in text.decode("ascii", "replace") if one.isprintable()).strip())
    return " ".join(part for part in parts if part)


async def rating_of(link: ModbusLink, models: Mapping[int, ModelAt], point: str, *candidates: int) -> float | None:
    """A rating that a device tells of itself, from the first of some models that has it; none where none does."""
    for model in candidates:
        found = models.get(model)
        if found is None:
            continue
        place = place_of(model, found.address, point)
        if place.end > found.end or place.type not in {"u16", "u32"}:
            continue
        words = await link.read(3, place.address, 1 if place.type == "u16" else 2)
        raw = int.from_bytes(b"".join(word.to_bytes(2, "big") for word in words), "big")
        exponent = place.fixed_exponent
        if place.scale_address is not None:
            word = (await link.read(3, place.scale_address, 1))[0]
            exponent = word - 0x10000 if word & 0x8000 else word
        if raw and raw != place.sentinel and abs(exponent) <= 10:
            return raw * 10.0**exponent
    return None


def place_of(model: int, start: int, point: str, *, group: str | None = None, index: int = 0) -> Place:
    """Where a point is in a model that starts at ``start``, if the device has that much of it (see :attr:`Place.end`).

    Raises:
        ConfigurationError: The model's definition has no such group, repetition or point, or it is not a number.
    """
    definition = model_definition(model)
    outer, _ = _offsets(definition)
    inner, base, count_address = outer, start, None
    if group is not None:
        nested, offset = _group_of(model, definition, group)
        inner, _ = _offsets(nested)
        base = start + offset + index * (_size(nested) if index else 0)
        count = nested.get("count", 1)
        if isinstance(count, int) and 0 < count <= index:
            raise ConfigurationError(f"SunSpec model {model} has {group!r} only {count} times")
        counter = count if isinstance(count, str) else "N" if count == 0 else None
        if counter in outer:
            count_address = start + outer[counter][0]
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
        end=max(base + offset + definition_of_point["size"], (scale_address or 0) + 1, (count_address or 0) + 1),
        count_address=count_address,
    )


def _group_of(model: int, definition: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    """A group inside a model, and the offset of its first repetition."""
    offset = _offsets(definition)[1]
    for nested in definition.get("groups", []):
        if nested["name"] == name:
            return nested, offset
        count = nested.get("count", 1)
        if not isinstance(count, int) or count < 1:
            raise ConfigurationError(f"SunSpec model {model}: {name!r} comes after a group of unknown length")
        offset += count * _size(nested)
    raise ConfigurationError(f"SunSpec model {model} has no group {name!r}")


def _size(group: dict[str, Any]) -> int:
    """Registers of one repetition, groups inside it included."""
    size = _offsets(group)[1]
    for nested in group.get("groups", []):
        count = nested.get("count", 1)
        if not isinstance(count, int) or count < 1:
            raise ConfigurationError(f"SunSpec group {group['name']!r} has parts of unknown length")
        size += count * _size(nested)
    return size


def _offsets(group: dict[str, Any]) -> tuple[dict[str, tuple[int, dict[str, Any]]], int]:
    """Offset and definition of each point of a group's own, and the group's size in registers."""
    offset = 0
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for point in group["points"]:
        found[point["name"]] = (offset, point)
        offset += point["size"]
    return found, offset
