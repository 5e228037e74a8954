"""A participant's statement, and how anybody checks one from raw data.

The check knows nothing of the engine: it recomputes every amount from the rows of trades, meter and prices, by the rules of
docs/market.md. With a journal the raw rows themselves are checked, too, by a replay.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattmesh_a2a.errors import ConfigurationError
from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT

from wattmesh_cloud.market.config import MarketConfig
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.journal import START, mapped, read_blocks
from wattmesh_cloud.market.products import Slot
from wattmesh_cloud.market.replica import Replica

AMOUNTS = ("trade_units", "residual_units", "fee_units", "levy_units", "imbalance_units", "flexibility_units")
COLUMNS = (
    "kind", "slot_start_ns", "id", "side", "quantity_wh", "price_ticks", "counterparty", "committed_wh", "metered_wh",
    "method", "revision", "import_ticks", "feed_in_ticks", "fee_ticks", "levy_ticks", "imbalance_ticks", *AMOUNTS,
    "total_units",
)  # fmt: skip
"""Of a statement's CSV. Rows of kind ``trade`` are raw; ``slot`` has reading, prices and result of a slot; ``total`` ends it."""

Row = dict[str, Any]


def every_slot(engine: MarketEngine) -> dict[int, Slot]:
    """By start: those at work, and those that are archived where the engine has kept them."""
    return {**(engine.attic or {}), **engine.slots}


def statement_rows(engine: MarketEngine, participant: str, from_ns: int = 0, to_ns: int = 2**62) -> list[Row]:
    """The rows of a participant's settled slots that deliver from ``from_ns`` until before ``to_ns``.

    Raises:
        ConfigurationError: The area has no such participant.
    """
    if participant not in engine.risk.limits:
        raise ConfigurationError(f"no participant {participant!r}; there are: {', '.join(sorted(engine.risk.limits))}")
    rows: list[Row] = []
    total = 0
    slots = every_slot(engine)
    for start in sorted(slots):
        slot = slots[start]
        settlement = slot.settlements.get(participant)
        if settlement is None or not from_ns <= start < to_ns:
            continue
        for trade in slot.trades_of.get(participant, ()):
            buys = trade.buyer_id == participant
            rows.append(
                {
                    "kind": "trade",
                    "slot_start_ns": start,
                    "id": trade.id,
                    "side": "buy" if buys else "sell",
                    "quantity_wh": trade.quantity_wh,
                    "price_ticks": trade.price_ticks,
                    "counterparty": trade.seller_id if buys else trade.buyer_id,
                }
            )
        amounts = {name: getattr(settlement, name) for name in AMOUNTS}
        prices = slot.prices
        assert prices is not None
        rows.append(
            {
                "kind": "slot",
                "slot_start_ns": start,
                "id": f"{participant}-{start // 1_000_000_000}",
                "committed_wh": settlement.committed_wh,
                "metered_wh": settlement.metered_wh,
                "method": settlement.method,
                "revision": settlement.revision,
                **{name: getattr(prices, name) for name in prices.__slots__},
                **amounts,
                "total_units": sum(amounts.values()),
            }
        )
        total += sum(amounts.values())
    rows.append({"kind": "total", "id": participant, "total_units": total})
    return rows


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as text with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_html(rows: Sequence[Row], *, title: str, currency: str) -> str:
    """The rows as one page for people; amounts in the currency's unit, paid positive."""
    unit = MONEY_UNITS_PER_CURRENCY_UNIT
    heads = ("Delivery (UTC)", "Committed Wh", "Metered Wh", "From", "Revision", "Trades", "Retailer", "Grid fee", "Levy",
             "Imbalance", "Flexibility", "Total")  # fmt: skip
    lines = []
    for row in rows:
        if row["kind"] == "slot":
            cells = [_utc(row["slot_start_ns"]), row["committed_wh"], row["metered_wh"], row["method"], row["revision"]]
            cells += [f"{row[name] / unit:.4f}" for name in (*AMOUNTS, "total_units")]
            lines.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    total = rows[-1]["total_units"] / unit
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>'
        "body{font:14px system-ui;margin:2rem}table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:right;"
        "border-bottom:1px solid #ccc}</style>"
        f"<h1>{html.escape(title)}</h1><p>To pay (negative: to receive): <b>{total:.4f} {html.escape(currency)}</b></p>"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(lines)}</table>"
        "<p>Every amount can be checked from the CSV of this statement: <code>wattmesh settle verify FILE.csv</code>.</p></html>"
    )


