"""The grid optimisation agent's policy: demand response for a peak that stands out, the status that the frequency shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo

from wattmesh_cloud.agents.proposals import CallResponse, CancelResponse, DeclareStatus, Proposal, RaiseAlarm
from wattmesh_cloud.agents.situations import SLOT_NS, SLOTS_A_DAY, GridSituation

STALE_S = 7200.0
ALERT_SHARE, EMERGENCY_SHARE = 0.004, 0.01
"""Deviation from the nominal frequency: 0.2 and 0.5 Hz at 50 Hz."""
CALM_S = 600.0
MOST_ABSENT = 0.5
_NEAR_PEAK = 0.9
_FEW_W = 500.0
"""Nobody is asked for less."""


def policy(situation: GridSituation) -> list[Proposal]:
    """See the module."""
    found: list[Proposal] = []
    status = seen_status(situation)
    if status is not None and status[0] != situation.status:
        found.append(DeclareStatus(status=status[0], rationale=status[1]))  # type: ignore[arg-type]  # one of the three words
    if situation.sites and situation.online < MOST_ABSENT * situation.sites:
        why = f"{situation.sites - situation.online} of {situation.sites} gateways are away"
        found.append(RaiseAlarm(subject="fleet", severity="warning", rationale=why))
        return found
    found += _response(situation)
    return found


def seen_status(situation: GridSituation) -> tuple[str, str] | None:
    """The status that the sites' frequencies show, with its reason; none where they show nothing new.

    The median of the sites counts: one meter that is wrong moves nothing. A state is left only after a quiet time.
    """
    values = sorted(situation.frequency_hz.values())
    if not values:
        return None
    middle = values[len(values) // 2]
    off = abs(middle - situation.nominal_hz) / situation.nominal_hz
    told = f"median frequency of {len(values)} sites {middle:.3f} Hz"
    if off >= EMERGENCY_SHARE and len(values) >= 2:
        return "emergency", told
    if off >= ALERT_SHARE:
        return ("emergency" if situation.status == "emergency" else "alert"), told
    quiet = situation.quiet_s is None or situation.quiet_s > CALM_S
    if situation.status != "normal" and quiet and off < ALERT_SHARE / 2:
        return "normal", f"{told}, quiet for more than {CALM_S / 60:.0f} min"
    return None


def _response(situation: GridSituation) -> list[Proposal]:
    age = situation.forecast_age_s
    if not situation.response_enabled or age is None or age > STALE_S or situation.status == "emergency":
        return []
    now = situation.now_ns
    for event in situation.events:
        if event.state == "announced" and event.start_ns > now:
            expected = mean_w(situation, event.start_ns, event.end_ns)
            if expected is not None and expected < -0.5 * event.target_w:
                why = f"expected {expected / 1000:.1f} kW in the window of {event.id}: no peak any more"
                return [CancelResponse(event_id=event.id, rationale=why)]
    if any(event.end_ns > now - SLOTS_A_DAY * SLOT_NS and event.state != "cancelled" for event in situation.events):
        return []  # one a day: people and batteries need their rest
    window = peak_window(situation)
    if window is None:
        return []
    start, mean, threshold = window
    target = round(mean * situation.settings["response_share"])
    if target < _FEW_W:
        return []
    why = f"expected peak of {mean / 1000:.1f} kW, {situation.percentile:.0f}th percentile of the day {threshold / 1000:.1f} kW"
    return [
        CallResponse(
            start_ns=start,
            duration_s=situation.duration_s - situation.duration_s % 900,
            target_w=-target,
            price_ticks=situation.price_ticks,
            rationale=why,
        )
    ]


def peak_window(situation: GridSituation) -> tuple[int, float, float] | None:
    """Start, mean power and threshold of the day's highest window after the notice; none where there is no peak worth an event."""
    first = situation.now_ns + situation.notice_s * 1_000_000_000
    skip = max(0, -(-(first - situation.start_ns) // SLOT_NS))
    return highest(situation, skip, skip + SLOTS_A_DAY)


def tomorrows_peak(situation: GridSituation, zone: tzinfo) -> tuple[int, float, float] | None:
    """The same of the next day on the clock of ``zone``."""
    now = datetime.fromtimestamp(situation.now_ns // 1_000_000_000, tz=zone)
    start = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    edges = (start, start + timedelta(days=1))
    low, high = ((round(one.timestamp()) * 1_000_000_000 - situation.start_ns) // SLOT_NS for one in edges)
    first = situation.now_ns + situation.notice_s * 1_000_000_000
    return highest(situation, max(low, -(-(first - situation.start_ns) // SLOT_NS)), high)


def highest(situation: GridSituation, low: int, high: int) -> tuple[int, float, float] | None:
    """The highest window among some of the expected slots, where it stands out of them."""
    skip = max(0, low)
    powers: Sequence[float] = situation.expected_w[skip:high]
    width = situation.duration_s // 900
    if width < 1 or len(powers) < max(width, 8):
        return None
    means = [sum(powers[at : at + width]) / width for at in range(len(powers) - width + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    threshold = sorted(powers)[min(len(powers) - 1, int(len(powers) * situation.percentile / 100))]
    if means[best] <= 0 or means[best] < _NEAR_PEAK * threshold:
        return None
    return situation.start_ns + (skip + best) * SLOT_NS, means[best], threshold


def mean_w(situation: GridSituation, start_ns: int, end_ns: int) -> float | None:
    """Expected mean power of a window; none where the forecast does not cover it."""
    low, high = (start_ns - situation.start_ns) // SLOT_NS, -(-(end_ns - situation.start_ns) // SLOT_NS)
    powers = situation.expected_w[max(0, low) : high]
    if low < 0 or high > len(situation.expected_w) or not powers:
        return None
    return sum(powers) / len(powers)
