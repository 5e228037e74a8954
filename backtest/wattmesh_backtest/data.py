"""What a backtest plays: a recorded year of five homes, or a folder of CSV files.

A folder holds ``backtest.yaml`` and a CSV a site, named as the site::

    version: 1
    currency: EUR
    time_zone: Europe/Berlin            # of the tariff and of days
    tariff: {feed_in_price: 0.08, default_price: 0.30, periods: [...]}      # as in a site file
    sites:
      home-1: {battery: {energy_wh: 10000, power_w: 5000}, import_limit_w: 17000, export_limit_w: 7000}
      home-2: {}                        # no battery

The CSV has the columns ``slot_start_utc,load_wh,pv_wh``: a row for each quarter, half or whole hour, in order, times as
``2026-06-30T12:00:00Z``, energies not negative. A row that is missing, or whose energy is empty, is a gap: that time is played for
nobody, at any site, and is told in the result; nothing is filled with zero.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel, load_yaml_model
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.tariff import Tariff
from wattmesh_a2a.tariff_file import TariffModel
from wattmesh_simulators.demo_fleet import TARIFF, TIME_ZONE
from wattmesh_simulators.plant import data as homes

NS_PER_S = 1_000_000_000
SLOT_NS = 900 * NS_PER_S
BUILT_IN = "citylearn_2022"
_COLUMNS = ["slot_start_utc", "load_wh", "pv_wh"]
_STEPS_S = (900, 1800, 3600)
_LARGEST_WH = 1e9
_MOST_ROWS = 2_000_000


class BatteryModel(StrictModel):
    """A site's battery, at its AC terminals."""

    energy_wh: float = Field(gt=0, le=1e9)
    power_w: float = Field(gt=0, le=1e9)


class SiteModel(StrictModel):
    """One site of a folder."""

    battery: BatteryModel | None = None
    import_limit_w: float = Field(default=17_000.0, gt=0)
    export_limit_w: float = Field(default=17_000.0, ge=0)
    reserve_soc_percent: float = Field(default=5.0, ge=0, le=90)


