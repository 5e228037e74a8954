"""SunSpec: finding the models of a device, and where their points are.

Source: SunSpec Device Information Model Specification 1.2, and the model definitions in ``firmware_configs/sunspec``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from wattmesh_a2a.errors import ConfigurationError, UnavailableError

import firmware_configs
from wattmesh_drivers.modbus.link import ModbusLink, RefusedError

BASES = (40000, 0, 50000)
"""Where the marker "SunS" may stand (0-based), the usual one first."""
_MARKER = (0x5375, 0x6E53)
_END = 0xFFFF
_MODELS_AT_MOST = 100
_RATING_AT_MOST = 1e8

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
    """One past the last register that the value or its scale factor takes."""


@cache
def model_definition(model: int) -> dict[str, Any]:
    """The definition of a model; raises :class:`ConfigurationError`."""
    path = Path(firmware_configs.__file__).parent / "sunspec" / f"model_{model}.json"
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


async def make_of(link: ModbusLink, models: Mapping[int, ModelAt]) -> str:
    """Manufacturer of the common model (1), as the device tells it; empty where it has none."""
    return await _text(link, models, "Mn")


def is_make(make: str, makes: Sequence[str]) -> bool:
    """Whether a device's manufacturer is one of a template's, whatever the case and the form of the company."""
    return any(make.casefold().startswith(one.casefold()) for one in makes)


async def _text(link: ModbusLink, models: Mapping[int, ModelAt], name: str) -> str:
    common = models.get(1)
    if common is None:
        return ""
    offset, definition = _offsets(model_definition(1))[0][name]
    words = await link.read(3, common.address + offset, definition["size"])
    text = b"".join(word.to_bytes(2, "big") for word in words).split(b"\0")[0]
    return "".join(one for one in text.decode("ascii", "replace") if one.isprintable()).strip()


async def product_of(link: ModbusLink, models: Mapping[int, ModelAt]) -> str:
    """Manufacturer, model and serial number of the common model (1), as the device tells them; empty where it has none."""
    parts = [await _text(link, models, name) for name in ("Mn", "Md", "SN")]
    return " ".join(part for part in parts if part)


async def rating_of(link: ModbusLink, models: Mapping[int, ModelAt], point: str, *candidates: int) -> float | None:
    """A rating that a device tells of itself, from the first of some models that has it; none where none does."""
    for model in candidates:
        found = models.get(model)
        if found is None:
            continue
        place = place_of(model, found.address, point)
        if place is None or place.end > found.end or place.type not in {"u16", "u32"}:
            continue
        words = await link.read(3, place.address, 1 if place.type == "u16" else 2)
        raw = int.from_bytes(b"".join(word.to_bytes(2, "big") for word in words), "big")
        exponent = place.fixed_exponent
        if place.scale_address is not None:
            word = (await link.read(3, place.scale_address, 1))[0]
            exponent = word - 0x10000 if word & 0x8000 else word
        value = raw * 10.0**exponent if raw != place.sentinel and abs(exponent) <= 10 else 0.0
        if 0 < value <= _RATING_AT_MOST:
            return value
    return None


def counters_of(model: int) -> dict[str, int]:
    """Points of a model that say how often its groups are repeated, and their offsets from its start.

    Raises:
        ConfigurationError: There is no definition of the model.
    """
    definition = model_definition(model)
    own = _offsets(definition)[0]
    return {name: own[name][0] for name in _counter_names(definition) if name in own}


def _counter_names(group: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for nested in group.get("groups", []):
        if (name := _counter_of(nested)) is not None:
            found.add(name)
        found |= _counter_names(nested)
    return found


def _counter_of(group: dict[str, Any]) -> str | None:
    """The point that says how often a group is repeated; none where its definition does."""
    count = group.get("count", 1)
    return count if isinstance(count, str) else "N" if count == 0 else None


def place_of(
    model: int,
    start: int,
    point: str,
    *,
    group: str | None = None,
    index: int = 0,
    counts: Mapping[str, int] | None = None,
) -> Place | None:
    """Where a point is in a model that starts at ``start``, if the device has that much of it (see :attr:`Place.end`).

    Args:
        model: Its number.
        start: Register of its ID.
        point: Its name.
        group: Groups from the model inwards, with the repetition that is meant where it is not the first:
            ``module``, ``Crv[1].MustTrip.Pt[2]``.
        index: Repetition of the last group, counted from 0.
        counts: What the device says of its repetitions, by the points of :func:`counters_of`.

    Returns:
        The place; none where the device has fewer repetitions.

    Raises:
        ConfigurationError: The model's definition has no such group, repetition or point, it is not a number, or it comes after a
            group whose length is not known.
    """
    definition = model_definition(model)
    known = counts or {}
    chain = [(definition, start)]
    steps = [] if group is None else [_step(model, text) for text in group.split(".")]
    for number, (name, repetition) in enumerate(steps):
        wanted = index if number == len(steps) - 1 and repetition is None else repetition or 0
        outer, base = chain[-1]
        nested, offset = _group_in(model, outer, name, known)
        count = nested.get("count", 1)
        if isinstance(count, int) and 0 < count <= wanted:
            raise ConfigurationError(f"SunSpec model {model} has {name!r} only {count} times")
        told = known.get(_counter_of(nested) or "")
        if told is not None and wanted >= told:
            return None
        chain.append((nested, base + offset + (wanted * _size(nested, known) if wanted else 0)))
    points = _offsets(chain[-1][0])[0]
    if point not in points:
        raise ConfigurationError(f"SunSpec model {model} has no point {point!r}")
    offset, definition_of_point = points[point]
    kind = definition_of_point["type"]
    if kind not in TYPES:
        raise ConfigurationError(f"SunSpec point {model}.{point} of type {kind} is not a number")
    type_, sentinel = TYPES[kind]
    factor = definition_of_point.get("sf")
    scale_address = None
    if isinstance(factor, str):
        at = [base + _offsets(one)[0][factor][0] for one, base in reversed(chain) if factor in _offsets(one)[0]]
        if not at:
            raise ConfigurationError(f"SunSpec point {model}.{point}: its scale factor {factor} does not exist")
        scale_address = at[0]
    address = chain[-1][1] + offset
    return Place(
        address=address,
        type=type_,
        sentinel=sentinel,
        scale_address=scale_address,
        fixed_exponent=factor if isinstance(factor, int) else 0,
        end=max(address + definition_of_point["size"], (scale_address or 0) + 1),
    )


def _step(model: int, text: str) -> tuple[str, int | None]:
    """Name and repetition of one step of a group's path."""
    found = re.fullmatch(r"([\w-]+)(?:\[(\d+)\])?", text)
    if found is None:
        raise ConfigurationError(f"SunSpec model {model}: {text!r} is no group; write it like Crv[1].MustTrip.Pt[2]")
    return found[1], None if found[2] is None else int(found[2])


