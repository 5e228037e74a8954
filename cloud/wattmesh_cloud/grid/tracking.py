"""A running event: how far delivery is from dispatch, and who is asked for more or less."""

from __future__ import annotations

from collections.abc import Mapping

from wattmesh_cloud.grid.records import Delivery, Running


def needs(deliveries: Mapping[str, Delivery], required_w: float, tolerance: float) -> float:
    """Power that is missing (positive) or too much (negative) of what the event was dispatched for, beyond the tolerance; else 0.

    A site that is not measured is taken at its word: nobody is asked for more because a message is late.
    """
    delivered = sum(one.dispatched_w if one.delivered_w is None else one.delivered_w for one in deliveries.values())
    gap = required_w - delivered
    return gap if abs(gap) > tolerance * required_w else 0.0


def spare(running: Running, need_w: float, direction: int) -> dict[str, int]:
    """New magnitudes by site that cover what is missing, or give back what is too much.

    What is missing comes first from sites that deliver what they were asked for and offered more, then from those that were not
    taken, cheapest first. What is too much is given back by those that deliver most above their own dispatch; whoever delivers less
    than asked keeps its dispatch: it goes on trying.
    """
    if need_w > 0:
        return _more(running, need_w, direction)
    changed: dict[str, int] = {}
    left = -need_w
    order = sorted(running.deliveries.items(), key=lambda one: (-_excess(one[1]), one[0]))
    for site, one in order:
        if left <= 0 or one.delivered_w is None:
            break
        back = min(left, float(one.dispatched_w))
        if one.delivered_w >= one.dispatched_w and back >= 1:
            changed[site] = round(one.dispatched_w - back)
            left -= back
    return changed


def _excess(one: Delivery) -> float:
    return 0.0 if one.delivered_w is None else one.delivered_w - one.dispatched_w


def _more(running: Running, need_w: float, direction: int) -> dict[str, int]:
    changed: dict[str, int] = {}
    offers = sorted(
        running.offers.values(), key=lambda one: (one.site_id not in running.deliveries, one.price_ticks, one.site_id)
    )
    for offer in offers:
        if need_w < 1 or offer.price_ticks > running.event.price_ticks:
            continue
        now = running.deliveries.get(offer.site_id)
        asked = now.dispatched_w if now is not None else 0
        if now is not None and now.delivered_w is not None and now.delivered_w < 0.9 * asked:
            continue  # it does not reach what it was asked for
        room = direction * offer.offered_w - asked
        if room >= 1:
            step = min(need_w, float(room))
            changed[offer.site_id] = round(asked + step)
            need_w -= step
    return changed
