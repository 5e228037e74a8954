"""The community's agreement each hour: rounds of wishes and answers over messages, until the last one binds.

Rounds run beside the clock, not inside it: an answer may take its time, and the agreement that stands holds until it expires.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import numpy as np
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import CLOUD_UNIT, GATEWAY_AGENT, Address
from wattmesh_a2a.errors import WattmeshError
from wattmesh_a2a.messages import Message
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.plans import CoordinationReply, CoordinationRound

from wattmesh_cloud.planning.community import Sharing
from wattmesh_cloud.planning.config import CoordinationConfig
from wattmesh_cloud.planning.problem import Array
from wattmesh_cloud.store.base import JsonValue

log = logging.getLogger(__name__)

COORDINATION_AGENT = "coordination"
_SLOT_S = 3600
_ANSWER_S = 15.0
"""Real time that a round waits for; who is slower has no part in this round."""


class CoordinationService:
    """See the module.

    Args:
        config: Who, when, and what peaks and ramps cost.
        messenger: Sends as ``ORG/cloud/coordination``.
        clock: Of the agreements.
        org: Of all addresses.
        exchange_w: A site's exchange with the grid now; none for unknown.
    """

    def __init__(
        self,
        config: CoordinationConfig,
        messenger: Messenger,
        clock: Clock,
        org: str,
        *,
        exchange_w: Callable[[str], float | None] = lambda site: None,
    ) -> None:
        self._config = config
        self._messenger = messenger
        self._clock = clock
        self._org = org
        self._exchange_w = exchange_w
        self.address = Address(org, CLOUD_UNIT, COORDINATION_AGENT)
        self.rounds = 0
        self.agreements = 0
        self.last: Mapping[str, JsonValue] = {}
        self._task: asyncio.Task[None] | None = None

    def register(self) -> None:
        """The community's agent takes no requests."""

    def on_record(self, site: str, message: Message) -> None:
        """Nothing of a site is looked at but its answers."""

    async def run(self) -> None:
        """An agreement at every whole period of the clock."""
        every = self._config.every_s * NS_PER_S
        with self._clock.runner():
            while True:
                now = self._clock.monotonic_ns()
                await self._clock.sleep_until_ns(now - now % every + every)
                if self._task is None or self._task.done():  # else the last one is still being talked about
                    self._task = asyncio.get_running_loop().create_task(self.agree())

    async def finish(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def agree(self) -> None:
        """All rounds of one agreement."""
        config, now = self._config, self._clock.utc_ns()
        start = now - now % (_SLOT_S * NS_PER_S)
        exchanges = [self._exchange_w(site) for site in config.members]
        known = [one for one in exchanges if one is not None]
        sharing = Sharing(
            steps=config.horizon_s // _SLOT_S,
            slot_s=_SLOT_S,
            peak_price=config.peak_price,
            ramp_price=config.ramp_price,
            weight=config.weight,
            before_kw=sum(known) / 1000 if len(known) == len(exchanges) else None,
        )
        agreement = f"{self._config.members[0]}-{start // NS_PER_S}"
        alone: Array | None = None
        for number in range(config.rounds + 1):
            asked = config.members if number == 0 else tuple(sharing.answers)
            wishes = {
                site: self._round(site, agreement, number, start, sharing.wish(site) if number else None)
                for site in asked
            }
            answers = await asyncio.gather(*(self._ask(site, wish) for site, wish in wishes.items()))
            sharing.take({site: answer for site, answer in zip(wishes, answers, strict=True) if answer is not None})
            self.rounds += 1
            if len(sharing.answers) < 2:
                log.info("no agreement: %d of %d members answered", len(sharing.answers), len(config.members))
                return
            alone = sharing.total_kw() if alone is None else alone
        assert alone is not None
        total = sharing.total_kw()
        self.agreements += 1
        self.last = {
            "start_ns": start,
            "members": sorted(sharing.answers),
            "peak_alone_kw": round(float(alone.max()), 3),
            "peak_agreed_kw": round(float(total.max()), 3),
            "cost_alone": round(sharing.cost(alone), 4),
            "cost_agreed": round(sharing.cost(total), 4),
        }

    def _round(self, site: str, agreement: str, number: int, start_ns: int, wish_kw: Array | None) -> CoordinationRound:
        config = self._config
        wish = np.zeros(config.horizon_s // _SLOT_S) if wish_kw is None else wish_kw * 1000
        return CoordinationRound(
            site_id=site,
            agreement_id=agreement,
            number=number,
            final=number == config.rounds,
            expires_ns=start_ns + 2 * config.every_s * NS_PER_S,
            start_ns=start_ns,
            slot_s=_SLOT_S,
            wish_w=tuple(round(value) for value in wish.tolist()),
            weight_ticks=0.0 if wish_kw is None else config.weight * 10_000,
        )

    async def _ask(self, site: str, wanted: CoordinationRound) -> Array | None:
        """A member's answer, kW; none from one that is silent, refuses, or cannot plan."""
        to = Address(self._org, site, GATEWAY_AGENT)
        try:
            answer = await self._messenger.request(
                to, wanted, expires_ns=wanted.expires_ns, as_agent=self.address, timeout_s=_ANSWER_S
            )
        except WattmeshError as error:
            log.info("%s has no part in round %d: %s", site, wanted.number, error)
            return None
        if (
            not isinstance(answer, CoordinationReply)
            or (answer.site_id, answer.agreement_id, answer.number) != (site, wanted.agreement_id, wanted.number)
            or len(answer.grid_w) != len(wanted.wish_w)
        ):
            return None
        return np.array(answer.grid_w, dtype=np.float64) / 1000

    def snapshot(self) -> dict[str, JsonValue]:
        """Figures for the report, the API and the console."""
        return {"agreements": self.agreements, "rounds": self.rounds, "last": dict(self.last)}
