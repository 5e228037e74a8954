"""One site in virtual time: the gateway's own agents and arbiter over simulated physics.

Nothing of the gateway's decisions is modelled here: :class:`Outlook`, the agents and :func:`arbitrate` are the gateway's. What
stands in is what surrounds them: measurements are the truth, a setpoint is reached at once, and messages are method calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import time as clock_time

from wattmesh_a2a.control import Priority, Proposal
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import (
    DemandResponseDispatch,
    DemandResponseEvent,
    DemandResponseOffer,
    GridInstruction,
    GridInstructionResult,
)
from wattmesh_a2a.market import Order
from wattmesh_a2a.messages import Commitment, IntervalEnergy, MarketRules
from wattmesh_a2a.tariff import Tariff
from wattmesh_edge.agents.base import SLOT_S, Outlook
from wattmesh_edge.agents.consumer import ConsumerAgent
from wattmesh_edge.agents.flexible import FlexibleAgent, Need
from wattmesh_edge.agents.planner import Storage
from wattmesh_edge.agents.producer import ProducerAgent
from wattmesh_edge.agents.response import called
from wattmesh_edge.arbiter import arbitrate
from wattmesh_edge.image import BatteryImage, SiteImage, Value
from wattmesh_edge.instructions import Instructions
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_simulators.plant.physics import Battery

NS_PER_S = 1_000_000_000
SLOT_NS = SLOT_S * NS_PER_S
BATTERY, CAR = "battery", "car"
INITIAL_SOC = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Car:
    """An electric car: it comes home with so much to charge, and has to be ready in the morning."""

    energy_wh: float
    power_w: float
    comes: str = "18:00"
    """Local time of day."""
    leaves: str = "07:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSetup:
    """What a site has and how it is run."""

    id: str
    tariff: Tariff
    battery_wh: float = 0.0
    battery_w: float = 0.0
    reserve_soc_percent: float = 5.0
    import_limit_w: float = 17_000.0
    export_limit_w: float = 17_000.0
    plan: bool = True
    """Whether the agents plan; else the battery serves self-consumption."""
    trade: bool = False
    area: str = "backtest"
    car: Car | None = None
    step_s: int = 450
    """Of control."""
    replan_s: int = 3600
    initial_soc: float = INITIAL_SOC


@dataclass(slots=True)
class Registers:
    """Counters since the start, in Wh; what is reported is the difference of their whole numbers, so that nothing is lost."""

    load: float = 0.0
    pv: float = 0.0
    charged: float = 0.0
    discharged: float = 0.0
    imported: float = 0.0
    exported: float = 0.0
    curtailed: float = 0.0
    car: float = 0.0
    told: dict[str, int] = field(default_factory=dict)

    def since(self, name: str) -> int:
        """Whole Wh since the last time this was asked."""
        now: int = round(getattr(self, name))
        moved = now - self.told.get(name, 0)
        self.told[name] = now
        return moved


class SimulatedSite:
    """See the module.

    Args:
        setup: What it has.
        load_w: Consumption at a moment (UTC ns), without the car.
        pv_w: Available production, a positive magnitude.
    """

    def __init__(self, setup: SiteSetup, load_w: Callable[[int], float], pv_w: Callable[[int], float]) -> None:
        self.setup, self._load_w, self._pv_w = setup, load_w, pv_w
        self.battery = Battery(
            energy_wh=max(setup.battery_wh, 1e-6),
            power_w=setup.battery_w,
            stored_wh=setup.battery_wh * setup.initial_soc,
        )
        reserve = setup.battery_wh * setup.reserve_soc_percent / 100
        self.outlook = Outlook(
            tariff=setup.tariff,
            storage=Storage(
                energy_wh=max(setup.battery_wh, 1.0),
                power_w=setup.battery_w if setup.battery_wh else 0.0,
                reserve_wh=reserve,
            ),
            trade=setup.trade,
            capacity_wh={BATTERY: setup.battery_wh} if setup.battery_wh else {},
            export_limit_w=setup.export_limit_w,
        )
        self.producer = ProducerAgent("producer", setup.id, self.outlook, period_s=setup.step_s)
        self.consumer = ConsumerAgent("consumer", setup.id, self.outlook, period_s=setup.step_s)
        self.instructions = Instructions(period_s=setup.step_s)
        self._taken: dict[str, tuple[int, float]] = {}
        car = setup.car
        self._needs: tuple[Need, ...] = () if car is None else (
            Need(device=CAR, energy_wh=car.energy_wh, power_w=car.power_w, begins=clock_time.fromisoformat(car.comes),
                 ends=clock_time.fromisoformat(car.leaves)),
        )  # fmt: skip
        self.flexible = self._flexible()
        self._limits = self._asset_limits()
        self._site = SiteLimits(import_limit_w=setup.import_limit_w, export_limit_w=setup.export_limit_w)
        self._held: dict[str, float] = {}
        self._proposals: Sequence[Proposal] = ()
        self.image: SiteImage | None = None
        self.registers = Registers()
        self.car_w = 0.0
        self.grid_w = 0.0
        self.pv_now_w = 0.0
        self.load_now_w = 0.0
        self._slot_wh = 0.0
        self._slot_ns = 0
        self._planned_ns = 0
        self._ordered = 0
        self.missed_car_wh = 0.0
        """Energy that the car had not got when it left: comfort that was not kept."""
        self._window: tuple[int, int] | None = None
        self.rules: MarketRules | None = None
        self.wished_w: float | None = None
        """Power of the battery that the community wants; none where nobody coordinates."""

    def _flexible(self) -> FlexibleAgent:
        return FlexibleAgent(
            self._needs, self.setup.tariff, self.setup.tariff.zone(), period_s=self.setup.step_s, taken=self._taken,
            planned=lambda device, utc_ns: 0.0 if called(self.outlook, utc_ns) else None,
        )  # fmt: skip

    def _asset_limits(self) -> dict[str, BatteryLimits]:
        limits = {}
        if self.setup.battery_wh:
            limits[BATTERY] = BatteryLimits(
                rated_power_w=self.setup.battery_w, rated_energy_wh=self.setup.battery_wh,
                min_soc_percent=self.setup.reserve_soc_percent,
            )  # fmt: skip
        if self.setup.car is not None:
            limits[CAR] = BatteryLimits(rated_power_w=self.setup.car.power_w, rated_energy_wh=0.0, stores=False)
        return limits

    # -- time

    def look(self, now_ns: int) -> float:
        """What the site takes now without its battery, W."""
        middle = now_ns + self.setup.step_s * NS_PER_S // 2
        return self._load_w(middle) - self._pv_w(middle) + self.car_w

    def step(self, now_ns: int, seconds: int | None = None) -> None:
        """One control cycle at ``now_ns`` and the physics until the next one; of another length than usual where it is given."""
        seconds = seconds or self.setup.step_s
        slot = now_ns - now_ns % SLOT_NS
        if slot != self._slot_ns:
            self._slot_ns, self._slot_wh = slot, 0.0
        middle = now_ns + seconds * NS_PER_S // 2
        self.load_now_w, self.pv_now_w = self._load_w(middle), self._pv_w(middle)
        image = self.image = self._image(now_ns)
        targets = self._decide(image)
        self._move(targets, image, seconds)

    def _image(self, now_ns: int) -> SiteImage:
        """The truth, as the meters would tell it before this cycle's setpoints."""
        battery_w = self.battery.active_w if self.setup.battery_wh else 0.0
        grid = self.load_now_w - self.pv_now_w + battery_w + self.car_w
        batteries = {}
        if self.setup.battery_wh:
            batteries[BATTERY] = BatteryImage(active_power_w=battery_w, soc_percent=self.battery.soc_percent)
        return SiteImage(
            time_ns=now_ns,
            monotonic_ns=now_ns,
            grid_power_w=Value(value=grid, quality=Quality.GOOD),
            pv_power_w=-self.pv_now_w,
            batteries=batteries,
            frequency_hz=None,
            loads={CAR: self.car_w} if self.setup.car is not None else {},
        )

    def _decide(self, image: SiteImage) -> dict[str, float]:
        if not self._limits:
            return {}
        if self.setup.plan and image.time_ns - self._planned_ns >= self.setup.replan_s * NS_PER_S:
            self.replan(image.time_ns)
        agents = (self.instructions, self.producer, self.consumer, self.flexible)
        proposals: list[Proposal] = []
        counted = dict(self._taken)
        for agent in agents:
            proposals += agent.propose(image, self._slot_wh)
        if self.wished_w is not None:
            proposals.append(
                Proposal(asset_id=BATTERY, priority=Priority.MARKET_COMMITMENT, source="community", target_w=self.wished_w,
                         expires_ns=image.monotonic_ns + 1)
            )  # fmt: skip
        self._taken.clear()
        self._taken.update(counted)  # the charger's own count stands
        self._proposals = proposals
        decisions = arbitrate(image, proposals, self._limits, self._site, held=self._held, elapsed_s=self.setup.step_s)
        targets = {one.asset_id: one.target_w for one in decisions if one.target_w is not None}
        self._held = dict(targets)
        return targets

    def _move(self, targets: dict[str, float], image: SiteImage, seconds: int) -> None:
        """Physics for one step."""
        hours = seconds / 3600
        power = self.battery.step(targets.get(BATTERY, 0.0), seconds) if self.setup.battery_wh else 0.0
        self.car_w = self._charge_car(targets.get(CAR, 0.0), image.time_ns, hours)
        grid = self.load_now_w - self.pv_now_w + power + self.car_w
        lost = min(self.pv_now_w, max(0.0, -grid - self.setup.export_limit_w))
        self.pv_now_w -= lost
        grid += lost
        self.grid_w = grid
        registers = self.registers
        registers.load += (self.load_now_w + self.car_w) * hours
        registers.car += self.car_w * hours
        registers.pv += self.pv_now_w * hours
        registers.curtailed += lost * hours
        registers.charged += max(0.0, power) * hours
        registers.discharged += max(0.0, -power) * hours
        registers.imported += max(0.0, grid) * hours
        registers.exported += max(0.0, -grid) * hours
        self._slot_wh += grid * hours

    def _charge_car(self, wanted_w: float, now_ns: int, hours: float) -> float:
        """What the car takes: only while it is there, and no more than it needs."""
        car = self.setup.car
        if car is None:
            return 0.0
        (need,) = self._needs
        window = self.flexible.window(need, now_ns)
        if window != self._window:
            if self._window is not None:
                begun, taken = self._taken.get(CAR, (0, 0.0))
                got = taken if begun == self._window[0] else 0.0
                self.missed_car_wh += max(0.0, car.energy_wh - got)
            self._window = window
        if window is None:
            return 0.0
        begun, taken = self._taken.get(CAR, (0, 0.0))
        before = taken if begun == window[0] else 0.0
        power = min(max(0.0, wanted_w), car.power_w, max(0.0, car.energy_wh - before) / hours)
        self._taken[CAR] = (
            window[0],
            before + power * hours,
        )  # what the charger counts, in the place of the agent's own sum
        return power

    def replan(self, now_ns: int) -> None:
        """Value the battery for the coming day with what is known now."""
        self._planned_ns = now_ns - now_ns % (self.setup.replan_s * NS_PER_S)
        self.outlook.forget_before(now_ns)
        self.outlook.plan(now_ns, self.battery.stored_wh if self.setup.battery_wh else 0.0)

    # -- messages

    def meter(self, slot_ns: int) -> IntervalEnergy:
        """The energy of the slot that has just ended; the site's own record learns it."""
        registers = self.registers
        message = IntervalEnergy(
            site_id=self.setup.id, slot_start_ns=slot_ns, slot_s=SLOT_S, import_wh=registers.since("imported"),
            export_wh=registers.since("exported"), pv_wh=registers.since("pv"), battery_charge_wh=registers.since("charged"),
            battery_discharge_wh=registers.since("discharged"), load_wh=registers.since("load"), method="register",
            complete=True,
        )  # fmt: skip
        self.outlook.learn(message)
        return message

    def orders(self, slot_ns: int) -> tuple[Order, ...]:
        """Orders for a coming slot, from the plan; none where there is no plan for it."""
        outlook = self.outlook
        if not self.setup.trade or outlook.value is None or self.rules is None:
            return ()
        outlook.rules = self.rules
        index = (slot_ns - outlook.value.start_ns) // SLOT_NS
        if not 0 <= index < len(outlook.grid_wh):
            return ()
        wh = outlook.grid_wh[index]
        return (*self.producer.orders(slot_ns, wh), *self.consumer.orders(slot_ns, wh))

    def commit(self, slot_ns: int, net_wh: int) -> None:
        """What was traded for a slot."""
        self.outlook.commitments[slot_ns] = Commitment(
            participant_id=self.setup.id, area_id=self.setup.area, slot_start_ns=slot_ns, slot_s=SLOT_S, net_wh=net_wh,
            clearing_price_ticks=None, trades=(),
        )  # fmt: skip

    def take_forecasts(self, forecasts: Sequence[Forecast]) -> None:
        """What the cloud expects."""
        self.outlook.forecasts.update({one.quantity: one for one in forecasts})

    def offer(self, event: DemandResponseEvent) -> DemandResponseOffer:
        """The consumer agent's answer to an event."""
        now = self.image.time_ns if self.image is not None else event.start_ns
        waits = self.flexible.waits_w(event.start_ns, event.end_ns, now)
        return self.consumer.offer(event, self.battery.stored_wh if self.setup.battery_wh else 0.0, waits)

    def dispatch(self, dispatch: DemandResponseDispatch) -> None:
        """The accepted part of an offer."""
        self.outlook.dispatches[dispatch.event_id] = dispatch

    def instruct(self, instruction: GridInstruction) -> GridInstructionResult:
        """The operator's word; a drill changes nothing."""
        others = [one for one in self._proposals if one.source != f"operator:{instruction.id}"]
        result = self.instructions.result(instruction, self.image, others, self._limits, self._site, self._held)
        self.instructions.take(instruction)
        return result
