"""Pages with charts that need nothing else: no script, no network, light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from wattmesh_edge.reflex.evidence import Replayed, Trace

Point = tuple[float, float]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 190, 76, 14, 8, 24
_MOST = 1200
"""Points of a line; more are thinned to the extremes of as many columns."""
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee6;--paper:#fff;--a:#0b63ce;--b:#b25b00;--c:#12723c;
--bad:#b3261e;--shade:#b3261e22;--good:#12723c}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3adba;--line:#333c49;--paper:#12161c;--a:#6fb1ff;--b:#ffb066;
--c:#5bd18b;--bad:#ff8a80;--shade:#ff8a8033;--good:#5bd18b}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:1.8rem 0 .3rem}.soft{color:var(--soft)}p{margin:.3rem 0}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:12px system-ui}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.3rem .8rem;text-align:right;
border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}
.key span{margin-right:1.2rem}
.key i{display:inline-block;width:1.4rem;border-top:3px solid;vertical-align:middle;margin-right:.4rem}
.good{color:var(--good)}.bad{color:var(--bad)}.scroll{overflow-x:auto}
"""
_COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--bad)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart over time."""

    title: str
    unit: str
    lines: Sequence[tuple[str, Sequence[Point]]]
    """(label, points); a point without a finite value breaks the line."""
    levels: Sequence[tuple[float, str]] = ()
    """Thresholds, drawn dashed."""
    shades: Sequence[tuple[float, float]] = ()
    """Times in which something was not valid."""
    marks: Sequence[tuple[float, str]] = ()
    steps: bool = False
    """Whether values stay until the next one."""


def chart(panel: Panel, x0: float, x1: float) -> str:
    """The panel as SVG with its key."""
    values = [y for _, points in panel.lines for x, y in points if x0 <= x <= x1 and math.isfinite(y)]
    values += [level for level, _ in panel.levels if values and _near(level, values)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = (high - low) * 0.08 or max(abs(high) * 1e-4, 0.01)
    low, high = low - pad, high + pad
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> str:
        return f"{_LEFT + (x - x0) / (x1 - x0) * wide:.1f},{_TOP + (high - y) / (high - low) * tall:.1f}"

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{escape(panel.title)}'>"]
    for begin, end in panel.shades:
        left, right = (at(min(max(x, x0), x1), high).split(",")[0] for x in (begin, end))
        parts.append(
            f"<rect x={left} y={_TOP} width={float(right) - float(left):.1f} height={tall} fill='var(--shade)'/>"
        )
    for tick in _ticks(low, high, 4):
        height = at(x0, tick).split(",")[1]
        parts.append(f"<path d='M{_LEFT} {height}H{_WIDTH - _RIGHT}' stroke='var(--line)'/>")
        parts.append(
            f"<text x={_LEFT - 6} y={float(height) + 4:.1f} text-anchor=end>{_number(tick, high - low)}</text>"
        )
    for tick in _ticks(x0, x1, 8):
        across = at(tick, low).split(",")[0]
        parts.append(f"<text x={across} y={_HEIGHT - 6} text-anchor=middle>{_number(tick, x1 - x0)} s</text>")
    for level, label in panel.levels:
        if low <= level <= high:
            height = at(x0, level).split(",")[1]
            parts.append(f"<path d='M{_LEFT} {height}H{_WIDTH - _RIGHT}' stroke='var(--soft)' stroke-dasharray='4 4'/>")
            parts.append(
                f"<text x={_WIDTH - _RIGHT - 4} y={float(height) - 4:.1f} text-anchor=end>{escape(label)}</text>"
            )
    row, before = 0, -math.inf
    for moment, label in sorted(panel.marks):
        if x0 <= moment <= x1:
            place = at(moment, high).split(",")[0]
            row = row + 1 if float(place) - before < 130 else 0
            before = float(place)
            parts.append(f"<path d='M{place} {_TOP}V{_TOP + tall}' stroke='var(--bad)' stroke-dasharray='2 3'/>")
            parts.append(f"<text x={float(place) + 4:.1f} y={_TOP + 12 + 15 * row}>{escape(label)}</text>")
    for index, (_, points) in enumerate(panel.lines):
        path = _path(_thinned([p for p in points if x0 <= p[0] <= x1]), at, steps=panel.steps, end=x1)
        parts.append(f"<path d='{path}' fill=none stroke='{_COLOURS[index % 4]}' stroke-width=1.6 />")
    parts.append("</svg>")
    key = "".join(
        f"<span><i style='border-color:{_COLOURS[index % 4]}'></i>{escape(label)}</span>"
        for index, (label, _) in enumerate(panel.lines)
    )
    title = f"<h2>{escape(panel.title)} <span class=soft>{escape(panel.unit)}</span></h2>"
    return f"{title}{''.join(parts)}<div class='key soft'>{key}</div>"


def _near(level: float, values: Sequence[float]) -> bool:
    spread = max(max(values) - min(values), 1e-9)
    return min(values) - spread <= level <= max(values) + spread


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """The extremes of each column where there are more points than columns."""
    if len(points) <= _MOST:
        return points
    size, kept = len(points) / (_MOST / 2), []
    for column in range(_MOST // 2):
        part = points[int(column * size) : int((column + 1) * size)]
        if part:
            ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
            kept += sorted(ends)
    return kept


def _path(points: Sequence[Point], place: Callable[[float, float], str], *, steps: bool, end: float) -> str:
    out, pen, last = [], False, None
    for x, y in points:
        if not math.isfinite(y):
            pen = False
            continue
        if steps and pen and last is not None:
            out.append("L" + place(x, last))
        out.append(("L" if pen else "M") + place(x, y))
        pen, last = True, y
    if steps and pen and last is not None:
        out.append("L" + place(end, last))
    return "".join(out)


def _ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _number(value: float, span: float) -> str:
    digits = max(0, min(4, 1 - math.floor(math.log10(span)))) if span > 0 else 2
    return f"{value:.{digits}f}"


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """A whole page."""
    return "\n".join((
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><main><h1>{escape(title)}</h1><p class=soft>{escape(subtitle)}</p>",
        *parts, "</main></html>",
    ))  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; ``good`` and ``bad`` as whole cells are coloured."""

    def cell(value: object) -> str:
        text = str(value)
        kind = {"passed": "good", "yes": "good", "FAILED": "bad", "NO": "bad"}.get(text)
        return f"<td{f' class={kind}' if kind else ''}>{escape(text)}</td>"

    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{''.join(f'<th>{escape(one)}</th>' for one in head)}</tr>{body}</table></div>"


