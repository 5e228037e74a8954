"""What a gateway agrees with the cloud: forecasts, strategy, orders, positions, demand response. Control never waits for it."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.delivery import ACKNOWLEDGED, Delivery
from wattmesh_a2a.envelope import CLOUD_UNIT, MARKET_AGENT, Address, Envelope
from wattmesh_a2a.errors import ConfigurationError, ExpiredError, UnauthorisedError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseOffer
from wattmesh_a2a.market import Trade
from wattmesh_a2a.messages import (
    Commitment,
    CommitmentList,
    CommitmentQuery,
    Executions,
    ForecastIssued,
    MarketRules,
    Message,
    OrderBatch,
    OrderBatchResult,
    Strategy,
)
from wattmesh_a2a.tariff import slot_start_ns

from wattmesh_edge.agents.base import SLOT_NS, SLOT_S, Outlook, SiteAgent
from wattmesh_edge.agents.consumer import ConsumerAgent
from wattmesh_edge.config import Site
from wattmesh_edge.image import SiteImage
from wattmesh_edge.memory import Memory, durably
from wattmesh_edge.trace import KEEP_NS

log = logging.getLogger(__name__)

_ORDER_AHEAD_SLOTS = 2
"""Orders are sent this many slots before delivery: late enough to know the load, early enough to be cleared."""
_DAY_NS = 86_400 * NS_PER_S
_TRADES_AT_MOST = 100_000
"""Kept of one gateway: more than a day's of a busy one."""


