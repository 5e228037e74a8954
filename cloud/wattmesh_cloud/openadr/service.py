"""The VEN at work: looks at the VTN again and again, plans what it asks for, and tells what was delivered."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import ConfigurationError, WattmeshError
from wattmesh_a2a.messages import Message

from wattmesh_cloud.forecasting.service import median_of
from wattmesh_cloud.grid.config import OpenAdrConfig
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.openadr.client import VenClient
from wattmesh_cloud.openadr.models import Event
from wattmesh_cloud.openadr.translate import SLOT_NS, plans_of, report_of
from wattmesh_cloud.store.base import JsonValue

log = logging.getLogger(__name__)

_KEPT = 1000
_WRONG_SHOWN = 20


class OpenAdrService:
    """See the module.

    Args:
        config: The VTN.
        client: Talks to it.
        grid: Plans and knows what came of it.
        clock: Of the looks.
        state: Folder; what was taken over and reported stands there.
        price: Currency per delivered kWh where an event names none.
    """

    def __init__(
        self, config: OpenAdrConfig, client: VenClient, grid: GridService, clock: Clock, state: Path, *, price: float
    ) -> None:
        self._config, self._client, self._grid, self._clock, self._price = config, client, grid, clock, price
        self._file = state / "openadr.json"
        self._taken: dict[str, dict[str, object]] = {}
        """By the VTN's event id: its version, our events, whether it was reported, and the event itself."""
        self.wrong: dict[str, str] = {}
        self.connected = False
        self._enrolled = False
        self._failing = False
        self._restore()

    def register(self) -> None:
        """It takes no requests of the house."""

    def on_record(self, site: str, message: Message) -> None:
        """It learns nothing from a site's records; the grid agent does."""

    async def run(self) -> None:
        """For ever; a VTN that is away costs nothing but news."""
        with self._clock.runner():
            while True:
                await self.look()
                await self._clock.sleep_until_ns(self._clock.monotonic_ns() + self._config.poll_s * NS_PER_S)

    async def finish(self) -> None:
        """Report what is over, then let go."""
        await self.look(final=True)
        await self._client.close()

    async def look(self, *, final: bool = False) -> None:
        """One look; a failure is said once, and its recovery once."""
        try:
            if not self._enrolled:
                await self._client.enrol()
                self._enrolled = True
            if not final:
                await self._follow()
            await self._report()
        except WattmeshError as error:
            self.connected = False
            if not self._failing:
                self._failing = True
                log.warning("OpenADR: %s; what was taken over goes on", error)
            return
        self.connected = True
        if self._failing:
            self._failing = False
            log.warning("OpenADR: the VTN answers again")

    # -- events

    async def _follow(self) -> None:
        wanted = set(self._config.programs)
        programs = [one for one in await self._client.programs() if not wanted or one.program_name in wanted]
        seen: set[str] = set()
        wrong: dict[str, str] = {}
        for program in programs:
            events, broken = await self._client.events(program.id)
            wrong |= {text: text for text in broken}
            for event in events:
                seen.add(event.id)
                self._take(event, wrong)
        for event_id in set(self._taken) - seen:
            self._withdraw(event_id, "the VTN has withdrawn it")
        for name, reason in wrong.items():
            if name not in self.wrong:
                log.warning("OpenADR: %s", reason)
        self.wrong = dict(list(wrong.items())[:_WRONG_SHOWN])
        self._save()

    def _take(self, event: Event, wrong: dict[str, str]) -> None:
        version = str(event.modification_date_time or event.created_date_time or "")
        known = self._taken.get(event.id)
        if known is not None and known["version"] == version:
            return
        if known is not None:
            self._withdraw(event.id, "the VTN has changed it")
        now = self._clock.utc_ns()
        plans, refused = plans_of(event, now, price=self._price, expected_w=self._expected_w)
        ours: list[str] = []
        for plan in plans:
            try:
                ours.append(self._grid.create_event(plan, "openadr").id)
            except ConfigurationError as error:
                wrong[f"{event.id} {plan.id}"] = f"event {event.id}: {error}"
        for one in refused:
            wrong[f"{event.id} {one.reason}"] = f"event {one.event_id}: {one.reason}"
        self._taken[event.id] = {"version": version, "ours": ours, "reported": not ours, "event": event.wire()}
        while len(self._taken) > _KEPT:
            del self._taken[next(iter(self._taken))]

    def _withdraw(self, event_id: str, why: str) -> None:
        row = self._taken.pop(event_id)
        for name in row["ours"]:  # type: ignore[attr-defined]  # our own list
            if name in self._grid.running:
                self._grid.cancel_event(name, why, "openadr")

    def _expected_w(self, start_ns: int, end_ns: int) -> float:
        """Mean import of all sites that is forecast for a window."""
        total = 0.0
        slots = range(start_ns, end_ns, SLOT_NS)
        for forecasts in self._grid.forecasts().values():
            load, pv = forecasts.get("load_wh"), forecasts.get("pv_wh")
            for slot in slots:
                total += (median_of(load, slot) or 0.0) if load is not None else 0.0
                total -= (median_of(pv, slot) or 0.0) if pv is not None else 0.0
        return total * 4 / max(1, len(slots))

    # -- reports

    async def _report(self) -> None:
        settled = {str(row["id"]): row for row in self._grid.settled}
        for event_id, row in list(self._taken.items()):
            ours: list[str] = row["ours"]  # type: ignore[assignment]  # our own list
            if row["reported"] or any(name in self._grid.running for name in ours):
                continue
            done = [settled[name] for name in ours if name in settled]
            if done:
                await self._client.report(report_of(Event.model_validate(row["event"]), done, self._config.ven_name))
            self._taken[event_id]["reported"] = True
            self._save()

    # -- keeping

    def _save(self) -> None:
        draft = self._file.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(self._taken), encoding="utf-8")
        draft.replace(self._file)

    def _restore(self) -> None:
        if self._file.exists():
            self._taken = json.loads(self._file.read_text(encoding="utf-8"))

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for API and console."""
        return {
            "vtn": self._config.url,
            "connected": self.connected,
            "events": {name: list(row["ours"]) for name, row in self._taken.items()},  # type: ignore[call-overload]
            "not_followed": list(self.wrong.values()),
        }
