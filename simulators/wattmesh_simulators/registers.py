"""Registers of a simulated device, laid out from its template as data; the codec here shares nothing with the drivers'.

A device's map is one image of big-endian bytes a function code; values are encoded when they are read after the plant moved.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

NOT_IMPLEMENTED: dict[str, bytes] = {
    "int16": b"\x80\x00", "uint16": b"\xff\xff", "acc16": b"\0\0", "enum16": b"\xff\xff", "bitfield16": b"\xff\xff",
    "sunssf": b"\x80\x00", "pad": b"\x80\x00", "count": b"\0\0", "int32": b"\x80\0\0\0", "uint32": b"\xff\xff\xff\xff",
    "acc32": b"\0\0\0\0", "enum32": b"\xff\xff\xff\xff", "bitfield32": b"\xff\xff\xff\xff",
    "int64": b"\x80" + b"\0" * 7, "uint64": b"\xff" * 8, "acc64": b"\0" * 8, "float32": b"\x7f\xc0\0\0",
}  # fmt: skip
_SUNSPEC_FORMAT = {
    "int16": "h", "uint16": "H", "acc16": "H", "enum16": "H", "bitfield16": "H", "sunssf": "h", "count": "H",
    "int32": "i", "uint32": "I", "acc32": "I", "enum32": "I", "bitfield32": "I", "int64": "q", "uint64": "Q",
    "acc64": "Q",
}  # fmt: skip
_PLAIN_FORMAT = {"u16": "H", "s16": "h", "u32": "I", "s32": "i", "u64": "Q", "s64": "q", "f32": "f", "f64": "d"}
_EXPONENTS = {"A_SF": -2, "V_SF": -1, "Hz_SF": -2, "PF_SF": -2, "Tmp_SF": -1, "Pct_SF": -1, "WMaxLimPct_SF": -2,
              "CellV_SF": -3, "DCA_SF": -2, "DCV_SF": -1, "SoC_SF": -1, "SoH_SF": -1}  # fmt: skip
"""Scale factors the simulated devices use; 0 elsewhere. Model 701 gives frequency in millihertz."""
_SUNS = b"SunS"
BASE = 40000


@dataclass(slots=True)
class Field:
    """One value in the image."""

    name: str
    at: int
    """Byte offset."""
    format: str
    factor: float
    """Raw = value / factor."""
    swapped: bool
    low: int | None
    high: int | None

    def encode(self, image: bytearray, value: float) -> None:
        """Put a value into the image, at the type's limit where it does not fit."""
        raw = value / self.factor
        if self.low is None or self.high is None:
            packed = struct.pack(">" + self.format, raw)
        else:
            packed = struct.pack(">" + self.format, min(max(round(raw), self.low), self.high))
        image[self.at : self.at + len(packed)] = _swap(packed) if self.swapped else packed

    def decode(self, image: bytearray) -> float:
        """The value that the image holds."""
        size = struct.calcsize(self.format)
        packed = bytes(image[self.at : self.at + size])
        (raw,) = struct.unpack(">" + self.format, _swap(packed) if self.swapped else packed)
        return float(raw) * self.factor


def _swap(packed: bytes) -> bytes:
    words = [packed[at : at + 2] for at in range(0, len(packed), 2)]
    return b"".join(reversed(words))


def _field(name: str, at: int, format_: str, factor: float, *, swapped: bool = False) -> Field:
    bits = struct.calcsize(format_) * 8
    if format_ in "fd":
        return Field(name, at, format_, factor, swapped, None, None)
    if format_.isupper():
        return Field(name, at, format_, factor, swapped, 0, 2**bits - 2)
    return Field(name, at, format_, factor, swapped, -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)


@cache
def template_of(name: str) -> dict[str, Any]:
    """A device template as plain data; raises FileNotFoundError."""
    path = importlib.resources.files("firmware_configs") / "devices" / f"{name}.yaml"
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data


