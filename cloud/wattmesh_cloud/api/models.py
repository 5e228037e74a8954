"""What the API answers and takes. Times are UTC nanoseconds, power in watts (passive sign), money and prices as named."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from wattmesh_a2a.market import Side

from wattmesh_cloud.access.model import Permission, Role

Time = Annotated[
    int, Field(ge=0, le=2**62, description="UTC, nanoseconds since 1970", examples=[1_662_055_200_000_000_000])
]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", examples=["home-1"])]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@/-]{1,100}$", examples=["ann"])]
Key = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.:-]{8,64}$", description="Made by the caller, new for each action; again for a retry"),
]
Reason = Annotated[str, Field(min_length=3, max_length=200, description="Why, for the log", examples=["storm warning"])]

RowT = TypeVar("RowT")


class Answer(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(from_attributes=True)


class Request(BaseModel):
    """Base of every body."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """Why a request was refused, and what to do."""

    detail: str = Field(examples=["there is no site 'home-9'; there are: home-1, home-2"])


class Page(Answer, Generic[RowT]):
    """Rows in order, newest first where they have a time."""

    rows: list[RowT]
    next: str | None = Field(default=None, description="Give it as `after` to read on; none at the end", max_length=200)


# -- who


class Me(Answer):
    """Who I am here."""

    name: str = Field(examples=["ann"])
    kind: str = Field(description="user, token or demo", examples=["user"])
    role: Role
    tenant: str = Field(examples=["fleet"])
    permissions: list[Permission]
    csrf: str | None = Field(description="Goes into the header X-CSRF-Token of every change; none for a token")
    time_zone: str = Field(examples=["Europe/Madrid"])


class LoginMethods(Answer):
    """How somebody may log in."""

    password: bool
    oidc: bool
    demo: bool


class Login(Request):
    """A local account."""

    name: Annotated[str, Field(min_length=1, max_length=100, examples=["ann"])]
    password: Annotated[str, Field(min_length=1, max_length=200, examples=["correct horse battery"])]


class UserRow(Answer):
    """An account."""

    name: str
    tenant: str
    role: Role
    local: bool = Field(description="Whether it has a password here; the others come by OpenID Connect")
    disabled: bool
    created_ns: Time


class NewUser(Request):
    """An account with a password."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$", examples=["bob"])]
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", examples=["fleet"])]
    role: Role
    password: Annotated[str, Field(min_length=12, max_length=200, examples=["correct horse battery"])]


class UserChange(Request):
    """What is to be another; everything left out stays. Ends the account's sessions."""

    role: Role | None = None
    disabled: bool | None = None
    password: Annotated[str, Field(min_length=12, max_length=200)] | None = None


class TokenRow(Answer):
    """A machine's token, without the token."""

    id: str
    tenant: str
    role: Role
    created_ns: Time
    expires_ns: Time


