"""A running event: how far delivery is from dispatch, and who is asked for more or less."""

from __future__ import annotations

from collections.abc import Mapping

from wattmesh_cloud.grid.records import Delivery, Running

_MOST = 0.5
"""Of what an event has to deliver: the most that is asked beyond it to make up for what was missed."""


def look(running: Running, grid_w: Mapping[str, float | None], seconds: float) -> None:
    """Take what the sites exchange now into the sums since the last time that something was decided.

    Args:
        running: The event.
        grid_w: By site; none where it is not known.
        seconds: Since the last look.
    """
    direction = -1 if running.event.target_w < 0 else 1
    for site in running.dispatched:
        power = grid_w.get(site)
        if power is not None:
            total, length = running.sums.get(site, (0.0, 0.0))
            delivered = direction * (power - running.baselines[site].mean_w)
            running.sums[site] = (total + delivered * seconds, length + seconds)


def conclude(running: Running, seconds: float) -> None:
    """Mean delivery of each site since the last time, and what the event has missed so far; the sums begin anew.

    A site that is not measured is taken at its word: nobody is asked for more because a message is late.
    """
    for site, dispatch in running.dispatched.items():
        total, length = running.sums.get(site, (0.0, 0.0))
        running.deliveries[site] = Delivery(abs(dispatch.power_w), total / length if length else None)
    running.sums.clear()
    running.missed_wh += (running.required_w - _delivered(running.deliveries)) * seconds / 3600


def _delivered(deliveries: Mapping[str, Delivery]) -> float:
    return sum(one.dispatched_w if one.delivered_w is None else one.delivered_w for one in deliveries.values())


def needs(running: Running, left_s: float, tolerance: float) -> float:
    """Power that is missing (positive) or too much (negative) from now on; 0 within half of the tolerance.

    What was missed or given too much is made up for in the time that is left. Half of the tolerance: so that all of it is kept.
    """
    made_up = running.missed_wh / max(left_s / 3600, 0.25)
    most = _MOST * running.required_w
    gap = running.required_w - _delivered(running.deliveries) + min(max(made_up, -most), most)
    return gap if abs(gap) > tolerance / 2 * running.required_w else 0.0


def spare(running: Running, need_w: float, direction: int) -> dict[str, int]:
    """New magnitudes by site that cover what is missing, or give back what is too much.

    What is missing comes first from sites that deliver what they were asked for and offered more, then from those that were not
    taken, cheapest first. What is too much is given back by those that deliver just what they were asked for: they work for it. Who
    delivers far more by itself would not notice; whoever delivers less keeps its dispatch: it goes on trying.
    """
    if need_w > 0:
        return _more(running, need_w, direction)
    changed: dict[str, int] = {}
    left = -need_w
    for site, one in sorted(running.deliveries.items(), key=lambda row: (abs(_excess(row[1])), row[0])):
        if left < 1:
            break
        if one.delivered_w is None or one.delivered_w < 0.9 * one.dispatched_w:
            continue
        back = min(left, float(one.dispatched_w))
        if back >= 1:
            changed[site] = round(one.dispatched_w - back)
            left -= max(0.0, back - max(0.0, _excess(one)))
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
