"""What assets and the connection may do at all: data for the arbiter, set by the site file and the device templates."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryLimits:
    """What an asset that the arbiter moves may do at all: a battery, or a load that can be steered."""

    rated_power_w: float
    rated_energy_wh: float
    min_soc_percent: float = 0.0
    """Not discharged below this."""
    max_soc_percent: float = 100.0
    safe_power_w: float = 0.0
    """Its template's safe state."""
    ramp_w_per_s: float = math.inf
    """How fast its power may grow in magnitude; towards zero it is free. Binds everything but protection and the response."""
    idle_below_w: float = 0.0
    """It cannot hold less than this, either way, but 0: the band between is left out."""
    phase: int | None = None
    """1, 2 or 3 for a device on one phase; none: balanced over all three."""
    health: float = 1.0
    """Share of the rated energy that it still holds: a weaker one takes less of the common power."""
    stores: bool = True
    """Whether it is a battery; a load has no state of charge and only consumes."""

    def __post_init__(self) -> None:
        """Refuse what would make every later comparison meaningless."""
        if not (self.rated_power_w >= 0 and self.ramp_w_per_s > 0 and self.idle_below_w >= 0 and 0 < self.health <= 1):
            raise ValueError(f"limits make no sense: {self}")
        if self.phase not in {None, 1, 2, 3}:
            raise ValueError(f"phase {self.phase} is none of 1, 2, 3")

    def share_of_phase(self, phase: int) -> float:
        """How much of its power flows on a phase (1 to 3)."""
        return 1 / 3 if self.phase is None else float(self.phase == phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLimits:
    """What the connection may carry, positive magnitudes."""

    import_limit_w: float
    export_limit_w: float
    """0 is zero export."""
    phase_limit_w: float | None = None
    """Of each phase, either way; none: only the sum is limited."""