class NewToken(Request):
    """A token for a program."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$", examples=["grafana"])]
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", examples=["fleet"])]
    role: Role
    days: Annotated[int, Field(ge=1, le=3650, examples=[365])]


class MadeToken(Answer):
    """Shown once."""

    id: str
    token: str


class Done(Answer):
    """It is done."""

    detail: str = Field(default="done", examples=["done"])


# -- sites


class Flows(Answer):
    """Power now; null where it is not known. Positive flows into the component."""

    grid_w: float | None = Field(default=None, description="Positive import, negative export")
    pv_w: float | None = Field(default=None, description="Negative while producing")
    battery_w: float | None = Field(default=None, description="Positive charging")
    load_w: float | None = Field(default=None, description="Derived: grid less battery less PV")
    soc_percent: float | None = None
    frequency_hz: float | None = None


class FlowRow(Flows):
    """Power at one time."""

    time_ns: Time


class SiteState(StrEnum):
    """How a site is, worst first."""

    ALARM = "alarm"
    AWAY = "away"
    STALE = "stale"
    WARNING = "warning"
    OK = "ok"


class SiteRow(Answer):
    """A site in the list."""

    id: str = Field(examples=["home-1"])
    state: SiteState
    problem: str | None = Field(description="What is wrong, in one line", examples=["away for 3 min"])
    online: bool
    time_ns: Time | None = Field(description="Of the newest reading")
    flows: Flows
    plan_source: str | None = Field(description="market, plan, tariff or self-consumption")


class Asset(Answer):
    """A device or a part of one."""

    id: str
    kind: str
    template: str
    rated_power_w: float | None
    rated_energy_wh: float | None
    points: dict[str, float | None] = Field(
        default_factory=dict, description="Newest values; null where the quality is bad"
    )


class SiteDetail(SiteRow):
    """One site."""

    time_zone: str | None
    import_limit_w: float | None
    export_limit_w: float | None
    frequency_response: bool | None
    software: str | None
    started_ns: Time | None
    market_area: str | None
    agents: list[str]
    assets: list[Asset]
    health: dict[str, Any] | None = Field(description="The gateway's last status")


class Reading(Answer):
    """Samples of a point."""

    column: str = Field(examples=["battery.active_power_w"])
    times_ns: list[int]
    values: list[float | None]


class ForecastAnswer(Answer):
    """Quantiles on slots: one row a slot, one column a level."""

    quantity: str = Field(examples=["load_wh"])
    issued_ns: Time
    start_ns: Time
    slot_s: int
    levels: list[float]
    values: list[list[float]]
    model: str


class PlanSlot(Answer):
    """What a site is committed to, or expects, in one slot."""

    start_ns: Time
    committed_wh: int | None = Field(description="Market commitment; positive bought; null where there is none")
    price_ticks: int = Field(description="Retailer's import price, 0.01 ct/kWh")
    load_wh: float | None
    pv_wh: float | None


class PlannedLoadRow(Answer):
    """A load that can wait, and when it is to run."""

    device: str = Field(examples=["wallbox"])
    power_w: list[int]


class TakenPlan(Answer):
    """What the cloud's planner wants a site to do: one value a slot, means. The site follows inside its own limits."""

    issued_ns: Time
    expires_ns: Time = Field(description="The site's own plan stands from then on")
    start_ns: Time
    slot_s: int = Field(examples=[900])
    grid_w: list[int] = Field(description="Expected exchange, positive import")
    battery_w: list[int] = Field(description="Expected power of all batteries, positive charging")
    stored_wh: list[int] = Field(description="Expected energy in all batteries at the end of each slot")
    min_grid_w: list[int] = Field(description="The batteries take what would bring the exchange below this")
    max_grid_w: list[int] = Field(description="The batteries give what would bring the exchange above this")
    loads: list[PlannedLoadRow] = Field(description="Loads that can wait")
    reasons: list[str] = Field(description="What could not be kept, and why it is more careful than usual")


class Plan(Answer):
    """A site's coming slots."""

    site_id: str
    source: str | None = Field(description="What the site follows now")
    slots: list[PlanSlot]
    taken: TakenPlan | None = Field(description="The newest plan that its gateway has taken; none where there was none")
    unplanned: str | None = Field(description="Why there is no newer one", examples=["no state of charge"])


class DecisionRow(Answer):
    """What the arbiter chose for an asset in one cycle, and why."""

    site_id: str
    time_ns: Time
    asset_id: str
    target_w: float | None
    decided_by: str
    limited_by: str | None
    requested_w: float | None
    remaining_w: float
    conflicts: list[str]


class IntervalRow(Answer):
    """Metered energy of a slot; magnitudes."""

    site_id: str
    slot_start_ns: Time
    slot_s: int
    import_wh: int
    export_wh: int
    pv_wh: int
    battery_charge_wh: int
    battery_discharge_wh: int
    load_wh: int
    method: str
    complete: bool


class AlarmRow(Answer):
    """Something a person should know of."""

    id: str
    site_id: str
    asset_id: str | None
    severity: str
    text: str
    raised_ns: Time
    cleared_ns: Time | None
    acknowledged_by: str | None = None


class FrequencyEventRow(Answer):
    """What a site's reflex saw of the grid, and did."""

    id: str
    site_id: str
    kind: str
    start_ns: Time
    end_ns: Time | None
    extreme_frequency_hz: float | None
    extreme_rocof_hz_per_s: float | None
    response_w: float
    detection_to_write_ns: int | None
    extreme_voltage_pu: float | None = None
    phase_step_deg: float | None = None
    cause: str | None = None


class FrequencySamplesAnswer(Answer):
    """The last two minutes of a site's frequency, ten samples a second or more; empty unless somebody has looked."""

    site_id: str
    rows: list[tuple[int, float | None, float | None]] = Field(description="Real time in ms, Hz, Hz/s")


class EventTrace(Answer):
    """What a gateway kept around a frequency event: columns over time; empty where nothing was kept."""

    event_id: str
    times_ms: list[float]
    frequency_hz: list[float | None]
    rocof_hz_per_s: list[float | None]
    setpoint_w: list[float | None]
    write_ms: float | None
    end_ms: float | None


