"""The page of a backtest: tables and plots in one file; nothing is loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from wattmesh_backtest.bound import Bound
from wattmesh_backtest.data import Period
from wattmesh_backtest.figures import Figures, duration, months, profile, saved
from wattmesh_backtest.runner import Result

COLOURS = ("#8a8f98", "#d08700", "#2166ac", "#1b7837", "#b2182b", "#762a83", "#00838f")
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#60646c;--line:#d9d9e0;--paper:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#edeef0;--soft:#b0b4ba;--line:#43484e;--paper:#18191b}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{color:var(--soft);max-width:46rem}
.wide{overflow-x:auto}table{border-collapse:collapse;white-space:nowrap}td,th{padding:.3rem .7rem;text-align:right;border-bottom:
1px solid var(--line);font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}th{font-weight:600}
svg{max-width:100%;height:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}.grid{stroke:var(--line)}
.entry{margin-right:1.2rem}.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem;vertical-align:-1px}
"""


def page(period: Period, results: Sequence[Result], rows: Sequence[Figures], bound: Bound) -> str:
    """The whole page."""
    start = datetime.fromtimestamp(period.start_ns // 1_000_000_000, tz=UTC)
    title = f"Backtest of {period.name}"
    gaps = f" {period.gaps} quarter hours are not played: a site has no data there." if period.gaps else ""
    keys = "".join(
        f'<span class="entry"><span class="key" style="background:{_colour(at)}"></span>{html.escape(one.title)}</span>'
        for at, one in enumerate(rows)
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<p>{len(period.sites)} sites from {start:%Y-%m-%d %H:%M} UTC over {period.slots / 96:g} days, played by the gateway's "
        "own agents and arbiter, the market's engine and its settlement. Causal: a decision knows what was metered before it."
        f"{gaps}</p>"
        f"{_main(period, rows, bound)}<p>Perfect foresight knows every coming hour and is out of anybody's reach. Alone: each site "
        "for itself. Together: all as one connection. "
        "<i>Netted</i> is what the same exchange would cost behind one common connection.</p>"
        f"<p>{keys}</p><h2>Paid by month, {html.escape(period.currency)}</h2>{_months(period, results)}"
        f"<h2>Mean day, kW exchanged by all sites (local time)</h2>{_lines([profile(period, one) for one in results], hours=True)}"
        f"<h2>Duration curve, kW exchanged by all sites</h2>{_lines([duration(period, one) for one in results], hours=False)}"
        f"<h2>By site</h2>{_sites(period, results, rows, bound)}<h2>Checks</h2>{_checks(results)}</body></html>"
    )


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _main(period: Period, rows: Sequence[Figures], bound: Bound) -> str:
    base = {row.name: row.paid for row in rows}
    none, own = base.get("none"), base.get("selfconsumption")
    heads = ("Controller", f"Paid {period.currency}", "vs no battery", "vs self-consumption", "Netted", "Import kWh", "Export kWh",
             "Peak kW", "Daily peak kW", "Own share", "Discharged kWh", "Traded kWh")  # fmt: skip
    lines = [
        (
            row.title, f"{row.paid:,.2f}", _share(none, row.paid), _share(own, row.paid), f"{row.netted:,.2f}",
            f"{row.import_kwh:,.0f}", f"{row.export_kwh:,.0f}", f"{row.peak_kw:.2f}", f"{row.daily_peak_kw:.2f}",
            f"{row.self_sufficiency:.1%}", f"{row.cycles_kwh:,.0f}", f"{row.traded_kwh:,.0f}",
        )
        for row in rows
    ]  # fmt: skip
    alone = sum(bound.alone.values())
    for name, value in (("Perfect foresight, alone", alone), ("Perfect foresight, together", bound.together)):
        lines.append((name, f"{value:,.2f}", _share(none, value), _share(own, value), *("–",) * 8))
    return _table(heads, lines)


def _share(base: float | None, value: float) -> str:
    part = saved(base, value) if base is not None else None
    return "–" if part is None or part == 0 else f"{-part:+.1%}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _sites(period: Period, results: Sequence[Result], rows: Sequence[Figures], bound: Bound) -> str:
    heads = ("Site", *(row.title for row in rows), "Perfect, alone")
    lines = [
        (one.id, *(f"{result.accounts[one.id].paid:,.2f}" for result in results), f"{bound.alone[one.id]:,.2f}")
        for one in period.sites
    ]
    return _table(heads, lines)


def _checks(results: Sequence[Result]) -> str:
    heads = ("Controller", "Slots settled", "Trades", "Ledger sums to", "Seconds")
    return _table(
        heads,
        [
            (one.name, f"{one.settled:,}", f"{one.trades:,}", str(one.ledger_units), f"{one.seconds:.1f}")
            for one in results
        ],
    )


def _months(period: Period, results: Sequence[Result]) -> str:
    table: list[Mapping[str, float]] = [months(period, one) for one in results]
    names = sorted({name for row in table for name in row})
    low = min(0.0, *(value for row in table for value in row.values()))
    high = max(1e-9, *(value for row in table for value in row.values()))
    scale = 200 / (high - low)
    zero = 10 + high * scale
    group = 820 / len(names)
    width = max(1.0, group * 0.8 / len(table))
    parts = [_axis(low, high, scale, zero)]
    for number, name in enumerate(names):
        left = 60 + number * group
        for at, row in enumerate(table):
            value = row.get(name, 0.0)
            y, tall = (zero - value * scale, value * scale) if value >= 0 else (zero, -value * scale)
            text = f"{html.escape(results[at].name)}, {name}: {value:,.2f}"
            parts.append(
                f'<rect x="{left + at * width:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall:.1f}" fill="{_colour(at)}">'
                f"<title>{text}</title></rect>"
            )
        parts.append(f'<text x="{left + group * 0.4:.1f}" y="232" text-anchor="middle">{name[2:]}</text>')
    return f'<svg viewBox="0 0 900 240" role="img" aria-label="Paid by month">{"".join(parts)}</svg>'


def _axis(low: float, high: float, scale: float, zero: float) -> str:
    parts = []
    for value in (low, 0.0, high / 2, high):
        y = zero - value * scale
        parts.append(f'<line class="grid" x1="55" x2="890" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="50" y="{y + 4:.1f}" text-anchor="end">{value:,.4g}</text>')
    return "".join(parts)


def _lines(series: Sequence[Sequence[float]], *, hours: bool) -> str:
    low = min(0.0, *(min(one) for one in series))
    high = max(1e-9, *(max(one) for one in series))
    scale = 200 / (high - low)
    zero = 10 + high * scale
    parts = [_axis(low, high, scale, zero)]
    for at, values in enumerate(series):
        step = 820 / max(1, len(values) - 1)
        points = " ".join(f"{60 + number * step:.1f},{zero - value * scale:.1f}" for number, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_colour(at)}" stroke-width="1.8"/>')
    if hours:
        parts += [
            f'<text x="{60 + hour * 820 / 24:.0f}" y="232" text-anchor="middle">{hour}</text>'
            for hour in range(0, 25, 3)
        ]
    else:
        parts += [
            f'<text x="{60 + part * 8.2:.0f}" y="232" text-anchor="middle">{part} %</text>'
            for part in range(0, 101, 20)
        ]
    return f'<svg viewBox="0 0 900 240" role="img">{"".join(parts)}</svg>'
