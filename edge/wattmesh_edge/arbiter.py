"""The one place that decides who gets which power: pure, deterministic, and readable from top to bottom.

From the highest priority to the lowest each proposal narrows the bounds; the target of the lowest-numbered (highest)
priority that has one is met inside them. A lower priority never widens what a higher one has narrowed. What has expired
does not exist. What is not known never raises power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattmesh_a2a.control import GRID_CONNECTION, Bounds, Decision, Priority, Proposal

from wattmesh_edge.image import SiteImage


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryLimits:
    """What a battery may do at all."""

    rated_power_w: float
    rated_energy_wh: float
    min_soc_percent: float = 0.0
    """Not discharged below this."""
    max_soc_percent: float = 100.0
    safe_power_w: float = 0.0
    """Its template's safe state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLimits:
    """What the connection may carry, positive magnitudes."""

    import_limit_w: float
    export_limit_w: float


@dataclass(slots=True)
class _Range:
    """Bounds under construction, with the reason of each end."""

    low: float
    high: float
    low_reason: str
    high_reason: str

    def narrow(self, bounds: Bounds) -> str | None:
        """Take what fits of lower-ranked bounds; returns a reason when they contradict what stands."""
        if bounds.min_w > self.high:
            self.low, self.low_reason = self.high, self.high_reason
            return f"{bounds.reason} contradicts {self.high_reason}"
        if bounds.max_w < self.low:
            self.high, self.high_reason = self.low, self.low_reason
            return f"{bounds.reason} contradicts {self.low_reason}"
        if bounds.min_w > self.low:
            self.low, self.low_reason = bounds.min_w, bounds.reason
        if bounds.max_w < self.high:
            self.high, self.high_reason = bounds.max_w, bounds.reason
        return None

    def clamp(self, value: float) -> tuple[float, str | None]:
        """The nearest allowed value, and why it is another."""
        if value > self.high:
            return self.high, self.high_reason
        if value < self.low:
            return self.low, self.low_reason
        return value, None


def arbitrate(
    image: SiteImage,
    proposals: Sequence[Proposal],
    batteries: Mapping[str, BatteryLimits],
    site: SiteLimits,
) -> list[Decision]:
    """One decision a battery.

    Args:
        image: The site now.
        proposals: Targets and bounds for a battery, or for :data:`GRID_CONNECTION` (met by all batteries together).
        batteries: Limits by asset.
        site: Limits of the connection.
    """
    live = sorted(
        (proposal for proposal in proposals if proposal.expires_ns > image.monotonic_ns),
        key=lambda proposal: proposal.priority,
    )
    total = _site_range(image, live, batteries, site)
    group_target = _group_target(image, live)
    if group_target is not None:
        wanted, source, priority = group_target
        allowed, reason = total.clamp(wanted)
        shares = distribute(allowed, image, batteries)
    else:
        wanted, source, priority, allowed, reason, shares = 0.0, "", None, 0.0, None, {}
    decisions = []
    for name, limits in batteries.items():
        own = next((p for p in live if p.asset_id == name and p.target_w is not None), None)
        if own is not None and own.target_w is not None and (priority is None or own.priority < priority):
            target, why = own.target_w, own.source
            inside, site_reason = total.clamp(target) if len(batteries) == 1 else (target, None)
        elif priority is not None:
            target, why = shares[name] if len(batteries) > 1 else wanted, source
            inside, site_reason = (shares[name], None) if len(batteries) > 1 else (allowed, reason)
        else:
            target, why = limits.safe_power_w, "safe-state"
            inside, site_reason = total.clamp(target) if len(batteries) == 1 else (target, None)
        final, device_reason = _battery_range(image, name, limits, live).clamp(inside)
        decisions.append(
            Decision(
                asset_id=name,
                time_ns=image.time_ns,
                target_w=final,
                decided_by=why,
                limited_by=device_reason or site_reason,
                requested_w=target,
                remaining_w=target - final,
            )
        )
    return decisions


