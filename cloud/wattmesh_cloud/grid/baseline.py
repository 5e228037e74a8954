"""What a site would have taken without an event: baselines that demand response is measured and paid against.

- **High 5 of 10**: the mean of the five days of highest consumption, in the window's hours, among the ten most recent days of the
  same kind without an event; at weekends three of five. Source: NYISO Emergency Demand Response Program Manual, section 5.2
  (Average Day CBL, five of ten); CAISO tariff section 4.13.4 (5-in-10 for homes, 3-in-5 at weekends), chosen for homes in
  *California ISO Baseline Accuracy Assessment* (Nexant, 20 November 2017). In the terms of NAESB WEQ-015 this is *Baseline Type-I*.
  For an aggregation the days are chosen by its sum, and are the same for all its sites.
- **Day-of adjustment**: symmetric and additive, by the mean difference in the three hours that end an hour before the event (PJM
  Manual 11, section 10.4, *Symmetric Additive Adjustment*), and at most by a share of the baseline (CAISO: 40 % for homes).
  Here the hours end before the event is announced, too: what is known of an event cannot be answered by raising its baseline.
- **Behind the meter**: what storage does is measured apart (CAISO, *Metering Generator Output*: demand less its device), so that
  charging before an event earns nothing: the baseline of load less PV as above, unadjusted for the battery, and the battery's usual
  power, which is the mean of the same hours of the days that the method looks at.
- **Control group**: sites drawn by chance that are not called. What the others would have taken is their own mean on the reference
  days plus the change that the control group shows (difference in differences; NAESB WEQ-015, randomised control).

Everything here is pure: readings in, watts out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta, tzinfo
from enum import StrEnum

from wattmesh_a2a.tariff import local_time

SLOT_NS = 900_000_000_000
_HOURS = 0.25
_LOOK_BACK_DAYS = 45
"""PJM, NYISO and CAISO look no farther back."""

Readings = Mapping[int, float]
"""Start of a quarter hour (UTC ns) → Wh; what is missing is not there."""


class Method(StrEnum):
    """How a baseline was made."""

    HIGH_5_OF_10 = "high-5-of-10"
    OFFERED = "offered"
    """What the site itself expected: where it has no history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How days are picked and adjusted."""

    days: int = 10
    highest: int = 5
    weekend_days: int = 5
    weekend_highest: int = 3
    adjust_hours: float = 3.0
    """Length of the hours that the day itself is looked at; 0 for no adjustment."""
    adjust_gap_s: int = 3600
    """How long before the event's start these end."""
    adjust_cap: float = 0.4
    """Largest adjustment, as a share of the mean magnitude of the baseline and the reading in these hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One site and event."""

    power_w: tuple[float, ...]
    """Of each quarter hour of the event."""
    method: Method
    days: tuple[str, ...] = ()
    """Local dates it was made of."""
    adjustment_w: float = 0.0

    @property
    def mean_w(self) -> float:
        """Over the event."""
        return sum(self.power_w) / len(self.power_w)


def slots_of(start_ns: int, end_ns: int) -> range:
    """The quarter hours of a window."""
    return range(start_ns - start_ns % SLOT_NS, end_ns, SLOT_NS)


def high_of_days(
    readings: Readings,
    start_ns: int,
    end_ns: int,
    zone: tzinfo,
    *,
    rules: Rules | None = None,
    excluded: Collection[date] = (),
) -> Baseline | None:
    """The high-5-of-10 baseline of a window; none where fewer days than are averaged have whole readings.

    Args:
        readings: Net energy of the site.
        start_ns: Of the event, UTC.
        end_ns: Of the event.
        zone: Where days begin at midnight.
        rules: How days are picked and adjusted.
        excluded: Local dates that count for nobody: days of events, holidays.
    """
    rules = rules or Rules()
    backs = highest_days(readings, start_ns, end_ns, zone, rules=rules, excluded=excluded)
    return None if backs is None else mean_of_days(readings, start_ns, end_ns, zone, backs, rules=rules)


