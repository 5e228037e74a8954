"""The one place that decides who gets which power: pure, deterministic, and readable from top to bottom.

From the highest priority to the lowest each proposal narrows the bounds; the target of the lowest-numbered (highest)
priority that has one is met inside them. A lower priority never widens what a higher one has narrowed. What has expired
does not exist. What is not known never raises power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class _GroupTarget:
    target_w: float
    source: str
    priority: Priority


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
    group = _group_target(image, live)
    alone = len(batteries) == 1
    own = {
        name: proposal
        for name in batteries
        if (proposal := next((p for p in live if p.asset_id == name and p.target_w is not None), None)) is not None
        and (group is None or proposal.priority < group.priority)
    }
    shares = {} if alone else _shares(image, live, batteries, site, group, own)
    decisions = []
    for name, limits in batteries.items():
        mine = own.get(name)
        if mine is not None and mine.target_w is not None:
            wanted, source = mine.target_w, mine.source
        elif group is not None:
            wanted, source = group.target_w if alone else shares[name], group.source
        else:
            wanted, source = limits.safe_power_w if alone else shares[name], "safe-state"
        range_ = _range_of(image, name, limits, live, site if alone else None)
        target, reason = range_.clamp(wanted)
        decisions.append(
            Decision(
                asset_id=name,
                time_ns=image.time_ns,
                target_w=target,
                decided_by=source,
                limited_by=reason,
                requested_w=wanted,
                remaining_w=wanted - target,
            )
        )
    return decisions if alone else _within_connection(image, decisions, site)


def _shares(
    image: SiteImage,
    live: Sequence[Proposal],
    batteries: Mapping[str, BatteryLimits],
    site: SiteLimits,
    group: _GroupTarget | None,
    own: Mapping[str, Proposal],
) -> dict[str, float]:
    """Several batteries: what each takes of the group's target, inside every bound on the connection.

    Batteries with a target of their own of a higher priority are counted with it; the others share the rest.
    """
    rest = image.rest_power_w
    if rest is None:
        return dict.fromkeys(batteries, 0.0)
    rated = sum(limits.rated_power_w for limits in batteries.values())
    range_ = _Range(-rated, rated, "rated power", "rated power")
    range_.narrow(
        Bounds(min_w=-site.export_limit_w - rest, max_w=site.import_limit_w - rest, reason="connection limit")
    )
    for proposal in live:
        if proposal.asset_id == GRID_CONNECTION and proposal.bounds is not None:
            bounds = proposal.bounds
            range_.narrow(Bounds(min_w=bounds.min_w - rest, max_w=bounds.max_w - rest, reason=bounds.reason))
    wanted = group.target_w if group is not None else sum(limits.safe_power_w for limits in batteries.values())
    allowed, _ = range_.clamp(wanted)
    taken = sum(proposal.target_w or 0.0 for proposal in own.values())
    others = {name: limits for name, limits in batteries.items() if name not in own}
    return {**dict.fromkeys(batteries, 0.0), **distribute(allowed - taken, image, others)}


def device_range(image: SiteImage, name: str, limits: BatteryLimits, site: SiteLimits) -> tuple[float, float]:
    """What a battery may do at all at this moment, whoever asks: its own limits inside the connection's."""
    range_ = _range_of(image, name, limits, (), site)
    return range_.low, range_.high


def _range_of(
    image: SiteImage, name: str, limits: BatteryLimits, live: Sequence[Proposal], site: SiteLimits | None
) -> _Range:
    """Device protection first, then the connection, then every live bound in order of priority.

    With several batteries (``site`` is none) bounds on the connection are shared out afterwards, over all of them.
    """
    rated = limits.rated_power_w
    range_ = _Range(-rated, rated, "rated power", "rated power")
    battery = image.batteries.get(name)
    soc = battery.soc_percent if battery is not None else None
    rest = image.rest_power_w
    if soc is None:  # neither charge nor discharge what nobody knows the state of
        return _Range(0.0, 0.0, "state of charge unknown", "state of charge unknown")
    if rest is None:  # charging could overload the connection, discharging could feed into the unknown
        return _Range(0.0, 0.0, "grid power unknown", "grid power unknown")
    if soc <= limits.min_soc_percent:
        range_.low, range_.low_reason = 0.0, f"state of charge at its lower limit of {limits.min_soc_percent:g} %"
    if soc >= limits.max_soc_percent:
        range_.high, range_.high_reason = 0.0, f"state of charge at its upper limit of {limits.max_soc_percent:g} %"
    if site is not None:
        connection = Bounds(
            min_w=-site.export_limit_w - rest, max_w=site.import_limit_w - rest, reason="connection limit"
        )
        range_.narrow(connection)
    for proposal in live:
        bounds = proposal.bounds
        if bounds is None:
            continue
        if proposal.asset_id == name:
            range_.narrow(bounds)
        elif proposal.asset_id == GRID_CONNECTION and site is not None:
            range_.narrow(Bounds(min_w=bounds.min_w - rest, max_w=bounds.max_w - rest, reason=bounds.reason))
    return range_


def _within_connection(image: SiteImage, decisions: list[Decision], site: SiteLimits) -> list[Decision]:
    """Several batteries together inside the connection's limits: those that overload it give way in proportion."""
    rest = image.rest_power_w
    total = sum(decision.target_w or 0.0 for decision in decisions)
    if rest is None:
        return decisions
    over = max(0.0, rest + total - site.import_limit_w) - max(0.0, -site.export_limit_w - rest - total)
    guilty = sum(max(0.0, math.copysign(1.0, over) * (decision.target_w or 0.0)) for decision in decisions)
    if over == 0.0 or guilty == 0.0:
        return decisions
    share = max(0.0, 1.0 - abs(over) / guilty)
    result = []
    for decision in decisions:
        target = decision.target_w or 0.0
        if target * over > 0:
            decision = replace(
                decision,
                target_w=target * share,
                limited_by="connection limit",
                remaining_w=(decision.requested_w or 0.0) - target * share,
            )
        result.append(decision)
    return result


def _group_target(image: SiteImage, live: Sequence[Proposal]) -> _GroupTarget | None:
    """The highest-ranked target for the grid connection as power of all batteries; none where it cannot be known."""
    rest = image.rest_power_w
    if rest is None:
        return None
    for proposal in live:
        if proposal.asset_id == GRID_CONNECTION and proposal.target_w is not None:
            return _GroupTarget(proposal.target_w - rest, proposal.source, proposal.priority)
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
