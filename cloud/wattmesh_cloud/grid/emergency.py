"""Emergencies: staged shedding and curtailment, islanding, black start, automatic release, and drills.

Nothing acts on one person's slip: a stage is asked for, shown with what it would do to each site, and confirmed within two minutes.
What stands is told to the sites again and again, and ends at each of them by itself when nobody does so any more. A drill goes the
same way to the same people and gateways, with one difference: the gateways answer what they would do, and do nothing, and the
market is not halted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import GATEWAY_AGENT, Address
from wattmesh_a2a.errors import ConfigurationError, WattmeshError
from wattmesh_a2a.grid import GridInstruction, GridInstructionResult, InstructionKind
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.grid.areas import AreaMonitor, Measurements
from wattmesh_cloud.grid.blackstart import Step, black_start_order
from wattmesh_cloud.grid.config import EmergencyConfig, StageConfig
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

_ANSWER_S = 5.0
_HISTORY = 50


class Mode(StrEnum):
    """What is done."""

    SHORTAGE = "shortage"
    """Too little power: import is shed."""
    SURPLUS = "surplus"
    """Too much: export is curtailed."""
    BLACK_START = "black_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A stage that waits for its confirmation."""

    token: str
    mode: Mode
    stage: int
    area_id: str
    reason: str
    by: str
    drill: bool
    expires_ns: int
    preview: Mapping[str, Mapping[str, JsonValue]]
    """By site: power now, and the limits it would get."""


@dataclass(slots=True)
class Emergency:
    """What stands, or stood."""

    id: str
    mode: Mode
    stage: int
    area_id: str
    reason: str
    by: str
    confirmed_by: str
    drill: bool
    began_ns: int
    ends_ns: int
    """The latest; it ends by itself."""
    calm_ns: int = 0
    """Since when it has been quiet; 0 where it is not."""
    step: int = 0
    """Of a black start: how many are under way."""
    ended_ns: int | None = None
    ended_why: str = ""
    results: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    """By site: what it answered, or why not."""
    log: list[dict[str, JsonValue]] = field(default_factory=list)
    steps: list[dict[str, int]] = field(default_factory=list)
    """Of a black start: most import by site, step by step, as it was planned when it began."""
    before_w: dict[str, float] = field(default_factory=dict)
    """Exchange of each site when it began: what shares are shares of."""


Announce = Callable[[Emergency], None]
Quiet = Callable[[str, int], bool]
"""(area, now): whether the cause of an emergency is gone there."""
Spawn = Callable[[Coroutine[Any, Any, None]], None]


