"""What a site plan is made of, and what comes out. Passive sign: positive is import, charging, consumption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """All batteries of a site taken together, seen from the AC side; a site without one has ``energy_wh`` 0."""

    energy_wh: float
    power_w: float
    """Either way."""
    efficiency: float = 0.9486832980505138
    """One way, above 0 and up to 1."""
    wear_ticks: float = 100.0
    """Degradation a kWh discharged, in ticks of 0.01 ct."""
    keep_wh: float = 0.0
    """Kept for the site's own emergencies; a soft limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexibleLoad:
    """A load that can wait, as the energy it has to have and may have at most by the end of each step.

    An electric car, a boiler, a washing machine in its window: two staircases (an energy envelope, as in FlexOffers). Comfort is
    the lower one; what it falls short is counted with ``discomfort_ticks`` and told as a reason.
    """

    name: str
    power_w: Array
    """Most it takes in each step; 0 while it is away."""
    at_least_wh: Array
    """Not falling."""
    at_most_wh: Array
    """Not falling, never below ``at_least_wh``."""
    discomfort_ticks: float = 20_000.0
    """A kWh that is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known and expected when a plan is made; arrays have one value a step."""

    start_ns: int
    """UTC start of the first slot."""
    gone_s: float = 0.0
    """Of the first slot."""
    taken_wh: float = 0.0
    """Imported less exported in the part of the first slot that is gone."""
    stored_wh: float
    load_wh: Array
    """Expected (mean) of each whole slot, without the flexible loads; not negative."""
    pv_wh: Array
    """The same, a positive magnitude."""
    spread_wh: Array
    """By how much the net load may be above its mean: an upper quantile less the mean; not negative."""
    import_ticks: Array
    """A kWh; may be negative."""
    feed_in_ticks: Array
    import_limit_w: float
    export_limit_w: float
    carbon_kg: Array | None = None
    """A kWh imported."""
    carbon_ticks: float = 0.0
    """Price of a kg."""
    committed_wh: Array | None = None
    """Bought (positive) or sold in the market; the difference is settled at import and feed-in price."""
    demand_ticks: float = 0.0
    """Charge a kW of the billing period's highest quarter hour."""
    highest_w: float = 0.0
    """Highest quarter hour of the billing period so far."""
    reserve_up_w: Array | None = None
    """Kept free for under-frequency: less import or more discharge."""
    reserve_down_w: Array | None = None
    """Kept free for over-frequency."""
    reserve_h: float = 0.5
    """How long either has to last."""
    loads: tuple[FlexibleLoad, ...] = ()
    notes: tuple[str, ...] = ()
    """Why the forecasts are wider than usual; passed on to the plan's reasons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do; arrays have one value a slot, means over the slot (the rest of it, for the first)."""

    start_ns: int
    slot_s: int
    grid_w: Array
    """Exchange with the grid."""
    battery_w: Array
    stored_wh: Array
    """At the end of each slot."""
    curtailed_w: Array
    """PV that is not taken."""
    loads_w: dict[str, Array]
    worth_ticks: Array
    """Of the next stored kWh at the end of each slot: the dual of the storage balance."""
    min_grid_w: Array
    """The battery takes what would bring the exchange below this."""
    max_grid_w: Array
    """The battery gives what would bring the exchange above this."""
    cost_ticks: float
    """Expected energy, carbon and demand cost over the horizon, without the worth of what is stored at its end."""
    reasons: tuple[str, ...]
    """What could not be kept, and what was wrong with the input; empty when nothing was."""
