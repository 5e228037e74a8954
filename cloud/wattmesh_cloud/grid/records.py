"""What the grid agent keeps of a demand-response event, and its form on disk and in views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wattmesh_a2a.codec import message_from_json, message_to_json, type_name
from wattmesh_a2a.grid import DemandResponseDispatch, DemandResponseEvent, DemandResponseOffer, DemandResponseState
from wattmesh_a2a.messages import IntervalEnergy, Message

from wattmesh_cloud.grid.baseline import Baseline, Method
from wattmesh_cloud.store.base import JsonValue

FLEET = ""
"""The area of every site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPlan:
    """A demand-response event that somebody wants."""

    start_ns: int
    """UTC; a multiple of a quarter hour."""
    end_ns: int
    target_w: int
    """Change of grid power; negative asks for less import."""
    price_ticks: int
    """Payment per delivered energy."""
    reason: str
    area_id: str = FLEET
    sites: tuple[str, ...] = ()
    """Who may be asked; empty for every site of the area."""
    source: str = "operator"
    """Who wants it: ``forecast``, ``operator``, ``openadr``, an agent."""
    id: str = ""
    """Made from the start where it is left out."""


@dataclass(slots=True)
class Delivery:
    """One site in a running event, as it is measured now."""

    dispatched_w: int
    """Magnitude in force."""
    delivered_w: float | None = None
    """Against its baseline, over the last look; none where it is not measured."""