class Dealings:
    """Answers the cloud's messages and places orders.

    Args:
        site: The site.
        outlook: What the agents know; filled here.
        agents: Who may order and offer.
        messenger: The way to the cloud.
        db: The gateway's database.
        memory: Messages that outlive a restart.
        clock: The gateway's.
        counts: What became of orders and dispatches, by name.
        spawn: Runs work in the background.
        image: The site at this moment; none before the first cycle.
        waits_w: Mean power in a time to come (start, end, now) of loads that can wait until it is over.
    """

    def __init__(
        self,
        site: Site,
        outlook: Outlook,
        agents: Sequence[SiteAgent],
        messenger: Delivery,
        db: sqlite3.Connection,
        memory: Memory,
        clock: Clock,
        *,
        counts: Counter[str],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        image: Callable[[], SiteImage | None],
        waits_w: Callable[[int, int, int], float] = lambda start_ns, end_ns, now_ns: 0.0,
    ) -> None:
        self._site_id, self._org = site.model.site, site.model.org
        self._market = site.model.market
        self._outlook = outlook
        self._agents = agents
        self._messenger = messenger
        self._db = db
        self._memory = memory
        self._clock = clock
        self._counts = counts
        self._spawn = spawn
        self._image = image
        self._waits_w = waits_w
        self._market_agent = Address(self._org, CLOUD_UNIT, MARKET_AGENT)
        self._ordered: set[int] = set()
        with db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS commitments (slot_ns INTEGER PRIMARY KEY, net_wh INTEGER, trades INTEGER)"
            )
            db.execute(
                "CREATE TABLE IF NOT EXISTS trades (id TEXT PRIMARY KEY, slot_ns INTEGER NOT NULL, net_wh INTEGER NOT NULL)"
                " WITHOUT ROWID"
            )
        self._recall()
        messenger.on_request(Commitment, self._on_commitment)
        messenger.on_request(Executions, self._on_executions)
        messenger.on_request(ForecastIssued, self._on_forecast, idempotent=True, latest_only=True)
        messenger.on_request(Strategy, self._on_strategy, idempotent=True, latest_only=True)
        messenger.on_request(DemandResponseEvent, self._on_dr_event)
        messenger.on_request(DemandResponseDispatch, self._on_dr_dispatch)
        messenger.on_event(MarketRules, self._on_rules, source=str(self._market_agent))

    def _recall(self) -> None:
        """What was told before this start and still holds: a restart without the cloud goes on with it."""
        outlook, now = self._outlook, self._clock.utc_ns()
        if self._market is not None:
            rows = self._db.execute("SELECT slot_ns, net_wh FROM commitments ORDER BY slot_ns DESC LIMIT 200")
            for slot, net in rows:
                outlook.commitments[slot] = Commitment(
                    participant_id=self._site_id,
                    area_id=self._market.area,
                    slot_start_ns=slot,
                    slot_s=SLOT_S,
                    net_wh=net,
                    clearing_price_ticks=None,
                    trades=(),
                )
            for trade, slot, net in self._db.execute(
                "SELECT id, slot_ns, net_wh FROM trades WHERE slot_ns > ?", (now - 2 * SLOT_NS,)
            ):
                outlook.traded.setdefault(slot, {})[trade] = net
        row = self._db.execute("SELECT value FROM state WHERE name = 'profile'").fetchone()
        if row:
            outlook.profile = {int(slot): (load, pv) for slot, (load, pv) in json.loads(row[0]).items()}
        for name, message in self._memory.recall("dispatch", now).items():
            if isinstance(message, DemandResponseDispatch):
                outlook.dispatches[name] = message
        for message in self._memory.recall("strategy", now).values():
            if isinstance(message, Strategy):
                outlook.strategy = message
        for message in self._memory.recall("forecast", now).values():
            if isinstance(message, ForecastIssued):
                outlook.forecasts.update({forecast.quantity: forecast for forecast in message.forecasts})
        for message in self._memory.recall("rules", now).values():
            if isinstance(message, MarketRules):
                outlook.rules = message

    def save_profile(self) -> None:
        """Keep the site's own record of usual days; durable with the database's next commit."""
        self._db.execute("INSERT OR REPLACE INTO state VALUES ('profile', ?)", (json.dumps(self._outlook.profile),))

    def prune(self, now_ns: int) -> None:
        """Forget what is over."""
        self._memory.prune(now_ns)
        self._db.execute("DELETE FROM commitments WHERE slot_ns < ?", (now_ns - KEEP_NS,))
        self._db.execute("DELETE FROM trades WHERE slot_ns < ?", (now_ns - _DAY_NS,))

    # -- orders

    def order(self, image: SiteImage) -> None:
        """Send orders for the slot after next, once: what the plan exchanges with the grid less what is agreed already."""
        outlook, slot = self._outlook, slot_start_ns(image.time_ns, SLOT_S)
        wanted = slot + _ORDER_AHEAD_SLOTS * SLOT_NS
        rules, strategy = outlook.rules, outlook.strategy
        trades = outlook.trade and (strategy is None or strategy.trade)
        if not trades or rules is None or rules.halted or wanted in self._ordered or outlook.value is None:
            return
        index = (wanted - outlook.value.start_ns) // SLOT_NS
        if not 0 <= index < len(outlook.grid_wh):
            return
        self._ordered = {one for one in self._ordered if one >= slot} | {wanted}
        left_wh = outlook.grid_wh[index] - outlook.position_wh(wanted)
        orders = tuple(order for agent in self._agents for order in agent.orders(wanted, left_wh))
        if orders:
            batch = OrderBatch(participant_id=self._site_id, area_id=rules.area_id, slot_start_ns=wanted, orders=orders)
            self._spawn(self._send_orders(batch, wanted - rules.gate_close_s * NS_PER_S))

    async def _send_orders(self, batch: OrderBatch, expires_ns: int) -> None:
        self._counts["orders_sent"] += len(batch.orders)
        try:
            answer = await self._messenger.request(self._market_agent, batch, expires_ns=expires_ns)
        except ExpiredError:
            self._counts["orders_expired"] += len(batch.orders)
            return
        if isinstance(answer, OrderBatchResult):
            for result in answer.results:
                self._counts[f"orders_{result.status}"] += 1
            self.take_trades([trade for result in answer.results for trade in result.trades])

    # -- positions

    def in_market(self, now_ns: int) -> bool:
        """Whether something was bought or sold for the running slot."""
        return self._outlook.position_wh(slot_start_ns(now_ns, SLOT_S)) != 0

    def take_trades(self, trades: Sequence[Trade]) -> None:
        """The position moves at once, and each trade counts once, however often it is told; durable on return."""
        new = {
            trade.id: (trade.slot_start_ns, net)
            for trade in trades
            if (net := (trade.quantity_wh if trade.buyer_id == self._site_id else 0)
                - (trade.quantity_wh if trade.seller_id == self._site_id else 0))
            and trade.id not in self._outlook.traded.get(trade.slot_start_ns, {})
        }  # fmt: skip
        if not new:
            return
        if sum(map(len, self._outlook.traded.values())) + len(new) > _TRADES_AT_MOST:
            raise ConfigurationError(f"more than {_TRADES_AT_MOST} trades wait for their commitments")
        with durably(self._db):
            self._db.executemany(
                "INSERT OR IGNORE INTO trades VALUES (?, ?, ?)", [(one, slot, net) for one, (slot, net) in new.items()]
            )
        for one, (slot, net) in new.items():
            self._outlook.traded.setdefault(slot, {})[one] = net
        self._counts["trades_told"] += len(new)

    async def _on_executions(self, envelope: Envelope) -> Message:
        executions = envelope.data
        assert isinstance(executions, Executions)
        self._is_for_us(envelope, executions.participant_id)
        if self._market is None or executions.area_id != self._market.area:
            raise ConfigurationError(f"trades of {executions.area_id}, where {self._site_id} takes no part")
        self.take_trades(executions.trades)
        return ACKNOWLEDGED

    async def _on_commitment(self, envelope: Envelope) -> Message:
        commitment = envelope.data
        assert isinstance(commitment, Commitment)
        self._is_for_us(envelope, commitment.participant_id)
        self._keep_commitment(commitment)
        return ACKNOWLEDGED

    def _is_for_us(self, envelope: Envelope, participant: str) -> None:
        if envelope.source != self._market_agent:
            raise UnauthorisedError(f"{envelope.source} is not the market")
        if participant != self._site_id:
            raise ConfigurationError(f"what {participant} has agreed came to {self._site_id}")

    def _keep_commitment(self, commitment: Commitment) -> None:
        with durably(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO commitments VALUES (?, ?, ?)",
                (commitment.slot_start_ns, commitment.net_wh, len(commitment.trades)),
            )
        self._outlook.commitments[commitment.slot_start_ns] = commitment

    async def ask_commitments(self) -> None:
        """After a start: what was agreed while we were away."""
        if self._market is None:
            return
        now = self._clock.utc_ns()
        query = CommitmentQuery(participant_id=self._site_id, from_ns=now - _DAY_NS)
        answer = await self._messenger.request(self._market_agent, query, expires_ns=now + _DAY_NS)
        if isinstance(answer, CommitmentList):
            for commitment in answer.commitments:
                if commitment.participant_id == self._site_id:
                    self._keep_commitment(commitment)

    # -- what is told

    def _on_rules(self, envelope: Envelope) -> None:
        rules = envelope.data
        if isinstance(rules, MarketRules) and self._market is not None and rules.area_id == self._market.area:
            if rules != self._outlook.rules:  # it comes again and again: the disk is written for what is new
                self._memory.keep("rules", rules.area_id, rules, self._clock.utc_ns() + _DAY_NS)
            self._outlook.rules = rules

    async def _on_forecast(self, envelope: Envelope) -> Message:
        issued = envelope.data
        assert isinstance(issued, ForecastIssued)
        _from_cloud(envelope)
        for forecast in issued.forecasts:
            held: Forecast | None = self._outlook.forecasts.get(forecast.quantity)
            if forecast.site_id == self._site_id and (held is None or forecast.issued_ns >= held.issued_ns):
                self._outlook.forecasts[forecast.quantity] = forecast
                ends_ns = forecast.start_ns + len(forecast.values) * forecast.slot_s * NS_PER_S
                self._memory.keep("forecast", forecast.quantity, ForecastIssued(forecasts=(forecast,)), ends_ns)
        return ACKNOWLEDGED

    async def _on_strategy(self, envelope: Envelope) -> Message:
        strategy = envelope.data
        assert isinstance(strategy, Strategy)
        _from_cloud(envelope)
        if strategy.site_id == self._site_id:
            self._outlook.strategy = strategy
            self._memory.keep("strategy", self._site_id, strategy, strategy.expires_ns)
        return ACKNOWLEDGED

    async def _on_dr_event(self, envelope: Envelope) -> Message:
        event = envelope.data
        assert isinstance(event, DemandResponseEvent)
        _from_cloud(envelope)
        image = self._image()
        stored = self._outlook.stored_wh(image) if image is not None else None
        for agent in self._agents:
            if isinstance(agent, ConsumerAgent):
                waits = self._waits_w(event.start_ns, event.end_ns, self._clock.utc_ns())
                return agent.offer(event, stored, waits)
        return DemandResponseOffer(
            event_id=event.id, site_id=self._site_id, offered_w=0, price_ticks=event.price_ticks, baseline_w=0
        )

    async def _on_dr_dispatch(self, envelope: Envelope) -> Message:
        dispatch = envelope.data
        assert isinstance(dispatch, DemandResponseDispatch)
        _from_cloud(envelope)
        if dispatch.site_id == self._site_id:
            self._outlook.dispatches[dispatch.event_id] = dispatch
            self._memory.keep("dispatch", dispatch.event_id, dispatch, dispatch.end_ns)
            self._counts["dispatches"] += 1
        return ACKNOWLEDGED


def _from_cloud(envelope: Envelope) -> None:
    """A site's other agents may talk to the gateway, and may not tell it what the cloud tells."""
    if envelope.source.unit != CLOUD_UNIT:
        raise UnauthorisedError(f"{envelope.source} may not send a {type(envelope.data).__name__}")
