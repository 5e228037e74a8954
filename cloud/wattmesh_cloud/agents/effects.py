"""What passed all guards comes true here, through the services: a strategy message, the market's switches, an event, an alarm.

Nothing in this module knows of a device. A site's gateway holds whatever arrives inside its own limits.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import CLOUD_UNIT, CONSUMER_AGENT, GATEWAY_AGENT, GRID_AGENT, PRODUCER_AGENT, Address
from wattmesh_a2a.errors import UnavailableError, WattmeshError
from wattmesh_a2a.grid import GridStatus
from wattmesh_a2a.messages import Strategy
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.agents.definition import AgentDefinition
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.market_supervisor.policy import CAUSE
from wattmesh_cloud.agents.proposals import (
    CallResponse,
    CancelResponse,
    ChooseModel,
    DeclareStatus,
    HaltMarket,
    Proposal,
    RaiseAlarm,
    ReinstateParticipant,
    ResumeMarket,
    Retrain,
    SetPeakLimit,
    SetReserve,
    SetTrading,
    SuspendParticipant,
    subject,
)
from wattmesh_cloud.agents.situations import Strategies
from wattmesh_cloud.grid.records import EventPlan

log = logging.getLogger(__name__)

STRATEGY_NS = 2 * 3600 * NS_PER_S
"""How long a strategy stands: two rounds, so that one that is lost is not missed."""
_FIELDS = ("reserve_soc_percent", "peak_limit_w", "trade")


class Services:
    """See the module.

    Args:
        sources: The running services.
        messenger: Brings strategies and alarms.
        clock: Of what is sent.
        org: Of all addresses.
    """

    def __init__(self, sources: Sources, messenger: Messenger, clock: Clock, org: str) -> None:
        self._sources, self._messenger, self._clock, self._org = sources, messenger, clock, org
        self._wishes: dict[str, dict[str, tuple[Any, int, str]]] = {}
        """Site → field → value, expiry, rationale."""
        self._changed: set[str] = set()
        self.latest: dict[str, Strategy] = {}
        self.retrained: dict[str, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def apply(self, agent: AgentDefinition, proposal: Proposal) -> None:
        """See :class:`wattmesh_cloud.agents.desk.Effects`."""
        match proposal:
            case SetReserve():
                self._wish(proposal.site_id, "reserve_soc_percent", proposal.reserve_soc_percent, proposal.rationale)
            case SetTrading():
                self._wish(proposal.site_id, "trade", proposal.trade, proposal.rationale)
            case SetPeakLimit():
                self._wish(proposal.site_id, "peak_limit_w", proposal.limit_w, proposal.rationale)
            case RaiseAlarm():
                await self._alarm(agent, proposal)
            case Retrain() | ChooseModel():
                await self._forecasting(proposal)
            case CallResponse() | CancelResponse() | DeclareStatus():
                self._grid(proposal)
            case HaltMarket() | ResumeMarket() | SuspendParticipant() | ReinstateParticipant():
                await self._market(proposal)

    async def _market(self, proposal: HaltMarket | ResumeMarket | SuspendParticipant | ReinstateParticipant) -> None:
        market = self._sources.market
        if market is None:
            raise UnavailableError("no market runs here")
        match proposal:
            case HaltMarket():
                await market.halt(proposal.rationale, CAUSE)
            case ResumeMarket():
                await market.resume(CAUSE)
            case SuspendParticipant():
                await market.suspend(proposal.participant_id, proposal.rationale)
            case ReinstateParticipant():
                await market.reinstate(proposal.participant_id)

    def _grid(self, proposal: CallResponse | CancelResponse | DeclareStatus) -> None:
        grid = self._sources.grid
        if grid is None:
            raise UnavailableError("no grid service runs here")
        match proposal:
            case CallResponse():
                plan = EventPlan(
                    start_ns=proposal.start_ns,
                    end_ns=proposal.start_ns + proposal.duration_s * NS_PER_S,
                    target_w=proposal.target_w,
                    price_ticks=proposal.price_ticks,
                    reason=proposal.rationale,
                    source="agent",
                )
                grid.create_event(plan, f"agent:{GRID_AGENT}")
            case CancelResponse():
                grid.cancel_event(proposal.event_id, proposal.rationale, f"agent:{GRID_AGENT}")
            case DeclareStatus():
                grid.declare(GridStatus(proposal.status), proposal.rationale)

    async def _forecasting(self, proposal: Retrain | ChooseModel) -> None:
        forecasting = self._sources.forecasting
        if forecasting is None:
            raise UnavailableError("no forecasts are made here")
        match proposal:
            case Retrain():
                self.retrained[proposal.site_id] = self._clock.utc_ns()
                await forecasting.retrain(proposal.site_id)
            case ChooseModel():
                forecasting.choose(proposal.site_id, proposal.quantity, proposal.model)

    async def _alarm(self, agent: AgentDefinition, proposal: RaiseAlarm) -> None:
        now = self._clock.utc_ns()
        about = subject(proposal)
        alarm = Alarm(
            id=f"{agent.name}-{about}-{now // NS_PER_S}",
            site_id=about,
            asset_id=None,
            severity=Severity(proposal.severity),
            text=proposal.rationale,
            raised_ns=now,
            cleared_ns=now,
        )
        await self._messenger.emit(alarm, as_agent=Address(self._org, CLOUD_UNIT, agent.name), valid_for_s=3600.0)

    # -- strategies: what several proposals wish of a site goes out as one message

    def _wish(self, site: str, name: str, value: object, why: str) -> None:
        self._wishes.setdefault(site, {})[name] = (value, self._clock.utc_ns() + STRATEGY_NS, why)
        self._changed.add(site)

    def in_force(self, site: str) -> Strategies | None:
        """The strategy that a site was last sent, while it stands."""
        one = self.latest.get(site)
        if one is None or one.expires_ns <= self._clock.utc_ns():
            return None
        return Strategies(
            reserve_soc_percent=one.reserve_soc_percent,
            peak_limit_w=one.peak_limit_w,
            trade=one.trade,
            expires_ns=one.expires_ns,
        )

    def flush(self) -> list[Strategy]:
        """Send a strategy to every site of which something new is wished; what was sent."""
        sent = []
        for site in sorted(self._changed):
            now = self._clock.utc_ns()
            wishes = {name: one for name, one in self._wishes[site].items() if one[1] > now}
            self._wishes[site] = wishes
            if not wishes:
                continue
            default = Strategies()
            values = {name: wishes[name][0] if name in wishes else getattr(default, name) for name in _FIELDS}
            strategy = Strategy(
                site_id=site,
                expires_ns=now + STRATEGY_NS,
                rationale="; ".join(one[2] for one in wishes.values())[:900],
                **values,
            )
            self.latest[site] = strategy
            agent = PRODUCER_AGENT if strategy.peak_limit_w is None else CONSUMER_AGENT
            task = asyncio.get_running_loop().create_task(self._send(strategy, Address(self._org, CLOUD_UNIT, agent)))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            sent.append(strategy)
        self._changed.clear()
        return sent

    async def _send(self, strategy: Strategy, source: Address) -> None:
        to = Address(self._org, strategy.site_id, GATEWAY_AGENT)
        try:
            await self._messenger.request(to, strategy, expires_ns=strategy.expires_ns, as_agent=source, timeout_s=60.0)
        except WattmeshError as error:
            log.info("strategy for %s not delivered: %s", strategy.site_id, error)