def trace_page(trace: Trace, replayed: Replayed | str, causes: Sequence[str], kinds: Sequence[str]) -> str:
    """What happened around an event, as one page."""
    origin = trace.monotonic_ns
    outputs = list(trace.output_rows())
    inputs = list(trace.input_rows())
    if not outputs:
        return page(trace.event["id"], "the trace holds no estimate", ())
    x0, x1 = (_second(outputs[0]["now_ns"], origin), _second(outputs[-1]["now_ns"], origin))
    shades = _invalid(outputs, origin)
    watches = trace.settings["watches"]["watches"]
    event = trace.event
    marks = [
        (_second(moment, origin), label)
        for moment, label in (
            (event["start_ns"], kinds[event["kind"]].replace("_", " ")), (event["write_ns"], "setpoint"), (event["end_ns"], "over")
        )
        if moment
    ]  # fmt: skip
    nan = math.nan

    def line(name: str, when: str = "time_ns") -> list[Point]:
        return [(_second(row[when], origin), row[name] if row["cause"] == 0 else nan) for row in outputs]

    raw = [
        (_second(row["time_ns"], origin), row["values"][0]) for row in inputs if row["kind"] == "sample" and row["n"]
    ]
    panels = [
        Panel(
            title="Frequency", unit="Hz, at the time it refers to", shades=shades, marks=marks,
            lines=[("estimate", line("frequency_hz"))] + ([("register", raw)] if raw else []),
            levels=[(watches[0]["enter"], "under"), (watches[1]["enter"], "over")],
        ),
        Panel(title="ROCOF", unit="Hz/s", shades=shades, marks=marks,
              lines=[("100 ms", line("rocof_100")), ("500 ms", line("rocof_500"))]),
    ]  # fmt: skip
    if any(math.isfinite(row["voltage_v"]) for row in outputs):
        volts = [(_second(row["time_ns"], origin), row["voltage_v"]) for row in outputs]
        panels.append(
            Panel(title="Voltage", unit="V, phase to neutral", shades=shades, marks=marks, lines=[("rms", volts)])
        )
    wrote = [(_second(row["now_ns"], origin), row["values"][0]) for row in inputs if row["kind"] == "wrote"]
    read = [(_second(row["now_ns"], origin), row["values"][0]) for row in inputs if row["kind"] == "readback"]
    baseline = [(_second(row["now_ns"], origin), row["values"][0]) for row in inputs if row["kind"] == "limits"]
    if wrote or baseline:
        lines = [("decided", [(_second(row["now_ns"], origin), row["target_w"]) for row in outputs])]
        lines += [
            (label, points)
            for label, points in (("written", wrote), ("read back", read), ("baseline", baseline))
            if points
        ]
        panels.append(
            Panel(title="Setpoint", unit="W, consumption positive", shades=shades, marks=marks, lines=lines, steps=True)
        )
    samples = sum(row["kind"] in {"sample", "wave"} for row in inputs)
    told = replayed if isinstance(replayed, str) else (
        f"Replayed: {replayed.inputs:,} inputs give the same {replayed.outputs:,} estimates and decisions, bit for bit."
        if replayed.identical
        else f"Replayed: not the same. {replayed.first_difference}"
    )  # fmt: skip
    return page(
        f"{kinds[event['kind']].replace('_', ' ').capitalize()} at {trace.site}",
        f"{event['id']}; {samples:,} samples, {len(outputs):,} estimates, {len(wrote):,} setpoints. "
        f"Time 0 is the event's beginning; shaded: the measurement was not valid.",
        [*(chart(panel, x0, x1) for panel in panels), "<h2>In order</h2>", _order(trace, outputs, inputs, causes),
         f"<p class=soft>{escape(told)}</p>"],
    )  # fmt: skip


