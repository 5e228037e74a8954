"""The simulation lab: the market's own engine, driven by fleets and bidders, to compare mechanisms.

A fleet says what each home needs or has too much of in each slot, and what that is worth to it. Bidders turn this into orders:

- ``truthful`` bids what it is worth.
- ``zero`` (zero intelligence, constrained; Gode and Sunder, J. Political Economy 101, 1993) bids anything that is no loss.
- ``adaptive`` asks for a margin that grows while it trades and shrinks while it does not (after Cliff's ZIP, HP Labs 1997).

Everything is seeded: the same arguments give the same page.
"""

from __future__ import annotations

import csv
import html
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.market import Order, Side

from wattmesh_cloud.market.analytics import best_welfare, concentration
from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.trading import NS

MECHANISMS = ("call", "continuous", "continuous+call", "pay-as-bid")
BIDDERS = ("truthful", "zero", "adaptive")
FEED_IN, RETAIL = 500, 3000
_SLOT_S, _START = 900, 1_700_006_400 * NS
_ARRIVALS = 3


@dataclass(frozen=True, slots=True)
class Need:
    """One home in one slot."""

    name: str
    wh: int
    """Positive: needed; negative: to spare."""
    value_ticks: int
    """What a watt-hour is worth to it: the most it pays, the least it takes."""


Fleet = Sequence[Sequence[Need]]
"""Slot after slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One mechanism with one kind of bidders."""

    mechanism: str
    bidders: str
    efficiency: float
    """True gains from trade over the most there were."""
    volume_wh: int
    trades: int
    mean_ticks: float | None
    """Of all trades, weighted with energy."""
    spread_ticks: float
    """Standard deviation of the trades' prices around their slot's mean, weighted with energy."""
    buyer_units: int
    """Buyers' true gain."""
    seller_units: int
    hhi_sellers: float
    prices: tuple[float | None, ...]
    """Mean price a slot."""


def generated(homes: int, slots: int, seed: int) -> list[list[Need]]:
    """A fleet of which every other home has sun on its roof: a bell of surplus around noon, needs all day."""
    rng = random.Random(seed)
    fleet = []
    for slot in range(slots):
        hour = slot * _SLOT_S / 3600 % 24
        sun = max(0.0, 1 - ((hour - 12.5) / 5.5) ** 2)
        rows = []
        for home in range(homes):
            load = rng.uniform(60, 250) * (1.6 if 17 <= hour < 21 else 1.0)
            made = sun * rng.uniform(500, 1200) if home % 2 else 0.0
            net = round(load - made)
            if net:
                rows.append(Need(f"home-{home:03}", net, rng.randrange(FEED_IN, RETAIL + 1)))
        fleet.append(rows)
    return fleet


def from_file(path: Path, seed: int) -> list[list[Need]]:
    """A historical fleet: CSV of ``slot`` (0, 1, …), ``participant``, ``net_wh``; values are drawn between feed-in and retail.

    Raises:
        ConfigurationError: It is not that.
    """
    rng = random.Random(seed)
    slots: dict[int, list[Need]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                need = Need(row["participant"], round(float(row["net_wh"])), rng.randrange(FEED_IN, RETAIL + 1))
                if need.wh:
                    slots.setdefault(int(row["slot"]), []).append(need)
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"{path}: needs slot, participant and net_wh as numbers ({error})") from error
    if not slots:
        raise ConfigurationError(f"{path}: no rows")
    return [slots.get(slot, []) for slot in range(max(slots) + 1)]


Bid = Callable[[Need, random.Random], int]


class _Adaptive:
    """Margins a home, moved by whether its last order traded."""

    def __init__(self) -> None:
        self.margin: dict[str, float] = {}

    def bid(self, need: Need, rng: random.Random) -> int:
        margin = self.margin.setdefault(need.name, rng.uniform(0.05, 0.5))
        room = need.value_ticks - FEED_IN if need.wh > 0 else RETAIL - need.value_ticks
        return need.value_ticks - round(margin * room) if need.wh > 0 else need.value_ticks + round(margin * room)

    def learn(self, need: Need, traded_wh: int) -> None:
        change = 1.1 if traded_wh >= abs(need.wh) else 0.7
        self.margin[need.name] = min(0.9, max(0.01, self.margin[need.name] * change))