def highest_days(
    readings: Readings,
    start_ns: int,
    end_ns: int,
    zone: tzinfo,
    *,
    rules: Rules | None = None,
    excluded: Collection[date] = (),
) -> tuple[int, ...] | None:
    """How many days back the days lie that a baseline is made of; none where too few have whole readings.

    For an aggregation the days are those of its sum, the same for all of its sites: each site's own five highest days would be too
    high together (CAISO's assessment, section 2, *aggregated versus customer specific baselines*). The arguments are those of
    :func:`high_of_days`.
    """
    rules = rules or Rules()
    window = slots_of(start_ns, end_ns)
    first = local_time(start_ns, zone).date()
    weekend = first.weekday() >= 5
    wanted, highest = (rules.weekend_days, rules.weekend_highest) if weekend else (rules.days, rules.highest)
    found: list[tuple[float, int]] = []
    for back in range(1, _LOOK_BACK_DAYS + 1):
        day = first - timedelta(days=back)
        if (day.weekday() >= 5) is not weekend or day in excluded:
            continue
        powers = _powers(readings, window, back, zone)
        if powers is not None:
            found.append((sum(powers), back))
            if len(found) == wanted:
                break
    if len(found) < highest:
        return None
    return tuple(sorted(back for _, back in sorted(found, key=lambda one: (-one[0], one[1]))[:highest]))


def mean_of_days(
    readings: Readings, start_ns: int, end_ns: int, zone: tzinfo, backs: Sequence[int], *, rules: Rules | None = None
) -> Baseline | None:
    """The baseline over days that were chosen, with the day's own adjustment; none where a reading of one is missing.

    Args:
        readings: Net energy of the site.
        start_ns: Of the event, UTC.
        end_ns: Of the event.
        zone: Where days begin at midnight.
        backs: How many days before.
        rules: How it is adjusted.
    """
    window = slots_of(start_ns, end_ns)
    rows = [_powers(readings, window, back, zone) for back in backs]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows) or not known:
        return None
    mean = [sum(column) / len(known) for column in zip(*known, strict=True)]
    shift = _adjustment(readings, start_ns, zone, backs, rules or Rules())
    first = local_time(start_ns, zone).date()
    return Baseline(
        power_w=tuple(power + shift for power in mean),
        method=Method.HIGH_5_OF_10,
        days=tuple(sorted(str(first - timedelta(days=back)) for back in backs)),
        adjustment_w=shift,
    )


