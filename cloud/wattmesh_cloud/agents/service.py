"""The cloud side of producers and consumers: a strategy a site and hour, explained and recorded."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import CLOUD_UNIT, CONSUMER_AGENT, GATEWAY_AGENT, PRODUCER_AGENT, Address
from wattmesh_a2a.errors import WattmeshError
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.messages import IntervalEnergy, Message, Strategy
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.agents.reasoner import PolicyReasoner, Reasoner, SiteSituation, within_limits
from wattmesh_cloud.forecasting.service import median_of
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.store.base import Item, JsonValue, Store, Table

log = logging.getLogger(__name__)

_EVERY_NS = 3600 * NS_PER_S
_SLOT_NS = 900 * NS_PER_S
_THINK_S = 2.0


class StrategyService:
    """See the module.

    Args:
        config: The market's, for the participants' limits.
        store: Gets every decision with its rationale.
        messenger: Serves ``ORG/cloud/producer`` and ``ORG/cloud/consumer``.
        clock: Of the strategies.
        state: Not used; every service has one.
        org: Of all addresses.
        forecasts: Newest forecasts by site and quantity.
        reasoner: Thinks.
    """

    def __init__(
        self,
        config: MarketConfig,
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        org: str,
        *,
        forecasts: Callable[[], Mapping[str, Mapping[str, Forecast]]],
        reasoner: Reasoner | None = None,
    ) -> None:
        del state
        self._limits = {one.id: one.import_limit_w for one in config.participants}
        self._store = store
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._forecasts = forecasts
        self._reasoner = reasoner or PolicyReasoner()
        self._net: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=672))
        self.latest: dict[str, Strategy] = {}
        self.refused = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def register(self) -> None:
        """These agents take no requests yet."""

    def on_record(self, site: str, message: Message) -> None:
        """Learn a site's usual load less PV from whole quarter hours."""
        if isinstance(message, IntervalEnergy) and message.site_id == site and message.complete:
            self._net[site].append(message.load_wh - message.pv_wh)

    async def run(self) -> None:
        """A strategy a site and hour, for ever."""
        with self._clock.runner():
            while True:
                mono = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(mono - mono % _EVERY_NS + _EVERY_NS)
                for site in sorted(self._limits):
                    await self._think(site)

    async def finish(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _think(self, site: str) -> None:
        now = self._clock.utc_ns()
        situation = self._situation(site, now)
        try:
            async with asyncio.timeout(_THINK_S):
                wished = await self._reasoner.strategy(situation, now + 2 * _EVERY_NS)
        except TimeoutError:
            log.warning("no strategy for %s within %.0f s; the last one stands", site, _THINK_S)
            return
        strategy = within_limits(wished, situation) if wished is not None else None
        if strategy is None:
            self.refused += wished is not None
            return
        self.latest[site] = strategy
        agent = PRODUCER_AGENT if strategy.peak_limit_w is None else CONSUMER_AGENT
        data: dict[str, JsonValue] = {
            "agent": agent,
            "site": site,
            "rationale": strategy.rationale,
            "peak_limit_w": strategy.peak_limit_w,
            "reserve_soc_percent": strategy.reserve_soc_percent,
            "trade": strategy.trade,
        }
        item = Item(partition="agents#decisions", time_ns=now, id=f"{agent}-{site}", data=data)
        await asyncio.to_thread(self._store.put, Table.MARKET_DATA, [item])
        task = asyncio.get_running_loop().create_task(self._send(site, strategy, Address(self._org, CLOUD_UNIT, agent)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _situation(self, site: str, now: int) -> SiteSituation:
        forecasts = self._forecasts().get(site, {})
        expected = []
        if "load_wh" in forecasts and "pv_wh" in forecasts:
            first = now - now % _SLOT_NS
            for slot in range(first, first + 96 * _SLOT_NS, _SLOT_NS):
                load, pv = median_of(forecasts["load_wh"], slot), median_of(forecasts["pv_wh"], slot)
                if load is not None and pv is not None:
                    expected.append(load - pv)
        return SiteSituation(
            site_id=site,
            now_ns=now,
            net_wh=tuple(self._net[site]),
            expected_net_wh=tuple(expected),
            import_limit_w=self._limits[site],
        )

    async def _send(self, site: str, strategy: Strategy, source: Address) -> None:
        to = Address(self._org, site, GATEWAY_AGENT)
        try:
            await self._messenger.request(to, strategy, expires_ns=strategy.expires_ns, as_agent=source, timeout_s=60.0)
        except WattmeshError as error:
            log.info("strategy for %s not delivered: %s", site, error)

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        return {
            "refused": self.refused,
            "strategies": {
                site: {"rationale": one.rationale, "peak_limit_w": one.peak_limit_w, "trade": one.trade}
                for site, one in self.latest.items()
            },
        }
