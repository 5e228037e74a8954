"""From what the cloud knows of a site to what its planner needs; what is missing is said, and never taken as zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.tariff import Tariff, local_time

from wattmesh_cloud.planning.config import PlanningConfig
from wattmesh_cloud.planning.problem import Array, Battery, FlexibleLoad, Situation

SLOT_S = 900
SLOT_NS = SLOT_S * NS_PER_S
_LEAST_SLOTS = 48
"""With less than half a day of forecast there is no plan."""
_FRESH_NS = 2 * 3600 * NS_PER_S
_OLD_NS = 12 * 3600 * NS_PER_S
_WIDER_AN_HOUR = 0.1
_LIVE_NS = 900 * NS_PER_S


@dataclass(slots=True, kw_only=True)
class SiteState:
    """What is known of a site now; filled by the service."""

    announcement: Mapping[str, Any]
    soc_percent: float | None
    live_ns: int
    """UTC of that state of charge."""
    forecasts: Mapping[str, Forecast]
    committed_wh: Mapping[int, int] = field(default_factory=dict)
    """By start of slot."""
    highest_w: float = 0.0
    reserve_percent: float = 0.0
    taken_wh: float = 0.0
    """Imported less exported in the running slot."""
    loads_taken_wh: Mapping[str, float] = field(default_factory=dict)
    """By device, in its running window."""
    notes: tuple[str, ...] = ()


class NotPlannableError(Exception):
    """Too little is known; the site goes on with its last plan, then with its own."""


def battery_of(state: SiteState, config: PlanningConfig) -> Battery:
    """All batteries of a site as one; raises :class:`NotPlannableError` where ratings are unknown."""
    energy = power = 0.0
    for asset in state.announcement.get("assets", ()):
        if asset.get("kind") != "battery":
            continue
        if not asset.get("rated_energy_wh") or not asset.get("rated_power_w"):
            raise NotPlannableError(f"{asset.get('id')} has no ratings")
        energy += float(asset["rated_energy_wh"])
        power += float(asset["rated_power_w"])
    return Battery(
        energy_wh=energy,
        power_w=power,
        efficiency=config.efficiency**0.5,
        wear_ticks=config.wear_price * 10_000,
        keep_wh=min(state.reserve_percent, 50.0) / 100 * energy,
    )


def situation_of(state: SiteState, battery: Battery, tariff: Tariff, config: PlanningConfig, now_ns: int) -> Situation:
    """What the planner is given; raises :class:`NotPlannableError` with the reason."""
    steps = config.horizon_s // SLOT_S
    start = now_ns - now_ns % SLOT_NS
    slots = range(start, start + steps * SLOT_NS, SLOT_NS)
    if battery.energy_wh and (state.soc_percent is None or now_ns - state.live_ns > _LIVE_NS):
        raise NotPlannableError("the state of charge is not known")
    notes = list(state.notes)
    load, load_off = expected(state.forecasts.get("load_wh"), start, steps, now_ns, notes, upper=True)
    if any(asset.get("kind") == "inverter" for asset in state.announcement.get("assets", ())):
        pv, pv_off = expected(state.forecasts.get("pv_wh"), start, steps, now_ns, notes, upper=False)
    else:
        pv, pv_off = np.zeros(steps), np.zeros(steps)  # there is none
    zone = ZoneInfo(str(state.announcement.get("time_zone", "UTC")))
    hours = np.array([local_time(slot, zone).hour for slot in slots])
    carbon = np.array(config.carbon_kg_per_kwh)[hours] if len(config.carbon_kg_per_kwh) == 24 else None
    return Situation(
        start_ns=start,
        gone_s=(now_ns - start) / NS_PER_S,
        taken_wh=state.taken_wh,
        stored_wh=(state.soc_percent or 0.0) / 100 * battery.energy_wh,
        load_wh=load,
        pv_wh=pv,
        # Errors of load and PV are taken as independent: their widths add as squares.
        spread_wh=np.hypot(load_off, pv_off),
        import_ticks=np.array([tariff.import_price_ticks(slot) for slot in slots], dtype=float),
        feed_in_ticks=np.full(steps, float(tariff.feed_in_ticks())),
        import_limit_w=float(state.announcement.get("import_limit_w", 1e5)),
        export_limit_w=float(state.announcement.get("export_limit_w", 1e5)),
        carbon_kg=carbon,
        carbon_ticks=config.carbon_price * 10_000,
        committed_wh=np.array([state.committed_wh.get(slot, 0) for slot in slots], dtype=float),
        demand_ticks=config.demand_price * 10_000,
        highest_w=state.highest_w,
        reserve_up_w=np.full(steps, config.reserve_up_w),
        reserve_down_w=np.full(steps, config.reserve_down_w),
        reserve_h=config.reserve_h,
        loads=tuple(
            load_of(need, state.loads_taken_wh.get(str(need["device"]), 0.0), zone, start, steps)
            for need in state.announcement.get("flexible", ())
        ),
        notes=tuple(notes),
    )


def expected(
    forecast: Forecast | None, start_ns: int, steps: int, now_ns: int, notes: list[str], *, upper: bool
) -> tuple[Array, Array]:
    """Mean of each slot, and how far the 90 % (or 10 %) quantile is from it.

    A forecast that is old widens with its age; slots beyond its end repeat the day before them, wider by half.

    Raises:
        NotPlannableError: For a forecast that is missing, too old, or covers too little.
    """
    if forecast is None:
        raise NotPlannableError(f"no forecast of {'load' if upper else 'PV'}")
    age = now_ns - forecast.issued_ns
    first = (start_ns - forecast.start_ns) // SLOT_NS
    rows = np.array(forecast.values[max(first, 0) :], dtype=float)[:steps]
    if forecast.slot_s != SLOT_S or first < 0 or len(rows) < _LEAST_SLOTS or age > _OLD_NS:
        raise NotPlannableError(f"the forecast of {forecast.quantity} is too old or too short")
    if not np.isfinite(rows).all():
        raise NotPlannableError(f"the forecast of {forecast.quantity} has values that are no numbers")
    levels = np.array(forecast.levels)
    mean = np.maximum(mean_of(rows, levels), 0.0)
    edge = rows[:, np.abs(levels - (0.9 if upper else 0.1)).argmin()]
    off = np.maximum(edge - mean if upper else mean - edge, 0.0)
    if age > _FRESH_NS:
        hours = age / 3600 / NS_PER_S
        off = off * (1 + _WIDER_AN_HOUR * hours)
        notes.append(f"the forecast of {forecast.quantity} is {hours:.0f} h old: planned for a wider range")
    while len(mean) < steps:
        back = min(86_400 // SLOT_S, len(mean))
        more = slice(len(mean) - back, len(mean) - back + min(back, steps - len(mean)))
        mean, off = np.concatenate([mean, mean[more]]), np.concatenate([off, 1.5 * off[more]])
    return mean, off


def mean_of(rows: Array, levels: Array) -> Array:
    """Mean of a distribution given by quantiles: the trapezoid over its quantile function, flat beyond the outer levels."""
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    result: Array = rows @ np.diff(edges)
    return result


def load_of(need: Mapping[str, Any], taken_wh: float, zone: ZoneInfo, start_ns: int, steps: int) -> FlexibleLoad:
    """A load's windows of the coming days as an energy envelope; local days, also where clocks change."""
    begins, ends = (time.fromisoformat(str(need[name])) for name in ("begins", "ends"))
    energy, power = float(need["energy_wh"]), float(need["power_w"])
    today = local_time(start_ns, zone).date()
    allowed = need.get("days", range(7))

    def moment(day: date, at: time) -> float:
        """In slots from the plan's start."""
        return (datetime.combine(day, at, tzinfo=zone).timestamp() - start_ns / NS_PER_S) / SLOT_S

    lasts = [today + timedelta(days=offset) for offset in range(-8, 9)]
    lasts = [day for day in lasts if day.weekday() in allowed]
    windows = []
    for number, last in enumerate(lasts):
        if begins == ends:
            first = moment(lasts[number - 1], begins) if number else -1e6
        else:
            first = moment(last if begins < ends else last - timedelta(days=1), begins)
        until = moment(last, ends)
        windows.append((first, until, energy - taken_wh if first <= 0 < until else energy))
    return envelope(str(need["device"]), steps, SLOT_S, power, windows)


def envelope(
    name: str, steps: int, slot_s: int, power_w: float, windows: Sequence[tuple[float, float, float]]
) -> FlexibleLoad:
    """A load that needs energy in windows, each by its end.

    Args:
        name: Of the device.
        steps: Slots of the plan.
        slot_s: Length of a slot.
        power_w: At which it can run.
        windows: Begin and end in slots from the plan's start (fractions and beyond both ends are fine), and Wh still needed.
    """
    edges = np.arange(steps + 1)
    power, least, most = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    for begins, ends, needed in windows:
        if needed <= 0 or ends <= 0 or begins >= steps:
            continue
        open_share = np.clip(np.minimum(edges[1:], ends) - np.maximum(edges[:-1], begins), 0.0, 1.0)
        power = np.maximum(power, power_w * open_share)
        most += np.where(edges[1:] > begins, needed, 0.0)
        if ends <= steps:
            least += np.where(edges[1:] >= ends, needed, 0.0)
        else:  # the part of the need that its time beyond the horizon cannot serve
            least[-1] += max(0.0, needed - power_w * (ends - steps) * slot_s / 3600)
    return FlexibleLoad(name=name, power_w=power, at_least_wh=least, at_most_wh=np.maximum(most, least))