class WriteBudgetRow(Answer):
    """A setting that is kept in flash."""

    control: str
    used: int
    allowed: int


class DeviceRow(Answer):
    """A device as its driver sees it."""

    device_id: str
    template: str
    state: str
    good: int = Field(description="Points whose value can be used")
    points: int
    polls: int
    failed_polls: int
    writes: int
    budgets: list[WriteBudgetRow]


# -- market


class MarketSummary(Answer):
    """The area's figures; participants are the caller's own."""

    area: str
    currency: str
    mechanism: str
    halted: str | None
    trades: int
    volume_wh: int
    slots_cleared: int
    slots_settled: int
    ledger_sum_units: int
    rejects: dict[str, int]
    gate_open_s: int
    gate_close_s: int
    slot_s: int


class PositionRow(Answer):
    """A participant's account, in the currency's unit."""

    participant: str
    imported_wh: int
    exported_wh: int
    trades: int
    traded_wh: int
    cost: float
    paid_retail: float
    paid_trades: float
    received_flexibility: float
    exposure: float
    owed: float
    credit_limit: float
    suspended: str | None
    slots_settled: int
    slots_substituted: int


class Level(Answer):
    """Open energy at one price."""

    price_ticks: int
    quantity_wh: int
    orders: int


class Product(Answer):
    """What everybody may know of one delivery slot."""

    slot_start_ns: Time
    status: str = Field(examples=["call"])
    bids: list[Level]
    asks: list[Level]
    open_ticks: int | None
    high_ticks: int | None
    low_ticks: int | None
    close_ticks: int | None
    volume_wh: int
    trades: int
    index_ticks: int | None


class SlotRow(Answer):
    """A closed delivery slot."""

    time_ns: Time
    price_ticks: int | None
    volume_wh: int
    trades: int
    orders: int
    bid_wh: int
    offered_wh: int
    index_ticks: int | None
    status: str


class TradeRow(Answer):
    """Energy that changed hands. Names of other tenants are not told."""

    id: str
    time_ns: Time = Field(description="Start of delivery")
    buyer_id: str | None
    seller_id: str | None
    quantity_wh: int
    price_ticks: int


class CandleRow(Answer):
    """Five minutes of a product."""

    time_ns: Time
    slot_start_ns: Time
    open: int
    high: int
    low: int
    close: int
    volume_wh: int


class OrderRow(Answer):
    """An own order."""

    client_order_id: str
    participant_id: str
    slot_start_ns: Time
    side: Side
    quantity_wh: int
    price_ticks: int
    filled_wh: int
    status: str


class NewOrder(Request):
    """A limit order."""

    client_order_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", examples=["desk-1"])]
    side: Side
    quantity_wh: Annotated[int, Field(gt=0, le=10_000_000, examples=[500])]
    price_ticks: Annotated[int, Field(ge=-1_000_000, le=1_000_000, description="0.01 ct/kWh", examples=[1800])]


class PlaceOrders(Request):
    """Orders beside those that the site already has in the slot."""

    site_id: SiteName
    slot_start_ns: Time
    orders: Annotated[list[NewOrder], Field(min_length=1, max_length=20)]


class CancelOrders(Request):
    """Open orders to take back; none named takes all of the slot."""

    site_id: SiteName
    slot_start_ns: Time
    client_order_ids: Annotated[list[str], Field(max_length=100)] = []


class OrderOutcome(Answer):
    """The market's word on one order."""

    client_order_id: str
    status: str
    reason: str | None = None
    detail: str = ""
    filled_wh: int = 0
    open_wh: int = 0


class MarketIndex(Answer):
    """Mean price of all trades for deliveries in a window, weighted with energy."""

    index_ticks: int | None
    start_ns: Time
    end_ns: Time


class Concentration(Answer):
    """How few stand on a side; the largest one's name only where it is the caller's."""

    hhi: float
    largest: str | None
    largest_share: float


class ParticipantResult(Answer):
    """A participant's trading against doing the same with the retailer; units of 1e-7 of the currency."""

    bought_wh: int
    sold_wh: int
    paid_units: int
    gain_units: int


class MarketAnalytics(Answer):
    """Results of the caller's participants, concentration, and welfare against the best possible."""

    results: dict[str, ParticipantResult]
    sellers: Concentration
    buyers: Concentration
    efficiency: float | None


