"""The newest values and the last hour of every site, in memory: what the console and live API show."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from wattmesh_a2a.telemetry import ColumnBatch

ROWS = 720

KEY_POINTS = ("grid_w", "pv_w", "battery_w", "load_w", "soc_percent", "frequency_hz")


@dataclass(slots=True)
class SiteLive:
    """One site."""

    time_ns: int = 0
    points: dict[str, float | None] = field(default_factory=dict)
    """``asset.point`` → value; none where the quality is bad."""
    flows: dict[str, float | None] = field(default_factory=dict)
    """:data:`KEY_POINTS`, passive sign."""
    recent: deque[tuple[int, dict[str, float | None]]] = field(default_factory=lambda: deque(maxlen=ROWS))


class LiveView:
    """Fed with batches as they become durable."""

    def __init__(self) -> None:
        self.sites: dict[str, SiteLive] = {}

    def on_columns(self, batch: ColumnBatch) -> None:
        """Take a batch; an old one (backlog) does not overwrite newer values."""
        site = self.sites.setdefault(batch.site_id, SiteLive())
        if not batch.times_ns or batch.times_ns[-1] <= site.time_ns:
            return
        last = len(batch.times_ns) - 1
        site.time_ns = batch.times_ns[last]
        site.points = {name: _value(batch, index, last) for index, name in enumerate(batch.columns)}
        site.flows = flows_of(site.points)
        site.recent.append((site.time_ns, site.flows))


def _value(batch: ColumnBatch, column: int, row: int) -> float | None:
    value = batch.values[column][row]
    return None if batch.qualities[column][row] == 2 or math.isnan(value) else value


def flows_of(points: dict[str, float | None]) -> dict[str, float | None]:
    """Power flows from a site's points. The grid meter is the asset with imported energy, a battery has a state of charge."""
    assets = {name.partition(".")[0] for name in points}
    grid = next((asset for asset in assets if f"{asset}.energy_import_wh" in points), None)
    batteries = [asset for asset in assets if f"{asset}.soc_percent" in points]
    inverters = [asset for asset in assets if f"{asset}.energy_produced_wh" in points]
    grid_w = points.get(f"{grid}.active_power_w") if grid else None
    battery_w = _sum([points.get(f"{asset}.active_power_w") for asset in batteries])
    pv_w = _sum([points.get(f"{asset}.active_power_w") for asset in inverters])
    load_w = None if grid_w is None or battery_w is None or pv_w is None else grid_w - battery_w - pv_w
    socs = [value for asset in batteries if (value := points.get(f"{asset}.soc_percent")) is not None]
    return {
        "grid_w": grid_w,
        "pv_w": pv_w,
        "battery_w": battery_w,
        "load_w": load_w,
        "soc_percent": sum(socs) / len(socs) if socs else None,
        "frequency_hz": points.get(f"{grid}.frequency_hz") if grid else None,
    }


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