def _battery_range(image: SiteImage, name: str, limits: BatteryLimits, live: Sequence[Proposal]) -> _Range:
    """Device protection first, then every live bound on this battery in order of priority."""
    rated = limits.rated_power_w
    range_ = _Range(-rated, rated, "rated power", "rated power")
    battery = image.batteries.get(name)
    soc = battery.soc_percent if battery is not None else None
    if soc is None:  # neither charge nor discharge what nobody knows the state of
        return _Range(0.0, 0.0, "state of charge unknown", "state of charge unknown")
    if soc <= limits.min_soc_percent:
        range_.low, range_.low_reason = 0.0, f"state of charge at its lower limit of {limits.min_soc_percent:g} %"
    if soc >= limits.max_soc_percent:
        range_.high, range_.high_reason = 0.0, f"state of charge at its upper limit of {limits.max_soc_percent:g} %"
    for proposal in live:
        if proposal.asset_id == name and proposal.bounds is not None:
            range_.narrow(proposal.bounds)
    return range_


def _site_range(
    image: SiteImage, live: Sequence[Proposal], batteries: Mapping[str, BatteryLimits], site: SiteLimits
) -> _Range:
    """What all batteries together may take: the connection's limits around the rest of the site, narrowed by proposals."""
    rated = sum(limits.rated_power_w for limits in batteries.values())
    rest = image.rest_power_w
    if rest is None:
        # The connection's load is unknown: charging could overload it, discharging could feed into the unknown.
        return _Range(0.0, 0.0, "grid power unknown", "grid power unknown")
    range_ = _Range(-rated, rated, "rated power", "rated power")
    # The connection's limit may force a battery, but never past what it can do: clamp keeps the order of priorities.
    range_.narrow(
        Bounds(
            min_w=min(-site.export_limit_w - rest, site.import_limit_w - rest),
            max_w=site.import_limit_w - rest,
            reason="connection limit",
        )
    )
    for proposal in live:
        if proposal.asset_id == GRID_CONNECTION and proposal.bounds is not None:
            bounds = proposal.bounds
            range_.narrow(Bounds(min_w=bounds.min_w - rest, max_w=bounds.max_w - rest, reason=bounds.reason))
    return range_


def _group_target(image: SiteImage, live: Sequence[Proposal]) -> tuple[float, str, Priority] | None:
    """The highest-ranked target for the grid connection as power of all batteries; none where it cannot be known."""
    rest = image.rest_power_w
    if rest is None:
        return None
    for proposal in live:
        if proposal.asset_id == GRID_CONNECTION and proposal.target_w is not None:
            return proposal.target_w - rest, proposal.source, proposal.priority
    return None


def distribute(total_w: float, image: SiteImage, batteries: Mapping[str, BatteryLimits]) -> dict[str, float]:
    """Share a power over batteries in proportion to the energy they can still take or give, within their ratings.

    What one cannot take goes to the others, until nothing is left or all are at their limits.
    """
    shares = dict.fromkeys(batteries, 0.0)
    weights: dict[str, float] = {}
    for name, limits in batteries.items():
        battery = image.batteries.get(name)
        soc = battery.soc_percent if battery is not None else None
        if soc is None:
            continue
        room = limits.max_soc_percent - soc if total_w > 0 else soc - limits.min_soc_percent
        if room > 0:
            weights[name] = room * limits.rated_energy_wh
    left = total_w
    while weights and abs(left) > 1e-6:
        whole = sum(weights.values())
        full = []
        given = 0.0
        for name, weight in weights.items():
            limit = batteries[name].rated_power_w
            wanted = shares[name] + left * weight / whole
            share = min(max(wanted, -limit), limit)
            given += share - shares[name]
            if share != wanted:
                full.append(name)
            shares[name] = share
        left -= given
        if not full:
            break
        for name in full:
            del weights[name]
    return shares