class EmergencyDesk:
    """See the module.

    Args:
        config: The section of the cloud's file.
        store: Gets every step.
        messenger: Tells the sites.
        clock: Of all times.
        state: Folder of what stands.
        address: Of the grid agent.
        monitor: Which sites are where.
        measurements: What they take now.
        quiet: Whether a cause is gone.
        announce: Called whenever something begins, changes or ends.
        spawn: Runs a task beside the loop.
    """

    def __init__(
        self,
        config: EmergencyConfig,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        address: Address,
        *,
        monitor: AreaMonitor,
        measurements: Measurements,
        quiet: Quiet,
        announce: Announce,
        spawn: Spawn,
    ) -> None:
        self._config, self._store, self._messenger, self._clock = config, store, messenger, clock
        self._file, self._address, self._monitor = state / "emergency.json", address, monitor
        self._measurements, self._quiet, self._announce, self._spawn = measurements, quiet, announce, spawn
        self._asks: dict[str, Ask] = {}
        self.standing: dict[str, Emergency] = {}
        """By area."""
        self.over: list[Emergency] = []
        self._told: set[str] = set()
        """Emergencies whose sites were told since the last round."""
        self._restore()

    # -- what an operator may do

    def ask(self, mode: Mode, stage: int, *, area_id: str, reason: str, by: str, drill: bool = False) -> Ask:
        """The first of two steps: what a stage would do. Nothing is sent.

        Raises:
            ConfigurationError: No such stage or area, or another emergency of the other kind (drill, real) stands there.
        """
        self._stage(mode, stage)
        if area_id not in self._monitor.ids():
            raise ConfigurationError(f"no area {area_id!r}; there are: {', '.join(self._monitor.ids())}")
        standing = self.standing.get(area_id)
        if (
            standing is not None
            and (standing.drill is not drill or standing.mode is not mode)
            and (drill or not standing.drill)
        ):
            what = "a drill" if standing.drill else f"an emergency ({standing.mode})"
            raise ConfigurationError(f"{what} stands in area {area_id}; release it first")
        if mode is Mode.BLACK_START:
            self.order(area_id)
        now = self._clock.utc_ns()
        self._asks = {token: one for token, one in self._asks.items() if one.expires_ns > now}
        asked = Ask(
            token=secrets.token_urlsafe(9), mode=mode, stage=stage, area_id=area_id, reason=reason, by=by, drill=drill,
            expires_ns=now + self._config.confirm_s * NS_PER_S, preview=self._preview(mode, stage, area_id),
        )  # fmt: skip
        self._asks[asked.token] = asked
        return asked

    def confirm(self, token: str, by: str) -> Emergency:
        """The second step: it takes effect.

        Raises:
            ConfigurationError: Nothing was asked for with this token, its time is over, or a second person has to confirm.
        """
        now = self._clock.utc_ns()
        asked = self._asks.get(token)
        if asked is None or asked.expires_ns <= now:
            raise ConfigurationError("there is nothing to confirm: ask for the stage again and confirm it in time")
        if self._config.two_persons and asked.by == by:
            raise ConfigurationError(f"{by} asked for it: somebody else has to confirm")
        del self._asks[token]
        standing = self.standing.get(asked.area_id)
        if standing is not None and standing.drill and not asked.drill:
            self._end(standing, "an emergency", now)  # the real thing ends the practice
            standing = None
        if standing is None:
            sites = self._monitor.sites(asked.area_id)
            standing = Emergency(
                id=f"{'drill' if asked.drill else 'emergency'}-{now // NS_PER_S}-{asked.area_id}", mode=asked.mode,
                stage=asked.stage, area_id=asked.area_id, reason=asked.reason, by=asked.by, confirmed_by=by,
                drill=asked.drill, began_ns=now, ends_ns=now + self._config.longest_s * NS_PER_S,
                before_w={site: power for site in sites if (power := self._power(site)) is not None},
                steps=[dict(one.import_limit_w) for one in self.order(asked.area_id)] if asked.mode is Mode.BLACK_START else [],
            )  # fmt: skip
            self.standing[asked.area_id] = standing
        else:
            standing.stage, standing.reason, standing.confirmed_by, standing.calm_ns = asked.stage, asked.reason, by, 0
        self._changed(standing, now, f"stage {asked.stage} ({asked.mode}), asked for by {asked.by}, confirmed by {by}")
        return standing

    def release(self, area_id: str, by: str, reason: str) -> None:
        """End what stands in an area.

        Raises:
            ConfigurationError: Nothing stands there.
        """
        standing = self.standing.get(area_id)
        if standing is None:
            raise ConfigurationError(f"nothing stands in area {area_id!r}")
        self._end(standing, f"released by {by}: {reason}", self._clock.utc_ns())

    def order(self, area_id: str) -> list[Step]:
        """In which order the sites of an area come back after a blackout.

        Raises:
            ConfigurationError: The area names no site that can start by itself.
        """
        config = self._monitor.config(area_id)
        if config is None or not config.grid_forming:
            raise ConfigurationError(f"area {area_id!r} names no grid_forming site: nobody can start it")
        return black_start_order(
            config, self._monitor.feeder(area_id), self._measurements(), block_share=self._config.block_share,
            pickup=self._config.pickup,
        )  # fmt: skip

    def view(self) -> dict[str, JsonValue]:
        """What stands, what waits for confirmation (without its token), what was."""
        return {
            "standing": [_plain(one) for one in self.standing.values()],
            "waiting": [
                {"mode": str(one.mode), "stage": one.stage, "area_id": one.area_id, "by": one.by, "drill": one.drill,
                 "expires_ns": one.expires_ns}
                for one in self._asks.values()
                if one.expires_ns > self._clock.utc_ns()
            ],
            "over": [_plain(one) for one in self.over],
            "stages": [stage.model_dump() for stage in self._config.stages],
        }  # fmt: skip

    # -- time

    async def advance(self, now: int) -> None:
        """Renew what stands, step a black start on, take stages back when it is quiet, end what is over."""
        self._told.clear()
        for standing in list(self.standing.values()):
            if now >= standing.ends_ns:
                self._end(standing, "its longest time is over", now)
            elif standing.mode is Mode.BLACK_START:
                self._step_on(standing, now)
            else:
                self._calm(standing, now)
            if standing.ended_ns is None and standing.id not in self._told:
                self._spawn(self._tell(standing))

    def _calm(self, standing: Emergency, now: int) -> None:
        """Stage by stage back, so that load does not return all at once."""
        if standing.drill or not self._quiet(standing.area_id, now):
            standing.calm_ns = 0
            return
        standing.calm_ns = standing.calm_ns or now
        if now - standing.calm_ns < self._config.calm_s * NS_PER_S:
            return
        lower = [stage.id for stage in self._config.stages if stage.id < standing.stage]
        if not lower:
            self._end(standing, "quiet again", now)
            return
        standing.stage, standing.calm_ns = lower[-1], now
        self._changed(standing, now, f"quiet: back to stage {standing.stage}")

    def _step_on(self, standing: Emergency, now: int) -> None:
        steps = standing.steps
        due = min(len(steps), 1 + (now - standing.began_ns) // (self._config.step_s * NS_PER_S))
        if due > standing.step:
            standing.step = due
            names = ", ".join(steps[due - 1])
            self._changed(standing, now, f"step {due} of {len(steps)}: {names}")
        if now >= standing.began_ns + (len(steps) + 1) * self._config.step_s * NS_PER_S:
            self._end(standing, "every site is back", now)

    def _end(self, standing: Emergency, why: str, now: int) -> None:
        standing.ended_ns, standing.ended_why = now, why
        self.standing.pop(standing.area_id, None)
        self.over = [*self.over, standing][-_HISTORY:]
        self._spawn(self._tell(standing))
        self._changed(standing, now, why)

    def _changed(self, standing: Emergency, now: int, what: str) -> None:
        standing.log.append({"time_ns": now, "what": what})
        log.warning("%s in area %s: %s", standing.id, standing.area_id, what)
        self._announce(standing)
        self._spawn(self._keep(standing, now))
        if standing.ended_ns is None:
            self._told.add(standing.id)
            self._spawn(self._tell(standing))

    # -- what sites get

    def _stage(self, mode: Mode, number: int) -> StageConfig | None:
        if mode is Mode.BLACK_START:
            return None
        stage = next((one for one in self._config.stages if one.id == number), None)
        if stage is None:
            raise ConfigurationError(
                f"no stage {number}; there are: {', '.join(str(one.id) for one in self._config.stages)}"
            )
        return stage

    def _power(self, site: str) -> float | None:
        one = self._measurements().get(site)
        return None if one is None else one.grid_w

    def _limits(
        self, mode: Mode, stage: StageConfig, before_w: float | None, *, spared: bool
    ) -> tuple[InstructionKind, int | None, int | None]:
        """Kind, most import and most export of a site; a critical one is spared where the stage leaves something to others."""
        if stage.island:
            return InstructionKind.ISLAND, 0, 0
        if mode is Mode.SHORTAGE:
            share = 0.0 if spared else stage.shed
            return InstructionKind.SHED, None if share == 0 else round(max(0.0, before_w or 0.0) * (1 - share)), None
        share = 0.0 if spared else stage.curtail
        return InstructionKind.CURTAIL, None, None if share == 0 else round(max(0.0, -(before_w or 0.0)) * (1 - share))

    def _preview(self, mode: Mode, number: int, area_id: str) -> dict[str, dict[str, JsonValue]]:
        stage = self._stage(mode, number)
        if stage is None:
            return {
                site: {"step": at, "now_w": self._power(site), "import_limit_w": step.import_limit_w.get(site)}
                for at, step in enumerate(self.order(area_id), 1)
                for site in step.sites
            }
        rows: dict[str, dict[str, JsonValue]] = {}
        for site in self._monitor.sites(area_id):
            power = self._power(site)
            kind, most_in, most_out = self._limits(mode, stage, power, spared=self._spared(area_id, site, stage))
            rows[site] = {"kind": str(kind), "now_w": power, "import_limit_w": most_in, "export_limit_w": most_out}
        return rows

    def _spared(self, area_id: str, site: str, stage: StageConfig) -> bool:
        config = self._monitor.config(area_id)
        return config is not None and site in config.critical and stage.shed < 1

    def instruction(self, standing: Emergency, site: str, now: int) -> GridInstruction | None:
        """What a site is told now; none where nothing is asked of it."""
        base = GridInstruction(
            id=standing.id, site_id=site, kind=InstructionKind.RELEASE, stage=standing.stage, start_ns=now,
            end_ns=now + self._config.lease_s * NS_PER_S, import_limit_w=None, export_limit_w=None, drill=standing.drill,
            reason=standing.ended_why or standing.reason,
        )  # fmt: skip
        if standing.ended_ns is not None:
            return base
        if standing.mode is Mode.BLACK_START:
            limit = next((step[site] for step in standing.steps[: standing.step] if site in step), None)
            if limit is None:
                return replace(base, kind=InstructionKind.ISLAND, import_limit_w=0, export_limit_w=0)
            return replace(base, kind=InstructionKind.RECONNECT, import_limit_w=limit)
        stage = self._stage(standing.mode, standing.stage)
        assert stage is not None
        kind, most_in, most_out = self._limits(
            standing.mode, stage, standing.before_w.get(site), spared=self._spared(standing.area_id, site, stage)
        )
        if most_in is None and most_out is None:
            return replace(base) if site in standing.results else None
        return replace(base, kind=kind, import_limit_w=most_in, export_limit_w=most_out)

    async def _tell(self, standing: Emergency) -> None:
        now = self._clock.utc_ns()
        told = [(site, self.instruction(standing, site, now)) for site in self._monitor.sites(standing.area_id)]
        answers = await asyncio.gather(*(self._send(one) for _, one in told if one is not None))
        for site, row in answers:
            standing.results[site] = row

    async def _send(self, instruction: GridInstruction) -> tuple[str, dict[str, JsonValue]]:
        to = Address(self._address.org, instruction.site_id, GATEWAY_AGENT)
        row: dict[str, JsonValue] = {
            "kind": str(instruction.kind), "import_limit_w": instruction.import_limit_w,
            "export_limit_w": instruction.export_limit_w, "told_ns": instruction.start_ns,
        }  # fmt: skip
        try:
            answer = await self._messenger.request(
                to, instruction, expires_ns=instruction.end_ns, timeout_s=_ANSWER_S, as_agent=self._address
            )
        except WattmeshError as error:
            log.info("instruction for %s not delivered: %s", instruction.site_id, error)
            return instruction.site_id, {**row, "error": str(error)}
        if isinstance(answer, GridInstructionResult) and answer.site_id == instruction.site_id:
            row |= {"before_w": answer.before_w, "expected_w": answer.expected_w, "unmet_w": answer.unmet_w,
                    "setpoints_w": dict(answer.setpoints_w)}  # fmt: skip
            return instruction.site_id, row
        return instruction.site_id, {**row, "error": f"answered {type(answer).__name__}"}

    # -- keeping

    async def _keep(self, standing: Emergency, now: int) -> None:
        data = _plain(standing)
        item = Item(partition="fleet#emergency", time_ns=now, id=f"{standing.id}-{len(standing.log)}", data=data)
        self._save()
        await asyncio.to_thread(self._store.put, Table.GRID_METRICS, [item])

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".draft")
        draft.write_text(
            json.dumps(
                {
                    "standing": [_plain(one) for one in self.standing.values()],
                    "over": [_plain(one) for one in self.over],
                }
            )
        )
        draft.replace(self._file)

    def _restore(self) -> None:
        if not self._file.exists():
            return
        data = json.loads(self._file.read_text())
        rows = [Emergency(**{**row, "mode": Mode(row["mode"])}) for row in data["standing"]]
        self.standing = {one.area_id: one for one in rows}
        self.over = [Emergency(**{**row, "mode": Mode(row["mode"])}) for row in data["over"]]


def _plain(standing: Emergency) -> dict[str, JsonValue]:
    return {**asdict(standing), "mode": str(standing.mode)}
