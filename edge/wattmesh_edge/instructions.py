"""The operator's instructions of an emergency at a site: bounds on the connection, at the operator's rank, that end by themselves.

A drill never becomes a proposal: :meth:`Instructions.propose` does not know of it. What it would do is decided by the same arbiter
on the last measurement, and told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.control import GRID_CONNECTION, Bounds, Priority, Proposal
from wattmesh_a2a.envelope import CLOUD_UNIT, GRID_AGENT, Address, Envelope
from wattmesh_a2a.errors import UnauthorisedError
from wattmesh_a2a.grid import GridInstruction, GridInstructionResult, InstructionKind
from wattmesh_a2a.messages import Message
from wattmesh_a2a.messenger import Messenger

from wattmesh_edge.arbiter import arbitrate
from wattmesh_edge.control import ControlCycle
from wattmesh_edge.image import SiteImage
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.memory import Memory

_ENDLESS_W = 1e9
_AT_MOST = 16
_LEASE_NS = 10_000_000_000


class Instructions:
    """What stands at this site; asked by the control cycle like any agent.

    Args:
        period_s: Of the control cycle; proposals are leased for a few of them.
    """

    name = "operator"

    def __init__(self, *, period_s: float) -> None:
        self._lease_ns = max(_LEASE_NS, round(4 * period_s * 1e9))
        self._standing: dict[str, GridInstruction] = {}

    @property
    def standing(self) -> Mapping[str, GridInstruction]:
        """By id; never a drill."""
        return self._standing

    def take(self, instruction: GridInstruction) -> None:
        """Take an instruction in the place of an earlier one of its id; a release takes it away, a drill changes nothing."""
        if instruction.drill:
            return
        if instruction.kind is InstructionKind.RELEASE:
            self._standing.pop(instruction.id, None)
            return
        self._standing[instruction.id] = instruction
        while len(self._standing) > _AT_MOST:
            del self._standing[min(self._standing, key=lambda one: self._standing[one].end_ns)]

    def propose(self, image: SiteImage, _traded_wh: float) -> list[Proposal]:
        """Bounds of everything that holds now; what is over is forgotten."""
        self._standing = {name: one for name, one in self._standing.items() if one.end_ns > image.time_ns}
        return [
            self._proposal(one, image)
            for one in self._standing.values()
            if one.start_ns <= image.time_ns and _limits(one)
        ]

    def _proposal(self, one: GridInstruction, image: SiteImage) -> Proposal:
        left_ns = one.end_ns - image.time_ns
        return Proposal(
            asset_id=GRID_CONNECTION,
            priority=Priority.GRID_INSTRUCTION,
            source=f"operator:{one.id}",
            expires_ns=image.monotonic_ns + max(1, min(self._lease_ns, left_ns)),
            bounds=Bounds(
                min_w=-_ENDLESS_W if one.export_limit_w is None else -float(one.export_limit_w),
                max_w=_ENDLESS_W if one.import_limit_w is None else float(one.import_limit_w),
                reason=f"{'drill' if one.drill else 'emergency'} stage {one.stage}: {one.kind}",
            ),
        )

    def result(
        self,
        instruction: GridInstruction,
        image: SiteImage | None,
        others: Sequence[Proposal],
        assets: Mapping[str, BatteryLimits],
        site: SiteLimits,
        held: Mapping[str, float],
    ) -> GridInstructionResult:
        """What an instruction does here, by the arbiter's own decision on the last image; nothing is written by it.

        Args:
            instruction: A real one or a drill.
            image: The site as it was measured last; none before the first cycle.
            others: What the agents wanted in that cycle.
            assets: Limits by asset.
            site: Limits of the connection.
            held: What was commanded last, by asset.
        """
        empty = GridInstructionResult(
            instruction_id=instruction.id, site_id=instruction.site_id, drill=instruction.drill, before_w=None,
            expected_w=None, unmet_w=0, setpoints_w={},
        )  # fmt: skip
        if image is None or image.grid_power_w is None:
            return empty
        alive = [replace(one, expires_ns=image.monotonic_ns + 1) for one in others]
        mine = [] if instruction.kind is InstructionKind.RELEASE or not _limits(instruction) else [
            self._proposal(replace(instruction, end_ns=image.time_ns + self._lease_ns), image)
        ]  # fmt: skip
        decisions = arbitrate(image, [*mine, *alive], assets, site, held=held, elapsed_s=3600.0)
        setpoints = {one.asset_id: one.target_w for one in decisions if one.target_w is not None}
        now = sum(power for name in setpoints if (power := _power(image, name)) is not None)
        before = image.grid_power_w.value
        expected = before - now + sum(setpoints.values())
        over = [0.0]
        if mine and instruction.import_limit_w is not None:
            over.append(expected - instruction.import_limit_w)
        if mine and instruction.export_limit_w is not None:
            over.append(-expected - instruction.export_limit_w)
        return replace(
            empty,
            before_w=round(before),
            expected_w=round(expected),
            unmet_w=max(0, round(max(over))),
            setpoints_w=setpoints,
        )


class Operator:
    """Takes the operator's instructions off the wire: kept, then in force from the next cycle, then answered.

    Args:
        instructions: Where they stand.
        control: Whose arbiter says what they do.
        messenger: The way to the cloud.
        memory: Keeps them over a restart.
        clock: The gateway's.
    """

    def __init__(
        self, instructions: Instructions, control: ControlCycle, messenger: Messenger, memory: Memory, clock: Clock
    ) -> None:
        self._instructions, self._control, self._messenger, self._memory = instructions, control, messenger, memory
        for kept in memory.recall("instruction", clock.utc_ns()).values():
            if isinstance(kept, GridInstruction):
                instructions.take(kept)

    def register(self) -> None:
        """Take them from now on."""
        self._messenger.on_request(GridInstruction, self._on_instruction, idempotent=True, latest_only=True)

    async def _on_instruction(self, envelope: Envelope) -> Message:
        """Only the grid agent instructs; a drill is answered, and changes nothing."""
        instruction = envelope.data
        assert isinstance(instruction, GridInstruction)
        here = self._messenger.address
        if envelope.source != Address(here.org, CLOUD_UNIT, GRID_AGENT) or instruction.site_id != here.unit:
            raise UnauthorisedError(f"{envelope.source} may not instruct {here.unit} as {instruction.site_id}")
        result = self._control.tried(
            lambda *now: self._instructions.result(instruction, *now), without=f"operator:{instruction.id}"
        )
        if not instruction.drill:
            self._memory.keep("instruction", instruction.id, instruction, instruction.end_ns)
            self._instructions.take(instruction)
        return result


def _limits(one: GridInstruction) -> bool:
    return one.import_limit_w is not None or one.export_limit_w is not None


def _power(image: SiteImage, name: str) -> float | None:
    battery = image.batteries.get(name)
    return image.loads.get(name) if battery is None else battery.active_power_w
