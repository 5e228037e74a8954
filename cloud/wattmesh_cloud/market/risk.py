"""What an order has to pass before it reaches the book. Every refusal has a type; nothing is clipped.

The checks read the engine and change nothing, but for the count of the rate limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT, Order, OrderKind, RejectReason, Side, TimeInForce
from wattmesh_a2a.tariff import price_ticks

from wattmesh_cloud.market.config import MarketConfig, ParticipantModel
from wattmesh_cloud.market.ledger import Ledger
from wattmesh_cloud.market.products import Slot

NS = 1_000_000_000
_BURST_S = 4
_LONGEST_ID = 64
_SLACK_WH = 400
_WH_NS = 3600 * NS
_BUY, _LIMIT, _GTD = Side.BUY, OrderKind.LIMIT, TimeInForce.GTD

Refusal = tuple[RejectReason, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """What a site could physically deliver, from its own telemetry."""

    time_ns: int
    """UTC of the telemetry."""
    output_w: int
    """The most its inverters can put out, generation and storage together."""
    generation_w: int
    """The most its generation can give without sun or wind being asked: its rating."""
    stored_wh: int
    """In storage above the reserve."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A participant's limits as integers."""

    buy_wh: int
    """What its connection takes in one slot."""
    sell_wh: int
    credit_units: int
    pace_ns: int
    """Time that one order takes of its rate."""
    telemetry_ns: int | None
    orders_a_slot: int
    owner: str
    """Who never trades with itself: the participant, or who owns several."""

    def plausible(self, import_wh: int, export_wh: int) -> bool:
        """Whether a connection can have carried a slot's metered energy; a quarter above its limit is let pass."""
        return 4 * import_wh <= 5 * self.buy_wh + _SLACK_WH and 4 * export_wh <= 5 * self.sell_wh + _SLACK_WH

    @classmethod
    def of(cls, model: ParticipantModel, slot_s: int) -> Limits:
        """From the area's file."""
        return cls(
            buy_wh=int(model.import_limit_w * slot_s / 3600),
            sell_wh=int(model.export_limit_w * slot_s / 3600),
            credit_units=int(model.credit_limit * MONEY_UNITS_PER_CURRENCY_UNIT),
            pace_ns=int(NS / model.orders_per_s),
            telemetry_ns=None if model.telemetry_max_age_s is None else model.telemetry_max_age_s * NS,
            orders_a_slot=model.orders_a_slot,
            owner=model.id if model.owner is None else f"={model.owner}",
        )


