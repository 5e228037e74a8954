"""Kinds of assets as contracts: what each must measure and what it must let itself be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wattmesh_a2a.devices import AssetKind


@dataclass(frozen=True, slots=True, kw_only=True)
class KindContract:
    """What a template of a kind has to have."""

    measures: frozenset[str]
    """Points, by name and so by unit, without which it is not one."""
    counts: frozenset[str] = frozenset()
    """Energy counters it should have; where one is missing, power is integrated in its place."""
    controls: frozenset[str] = frozenset()


KINDS: Mapping[AssetKind, KindContract] = {
    AssetKind.INVERTER: KindContract(measures=frozenset({"active_power_w"}), counts=frozenset({"energy_produced_wh"})),
    AssetKind.BATTERY: KindContract(
        measures=frozenset({"active_power_w", "soc_percent"}),
        counts=frozenset({"energy_charged_wh", "energy_discharged_wh"}),
        controls=frozenset({"active_power_w"}),
    ),
    AssetKind.METER: KindContract(
        measures=frozenset({"active_power_w", "frequency_hz"}),
        counts=frozenset({"energy_import_wh", "energy_export_wh"}),
    ),
    AssetKind.LOAD: KindContract(measures=frozenset({"active_power_w"})),
    AssetKind.EV_CHARGER: KindContract(measures=frozenset({"active_power_w"}), controls=frozenset({"active_power_w"})),
}

UNITS: Mapping[str, str] = {
    "w": "W", "va": "VA", "var": "var", "v": "V", "a": "A", "hz": "Hz", "wh": "Wh", "percent": "percent", "s": "s",
    "degc": "degC",
}  # fmt: skip


_PLAUSIBLE: tuple[tuple[str, float, float], ...] = (
    ("_hz", 20.0, 80.0),
    ("_percent", -200.0, 200.0),
    ("_degc", -100.0, 300.0),
    ("_v", -3000.0, 3000.0),
    ("_a", -20_000.0, 20_000.0),
    ("_wh", -1e13, 1e13),
    ("_w", -1e8, 1e8),
    ("_va", -1e8, 1e8),
    ("_var", -1e8, 1e8),
)
"""What a site's device can measure, by the unit in a point's name: beyond it a value is an untold sentinel, or garbage."""


def plausible(point_id: str) -> tuple[float, float]:
    """Least and largest value that is believed of a point, where its template says nothing narrower."""
    return next(((low, high) for tail, low, high in _PLAUSIBLE if point_id.endswith(tail)), (-math.inf, math.inf))


def quantity_and_unit(point_id: str) -> tuple[str, str]:
    """Split a point's name: ``active_power_w`` is ``active_power`` in ``W``; a name without a unit is a plain number."""
    head, _, tail = point_id.rpartition("_")
    return (head, UNITS[tail]) if head and tail in UNITS else (point_id, "")