def _second(moment_ns: int, origin: int) -> float:
    return (moment_ns - origin) / 1e9


def _invalid(outputs: Sequence[dict[str, float]], origin: int) -> list[tuple[float, float]]:
    spans: list[tuple[float, float]] = []
    began = None
    for row in outputs:
        at = _second(int(row["now_ns"]), origin)
        if row["cause"] and began is None:
            began = at
        elif not row["cause"] and began is not None:
            spans.append((began, at))
            began = None
    if began is not None:
        spans.append((began, _second(int(outputs[-1]["now_ns"]), origin)))
    return spans


def _order(
    trace: Trace, outputs: Sequence[dict[str, float]], inputs: Sequence[dict[str, object]], causes: Sequence[str]
) -> str:
    """The chain from the sample to the readback, and every change of validity, each with its time."""
    origin, event = trace.monotonic_ns, trace.event
    rows: list[tuple[float, str, str]] = [(0.0, "began", f"{event['extreme_hz'] or math.nan:.4f} Hz at the extreme")]
    last = 0.0
    for row in outputs:
        if row["cause"] != last:
            rows.append((_second(int(row["now_ns"]), origin), "validity", causes[int(row["cause"])]))
            last = row["cause"]
    first_due = next((row for row in outputs if row["due"]), None)
    if first_due is not None:
        rows.append((_second(int(first_due["now_ns"]), origin), "decided", f"{first_due['target_w']:.0f} W"))
    for kind, label in (("wrote", "bytes on the socket"), ("readback", "read back")):
        first = next((one for one in inputs if one["kind"] == kind), None)
        if first is not None:
            rows.append((_second(first["now_ns"], origin), label, f"{first['values'][0]:.0f} W"))  # type: ignore[arg-type,index]
    if event["sample_ns"]:
        rows.append((_second(event["sample_ns"], origin), "sample answered", "receipt"))
    if event["end_ns"]:
        rows.append((_second(event["end_ns"], origin), "over", f"response {event['response_w']:.0f} W"))
    return table(("s", "what", ""), [(f"{at:.6f}", what, text) for at, what, text in sorted(rows)[:60]])
