"""The recorded year of five homes (CityLearn Challenge 2022): hourly energy as power at any moment.

Row ``i`` covers the hour from 2022-07-31T23:00-07:00 + i h (the source has no year; its weekdays fit 2022). Times outside the
year are mapped into it. Inside an hour the power is two straight lines that meet the neighbouring hours' without a jump, plus
small seeded swings of whole periods; both keep each hour's energy exactly the record's, and are integrated in closed form.
"""

from __future__ import annotations

import csv
import importlib.resources
import math
import random
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Literal

NS_PER_S = 1_000_000_000
HOUR_NS = 3600 * NS_PER_S
FIRST_NS = 1_659_333_600 * NS_PER_S
"""2022-08-01T06:00:00Z."""
HOURS = 8760
LAST_NS = FIRST_NS + HOURS * HOUR_NS
SLOT_NS = 900 * NS_PER_S

Series = Literal["load", "pv"]
_SWING: dict[Series, tuple[tuple[int, float], ...]] = {"load": ((4, 0.3), (13, 0.2)), "pv": ((3, 0.06), (11, 0.04))}
"""Periods an hour, and amplitude as a share of the hour's smallest power (together below 1: power is never negative)."""


@cache
def _columns(name: str) -> dict[str, tuple[float, ...]]:
    path = importlib.resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / f"{name}.csv"
    with path.open(encoding="ascii") as file:
        rows = list(csv.reader(file))
    head, body = rows[0], rows[1:]
    return {column: tuple(float(row[index]) for row in body) for index, column in enumerate(head) if column != "t"}


@cache
def pv_peak_w(home: str) -> float:
    """Installed PV power of a home (``b01`` to ``b05``); raises KeyError for any other."""
    path = importlib.resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / "buildings.csv"
    with path.open(encoding="ascii") as file:
        for row in csv.DictReader(file):
            if row["building"] == home:
                return float(row["pv_kwp"]) * 1000
    raise KeyError(home)


def _row(utc_ns: int) -> int:
    return (utc_ns - FIRST_NS) // HOUR_NS % HOURS


class _Hour:
    """Power inside one hour; ``phase`` runs from 0 to 1.

    With the hour's mean m, the edges are e = min((m₁ + m₂) / 2, 2 m₁, 2 m₂) of the two hours that meet there, and the middle is
    (4 m - e_left - e_right) / 2, which is what keeps the mean and, as e ≤ 2 m, is never negative.
    """

    __slots__ = ("_left", "_middle", "_right", "_swing")

    def __init__(self, before: float, mean: float, after: float, series: Series, seed: str) -> None:
        self._left = min((before + mean) / 2, 2 * before, 2 * mean)
        self._right = min((after + mean) / 2, 2 * after, 2 * mean)
        self._middle = max(0.0, (4 * mean - self._left - self._right) / 2)
        least = min(self._left, self._middle, self._right)
        chance = random.Random(seed)
        self._swing = tuple(
            (2 * math.pi * periods, share * least, chance.uniform(0, 2 * math.pi))
            for periods, share in (_SWING[series] if least > 0 else ())
        )

    def power(self, phase: float) -> float:
        if phase < 0.5:
            base = self._left + (self._middle - self._left) * 2 * phase
        else:
            base = self._middle + (self._right - self._middle) * (2 * phase - 1)
        return base + sum(size * math.sin(speed * phase + shift) for speed, size, shift in self._swing)

    def integral(self, phase: float) -> float:
        """Mean-power hours (Wh, with power in W) from the hour's start to ``phase``."""
        first, second = min(phase, 0.5), max(phase - 0.5, 0.0)
        total = self._left * first + (self._middle - self._left) * first * first
        total += self._middle * second + (self._right - self._middle) * second * second
        for speed, size, shift in self._swing:
            total += size / speed * (math.cos(shift) - math.cos(speed * phase + shift))
        return total


@lru_cache(maxsize=512)
def _hour(series: Series, home: str, row: int, seed: int) -> _Hour:
    column = _columns(f"{series}_kwh")[home]
    before, mean, after = (column[(row + step) % HOURS] * 1000 for step in (-1, 0, 1))
    return _Hour(before, mean, after, series, f"{seed} {series} {home} {row}")


def _power_w(series: Series, home: str, utc_ns: int, seed: int) -> float:
    return _hour(series, home, _row(utc_ns), seed).power((utc_ns - FIRST_NS) % HOUR_NS / HOUR_NS)


def energy_wh(series: Series, home: str, start_ns: int, end_ns: int, seed: int = 1) -> float:
    """Energy consumed (``load``) or available (``pv``) in a span of time, never negative and exact."""
    total = 0.0
    while start_ns < end_ns:
        offset = (start_ns - FIRST_NS) % HOUR_NS
        cut = min(end_ns, start_ns - offset + HOUR_NS)
        hour = _hour(series, home, _row(start_ns), seed)
        total += hour.integral((offset + cut - start_ns) / HOUR_NS) - hour.integral(offset / HOUR_NS)
        start_ns = cut
    return max(0.0, total)


def load_w(home: str, utc_ns: int, seed: int = 1) -> float:
    """Consumption at a moment, never negative."""
    return _power_w("load", home, utc_ns, seed)


def pv_w(home: str, utc_ns: int, seed: int = 1) -> float:
    """Available production at a moment, a positive magnitude."""
    return _power_w("pv", home, utc_ns, seed)


def temperature_c(utc_ns: int) -> float:
    """Outdoor temperature."""
    return _columns("common")["temp_c"][_row(utc_ns)]


def history_rows(home: str, start_ns: int, end_ns: int, seed: int = 1) -> Iterator[tuple[int, float, float]]:
    """(slot start, load Wh, PV Wh) of each quarter hour, as a meter would have recorded it."""
    for slot in range(start_ns, end_ns, SLOT_NS):
        yield (
            slot,
            energy_wh("load", home, slot, slot + SLOT_NS, seed),
            energy_wh("pv", home, slot, slot + SLOT_NS, seed),
        )
