"""What sites take now, from the newest telemetry."""

from __future__ import annotations

from wattmesh_cloud.grid.areas import SiteMeasurement
from wattmesh_cloud.live import LiveView, SiteLive

_PHASES = ("voltage_l1_v", "voltage_l2_v", "voltage_l3_v")


def measured(live: LiveView) -> dict[str, SiteMeasurement]:
    """Every site that has told something."""
    return {site: _measurement(one) for site, one in live.sites.items()}


def _measurement(site: SiteLive) -> SiteMeasurement:
    flows = site.flows
    return SiteMeasurement(
        time_ns=site.time_ns,
        grid_w=flows.get("grid_w"),
        load_w=flows.get("load_w"),
        pv_w=flows.get("pv_w"),
        battery_w=flows.get("battery_w"),
        soc_percent=flows.get("soc_percent"),
        voltage_v=_voltage(site),
    )


def _voltage(site: SiteLive) -> float | None:
    """Mean of the phases at the grid meter, which is the device that counts imported energy; none where it tells none."""
    grid = next((name.partition(".")[0] for name in site.columns if name.endswith(".energy_import_wh")), None)
    points = site.points if grid is not None else {}
    known = [value for phase in _PHASES if (value := points.get(f"{grid}.{phase}")) is not None]
    return sum(known) / len(known) if known else None
