"""Registers of a simulated device, laid out from its template as data; the codec here shares nothing with the drivers'.

A device's map is one image of big-endian bytes a function code; values are encoded when they are read after the plant moved,
the frequency whenever it is read. Writable is what the template has a setting for, and nothing else: a register that took a
value without an effect would be a lie.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from wattmesh_a2a.errors import ConfigurationError

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
              "CellV_SF": -3, "DCA_SF": -2, "DCV_SF": -1, "SoC_SF": -1, "SoH_SF": -1,
              "PFRtg_SF": -2, "OutPFSet_SF": -2, "ARtg_SF": -1, "AMax_SF": -1}  # fmt: skip
"""Scale factors the simulated devices use; 0 elsewhere. Model 701 gives frequency in millihertz."""
_SUNS = b"SunS"
BASE = 40000
ILLEGAL_ADDRESS, ILLEGAL_VALUE = 2, 3
"""Modbus exception codes that :meth:`RegisterMap.write` gives."""

_EXTRA_MODELS: dict[str, tuple[int, ...]] = {
    "inverter": (120, 121, 123, 160, 701, 702, 703, 704),
    "battery": (702, 704),
    "meter": (),
    "ev_charger": (),
}
_NAMEPLATE: dict[tuple[int, str], str | float] = {
    (103, "Evt2"): 0, (103, "PPVphAB"): "voltage_l12_v", (103, "PPVphBC"): "voltage_l12_v", (103, "PPVphCA"): "voltage_l12_v",
    (120, "DERTyp"): 4, (120, "WRtg"): "rated_power_w", (120, "VARtg"): "rated_power_w", (120, "VArRtgQ1"): "rated_reactive_var",
    (120, "VArRtgQ2"): 0, (120, "VArRtgQ3"): 0, (120, "VArRtgQ4"): "rated_reactive_var", (120, "ARtg"): "rated_current_a",
    (120, "PFRtgQ1"): 0.8, (120, "PFRtgQ2"): 0.8, (120, "PFRtgQ3"): 0.8, (120, "PFRtgQ4"): 0.8,
    (121, "WMax"): "rated_power_w", (121, "VRef"): 240, (121, "VRefOfs"): 0,
    (123, "Conn"): 1, (123, "OutPFSet"): 1, (123, "OutPFSet_Ena"): 0, (123, "VArPct_Ena"): 0,
    (203, "PhV"): "voltage_l2_v", (203, "PPV"): "voltage_l12_v", (203, "PhVphAB"): "voltage_l12_v",
    (203, "PhVphBC"): "voltage_l12_v", (203, "PhVphCA"): "voltage_l12_v", (203, "Evt"): 0,
    (701, "ACType"): 3, (701, "St"): 1, (701, "InvSt"): 3, (701, "ConnSt"): 1,
    (702, "WMaxRtg"): "rated_power_w", (702, "VAMaxRtg"): "rated_power_w", (702, "VNomRtg"): 240,
    (702, "AMaxRtg"): "rated_current_a", (702, "WChaRteMaxRtg"): "rated_charge_w", (702, "WDisChaRteMaxRtg"): "rated_discharge_w",
    (702, "WMax"): "rated_power_w", (703, "ES"): 1, (713, "WHRtg"): "rated_energy_wh", (713, "Sta"): 0,
    (802, "AHRtg"): "rated_charge_ah", (802, "WHRtg"): "rated_energy_wh", (802, "WChaRteMax"): "rated_charge_w",
    (802, "WDisChaRteMax"): "rated_discharge_w", (802, "SoC"): "soc_percent", (802, "SoH"): "soh_percent", (802, "LocRemCtl"): 0,
    (802, "AlmRst"): 0, (802, "Typ"): 4, (802, "Evt1"): 0, (802, "Evt2"): 0, (802, "EvtVnd1"): 0, (802, "EvtVnd2"): 0,
    (802, "SetOp"): 1, (802, "SetInvState"): 1,
}  # fmt: skip
"""Mandatory and nameplate points that templates do not read: a quantity's name, or the value itself."""
_INVERTER_701: dict[tuple[int, str], tuple[str, int]] = {
    (701, "W"): ("active_power_w", -1), (701, "VA"): ("apparent_power_va", 1), (701, "Var"): ("reactive_power_var", 1),
    (701, "A"): ("current_a", 1), (701, "Hz"): ("frequency_hz", 1), (701, "VL1"): ("voltage_l1_v", 1),
    (701, "VL2"): ("voltage_l2_v", 1), (701, "VL3"): ("voltage_l3_v", 1), (701, "TotWhInj"): ("energy_produced_wh", 1),
    (701, "TmpCab"): ("temperature_cabinet_degc", 1),
}  # fmt: skip
"""What an inverter's model 701 gives where the template reads its model 103: quantity and sign."""


