"""The one place that decides who gets which power: pure, deterministic, and readable from top to bottom.

The set of what is allowed is a range for each asset and a range for their sum (the site's exchange with the grid less what
nobody steers). From the highest priority to the lowest, each proposal narrows that set as far as what is left of it allows:

- bounds narrow a range to themselves,
- a target narrows it to one value: the nearest to it that is left. So nobody of a lower priority moves what a higher one has set,
- of the same priority bounds come first, then targets of single assets, then targets of the connection.

Because every narrowing stays inside what the ones before have left, the set is never empty, and what came first is never given
up for what comes later. What does not fit is told: as the reason of the limit, as remaining power, and as a conflict where two
bounds contradict. What has expired does not exist. What is not known never raises power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wattmesh_a2a.control import GRID_CONNECTION, Decision, Priority, Proposal
from wattmesh_a2a.devices import Quality

from wattmesh_edge.image import SiteImage
from wattmesh_edge.limits import BatteryLimits, SiteLimits
from wattmesh_edge.sharing import leave_idle_bands, share, weight

SAFE_STATE = "safe-state"
ESTIMATED = "grid power is estimated: nothing is raised"
DEAD_BAND_W = 10.0
"""A setpoint that would move less is left as it is."""
_OVER_SHARE = 0.15
"""Of what a load was told: so much more it may take, where it is told a current."""
_SAME_W = 1e-6
_ENDLESS_W = 1e12
"""Stands for no bound at all: finite, so that differences stay numbers."""


@dataclass(slots=True)
class _Range:
    """A range under construction, with the reason of each end."""

    low: float
    high: float
    low_reason: str
    high_reason: str

    def clamp(self, value: float) -> tuple[float, str | None]:
        """The nearest allowed value, and why it is another."""
        if value > self.high + _SAME_W:
            return self.high, self.high_reason
        if value < self.low - _SAME_W:
            return self.low, self.low_reason
        return min(max(value, self.low), self.high), None

    def narrow(self, low: float, high: float, reason: str, reach: _Range) -> str | None:
        """Take what fits of a bound into the range that is still in reach; returns how it contradicts what stands."""
        if low > reach.high + _SAME_W:
            self.become(reach.high, reach.high_reason)
            return f"{reason} contradicts {reach.high_reason}"
        if high < reach.low - _SAME_W:
            self.become(reach.low, reach.low_reason)
            return f"{reason} contradicts {reach.low_reason}"
        if low > self.low:
            self.low, self.low_reason = min(low, reach.high), reason
        if high < self.high:
            self.high, self.high_reason = max(high, reach.low), reason
        return None

    def become(self, value: float, reason: str) -> None:
        """Only this value, or where rounding put it outside the range, its end."""
        self.low = self.high = min(max(value, self.low), self.high)
        self.low_reason = self.high_reason = reason


@dataclass(slots=True)
class _Chosen:
    """A target that was taken."""

    proposal: Proposal
    wanted: float
    reason: str | None


@dataclass(slots=True)
class _Stack:
    """What is allowed, narrowed from the top of the stack to its foot."""

    boxes: dict[str, _Range]
    """By asset."""
    total: _Range
    """Of the sum of all assets."""
    conflicts: dict[str, list[str]]
    """By asset, and of the connection."""
    chosen: dict[str, _Chosen] = field(default_factory=dict)
    """Targets that were taken, by asset, and of the connection."""
    bounded: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What bounds had left when a target was taken."""

    def reach(self, asset: str) -> _Range:
        """What an asset's power can still be, given what the others and the sum are held to."""
        if asset == GRID_CONNECTION:
            low = sum(box.low for box in self.boxes.values())
            high = sum(box.high for box in self.boxes.values())
            low_reason = _joined(box.low_reason for box in self.boxes.values())
            high_reason = _joined(box.high_reason for box in self.boxes.values())
            own = self.total
        else:
            others = [box for name, box in self.boxes.items() if name != asset]
            low = self.total.low - sum(box.high for box in others)
            high = self.total.high - sum(box.low for box in others)
            low_reason, high_reason = self.total.low_reason, self.total.high_reason
            own = self.boxes[asset]
        found = _Range(own.low, own.high, own.low_reason, own.high_reason)
        if low > found.low:
            found.low, found.low_reason = low, low_reason
        if high < found.high:
            found.high, found.high_reason = high, high_reason
        if found.low > found.high:  # only by rounding: the set is never empty
            found.low = found.high = (found.low + found.high) / 2
        return found

    def bound(self, asset: str, low: float, high: float, reason: str, *, told: bool = True) -> None:
        """Narrow by bounds."""
        own = self.total if asset == GRID_CONNECTION else self.boxes[asset]
        conflict = own.narrow(low, high, reason, self.reach(asset))
        if conflict is not None and told and conflict not in self.conflicts[asset]:
            self.conflicts[asset].append(conflict)

    def aim(self, asset: str, wanted: float, proposal: Proposal) -> None:
        """Narrow to a target; the first that is taken for an asset stands, and one of the same rank that differs is told."""
        if (before := self.chosen.get(asset)) is not None:
            same_rank = before.proposal.priority == proposal.priority
            if same_rank and abs(before.wanted - wanted) > 1.0 and before.proposal.source != proposal.source:
                self.conflicts[asset].append(f"{proposal.source} contradicts {before.proposal.source}")
            return
        value, reason = self.reach(asset).clamp(wanted)
        own = self.total if asset == GRID_CONNECTION else self.boxes[asset]
        self.bounded[asset] = (own.low, own.high)
        own.become(value, reason or proposal.source)
        self.chosen[asset] = _Chosen(proposal, wanted, reason)


