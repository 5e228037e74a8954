"""OpenADR events as plans for our own, and what came of ours as OpenADR reports. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from wattmesh_a2a.tariff import price_ticks

from wattmesh_cloud.grid.records import EventPlan
from wattmesh_cloud.openadr.models import (
    Event,
    Interval,
    IntervalPeriod,
    PayloadDescriptor,
    Report,
    ResourceReport,
    ValuesMap,
)

NS_PER_S = 1_000_000_000
SLOT_NS = 900 * NS_PER_S
_LONGEST = timedelta(hours=12)
_FARTHEST = timedelta(days=366)
_LARGEST_W = 1e12
SIMPLE_SHARES = {1: 0.1, 2: 0.2, 3: 0.3}
"""What the levels of SIMPLE ask for: shares of the expected import. The specification leaves their meaning to the program."""
_SCALE = {"KW": 1000.0, "W": 1.0, "MW": 1e6}

ExpectedImport = Callable[[int, int], float]
"""Mean import of the fleet that is expected in a window, W."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An event that we cannot follow."""

    event_id: str
    reason: str


def plans_of(
    event: Event, now_ns: int, *, price: float, expected_w: ExpectedImport
) -> tuple[list[EventPlan], list[Refusal]]:
    """One plan for each interval that asks for a change of power, and what cannot be followed.

    - ``DISPATCH_SETPOINT_RELATIVE``: the change itself.
    - ``IMPORT_CAPACITY_LIMIT``, ``DISPATCH_SETPOINT``: the change from what is expected.
    - ``SIMPLE``: levels 1 to 3 as shares of what is expected; 0 asks for nothing.
    - ``PRICE`` beside one of them pays for delivered energy; without it the price of the cloud's file does.

    Args:
        event: From the VTN.
        now_ns: UTC.
        price: Currency per delivered kWh where the event names none.
        expected_w: Gives the expected import.
    """
    plans: list[EventPlan] = []
    wrong: list[Refusal] = []
    units = {one.payload_type: one for one in event.payload_descriptors or ()}
    for place, (interval, start, end) in enumerate(_windows(event, now_ns)):
        if isinstance(start, str):
            wrong.append(Refusal(event_id=event.id, reason=f"interval {interval.id}: {start}"))
            continue
        assert end is not None
        payloads = {one.type: one for one in interval.payloads}
        target = _target_w(payloads, units, expected_w(start, end))
        if isinstance(target, str):
            wrong.append(Refusal(event_id=event.id, reason=f"interval {interval.id}: {target}"))
        elif target is not None and round(target) != 0:
            paid = _number(payloads.get("PRICE"))
            plans.append(
                EventPlan(
                    id=name_of(event, place), start_ns=start, end_ns=end, target_w=round(target),
                    price_ticks=max(0, price_ticks(price if paid is None else min(paid, 1e4))), source="openadr",
                    reason=f"OpenADR event {event.event_name or event.id}"[:200],
                )
            )  # fmt: skip
    return plans, wrong


def name_of(event: Event, interval: int) -> str:
    """Our event's id: the same for the same interval of the same version of an event."""
    version = f"{event.id} {event.modification_date_time or ''}"
    return f"adr-{hashlib.sha256(version.encode()).hexdigest()[:12]}-{interval}"


