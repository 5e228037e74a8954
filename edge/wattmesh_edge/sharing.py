"""How assets share a power: plain numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping

from wattmesh_edge.image import BatteryImage
from wattmesh_edge.limits import BatteryLimits

_LEAST = 1e-6
"""Weight of who should take nothing while others can: never 0, so that what must be taken is taken."""


def weight(limits: BatteryLimits, battery: BatteryImage | None, total_w: float) -> float:
    """Energy in Wh that a battery can still take (``total_w`` positive) or give: its part of a common power.

    A battery that has lost capacity counts with what it still holds. A load takes part only when nothing else can.
    """
    soc = battery.soc_percent if battery is not None else None
    if not limits.stores or soc is None:
        return _LEAST
    room = limits.max_soc_percent - soc if total_w > 0 else soc - limits.min_soc_percent
    return max(_LEAST, room / 100 * limits.rated_energy_wh * limits.health)


def share(total_w: float, ranges: Mapping[str, tuple[float, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """Share a power in proportion to weights, each inside its range.

    Every one gets ``clamp(level · weight)`` for the one level at which the sum is right (water filling): where one is at its
    limit the others take more. All move in the same direction, but where a range forbids it.

    Args:
        total_w: The sum; outside what the ranges allow the nearest possible sum comes out.
        ranges: Lowest and highest power by asset.
        weights: Above 0, by asset.
    """
    if not ranges:
        return {}
    low, high = sum(one for one, _ in ranges.values()), sum(one for _, one in ranges.values())
    total_w = min(max(total_w, low), high)
    # The sum is a piecewise linear function of the level; its corners are where somebody meets a limit.
    corners = sorted({end / weights[name] for name, ends in ranges.items() for end in ends} | {0.0})
    below, above = corners[0], corners[-1]
    while len(corners) > 2:
        middle = corners[len(corners) // 2]
        if _sum_at(middle, ranges, weights) <= total_w:
            below, corners = middle, corners[len(corners) // 2 :]
        else:
            above, corners = middle, corners[: len(corners) // 2 + 1]
    first, last = _sum_at(below, ranges, weights), _sum_at(above, ranges, weights)
    level = below if last <= first else below + (above - below) * (total_w - first) / (last - first)
    powers = {name: _clamp(level * weights[name], ends) for name, ends in ranges.items()}
    return _mended(powers, total_w, ranges)


def leave_idle_bands(
    powers: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
    bands: Mapping[str, float],
    total: tuple[float, float],
) -> dict[str, float]:
    """Powers without those that a device cannot hold: between 0 and its band, either way.

    The one with the least share goes to 0 and the others take its part, so that a small power is taken by few; the last one
    goes to 0, or to the edge of its band where only that keeps the sum inside ``total``. A range that holds no power outside the
    band and not 0 either is left as it is: protection is worth more than a device's comfort.
    """
    result = dict(powers)
    fixed: set[str] = set()
    while True:
        caught = [name for name, band in bands.items() if name not in fixed and 0 < abs(result[name]) < band]
        if not caught:
            return result
        name = min(caught, key=lambda one: abs(result[one]))
        fixed.add(name)
        before = result[name]
        candidates = [0.0, bands[name] if before > 0 else -bands[name], -bands[name] if before > 0 else bands[name]]
        for value in candidates:
            if not ranges[name][0] <= value <= ranges[name][1]:
                continue
            trial = _moved({**result, name: value}, before - value, ranges, bands, fixed)
            if total[0] - 1e-6 <= sum(trial.values()) <= total[1] + 1e-6:
                result = trial
                break


def _moved(
    powers: dict[str, float],
    left_w: float,
    ranges: Mapping[str, tuple[float, float]],
    bands: Mapping[str, float],
    fixed: set[str],
) -> dict[str, float]:
    """What one gave up goes to those that run already, as far as they can take it."""
    for name, (low, high) in ranges.items():
        if name in fixed or abs(left_w) < 1e-9:
            continue
        value = min(max(powers[name] + left_w, low), high)
        if 0 < abs(value) < bands.get(name, 0.0) and abs(powers[name]) >= bands.get(name, 0.0):
            continue
        left_w -= value - powers[name]
        powers[name] = value
    return powers


def _sum_at(level: float, ranges: Mapping[str, tuple[float, float]], weights: Mapping[str, float]) -> float:
    return sum(_clamp(level * weights[name], ends) for name, ends in ranges.items())


def _mended(powers: dict[str, float], total_w: float, ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The last digits of the sum, put where there is room."""
    for name, (low, high) in ranges.items():
        error = total_w - sum(powers.values())
        if abs(error) < 1e-9:
            break
        powers[name] = min(max(powers[name] + error, low), high)
    return powers


def _clamp(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])