def read_csv(path: Path) -> list[Row]:
    """The rows of a statement's file.

    Raises:
        ConfigurationError: It is no statement.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
            raise ConfigurationError(f"{path}: no statement: its first line has to be {','.join(COLUMNS)}")
        rows: list[Row] = []
        texts = {"kind", "id", "side", "counterparty", "method"}
        for number, raw in enumerate(reader, 2):
            try:
                rows.append({key: value if key in texts else int(value) for key, value in raw.items() if value})
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"{path}: line {number}: {error}") from error
    return rows


def check(rows: Sequence[Row], readings: Mapping[int, int] | None = None) -> list[str]:
    """Recompute a statement from its raw rows; one sentence for every amount that is not what the rules give.

    Args:
        rows: Of :func:`read_csv`.
        readings: The participant's own meter: slot's start → import less export in Wh; compared where there is one.
    """
    wrong: list[str] = []
    trades: dict[int, list[Row]] = {}
    total, seen = 0, set()
    try:
        for row in rows:
            match row["kind"]:
                case "trade":
                    if row["id"] in seen:
                        wrong.append(f"trade {row['id']} stands twice")
                    seen.add(row["id"])
                    trades.setdefault(row["slot_start_ns"], []).append(row)
                case "slot":
                    wrong += _check_slot(row, trades.pop(row["slot_start_ns"], []), readings)
                    total += row["total_units"]
                case "total":
                    if row["total_units"] != total:
                        wrong.append(f"the total is {row['total_units']}, its slots add up to {total}")
                case kind:
                    wrong.append(f"a row of kind {kind!r}")
    except KeyError as error:
        return [*wrong, f"a row lacks {error}"]
    if not rows or rows[-1]["kind"] != "total":
        wrong.append("the statement has no end")
    wrong += [f"slot {start}: trades without a settlement" for start in trades]
    return wrong


def _check_slot(row: Row, trades: Sequence[Row], readings: Mapping[int, int] | None) -> list[str]:
    start = row["slot_start_ns"]
    bought = sum(one["quantity_wh"] for one in trades if one["side"] == "buy")
    sold = sum(one["quantity_wh"] for one in trades if one["side"] == "sell")
    paid = sum((1 if one["side"] == "buy" else -1) * one["quantity_wh"] * one["price_ticks"] for one in trades)
    rest = row["metered_wh"] - bought + sold
    right = {
        "committed_wh": bought - sold,
        "trade_units": paid,
        "residual_units": rest * row["import_ticks"] if rest > 0 else rest * row["feed_in_ticks"],
        "fee_units": bought * row["fee_ticks"],
        "levy_units": bought * row["levy_ticks"],
        "imbalance_units": abs(rest) * row["imbalance_ticks"] if trades else 0,
    }
    right["total_units"] = sum(right[name] for name in AMOUNTS if name in right) + row["flexibility_units"]
    wrong = [
        f"slot {start}: {name} is {row[name]}, has to be {value}" for name, value in right.items() if row[name] != value
    ]
    if (
        readings is not None
        and row["method"] == "meter"
        and readings.get(start, row["metered_wh"]) != row["metered_wh"]
    ):
        wrong.append(f"slot {start}: metered_wh is {row['metered_wh']}, the reading says {readings[start]}")
    return wrong


def read_readings(path: Path) -> dict[int, int]:
    """A participant's own meter: CSV with ``slot_start_ns``, ``import_wh``, ``export_wh``.

    Raises:
        ConfigurationError: It is not that.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                int(row["slot_start_ns"]): int(row["import_wh"]) - int(row["export_wh"]) for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: needs slot_start_ns, import_wh and export_wh as integers ({error})"
        ) from error


def replayed(journal: Path) -> Replica:
    """The market of a journal, without touching the file or its lock.

    Raises:
        ConfigurationError: The journal is missing, damaged, or names no rules.
    """
    if not journal.exists():
        raise ConfigurationError(f"{journal}: there is no such journal")
    replica: Replica | None = None
    with mapped(journal) as content:
        for block in read_blocks(journal, content, 0, 0, START):
            for body in block.bodies:
                entry = json.loads(body)
                if replica is None:
                    if entry["what"] != "rules":
                        raise ConfigurationError(f"{journal}: the first entry has to be the rules")
                    replica = Replica(MarketConfig.model_validate(entry["config"]))
                    replica.engine.attic = {}
                replica.apply(entry)
    if replica is None:
        raise ConfigurationError(f"{journal}: empty")
    return replica


def audit(engine: MarketEngine) -> list[str]:
    """What must hold of any market: money and energy are conserved, settlements are what the rules give."""
    wrong = []
    if engine.ledger.total():
        wrong.append(f"the ledger sums to {engine.ledger.total()}")
    for name in sorted(engine.risk.limits):
        wrong += [f"{name}: {text}" for text in check(statement_rows(engine, name))]
    for start, slot in sorted(every_slot(engine).items()):
        bought = sum(one.bought for one in slot.positions.values())
        sold = sum(one.sold for one in slot.positions.values())
        if not bought == sold == slot.volume_wh:
            wrong.append(f"slot {start}: {bought} Wh bought, {sold} Wh sold, {slot.volume_wh} Wh traded")
    return wrong


def _utc(time_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns // 1_000_000_000, tz=UTC).strftime("%Y-%m-%d %H:%M")