@dataclass(slots=True)
class Running:
    """An event with everything that has come of it."""

    event: DemandResponseEvent
    plan: EventPlan
    called: bool = False
    """Whether the sites have been asked and :attr:`dispatched` is the result."""
    offers: dict[str, DemandResponseOffer] = field(default_factory=dict)
    dispatched: dict[str, DemandResponseDispatch] = field(default_factory=dict)
    """In force, by site."""
    levels: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By site: from when on which magnitude was dispatched."""
    baselines: dict[str, Baseline] = field(default_factory=dict)
    control: tuple[str, ...] = ()
    """Sites that were drawn to be compared with, and not called."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Sites that were not asked, and why."""
    missing_w: int = 0
    """Of the target, for which there were no offers."""
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    revisions: list[dict[str, JsonValue]] = field(default_factory=list)
    required_w: int = 0
    """What was dispatched at first, all sites together: what the event has to deliver."""
    delivered_wh: dict[str, int] = field(default_factory=dict)
    """What is paid: between 0 and what was dispatched."""
    measured_wh: dict[str, float] = field(default_factory=dict)
    """Baseline against meter as it came out, whatever its sign."""
    looked_ns: int = 0
    """When it was looked at last."""
    decided_ns: int = 0
    """When it was decided last whether to dispatch anew."""
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By site since then: delivered power times seconds, and seconds."""
    missed_wh: float = 0.0
    """Of what the event had to deliver so far; negative: too much."""
    comparison_wh: float | None = None
    """What all called sites delivered by comparison with the control group; none without one."""

    def dispatched_wh(self, site: str) -> float:
        """Energy that was asked of a site, a magnitude."""
        rows = self.levels.get(site, [])
        ends = [start for start, _ in rows[1:]] + [self.event.end_ns]
        return sum(power * max(0, end - start) / 3.6e12 for (start, power), end in zip(rows, ends, strict=True))


@dataclass(frozen=True, slots=True)
class Reading:
    """What baselines need of a metered quarter hour, Wh."""

    net: int
    demand: int
    """Load less PV."""
    battery: int
    """Charged less discharged."""


def reading_of(message: IntervalEnergy) -> Reading:
    """A whole quarter hour, reduced."""
    return Reading(
        message.import_wh - message.export_wh,
        message.load_wh - message.pv_wh,
        message.battery_charge_wh - message.battery_discharge_wh,
    )


def summary(running: Running) -> dict[str, JsonValue]:
    """An event for the report, the API, the console and the store."""
    event = running.event
    dispatched_wh = {site: round(running.dispatched_wh(site)) for site in running.levels}
    measured = sum(running.measured_wh.values()) if running.measured_wh else None
    required = running.required_w * (event.end_ns - event.start_ns) / 3.6e12
    return {
        "id": event.id,
        "area_id": running.plan.area_id,
        "source": running.plan.source,
        "start_ns": event.start_ns,
        "end_ns": event.end_ns,
        "target_w": event.target_w,
        "price_ticks": event.price_ticks,
        "state": str(event.state),
        "reason": event.reason,
        "offers": {site: offer.offered_w for site, offer in running.offers.items()},
        "dispatched_w": {site: one.power_w for site, one in running.dispatched.items()},
        "dispatched_wh": dispatched_wh,
        "baseline_w": {site: [round(power) for power in one.power_w] for site, one in running.baselines.items()},
        "baseline_method": {site: str(one.method) for site, one in running.baselines.items()},
        "control": list(running.control),
        "left_out": dict(running.left_out),
        "missing_w": running.missing_w,
        "tracking": {
            site: {"dispatched_w": one.dispatched_w, "delivered_w": one.delivered_w}
            for site, one in running.deliveries.items()
        },
        "revisions": list(running.revisions),
        "delivered_wh": dict(running.delivered_wh),
        "required_w": running.required_w,
        "measured_wh": {site: round(wh) for site, wh in running.measured_wh.items()},
        "delivered_share": measured / required if measured is not None and required else None,
        "comparison_wh": running.comparison_wh,
        "paid_units": {site: wh * event.price_ticks for site, wh in running.delivered_wh.items()},
    }


def dump(running: Running) -> dict[str, Any]:
    """An event under way, for the disk."""
    return {
        "event": _row(running.event),
        "plan": {name: getattr(running.plan, name) for name in running.plan.__slots__},
        "called": running.called,
        "offers": [_row(one) for one in running.offers.values()],
        "dispatched": [_row(one) for one in running.dispatched.values()],
        "levels": running.levels,
        "baselines": {
            site: {
                "power_w": one.power_w,
                "method": str(one.method),
                "days": one.days,
                "adjustment_w": one.adjustment_w,
            }
            for site, one in running.baselines.items()
        },
        "control": running.control,
        "left_out": running.left_out,
        "missing_w": running.missing_w,
        "required_w": running.required_w,
        "revisions": running.revisions,
    }


def restored(row: Mapping[str, Any]) -> Running:
    """What :func:`dump` wrote. An event whose answers were not kept is only announced."""
    event = _message(row["event"])
    assert isinstance(event, DemandResponseEvent)
    if not row["called"] and event.state is DemandResponseState.DISPATCHED:
        event = message_from_json(type_name(event), {**message_to_json(event), "state": "announced"})
    plan = EventPlan(**{**row["plan"], "sites": tuple(row["plan"]["sites"])})
    running = Running(event=event, plan=plan, called=row["called"])  # type: ignore[arg-type]  # checked above
    offers = [_message(one) for one in row["offers"]]
    dispatches = [_message(one) for one in row["dispatched"]]
    running.offers = {one.site_id: one for one in offers if isinstance(one, DemandResponseOffer)}
    running.dispatched = {one.site_id: one for one in dispatches if isinstance(one, DemandResponseDispatch)}
    running.levels = {site: [(int(at), int(power)) for at, power in rows] for site, rows in row["levels"].items()}
    running.baselines = {
        site: Baseline(
            power_w=tuple(one["power_w"]),
            method=Method(one["method"]),
            days=tuple(one["days"]),
            adjustment_w=one["adjustment_w"],
        )
        for site, one in row["baselines"].items()
    }
    running.control, running.left_out = tuple(row["control"]), dict(row["left_out"])
    running.missing_w, running.required_w = row["missing_w"], row["required_w"]
    running.revisions = list(row["revisions"])
    return running


def _row(message: Message) -> dict[str, Any]:
    return {"type": type_name(message), "data": message_to_json(message)}


def _message(row: Mapping[str, Any]) -> Message:
    return message_from_json(row["type"], row["data"])
