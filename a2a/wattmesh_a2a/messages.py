"""Every message of the system: a frozen dataclass and a versioned type name.

``MESSAGE_TYPES`` maps the name on the wire to the class. A major version in the name changes when an old receiver would
misread the new meaning; unknown fields are ignored, unknown names are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.consult import AgentAdvice, AgentConsult
from wattmesh_a2a.control import Decision
from wattmesh_a2a.devices import AssetKind
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import (
    DemandResponseDispatch,
    DemandResponseEvent,
    DemandResponseOffer,
    FrequencyEvent,
    GridEvent,
    GridInstruction,
    GridInstructionResult,
)
from wattmesh_a2a.market import Order, OrderStatus, RejectReason, Trade
from wattmesh_a2a.observing import (
    DevicesQuery,
    DevicesReport,
    EventTraceQuery,
    EventTraceReport,
    FrequencySamples,
    FrequencyWatch,
)
from wattmesh_a2a.plans import CoordinationReply, CoordinationRound, SitePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetSummary:
    """What the cloud needs to know of an asset: never a register."""

    id: str
    kind: AssetKind
    rated_power_w: float | None
    rated_energy_wh: float | None
    template: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexibleNeed:
    """A load that can wait: what it needs in each of its windows."""

    device: str
    energy_wh: float
    power_w: float
    begins: str
    """Local time of day, ``HH:MM``; a window that ends before it begins goes over midnight, one that ends when it begins takes
    all the time from one end to the next."""
    ends: str
    days: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    """Local days on which a window ends, Monday is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnnouncement:
    """A gateway is up: who it is and what it has. Sent retained with the agent card and after every start."""

    site_id: str
    gateway_id: str
    session: str
    """New at every start of the gateway."""
    started_ns: int
    software: str
    time_zone: str
    market_area: str
    import_limit_w: float
    """Connection limit for import, a positive magnitude."""
    export_limit_w: float
    """Connection limit for export, a positive magnitude."""
    assets: tuple[AssetSummary, ...]
    agents: tuple[str, ...]
    frequency_response: bool
    """Whether the reflex may move power here, or only watches."""
    flexible: tuple[FlexibleNeed, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryAck:
    """The cloud's word that batches are durable. Only this lets a gateway forget them."""

    stream: str
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryResend:
    """The cloud misses a run of batches between others; answered by :class:`TelemetryHeld`."""

    stream: str
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryHeld:
    """What a gateway still has of a missing run, and sends again; none means that the run is gone for good."""

    stream: str
    first: int
    last: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalEnergy:
    """Energy of a site in one delivery slot, from its meters. Magnitudes are never negative."""

    site_id: str
    slot_start_ns: int
    slot_s: int
    import_wh: int
    export_wh: int
    pv_wh: int
    battery_charge_wh: int
    battery_discharge_wh: int
    load_wh: int
    """Derived: import + pv + discharge − export − charge, not below 0."""
    method: str
    """``register`` (difference of the meter's counters) or ``integral`` (of measured power)."""
    complete: bool
    """Whether the whole slot was covered; an incomplete one is settled by the stated substitute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderBatch:
    """A participant's orders for one slot; they replace whatever it had in that slot's book."""

    participant_id: str
    area_id: str
    slot_start_ns: int
    orders: tuple[Order, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderResult:
    """The market's word on one order."""

    client_order_id: str
    status: OrderStatus
    reason: RejectReason | None = None
    detail: str = ""
    filled_wh: int = 0
    """Traded so far."""
    open_wh: int = 0
    """Still in the book."""
    trades: tuple[Trade, ...] = ()
    """Made by this very message; left out where they are too many for a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPlace:
    """New orders beside those that a participant already has. Answered by :class:`OrderResults`.

    The same client order id with the same contents is answered with where that order stands, and changes nothing.
    """

    participant_id: str
    area_id: str
    orders: tuple[Order, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAmend:
    """Other quantity or price for an open order. Answered by :class:`OrderResults`.

    Less quantity at the same price keeps the order's place in time; anything else loses it. ``quantity_wh`` counts what has
    traded already, so a trade on the way to the market does not make the order larger.
    """

    participant_id: str
    area_id: str
    slot_start_ns: int
    client_order_id: str
    quantity_wh: int
    price_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCancel:
    """Take open orders back. Answered by :class:`OrderResults`, one result an order."""

    participant_id: str
    area_id: str
    slot_start_ns: int | None = None
    """None for every slot."""
    client_order_ids: tuple[str, ...] = ()
    """None for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderResults:
    """Answer to :class:`OrderPlace`, :class:`OrderAmend`, :class:`OrderCancel`; given after the journal is durable."""

    results: tuple[OrderResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executions:
    """Trades of a participant's resting orders, told at once; those of an arriving order stand in its answer.

    A trade's id is unique: who counts each id once, from both, has the position. A trade may be told of late or, after a crash of
    the market, not at all: the :class:`Commitment` at gate closure holds every trade, and replaces what was counted.
    """

    participant_id: str
    area_id: str
    trades: tuple[Trade, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketLevel:
    """Open energy at one price; nobody's name stands on it."""

    price_ticks: int
    quantity_wh: int
    orders: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketTrade:
    """One trade as everybody may see it: without names."""

    id: str
    price_ticks: int
    quantity_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductData:
    """What everybody may know of one product."""

    slot_start_ns: int
    status: str
    """``continuous``, ``call``, ``halted``, ``closed`` or ``void``."""
    bids: tuple[MarketLevel, ...] = ()
    asks: tuple[MarketLevel, ...] = ()
    """Best first. While a call collects orders, what stands in its book stays sealed."""
    open_ticks: int | None = None
    high_ticks: int | None = None
    low_ticks: int | None = None
    close_ticks: int | None = None
    """The last trade's price."""
    volume_wh: int = 0
    trades: int = 0
    index_ticks: int | None = None
    """Mean price of its trades, weighted with their energy, rounded half up."""
    recent: tuple[MarketTrade, ...] = ()
    """Its last trades, oldest first; how many: the market's choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketData:
    """Depth, prices, volume and status of an area's products; an event."""

    area_id: str
    time_ns: int
    halted: str | None
    products: tuple[ProductData, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderBatchResult:
    """Answer to :class:`OrderBatch`, one result an order, in the same order. Given after the journal is durable."""

    slot_start_ns: int
    results: tuple[OrderResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketRules:
    """What a participant has to know to trade; an event, repeated at every slot."""

    area_id: str
    slot_s: int
    gate_open_s: int
    """Seconds before the slot's start at which orders are first taken."""
    gate_close_s: int
    """Seconds before the slot's start at which the book is closed and cleared."""
    currency: str
    feed_in_ticks: int
    """What the retailer pays for energy nobody in the area bought."""
    halted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """A participant's own result of one slot: binding. Sent until acknowledged."""

    participant_id: str
    area_id: str
    slot_start_ns: int
    slot_s: int
    net_wh: int
    """Positive bought, negative sold."""
    clearing_price_ticks: int | None
    trades: tuple[Trade, ...]
    """Empty where they are too many for a message; what binds is ``net_wh``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentQuery:
    """A gateway that was away asks for its commitments from a time on."""

    participant_id: str
    from_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentList:
    """Answer to :class:`CommitmentQuery`."""

    commitments: tuple[Commitment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastIssued:
    """New forecasts of a site; an event on the forecasting agent's topic and also sent to the site."""

    forecasts: tuple[Forecast, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Settings from the cloud side of a producer or consumer agent, held inside the site's own limits."""

    site_id: str
    expires_ns: int
    """UTC; afterwards the site's own settings stand."""
    reserve_soc_percent: float
    """Charge kept for the site's own emergencies."""
    peak_limit_w: float | None
    """Wanted upper limit of import, by peak shaving; none for no wish."""
    trade: bool
    rationale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationChange:
    """A whole site file for a gateway to try; it answers whether it takes it, and goes back by itself where the site gets worse."""

    site_id: str
    version: int
    """Higher than every one before."""
    text: str
    """YAML."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """The receiver has it, found it valid and keeps it. The second answer, if any, is a message of its own."""

    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The receiver will not do it; ``error`` is a stable word, ``retryable`` says whether asking again can help."""

    error: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """Take back an earlier request of the same source. Answered ``Acknowledged`` when it will have no effect any more."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsQuery:
    """Asks an agent for its messaging's figures since its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRow:
    """One figure: what happened, to which type of message, with which peer."""

    event: str
    """A word of :class:`wattmesh_a2a.fates.Fate`, or ``sent``, ``retried``, ``answered`` and other words of a sender."""
    type: str
    peer: str
    count: int
    p50_ms: float | None = None
    """Latency where it has one, from a histogram with steps of a quarter of an octave."""
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsReport:
    """Answer to :class:`StatsQuery`: the busiest rows first."""

    session: str
    rows: tuple[StatsRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """Health of a gateway; an event every few seconds, for the console. Nothing depends on it."""

    site_id: str
    session: str
    time_ns: int
    cycles: int
    cycle_overrun_max_ms: float
    records_measured: int
    batches_pending: int
    commands_sent: int
    commands_applied: int
    commands_expired: int
    frequency_hz: float | None
    rocof_hz_per_s: float | None
    frequency_events: int
    resident_mb: float
    cpu_s: float
    plan_source: str
    """What the agents follow now: ``market``, ``cloud`` (a site plan), ``plan``, ``tariff`` or ``self-consumption``."""


Message = (
    SiteAnnouncement
    | TelemetryAck
    | TelemetryResend
    | TelemetryHeld
    | IntervalEnergy
    | OrderBatch
    | OrderBatchResult
    | OrderPlace
    | OrderAmend
    | OrderCancel
    | OrderResults
    | Executions
    | MarketData
    | MarketRules
    | Commitment
    | CommitmentQuery
    | CommitmentList
    | ForecastIssued
    | Strategy
    | AgentConsult
    | AgentAdvice
    | SitePlan
    | CoordinationRound
    | CoordinationReply
    | ConfigurationChange
    | DemandResponseEvent
    | DemandResponseOffer
    | DemandResponseDispatch
    | FrequencyEvent
    | GridEvent
    | GridInstruction
    | GridInstructionResult
    | Alarm
    | Decision
    | Acknowledged
    | Refused
    | Revoke
    | StatsQuery
    | StatsReport
    | GatewayStatus
    | FrequencyWatch
    | FrequencySamples
    | EventTraceQuery
    | EventTraceReport
    | DevicesQuery
    | DevicesReport
)

MESSAGE_TYPES: dict[str, type[Message]] = {
    "wattmesh.site.announcement.v1": SiteAnnouncement,
    "wattmesh.telemetry.ack.v1": TelemetryAck,
    "wattmesh.telemetry.resend.v1": TelemetryResend,
    "wattmesh.telemetry.held.v1": TelemetryHeld,
    "wattmesh.metering.interval.v1": IntervalEnergy,
    "wattmesh.market.orders.v1": OrderBatch,
    "wattmesh.market.orders.result.v1": OrderBatchResult,
    "wattmesh.market.place.v1": OrderPlace,
    "wattmesh.market.amend.v1": OrderAmend,
    "wattmesh.market.cancel.v1": OrderCancel,
    "wattmesh.market.results.v1": OrderResults,
    "wattmesh.market.executions.v1": Executions,
    "wattmesh.market.data.v1": MarketData,
    "wattmesh.market.rules.v1": MarketRules,
    "wattmesh.market.commitment.v1": Commitment,
    "wattmesh.market.commitment.query.v1": CommitmentQuery,
    "wattmesh.market.commitment.list.v1": CommitmentList,
    "wattmesh.forecast.issued.v1": ForecastIssued,
    "wattmesh.strategy.v1": Strategy,
    "wattmesh.agent.consult.v1": AgentConsult,
    "wattmesh.agent.advice.v1": AgentAdvice,
    "wattmesh.plan.site.v1": SitePlan,
    "wattmesh.plan.round.v1": CoordinationRound,
    "wattmesh.plan.reply.v1": CoordinationReply,
    "wattmesh.configuration.change.v1": ConfigurationChange,
    "wattmesh.dr.event.v1": DemandResponseEvent,
    "wattmesh.dr.offer.v1": DemandResponseOffer,
    "wattmesh.dr.dispatch.v1": DemandResponseDispatch,
    "wattmesh.frequency.event.v1": FrequencyEvent,
    "wattmesh.grid.event.v1": GridEvent,
    "wattmesh.grid.instruction.v1": GridInstruction,
    "wattmesh.grid.instruction.result.v1": GridInstructionResult,
    "wattmesh.alarm.v1": Alarm,
    "wattmesh.decision.v1": Decision,
    "wattmesh.acknowledged.v1": Acknowledged,
    "wattmesh.refused.v1": Refused,
    "wattmesh.revoke.v1": Revoke,
    "wattmesh.stats.query.v1": StatsQuery,
    "wattmesh.stats.report.v1": StatsReport,
    "wattmesh.gateway.status.v1": GatewayStatus,
    "wattmesh.frequency.watch.v1": FrequencyWatch,
    "wattmesh.frequency.samples.v1": FrequencySamples,
    "wattmesh.frequency.trace.query.v1": EventTraceQuery,
    "wattmesh.frequency.trace.v1": EventTraceReport,
    "wattmesh.devices.query.v1": DevicesQuery,
    "wattmesh.devices.v1": DevicesReport,
}

TYPE_NAMES: dict[type[Message], str] = {cls: name for name, cls in MESSAGE_TYPES.items()}

SIGNED_TYPES: frozenset[type[Message]] = frozenset(
    {
        OrderBatch,
        OrderPlace,
        OrderAmend,
        OrderCancel,
        Executions,
        Commitment,
        CommitmentList,
        Strategy,
        SitePlan,
        CoordinationRound,
        CoordinationReply,
        ConfigurationChange,
        DemandResponseDispatch,
        DemandResponseOffer,
        GridInstruction,
        GridInstructionResult,
        TelemetryAck,
        Revoke,
    }
)
"""What moves power or money, or makes a gateway forget what it measured: refused without a valid signature."""

SIGNED_NAMES: frozenset[str] = frozenset(TYPE_NAMES[kind] for kind in SIGNED_TYPES)
"""The same by their names on the wire: the signature is looked at before the data."""