@dataclass(slots=True)
class Field:
    """One value in the image."""

    name: str
    at: int
    """Byte offset."""
    codec: struct.Struct
    factor: float
    """Raw = value / factor."""
    swapped: bool
    low: int | None
    high: int | None
    minimum: float = -math.inf
    """Least value that may be written, in our unit; ``maximum`` the largest."""
    maximum: float = math.inf
    bias: float = 0.0
    """Value = raw × factor + bias."""
    apart: int | None = None
    """Byte offset of the high word of a value whose low word alone is at ``at``."""

    @property
    def end(self) -> int:
        """Byte offset after it; of a value whose words lie apart, after its low word."""
        return self.at + (2 if self.apart is not None else self.codec.size)

    @property
    def cells(self) -> Iterator[int]:
        """Byte offsets of its registers."""
        yield from range(self.at, self.end, 2)
        if self.apart is not None:
            yield self.apart

    def encode(self, image: bytearray, value: float) -> None:
        """Put a value into the image, at the type's limit where it does not fit."""
        raw: float = (value - self.bias) / self.factor
        if self.low is not None and self.high is not None:
            raw = min(max(round(raw), self.low), self.high)
        if self.apart is not None:
            packed = self.codec.pack(raw)
            image[self.apart : self.apart + 2], image[self.at : self.end] = packed[:2], packed[2:]
        elif self.swapped:
            image[self.at : self.end] = _swap(self.codec.pack(raw))
        else:
            self.codec.pack_into(image, self.at, raw)

    def decode(self, packed: bytes) -> float | None:
        """The value of its bytes; none where they are the type's mark for no value or outside what may be written."""
        (raw,) = self.codec.unpack(_swap(packed) if self.swapped else packed)
        if not math.isfinite(raw) or (
            self.low is not None and self.high is not None and not self.low <= raw <= self.high
        ):
            return None
        value = float(raw) * self.factor + self.bias
        return value if self.minimum <= value <= self.maximum else None


def _swap(packed: bytes) -> bytes:
    words = [packed[at : at + 2] for at in range(0, len(packed), 2)]
    return b"".join(reversed(words))


def _field(name: str, at: int, format_: str, factor: float, *, swapped: bool = False) -> Field:
    codec = struct.Struct(">" + format_)
    if format_ in "fd":
        return Field(name, at, codec, factor, swapped, None, None)
    if format_.isupper():
        return Field(name, at, codec, factor, swapped, 0, 2 ** (codec.size * 8) - 2)
    return Field(name, at, codec, factor, swapped, -(2 ** (codec.size * 8 - 1)) + 1, 2 ** (codec.size * 8 - 1) - 1)


def _writable(field: Field, setting: Mapping[str, Any]) -> Field:
    """The same registers under a setting's name and limits."""
    return replace(
        field,
        name=setting["id"],
        minimum=float(setting.get("minimum", -math.inf)),
        maximum=float(setting.get("maximum", math.inf)),
    )


@cache
def template_of(name: str) -> dict[str, Any]:
    """A device template as plain data, by its name or the path of a file (ending in ``.yaml``).

    Raises:
        ConfigurationError: There is none of that name; those that there are are told.
    """
    if name.endswith(".yaml"):
        try:
            own = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{name}: cannot be read as a template ({error})") from error
        if not isinstance(own, dict) or not {"kind", "protocol", "points"} <= own.keys():
            raise ConfigurationError(f"{name}: is no device template (it needs kind, protocol and points)")
        return own
    folder = importlib.resources.files("firmware_configs") / "devices"
    if name not in (known := sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())):
        raise ConfigurationError(f"there is no device template {name!r}; there are: {', '.join(known)}")
    data: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