def _group_in(model: int, outer: dict[str, Any], name: str, counts: Mapping[str, int]) -> tuple[dict[str, Any], int]:
    """A group inside another, and the offset of its first repetition from the other's start."""
    offset = _offsets(outer)[1]
    for nested in outer.get("groups", []):
        if nested["name"] == name:
            return nested, offset
        offset += _times(nested, counts) * _size(nested, counts)
    raise ConfigurationError(f"SunSpec model {model} has no group {name!r}")


def _times(group: dict[str, Any], counts: Mapping[str, int]) -> int:
    counter = _counter_of(group)
    if counter is None:
        return int(group.get("count", 1))
    if counter not in counts:
        raise ConfigurationError(f"SunSpec group {group['name']!r}: the device does not say how often it is repeated")
    return counts[counter]


def _size(group: dict[str, Any], counts: Mapping[str, int]) -> int:
    """Registers of one repetition, groups inside it included."""
    inside = (_times(nested, counts) * _size(nested, counts) for nested in group.get("groups", []))
    return _offsets(group)[1] + sum(inside)


def _offsets(group: dict[str, Any]) -> tuple[dict[str, tuple[int, dict[str, Any]]], int]:
    """Offset and definition of each point of a group's own, and their size in registers."""
    offset = 0
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for point in group["points"]:
        found[point["name"]] = (offset, point)
        offset += point["size"]
    return found, offset
