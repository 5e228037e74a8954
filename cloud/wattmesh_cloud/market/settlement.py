"""What a participant owes for a slot: pure rules over trades, metered energy and prices. The rules: docs/market.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_low

from wattmesh_a2a.market import Settlement, Trade

from wattmesh_cloud.market.products import Prices, Slot

DAY_NS = 86_400_000_000_000
SUBSTITUTE_DAYS = 7


def substitute_wh(participant: str, slot_ns: int, committed_wh: int, slots: Mapping[int, Slot]) -> tuple[int, str]:
    """Energy for a slot whose meter did not report in full: (Wh, method).

    The median (the lower one of two) of the same slot's real readings in the seven days before; without any, what the
    participant had committed to, which neither rewards nor punishes a meter that has no history.
    """
    known = []
    for days in range(1, SUBSTITUTE_DAYS + 1):
        slot = slots.get(slot_ns - days * DAY_NS)
        settlement = slot.settlements.get(participant) if slot is not None else None
        if settlement is not None and not settlement.substituted:
            known.append(settlement.metered_wh)
    return (median_low(known), "history") if known else (committed_wh, "commitment")


def settlement_of(
    participant: str,
    area: str,
    slot_ns: int,
    trades: Sequence[Trade],
    metered_wh: int,
    prices: Prices,
    *,
    method: str,
    substituted: bool,
    flexibility_units: int,
    revision: int,
) -> Settlement:
    """One participant's slot. Positive units are paid, negative ones received.

    - Trades at their prices.
    - The residual, metered less committed: bought from the retailer at its price of the slot when positive, sold to it at the
      feed-in price when negative.
    - Grid fee and levy on every watt-hour bought locally; what comes from the retailer has them in its price.
    - The imbalance fee on the distance between metered and committed, in slots in which the participant traded.
    """
    bought = sum(trade.quantity_wh for trade in trades if trade.buyer_id == participant)
    sold = sum(trade.quantity_wh for trade in trades if trade.seller_id == participant)
    residual = metered_wh - (bought - sold)
    return Settlement(
        participant_id=participant,
        area_id=area,
        slot_start_ns=slot_ns,
        committed_wh=bought - sold,
        metered_wh=metered_wh,
        substituted=substituted,
        trade_units=sum(
            (1 if trade.buyer_id == participant else -1) * trade.quantity_wh * trade.price_ticks for trade in trades
        ),
        residual_units=residual * (prices.import_ticks if residual > 0 else prices.feed_in_ticks),
        flexibility_units=-flexibility_units,
        fee_units=bought * prices.fee_ticks,
        levy_units=bought * prices.levy_ticks,
        imbalance_units=abs(residual) * prices.imbalance_ticks if trades else 0,
        revision=revision,
        method=method,
    )
