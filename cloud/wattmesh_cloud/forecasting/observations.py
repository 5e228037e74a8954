"""What was true of a quarter hour beside its energies: traded price, flexibility of each site, distance of the frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wattmesh_a2a.market import Trade

from wattmesh_cloud.forecasting.side import FLEXIBILITY_DOWN, FLEXIBILITY_UP, FREQUENCY_RISK, PRICE, Key
from wattmesh_cloud.live import LiveView

_SLOT_NS = 900_000_000_000
_ONE_WAY = 0.95
"""Of a battery, where nothing is known of it."""


def observed(
    slot_ns: int,
    *,
    area: str,
    trades: Sequence[Trade],
    live: LiveView,
    announcements: Mapping[str, Mapping[str, Any]],
    nominal_hz: float,
) -> dict[Key, float]:
    """Values by owner and quantity; what is not known is left out.

    Args:
        slot_ns: Start of the quarter hour, which has just ended.
        area: Of the market.
        trades: Of that slot.
        live: Newest measured points and the last hours of each site.
        announcements: Site → its announcement.
        nominal_hz: Of the grid.
    """
    found: dict[Key, float] = {}
    volume = sum(trade.quantity_wh for trade in trades)
    if volume:
        found[area, PRICE] = sum(trade.quantity_wh * trade.price_ticks for trade in trades) / volume
    strayed = [
        abs(hz - nominal_hz)
        for site in live.sites.values()
        for time_ns, flows in site.recent
        if slot_ns <= time_ns < slot_ns + _SLOT_NS and (hz := flows.get("frequency_hz")) is not None
    ]
    if strayed:
        found[area, FREQUENCY_RISK] = max(strayed) * 1000
    for site, announcement in announcements.items():
        state = live.sites.get(site)
        soc = state.flows.get("soc_percent") if state is not None else None
        fresh = state is not None and state.time_ns >= slot_ns
        batteries = [one for one in announcement.get("assets", ()) if one.get("kind") == "battery"]
        power = sum(one.get("rated_power_w") or 0.0 for one in batteries)
        energy = sum(one.get("rated_energy_wh") or 0.0 for one in batteries)
        if soc is None or not fresh or not power or not energy:
            continue
        found[site, FLEXIBILITY_UP] = min(power, soc / 100 * energy * _ONE_WAY)
        found[site, FLEXIBILITY_DOWN] = min(power, (1 - soc / 100) * energy / _ONE_WAY)
    return found