def _truthful(need: Need, rng: random.Random) -> int:
    return need.value_ticks


def _zero(need: Need, rng: random.Random) -> int:
    return rng.randint(FEED_IN, need.value_ticks) if need.wh > 0 else rng.randint(need.value_ticks, RETAIL)


def run(fleet: Fleet, mechanism: str, bidders: str, seed: int = 0) -> Outcome:
    """One mechanism, one kind of bidders, one fleet.

    Raises:
        ConfigurationError: An unknown kind of bidders.
    """
    if bidders not in BIDDERS:
        raise ConfigurationError(f"no bidders {bidders!r}; there are: {', '.join(BIDDERS)}")
    names = sorted({need.name for slot in fleet for need in slot})
    engine = MarketEngine(_area(names, mechanism))
    rng, adaptive = random.Random(seed), _Adaptive()
    bid: Bid = {"truthful": _truthful, "zero": _zero, "adaptive": adaptive.bid}[bidders]
    best = 0
    for index, needs in enumerate(fleet):
        start = _START + index * _SLOT_S * NS
        best += best_welfare([_order(need, need.value_ticks, start) for need in needs])
        # everybody comes a few times before the gate closes, in an order that chance makes, and bids for what it still wants
        for arrival in range(_ARRIVALS):
            now = start - 1500 * NS + arrival * 500 * NS
            for need in rng.sample(list(needs), len(needs)):
                order = _order(need, bid(need, rng), start)
                slot = engine.slots.get(start)
                done = slot.positions.get(need.name) if slot is not None else None
                left = abs(need.wh) - (done.bought + done.sold if done is not None else 0)
                engine.cancel(need.name, now, slot_ns=start)
                if left > 0:
                    engine.place(need.name, [_order(need, order.price_ticks, start, wh=left, arrival=arrival)], now)
        if start in engine.slots:
            engine.clear(start)
        for need in needs:
            trades = engine.slots[start].trades_of.get(need.name, []) if start in engine.slots else []
            if bidders == "adaptive":
                adaptive.learn(need, sum(trade.quantity_wh for trade in trades))
    assert engine.ledger.total() == 0
    return _outcome(engine, fleet, mechanism, bidders, best)


def _area(names: Sequence[str], mechanism: str) -> MarketConfig:
    people = [
        {"id": name, "import_limit_w": 1e6, "export_limit_w": 1e6, "credit_limit": 1e6, "orders_per_s": 1e6}
        for name in names
    ]
    tariff = {"feed_in_price": FEED_IN / 1e4, "default_price": RETAIL / 1e4}
    return MarketConfig.model_validate(
        {"area": "lab", "mechanism": mechanism, "slot_s": _SLOT_S, "tariff": tariff, "participants": people}
    )


def _order(need: Need, price: int, start: int, *, wh: int | None = None, arrival: int = 0) -> Order:
    return Order(
        client_order_id=f"{start // NS}-{arrival}",
        participant_id=need.name,
        area_id="lab",
        slot_start_ns=start,
        side=Side.BUY if need.wh > 0 else Side.SELL,
        quantity_wh=abs(need.wh) if wh is None else wh,
        price_ticks=price,
    )


def _outcome(engine: MarketEngine, fleet: Fleet, mechanism: str, bidders: str, best: int) -> Outcome:
    buyers = sellers = volume = notional = 0
    spread = 0.0
    prices: list[float | None] = []
    trades = [trade for slot in engine.slots.values() for trade in slot.trades]
    for index, needs in enumerate(fleet):
        value = {need.name: need.value_ticks for need in needs}
        slot = engine.slots.get(_START + index * _SLOT_S * NS)
        mean = slot.notional_units / slot.volume_wh if slot is not None and slot.volume_wh else None
        prices.append(mean)
        for trade in slot.trades if slot is not None else ():
            buyers += trade.quantity_wh * (value[trade.buyer_id] - trade.price_ticks)
            sellers += trade.quantity_wh * (trade.price_ticks - value[trade.seller_id])
            volume += trade.quantity_wh
            notional += trade.quantity_wh * trade.price_ticks
            spread += trade.quantity_wh * (trade.price_ticks - (mean or 0.0)) ** 2
    return Outcome(
        mechanism=mechanism,
        bidders=bidders,
        efficiency=(buyers + sellers) / best if best else 1.0,
        volume_wh=volume,
        trades=len(trades),
        mean_ticks=notional / volume if volume else None,
        spread_ticks=(spread / volume) ** 0.5 if volume else 0.0,
        buyer_units=buyers,
        seller_units=sellers,
        hhi_sellers=concentration(trades, Side.SELL).hhi,
        prices=tuple(prices),
    )


