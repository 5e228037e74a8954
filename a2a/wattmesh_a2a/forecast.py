"""Forecasts as quantiles on delivery slots."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Quantiles of one quantity of one site over consecutive slots."""

    site_id: str
    quantity: str
    """``load_wh`` or ``pv_wh`` (both positive magnitudes, energy a slot), ``price_ticks``, …"""
    issued_ns: int
    """UTC at which it was made; only what was known then is in it."""
    start_ns: int
    """UTC start of the first slot."""
    slot_s: int
    levels: tuple[float, ...]
    """Quantile levels, ascending, for example ``(0.1, 0.5, 0.9)``."""
    values: tuple[tuple[float, ...], ...]
    """One row a slot, one column a level."""
    model: str
