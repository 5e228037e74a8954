"""What asks for power, what is decided, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

GRID_CONNECTION = "grid"
"""The pseudo-asset whose power is the site's exchange with the grid (positive: import)."""


class Priority(IntEnum):
    """The one stack for everything that wants power; smaller wins."""

    DEVICE_PROTECTION = 0
    SITE_PROTECTION = 1
    FREQUENCY_RESPONSE = 2
    GRID_INSTRUCTION = 3
    """Operator's instruction or demand response."""
    MANUAL_OVERRIDE = 4
    MARKET_COMMITMENT = 5
    PLAN = 6
    PREFERENCE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """A range of allowed power and why it is so."""

    min_w: float
    max_w: float
    reason: str

    def __post_init__(self) -> None:
        """Refuse an empty or undefined range."""
        if not self.min_w <= self.max_w:  # also refuses NaN
            raise ValueError(f"bounds {self.min_w}..{self.max_w} W are empty ({self.reason})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What somebody wants of an asset, for how long, and with which right."""

    asset_id: str
    """An asset, or :data:`GRID_CONNECTION`."""
    priority: Priority
    source: str
    """Who asks: an agent, a rule, a person, with enough of a name to be found again."""
    expires_ns: int
    """Monotonic time of the gateway from which on the proposal has no effect."""
    target_w: float | None = None
    """Wanted active power; none where the proposal only narrows."""
    bounds: Bounds | None = None
    """Range the asset has to stay in; none where the proposal only wants a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The device has the value; read back where the template says so."""

    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamped:
    """The device has a value nearer than the one asked for."""

    requested: float
    value: float
    limit: str
    """Which limit did it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Nothing was written: the value or the time was not permitted."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The write was tried and is not known to have arrived."""

    reason: str
    retryable: bool


Outcome = Applied | Clamped | Rejected | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the arbiter chose for one asset in one cycle, and who decided it."""

    asset_id: str
    time_ns: int
    """UTC."""
    target_w: float | None
    """Chosen power; none where nobody asked and nothing is written."""
    decided_by: str
    """Source of the proposal whose target was taken, or ``safe-state``."""
    limited_by: str | None = None
    """Reason of the bound or fault that moved the target; none where it was met."""
    requested_w: float | None = None
    """Target before it was narrowed."""
    remaining_w: float = 0.0
    """What was asked for and could not be met."""
    conflicts: tuple[str, ...] = ()
    """Bounds that contradict each other: which lost against which. The higher rank's stands."""
