"""A fleet of simulated sites behind the cloud's real grid agent, in one process and virtual time.

The grid agent runs as in the cloud; its messages become method calls of the sites, measurements are what the sites' meters show,
and metered quarter hours go through the store as they do from ingest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.envelope import CLOUD_UNIT, GRID_AGENT, Address
from wattmesh_a2a.errors import UnavailableError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, GridInstruction
from wattmesh_a2a.messages import Acknowledged, IntervalEnergy, Message
from wattmesh_cloud.grid.areas import SiteMeasurement
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.ingest import items_of
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.store.sqlite import SqliteStore

from wattmesh_backtest.site import SLOT_NS, SimulatedSite

ORG = "fleet"
_STEP_S = 60
_LEVELS = (0.1, 0.5, 0.9)
_KEPT_DAYS = 10

Pay = Callable[[str, str, int, int, int], None]


class LocalMessenger:
    """What the grid agent needs of a messenger, as method calls of the sites; some may be made deaf."""

    def __init__(self, sites: Mapping[str, SimulatedSite]) -> None:
        self._sites = sites
        self.address = Address(ORG, CLOUD_UNIT, GRID_AGENT)
        self.session = "local"
        self.deaf: set[str] = set()
        self.emitted: list[Message] = []
        self.requests = 0

    async def request(
        self,
        to: Address,
        message: Message,
        *,
        expires_ns: int,
        timeout_s: float | None = None,
        as_agent: Address | None = None,
        not_before_ns: int = 0,
    ) -> Message:
        """Deliver at once; raises :class:`UnavailableError` for a deaf site."""
        del expires_ns, timeout_s, as_agent, not_before_ns
        self.requests += 1
        if to.unit in self.deaf:
            raise UnavailableError(f"{to.unit} does not answer")
        site = self._sites[to.unit]
        if isinstance(message, DemandResponseEvent):
            return site.offer(message)
        if isinstance(message, DemandResponseDispatch):
            site.dispatch(message)
            return Acknowledged()
        assert isinstance(message, GridInstruction)
        return site.instruct(message)

    async def emit(self, message: Message, *, as_agent: Address | None = None, valid_for_s: float = 60.0) -> None:
        """Keep it for whoever looks."""
        del as_agent, valid_for_s
        self.emitted.append(message)

    def on_event(self, *_: object, **__: object) -> None:
        """Nobody sends events here."""


class Fleet:
    """See the module.

    Args:
        sites: The sites.
        config: The grid agent's.
        folder: For its state and store.
        start_ns: UTC, a quarter hour.
        pay: Pays for delivered energy; none: nobody does.
    """

    def __init__(
        self, sites: Sequence[SimulatedSite], config: GridConfig, folder: Path, start_ns: int, pay: Pay | None = None
    ) -> None:
        self.sites = {one.setup.id: one for one in sites}
        self.clock = ManualClock(start_ns)
        self.store = SqliteStore(folder / "store.sqlite")
        self.messenger = LocalMessenger(self.sites)
        self.forecasts: dict[str, dict[str, Forecast]] = {}
        self.paid: list[tuple[str, str, int, int, int]] = []
        self._pay = pay
        self._days: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in self.sites}
        self.net_wh: dict[str, dict[int, int]] = {name: {} for name in self.sites}
        self.parts: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in self.sites}
        """Load less PV, and the battery, Wh: by site and slot."""
        self.minutes_w: list[tuple[int, float]] = []
        """Exchange of the whole fleet, minute by minute, while it was driven in minutes."""
        zone = sites[0].setup.tariff.zone()
        self.service = GridService(
            config, self.store, self.messenger, self.clock, folder, ORG,  # type: ignore[arg-type]  # the part that it uses
            forecasts=lambda: self.forecasts, pay=self._paid, measurements=self.measurements, zone=zone,
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None

    async def _paid(self, event: str, site: str, wh: int, ticks: int, slot_ns: int) -> None:
        self.paid.append((event, site, wh, ticks, slot_ns))
        if self._pay is not None:
            self._pay(event, site, wh, ticks, slot_ns)

    def measurements(self) -> dict[str, SiteMeasurement]:
        """What every site's meter shows now."""
        return {
            name: SiteMeasurement(
                time_ns=self.clock.utc_ns(), grid_w=site.grid_w, load_w=site.load_now_w + site.car_w,
                pv_w=-site.pv_now_w, battery_w=site.battery.active_w if site.setup.battery_wh else 0.0,
                soc_percent=site.battery.soc_percent if site.setup.battery_wh else None,
            )
            for name, site in self.sites.items()
        }  # fmt: skip

    async def __aenter__(self) -> Fleet:
        """The grid agent begins."""
        self._task = asyncio.create_task(self.service.run())
        await self.clock.advance(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        """It ends in good order."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.service.finish()
        self.store.close()

    async def settle(self) -> None:
        """Let what the grid agent has begun be over: with messages that are method calls it needs no time."""
        while tasks := [one for one in self.service._tasks if not one.done()]:
            await asyncio.wait(tasks)

    async def run(self, until_ns: int, *, step_s: int = _STEP_S) -> None:
        """Play until a quarter hour."""
        while (now := self.clock.utc_ns()) < until_ns:
            for site in self.sites.values():
                site.step(now, step_s)
            if step_s <= _STEP_S:
                self.minutes_w.append((now, sum(site.grid_w for site in self.sites.values())))
            if now % (3600 * NS_PER_S) == 0:
                self._expect(now)
            await self.clock.advance(step_s)
            await self.settle()
            if self.clock.utc_ns() % SLOT_NS == 0:
                self._meter(self.clock.utc_ns() - SLOT_NS)

    def _meter(self, slot_ns: int) -> None:
        rows: dict[Table, list[Item]] = {}
        for name, site in self.sites.items():
            message = site.meter(slot_ns)
            self.net_wh[name][slot_ns] = message.import_wh - message.export_wh
            battery = message.battery_charge_wh - message.battery_discharge_wh
            self.parts[name][slot_ns] = (message.load_wh - message.pv_wh, battery)
            self._learn(name, message)
            for table, item in items_of(name, message):
                rows.setdefault(table, []).append(item)
            self.service.on_record(name, message)
        for table, items in rows.items():
            self.store.put(table, items)

    def _learn(self, name: str, message: IntervalEnergy) -> None:
        past = self._days[name].setdefault(message.slot_start_ns // SLOT_NS % 96, [])
        past.append((float(message.load_wh), float(message.pv_wh)))
        del past[:-_KEPT_DAYS]

    def _expect(self, now_ns: int) -> None:
        """Forecasts of the coming day: the last days' quantiles of each quarter hour, once a day of them is known."""
        for name, days in self._days.items():
            if len(days) < 96:
                continue
            start = now_ns - now_ns % SLOT_NS
            rows = [days[(start // SLOT_NS + at) % 96] for at in range(112)]
            self.forecasts[name] = {
                quantity: Forecast(
                    site_id=name, quantity=quantity, issued_ns=now_ns, start_ns=start, slot_s=900, levels=_LEVELS,
                    values=tuple(_quantiles([day[place] for day in row]) for row in rows), model="fleet",
                )
                for place, quantity in enumerate(("load_wh", "pv_wh"))
            }  # fmt: skip

    def event_sites(self, event_id: str) -> dict[str, DemandResponseDispatch]:
        """What each site was dispatched for in an event, as it knows it."""
        return {
            name: site.outlook.dispatches[event_id]
            for name, site in self.sites.items()
            if event_id in site.outlook.dispatches
        }


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """Low, middle and high of some values, by the nearest rank; the middle is the mean, as sums of sites are wanted."""
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return min(low, mean), mean, max(high, mean)
