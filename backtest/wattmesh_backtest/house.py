"""The market's side of a backtest: the area's own engine, clearing and settlement, and what everybody has paid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT, Order
from wattmesh_a2a.messages import IntervalEnergy, MarketRules
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine

from wattmesh_backtest.data import SLOT_NS, Period

AREA = "backtest"
_CREDIT = 1e6


@dataclass(slots=True)
class Account:
    """One site's money, in the currency's unit; paid is positive."""

    paid: float = 0.0
    trades: float = 0.0
    retailer: float = 0.0
    bought_wh: int = 0
    sold_wh: int = 0
    by_slot: list[float] = field(default_factory=list)


class House:
    """One controller's market, from the first slot to the last.

    Args:
        period: What is played.
    """

    def __init__(self, period: Period) -> None:
        self._period = period
        people = [
            {"id": one.id, "import_limit_w": one.import_limit_w, "export_limit_w": max(one.export_limit_w, 1.0),
             "credit_limit": _CREDIT, "orders_per_s": 1e6}
            for one in period.sites
        ]  # fmt: skip
        self.config = MarketConfig.model_validate(
            {
                "area": AREA,
                "currency": period.currency,
                "time_zone": period.tariff.time_zone,
                "tariff": period.tariff_model.model_dump(by_alias=True),
                "participants": people,
            }
        )
        self._engine = MarketEngine(self.config)
        self.accounts = {one.id: Account() for one in period.sites}
        self.trades = 0
        self.settled = 0
        self.prices: list[float | None] = []

    def rules(self) -> MarketRules:
        """What participants have to know."""
        config = self.config
        return MarketRules(
            area_id=AREA, slot_s=config.slot_s, gate_open_s=config.gate_open_s, gate_close_s=config.gate_close_s,
            currency=config.currency, feed_in_ticks=self._engine.tariff.feed_in_ticks(), halted=False,
        )  # fmt: skip

    def trade(self, slot_ns: int, orders: Mapping[str, Iterable[Order]], now_ns: int) -> dict[str, int]:
        """Take the orders of a slot and clear it; what each participant has bought (positive) or sold, Wh."""
        any_order = False
        for name in sorted(orders):
            batch = list(orders[name])
            if batch:
                any_order = True
                self._engine.submit(name, slot_ns, batch, now_ns)
        if not any_order:
            self.prices.append(None)
            return {}
        found = self._engine.clear(slot_ns)
        slot = self._engine.slots[slot_ns]
        self.trades += len(slot.trades)
        price = slot.clearing.price_ticks if slot.clearing is not None else None
        self.prices.append(None if price is None else price / 1e4)
        return {one.participant_id: one.net_wh for one in found}

    def settle(self, readings: Iterable[IntervalEnergy]) -> None:
        """Settle a slot on what was metered."""
        for reading in readings:
            account = self.accounts[reading.site_id]
            settlement = self._engine.settle(
                reading.slot_start_ns, reading.site_id, reading.import_wh - reading.export_wh
            )
            if settlement is None:
                continue
            self.settled += 1
            paid = (
                settlement.trade_units + settlement.residual_units + settlement.fee_units + settlement.levy_units
                + settlement.imbalance_units - settlement.flexibility_units
            )  # fmt: skip
            account.paid += paid / MONEY_UNITS_PER_CURRENCY_UNIT
            account.trades += settlement.trade_units / MONEY_UNITS_PER_CURRENCY_UNIT
            account.retailer += settlement.residual_units / MONEY_UNITS_PER_CURRENCY_UNIT
            account.bought_wh += max(0, settlement.committed_wh)
            account.sold_wh += max(0, -settlement.committed_wh)
            account.by_slot.append(paid / MONEY_UNITS_PER_CURRENCY_UNIT)

    @property
    def ledger_units(self) -> int:
        """Sum over all accounts: has to be 0."""
        return self._engine.ledger.total()


def gate_close_ns(slot_ns: int, config: MarketConfig) -> int:
    """When the gate of a slot closes."""
    return slot_ns - config.gate_close_s * 1_000_000_000


__all__ = ["AREA", "SLOT_NS", "Account", "House", "gate_close_ns"]