def _windows(event: Event, now_ns: int) -> list[tuple[Interval, int | str, int | None]]:
    """Start and end of each interval on quarter hours, or why it cannot be had."""
    rows: list[tuple[Interval, int | str, int | None]] = []
    default = event.interval_period
    after: datetime | None = None
    now = datetime.fromtimestamp(now_ns // NS_PER_S, tz=UTC)
    for interval in event.intervals:
        period = interval.interval_period or default
        if period is None:
            rows.append((interval, "neither it nor the event has an intervalPeriod", None))
            continue
        own = interval.interval_period is not None
        begin = period.start if own or after is None else after
        if begin is None:
            begin = now
        if begin.tzinfo is None:
            rows.append((interval, "its start has no time zone", None))
            continue
        if abs(begin - now) > _FARTHEST:
            rows.append((interval, "it begins in more than a year, or began more than a year ago", None))
            continue
        length = period.duration
        if length is None or not timedelta(0) < length <= _LONGEST:
            rows.append((interval, "its duration has to be above 0 and at most 12 h", None))
            continue
        after = begin + length
        start = -(-_ns(begin) // SLOT_NS) * SLOT_NS
        end = -(-_ns(after) // SLOT_NS) * SLOT_NS
        if start <= now_ns:
            rows.append((interval, "it has begun: nobody can be asked in time", None))
        else:
            rows.append((interval, start, end))
    return rows


def _ns(moment: datetime) -> int:
    return round(moment.timestamp()) * NS_PER_S


def _target_w(
    payloads: Mapping[str, ValuesMap], units: Mapping[str, PayloadDescriptor], expected_w: float
) -> float | str | None:
    """Change of grid power; a sentence where it cannot be had; none where nothing of power is asked."""
    for name in ("DISPATCH_SETPOINT_RELATIVE", "IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT"):
        if name not in payloads:
            continue
        value, unit = _number(payloads[name]), units.get(name)
        scale = _SCALE.get((unit.units if unit is not None and unit.units else "KW").upper())
        if value is None or scale is None or not abs(value * scale) <= _LARGEST_W:
            return f"{name} has no number in KW, W or MW"
        watts = value * scale
        if name == "DISPATCH_SETPOINT_RELATIVE":
            return watts
        change = watts - expected_w
        return min(0.0, change) if name == "IMPORT_CAPACITY_LIMIT" else change
    if "SIMPLE" in payloads:
        level = _number(payloads["SIMPLE"])
        if level is None or level != int(level) or not 0 <= level <= 3:
            return "SIMPLE has no level from 0 to 3"
        return -SIMPLE_SHARES.get(int(level), 0.0) * max(0.0, expected_w)
    return None


def _number(payload: ValuesMap | None) -> float | None:
    if payload is None or not payload.values:
        return None
    first = payload.values[0]
    return float(first) if isinstance(first, int | float) and not isinstance(first, bool) else None


def report_of(event: Event, summaries: Sequence[Mapping[str, Any]], client_name: str) -> Report:
    """What was delivered, for the whole fleet: baseline and usage in kWh of each interval that we followed.

    Nothing of a single site leaves the house: the resource is ``AGGREGATED_REPORT``.
    """
    intervals = []
    for place, row in enumerate(summaries):
        hours = (row["end_ns"] - row["start_ns"]) / 3.6e12
        baseline = sum(sum(powers) / max(1, len(powers)) for powers in row["baseline_w"].values()) * hours / 1000
        direction = -1 if row["target_w"] < 0 else 1
        usage = baseline + direction * sum(row["measured_wh"].values()) / 1000
        intervals.append(
            Interval(
                id=place,
                interval_period=IntervalPeriod(
                    start=datetime.fromtimestamp(row["start_ns"] // NS_PER_S, tz=UTC), duration=timedelta(hours=hours)
                ),
                payloads=[
                    ValuesMap(type="USAGE", values=[round(usage, 3)]),
                    ValuesMap(type="BASELINE", values=[round(baseline, 3)]),
                ],
            )
        )
    return Report(
        program_id=event.program_id, event_id=event.id, client_name=client_name, report_name=f"{client_name} {event.id}"[:128],
        payload_descriptors=[
            PayloadDescriptor(object_type="REPORT_PAYLOAD_DESCRIPTOR", payload_type=name, units="KWH", reading_type="SUMMED")
            for name in ("USAGE", "BASELINE")
        ],
        resources=[ResourceReport(intervals=intervals)],
    )  # fmt: skip