class RegisterMap:
    """What a device answers with.

    Args:
        template: Name of its template (protocols ``modbus`` and ``sunspec``).
        quantities: All values of the device now, by point name, in our sign and unit.
        moved: A number that changes whenever the plant moved.
        written: Called with each setting that a master wrote, in our sign and unit.
        live: What has to be fresh between two moves of the plant, by name: the reflex listens to it.
    """

    def __init__(
        self,
        template: str,
        quantities: Callable[[], Mapping[str, float]],
        moved: Callable[[], int],
        written: Callable[[str, float], None],
        live: Mapping[str, Callable[[], float]] | None = None,
    ) -> None:
        self._quantities = quantities
        self._live = live or {"frequency_hz": lambda: quantities()["frequency_hz"]}
        self._moved = moved
        self._written = written
        self._seen = -1
        self.images: dict[int, tuple[int, bytearray]] = {}
        """Function code → first register and bytes."""
        self.implemented: dict[int, set[int]] = {}
        """Function code → registers that mean something."""
        self.strict = False
        """Refuse reads that touch any other register, as many devices do."""
        self._read_fields: dict[int, list[Field]] = {}
        self._settings: dict[int, Field] = {}
        """Byte offset → what may be written there."""
        data = template_of(template)
        if data["protocol"] == "sunspec":
            self._lay_out_sunspec(data)
        else:
            self._lay_out_plain(data)
        self._as_came = {function: bytes(image) for function, (_, image) in self.images.items()}
        self._live_fields = {
            function: [field for field in fields if field.name in self._live]
            for function, fields in self._read_fields.items()
        }

    def read(self, function: int, address: int, count: int, *, fresh: bool = True) -> bytes | None:
        """Registers as bytes; none where the device has no such address. Without ``fresh`` they stay as they were."""
        found = self.images.get(function)
        if found is None:
            return None
        base, image = found
        start = (address - base) * 2
        end = start + count * 2
        if start < 0 or end > len(image):
            return None
        meant = self.implemented.get(function) if self.strict else None
        if meant is not None and not meant.issuperset(range(address, address + count)):
            return None
        if fresh:
            if self._moved() != self._seen:
                self._refresh()
            else:
                for field in self._live_fields[function]:  # never a cached one: the reflex listens
                    if any(start <= cell < end for cell in field.cells):
                        field.encode(image, self._live[field.name]())
        return bytes(image[start:end])

    def restart(self) -> None:
        """Switched off and on: settings are as the device came."""
        for function, (_, image) in self.images.items():
            image[:] = self._as_came[function]
        self._seen = -1

    def write(self, address: int, content: bytes) -> int:
        """Take a write to holding registers: 0, or the exception code, and then nothing of it has had an effect."""
        base, image = self.images.get(3, (0, bytearray()))
        at = start = (address - base) * 2
        taken: list[tuple[Field, bytes, float]] = []
        while at < start + len(content):
            field = self._settings.get(at)
            if field is None or field.end > start + len(content):
                return ILLEGAL_ADDRESS
            packed = content[at - start : field.end - start]
            value = field.decode(packed)
            if value is None:
                return ILLEGAL_VALUE
            taken.append((field, packed, value))
            at = field.end
        for field, packed, value in taken:
            image[field.at : field.end] = packed
            self._written(field.name, value)
        self._seen = -1
        return 0

    def _refresh(self) -> None:
        self._seen = self._moved()
        values = self._quantities()
        for function, members in self._read_fields.items():
            image = self.images[function][1]
            for field in members:
                value = values.get(field.name)
                if value is not None and math.isfinite(value):
                    field.encode(image, value)

    def _lay_out_plain(self, data: Mapping[str, Any]) -> None:
        by_function: dict[int, list[Field]] = {}
        for kind in ("points", "settings"):
            for point in data.get(kind, ()):
                if "sum" in point:
                    continue
                high = point.get("high_address")
                field = replace(
                    _field(
                        point["id"],
                        point["address"] * 2,
                        _PLAIN_FORMAT[point["type"]],
                        float(point.get("scale", 1.0)) * point.get("sign", 1),
                        swapped=point.get("word_order", "big") == "little",
                    ),
                    bias=float(point.get("offset", 0.0)),
                    apart=None if high is None else high * 2,
                )
                by_function.setdefault(point["function"], []).append(field)
                if kind == "settings":
                    self._settings[field.at] = _writable(field, point)
        groups = {point["id"]: point.get("sync") for point in data["points"]}
        identity = {(one["function"], one["address"]): one["one_of"][0] for one in data.get("identity", ())}
        for function in by_function.keys() | {function for function, _ in identity}:
            fields = by_function.setdefault(function, [])
            self.implemented[function] = {cell // 2 for field in fields for cell in field.cells}
            self.implemented[function] |= {address for code, address in identity if code == function}
            for group in {point.get("sync") for point in data["points"]} - {
                None
            }:  # what is read together, holes and all
                cells = {cell // 2 for field in fields for cell in field.cells if groups.get(field.name) == group}
                self.implemented[function] |= set(range(min(cells, default=0), max(cells, default=-1) + 1))
            image = bytearray((max(self.implemented[function]) + 1) * 2)
            for (code, address), value in identity.items():
                if code == function:
                    struct.pack_into(">H", image, address * 2, value)
            self.images[function] = (0, image)
            self._read_fields[function] = fields

    def _lay_out_sunspec(self, data: Mapping[str, Any]) -> None:
        wanted: dict[tuple[int, str, int, str], tuple[str, int, bool]] = {}
        for kind in ("settings", "points"):
            for point in data.get(kind, ()):
                if "model" not in point:
                    continue
                key = (point["model"], point.get("group", ""), point.get("index", 0), point["point"])
                wanted.setdefault(key, (point["id"], point.get("sign", 1), kind == "settings"))
        models = sorted({1, *_EXTRA_MODELS[data["kind"]], *(key[0] for key in wanted)})
        if data["kind"] == "inverter":
            for (model, name), (quantity, sign) in _INVERTER_701.items():
                wanted.setdefault((model, "", 0, name), (quantity, sign, False))
        image = bytearray(_SUNS)
        fields: list[Field] = []
        for model in models:
            self._lay_out_model(model, image, wanted, fields, data)
        image += b"\xff\xff\0\0"
        meant = set(range(BASE, BASE + len(image) // 2))
        for kind in ("points", "settings"):  # a maker's own registers, after its map
            for point in data.get(kind, ()):
                if "model" in point:
                    continue
                factor = float(point.get("scale", 1.0)) * point.get("sign", 1)
                field = _field(point["id"], (point["address"] - BASE) * 2, _PLAIN_FORMAT[point["type"]], factor)
                image += bytes(max(0, field.end - len(image)))
                meant |= {BASE + cell // 2 for cell in field.cells}
                fields.append(field)
                if kind == "settings":
                    self._settings[field.at] = _writable(field, point)
        self.images[3] = (BASE, image)
        self.implemented[3] = meant
        self._read_fields[3] = fields
        for point in data.get("settings", ()):  # a point may be read under one name and written under another
            if "model" not in point:
                continue
            key = (point["model"], point.get("group", ""), point.get("index", 0), point["point"])
            shared = next(field for field in fields if field.name == wanted[key][0])
            self._settings[shared.at] = _writable(shared, point)

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
                text = {
                    "Mn": (data.get("makes") or ["WattMesh"])[0],
                    "Md": f"simulated {data['kind']}",
                    "SN": "SIM-1",
                    "Vr": "1",
                }.get(point["name"], "")
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
            constant = None if found or name else _NAMEPLATE.get((model, point["name"]))
            if found is None and constant is None:
                continue
            factor = point.get("sf")
            exponent = _exponent(model, factor) if isinstance(factor, str) else int(factor or 0)
            if found is not None:
                fields.append(_field(found[0], at, _SUNSPEC_FORMAT[kind], found[1] * 10.0**exponent))
            elif isinstance(constant, str):
                fields.append(_field(constant, at, _SUNSPEC_FORMAT[kind], 10.0**exponent))
            elif constant is not None:
                _field("", at, _SUNSPEC_FORMAT[kind], 10.0**exponent).encode(image, constant)


def _exponent(model: int, scale_factor: str) -> int:
    if (model, scale_factor) == (701, "Hz_SF"):
        return -3
    return _EXPONENTS.get(scale_factor, 0)