def together(sites: Iterable[Readings]) -> dict[int, float]:
    """The sum of sites in each quarter hour that all of those have which have any reading of its day at all.

    A site that joined lately does not take the days before from the others.
    """
    rows = [dict(one) for one in sites if one]
    if not rows:
        return {}
    began = sorted(min(row) for row in rows)
    first = began[len(began) // 2]
    old = [row for row in rows if min(row) <= first]
    common = set.intersection(*(set(row) for row in old))
    return {slot: sum(row[slot] for row in old) for slot in common}


def behind_the_meter(
    demand: Readings,
    battery: Readings,
    start_ns: int,
    end_ns: int,
    zone: tzinfo,
    *,
    rules: Rules | None = None,
    excluded: Collection[date] = (),
) -> Baseline | None:
    """The baseline of a site whose storage is metered apart: demand by high 5 of 10, the battery by what it usually does.

    Args:
        demand: Load less PV.
        battery: Energy charged less discharged.
        start_ns: Of the event, UTC.
        end_ns: Of the event.
        zone: Where days begin at midnight.
        rules: How days are picked and adjusted.
        excluded: Local dates that count for nobody.
    """
    base = high_of_days(demand, start_ns, end_ns, zone, rules=rules, excluded=excluded)
    if base is None:
        return None
    every = (rules or Rules()).days
    plain = Rules(days=every, highest=1, weekend_days=every, weekend_highest=1, adjust_hours=0.0)
    usual = _usual(battery, start_ns, end_ns, zone, plain, excluded)
    powers = tuple(power + more for power, more in zip(base.power_w, usual, strict=True))
    return Baseline(power_w=powers, method=base.method, days=base.days, adjustment_w=base.adjustment_w)


def _usual(
    readings: Readings, start_ns: int, end_ns: int, zone: tzinfo, rules: Rules, excluded: Collection[date]
) -> list[float]:
    """Mean power of the window's quarter hours on the last days of the same kind; 0 where nothing is known."""
    window = slots_of(start_ns, end_ns)
    first = local_time(start_ns, zone).date()
    rows: list[list[float]] = []
    for back in range(1, _LOOK_BACK_DAYS + 1):
        day = first - timedelta(days=back)
        if (day.weekday() >= 5) is not (first.weekday() >= 5) or day in excluded:
            continue
        powers = _powers(readings, window, back, zone)
        if powers is not None:
            rows.append(powers)
            if len(rows) == rules.days:
                break
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [0.0] * len(window)


def _powers(readings: Readings, window: Sequence[int], back: int, zone: tzinfo) -> list[float] | None:
    """Watts of the same local time some days before; none where a reading is missing."""
    powers = []
    for slot in window:
        value = readings.get(_days_before(slot, back, zone))
        if value is None:
            return None
        powers.append(value / _HOURS)
    return powers


def _days_before(slot_ns: int, back: int, zone: tzinfo) -> int:
    """The same time on the wall's clock some days before, also where clocks change between."""
    local = local_time(slot_ns, zone)
    earlier = (local.replace(tzinfo=None) - timedelta(days=back)).replace(tzinfo=zone)
    return round(earlier.timestamp()) * 1_000_000_000


def _adjustment(readings: Readings, start_ns: int, zone: tzinfo, backs: Sequence[int], rules: Rules) -> float:
    """By how much the day itself differs from the chosen days in the hours before, within the cap; 0 where a reading is missing."""
    if rules.adjust_hours <= 0:
        return 0.0
    end = start_ns - rules.adjust_gap_s * 1_000_000_000
    window = slots_of(end - round(rules.adjust_hours * 3.6e12), end - end % SLOT_NS)
    today = _powers(readings, window, 0, zone)
    before = [_powers(readings, window, back, zone) for back in backs]
    known = [powers for powers in before if powers is not None]
    if today is None or not known or not window:
        return 0.0
    usual = sum(sum(powers) for powers in known) / len(known) / len(window)
    now = sum(today) / len(window)
    most = rules.adjust_cap * max(abs(usual), abs(now))
    return min(max(now - usual, -most), most)


def control_group(
    treated: Mapping[str, Readings],
    controls: Mapping[str, Readings],
    start_ns: int,
    end_ns: int,
    reference: Sequence[Callable[[int], int]],
) -> tuple[float, ...] | None:
    """What all treated sites together would have taken in each quarter hour, by difference in differences.

    Their usual mean plus what the controls' mean differs from its own usual one, times their number. None where a group has no
    reading of a slot.

    Args:
        treated: Readings of the sites that were called.
        controls: Readings of those that were not, drawn by chance.
        start_ns: Of the event.
        end_ns: Of the event.
        reference: From a slot to the same slot of each reference day.
    """
    result = []
    for slot in slots_of(start_ns, end_ns):
        usual_treated = _group_mean(treated, [move(slot) for move in reference])
        usual_controls = _group_mean(controls, [move(slot) for move in reference])
        now_controls = _group_mean(controls, [slot])
        if usual_treated is None or usual_controls is None or now_controls is None:
            return None
        result.append((usual_treated + now_controls - usual_controls) * len(treated) / _HOURS)
    return tuple(result)


def days_before(back: int, zone: tzinfo) -> Callable[[int], int]:
    """From a slot to the same local time ``back`` days before."""
    return lambda slot: _days_before(slot, back, zone)


def _group_mean(group: Mapping[str, Readings], slots: Sequence[int]) -> float | None:
    values = [value for readings in group.values() for slot in slots if (value := readings.get(slot)) is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far a baseline was from the truth (where it is known: without an event, or in a simulation)."""

    bias: float
    """Mean error over mean truth magnitude; positive: too high, so that too much is paid."""
    cvrmse: float
    """Root mean square error over mean truth magnitude."""


def errors(estimated: Sequence[float], truth: Sequence[float]) -> Errors | None:
    """Bias and CV(RMSE), the measures of the CAISO assessment; none where the truth is 0 throughout."""
    scale = sum(abs(value) for value in truth) / len(truth) if truth else 0.0
    if scale == 0:
        return None
    off = [one - other for one, other in zip(estimated, truth, strict=True)]
    return Errors(
        bias=sum(off) / len(off) / scale, cvrmse=(sum(value * value for value in off) / len(off)) ** 0.5 / scale
    )
