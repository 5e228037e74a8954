"""Plans that come to a gateway: the cloud's, and the one that a community agrees on. Kept over restarts until they expire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.delivery import ACKNOWLEDGED
from wattmesh_a2a.envelope import CLOUD_UNIT, Envelope
from wattmesh_a2a.errors import UnauthorisedError
from wattmesh_a2a.messages import Message
from wattmesh_a2a.messenger import Messenger
from wattmesh_a2a.plans import CoordinationRound, SitePlan

from wattmesh_edge.agents.base import SLOT_S, Outlook
from wattmesh_edge.agents.planner_community import answer_round, check_site_plan, view_of
from wattmesh_edge.image import SiteImage
from wattmesh_edge.memory import Memory

_KIND = "site-plan"


class PlanInbox:
    """Takes plans into the outlook and answers a community's rounds; control never waits for it.

    Args:
        site_id: The site.
        outlook: What the agents know; the plan is put here.
        messenger: The way to the cloud.
        memory: Messages that outlive a restart.
        clock: The gateway's.
        image: The site at this moment; none before the first cycle.
    """

    def __init__(
        self,
        site_id: str,
        outlook: Outlook,
        messenger: Messenger,
        memory: Memory,
        clock: Clock,
        *,
        image: Callable[[], SiteImage | None],
    ) -> None:
        self._site_id = site_id
        self._outlook = outlook
        self._memory = memory
        self._clock = clock
        self._image = image
        for message in memory.recall(_KIND, clock.utc_ns()).values():
            if isinstance(message, SitePlan):
                outlook.site_plan = message
        messenger.on_request(SitePlan, self._on_plan, idempotent=True, latest_only=True)
        messenger.on_request(CoordinationRound, self._on_round, idempotent=True)

    def load_w(self, device: str, utc_ns: int) -> float | None:
        """Planned power of a load that can wait; none where no plan holds or it says nothing of the load."""
        plan = self._outlook.site_plan
        return None if plan is None else plan.load_w(device, utc_ns)

    def _take(self, plan: SitePlan) -> None:
        held = self._outlook.site_plan
        if held is None or plan.issued_ns >= held.issued_ns:
            self._outlook.site_plan = plan
            self._memory.keep(_KIND, self._site_id, plan, plan.expires_ns)

    async def _on_plan(self, envelope: Envelope) -> Message:
        plan = envelope.data
        assert isinstance(plan, SitePlan)
        _from_cloud(envelope)
        check_site_plan(plan, self._site_id, self._clock.utc_ns())
        self._take(plan)
        return ACKNOWLEDGED

    async def _on_round(self, envelope: Envelope) -> Message:
        """Answer with nothing but the exchange that suits this site, and follow what the last round agrees on."""
        wanted = envelope.data
        assert isinstance(wanted, CoordinationRound)
        _from_cloud(envelope)
        image, outlook = self._image(), self._outlook
        stored = outlook.stored_wh(image) if image is not None else None
        view = view_of(wanted, outlook.reserved(), stored, outlook.net_of, outlook.tariff, slot_s=SLOT_S)
        reply, plan = await asyncio.to_thread(answer_round, wanted, self._site_id, view, self._clock.utc_ns())
        if plan is not None:
            self._take(plan)
        return reply


def _from_cloud(envelope: Envelope) -> None:
    """A site's other agents may talk to the gateway, and may not plan for it."""
    if envelope.source.unit != CLOUD_UNIT:
        raise UnauthorisedError(f"{envelope.source} may not send a {type(envelope.data).__name__}")
