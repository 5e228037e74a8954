"""Modbus devices, with registers from the template or from SunSpec models."""

from __future__ import annotations

import logging
import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Unpack

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_drivers import decode
from wattmesh_drivers.driver import BaseDriver, BaseOptions, RegisterLocation
from wattmesh_drivers.modbus import sunspec
from wattmesh_drivers.modbus.link import ModbusLink, RefusedError, Request
from wattmesh_drivers.modbus.plan import REQUEST_COST_REGISTERS, Block, Span, plan_blocks
from wattmesh_drivers.template import IdentityModel, PointModel, Template

CODES = {
    "u16": decode.U16, "s16": decode.S16, "u32": decode.U32, "s32": decode.S32,
    "u64": decode.U64, "s64": decode.S64, "f32": decode.F32, "f64": decode.F64,
}  # fmt: skip
WORDS = {"u16": 1, "s16": 1, "u32": 2, "s32": 2, "u64": 4, "s64": 4, "f32": 2, "f64": 4}
_ILLEGAL_ADDRESS, _ILLEGAL_VALUE = 2, 3
_NOT_COUNTED = 0xFFFF
_RELEARNED_AT_MOST = 2
_EXPONENT_LIMIT = 10
"""SunSpec Device Information Model Specification: a scale factor is -10 to 10; any other is none."""
_REFUSED_AGAIN_NS = 300 * NS_PER_S
"""After this time points that the device refused are asked for again."""
_PACK = {"u16": ">H", "s16": ">h", "u32": ">I", "s32": ">i", "u64": ">Q", "s64": ">q", "f32": ">f", "f64": ">d"}

log = logging.getLogger(__name__)


