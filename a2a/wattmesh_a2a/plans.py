"""Plans that the cloud makes for a site, and the rounds in which a community agrees on its exchange. Whole watts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """Power of a load that can wait, one value a slot."""

    device: str
    power_w: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What a site should do slot by slot; it follows inside its own limits, and by its own plan once this has expired."""

    site_id: str
    issued_ns: int
    """UTC at which it was made; a newer one takes its place."""
    expires_ns: int
    """UTC; afterwards the site's own plan stands."""
    start_ns: int
    """UTC start of the first slot."""
    slot_s: int
    grid_w: tuple[int, ...]
    """Expected exchange, positive import."""
    battery_w: tuple[int, ...]
    """Expected power of all batteries, positive charging."""
    stored_wh: tuple[int, ...]
    """Expected energy in all batteries at the end of each slot."""
    min_grid_w: tuple[int, ...]
    """The batteries take what would bring the exchange below this."""
    max_grid_w: tuple[int, ...]
    """The batteries give what would bring the exchange above this; never below ``min_grid_w``."""
    committed_w: tuple[int, ...] = ()
    """Market commitments that the band counts on, one a slot; none for no commitment at all."""
    loads: tuple[PlannedLoad, ...] = ()
    reasons: tuple[str, ...] = ()
    """What could not be kept, and why it is more careful than usual."""

    def band_w(self, utc_ns: int) -> tuple[float, float] | None:
        """``min_grid_w`` and ``max_grid_w`` of a moment; none outside the slots and after the expiry."""
        index = (utc_ns - self.start_ns) // (self.slot_s * 1_000_000_000)
        if utc_ns >= self.expires_ns or not 0 <= index < min(len(self.min_grid_w), len(self.max_grid_w)):
            return None
        return float(self.min_grid_w[index]), float(self.max_grid_w[index])

    def counted_w(self, utc_ns: int) -> float:
        """The commitment that the band of a moment counts on."""
        index = (utc_ns - self.start_ns) // (self.slot_s * 1_000_000_000)
        return float(self.committed_w[index]) if 0 <= index < len(self.committed_w) else 0.0

    def expected_grid_w(self, utc_ns: int) -> float | None:
        """Expected exchange at a moment, valid or not yet over; none outside the slots."""
        index = (utc_ns - self.start_ns) // (self.slot_s * 1_000_000_000)
        return float(self.grid_w[index]) if 0 <= index < len(self.grid_w) else None

    def load_w(self, device: str, utc_ns: int) -> float | None:
        """Planned power of a load at a moment; none where the plan says nothing of it."""
        index = (utc_ns - self.start_ns) // (self.slot_s * 1_000_000_000)
        for load in self.loads:
            if load.device == device and utc_ns < self.expires_ns and 0 <= index < len(load.power_w):
                return float(load.power_w[index])
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinationRound:
    """A community asks a site what it would exchange; answered by :class:`CoordinationReply`.

    The site answers with the exchange that costs it least when a distance from ``wish_w`` is charged: a step of the sharing
    problem (Boyd et al. 2011, Distributed Optimization and Statistical Learning via ADMM, section 7.3). Its load, its production
    and its battery stay its own.
    """

    site_id: str
    agreement_id: str
    """The same in all rounds of one agreement."""
    number: int
    """Of the round; 0 asks what the site would do alone."""
    final: bool
    """The answer is what the site follows until ``expires_ns``."""
    expires_ns: int
    start_ns: int
    slot_s: int
    wish_w: tuple[int, ...]
    weight_ticks: float
    """Charge for a distance of 1 kW over an hour is half of this, and grows with its square; 0 in the first round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinationReply:
    """The site's answer to a :class:`CoordinationRound`: nothing but its exchange with the grid."""

    site_id: str
    agreement_id: str
    number: int
    grid_w: tuple[int, ...]
    """Mean of each slot; empty from a site that cannot plan now and takes no part."""