def arbitrate(
    image: SiteImage,
    proposals: Sequence[Proposal],
    batteries: Mapping[str, BatteryLimits],
    site: SiteLimits,
    *,
    held: Mapping[str, float] | None = None,
    elapsed_s: float = 1.0,
) -> list[Decision]:
    """One decision an asset.

    Args:
        image: The site now.
        proposals: Targets and bounds for an asset, or for :data:`GRID_CONNECTION` (met by all assets together).
        batteries: Limits by asset.
        site: Limits of the connection.
        held: What was commanded last, by asset: where ramps begin. None: 0 for all.
        elapsed_s: Since that command.

    Returns:
        Decisions whose targets sum up to the power chosen for the connection less the rest of the site. Each tells the power
        that was asked for and not met: a common target's is shared out by rating, so that the sum over all assets is right.
    """
    held = held or {}
    rest = _rest(image, batteries, held)
    stack = _protected(image, batteries, site, held)
    live = [one for one in proposals if one.expires_ns > image.monotonic_ns and (one.asset_id in stack.conflicts)]
    ranks = sorted({one.priority for one in live} | {Priority.GRID_INSTRUCTION})
    for rank in ranks:
        if rank == Priority.GRID_INSTRUCTION:  # the response is never slowed down by a ramp; everybody below it is
            _ramped(stack, batteries, held, elapsed_s)
        mine = [one for one in live if one.priority == rank]
        for one in mine:
            _bound(stack, one, rest)
        for one in mine:
            if one.asset_id != GRID_CONNECTION and one.target_w is not None and math.isfinite(one.target_w):
                stack.aim(one.asset_id, one.target_w, one)
        if rest is not None:
            started = _started_loads_w(image, stack, batteries)
            for one in mine:
                if one.asset_id == GRID_CONNECTION and one.target_w is not None and math.isfinite(one.target_w):
                    stack.aim(GRID_CONNECTION, one.target_w - rest + started, one)
    return _decisions(image, stack, batteries, held)


def device_range(
    image: SiteImage, name: str, limits: BatteryLimits, site: SiteLimits, held: Mapping[str, float] | None = None
) -> tuple[float, float]:
    """What an asset may do at all at this moment, whoever asks: its own limits inside the connection's.

    What the others hold now is taken as given, so that all of them together stay inside.
    """
    held = held or {}
    others_w = sum(power for other, power in held.items() if other != name)
    reach = _protected(image, {name: limits}, site, held, others_w=others_w).reach(name)
    return reach.low, reach.high


# -- protection


