"""Orders, trades and settlement. Integers only: price ticks of 0.01 ct/kWh (0.0001 of the currency's unit per kWh),
energy in watt-hours, money in *units* of tick · Wh, that is 1e-7 of the currency's unit, so that nothing is rounded.
"""  # noqa: D205 - the units have to stand together

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

TICKS_PER_CURRENCY_UNIT_PER_KWH = 10_000
MONEY_UNITS_PER_CURRENCY_UNIT = 10_000_000


class Side(StrEnum):
    """Direction of an order as its owner sees it."""

    BUY = "buy"
    SELL = "sell"


class OrderKind(StrEnum):
    """Whether an order has a limit of its own."""

    LIMIT = "limit"
    MARKET = "market"
    """At any price inside the market's band; its ``price_ticks`` says nothing. What does not trade at once is gone."""


class TimeInForce(StrEnum):
    """How long an order stands."""

    GTC = "gtc"
    """Until cancelled, at the longest until the product's gate closes."""
    GTD = "gtd"
    """Until ``expires_ns``, at the longest until gate closure."""
    IOC = "ioc"
    """What does not trade at once is cancelled."""
    FOK = "fok"
    """All of it trades at once, or it is cancelled."""


class OrderStatus(StrEnum):
    """Where an order stands."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FILLED = "filled"
    PARTIALLY_FILLED = "partially_filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RejectReason(StrEnum):
    """Why an order was refused; nothing is clipped silently."""

    GATE_CLOSED = "gate_closed"
    UNKNOWN_PRODUCT = "unknown_product"
    UNKNOWN_PARTICIPANT = "unknown_participant"
    NOT_AUTHORISED = "not_authorised"
    BAD_QUANTITY = "bad_quantity"
    BAD_PRICE = "bad_price"
    POSITION_LIMIT = "position_limit"
    CREDIT_LIMIT = "credit_limit"
    INFEASIBLE = "infeasible"
    """More than the site's connection could deliver or take in the slot."""
    DUPLICATE_ID = "duplicate_id"
    """The client order id is known with other contents."""
    HALTED = "halted"
    BAD_TIME_IN_FORCE = "bad_time_in_force"
    """An expiry that is missing, past or not asked for; IOC or FOK where orders are only collected."""
    SELF_TRADE = "self_trade"
    """It would trade with an order of its own participant."""
    RATE_LIMIT = "rate_limit"
    """More orders a second, or more in one product, than the participant may send."""
    BAD_ID = "bad_id"
    """A client order id that is empty, longer than 64 characters, or not printable."""
    SUSPENDED = "suspended"
    """The participant is switched off by the operator."""
    STALE_TELEMETRY = "stale_telemetry"
    """Nothing recent is known of the site, so nobody can say whether it could deliver."""
    UNKNOWN_ORDER = "unknown_order"
    """No open order of the participant has this id in this product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order for one delivery slot of one market area."""

    client_order_id: str
    """Made by the participant; the same id with the same contents is the same order, however often it arrives."""
    participant_id: str
    """The site."""
    area_id: str
    slot_start_ns: int
    """UTC start of delivery; a multiple of the product's length."""
    side: Side
    quantity_wh: int
    price_ticks: int
    """Limit; may be negative."""
    kind: OrderKind = OrderKind.LIMIT
    time_in_force: TimeInForce = TimeInForce.GTC
    expires_ns: int | None = None
    """UTC; only with GTD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """Energy that changed hands for one slot."""

    id: str
    """Deterministic: the same inputs give the same id on every replay."""
    area_id: str
    slot_start_ns: int
    buyer_id: str
    seller_id: str
    quantity_wh: int
    price_ticks: int
    buy_order_id: str
    sell_order_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What one participant owes or gets for one slot."""

    participant_id: str
    area_id: str
    slot_start_ns: int
    committed_wh: int
    """Net of its trades; positive bought, negative sold."""
    metered_wh: int
    """Grid exchange; positive imported, negative exported."""
    substituted: bool
    """Whether the metered energy was estimated because readings were missing."""
    trade_units: int
    """Paid (positive) or received (negative) for trades, in tick · Wh."""
    residual_units: int
    """Paid to or received from the retailer for what the trades did not cover."""
    flexibility_units: int = 0
    """Received (negative) for demand response."""
    fee_units: int = 0
    """Paid to the grid operator for the use of the grid by what was bought locally."""
    levy_units: int = 0
    """Paid in levies on the same energy."""
    imbalance_units: int = 0
    """Paid for the distance between metered and committed energy, whatever its direction."""
    revision: int = 0
    """0 for the first settlement; each correction run that changes it adds one."""
    method: str = "meter"
    """Where ``metered_wh`` comes from: ``meter``, ``history`` (the same slot of earlier days) or ``commitment``."""
