"""Plays one controller over a period: sites in worker processes, the market between them, slot by slot.

Everything stands in lockstep with the market's time: in the quarter hour before a slot its orders are made from what is known then;
at its gate they are cleared; when it is over it is metered and settled. Two workers hold the sites: planning is most of the work.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_a2a.market import Order
from wattmesh_a2a.messages import IntervalEnergy, MarketRules

from wattmesh_backtest.controllers import Controller
from wattmesh_backtest.data import SLOT_NS, Period, SiteData
from wattmesh_backtest.house import Account, House, gate_close_ns
from wattmesh_backtest.site import SimulatedSite, SiteSetup

if TYPE_CHECKING:
    from wattmesh_backtest.community import CommunityControl

_AHEAD = 2
"""Orders are made so many slots before delivery, as gateways do."""
_WORKERS = 2

Played = dict[str, tuple[IntervalEnergy | None, tuple[Order, ...]]]
"""By site: the energy of the slot that was played, and orders for a later one."""
Progress = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class Result:
    """One controller over the whole period."""

    name: str
    accounts: dict[str, Account]
    net_wh: dict[str, list[int]]
    """By site, a slot each that was played: import less export."""
    load_wh: float = 0.0
    pv_wh: float = 0.0
    charged_wh: float = 0.0
    discharged_wh: float = 0.0
    trades: int = 0
    settled: int = 0
    ledger_units: int = 0
    prices: list[float | None] = field(default_factory=list)
    seconds: float = 0.0
    stored_wh: float = 0.0
    """In all batteries at the end."""

    @property
    def paid(self) -> float:
        """By all sites together."""
        return sum(one.paid for one in self.accounts.values())


def _coordinator(period: Period) -> CommunityControl:
    """The community's planner; raises :class:`ConfigurationError` where the extra it needs is not installed."""
    try:
        from wattmesh_backtest.community import CommunityControl
    except ImportError as error:
        raise ConfigurationError("the community's planner needs HiGHS: pip install wattmesh[optimise]") from error
    return CommunityControl(period)