def _protected(
    image: SiteImage,
    batteries: Mapping[str, BatteryLimits],
    site: SiteLimits,
    held: Mapping[str, float],
    *,
    others_w: float = 0.0,
) -> _Stack:
    """Device protection, then the connection: what nobody's proposal gets around."""
    stack = _Stack(
        boxes={name: _own_range(image, name, limits) for name, limits in batteries.items()},
        total=_Range(-_ENDLESS_W, _ENDLESS_W, "no bound", "no bound"),
        conflicts={name: [] for name in [*batteries, GRID_CONNECTION]},
    )
    rest = _rest(image, batteries, held)
    if rest is None or image.grid_power_w is None:
        for name in batteries:  # charging could overload the connection, discharging could feed into the unknown
            stack.bound(name, 0.0, 0.0, "grid power unknown", told=False)
        return stack
    if image.grid_power_w.quality != Quality.GOOD:
        for name in batteries:
            power = held.get(name, 0.0)
            stack.bound(name, min(0.0, power), max(0.0, power), ESTIMATED, told=False)
    for phase, name, low, high in _phase_ranges(image, batteries, site, stack.boxes):
        stack.bound(name, low, high, f"limit of phase L{phase}" if phase else "power of a phase unknown")
    low, high = -site.export_limit_w - rest - others_w, site.import_limit_w - rest - others_w
    if low > high:  # nothing is imported nor exported: limits of 0 both ways
        low = high = (low + high) / 2
    stack.bound(GRID_CONNECTION, low, high, "connection limit")
    return stack


def _rest(image: SiteImage, batteries: Mapping[str, BatteryLimits], held: Mapping[str, float]) -> float | None:
    """What nobody steers: with it what a load takes above what it was told, as a charger told a current does at a high voltage.

    Only so much is counted so as voltages explain (EN 50160: 10 %): a load that is slow to follow is not meant.
    """
    rest = image.rest_power_w
    if rest is None:
        return None
    for name, limits in batteries.items():
        power, told = image.loads.get(name), held.get(name, 0.0)
        if not limits.stores and power is not None and told > 0:
            rest += min(max(0.0, power - told), _OVER_SHARE * told)
    return rest


def _own_range(image: SiteImage, name: str, limits: BatteryLimits) -> _Range:
    """What the device itself allows: rating, state of charge, its own limits of the moment, and nothing where it is not known."""
    if not limits.stores:
        known = image.loads.get(name) is not None
        high = limits.rated_power_w if known else 0.0
        return _Range(0.0, high, "a load only consumes", "rated power" if known else "power unknown")
    battery = image.batteries.get(name)
    soc = battery.soc_percent if battery is not None else None
    if battery is None or soc is None:  # neither charge nor discharge what nobody knows the state of
        return _Range(0.0, 0.0, "state of charge unknown", "state of charge unknown")
    if battery.active_power_w is None:
        return _Range(0.0, 0.0, "power unknown", "power unknown")
    found = _Range(-limits.rated_power_w, limits.rated_power_w, "rated power", "rated power")
    if battery.discharge_limit_w is not None and battery.discharge_limit_w < limits.rated_power_w:
        found.low, found.low_reason = -max(0.0, battery.discharge_limit_w), "the battery's own discharge limit"
    if battery.charge_limit_w is not None and battery.charge_limit_w < limits.rated_power_w:
        found.high, found.high_reason = max(0.0, battery.charge_limit_w), "the battery's own charge limit"
    if soc <= limits.min_soc_percent:
        found.low, found.low_reason = 0.0, f"state of charge at its lower limit of {limits.min_soc_percent:g} %"
    if soc >= limits.max_soc_percent:
        found.high, found.high_reason = 0.0, f"state of charge at its upper limit of {limits.max_soc_percent:g} %"
    return found


def _phase_ranges(
    image: SiteImage, batteries: Mapping[str, BatteryLimits], site: SiteLimits, boxes: Mapping[str, _Range]
) -> list[tuple[int, str, float, float]]:
    """Each asset's part of what a phase still carries: ``(phase, asset, low, high)``; phase 0: not known.

    The room of a phase is shared out by what each can take on it, so that no mix of the others' powers overloads it. That gives
    away some room where one does not use its part, and needs no solver.
    """
    limit = site.phase_limit_w
    if limit is None:
        return []
    rest = _rest_of_phases(image, batteries)
    if rest is None:
        return [(0, name, 0.0, 0.0) for name in batteries]
    found = []
    for phase in (1, 2, 3):
        part = {name: limits.share_of_phase(phase) for name, limits in batteries.items()}
        up = {name: part[name] * max(0.0, boxes[name].high) for name in batteries}
        down = {name: part[name] * max(0.0, -boxes[name].low) for name in batteries}
        room_up, room_down = limit - rest[phase - 1], limit + rest[phase - 1]
        for name in batteries:
            if part[name] == 0.0:
                continue
            # With room the ones that can go there share it; where there is less than none, those that can go back have to.
            high = _part(room_up, up, down, name) / part[name]
            low = -_part(room_down, down, up, name) / part[name]
            if low <= high:
                found.append((phase, name, low, high))
    return found