class _Location(NamedTuple):
    """Where a point is now: the template's word, or what SunSpec's discovery found."""

    function: int
    write_function: int
    address: int
    type: str
    little: bool
    factor: float
    """Scale × sign; 0 where the device does not implement the point."""
    sentinel: int | None
    high: int | None = None
    """Register of the high word, where it is not beside the low one."""
    bias: float = 0.0
    scale_at: int | None = None
    """Register of the SunSpec scale factor that is in ``factor``; a device may move it while it runs."""

    @property
    def parts(self) -> list[tuple[int, int]]:
        """First register and one past the last; twice where the words lie apart."""
        if self.high is None:
            return [(self.address, self.address + WORDS[self.type])]
        return [(self.address, self.address + 1), (self.high, self.high + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One block and how to decode it."""

    block: Block
    request: Request
    decoder: decode.BlockDecoder
    scales: tuple[tuple[int, int], ...] = ()
    """Scale factors in the block: register from its start, and what the decoder takes it for."""


class ModbusDriver(BaseDriver):
    """A device that speaks Modbus.

    Args:
        asset_id: Its name at the site.
        template: What it is; protocol ``modbus`` or ``sunspec``.
        link: The connection to its unit.
        clock: Stamps readings.
        request_cost: What one more request costs, in registers; see :meth:`wattmesh_drivers.modbus.line.Endpoint.request_cost`.
        base: For every driver; see :class:`wattmesh_drivers.driver.BaseDriver`.
    """

    def __init__(
        self,
        asset_id: str,
        template: Template,
        link: ModbusLink,
        clock: Clock,
        *,
        request_cost: float = REQUEST_COST_REGISTERS,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(asset_id, template, clock, **base)
        self._request_cost = request_cost
        self._link = link
        self._models: dict[int, sunspec.ModelAt] = {}
        self._locations: dict[str, _Location] = {}
        self._scales: dict[int, int] = {}
        """Register of each scale factor, and what was read there."""
        self._plans: list[_Plan] = []
        self._apart: list[tuple[int, _Location]] = []
        """Points whose two words are in no block together."""
        self._spans: dict[Span, tuple[int, ...]] = {}
        """What is read together, and the points in it."""
        self._barriers: set[tuple[int, int]] = set()
        """Function and register of holes that no block may contain."""
        self._alone: set[Span] = set()
        self._longest = 125
        """Registers in one request that the device was found to bear."""
        self._refused: set[Span] = set()
        self._refused_said: set[Span] = set()
        self._refused_ns = 0

    async def _open(self) -> None:
        link = self._link
        link.probing = True  # until it has answered, whoever is known to be there goes first
        await link.open()
        for identity in self.template.identity:
            await self._identify(identity)
        if self.template.protocol == "sunspec":
            self._models = await sunspec.discover(link)
            if self.template.makes:
                make = await sunspec.make_of(link, self._models)
                if not sunspec.is_make(make, self.template.makes):
                    raise ConfigurationError(
                        f"{self.asset.id}: {self.template.id} is for {' or '.join(self.template.makes)}, and the device says "
                        f"that {make or 'nobody'} made it"
                    )
        constants: dict[int, int | None] = {}
        await self._learn(constants)
        self._refused.clear()
        self._make_plan()
        if self.template.protocol == "modbus" and not self.template.identity:
            await self._knock()
        link.probing = False

    async def _learn(self, constants: dict[int, int | None]) -> None:
        """Find every point; ``constants`` are registers that are known already."""
        self._locations = {
            model.id: await self._locate(model, constants)
            for model in (*self.template.points, *self.template.settings)
            if model.sum is None
        }
        self._scales = {
            location.scale_at: int(constants[location.scale_at] or 0)
            for location in self._locations.values()
            if location.scale_at is not None
        }

    async def _identify(self, identity: IdentityModel) -> None:
        """Raises :class:`ConfigurationError` where it is another device, or one that is set up in another way."""
        wanted = " or ".join(map(str, identity.one_of))
        place = f"{self.asset.id}: register {identity.address} of {self.template.id}"
        try:
            found = (await self._link.read(identity.function, identity.address, 1))[0]
        except RefusedError as error:
            raise ConfigurationError(f"{place} has to hold {wanted} and is refused: {identity.hint}") from error
        if found not in identity.one_of:
            raise ConfigurationError(f"{place} has to hold {wanted} and holds {found}: {identity.hint}")

    async def _knock(self) -> None:
        """Ask for the smallest block: a connection alone does not tell that the unit behind it is there."""
        smallest = min((plan.request for plan in self._plans), key=lambda request: request[2], default=None)
        if smallest is not None:
            try:
                await self._link.read(*smallest)
            except RefusedError:
                return  # it is there, and will be asked around what it refuses

    def _pause_at_most_s(self) -> float:
        return math.inf if self._link.shared else 0.0

    async def _shut(self) -> None:
        self._link.close()

    async def _locate(self, model: PointModel, constants: dict[int, int | None]) -> _Location:
        """Where a point is; ``constants`` keeps what was read on the way, for the points after it."""
        if model.model is None:
            return _plain_location(model)
        found = self._models.get(model.model)
        if found is None:
            raise ConfigurationError(
                f"{self.asset.id}: the device has no SunSpec model {model.model}, which {self.template.id} needs; "
                f"it has {sorted(self._models)}"
            )
        counts: dict[str, int] = {}
        if model.group is not None:
            for name, offset in sunspec.counters_of(model.model).items():
                count = await self._constant(found.address + offset, constants)
                if count is not None and count != _NOT_COUNTED and found.address + offset < found.end:
                    counts[name] = count
        place = sunspec.place_of(
            model.model, found.address, str(model.point), group=model.group, index=model.index, counts=counts
        )
        if place is None:  # the device has fewer of them
            return _Location(3, 6, found.address, "u16", False, 0.0, None)
        exponent = await self._exponent(place, found, constants)
        factor = 0.0 if exponent is None else model.scale * model.sign * 10.0**exponent
        function = _write_function(model, place.type)
        return _Location(
            3, function, place.address, place.type, False, factor, place.sentinel, bias=model.offset,
            scale_at=place.scale_address if exponent is not None else None,
        )  # fmt: skip

    async def _exponent(
        self, place: sunspec.Place, found: sunspec.ModelAt, constants: dict[int, int | None]
    ) -> int | None:
        """Power of ten of a SunSpec point; none where the device leaves the point, or what it depends on, out."""
        if place.end > found.end:
            return None
        if place.scale_address is None:
            return place.fixed_exponent
        raw = await self._constant(place.scale_address, constants)
        exponent = None if raw is None else raw - 0x10000 if raw & 0x8000 else raw
        return exponent if exponent is not None and abs(exponent) <= _EXPONENT_LIMIT else None

    async def _constant(self, address: int, constants: dict[int, int | None]) -> int | None:
        """A register that stays as it is while connected (scale factor, count); none where the device refuses it."""
        if address not in constants:
            try:
                constants[address] = (await self._link.read(3, address, 1))[0]
            except RefusedError as error:
                if error.code != _ILLEGAL_ADDRESS:
                    raise
                constants[address] = None
        return constants[address]

    def _make_plan(self) -> None:
        """Blocks for all points that the device has; the others are bad from now on."""
        together: dict[tuple[int, str], list[int]] = {}
        for index, model in enumerate(self.template.points):
            if model.sum is not None:
                continue
            location = self._locations[model.id]
            if location.factor:
                key = (location.function, model.sync or f"{location.address}:{location.type}")
                together.setdefault(key, []).append(index)
            else:
                self._set_bad(index)
        spans: dict[Span, tuple[int, ...]] = {}
        for (function, _), indices in together.items():
            parts = [part for index in indices for part in self._location(index).parts]
            if len(indices) > 1:  # read together, whatever lies between
                parts = [(min(part[0] for part in parts), max(part[1] for part in parts))]
            for start, end in parts:  # of one point there are two where its words lie apart
                span = _span(function=function, start=start, end=end)
                spans[span] = (*spans.get(span, ()), *indices)
        for model in self.template.points:  # with what they are scaled by, as of the same moment
            scale_at = self._locations[model.id].scale_at if model.sum is None else None
            if scale_at is not None:
                spans.setdefault(_span(function=3, start=scale_at, end=scale_at + 1), ())
        self._spans = spans
        for span in self._refused & self._spans.keys():
            for index in self._spans[span]:
                self._set_bad(index)
        self._plans = [self._plan_of(block) for block in self._blocks()]
        self._apart = [
            (index, self._location(index))
            for index, model in enumerate(self.template.points)
            if model.high_address is not None
            and not any(span in self._refused for span, indices in self._spans.items() if index in indices)
            and not any(_holds(plan.block, self._location(index)) for plan in self._plans)
        ]

    def _blocks(self) -> list[Block]:
        wanted = self._spans.keys() - self._refused
        alone = wanted & self._alone
        limit = min(self.template.connection.max_registers, self._longest)
        blocks = [Block(function=span.function, start=span.start, count=span.end - span.start) for span in alone]
        for function in sorted({span.function for span in wanted}):
            spans = [span for span in wanted - alone if span.function == function]
            barriers = frozenset(register for code, register in self._barriers if code == function)
            try:
                blocks += plan_blocks(spans, limit, request_cost=self._request_cost, barriers=barriers)
            except ValueError as error:  # a sync group of the template is too long
                raise ConfigurationError(f"{self.asset.id}: {self.template.id}: {error}") from error
        return blocks

    def _plan_of(self, block: Block) -> _Plan:
        rows = [
            (index, self._location(index))
            for span in self._spans.keys() - self._refused
            if _covers(block, span)
            for index in self._spans[span]
            if _holds(block, self._location(index))
        ]
        request = (block.function, block.start, block.count)
        scales = tuple(
            (register - block.start, raw)
            for register, raw in self._scales.items()
            if block.function == 3 and block.start <= register < block.start + block.count
        )
        believed = tuple(self.believed(self.template.points[index]) for index, _ in rows)
        return _Plan(
            block=block, request=request, decoder=_shared_decoder(tuple(rows), block.start, believed), scales=scales
        )

    def _location(self, index: int) -> _Location:
        return self._locations[self.template.points[index].id]

    def _set_bad(self, index: int) -> None:
        self.values[index] = math.nan
        self.qualities[index] = Quality.BAD

    async def _read(self) -> None:
        now = self._clock.utc_ns()
        if self._refused and self._clock.monotonic_ns() - self._refused_ns >= _REFUSED_AGAIN_NS:
            self._refused.clear()
            self._make_plan()
        done: dict[Block, array[int]] = {}
        relearned = 0
        waiting = self._plans
        while waiting:
            answers = await self._link.read_many([plan.request for plan in waiting])
            refused = None
            moved: dict[int, int | None] = {}
            for plan, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, RefusedError):
                    if answer.code != _ILLEGAL_ADDRESS and not self._too_long(plan.block, answer):
                        raise answer
                    refused = refused or (plan.block, answer.code)
                else:
                    for offset, raw in plan.scales:
                        if answer[offset] != raw:
                            moved[plan.block.start + offset] = answer[offset]
                    plan.decoder.decode(answer, self.values, self.qualities)
                    done[plan.block] = answer
            if moved:  # nothing that was decoded with the old ones counts
                relearned += 1
                if relearned > _RELEARNED_AT_MOST:
                    raise UnavailableError(f"{self.asset.id}: its scale factors change faster than it can be read")
                await self._relearn(moved)
                done, waiting = {}, self._plans
                continue
            if refused is None:
                break
            if refused[1] == _ILLEGAL_ADDRESS:
                self._split(refused[0])
            else:
                self._shorten(refused[0])
            waiting = [plan for plan in self._plans if plan.block not in done]
        for index, location in self._apart:
            self._join(index, location, done)
        self.source_times_ns[:] = array("q", [now]) * len(self.source_times_ns)

    async def _relearn(self, moved: Mapping[int, int | None]) -> None:
        """Scale factors have moved: find out what every point is now."""
        self.counters["relearned"] += 1
        constants: dict[int, int | None] = {**self._scales, **moved}
        await self._learn(constants)
        self._make_plan()

    def _too_long(self, block: Block, error: RefusedError) -> bool:
        """Whether it may be the length of the request that the device refuses, and a shorter one is possible."""
        return error.code == _ILLEGAL_VALUE and block.count > max(span.end - span.start for span in self._spans)

    def _shorten(self, block: Block) -> None:
        """Ask for less at once from now on; each call halves it, down to the longest span."""
        longest = max(span.end - span.start for span in self._spans)
        self._longest = max(longest, min(block.count - 1, block.count // 2))
        self.counters["shortened"] += 1
        self._make_plan()

    def _join(self, index: int, location: _Location, read: Mapping[Block, array[int]]) -> None:
        """A value whose two words came in two answers."""
        words = array("H")
        for address in (location.high, location.address):
            for block, registers in read.items():
                if address is not None and _covers(
                    block, Span(function=location.function, start=address, end=address + 1)
                ):
                    words.append(registers[address - block.start])
                    break
        row = (index, location._replace(address=0, high=None, little=False))
        _decoder([row], 0, [self.believed(self.template.points[index])]).decode(words, self.values, self.qualities)

    def _split(self, block: Block) -> None:
        """The device refuses a register of a block: plan around its holes, then by single spans, then without them.

        Each call takes away a hole, a neighbour or a span, so that reading again ends; it happens within the same poll.

        Raises:
            ConfigurationError: Nothing is left that the device answers.
        """
        spans = [span for span in self._spans.keys() - self._refused if _covers(block, span)]
        holes = {(block.function, register) for register in range(block.start, block.start + block.count)} - {
            (span.function, register) for span in self._spans for register in range(span.start, span.end)
        }
        if holes - self._barriers:
            self._barriers |= holes
        elif len(spans) > 1 and not self._alone.issuperset(spans):
            self._alone.update(spans)
        else:
            self._refuse(spans)
        self.counters["splits"] += 1
        self._make_plan()

    def _refuse(self, spans: Sequence[Span]) -> None:
        self._refused.update(spans)
        self._refused_ns = self._clock.monotonic_ns()
        if self._refused >= self._spans.keys():
            self._refused.clear()
            raise ConfigurationError(f"{self.asset.id} refuses every register of {self.template.id}")
        new = [span for span in spans if span not in self._refused_said]
        if new:
            self._refused_said.update(new)
            names = ", ".join(self.template.points[index].id for span in new for index in self._spans[span])
            log.log(self.log_level, "%s refuses the registers of %s: no data for these", self.asset.id, names)

    async def _write(self, setting: PointModel, value: float) -> None:
        location = self._locations[setting.id]
        if location.scale_at is not None:
            raw = (await self._link.read(3, location.scale_at, 1))[0]
            if raw != self._scales[location.scale_at]:
                await self._relearn({location.scale_at: raw})
                location = self._locations[setting.id]
        if not location.factor:
            raise ConfigurationError(f"{self.asset.id} does not implement {setting.id}")
        registers = encode_value(value / location.factor, location.type, little=location.little)
        await self._link.write(location.write_function, location.address, registers)

    async def _read_setting(self, setting: PointModel) -> float:
        location = self._locations[setting.id]
        registers = await self._link.read(location.function, location.address, WORDS[location.type])
        values, qualities = array("d", [0.0]), bytearray(1)
        _decoder([(0, location)], location.address).decode(registers, values, qualities)
        if qualities[0] == Quality.BAD:
            raise UnavailableError(f"{self.asset.id}: {setting.id} reads back as not implemented")
        return values[0]

    def _step_of(self, setting: PointModel) -> float:
        location = self._locations[setting.id]
        return 0.0 if location.type[0] == "f" else abs(location.factor)

    def register_of(self, point_id: str) -> RegisterLocation | None:
        """See :class:`wattmesh_drivers.driver.Driver`."""
        location = self._locations.get(point_id)
        where = self._link.plain_tcp
        if location is None or not location.factor or location.high is not None or location.bias or where is None:
            return None
        return RegisterLocation(
            host=where[0],
            port=where[1],
            unit=self._link.unit,
            function=location.function,
            write_function=location.write_function,
            address=location.address,
            type=location.type,
            word_order="little" if location.little else "big",
            scale=abs(location.factor),
            sign=1 if location.factor > 0 else -1,
        )


@lru_cache(maxsize=4096)
def _plain_location(model: PointModel) -> _Location:
    """Where the template says that a point is; one object for all devices of a template."""
    assert model.address is not None
    type_ = str(model.type)
    return _Location(
        model.function or 3,
        _write_function(model, type_),
        model.address,
        type_,
        model.word_order == "little",
        model.scale * model.sign,
        model.sentinel,
        model.high_address,
        model.offset,
    )


_span = lru_cache(maxsize=4096)(Span)
"""One object for the same span of many devices."""


def _write_function(model: PointModel, type_: str) -> int:
    """Function that writes a point: more than one register takes 16."""
    return (model.write_function or 6) if WORDS[type_] == 1 else 16


def _holds(block: Block, location: _Location) -> bool:
    """Whether every register of a point is in a block."""
    return all(_covers(block, Span(function=location.function, start=start, end=end)) for start, end in location.parts)


def _covers(block: Block, span: Span) -> bool:
    return span.function == block.function and block.start <= span.start and span.end <= block.start + block.count


def _decoder(
    rows: Sequence[tuple[int, _Location]], start: int, believed: Sequence[tuple[float, float]] | None = None
) -> decode.BlockDecoder:
    """For points (index in the result, place) in a block that begins at register ``start``.

    ``believed`` is the least and the largest value of each that is no garbage.
    """
    return decode.BlockDecoder(
        array("i", [location.address - start for _, location in rows]),
        array("i", [CODES[location.type] for _, location in rows]),
        bytes(location.little for _, location in rows),
        array("d", [location.factor for _, location in rows]),
        array("q", [_signed(location.sentinel or 0) for _, location in rows]),
        bytes(location.sentinel is not None for _, location in rows),
        array("i", [index for index, _ in rows]),
        array("i", [-1 if location.high is None else location.high - start for _, location in rows]),
        array("d", [location.bias for _, location in rows]),
        None if believed is None else array("d", [least for least, _ in believed]),
        None if believed is None else array("d", [most for _, most in believed]),
    )


_shared_decoder = lru_cache(maxsize=512)(_decoder)
"""One decoder for the same block of many devices; it has no state."""


def _signed(sentinel: int) -> int:
    """As the kernel compares it: 64 bits are read as a signed number."""
    return sentinel - 2**64 if sentinel >= 2**63 else sentinel


def encode_value(raw: float, type_: str, *, little: bool) -> list[int]:
    """Registers of a raw (unscaled) value; raises :class:`ConfigurationError` when it does not fit the type."""
    try:
        number: float | int = raw if type_[0] == "f" else round(raw)
        packed = struct.pack(_PACK[type_], number)
    except (struct.error, OverflowError, ValueError) as error:
        raise ConfigurationError(f"{raw:g} does not fit a register of type {type_}") from error
    words = [int.from_bytes(packed[at : at + 2], "big") for at in range(0, len(packed), 2)]
    return words[::-1] if little else words
