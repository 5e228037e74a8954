"""The consumer agent: buys what the site will need, at less than the retailer's price, and keeps peaks low."""

from __future__ import annotations

from wattmesh_a2a.grid import DemandResponseEvent, DemandResponseOffer
from wattmesh_a2a.market import Order, Side

from wattmesh_edge.agents.base import SLOT_NS, SiteAgent

BID_SHARE = 0.8
"""Of the expected need: what is bought and not taken comes back at the feed-in price."""
SMALLEST_WH = 20
_KEEP_SHARE = 0.8
"""Of the stored energy that demand response may count on."""


class ConsumerAgent(SiteAgent):
    """See :class:`wattmesh_edge.agents.base.SiteAgent`."""

    def orders(self, slot_ns: int, grid_wh: float) -> list[Order]:
        """One buy order for most of the expected import."""
        quantity = round(grid_wh * BID_SHARE)
        if quantity < SMALLEST_WH:
            return []
        price = self.outlook.tariff.import_price_ticks(slot_ns) - 1
        return [self._order(slot_ns, side=Side.BUY, quantity_wh=quantity, price_ticks=price)]

    def offer(self, event: DemandResponseEvent, stored_wh: float | None) -> DemandResponseOffer:
        """What the site can do in an event: from the plan's expected import and the battery's energy, or nothing."""
        outlook = self.outlook
        slots = _slots_of(event)
        hours = (event.end_ns - event.start_ns) / 3.6e12
        expected = [self._expected_grid_wh(slot) for slot in slots]
        if outlook.value is None or stored_wh is None or None in expected or event.target_w >= 0:
            return self._answer(event, 0, 0)
        baseline_w = sum(energy for energy in expected if energy is not None) / len(slots) * 3600 * 1e9 / SLOT_NS
        usable_wh = max(0.0, stored_wh - outlook.storage.reserve_wh) * outlook.storage.efficiency * _KEEP_SHARE
        possible_w = min(usable_wh / hours, outlook.storage.power_w, max(0.0, baseline_w))
        measured_w = baseline_w if event.baseline_w is None else float(event.baseline_w)
        possible_w = max(0.0, possible_w + measured_w - baseline_w)  # against what it will be measured by
        return self._answer(event, -round(min(possible_w, -event.target_w)), round(measured_w))

    def _expected_grid_wh(self, slot_ns: int) -> float | None:
        value = self.outlook.value
        if value is None:
            return None
        index = (slot_ns - value.start_ns) // SLOT_NS
        return self.outlook.grid_wh[index] if 0 <= index < len(self.outlook.grid_wh) else None

    def _answer(self, event: DemandResponseEvent, offered_w: int, baseline_w: int) -> DemandResponseOffer:
        return DemandResponseOffer(
            event_id=event.id,
            site_id=self.site_id,
            offered_w=offered_w,
            price_ticks=min(event.price_ticks, 1000),
            baseline_w=baseline_w,
        )


def _slots_of(event: DemandResponseEvent) -> list[int]:
    first = event.start_ns - event.start_ns % SLOT_NS
    return list(range(first, event.end_ns, SLOT_NS))
