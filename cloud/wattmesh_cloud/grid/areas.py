"""Load balance and voltage of the areas: what is measured, what a feeder's model makes of it, and warnings ahead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.forecast import Forecast

from wattmesh_cloud.grid.config import AreaConfig
from wattmesh_cloud.grid.feeder import SOURCE, Feeder, Flow, Line
from wattmesh_cloud.store.base import JsonValue

_SLOT_NS = 900 * NS_PER_S
_STALE_NS = 300 * NS_PER_S
_AHEAD_SLOTS = 96
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMeasurement:
    """What is known of a site's connection now."""

    time_ns: int
    grid_w: float | None
    """Import positive; none where it is not known."""
    load_w: float | None = None
    pv_w: float | None = None
    """Negative while producing."""
    battery_w: float | None = None
    soc_percent: float | None = None
    voltage_v: float | None = None
    """Phase to neutral, the mean of the phases that are measured."""


Measurements = Callable[[], Mapping[str, SiteMeasurement]]
Forecasts = Callable[[], Mapping[str, Mapping[str, Forecast]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """An area's load and production now; sums over the sites that are known."""

    area_id: str
    time_ns: int
    sites: int
    known: int
    """How many of them have told something in the last 5 min."""
    grid_w: float
    load_w: float
    pv_w: float
    battery_w: float
    rated_w: float | None
    loading: float | None
    """Magnitude of the exchange over what is rated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVoltage:
    """A site's voltage."""

    site_id: str
    node: str
    measured_pu: float | None
    modelled_pu: float | None
    """By the feeder's model from what the sites take; none without a feeder."""
    low_pu: float
    high_pu: float
    outside: bool
    """What is measured counts, and the model where nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyWarning:
    """Something that will be outside its limit, by the forecasts."""

    id: str
    area_id: str
    kind: str
    """``overload``, ``line_overload``, ``under_voltage`` or ``over_voltage``."""
    element: str
    """The transformer, a line's outer node, a site."""
    start_ns: int
    end_ns: int
    lead_s: int
    """From now to its start; 0 where it has begun."""
    value: float
    """The worst expected, in per unit of the limit's base: loading, or voltage."""
    limit: float
    level: str
    """``expected`` by the median, or ``possible`` by the upper quantiles (taken as independent between sites)."""


class AreaMonitor:
    """Views over areas.

    Args:
        areas: From the cloud's file; none for one area of every site.
        forecasts: Newest forecasts by site and quantity.
        measurements: Newest measurements by site.
    """

    def __init__(self, areas: Iterable[AreaConfig], forecasts: Forecasts, measurements: Measurements) -> None:
        self._configs = {area.id: area for area in areas}
        self._forecasts = forecasts
        self._measurements = measurements
        self._feeders = {
            area.id: Feeder(
                [
                    Line(start=one.start, end=one.end, r_ohm=one.r_ohm, x_ohm=one.x_ohm, limit_a=one.limit_a)
                    for one in area.lines
                ],
                nominal_v=area.nominal_v,
                rated_va=area.rated_w,
            )
            for area in self._configs.values()
            if area.lines
        }

    def ids(self) -> list[str]:
        """The areas' names."""
        return list(self._configs) or [ALL]

    def config(self, area_id: str) -> AreaConfig | None:
        """An area's section; none for the area of all sites."""
        return self._configs.get(area_id)

    def feeder(self, area_id: str) -> Feeder | None:
        """An area's feeder; none where it is not known."""
        return self._feeders.get(area_id)

    def sites(self, area_id: str) -> list[str]:
        """The sites of an area, known or not; none for an area that is not there."""
        config = self._configs.get(area_id)
        if config is not None:
            return sorted(config.sites)
        return sorted({*self._forecasts(), *self._measurements()}) if area_id == ALL and not self._configs else []

    def area_of(self, site: str) -> str | None:
        """Where a site is; none where no area has it."""
        if not self._configs:
            return ALL
        return next((area for area, config in self._configs.items() if site in config.sites), None)

    def balance(self, area_id: str, now_ns: int) -> Balance:
        """An area's sums now; what is not known is not in them."""
        sites = self.sites(area_id)
        fresh = self._fresh(sites, now_ns)
        config = self._configs.get(area_id)
        grid = sum(one.grid_w or 0.0 for one in fresh.values())
        rated = None if config is None else config.rated_w
        return Balance(
            area_id=area_id,
            time_ns=now_ns,
            sites=len(sites),
            known=len(fresh),
            grid_w=grid,
            load_w=sum(one.load_w or 0.0 for one in fresh.values()),
            pv_w=sum(one.pv_w or 0.0 for one in fresh.values()),
            battery_w=sum(one.battery_w or 0.0 for one in fresh.values()),
            rated_w=rated,
            loading=None if rated is None else abs(grid) / rated,
        )

    def _fresh(self, sites: Iterable[str], now_ns: int) -> dict[str, SiteMeasurement]:
        measured = self._measurements()
        return {
            site: one
            for site in sites
            if (one := measured.get(site)) is not None and one.grid_w is not None and now_ns - one.time_ns <= _STALE_NS
        }

    def voltages(self, area_id: str, now_ns: int) -> list[NodeVoltage]:
        """Each site's voltage: measured, and by the model. The model is moved so that it meets what is measured in the mean."""
        config = self._configs.get(area_id)
        if config is None:
            return [self._voltage(site, SOURCE, None, None, 0.10, now_ns) for site in self.sites(area_id)]
        fresh = self._fresh(config.sites, now_ns)
        modelled: dict[str, float] = {}
        if area_id in self._feeders:
            flow = self._flow(config, {site: one.grid_w or 0.0 for site, one in fresh.items()})
            modelled = {site: flow.voltage_pu[node] for site, node in config.sites.items()}
            base = config.nominal_v / math.sqrt(3)
            off = [one.voltage_v / base - modelled[site] for site, one in fresh.items() if one.voltage_v is not None]
            shift = sum(off) / len(off) if off else 0.0
            modelled = {site: value + shift for site, value in modelled.items()}
        return [
            self._voltage(site, node, modelled.get(site), config.nominal_v / math.sqrt(3), config.voltage_band, now_ns)
            for site, node in sorted(config.sites.items())
        ]

    def _voltage(
        self, site: str, node: str, modelled: float | None, base_v: float | None, band: float, now_ns: int
    ) -> NodeVoltage:
        one = self._fresh([site], now_ns).get(site)
        measured = one.voltage_v / base_v if one is not None and one.voltage_v is not None and base_v else None
        value = measured if measured is not None else modelled
        low, high = 1 - band, 1 + band
        return NodeVoltage(
            site_id=site, node=node, measured_pu=measured, modelled_pu=modelled, low_pu=low, high_pu=high,
            outside=value is not None and not low <= value <= high,
        )  # fmt: skip

    def _flow(self, config: AreaConfig, grid_w: Mapping[str, float]) -> Flow:
        """A feeder with these exchanges; reactive power follows what is imported."""
        tangent = math.tan(math.acos(config.power_factor))
        active: dict[str, float] = {}
        reactive: dict[str, float] = {}
        for site, power in grid_w.items():
            node = config.sites[site]
            active[node] = active.get(node, 0.0) + power
            reactive[node] = reactive.get(node, 0.0) + max(0.0, power) * tangent
        return self._feeders[config.id].flow(active, reactive)

    # -- ahead

    def warnings(self, now_ns: int) -> list[EarlyWarning]:
        """What the forecasts of the coming day put outside its limits, the soonest first."""
        found: list[EarlyWarning] = []
        for config in self._configs.values():
            marks: dict[tuple[str, str, str], list[tuple[int, float, float]]] = {}
            first = now_ns - now_ns % _SLOT_NS
            for slot in range(first, first + _AHEAD_SLOTS * _SLOT_NS, _SLOT_NS):
                for level, grid_w in self._expected(config, slot):
                    for kind, element, value, limit in self._broken(config, grid_w):
                        marks.setdefault((kind, element, level), []).append((slot, value, limit))
            expected = {(kind, element) for kind, element, level in marks if level == "expected"}
            for (kind, element, level), rows in marks.items():
                if level == "possible" and (kind, element) in expected:
                    continue
                found.append(_warning(config.id, kind, element, level, rows, now_ns))
        return sorted(found, key=lambda one: (one.start_ns, one.area_id, one.kind, one.element))

    def _expected(self, config: AreaConfig, slot: int) -> list[tuple[str, dict[str, float]]]:
        """Exchange by site in a slot: the median, and the upper and lower quantiles of the area's sum; nothing where not known."""
        middle, spread_up, spread_down = {}, {}, {}
        for site in config.sites:
            row = _net_w(self._forecasts().get(site, {}), slot)
            if row is None:
                continue
            low, median, high = row
            middle[site], spread_up[site], spread_down[site] = median, high - median, median - low
        if not middle:
            return []
        up, down = (_independent(spread) for spread in (spread_up, spread_down))
        return [
            ("expected", middle),
            ("possible", {site: middle[site] + up[site] for site in middle}),
            ("possible", {site: middle[site] - down[site] for site in middle}),
        ]

    def _broken(self, config: AreaConfig, grid_w: Mapping[str, float]) -> list[tuple[str, str, float, float]]:
        loading = abs(sum(grid_w.values())) / config.rated_w
        found = [("overload", SOURCE, loading, 1.0)] if loading > 1 else []
        if config.id not in self._feeders:
            return found
        flow = self._flow(config, grid_w)
        for node, current in flow.line_current_a.items():
            part = current / self._feeders[config.id].lines[node].limit_a
            if part > 1:
                found.append(("line_overload", node, part, 1.0))
        for site, node in config.sites.items():
            value = flow.voltage_pu[node]
            if value < 1 - config.voltage_band:
                found.append(("under_voltage", site, value, 1 - config.voltage_band))
            elif value > 1 + config.voltage_band:
                found.append(("over_voltage", site, value, 1 + config.voltage_band))
        return found


def _net_w(forecasts: Mapping[str, Forecast], slot: int) -> tuple[float, float, float] | None:
    """Low, middle and high net power of a site in a slot (about 10, 50 and 90 %); none where its load is not forecast."""
    load = _quantiles(forecasts.get("load_wh"), slot)
    if load is None:
        return None
    pv = _quantiles(forecasts.get("pv_wh"), slot) or (0.0, 0.0, 0.0)
    middle = load[1] - pv[1]
    up = math.hypot(load[2] - load[1], pv[1] - pv[0])
    down = math.hypot(load[1] - load[0], pv[2] - pv[1])
    per_hour = 3600 * NS_PER_S / _SLOT_NS
    return (middle - down) * per_hour, middle * per_hour, (middle + up) * per_hour


def _quantiles(forecast: Forecast | None, slot: int) -> tuple[float, float, float] | None:
    if forecast is None or forecast.slot_s * NS_PER_S != _SLOT_NS:
        return None
    index = (slot - forecast.start_ns) // _SLOT_NS
    if not 0 <= index < len(forecast.values):
        return None
    row, levels = forecast.values[index], forecast.levels
    at = [min(range(len(levels)), key=lambda one: abs(levels[one] - wanted)) for wanted in (0.1, 0.5, 0.9)]
    return row[at[0]], row[at[1]], row[at[2]]


def _independent(spread: Mapping[str, float]) -> dict[str, float]:
    """Spreads of sites scaled down so that they sum to the spread of the sum of independent ones."""
    total = sum(spread.values())
    joint = math.sqrt(sum(value * value for value in spread.values()))
    return {site: value * joint / total if total > 0 else 0.0 for site, value in spread.items()}


def _warning(
    area: str, kind: str, element: str, level: str, rows: list[tuple[int, float, float]], now_ns: int
) -> EarlyWarning:
    """One warning for the first stretch of slots."""
    start = rows[0][0]
    end, stretch = start, []
    for slot, value, limit in rows:
        if slot > end:
            break
        stretch.append((value, limit))
        end = slot + _SLOT_NS
    worst = max(stretch, key=lambda one: abs(one[0] - one[1]))
    return EarlyWarning(
        id=f"{area}-{kind}-{element}-{start // NS_PER_S}", area_id=area, kind=kind, element=element, start_ns=start,
        end_ns=end, lead_s=max(0, (start - now_ns) // NS_PER_S), value=worst[0], limit=worst[1], level=level,
    )  # fmt: skip


def plain(row: object) -> dict[str, JsonValue]:
    """One of this module's rows as JSON values."""
    return asdict(row)  # type: ignore[call-overload,no-any-return]  # a dataclass
