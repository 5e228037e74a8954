"""Modbus TCP devices, with registers from the template or from SunSpec models."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers import decode
from wattmesh_drivers.driver import BaseDriver, RegisterLocation
from wattmesh_drivers.modbus import sunspec
from wattmesh_drivers.modbus.link import ModbusLink, RefusedError
from wattmesh_drivers.modbus.plan import Block, Span, plan_blocks
from wattmesh_drivers.template import PointModel, Template

CODES = {
    "u16": decode.U16, "s16": decode.S16, "u32": decode.U32, "s32": decode.S32,
    "u64": decode.U64, "s64": decode.S64, "f32": decode.F32, "f64": decode.F64,
}  # fmt: skip
WORDS = {"u16": 1, "s16": 1, "u32": 2, "s32": 2, "u64": 4, "s64": 4, "f32": 2, "f64": 4}
_PACK = {"u16": ">H", "s16": ">h", "u32": ">I", "s32": ">i", "u64": ">Q", "s64": ">q", "f32": ">f", "f64": ">d"}


class _Location(NamedTuple):
    """Where a point is now: the template's word, or what SunSpec's discovery found."""

    function: int
    address: int
    type: str
    little: bool
    factor: float
    sentinel: int | None


@dataclass(slots=True, kw_only=True)
class _Plan:
    """One block and how to decode it, as arrays for the kernel."""

    block: Block
    offsets: array[int]
    types: array[int]
    little: bytes
    factors: array[float]
    sentinels: array[int]
    has_sentinel: bytes
    targets: array[int]


class ModbusDriver(BaseDriver):
    """A device on Modbus TCP.

    Args:
        asset_id: Its name at the site.
        template: What it is; protocol ``modbus`` or ``sunspec``.
        link: The connection to its unit.
        clock: Stamps readings.
        rated_power_w: Limits its controls.
        rated_energy_wh: Of a storage.
    """

    def __init__(
        self,
        asset_id: str,
        template: Template,
        link: ModbusLink,
        clock: Clock,
        *,
        rated_power_w: float | None = None,
        rated_energy_wh: float | None = None,
    ) -> None:
        super().__init__(asset_id, template, clock, rated_power_w=rated_power_w, rated_energy_wh=rated_energy_wh)
        self._link = link
        self._models: dict[int, int] = {}
        self._locations: dict[str, _Location] = {}
        self._plans: list[_Plan] = []
        self._barriers: set[int] = set()

    async def _open(self) -> None:
        await self._link.open()
        if self.template.protocol == "sunspec":
            self._models = await sunspec.discover(self._link)
        factors: dict[int, int | None] = {}
        self._locations = {
            model.id: await self._locate(model, factors) for model in (*self.template.points, *self.template.settings)
        }
        self._make_plan()

    async def _shut(self) -> None:
        self._link.close()

    async def _locate(self, model: PointModel, exponents: dict[int, int | None]) -> _Location:
        """Where a point is. A SunSpec scale factor is read once a connection: it is a constant of the device."""
        if model.model is None:
            assert model.address is not None
            return _Location(
                model.function or 3,
                model.address,
                str(model.type),
                model.word_order == "little",
                model.scale * model.sign,
                model.sentinel,
            )
        start = self._models.get(model.model)
        if start is None:
            raise ConfigurationError(
                f"{self.asset.id}: the device has no SunSpec model {model.model}, which {self.template.id} needs; "
                f"it has {sorted(self._models)}"
            )
        place = sunspec.place_of(model.model, start, str(model.point), group=model.group, index=model.index)
        exponent: int | None = place.fixed_exponent
        if place.scale_address is not None:
            if place.scale_address not in exponents:
                raw = (await self._link.read(3, place.scale_address, 1))[0]
                exponents[place.scale_address] = None if raw == 0x8000 else raw - 0x10000 if raw & 0x8000 else raw
            exponent = exponents[place.scale_address]
        # A point whose scale factor is not implemented is not implemented: factor 0 marks it, and it stays bad.
        factor = 0.0 if exponent is None else model.scale * model.sign * 10.0**exponent
        return _Location(3, place.address, place.type, False, factor, place.sentinel)

    def _make_plan(self) -> None:
        members: dict[tuple[int, str], list[_Location]] = {}
        for model in self.template.points:
            location = self._locations[model.id]
            key = (location.function, model.sync or f"{location.address}:{location.type}")
            members.setdefault(key, []).append(location)
        spans = [
            Span(
                function=function,
                start=min(one.address for one in group),
                end=max(one.address + WORDS[one.type] for one in group),
            )
            for (function, _), group in members.items()
        ]
        needs = self.template.connection
        blocks = plan_blocks(spans, needs.max_registers, barriers=frozenset(self._barriers))
        self._plans = [self._plan_of(block) for block in blocks]

    def _plan_of(self, block: Block) -> _Plan:
        rows = []
        for index, model in enumerate(self.template.points):
            location = self._locations[model.id]
            offset = location.address - block.start
            inside = 0 <= offset and offset + WORDS[location.type] <= block.count
            if location.function == block.function and inside and location.factor:
                rows.append((index, offset, location))
        return _Plan(
            block=block,
            offsets=array("i", [offset for _, offset, _ in rows]),
            types=array("i", [CODES[location.type] for _, _, location in rows]),
            little=bytes(location.little for _, _, location in rows),
            factors=array("d", [location.factor for _, _, location in rows]),
            sentinels=array("q", [location.sentinel or 0 for _, _, location in rows]),
            has_sentinel=bytes(location.sentinel is not None for _, _, location in rows),
            targets=array("i", [index for index, _, _ in rows]),
        )

    async def _read(self) -> None:
        now = self._clock.utc_ns()
        for plan in list(self._plans):
            block = plan.block
            try:
                registers = await self._link.read(block.function, block.start, block.count)
            except RefusedError as error:
                if error.code != 2:
                    raise
                await self._split(block)
                continue
            decode.decode(
                registers,
                plan.offsets,
                plan.types,
                plan.little,
                plan.factors,
                plan.sentinels,
                plan.has_sentinel,
                plan.targets,
                self.values,
                self.qualities,
            )
        times = self.source_times_ns
        for index in range(len(times)):
            times[index] = now

    async def _split(self, block: Block) -> None:
        """The device refuses a register inside a block (exception 2): find holes it refuses, and plan around them."""
        holes = set(range(block.start, block.start + block.count)) - {
            register
            for location in self._locations.values()
            for register in range(location.address, location.address + WORDS[location.type])
        }
        if not holes - self._barriers:
            raise ConfigurationError(
                f"{self.asset.id} refuses registers {block.start} to {block.start + block.count - 1} of {self.template.id}"
            )
        self._barriers |= holes
        self.counters["splits"] += 1
        self._make_plan()

    async def _write(self, setting: PointModel, value: float) -> None:
        location = self._locations[setting.id]
        if not location.factor:
            raise ConfigurationError(f"{self.asset.id} does not implement {setting.id}")
        registers = encode_value(value / location.factor, location.type, little=location.little)
        function = setting.write_function or (6 if len(registers) == 1 else 16)
        await self._link.write(function, location.address, registers)

    async def _read_setting(self, setting: PointModel) -> float:
        location = self._locations[setting.id]
        registers = await self._link.read(location.function, location.address, WORDS[location.type])
        values, qualities = array("d", [0.0]), bytearray(1)
        decode.decode(
            registers,
            array("i", [0]),
            array("i", [CODES[location.type]]),
            bytes([location.little]),
            array("d", [location.factor]),
            array("q", [location.sentinel or 0]),
            bytes([location.sentinel is not None]),
            array("i", [0]),
            values,
            qualities,
        )
        if qualities[0] == Quality.BAD:
            raise UnavailableError(f"{self.asset.id}: {setting.id} reads back as not implemented")
        return values[0]

    def register_of(self, point_id: str) -> RegisterLocation | None:
        """See :class:`wattmesh_drivers.driver.Driver`."""
        location = self._locations.get(point_id)
        if location is None or not location.factor:
            return None
        return RegisterLocation(
            host=self._link.host,
            port=self._link.port,
            unit=self._link.unit,
            function=location.function,
            write_function=6 if WORDS[location.type] == 1 else 16,
            address=location.address,
            type=location.type,
            word_order="little" if location.little else "big",
            scale=abs(location.factor),
            sign=1 if location.factor > 0 else -1,
        )


def encode_value(raw: float, type_: str, *, little: bool) -> list[int]:
    """Registers of a raw (unscaled) value; raises :class:`ConfigurationError` when it does not fit the type."""
    number: float | int = raw if type_[0] == "f" else round(raw)
    try:
        packed = struct.pack(_PACK[type_], number)
    except (struct.error, OverflowError) as error:
        raise ConfigurationError(f"{raw:g} does not fit a register of type {type_}") from error
    words = [int.from_bytes(packed[at : at + 2], "big") for at in range(0, len(packed), 2)]
    return words[::-1] if little else words
