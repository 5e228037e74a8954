"""The demo's report as one page that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee6;--paper:#fff;--good:#12723c;--bad:#b3261e;
--a:#0b63ce;--b:#b25b00;--c:#6b7280}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3adba;--line:#333c49;
--paper:#12161c;--good:#5bd18b;--bad:#ff8a80;
--a:#6fb1ff;--b:#ffb066;--c:#9aa4b2}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:68rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}p{margin:.3rem 0}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.35rem .6rem;text-align:right;
border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft)}
.scroll{overflow-x:auto}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem;margin:1rem 0}
.tile{border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem}.tile b{display:block;font-size:1.5rem}
.good{color:var(--good)}.bad{color:var(--bad)}svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font:12px system-ui}
.key span{display:inline-block;margin-right:1.2rem}.key i{display:inline-block;width:1.4rem;height:0;border-top:3px solid;
vertical-align:middle;margin-right:.4rem}
"""

_LINES = (("no_battery", "without battery", "var(--c)"), ("self_consumption", "plain self-consumption", "var(--b)"),
          ("wattmesh", "WattMesh", "var(--a)"))  # fmt: skip


def render_page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    cost, currency = report["fleet"]["cost"], report["currency"]
    title = f"{report['days']:g} simulated days of {len(report['sites'])} homes"
    verdict = '<b class="good">All checks met</b>' if report["met"] else '<b class="bad">Not every check was met</b>'
    tiles = [
        ("Fleet cost", f"{cost['wattmesh']:.2f} {currency}"),
        ("against no battery", f"{-cost['saving_vs_no_battery_percent']:+.1f} %"),
        ("against plain self-consumption", f"{-cost['saving_vs_self_consumption_percent']:+.1f} %"),
        ("Records lost", f"{report['records']['lost']:,} of {report['records']['measured']:,}"),
        ("Trades", f"{report['market']['trades']:,}"),
        ("Ledger sums to", f"{report['market']['ledger_sum_units']}"),
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>WattMesh: {escape(title)}</title><style>{_STYLE}</style><main>",
        f"<h1>{escape(title)}</h1><p class=soft>from {escape(report['start'])}, simulated in {report['elapsed_s']:.0f} s, "
        f"control step {report['step_s']} simulated seconds. {escape(report['data'])}</p><p>{verdict}</p>",
        "<div class=tiles>"
        + "".join(f"<div class=tile><span class=soft>{escape(k)}</span><b>{escape(v)}</b></div>" for k, v in tiles)
        + "</div>",
        "<h2>Power of the whole fleet at its grid connections</h2>",
        _chart(report["series"]),
        "<h2>Checks</h2>",
        _table(
            ("check", "value", "wanted", "met"),
            [(c["name"], c["value"], c["wanted"], "yes" if c["met"] else "NO") for c in report["checks"]],
        ),
        "<h2>Sites</h2>",
        _sites(report, currency),
        "<h2>Peaks of the fleet, 15-minute means</h2>",
        _peaks(report["fleet"]["peaks"]),
        "<h2>Frequency</h2>",
        _frequency(report["frequency"]),
        "<h2>Processes</h2>",
        _table(
            ("process", "starts", "CPU s", "CPU %", "largest memory MB"),
            [
                (name, p["starts"], f"{p['cpu_s']:.1f}", f"{p['cpu_percent']:.1f}", f"{p['resident_max_mb']:.0f}")
                for name, p in report["processes"].items()
            ],
        ),
        "<h2>How to read this</h2>",
        *(f"<p class=soft>{escape(note)}</p>" for note in report["notes"]),
        "</main></html>",
    ]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"


def _sites(report: Mapping[str, Any], currency: str) -> str:
    head = (
        "site", "bought kWh", "sold kWh", f"cost {currency}", "no battery", "self-consumption", "trades", "records",
        "lost", "commands", "applied", "expired", "overrun ms", "longest cycle ms",
    )  # fmt: skip
    rows = [
        (
            name, f"{s['energy']['bought_kwh']:.1f}", f"{s['energy']['sold_kwh']:.1f}", f"{s['cost']['wattmesh']:.2f}",
            f"{s['cost']['no_battery']:.2f}", f"{s['cost']['self_consumption']:.2f}", s["trades"],
            f"{s['records']['measured']:,}", s["records"]["lost"], f"{s['commands']['sent']:,}",
            f"{s['commands']['applied']:,}", s["commands"]["expired"], f"{s['cycle_overrun_max_ms']:.0f}",
            f"{s['cycle_max_ms']:.0f}",
        )
        for name, s in report["sites"].items()
    ]  # fmt: skip
    return _table(head, rows)


def _peaks(peaks: Mapping[str, Mapping[str, float]]) -> str:
    rows = [(label, f"{peaks[key]['run_kw']:.2f}", f"{peaks[key]['mean_daily_kw']:.2f}") for key, label, _ in _LINES]
    return _table(("", "largest of the run kW", "mean of daily peaks kW"), rows)


def _frequency(frequency: Mapping[str, Any]) -> str:
    if not frequency["events"]:
        return "<p class=soft>No frequency event.</p>"
    rows = [
        (
            e["site"], e["kind"], e["start"], "-" if e["extreme_hz"] is None else f"{e['extreme_hz']:.3f}",
            "-" if e["response_w"] is None else f"{e['response_w']:.0f}",
            "-" if e["response_ms"] is None else f"{e['response_ms']:.2f}",
        )
        for e in frequency["events"]
    ]  # fmt: skip
    return _table(("site", "event", "simulated time", "extreme Hz", "response W", "detection to write ms"), rows)


def _chart(series: Mapping[str, Any]) -> str:
    """Lines of mean power a slot; the SVG carries its own axis labels."""
    width, height, left, bottom, top = 1000, 320, 52, 26, 8
    lines: Mapping[str, Sequence[float]] = series["net_kw"]
    count = len(series["hours"])
    if count < 2:
        return "<p class=soft>Too short a run for a picture.</p>"
    low = min(0.0, *(min(line) for line in lines.values()))
    high = max(1.0, *(max(line) for line in lines.values()))

    def x(index: int) -> float:
        return left + (width - left - 6) * index / (count - 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = [f"<svg viewBox='0 0 {width} {height}' role=img aria-label='Net power of the fleet over time, kilowatts'>"]
    step = max(1, round((high - low) / 6))
    for value in range(int(low) - 1, int(high) + 2, step):
        if low <= value <= high:
            stroke = "var(--soft)" if value == 0 else "var(--line)"
            parts.append(f"<path d='M{left} {y(value):.1f}H{width - 6}' stroke='{stroke}'/>")
            parts.append(f"<text x='{left - 8}' y='{y(value) + 4:.1f}' text-anchor='end'>{value} kW</text>")
    every = max(1, count // 12)
    for index in range(0, count, every):
        parts.append(
            f"<text x='{x(index):.1f}' y='{height - 6}' text-anchor='middle'>{escape(series['hours'][index])}</text>"
        )
    for key, _, colour in _LINES:
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(lines[key]))
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
    key = "".join(f"<span><i style='border-color:{colour}'></i>{escape(label)}</span>" for _, label, colour in _LINES)
    return "".join(parts) + f"</svg><p class='key soft'>{key}</p><p class=soft>Import is positive, export negative.</p>"
