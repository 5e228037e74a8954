"""In which order the sites of an area come back after a blackout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattmesh_cloud.grid.areas import SiteMeasurement
from wattmesh_cloud.grid.config import AreaConfig
from wattmesh_cloud.grid.feeder import Feeder

_LEAST_W = 200.0
"""Taken for a site whose load is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Sites that come back together."""

    sites: tuple[str, ...]
    import_limit_w: Mapping[str, int]
    """Most that each may import until the black start is over."""
    block_w: float
    """What the step adds, with cold load pick-up."""


def black_start_order(
    config: AreaConfig,
    feeder: Feeder | None,
    measured: Mapping[str, SiteMeasurement],
    *,
    block_share: float,
    pickup: float,
) -> list[Step]:
    """First those that can form a grid, the fullest battery first; then critical sites; then the others, nearest first.

    A step adds no more load than a share of the grid-forming power that is up, as a block of load that is too large takes the
    frequency down (Adibi and Fink, *Power system restoration planning*, IEEE Trans. Power Systems 9(1), 1994); after an outage a
    load is some times what it was before (cold load pick-up). A site that is larger than a block comes alone, with a lower limit.

    Args:
        config: The area.
        feeder: For distances; none: by name.
        measured: Loads and charge as they were known last.
        block_share: Largest block over grid-forming power.
        pickup: Load after an outage over load before.
    """

    def load_w(site: str) -> float:
        one = measured.get(site)
        return max(_LEAST_W, one.load_w) * pickup if one is not None and one.load_w is not None else _LEAST_W * pickup

    def charge(site: str) -> float:
        one = measured.get(site)
        return one.soc_percent if one is not None and one.soc_percent is not None else 0.0

    def distance(site: str) -> int:
        return feeder.distance(config.sites[site]) if feeder is not None else 0

    forming = sorted(config.grid_forming, key=lambda site: (-charge(site), site))
    steps = [Step(sites=(site,), import_limit_w={site: round(load_w(site))}, block_w=0.0) for site in forming]
    block = block_share * sum(config.grid_forming.values())
    rest = sorted(
        (site for site in config.sites if site not in forming),
        key=lambda site: (site not in config.critical, distance(site), site),
    )
    sites: list[str] = []
    size = 0.0
    for site in rest:
        new_kind = bool(sites) and (sites[-1] in config.critical) != (site in config.critical)
        if sites and (size + load_w(site) > block or new_kind):
            steps.append(_step(sites, size, block, load_w))
            sites, size = [], 0.0
        sites.append(site)
        size += load_w(site)
    if sites:
        steps.append(_step(sites, size, block, load_w))
    return steps


def _step(sites: list[str], size: float, block: float, load_w: Callable[[str], float]) -> Step:
    limits = {site: round(min(block, load_w(site))) for site in sites}
    return Step(sites=tuple(sites), import_limit_w=limits, block_w=min(size, block))