class RegisterMap:
    """What a device answers with.

    Args:
        template: Name of its template (protocols ``modbus`` and ``sunspec``).
        quantities: All values of the device now, by point name, in our sign and unit.
        moved: A number that changes whenever the plant moved.
        written: Called with each setting that a master wrote, in our sign and unit.
    """

    def __init__(
        self,
        template: str,
        quantities: Callable[[], Mapping[str, float]],
        moved: Callable[[], int],
        written: Callable[[str, float], None],
    ) -> None:
        self._quantities = quantities
        self._moved = moved
        self._written = written
        self._seen = -1
        self.images: dict[int, tuple[int, bytearray]] = {}
        """Function code → first register and bytes."""
        self._read_fields: dict[int, list[Field]] = {}
        self._settings: list[Field] = []
        data = template_of(template)
        if data["protocol"] == "sunspec":
            self._lay_out_sunspec(data)
        else:
            self._lay_out_plain(data)

    def read(self, function: int, address: int, count: int) -> bytes | None:
        """Registers as bytes; none where the device has no such address."""
        found = self.images.get(function)
        if found is None:
            return None
        base, image = found
        start = (address - base) * 2
        if start < 0 or start + count * 2 > len(image):
            return None
        self._refresh()
        return bytes(image[start : start + count * 2])

    def write(self, address: int, content: bytes) -> bool:
        """Take a write to holding registers; false where there are none."""
        found = self.images.get(3)
        if found is None:
            return False
        base, image = found
        start = (address - base) * 2
        if start < 0 or start + len(content) > len(image):
            return False
        image[start : start + len(content)] = content
        for field in self._settings:
            if start <= field.at and field.at + struct.calcsize(field.format) <= start + len(content):
                self._written(field.name, field.decode(image))
        self._seen = -1
        return True

    def _refresh(self) -> None:
        moved = self._moved()
        fields = self._read_fields
        if moved != self._seen:
            self._seen = moved
            values = self._quantities()
            for function, members in fields.items():
                image = self.images[function][1]
                for field in members:
                    value = values.get(field.name)
                    if value is not None and math.isfinite(value):
                        field.encode(image, value)
            return
        frequency: float | None = None
        for function, members in fields.items():
            for field in members:
                if field.name == "frequency_hz":  # never a cached one: the reflex listens
                    frequency = self._quantities()["frequency_hz"] if frequency is None else frequency
                    field.encode(self.images[function][1], frequency)

    def _lay_out_plain(self, data: Mapping[str, Any]) -> None:
        by_function: dict[int, list[Mapping[str, Any]]] = {}
        for point in data["points"]:
            by_function.setdefault(point["function"], []).append(point)
        for function, points in by_function.items():
            size = max(point["address"] + struct.calcsize(_PLAIN_FORMAT[point["type"]]) // 2 for point in points)
            self.images[function] = (0, bytearray(size * 2))
            self._read_fields[function] = [
                _field(
                    point["id"],
                    point["address"] * 2,
                    _PLAIN_FORMAT[point["type"]],
                    float(point.get("scale", 1.0)) * point.get("sign", 1),
                    swapped=point.get("word_order", "big") == "little",
                )
                for point in points
            ]

    def _lay_out_sunspec(self, data: Mapping[str, Any]) -> None:
        wanted: dict[tuple[int, str, int, str], tuple[str, int, bool]] = {}
        for kind in ("settings", "points"):
            for point in data.get(kind, ()):
                key = (point["model"], point.get("group", ""), point.get("index", 0), point["point"])
                wanted.setdefault(key, (point["id"], point.get("sign", 1), kind == "settings"))
        extra = {"inverter": (120, 121, 123, 160, 701, 702, 703, 704), "battery": (702, 704), "meter": ()}[data["kind"]]
        models = sorted({1, *extra, *(key[0] for key in wanted)})
        image = bytearray(_SUNS)
        fields: list[Field] = []
        for model in models:
            self._lay_out_model(model, image, wanted, fields, data)
        image += b"\xff\xff\0\0"
        self.images[3] = (BASE, image)
        self._read_fields[3] = fields
        for point in data.get("settings", ()):  # a point may be read under one name and written under another
            key = (point["model"], point.get("group", ""), point.get("index", 0), point["point"])
            shared = next(field for field in fields if field.name == wanted[key][0])
            self._settings.append(
                Field(point["id"], shared.at, shared.format, shared.factor, False, shared.low, shared.high)
            )

    def _lay_out_model(
        self,
        model: int,
        image: bytearray,
        wanted: Mapping[tuple[int, str, int, str], tuple[str, int, bool]],
        fields: list[Field],
        data: Mapping[str, Any],
    ) -> None:
        path = importlib.resources.files("firmware_configs") / "sunspec" / f"model_{model}.json"
        group = json.loads(path.read_text(encoding="utf-8"))["group"]
        start = len(image)
        self._lay_out_group(model, "", 0, group, image, wanted, fields, data)
        for inner in group.get("groups", ()):
            count = inner.get("count", 1)
            times = 2 if model == 160 else count if isinstance(count, int) and count > 0 else 1
            for index in range(times):
                self._lay_out_group(model, inner["name"], index, inner, image, wanted, fields, data)
        struct.pack_into(">HH", image, start, model, (len(image) - start) // 2 - 2)

    def _lay_out_group(
        self,
        model: int,
        name: str,
        index: int,
        group: Mapping[str, Any],
        image: bytearray,
        wanted: Mapping[tuple[int, str, int, str], tuple[str, int, bool]],
        fields: list[Field],
        data: Mapping[str, Any],
    ) -> None:
        for point in group["points"]:
            kind, at = point["type"], len(image)
            if kind == "string":
                text = {"Mn": "WattMesh", "Md": f"simulated {data['kind']}", "SN": "SIM-1", "Vr": "1"}.get(
                    point["name"], ""
                )
                image += text.encode().ljust(point["size"] * 2, b"\0")
                continue
            if kind == "sunssf":
                image += struct.pack(">h", _exponent(model, point["name"]))
                continue
            if point["name"] == "N" and kind == "count":
                image += struct.pack(">H", 2)
                continue
            image += NOT_IMPLEMENTED[kind]
            found = wanted.get((model, name, index, point["name"]))
            if found is not None:
                factor = point.get("sf")
                exponent = _exponent(model, factor) if isinstance(factor, str) else int(factor or 0)
                fields.append(_field(found[0], at, _SUNSPEC_FORMAT[kind], found[1] * 10.0**exponent))


def _exponent(model: int, scale_factor: str) -> int:
    if (model, scale_factor) == (701, "Hz_SF"):
        return -3
    return _EXPONENTS.get(scale_factor, 0)