class FolderModel(StrictModel):
    """``backtest.yaml``."""

    version: Literal[1]
    currency: str = "EUR"
    time_zone: str = "UTC"
    tariff: TariffModel
    sites: dict[str, SiteModel] = Field(min_length=1, max_length=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """One site: what it takes and makes in each quarter hour, and what it has."""

    id: str
    load_wh: tuple[float, ...]
    """One a slot; NaN in a gap."""
    pv_wh: tuple[float, ...]
    battery_wh: float = 0.0
    """0: none."""
    battery_w: float = 0.0
    import_limit_w: float = 17_000.0
    export_limit_w: float = 17_000.0
    reserve_soc_percent: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What is played."""

    name: str
    start_ns: int
    sites: tuple[SiteData, ...]
    tariff: Tariff
    tariff_model: TariffModel
    currency: str
    played: tuple[bool, ...]
    """By slot: whether every site's data are whole there."""

    @property
    def slots(self) -> int:
        """How many quarter hours."""
        return len(self.played)

    @property
    def gaps(self) -> int:
        """Quarter hours that are not played."""
        return self.slots - sum(self.played)


def load_period(source: str, start: datetime | None = None, days: int | None = None) -> Period:
    """The built-in year by its name, or a folder.

    Args:
        source: :data:`BUILT_IN` or a folder's path.
        start: UTC; none for the first quarter hour.
        days: How many; none for all.

    Raises:
        ConfigurationError: Names file, line and what is wrong.
    """
    if source == BUILT_IN:
        return _built_in(start, days)
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigurationError(f"{source}: there is no such folder; the built-in data are called {BUILT_IN}")
    return _from_folder(folder, start, days)


def _span(first_ns: int, slots: int, start: datetime | None, days: int | None, what: str) -> tuple[int, int]:
    """First slot and number of slots of the wanted part."""
    skip = 0 if start is None else (round(start.timestamp()) * NS_PER_S - first_ns) // SLOT_NS
    left = slots - skip
    count = left if days is None else days * 96
    if skip < 0 or count <= 0 or count > left:
        begin = datetime.fromtimestamp(first_ns // NS_PER_S, tz=UTC)
        raise ConfigurationError(
            f"{what} goes from {begin:%Y-%m-%dT%H:%MZ} over {slots // 96} days; the part that was asked for is not in it"
        )
    return skip, count


def _built_in(start: datetime | None, days: int | None) -> Period:
    slots = homes.HOURS * 4
    skip, count = _span(homes.FIRST_NS, slots, start, days, BUILT_IN)
    first = homes.FIRST_NS + skip * SLOT_NS
    sites = []
    for number in range(1, 6):
        rows = list(homes.history_rows(f"b{number:02d}", first, first + count * SLOT_NS))
        sites.append(
            SiteData(
                id=f"home-{number}",
                load_wh=tuple(load for _, load, _ in rows),
                pv_wh=tuple(pv for _, _, pv in rows),
                battery_wh=6400.0,
                battery_w=5000.0,
                import_limit_w=12_000.0,
                export_limit_w=8_000.0,
            )
        )
    model = TariffModel.model_validate(dict(TARIFF))
    return Period(
        name=BUILT_IN, start_ns=first, sites=tuple(sites), tariff=model.tariff(TIME_ZONE), tariff_model=model,
        currency="USD", played=(True,) * count,
    )  # fmt: skip


def _from_folder(folder: Path, start: datetime | None, days: int | None) -> Period:
    model = load_yaml_model(folder / "backtest.yaml", FolderModel)
    tariff = model.tariff.tariff(model.time_zone)
    tariff.zone()
    tables = {name: _read(folder / f"{name}.csv") for name in model.sites}
    first = max(min(table) for table in tables.values())
    last = min(max(table) for table in tables.values())
    if last < first:
        raise ConfigurationError(f"{folder}: the sites' files have no time in common")
    skip, count = _span(first, (last - first) // SLOT_NS + 1, start, days, str(folder))
    first += skip * SLOT_NS
    slots = range(first, first + count * SLOT_NS, SLOT_NS)
    nothing = (math.nan, math.nan)
    sites = []
    for name, one in model.sites.items():
        rows = [tables[name].get(slot, nothing) for slot in slots]
        sites.append(
            SiteData(
                id=name,
                load_wh=tuple(load for load, _ in rows),
                pv_wh=tuple(pv for _, pv in rows),
                battery_wh=one.battery.energy_wh if one.battery else 0.0,
                battery_w=one.battery.power_w if one.battery else 0.0,
                import_limit_w=one.import_limit_w,
                export_limit_w=one.export_limit_w,
                reserve_soc_percent=one.reserve_soc_percent,
            )
        )
    played = tuple(
        not any(math.isnan(site.load_wh[at]) or math.isnan(site.pv_wh[at]) for site in sites) for at in range(count)
    )
    if not any(played):
        raise ConfigurationError(f"{folder}: there is no quarter hour in which every site has data")
    return Period(
        name=folder.resolve().name, start_ns=first, sites=tuple(sites), tariff=tariff, tariff_model=model.tariff,
        currency=model.currency, played=played,
    )  # fmt: skip


def _read(path: Path) -> dict[int, tuple[float, float]]:
    """Quarter hours of a file; energy of longer steps is spread evenly."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file; every site of backtest.yaml needs one")
    rows: list[tuple[int, float, float]] = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if next(reader, []) != _COLUMNS:
            raise ConfigurationError(f"{path}: line 1 has to be {','.join(_COLUMNS)}")
        for number, row in enumerate(reader, 2):
            if number > _MOST_ROWS:
                raise ConfigurationError(f"{path}: more than {_MOST_ROWS} lines")
            if row:
                rows.append(_row(path, number, row))
                if len(rows) > 1 and rows[-1][0] <= rows[-2][0]:
                    raise ConfigurationError(f"{path}: line {number}: the times have to rise")
    if len(rows) < 2:
        raise ConfigurationError(f"{path}: needs at least two rows")
    step = min(later[0] - earlier[0] for earlier, later in pairwise(rows))
    if step not in {one * NS_PER_S for one in _STEPS_S} or any(time % step for time, _, _ in rows):
        raise ConfigurationError(f"{path}: rows have to be a quarter, half or whole hour apart, and begin with one")
    parts = step // SLOT_NS
    return {time + part * SLOT_NS: (load / parts, pv / parts) for time, load, pv in rows for part in range(parts)}


def _row(path: Path, number: int, row: list[str]) -> tuple[int, float, float]:
    where = f"{path}: line {number}"
    if len(row) != len(_COLUMNS):
        raise ConfigurationError(f"{where}: {len(row)} columns, has to be {len(_COLUMNS)}")
    try:
        stamp = datetime.fromisoformat(row[0])
        if stamp.utcoffset() != timedelta(0):
            raise ConfigurationError(f"{where}: {row[0]!r} is not UTC; write 2026-06-30T12:00:00Z")
        energies = [float(text) if text.strip() else math.nan for text in row[1:]]
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    for name, value in zip(_COLUMNS[1:], energies, strict=True):
        if value < 0 or value > _LARGEST_WH:
            raise ConfigurationError(f"{where}: {name} is {value:g}; has to be between 0 and {_LARGEST_WH:g}")
    return round(stamp.timestamp()) * NS_PER_S, energies[0], energies[1]


def prices(period: Period) -> Mapping[str, list[int]]:
    """Import price and feed-in of each slot, in ticks."""
    slots = range(period.start_ns, period.start_ns + period.slots * SLOT_NS, SLOT_NS)
    feed_in = period.tariff.feed_in_ticks()
    return {"import": [period.tariff.import_price_ticks(slot) for slot in slots], "feed_in": [feed_in] * period.slots}
