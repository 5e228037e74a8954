"""Several market areas behind one address: each has its own writer, journal, rules and ledger, and knows nothing of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import Address, Envelope
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.fates import Fate
from wattmesh_a2a.market import Order
from wattmesh_a2a.messages import CommitmentQuery, Message, OrderAmend, OrderBatch, OrderCancel, OrderPlace, OrderResult
from wattmesh_a2a.messenger import Messenger

from wattmesh_cloud.market.config import LinkModel, MarketConfig, check_areas, check_links
from wattmesh_cloud.market.coupling import flow_wh
from wattmesh_cloud.market.replica import Standby
from wattmesh_cloud.market.service import Guard, MarketService, SiteWatch
from wattmesh_cloud.store.base import Store


class Markets:
    """Every area's market, and which one a message, a participant or an operator means.

    A message goes to the area that it names. One that names none of ours goes to its participant's area, which refuses it,
    answers and journals it.

    Args:
        configs: The areas; the first one answers for participants that nobody knows.
        store: Of all areas; their rows carry the area's name.
        messenger: Serves ``ORG/cloud/market-supervisor``.
        clock: Time of all.
        state: Folder of the journals.
        org: Of all addresses.
        links: Lines between areas.
        warm: Standbys that go on as writers, by area.

    Raises:
        ConfigurationError: Two areas have one name, or one participant.
    """

    def __init__(
        self,
        configs: Sequence[MarketConfig],
        store: Store,
        messenger: Messenger,
        clock: Clock,
        state: Path,
        org: str,
        *,
        links: Sequence[LinkModel] = (),
        warm: Mapping[str, Standby] = MappingProxyType({}),
    ) -> None:
        check_areas(configs)
        check_links(links, configs)
        self._messenger = messenger
        self.areas: dict[str, MarketService] = {}
        try:
            for config in configs:
                self.areas[config.area] = MarketService(
                    config, store, messenger, clock, state, org, warm=warm.get(config.area)
                )
        except BaseException:
            self.close()
            raise
        self.first = next(iter(self.areas.values()))
        self._home = {one.id: service for service in self.areas.values() for one in service.config.participants}

        for link in links:
            ends = (self.areas[link.areas[0]], self.areas[link.areas[1]])
            couple = partial(self._couple, link, ends, asyncio.Lock())
            for service in ends:
                service.before_close = couple

    async def _couple(
        self, link: LinkModel, ends: tuple[MarketService, MarketService], lock: asyncio.Lock, slot_ns: int
    ) -> None:
        """Before either end closes a slot: what flows, written to both journals. What one has after a crash, the other gets."""
        async with lock:
            config = ends[0].config
            for end in ends:
                await end.until(slot_ns - config.gate_close_s * NS_PER_S)  # what came in time has taken effect
            slots = [end.engine.slots.get(slot_ns) for end in ends]
            out, into = (slot.exchange_wh if slot is not None else None for slot in slots)
            if out is not None:
                flow = -out
            elif into is not None:
                flow = into
            else:
                books = [slot.book if slot is not None else None for slot in slots]
                if books[0] is None or books[1] is None:
                    return  # nobody there to trade with
                flow = await asyncio.to_thread(flow_wh, books[0], books[1], int(link.limit_w * config.slot_s / 3600))
            if out is None:
                await ends[0].exchange(slot_ns, link.name, -flow)
            if into is None:
                await ends[1].exchange(slot_ns, link.name, flow)

    def of_participant(self, participant: str) -> MarketService:
        """The area in which somebody trades; the first one for whoever trades nowhere."""
        return self._home.get(participant, self.first)

    def area(self, name: str | None) -> MarketService:
        """An area by its name, the first one for none; raises :class:`ConfigurationError`."""
        found = self.first if name is None else self.areas.get(name)
        if found is None:
            raise ConfigurationError(f"no market area {name!r}; there are: {', '.join(sorted(self.areas))}")
        return found

    def chosen(self, names: Sequence[str] | None) -> list[MarketService]:
        """The named areas, all for none."""
        return list(self.areas.values()) if names is None else [self.area(name) for name in names]

    def register(self) -> None:
        """Begin to take orders when the messenger starts."""
        for kind in (OrderBatch, OrderPlace, OrderAmend, OrderCancel):
            self._messenger.on_request(kind, self._on_order, as_agent=self.first.address)
        self._messenger.on_request(CommitmentQuery, self._on_query, as_agent=self.first.address, idempotent=True)

    async def _on_order(self, envelope: Envelope) -> Message:
        message = envelope.data
        assert isinstance(message, OrderBatch | OrderPlace | OrderAmend | OrderCancel)
        service = self.areas.get(message.area_id) or self.of_participant(message.participant_id)
        return await service.handle(envelope)

    async def _on_query(self, envelope: Envelope) -> Message:
        query = envelope.data
        assert isinstance(query, CommitmentQuery)
        return await self.of_participant(query.participant_id).handle(envelope)

    def on_refusal(self, source: Address, type_name: str, fate: Fate) -> None:
        """A message to the market that nobody could or should read; it counts where its sender trades."""
        self.of_participant(source.unit).note_refusal(source, fate.value)

    # -- what the other services feed in

    def on_record(self, site: str, message: Message) -> None:
        """Metered energy, to the area in which the site trades."""
        service = self._home.get(site)
        if service is not None:
            service.on_record(site, message)

    def guard(self, cause: str, guard: Guard) -> None:
        """Halt every area while ``guard`` gives a reason."""
        for service in self.areas.values():
            service.guard(cause, guard)

    def watch_sites(self, watch: SiteWatch) -> None:
        """Where the sites' telemetry comes from."""
        for service in self.areas.values():
            service.watch_sites(watch)

    async def settle_flexibility(
        self, event_id: str, participant: str, delivered_wh: int, price_ticks: int, slot_ns: int | None = None
    ) -> None:
        """Pay a participant for demand response in its own area."""
        await self.of_participant(participant).settle_flexibility(
            event_id, participant, delivered_wh, price_ticks, slot_ns
        )

    async def submit(self, participant: str, slot_ns: int, orders: tuple[Order, ...]) -> list[OrderResult]:
        """See :meth:`MarketService.submit`, in the participant's area."""
        return await self.of_participant(participant).submit(participant, slot_ns, orders)

    async def suspend(self, participant: str, reason: str) -> int:
        """Switch a participant off and withdraw its open orders; how many. Raises :class:`ConfigurationError` for nobody."""
        return await self._known(participant).suspend(participant, reason)

    async def reinstate(self, participant: str) -> None:
        """Let a participant trade again; raises :class:`ConfigurationError` for nobody."""
        await self._known(participant).reinstate(participant)

    def _known(self, participant: str) -> MarketService:
        found = self._home.get(participant)
        if found is None:
            raise ConfigurationError(f"no participant {participant!r}; there are: {', '.join(sorted(self._home))}")
        return found

    # -- life cycle

    async def run(self) -> None:
        """Keep every market's time, for ever."""
        async with asyncio.TaskGroup() as group:
            for name, service in self.areas.items():
                group.create_task(service.run(), name=f"market {name}")

    async def finish(self) -> None:
        """At a clean stop: settle whatever has been metered."""
        for service in self.areas.values():
            await service.finish()

    def close(self) -> None:
        """Release the journals."""
        for service in self.areas.values():
            service.close()
