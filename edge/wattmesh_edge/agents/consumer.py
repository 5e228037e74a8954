"""The consumer agent: buys what the site will need, at less than the retailer's price, and keeps peaks low."""

from __future__ import annotations

from wattmesh_a2a.grid import DemandResponseEvent, DemandResponseOffer
from wattmesh_a2a.market import Order, Side

from wattmesh_edge.agents.base import SiteAgent
from wattmesh_edge.agents.response import offer_of

BID_SHARE = 0.8
"""Of the expected need: what is bought and not taken comes back at the feed-in price."""
SMALLEST_WH = 20


class ConsumerAgent(SiteAgent):
    """See :class:`wattmesh_edge.agents.base.SiteAgent`."""

    def orders(self, slot_ns: int, grid_wh: float) -> list[Order]:
        """One buy order for most of the expected import."""
        quantity = round(grid_wh * BID_SHARE)
        if quantity < SMALLEST_WH:
            return []
        price = self.outlook.tariff.import_price_ticks(slot_ns) - 1
        return [self._order(slot_ns, side=Side.BUY, quantity_wh=quantity, price_ticks=price)]

    def offer(self, event: DemandResponseEvent, stored_wh: float | None, waits_w: float = 0.0) -> DemandResponseOffer:
        """What the site can do in an event (:func:`wattmesh_edge.agents.response.offer_of`)."""
        return offer_of(self.outlook, self.site_id, event, stored_wh, waits_w)
