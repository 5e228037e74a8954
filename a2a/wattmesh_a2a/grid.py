"""Frequency and grid events, demand response."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FrequencyEventKind(StrEnum):
    """What the detector saw."""

    UNDER_FREQUENCY = "under_frequency"
    OVER_FREQUENCY = "over_frequency"
    ROCOF = "rocof"
    UNDER_VOLTAGE = "under_voltage"
    OVER_VOLTAGE = "over_voltage"
    INVALID = "invalid"
    """The measurement cannot be believed; power was held, then moved to the safe setpoint."""
    PHASE_STEP = "phase_step"
    """The phase jumped: a switching, a vector shift. Nothing was concluded of the frequency meanwhile."""
    ISLANDING = "islanding"
    """A phase step and an excursion soon after: this part of the grid may have lost the rest."""
    TRIP = "trip"
    """Beyond a trip threshold for its clearing time: power was brought to zero until service may be entered again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyEvent:
    """One event of the reflex loop, from the sample that crossed to the bytes that answered."""

    id: str
    site_id: str
    kind: FrequencyEventKind
    start_ns: int
    """UTC of the detection."""
    end_ns: int | None
    """UTC at which the quantity was back inside its exit threshold; none while under way."""
    extreme_frequency_hz: float | None
    """Farthest from nominal; none where there was no valid frequency."""
    extreme_rocof_hz_per_s: float | None
    """Largest over 500 ms; none where it was not known."""
    response_w: float
    """Largest change of power that was written; 0 where the site only watches."""
    detection_to_write_ns: int | None
    """Real time from the receipt of the sample that was answered to the setpoint's bytes on the socket; none without a write."""
    extreme_voltage_pu: float | None = None
    """Farthest from nominal; none where the source measures no voltage."""
    phase_step_deg: float | None = None
    cause: str | None = None
    """Of an invalid measurement."""


class DemandResponseState(StrEnum):
    """Life of a demand-response event."""

    ANNOUNCED = "announced"
    DISPATCHED = "dispatched"
    ENDED = "ended"
    SETTLED = "settled"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandResponseEvent:
    """A request of the grid side to change the power at connection points for a while."""

    id: str
    start_ns: int
    """UTC."""
    end_ns: int
    """UTC."""
    target_w: int
    """Change of the fleet's grid power; negative asks for less import."""
    price_ticks: int
    """Payment per delivered energy, in ticks of 0.01 ct/kWh."""
    state: DemandResponseState
    reason: str
    baseline_w: int | None = None
    """What the receiving site will be measured against, the mean over the window; none where its own expectation counts."""


class FlexibilitySource(StrEnum):
    """What a site moves when it answers an event."""

    BATTERY = "battery"
    EV = "ev"
    LOAD = "load"
    """A load that can wait."""
    PV = "pv"
    """Production that can be curtailed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferPart:
    """One part of an offer; each may be taken without the others."""

    source: FlexibilitySource
    power_w: int
    """Change of the site's grid power for the whole window; same sign as the event's target."""
    price_ticks: int
    """Least payment it asks for, in ticks of 0.01 ct/kWh."""
    divisible: bool = True
    """Whether less of it may be taken; else all or nothing, like a load that is on or off."""
    rebound_wh: int = 0
    """Energy that is taken after the event instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandResponseOffer:
    """A site's answer to an announced event."""

    event_id: str
    site_id: str
    offered_w: int
    """Change of the site's grid power, against the event's baseline where it has one, that it can hold for the whole window; same
    sign as the event's target; 0 declines."""
    price_ticks: int
    """Least payment it asks for, in ticks of 0.01 ct/kWh."""
    baseline_w: int
    """Grid power it expects without the event."""
    parts: tuple[OfferPart, ...] = ()
    """What ``offered_w`` is made of, their sum; none: one divisible part at ``price_ticks``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandResponseDispatch:
    """The accepted part of an offer: binding for the site."""

    event_id: str
    site_id: str
    start_ns: int
    end_ns: int
    power_w: int
    """Change against the baseline; 0 where the offer was not taken."""
    baseline_w: int
    price_ticks: int


class GridStatus(StrEnum):
    """State of the grid as the grid agent sees it."""

    NORMAL = "normal"
    ALERT = "alert"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True, kw_only=True)
class GridEvent:
    """A change of the grid's state that agents should know of."""

    id: str
    time_ns: int
    status: GridStatus
    frequency_hz: float | None
    reason: str
    stage: int = 0
    """Of an emergency; 0 for none."""
    area_id: str = ""
    """Where; empty for everywhere."""
    drill: bool = False
    """Whether this is practice: nobody may act on it but by showing it."""


class InstructionKind(StrEnum):
    """What the operator asks of a site in an emergency."""

    SHED = "shed"
    """Import no more than a limit."""
    CURTAIL = "curtail"
    """Export no more than a limit."""
    ISLAND = "island"
    """Exchange nothing with the grid: balance load with what the site has."""
    RECONNECT = "reconnect"
    """Come back after a blackout, within limits that grow step by step."""
    RELEASE = "release"
    """The instruction of this id is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridInstruction:
    """The operator's word in an emergency; it ends by itself, and is renewed. Answered by :class:`GridInstructionResult`."""

    id: str
    """One a site and emergency; a later one of the same id takes the earlier one's place."""
    site_id: str
    kind: InstructionKind
    stage: int
    start_ns: int
    """UTC."""
    end_ns: int
    """UTC from which on it has no effect, whatever becomes of the cloud."""
    import_limit_w: int | None
    """Most import, a positive magnitude; none for no limit."""
    export_limit_w: int | None
    """Most export, a positive magnitude; none for no limit."""
    drill: bool
    """Practice: the gateway answers what it would do, and does nothing."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GridInstructionResult:
    """What an instruction does at a site, by the arbiter's own decision on the last measurement; the same in a drill."""

    instruction_id: str
    site_id: str
    drill: bool
    before_w: int | None
    """Grid power now; none where it is not known."""
    expected_w: int | None
    """Grid power with the instruction; none where it is not known."""
    unmet_w: int
    """By how much the limits are still broken: what has to be switched off by hand."""
    setpoints_w: dict[str, float]
    """What each steered asset would be, or is, set to."""