class Fleet:
    """Some sites and what they play; lives in a worker."""

    def __init__(self, period: Period, controller: Controller, names: Sequence[str], rules: MarketRules | None) -> None:
        self._period, self._controller = period, controller
        self._data = {one.id: one for one in period.sites if one.id in names}
        self.sites = {name: self._site(one, rules) for name, one in self._data.items()}
        self._community = _coordinator(period) if controller.coordinated == "community" else None
        self._steps = SLOT_NS // (controller.step_s * 1_000_000_000)
        self._forecasters = {name: controller.forecaster(period) for name in self.sites}

    def _site(self, one: SiteData, rules: MarketRules | None) -> SimulatedSite:
        controller, period = self._controller, self._period
        setup = SiteSetup(
            id=one.id, tariff=period.tariff, battery_wh=one.battery_wh if controller.battery else 0.0,
            battery_w=one.battery_w, reserve_soc_percent=one.reserve_soc_percent if controller.plan else 0.0,
            import_limit_w=one.import_limit_w, export_limit_w=one.export_limit_w, plan=controller.plan,
            trade=controller.trade, step_s=controller.step_s, replan_s=controller.replan_s,
        )  # fmt: skip

        def at(values: Sequence[float]) -> Callable[[int], float]:
            return lambda now_ns: values[(now_ns - period.start_ns) // SLOT_NS] * 4

        site = SimulatedSite(setup, at(one.load_wh), at(one.pv_wh))
        site.rules = rules
        return site

    def play(self, index: int, commitments: Mapping[str, int]) -> Played:
        """One slot: ``commitments`` are of the slot after it; orders come back for two slots later."""
        slot = self._period.start_ns + index * SLOT_NS
        result: Played = {}
        if self._community is not None and self._period.played[index]:
            self._coordinate(self._community, index, slot)
        for name, site in self.sites.items():
            if name in commitments:
                site.commit(slot + SLOT_NS, commitments[name])
            metered = None
            if self._period.played[index]:
                forecaster = self._forecasters[name]
                if forecaster is not None and (issued := forecaster.issue(name, slot)) is not None:
                    site.take_forecasts(issued)
                for step in range(self._steps):
                    site.step(slot + step * self._controller.step_s * 1_000_000_000)
                metered = site.meter(slot)
                if forecaster is not None:
                    forecaster.learn(slot, metered.load_wh, metered.pv_wh)
            result[name] = (metered, site.orders(slot + _AHEAD * SLOT_NS) if self._controller.trade else ())
        return result

    def _coordinate(self, community: CommunityControl, index: int, slot: int) -> None:
        """What was learnt of the slot before, and what each battery shall do in this one."""
        if index and self._period.played[index - 1]:
            data = self._data.values()
            community.learn(
                index - 1, sum(one.load_wh[index - 1] - one.pv_wh[index - 1] for one in data),
                sum(site.grid_w for site in self.sites.values()),
            )  # fmt: skip
        net = {name: site.look(slot) for name, site in self.sites.items()}
        stored = {name: site.battery.stored_wh for name, site in self.sites.items()}
        for name, power in community.powers(index, net, stored).items():
            self.sites[name].wished_w = power

    def totals(self) -> dict[str, float]:
        """Sums over the sites at the end."""
        registers = [site.registers for site in self.sites.values()]
        return {
            "load_wh": sum(one.load for one in registers),
            "pv_wh": sum(one.pv for one in registers),
            "charged_wh": sum(one.charged for one in registers),
            "discharged_wh": sum(one.discharged for one in registers),
            "stored_wh": sum(site.battery.stored_wh for site in self.sites.values() if site.setup.battery_wh),
        }


def _work(
    pipe: Connection, period: Period, controller: Controller, names: Sequence[str], rules: MarketRules | None
) -> None:
    """A worker: answers each slot, then its totals."""
    fleet = Fleet(period, controller, names, rules)
    while (asked := pipe.recv()) is not None:
        pipe.send(fleet.play(*asked))
    pipe.send(fleet.totals())


class _Workers:
    """Fleets in processes of their own, or one in this process."""

    def __init__(self, period: Period, controller: Controller, rules: MarketRules | None, count: int) -> None:
        names = [one.id for one in period.sites]
        self._own: Fleet | None = None
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        if count <= 1 or len(names) < 2:
            self._own = Fleet(period, controller, names, rules)
            return
        context = multiprocessing.get_context("fork")
        for part in range(min(count, len(names))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, period, controller, names[part::count], rules), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def play(self, index: int, commitments: Mapping[str, int]) -> Played:
        """One slot of every site."""
        if self._own is not None:
            return self._own.play(index, commitments)
        merged: Played = {}
        try:
            for pipe in self._pipes:
                pipe.send((index, commitments))
            for pipe in self._pipes:
                merged.update(pipe.recv())
        except (EOFError, OSError) as error:
            raise UnavailableError("a worker of the backtest has ended; what it said stands above") from error
        return merged

    def totals(self) -> dict[str, float]:
        """Sums over all sites; ends the workers."""
        if self._own is not None:
            return self._own.totals()
        for pipe in self._pipes:
            pipe.send(None)
        rows = [pipe.recv() for pipe in self._pipes]
        return {name: sum(row[name] for row in rows) for name in rows[0]}

    def close(self) -> None:
        """End whatever runs still."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5.0)
            if process.is_alive():
                process.terminate()


def play(
    period: Period, controller: Controller, *, workers: int = _WORKERS, progress: Progress | None = None
) -> Result:
    """Play a controller over a period.

    Raises:
        ConfigurationError: The period is too short to trade in.
        UnavailableError: A worker ended.
    """
    if period.slots < _AHEAD + 1:
        raise ConfigurationError("a backtest needs at least three quarter hours")
    began = time.perf_counter()
    house = House(period)
    result = Result(name=controller.name, accounts=house.accounts, net_wh={one.id: [] for one in period.sites})
    if controller.coordinated is not None:
        workers = 1  # one plan for all of them
        if not _coordinator(period).alike():
            raise ConfigurationError("the community's planner takes batteries that are all alike; these are not")
    with ExitStack() as stack:
        pool = _Workers(period, controller, house.rules() if controller.trade else None, workers)
        stack.callback(pool.close)
        waiting: dict[int, dict[str, tuple[Order, ...]]] = {}
        commitments: dict[str, int] = {}
        for index in range(period.slots):
            slot = period.start_ns + index * SLOT_NS
            played = pool.play(index, commitments)
            readings = [metered for metered, _ in played.values() if metered is not None]
            for reading in readings:
                result.net_wh[reading.site_id].append(reading.import_wh - reading.export_wh)
            house.settle(readings)
            commitments = {}
            if controller.trade:
                waiting[index + _AHEAD] = {name: orders for name, (_, orders) in played.items()}
                coming = waiting.pop(index + 1, {})
                following = slot + SLOT_NS
                gate = gate_close_ns(following, house.config) - 1
                # A slot in a gap is not traded: nobody can deliver what is not played.
                if index + 1 < period.slots and period.played[index + 1]:
                    commitments = house.trade(following, coming, gate)
                else:
                    house.prices.append(None)
            if progress is not None and index % 960 == 0:
                progress(index, period.slots)
        for name, value in pool.totals().items():
            setattr(result, name, value)
    result.trades, result.settled, result.ledger_units = house.trades, house.settled, house.ledger_units
    result.prices, result.seconds = house.prices, time.perf_counter() - began
    return result