def compare(fleet: Fleet, seed: int = 0, mechanisms: Sequence[str] = MECHANISMS) -> list[Outcome]:
    """Every mechanism with every kind of bidders."""
    return [run(fleet, mechanism, bidders, seed) for mechanism in mechanisms for bidders in BIDDERS]


# -- the page

_COLOURS = ("#2166ac", "#1b7837", "#b2182b", "#762a83")


def page(outcomes: Sequence[Outcome], *, title: str) -> str:
    """Tables and plots, one file, nothing loaded from elsewhere."""
    heads = ("Mechanism", "Bidders", "Efficiency", "Volume kWh", "Trades", "Mean ct/kWh", "Spread ct/kWh", "Buyers' gain",
             "Sellers' gain", "HHI sellers")  # fmt: skip
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in (
                one.mechanism, one.bidders, f"{one.efficiency:.1%}", f"{one.volume_wh / 1000:.1f}", str(one.trades),
                "–" if one.mean_ticks is None else f"{one.mean_ticks / 100:.2f}", f"{one.spread_ticks / 100:.2f}",
                f"{one.buyer_units / 1e7:.2f}", f"{one.seller_units / 1e7:.2f}", f"{one.hhi_sellers:.3f}",
            )
        )
        + "</tr>"
        for one in outcomes
    )  # fmt: skip
    plots = ""
    for bidders in dict.fromkeys(one.bidders for one in outcomes):
        series = {one.mechanism: one.prices for one in outcomes if one.bidders == bidders}
        plots += f"<h2>Mean price a slot, {html.escape(bidders)} bidders</h2>" + _lines(series)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>'
        "body{font:14px system-ui;margin:2rem;max-width:60rem}table{border-collapse:collapse}td,th{padding:.2rem .6rem;"
        "text-align:right;border-bottom:1px solid #ccc}td:nth-child(-n+2){text-align:left}</style>"
        f"<h1>{html.escape(title)}</h1><table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>"
        "<p>Efficiency: true gains from trade over the most there were. Spread: how far prices of one slot differ.</p>"
        f"<h2>Efficiency</h2>{_bars(outcomes)}{plots}</html>"
    )


def _bars(outcomes: Sequence[Outcome]) -> str:
    parts = []
    for index, one in enumerate(outcomes):
        y, colour = 10 + index * 22, _COLOURS[BIDDERS.index(one.bidders) % len(_COLOURS)]
        width = 500 * max(0.0, one.efficiency)
        label = html.escape(f"{one.mechanism}, {one.bidders}")
        parts.append(
            f'<text x="195" y="{y + 12}" text-anchor="end">{label}</text>'
            f'<rect x="200" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>'
            f'<text x="{205 + width:.1f}" y="{y + 12}">{one.efficiency:.1%}</text>'
        )
    return f'<svg width="780" height="{20 + 22 * len(outcomes)}" font-size="12" role="img">{"".join(parts)}</svg>'


def _lines(series: Mapping[str, Sequence[float | None]]) -> str:
    parts = []
    for index, (name, values) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        step = 700 / max(1, len(values) - 1)
        points = [
            f"{40 + number * step:.1f},{210 - (value - FEED_IN) / (RETAIL - FEED_IN) * 200:.1f}"
            for number, value in enumerate(values)
            if value is not None
        ]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{50 + index * 170}" y="235" fill="{colour}">{html.escape(name)}</text>')
    axis = "".join(
        f'<text x="34" y="{214 - (ticks - FEED_IN) / (RETAIL - FEED_IN) * 200:.0f}" text-anchor="end">{ticks // 100}</text>'
        for ticks in (FEED_IN, (FEED_IN + RETAIL) // 2, RETAIL)
    )
    return f'<svg width="780" height="245" font-size="12" role="img">{axis}{"".join(parts)}</svg>'


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome without its curve, as plain values."""
    return {name: getattr(outcome, name) for name in Outcome.__slots__ if name != "prices"}
