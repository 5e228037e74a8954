"""What a site can do in a demand-response event, and what it keeps for one that it has promised.

A promise is a level of exchange with the grid for the whole window: baseline plus dispatched power. The battery gives what the site
takes above it, so the energy that is needed is the area of the expected load above the level, and the lowest level that can be held
is found by filling that area from the top, as water under ice.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wattmesh_a2a.grid import (
    DemandResponseDispatch,
    DemandResponseEvent,
    DemandResponseOffer,
    FlexibilitySource,
    OfferPart,
)

from wattmesh_edge.agents.planner import CYCLE_COST_TICKS

if TYPE_CHECKING:
    from wattmesh_edge.agents.base import Outlook

SLOT_NS = 900_000_000_000
KEEP_SHARE = 0.8
"""Of the stored energy that a promise may count on: loads are not what was expected."""
RETURN_NS = 3 * SLOT_NS
"""Within so long after an event loads come back."""
WAIT_TICKS = 300
"""What a load asks for waiting, a kWh (3 ct)."""


def slots_of(start_ns: int, end_ns: int) -> list[int]:
    """The quarter hours of a window."""
    return list(range(start_ns - start_ns % SLOT_NS, end_ns, SLOT_NS))


def lowest_level_w(rests_w: Sequence[float], hours: float, power_w: float, energy_wh: float, least_w: float) -> float:
    """The lowest exchange that a battery can hold over some slots.

    Args:
        rests_w: What the site takes beside its battery in each slot.
        hours: Length of a slot.
        power_w: The battery's.
        energy_wh: What it can give, at its terminals.
        least_w: Not below this: what may be exported.
    """
    low, high = max(least_w, max(rests_w) - power_w), max(rests_w)
    if low >= high:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        needed = sum(max(0.0, rest - middle) for rest in rests_w) * hours
        low, high = (middle, high) if needed > energy_wh else (low, middle)
    return high


def offer_of(
    outlook: Outlook, site_id: str, event: DemandResponseEvent, stored_wh: float | None, waits_w: float
) -> DemandResponseOffer:
    """What the site can hold in an event, against what it will be measured by, in parts with their prices.

    Args:
        outlook: What is known of the coming day.
        site_id: The site.
        event: Asked for.
        stored_wh: Energy in the batteries; none where it is not known.
        waits_w: Mean power in the window of loads that would run in it and can wait until it is over.
    """
    slots = slots_of(event.start_ns, event.end_ns)
    known = [outlook.expected_net_wh(slot) for slot in slots]
    grid = [outlook.expected_grid_w(slot) for slot in slots]
    rests = [one[0] * 4 for one in known if one is not None]
    if stored_wh is None or len(rests) < len(slots) or event.target_w == 0:
        return _none(event, site_id)
    expected = [rest if power is None else power for rest, power in zip(rests, grid, strict=True)]
    usual_w = sum(expected) / len(expected)
    measured_w = usual_w if event.baseline_w is None else float(event.baseline_w)
    if event.target_w > 0:
        return _more(outlook, site_id, event, stored_wh, usual_w, measured_w)
    storage = outlook.storage
    energy = max(0.0, stored_wh - storage.reserve_wh) * storage.efficiency * KEEP_SHARE
    least = -outlook.export_limit_w
    with_battery = lowest_level_w(rests, SLOT_NS / 3.6e12, storage.power_w, energy, least)
    spared = [rest - min(waits_w, max(0.0, rest)) for rest in rests]
    with_all = lowest_level_w(spared, SLOT_NS / 3.6e12, storage.power_w, energy, least)
    offered = round(min(max(0.0, measured_w - with_all), -event.target_w))
    waiting = min(offered, round(max(0.0, with_battery - with_all)))
    parts = [
        OfferPart(
            source=FlexibilitySource.EV, power_w=-waiting, price_ticks=min(event.price_ticks, WAIT_TICKS),
            rebound_wh=round(waiting * (event.end_ns - event.start_ns) / 3.6e12),
        ),
        OfferPart(
            source=FlexibilitySource.BATTERY, power_w=waiting - offered,
            price_ticks=_battery_ticks(outlook, event, stored_wh, exports=with_all < 0),
        ),
    ]  # fmt: skip
    parts = [part for part in parts if part.power_w]
    price = max((part.price_ticks for part in parts), default=event.price_ticks)
    return DemandResponseOffer(
        event_id=event.id, site_id=site_id, offered_w=-offered, price_ticks=price, baseline_w=round(measured_w),
        parts=tuple(parts),
    )  # fmt: skip


def _none(event: DemandResponseEvent, site_id: str) -> DemandResponseOffer:
    return DemandResponseOffer(
        event_id=event.id, site_id=site_id, offered_w=0, price_ticks=event.price_ticks, baseline_w=event.baseline_w or 0
    )


def _more(
    outlook: Outlook, site_id: str, event: DemandResponseEvent, stored_wh: float, usual_w: float, measured_w: float
) -> DemandResponseOffer:
    """More import: what the battery can still take."""
    hours = (event.end_ns - event.start_ns) / 3.6e12
    room_w = max(0.0, outlook.storage.energy_wh - stored_wh) / outlook.storage.efficiency * KEEP_SHARE / hours
    able = usual_w + min(room_w, outlook.storage.power_w) - measured_w
    offered = round(min(max(0.0, able), event.target_w))
    return DemandResponseOffer(
        event_id=event.id, site_id=site_id, offered_w=offered, price_ticks=min(event.price_ticks, CYCLE_COST_TICKS),
        baseline_w=round(measured_w),
    )  # fmt: skip


def _battery_ticks(outlook: Outlook, event: DemandResponseEvent, stored_wh: float, *, exports: bool) -> int:
    """Least payment a kWh: what stored energy is worth later, with losses and wear, less what it brings in the event anyway."""
    tariff = outlook.tariff
    slope = outlook.value.slope_ticks(event.start_ns, stored_wh) if outlook.value is not None else None
    worth = float(tariff.import_price_ticks(event.end_ns)) if slope is None else slope
    brings = tariff.feed_in_ticks() if exports else tariff.import_price_ticks(event.start_ns)
    return max(CYCLE_COST_TICKS, round(worth / outlook.storage.efficiency + CYCLE_COST_TICKS - brings))


def promised_wh(outlook: Outlook, now_ns: int) -> float:
    """Energy that what was promised needs from now on, in the battery; 0 without a promise."""
    needed = 0.0
    for dispatch in outlook.dispatches.values():
        if dispatch.power_w >= 0 or dispatch.end_ns <= now_ns:
            continue
        level = dispatch.baseline_w + dispatch.power_w
        begin = max(now_ns, dispatch.start_ns)
        for slot in slots_of(begin, dispatch.end_ns):
            known = outlook.expected_net_wh(slot)
            hours = (min(slot + SLOT_NS, dispatch.end_ns) - max(slot, begin)) / 3.6e12
            needed += max(0.0, (known[0] * 4 if known is not None else 0.0) - level) * hours
    return needed / outlook.storage.efficiency / KEEP_SHARE


def called(outlook: Outlook, now_ns: int) -> bool:
    """Whether less import was promised for now: loads that can wait do so, and come back after it, each at its own time."""
    return any(
        one.power_w < 0 and one.start_ns <= now_ns < one.end_ns + _return_ns(one) for one in outlook.dispatches.values()
    )


def _return_ns(dispatch: DemandResponseDispatch) -> int:
    """How long after an event a site's loads stay away: drawn once by its names, so that not all of them begin together."""
    return zlib.crc32(f"{dispatch.event_id}/{dispatch.site_id}".encode()) * RETURN_NS >> 32