class SettlementRow(Answer):
    """Money of one slot, in units of 1e-7 of the currency, paid positive."""

    participant_id: str
    time_ns: Time
    committed_wh: int
    metered_wh: int
    substituted: bool
    revision: int
    trade_units: int
    residual_units: int
    fee_units: int
    levy_units: int
    imbalance_units: int
    flexibility_units: int
    total_units: int


# -- grid


class GridAnswer(Answer):
    """The grid as the grid agent sees it."""

    status: str = Field(examples=["normal"])
    reason: str
    frequency_hz: float | None
    frequency_events: int
    nominal_hz: float


class GridStatusRow(Answer):
    """A change of the grid's status."""

    id: str
    time_ns: Time
    status: str
    reason: str
    frequency_hz: float | None


class ResponseRow(Answer):
    """A demand-response event: asked, offered, dispatched, delivered. Sites of other tenants are not told."""

    id: str
    start_ns: Time
    end_ns: Time
    target_w: int
    price_ticks: int
    state: str
    reason: str
    source: str = ""
    area_id: str = ""
    offers: dict[str, int]
    dispatched_w: dict[str, int]
    dispatched_wh: dict[str, int] = {}
    measured_wh: dict[str, int] = {}
    delivered_wh: dict[str, int]
    paid_units: dict[str, int] = {}
    left_out: dict[str, str] = {}
    missing_w: int | None = None
    delivered_share: float | None = None


# -- agents


class AgentRow(Answer):
    """One of the cloud's agents."""

    id: str = Field(examples=["forecasting"])
    address: str
    facts: dict[str, Any]


class SwitchAnswer(Answer):
    """The kill switch of all models. The policies go on without them."""

    on: bool = Field(description="Whether models may refine what the policies propose")
    actor: str
    reason: str
    time_ns: int
    model: str | None = Field(description="Provider and model; none where no model is configured")


class AgentEntry(Answer):
    """One proposal on its way."""

    proposal: dict[str, Any]
    origin: str
    outcome: str = Field(description="done, stopped, waiting or failed")
    guard: str | None = None
    reason: str = ""


class AgentRecord(Answer):
    """A decision: what was known, what was wanted by whom, what stopped it, what was done, what came of it."""

    id: str
    time_ns: Time
    agent: str
    subject: str
    situation: dict[str, Any]
    entries: list[AgentEntry]
    model: str
    model_detail: str = ""
    tools: list[str] = []
    tokens: int = 0
    policy_ms: float = 0.0
    outcome: dict[str, Any] | None = None


class ConversationRow(Answer):
    """Agents that asked each other, about one decision or task."""

    id: str = Field(examples=["market-supervisor-1662055200-1"])
    began_ns: Time
    last_ns: Time
    turns: int
    refusals: int = Field(description="Questions that got no answer")
    agents: list[str] = Field(description="Who spoke", examples=[["market-supervisor", "producer"]])
    subjects: list[str] = Field(description="Sites, areas, or the fleet", examples=[["home-1"]])


class TurnRow(Answer):
    """One message between two agents."""

    number: int
    time_ns: Time
    speaker: str = Field(examples=["market-supervisor"])
    listener: str = Field(examples=["producer"])
    what: str = Field(description="question, answer or refusal", examples=["question"])
    subject: str | None = Field(examples=["home-1"])
    text: str = Field(description="What was asked, answered, or the reason for no answer")
    source: str | None = Field(default=None, description="Of an answer: policy, or model")
    citations: list[str] = Field(default=[], description="Records that an answer rests on")
    situation: dict[str, Any] | None = Field(default=None, description="What the answer was made from")


class ApprovalRow(Answer):
    """A proposal that waits, or waited, for a person."""

    id: str
    agent: str
    origin: str
    subject: str
    proposal: dict[str, Any]
    reason: str
    state: str
    made_ns: Time
    expires_ns: Time
    decided_ns: Time | None
    actor: str | None
    note: str


class ApprovalDecision(Request):
    """Why, for the log."""

    note: Annotated[str, Field(max_length=400)] = ""


class Question(Request):
    """In words."""

    question: Annotated[str, Field(min_length=3, max_length=400, examples=["Why did home-1 charge last night?"])]


class Cited(Answer):
    """A record that an answer rests on."""

    id: str
    time_ns: int


class AgentAnswer(Answer):
    """What an operator gets."""

    question: str
    kind: str
    text: str
    citations: list[Cited]
    source: str = Field(description="template, or the model that worded it")
    detail: str
    approval: str | None = Field(description="A proposal that waits for a person because of it")