class Risk:
    """The checks of one area, and what they have to remember.

    Args:
        ledger: For what a participant owes.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.exposure: dict[str, int] = {}
        """Participant → the worst cost of its open orders, in all products together."""
        self.suspended: dict[str, str] = {}
        """Participant → why it is switched off."""
        self.sites: dict[str, SiteState] = {}
        self._busy_until: dict[str, int] = {}
        self.limits: dict[str, Limits] = {}

    def configure(self, config: MarketConfig) -> None:
        """Take an area's limits."""
        self.band = price_ticks(config.price_band)
        self._area, self._slot_ns = config.area, config.slot_s * NS
        self._open_ns, self._close_ns = config.gate_open_s * NS, config.gate_close_s * NS
        self.limits = {one.id: Limits.of(one, config.slot_s) for one in config.participants}
        owned: dict[str, list[str]] = {}
        for name, one in self.limits.items():
            owned.setdefault(one.owner, []).append(name)
        self._mates = {name: tuple(owned[one.owner]) for name, one in self.limits.items()}

    def mates(self, participant: str) -> tuple[str, ...]:
        """The participants of the same owner, itself included."""
        return self._mates[participant]

    def refusal(self, participant: str, order: Order, now_ns: int, *, halted: str | None) -> Refusal | None:
        """What is wrong with an order by itself."""
        limits = self.limits.get(participant)
        if limits is None:
            return RejectReason.UNKNOWN_PARTICIPANT, participant[:64]
        if order.participant_id != participant:
            return RejectReason.NOT_AUTHORISED, "an order of somebody else"
        if order.area_id != self._area or order.slot_start_ns % self._slot_ns:
            return RejectReason.UNKNOWN_PRODUCT, f"area {self._area}, slots of {self._slot_ns // NS} s"
        if participant in self.suspended:
            return RejectReason.SUSPENDED, self.suspended[participant]
        if halted:
            return RejectReason.HALTED, halted
        if not self.gate_open(order.slot_start_ns, now_ns):
            return RejectReason.GATE_CLOSED, "the gate is not open"
        return self._terms(order, limits, now_ns)

    def _terms(self, order: Order, limits: Limits, now_ns: int) -> Refusal | None:
        name = order.client_order_id
        if not 0 < len(name) <= _LONGEST_ID or not name.isprintable():
            return RejectReason.BAD_ID, f"1 to {_LONGEST_ID} printable characters"
        if order.quantity_wh <= 0:
            return RejectReason.BAD_QUANTITY, "whole watt-hours above 0"
        if order.kind is _LIMIT and abs(order.price_ticks) > self.band:
            return RejectReason.BAD_PRICE, f"within ±{self.band} ticks"
        if (order.time_in_force is _GTD) != (order.expires_ns is not None):
            return RejectReason.BAD_TIME_IN_FORCE, "expires_ns belongs to GTD, and GTD needs it"
        if order.expires_ns is not None and order.expires_ns <= now_ns:
            return RejectReason.BAD_TIME_IN_FORCE, "it has expired"
        most = limits.buy_wh if order.side is _BUY else limits.sell_wh
        if order.quantity_wh > most:
            return RejectReason.INFEASIBLE, f"the connection carries {most} Wh in a slot"
        return None

    def gate_open(self, slot_ns: int, now_ns: int) -> bool:
        """Whether orders for a slot are taken."""
        return slot_ns - self._open_ns <= now_ns < slot_ns - self._close_ns

    def too_fast(self, participant: str, orders: int, now_ns: int) -> bool:
        """Count orders against a participant's rate; true when they are more than it may send (and then none counts).

        The generic cell rate algorithm (ITU-T I.371): a clock that each order advances and that may be ahead by the burst.
        """
        limits = self.limits.get(participant)
        if limits is None or orders == 0:
            return False
        busy = max(self._busy_until.get(participant, 0), now_ns) + orders * limits.pace_ns
        if busy - now_ns > max(_BURST_S * NS, limits.pace_ns):
            return True
        self._busy_until[participant] = busy
        return False

    def over(
        self, participant: str, slot: Slot | None, slot_ns: int, change: tuple[int, int, int], now_ns: int,
        slots: Mapping[int, Slot],
    ) -> Refusal | None:  # fmt: skip
        """What a change of a participant's open orders in a slot would break.

        Args:
            participant: Whose.
            slot: The product, none when nobody ordered yet.
            slot_ns: Its start.
            change: More open energy to buy, to sell, and more worst cost.
            now_ns: Time.
            slots: Every product whose gate is open, for energy that can be sold only once.
        """
        limits, (buy, sell, cost) = self.limits[participant], change
        position = slot.positions.get(participant) if slot is not None else None
        bought, sold, open_buy, open_sell = (
            (0, 0, 0, 0)
            if position is None
            else (position.bought, position.sold, position.open_buy, position.open_sell)
        )
        if buy > 0 and bought - sold + open_buy + buy > limits.buy_wh:
            return RejectReason.POSITION_LIMIT, f"{limits.buy_wh} Wh to buy in a slot"
        if sell > 0 and sold - bought + open_sell + sell > limits.sell_wh:
            return RejectReason.POSITION_LIMIT, f"{limits.sell_wh} Wh to sell in a slot"
        if cost > 0:
            exposure = self.exposure.get(participant, 0) + cost
            if exposure + self.owed(participant) > limits.credit_units:
                return RejectReason.CREDIT_LIMIT, "open orders at their worst prices, and what is owed"
        if sell > 0 and limits.telemetry_ns is not None:
            return self._infeasible(participant, slot_ns, sold - bought + open_sell + sell, now_ns, slots)
        return None

    def _infeasible(
        self, participant: str, slot_ns: int, sold: int, now_ns: int, slots: Mapping[int, Slot]
    ) -> Refusal | None:
        """Whether inverter and storage could deliver what would be sold, in this slot and up to each later one.

        Up to the end of any slot, no more can leave a site than what is stored now and what its generation gives until then.
        """
        site, limits = self.sites.get(participant), self.limits[participant]
        assert limits.telemetry_ns is not None
        if site is None or now_ns - site.time_ns > limits.telemetry_ns:
            return RejectReason.STALE_TELEMETRY, f"nothing of the site in {limits.telemetry_ns // NS} s"
        if sold * _WH_NS > site.output_w * self._slot_ns:
            return RejectReason.INFEASIBLE, f"the inverters give {site.output_w} W"
        promised = {slot_ns: sold}
        for start, slot in slots.items():
            position = slot.positions.get(participant)
            if position is not None and start != slot_ns:
                promised[start] = position.worst_sold
        total = 0
        for start in sorted(promised):
            total += max(0, promised[start])
            made = site.generation_w * max(0, start + self._slot_ns - now_ns) // _WH_NS
            if start >= slot_ns and total > site.stored_wh + made:
                return RejectReason.INFEASIBLE, f"{site.stored_wh} Wh stored and {made} Wh to come at the most"
        return None

    def owed(self, participant: str) -> int:
        """What a participant owes for trades; what goes to the retailer is billed by the retailer, and no risk of the market."""
        return -min(0, self._ledger.balances[participant] - self._ledger.paid[participant, "residual"])

    def dump(self) -> dict[str, Any]:
        """Plain values for snapshot and state hash."""
        return {
            "exposure": {name: units for name, units in sorted(self.exposure.items()) if units},
            "suspended": dict(self.suspended),
            "sites": {
                name: [one.time_ns, one.output_w, one.generation_w, one.stored_wh] for name, one in self.sites.items()
            },
            "busy_until": dict(self._busy_until),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`dump` saw."""
        self.exposure, self.suspended = dict(state["exposure"]), dict(state["suspended"])
        self._busy_until = dict(state["busy_until"])
        self.sites = {
            name: SiteState(time_ns=row[0], output_w=row[1], generation_w=row[2], stored_wh=row[3])
            for name, row in state["sites"].items()
        }
