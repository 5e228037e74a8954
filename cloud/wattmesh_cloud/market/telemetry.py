"""What a site could deliver, from its announcement and its newest measured points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wattmesh_cloud.live import SiteLive
from wattmesh_cloud.market.risk import SiteState


def site_state(announcement: Mapping[str, Any], live: SiteLive) -> SiteState | None:
    """Ratings from the announcement, stored energy from the state of charge; none while a battery does not say how full it is.

    What a battery keeps in reserve is the site's own matter: its gateway offers less, and this is the physical edge.
    """
    output = generation = stored = 0.0
    for asset in announcement.get("assets", ()):
        power = asset.get("rated_power_w") or 0.0
        if asset.get("kind") == "inverter":
            output += power
            generation += power
        elif asset.get("kind") == "battery":
            soc = live.points.get(f"{asset.get('id')}.soc_percent")
            if soc is None:
                return None
            output += power
            stored += (asset.get("rated_energy_wh") or 0.0) * soc / 100
    return SiteState(time_ns=live.time_ns, output_w=int(output), generation_w=int(generation), stored_wh=int(stored))