def _part(room: float, able: Mapping[str, float], back: Mapping[str, float], name: str) -> float:
    """An asset's part of a room that may be negative."""
    shares = able if room >= 0 else back
    whole = sum(shares.values())
    return room * shares[name] / whole if whole > 0 else max(0.0, room)


def _rest_of_phases(image: SiteImage, batteries: Mapping[str, BatteryLimits]) -> tuple[float, float, float] | None:
    """What each phase carries beside the assets; none where the meter does not tell."""
    phases = image.phase_power_w
    if phases is None:
        return None
    rest = list(phases)
    for name, limits in batteries.items():
        battery = image.batteries.get(name)
        power = image.loads.get(name) if battery is None else battery.active_power_w
        for index in range(3):
            rest[index] -= (power or 0.0) * limits.share_of_phase(index + 1)
    return rest[0], rest[1], rest[2]


# -- proposals


def _bound(stack: _Stack, proposal: Proposal, rest: float | None) -> None:
    bounds = proposal.bounds
    if bounds is None:
        return
    if proposal.asset_id != GRID_CONNECTION:
        stack.bound(proposal.asset_id, bounds.min_w, bounds.max_w, bounds.reason)
    elif rest is not None:
        stack.bound(GRID_CONNECTION, bounds.min_w - rest, bounds.max_w - rest, bounds.reason)


def _started_loads_w(image: SiteImage, stack: _Stack, batteries: Mapping[str, BatteryLimits]) -> float:
    """By how much loads are moved in this cycle: a target for the connection was made without it, and batteries do not jump for it.

    In the next cycle it is measured, and whoever made the target can take it into account. Bounds hold at once.
    """
    chosen = [name for name in stack.chosen if name in batteries and not batteries[name].stores]
    return sum(stack.boxes[name].low - (image.loads.get(name) or 0.0) for name in chosen)


def _ramped(
    stack: _Stack,
    batteries: Mapping[str, BatteryLimits],
    held: Mapping[str, float],
    elapsed_s: float,
) -> None:
    """No asset's power grows faster than it may; where protection wants more, protection has it."""
    for name, limits in batteries.items():
        if math.isfinite(limits.ramp_w_per_s):
            power, step = held.get(name, 0.0), limits.ramp_w_per_s * max(0.0, elapsed_s)
            stack.bound(name, min(0.0, power - step), max(0.0, power + step), "ramp limit", told=False)


# -- what comes of it


def _decisions(
    image: SiteImage, stack: _Stack, batteries: Mapping[str, BatteryLimits], held: Mapping[str, float]
) -> list[Decision]:
    """Powers inside what is left of the set, and who decided each."""
    powers, limit = _powers(image, stack, batteries, held)
    common = stack.chosen.get(GRID_CONNECTION)
    free = [name for name in batteries if name not in stack.chosen]
    missing = 0.0 if common is None else common.wanted - sum(powers.values())
    rated = sum(batteries[name].rated_power_w for name in free) or 1.0
    decisions = []
    for name, limits in batteries.items():
        mine = stack.chosen.get(name)
        if mine is not None:
            requested, by, reason = mine.wanted, mine.proposal.source, mine.reason
        elif common is not None:
            requested, by = powers[name] + missing * limits.rated_power_w / rated, common.proposal.source
            reason = limit
        else:
            requested, by, reason = limits.safe_power_w, SAFE_STATE, None
        remaining = requested - powers[name]
        if abs(remaining) <= DEAD_BAND_W + 1 and reason is None:
            requested, remaining = powers[name], 0.0
        elif reason is None:
            box = stack.boxes[name]
            reason = box.clamp(requested)[1] or limit
            reason = reason or (
                f"cannot hold less than {limits.idle_below_w:g} W" if limits.idle_below_w else "dead band"
            )
        decisions.append(
            Decision(
                asset_id=name,
                time_ns=image.time_ns,
                target_w=powers[name],
                decided_by=by,
                limited_by=reason,
                requested_w=requested,
                remaining_w=remaining,
                conflicts=tuple(dict.fromkeys([*stack.conflicts[name], *stack.conflicts[GRID_CONNECTION]])),
            )
        )
    return decisions