class NewProposal(Request):
    """What an operator asks an agent to do: through its guards, and where it needs one, before a second person."""

    agent: Annotated[str, Field(pattern=r"^[a-z-]{3,40}$", examples=["producer"])]
    about: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", examples=["home-1"])]
    proposal: dict[str, Any] = Field(
        max_length=20,
        examples=[
            {"kind": "set_reserve", "site_id": "home-1", "reserve_soc_percent": 30.0, "rationale": "storm warning"}
        ],
    )


class CardRow(Answer):
    """An agent's card, of ours or of another make."""

    agent: str = Field(examples=["demo/home-1/gateway"])
    name: str
    version: str
    session: str
    requests: list[str]
    online: bool
    last_seen_ns: int


class AgentDecisionRow(Answer):
    """What an agent chose, and why."""

    id: str
    time_ns: Time
    agent: str
    site_id: str | None
    rationale: str
    details: dict[str, Any]


# -- commands, jobs, audit, system


class CommandState(StrEnum):
    """Where a command stands."""

    WAITING = "waiting"
    """For its confirmation, or for somebody else's approval."""
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    EXPIRED = "expired"


class CommandRow(Answer):
    """Something that somebody wanted done."""

    id: str
    kind: str
    steps: str = Field(description="one, confirm or approve; see the kinds", examples=["confirm"])
    arguments: dict[str, Any]
    reason: str
    state: CommandState
    asked_by: str
    asked_ns: Time
    decided_by: str | None
    decided_ns: Time | None
    expires_in_s: float | None = Field(description="Real time left for the second step; none where nothing waits")
    confirm: str | None = Field(description="What has to be typed to confirm; none where nothing waits")
    result: str | None


class NewCommand(Request):
    """Something to be done; see `/api/v1/commands/kinds` for what there is."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z_.]{2,40}$", examples=["market.halt"])]
    arguments: dict[str, Any] = Field(default_factory=dict, max_length=20, examples=[{}])
    reason: Reason
    idempotency_key: Key


class Confirmation(Request):
    """The second step of a command that needs two."""

    confirm: Annotated[str, Field(min_length=1, max_length=100, description="What the command's `confirm` says")]


class CommandKind(Answer):
    """A kind of command."""

    kind: str
    title: str
    permission: Permission
    steps: str = Field(
        description="one; confirm: the same person types a word; approve: another person does", examples=["confirm"]
    )
    host_only: bool
    arguments: dict[str, Any] = Field(description="JSON Schema")


class JobState(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class JobRow(Answer):
    """Longer work."""

    id: str
    kind: str
    state: JobState
    asked_by: str
    asked_ns: Time
    progress: float = Field(ge=0, le=1)
    detail: str
    files: list[str] = Field(description="Names of the results; read them at `/api/v1/jobs/{id}/files/{name}`")


class ReportPeriod(StrEnum):
    """How long a report is for."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class NewReport(Request):
    """A report of a site, or of all own sites."""

    period: ReportPeriod
    start: Annotated[
        str,
        Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="A day of the period, local time", examples=["2022-09-01"]),
    ]
    site_id: SiteName | None = None


class AuditRow(Answer):
    """Who did what, and what came of it."""

    sequence: int
    time_ns: Time
    actor: str
    action: str
    outcome: str
    detail: dict[str, Any]


class AuditVerdict(Answer):
    """Whether the log's chain is whole."""

    entries: int
    last_hash: str
    fault: str | None


class GatewayRow(Answer):
    """A gateway."""

    site_id: str
    online: bool
    software: str | None
    resident_mb: float | None
    cycles: int | None
    cycle_overrun_max_ms: float | None
    batches_pending: int | None
    commands_sent: int | None
    commands_applied: int | None
    time_ns: Time | None


class System(Answer):
    """The cloud process."""

    version: str
    time_ns: Time
    ingest: dict[str, int]
    dead_letters: int
    messages: dict[str, int]
    lake_files: int
    a2a_address: str = Field(examples=["demo/cloud/ingest"])
    a2a_card: str = Field(description="Topic of the agent card", examples=["a2a/v1/demo/cloud/ingest/card"])
    openadr: str | None = Field(description="The OpenADR 3 VTN whose events are taken, where one is named")
    public_url: str | None


class Health(Answer):
    """Whether the cloud works."""

    status: str = Field(examples=["ok"])
    time_ns: Time
