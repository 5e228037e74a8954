"""Asks gateways what a person wants to see of a site: its frequency while somebody looks, traces of events, its devices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.envelope import GATEWAY_AGENT, Address, Envelope
from wattmesh_a2a.errors import UnavailableError, WattmeshError
from wattmesh_a2a.messages import Message
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.observing import (
    DevicesQuery,
    DevicesReport,
    EventTraceQuery,
    EventTraceReport,
    FrequencySamples,
    FrequencyWatch,
)

from wattmesh_cloud.frequency_live import FrequencyLive

log = logging.getLogger(__name__)

_AGAIN_S = 5.0
_LEASE_S = 15
_ANSWER_S = 5.0
_VALID_NS = 280 * NS_PER_S
_SITES_WATCHED = 12
"""Of a fleet's many gateways as many as a chart can show; the same grid has one frequency."""


class SiteObserver:
    """See the module.

    Args:
        messenger: Of the cloud.
        clock: The fleet's.
        org: Of all addresses.
        frequency: Gets the samples.
        online: Sites whose gateways are connected.
        wanted: Whether somebody looks at the frequency.
    """

    def __init__(
        self,
        messenger: Messenger,
        clock: Clock,
        org: str,
        frequency: FrequencyLive,
        online: Callable[[], Collection[str]],
    ) -> None:
        self._messenger, self._clock, self._org = messenger, clock, org
        self._frequency, self._online = frequency, online
        self.wanted: Callable[[], bool] = lambda: False
        self._asking: set[asyncio.Task[None]] = set()

    def register(self) -> None:
        """Listen to samples."""
        self._messenger.on_event(FrequencySamples, self._on_samples)

    def _on_samples(self, envelope: Envelope) -> None:
        samples = envelope.data
        if not isinstance(samples, FrequencySamples) or samples.site_id != envelope.source.unit:
            return
        rows = zip(samples.times_ms, samples.frequency_hz, samples.rocof_hz_per_s, strict=False)
        self._frequency.add(samples.site_id, list(rows))

    async def run(self) -> None:
        """In real time, for ever: while somebody looks, gateways are asked to send; they stop by themselves."""
        while True:
            if self.wanted():
                for site in sorted(self._online())[:_SITES_WATCHED]:
                    task = asyncio.get_running_loop().create_task(self._watch(site))
                    self._asking.add(task)
                    task.add_done_callback(self._asking.discard)
                await asyncio.sleep(_AGAIN_S)
            else:
                await asyncio.sleep(0.5)

    async def _watch(self, site: str) -> None:
        try:
            await self._ask(site, FrequencyWatch(lease_s=_LEASE_S))
        except WattmeshError as error:
            log.debug("%s does not send its frequency: %s", site, error)

    async def trace(self, site: str, event_id: str) -> EventTraceReport:
        """What a gateway kept around an event.

        Raises:
            UnavailableError: It does not answer.
        """
        answer = await self._ask(site, EventTraceQuery(event_id=event_id))
        if not isinstance(answer, EventTraceReport):
            raise UnavailableError(f"{site} does not tell of this event")
        return answer

    async def devices(self, site: str) -> DevicesReport:
        """A gateway's devices.

        Raises:
            UnavailableError: It does not answer.
        """
        answer = await self._ask(site, DevicesQuery())
        if not isinstance(answer, DevicesReport):
            raise UnavailableError(f"{site} does not tell of its devices")
        return answer

    async def _ask(self, site: str, message: Message) -> Message:
        if site not in self._online():
            raise UnavailableError(f"{site} is not connected; what it keeps can be seen when it is back")
        to = Address(self._org, site, GATEWAY_AGENT)
        try:
            return await self._messenger.request(
                to, message, expires_ns=self._clock.utc_ns() + _VALID_NS, timeout_s=_ANSWER_S
            )
        except WattmeshError as error:
            raise UnavailableError(f"{site} does not answer: {error}") from error
