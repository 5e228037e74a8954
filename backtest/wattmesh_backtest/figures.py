"""Figures of a result, the same for every controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattmesh_backtest.data import SLOT_NS, Period, prices
from wattmesh_backtest.runner import Result

_TICK_WH = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One controller; money in the currency's unit."""

    name: str
    title: str
    paid: float
    """By all sites together, each for itself and by the market's settlement."""
    netted: float
    """What the same exchange would cost behind one common connection."""
    import_kwh: float
    export_kwh: float
    peak_kw: float
    """Highest quarter hour of all sites together."""
    daily_peak_kw: float
    """Mean over the days."""
    self_sufficiency: float
    """Share of consumption that was not imported."""
    cycles_kwh: float
    """Discharged by all batteries."""
    traded_kwh: float
    trades: int
    seconds: float


def figures(period: Period, result: Result, title: str) -> Figures:
    """Of one result."""
    net = np.array([result.net_wh[one.id] for one in period.sites], dtype=np.float64)
    total = net.sum(axis=0)
    played = np.array(period.played)
    table = prices(period)
    buy, sell = np.array(table["import"])[played], np.array(table["feed_in"])[played]
    netted = float(np.where(total > 0, total * buy, total * sell).sum()) / _TICK_WH
    imported = float(np.maximum(net, 0).sum()) / 1000
    load = result.load_wh / 1000
    return Figures(
        name=result.name, title=title, paid=result.paid, netted=netted, import_kwh=imported,
        export_kwh=float(np.maximum(-net, 0).sum()) / 1000, peak_kw=float(total.max()) * 4 / 1000,
        daily_peak_kw=float(np.mean(daily_peaks(period, result))),
        self_sufficiency=1 - imported / load if load else 0.0, cycles_kwh=result.discharged_wh / 1000,
        traded_kwh=sum(one.bought_wh for one in result.accounts.values()) / 1000, trades=result.trades,
        seconds=result.seconds,
    )  # fmt: skip


def _by_slot(period: Period, result: Result) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Exchange of all sites in each slot of the period, Wh; NaN in gaps."""
    out = np.full(period.slots, np.nan)
    out[np.array(period.played)] = np.array([result.net_wh[one.id] for one in period.sites]).sum(axis=0)
    return out


def daily_peaks(period: Period, result: Result) -> list[float]:
    """Highest quarter hour of each whole day from the start, kW."""
    slots = _by_slot(period, result)[: period.slots // 96 * 96].reshape(-1, 96)
    if not len(slots):
        slots = _by_slot(period, result).reshape(1, -1)
    return [float(np.nanmax(day)) * 4 / 1000 for day in slots if not np.isnan(day).all()]


def profile(period: Period, result: Result) -> list[float]:
    """Mean exchange of each quarter hour of the local day, kW."""
    zone = period.tariff.zone()
    slots = _by_slot(period, result)
    from wattmesh_a2a.tariff import local_time

    sums, counts = np.zeros(96), np.zeros(96)
    for at in range(period.slots):
        if not np.isnan(slots[at]):
            local = local_time(period.start_ns + at * SLOT_NS, zone)
            place = local.hour * 4 + local.minute // 15
            sums[place] += slots[at]
            counts[place] += 1
    return [float(one) for one in np.where(counts > 0, sums / np.maximum(counts, 1), 0.0) * 4 / 1000]


def months(period: Period, result: Result) -> dict[str, float]:
    """What was paid by local month."""
    zone = period.tariff.zone()
    from wattmesh_a2a.tariff import local_time

    paid = np.sum([account.by_slot for account in result.accounts.values()], axis=0)
    found: dict[str, float] = {}
    rows = [at for at in range(period.slots) if period.played[at]]
    for at, money in zip(rows, paid, strict=True):
        local = local_time(period.start_ns + at * SLOT_NS, zone)
        key = f"{local.year}-{local.month:02d}"
        found[key] = found.get(key, 0.0) + float(money)
    return found


def saved(base: float, value: float) -> float | None:
    """Share saved against a base; none where the base is not positive."""
    return (base - value) / base if base > 0 else None


def duration(period: Period, result: Result, points: int = 200) -> Sequence[float]:
    """The exchange of all sites from the highest quarter hour to the lowest, kW."""
    slots = _by_slot(period, result)
    ordered = np.sort(slots[~np.isnan(slots)])[::-1] * 4 / 1000
    return [float(one) for one in ordered[np.linspace(0, len(ordered) - 1, min(points, len(ordered))).astype(int)]]
