"""The producer agent: sells surplus, at no less than what the retailer would pay or the battery could make of it."""

from __future__ import annotations

from wattmesh_a2a.market import Order, Side

from wattmesh_edge.agents.base import SiteAgent

OFFER_SHARE = 0.8
"""Of the expected surplus: what is sold and not there has to be bought at the retail price."""
SMALLEST_WH = 20


class ProducerAgent(SiteAgent):
    """See :class:`wattmesh_edge.agents.base.SiteAgent`."""

    def orders(self, slot_ns: int, grid_wh: float) -> list[Order]:
        """One sell order for most of the expected export."""
        quantity = round(-grid_wh * OFFER_SHARE)
        if quantity < SMALLEST_WH:
            return []
        tariff = self.outlook.tariff
        # One tick above the feed-in price is a gain already; the auction's uniform price shares the rest.
        return [self._order(slot_ns, side=Side.SELL, quantity_wh=quantity, price_ticks=tariff.feed_in_ticks() + 1)]
