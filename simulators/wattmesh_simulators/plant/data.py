"""The recorded year of five homes (CityLearn Challenge 2022): hourly energy as power at any moment.

Row ``i`` covers the hour from 2022-07-31T23:00-07:00 + i h (the source has no year; its weekdays fit 2022). Times outside the
year are mapped into it. Inside an hour the power swings by sines of whole periods, so that each hour's energy stays the record's.
"""

from __future__ import annotations

import csv
import importlib.resources
import math
from collections.abc import Iterator
from functools import cache

NS_PER_S = 1_000_000_000
HOUR_NS = 3600 * NS_PER_S
FIRST_NS = 1_659_333_600 * NS_PER_S
"""2022-08-01T06:00:00Z."""
HOURS = 8760
LAST_NS = FIRST_NS + HOURS * HOUR_NS
_LOAD_SWING = ((3, 0.25), (7, 0.15))
_PV_SWING = ((2, 0.06), (11, 0.04))


@cache
def _columns(name: str) -> dict[str, tuple[float, ...]]:
    path = importlib.resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / f"{name}.csv"
    with path.open(encoding="ascii") as file:
        rows = list(csv.reader(file))
    head, body = rows[0], rows[1:]
    return {column: tuple(float(row[index]) for row in body) for index, column in enumerate(head) if column != "t"}


@cache
def pv_peak_w(home: str) -> float:
    """Installed PV power of a home (``b01`` to ``b05``)."""
    path = importlib.resources.files("wattmesh_simulators") / "data" / "citylearn_2022" / "buildings.csv"
    with path.open(encoding="ascii") as file:
        for row in csv.DictReader(file):
            if row["building"] == home:
                return float(row["pv_kwp"]) * 1000
    raise KeyError(home)


def _row(utc_ns: int) -> int:
    return (utc_ns - FIRST_NS) // HOUR_NS % HOURS


def _power_w(kwh: float, swing: tuple[tuple[int, float], ...], home: str, utc_ns: int) -> float:
    phase = (utc_ns - FIRST_NS) % HOUR_NS / HOUR_NS
    shift = int(home[1:]) * 0.7 + (utc_ns - FIRST_NS) // HOUR_NS % 24
    factor = 1.0
    for periods, amplitude in swing:
        factor += amplitude * math.sin(2 * math.pi * periods * phase + shift)
    return kwh * 1000 * factor


def load_w(home: str, utc_ns: int) -> float:
    """Consumption, never negative."""
    return _power_w(_columns("load_kwh")[home][_row(utc_ns)], _LOAD_SWING, home, utc_ns)


def pv_w(home: str, utc_ns: int) -> float:
    """Available production, a positive magnitude."""
    return _power_w(_columns("pv_kwh")[home][_row(utc_ns)], _PV_SWING, home, utc_ns)


def temperature_c(utc_ns: int) -> float:
    """Outdoor temperature."""
    return _columns("common")["temp_c"][_row(utc_ns)]


def history_rows(home: str, start_ns: int, end_ns: int) -> Iterator[tuple[int, float, float]]:
    """(slot start, load Wh, PV Wh) of each quarter hour, as a meter would have recorded it."""
    slot_ns = HOUR_NS // 4
    for slot in range(start_ns, end_ns, slot_ns):
        moments = range(slot, slot + slot_ns, 60 * NS_PER_S)
        yield (
            slot,
            sum(load_w(home, moment) for moment in moments) / 60,
            sum(pv_w(home, moment) for moment in moments) / 60,
        )