def _powers(
    image: SiteImage, stack: _Stack, batteries: Mapping[str, BatteryLimits], held: Mapping[str, float]
) -> tuple[dict[str, float], str | None]:
    """Each asset's power, and the reason why the sum is not what was wanted."""
    ranges = {name: (box.low, box.high) for name, box in stack.boxes.items()}
    common = stack.chosen.get(GRID_CONNECTION)
    if common is not None:
        total, reason = stack.total.low, common.reason
    else:
        wish = {name: stack.boxes[name].clamp(one.safe_power_w)[0] for name, one in batteries.items()}
        total, reason = stack.reach(GRID_CONNECTION).clamp(sum(wish.values()))
        if reason is None:  # everybody at its own, where all of them together may be
            ranges = {name: (power, power) for name, power in wish.items()}
    weights = {name: weight(limits, image.batteries.get(name), total) for name, limits in batteries.items()}
    powers = share(total, ranges, weights)
    bands = {name: limits.idle_below_w for name, limits in batteries.items() if limits.idle_below_w > 0}
    if bands:  # a target is given up for the band, a bound is not
        ranges = {name: stack.bounded.get(name, (box.low, box.high)) for name, box in stack.boxes.items()}
        bounded = stack.bounded.get(GRID_CONNECTION, (stack.total.low, stack.total.high))
        powers = leave_idle_bands(powers, ranges, bands, bounded)
    return _settled(powers, stack, held), reason


def _settled(powers: Mapping[str, float], stack: _Stack, held: Mapping[str, float]) -> dict[str, float]:
    """Whole watts, and the value that stands where the new one is within the dead band; bounds are kept exactly."""
    result = dict(powers)
    low, high = stack.bounded.get(GRID_CONNECTION, (stack.total.low, stack.total.high))
    for name, power in powers.items():
        chosen = stack.chosen.get(name)
        if chosen is not None and chosen.proposal.priority <= Priority.FREQUENCY_RESPONSE:
            continue  # the reflex has written it already, to the last digit
        least, most = stack.bounded.get(name, (stack.boxes[name].low, stack.boxes[name].high))
        stands = held.get(name)
        others = sum(result.values()) - power
        near = [float(round(power)), float(math.floor(power)), float(math.ceil(power))]
        if stands is not None and abs(stands - power) < DEAD_BAND_W and (stands == 0) == (round(power) == 0):
            near.insert(0, stands)
        for value in near:
            if least <= value <= most and low <= others + value <= high:
                result[name] = value
                break
        else:
            result[name] = min(max(power, least), most)  # the last digits of a sum never leave an asset's own range
    return result


def _joined(reasons: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(reasons))


def production_limit(
    image: SiteImage, site: SiteLimits, rated_w: float, held_percent: float
) -> tuple[float, str] | None:
    """Share of their rating that the inverters may produce, and why; none where nothing has to be said.

    Batteries come first: only what they have left of an excess in the measured power is curtailed. With room again the limit
    rises by a tenth of the rating a cycle, with excess it falls by the excess at once. Without a measurement it never rises, and
    falls to what can be exported even where the site consumes nothing.

    Args:
        image: The site now.
        site: Limits of the connection.
        rated_w: Of all inverters that can be told, together.
        held_percent: What they were told last; 100 means free.
    """
    grid, pv = image.grid_power_w, image.pv_power_w
    if grid is None or pv is None:
        most = min(held_percent, 100 * site.export_limit_w / rated_w)
        return (most, "grid power unknown") if most < 100 else None
    over_w = -grid.value - site.export_limit_w
    if over_w <= 0 and held_percent >= 100:
        return None
    rise = 10.0 if over_w < -0.05 * rated_w and grid.quality == Quality.GOOD else 0.0
    percent = min(100.0, max(0.0, 100 * (-pv - over_w) / rated_w + rise))
    if grid.quality != Quality.GOOD:
        percent = min(percent, held_percent)
    return percent, "export limit"
