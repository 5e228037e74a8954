"""The newest values and the last hour of every site, in memory: what the console and live API show."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

from wattmesh_a2a.telemetry import ColumnBatch

from wattmesh_cloud.frames import BAD, Samples

ROWS = 720

KEY_POINTS = ("grid_w", "pv_w", "battery_w", "load_w", "soc_percent", "frequency_hz")


@dataclass(slots=True)
class SiteLive:
    """One site."""

    time_ns: int = 0
    columns: tuple[str, ...] = ()
    values: list[float | None] = field(default_factory=list)
    """One a column; none where the quality is bad."""
    flows: dict[str, float | None] = field(default_factory=dict)
    """:data:`KEY_POINTS`, passive sign."""
    recent: deque[tuple[int, dict[str, float | None]]] = field(default_factory=lambda: deque(maxlen=ROWS))

    @property
    def points(self) -> dict[str, float | None]:
        """``asset.point`` → value."""
        return dict(zip(self.columns, self.values, strict=True))


class LiveView:
    """Fed with batches as they become durable."""

    def __init__(self) -> None:
        self.sites: dict[str, SiteLive] = {}

    def on_columns(self, batch: Samples | ColumnBatch) -> None:
        """Take a batch; an old one (backlog) does not overwrite newer values."""
        site = self.sites.setdefault(batch.site_id, SiteLive())
        if not len(batch.times_ns) or batch.times_ns[-1] <= site.time_ns:
            return
        site.time_ns = int(batch.times_ns[-1])
        if isinstance(batch, Samples):
            newest, qualities = batch.values[:, -1].tolist(), batch.qualities[:, -1].tolist()
        else:
            newest, qualities = [one[-1] for one in batch.values], [one[-1] for one in batch.qualities]
        site.columns = batch.columns
        site.values = [
            None if quality == BAD or math.isnan(value) else value
            for value, quality in zip(newest, qualities, strict=True)
        ]
        site.flows = _flows(_roles(batch.columns), site.values)
        site.recent.append((site.time_ns, site.flows))


@dataclass(frozen=True, slots=True)
class _Roles:
    """Where among the columns the key points stand."""

    grid: int | None
    frequency: int | None
    batteries: tuple[int | None, ...]
    inverters: tuple[int | None, ...]
    socs: tuple[int, ...]


@lru_cache(maxsize=4096)
def _roles(columns: tuple[str, ...]) -> _Roles:
    """The grid meter is the asset with imported energy, a battery has a state of charge, an inverter energy produced."""
    places = {name: index for index, name in enumerate(columns)}
    assets = sorted({name.partition(".")[0] for name in columns})
    grid = next((asset for asset in assets if f"{asset}.energy_import_wh" in places), None)
    batteries = [asset for asset in assets if f"{asset}.soc_percent" in places]
    inverters = [asset for asset in assets if f"{asset}.energy_produced_wh" in places]
    return _Roles(
        grid=places.get(f"{grid}.active_power_w"),
        frequency=places.get(f"{grid}.frequency_hz"),
        batteries=tuple(places.get(f"{asset}.active_power_w") for asset in batteries),
        inverters=tuple(places.get(f"{asset}.active_power_w") for asset in inverters),
        socs=tuple(places[f"{asset}.soc_percent"] for asset in batteries),
    )


def flows_of(points: dict[str, float | None]) -> dict[str, float | None]:
    """Power flows from a site's points."""
    return _flows(_roles(tuple(points)), list(points.values()))


def _flows(roles: _Roles, values: list[float | None]) -> dict[str, float | None]:
    def at(index: int | None) -> float | None:
        return None if index is None else values[index]

    grid_w = at(roles.grid)
    battery_w = _sum([at(index) for index in roles.batteries])
    pv_w = _sum([at(index) for index in roles.inverters])
    socs = [value for index in roles.socs if (value := values[index]) is not None]
    return {
        "grid_w": grid_w,
        "pv_w": pv_w,
        "battery_w": battery_w,
        "load_w": None if grid_w is None or battery_w is None or pv_w is None else grid_w - battery_w - pv_w,
        "soc_percent": sum(socs) / len(socs) if socs else None,
        "frequency_hz": at(roles.frequency),
    }


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
