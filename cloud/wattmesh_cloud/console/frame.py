"""What all pages share: the frame, numbers as people read them, tiles and charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Any

from nicegui import ui

from wattmesh_cloud.view import CloudView

LINKS = (("/", "Fleet"), ("/market", "Market"), ("/grid", "Grid"), ("/agents", "Agents"), ("/system", "System"))

STYLE = """
:root{--ink:#16202c;--soft:#556172;--line:#dde3ea;--paper:#f6f8fa;--card:#fff;--good:#0f6b39;--bad:#b3261e;--warn:#8a5300}
body.body--dark{--ink:#e7ebf0;--soft:#a6b1bf;--line:#2e3743;--paper:#11161c;--card:#1a2129;--good:#63d493;--bad:#ff8a80;--warn:#ffb95c}
body{background:var(--paper);color:var(--ink)}
.wm-card{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:1rem 1.1rem;box-shadow:none}
.wm-soft{color:var(--soft)} .wm-num{font-variant-numeric:tabular-nums;font-weight:600}
.wm-good{color:var(--good)} .wm-bad{color:var(--bad)} .wm-warn{color:var(--warn)}
.wm-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem;width:100%}
.wm-tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.8rem;width:100%}
.wm-flow{display:grid;grid-template-columns:auto 1fr;gap:.15rem .8rem}
.wm-flow span:nth-child(even){text-align:right}
a.wm-nav{color:inherit;text-decoration:none;padding:.35rem .7rem;border-radius:.5rem}
a.wm-nav:hover,a.wm-nav:focus-visible{background:rgba(127,127,127,.18)}
a.wm-nav[aria-current=page]{background:rgba(127,127,127,.25);font-weight:600}
h1{font-size:1.35rem;font-weight:650;margin:0;line-height:1.3} h2{font-size:1.05rem;font-weight:600;margin:0;line-height:1.4}
.q-table th{color:var(--soft);font-weight:600}
"""


@contextmanager
def frame(view: CloudView, title: str, path: str) -> Iterator[None]:
    """A page with header, navigation and the time of the fleet."""
    ui.add_css(STYLE)
    ui.page_title(f"{title} · WattMesh")
    with ui.header().classes("items-center gap-2 q-py-xs").style("background:#14324a;color:#fff"):
        ui.label("WattMesh").classes("text-weight-bold text-subtitle1 q-mr-md")
        with ui.element("nav").props('aria-label="Pages"').classes("row gap-1"):
            for target, name in LINKS:
                link = ui.link(name, target).classes("wm-nav")
                if target == path:
                    link.props('aria-current="page"')
        ui.space()
        clock = ui.label().classes("wm-num")
        ui.timer(1.0, lambda: clock.set_text(when(view.clock.utc_ns(), zone(view), full=True)))
    with (
        ui.element("main").classes("w-full q-pa-md").style("max-width:82rem;margin:0 auto"),
        ui.column().classes("w-full gap-4"),
    ):
        ui.html(f"<h1>{title}</h1>", sanitize=False)
        yield


def zone(view: CloudView) -> tzinfo:
    """Time zone of the market area: what the console's times are in."""
    return view.market.engine.tariff.zone()


def when(time_ns: int, tz: tzinfo, *, full: bool = False) -> str:
    """A moment in local time."""
    moment = datetime.fromtimestamp(time_ns / 1e9, tz=UTC).astimezone(tz)
    return moment.strftime("%a %d %b %Y %H:%M:%S" if full else "%a %H:%M")


def power(value: float | None) -> str:
    """A power with its unit."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value / 1000:.2f} kW" if abs(value) >= 1000 else f"{value:.0f} W"


def number(value: float | None, digits: int, unit: str) -> str:
    """A number with its unit, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f} {unit}".strip()


def tile(title: str) -> ui.label:
    """A small card with a title; returns the label of its value."""
    with ui.element("div").classes("wm-card"):
        ui.label(title).classes("wm-soft text-caption")
        return ui.label("–").classes("wm-num text-h6")


def heading(text: str) -> None:
    """A heading inside a page."""
    ui.html(f"<h2>{text}</h2>", sanitize=False)


def line_chart(
    series: Sequence[Mapping[str, Any]], unit: str, *, height: str = "19rem", area: bool = False
) -> ui.echart:
    """Lines over time; ``series`` has name and colour."""
    return (
        ui.echart(
            {
                "animation": False,
                "backgroundColor": "transparent",
                "grid": {"left": 56, "right": 16, "top": 36, "bottom": 28},
                "legend": {"top": 0, "textStyle": {"color": "#7a8696"}},
                "tooltip": {"trigger": "axis"},
                "xAxis": {"type": "category", "boundaryGap": False, "data": [], "axisLabel": {"color": "#7a8696"}},
                "yAxis": {
                    "type": "value",
                    "name": unit,
                    "scale": True,
                    "axisLabel": {"color": "#7a8696"},
                    "splitLine": {"lineStyle": {"color": "rgba(127,127,127,.2)"}},
                },
                "series": [
                    {
                        "name": one["name"],
                        "type": one.get("type", "line"),
                        "showSymbol": False,
                        "data": [],
                        "lineStyle": {"width": 2},
                        "itemStyle": {"color": one["colour"]},
                        **({"areaStyle": {"opacity": 0.15}} if area else {}),
                        **one.get("more", {}),
                    }
                    for one in series
                ],
            }
        )
        .classes("w-full")
        .style(f"height:{height}")
    )


def fill(chart: ui.echart, labels: Sequence[str], columns: Sequence[Sequence[float | None]]) -> None:
    """New data for a chart."""
    chart.options["xAxis"]["data"] = list(labels)
    for one, values in zip(chart.options["series"], columns, strict=True):
        one["data"] = [None if value is None else round(value, 4) for value in values]
    chart.update()


def table(
    columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]], empty: str, *, page: int = 12
) -> ui.table:
    """A plain table; ``columns`` are (field, title)."""
    spec = [
        {"name": name, "label": label, "field": name, "align": "left" if index == 0 else "right"}
        for index, (name, label) in enumerate(columns)
    ]
    made = ui.table(columns=spec, rows=[dict(row) for row in rows], row_key=columns[0][0], pagination=page)
    made.props(f'flat dense no-data-label="{empty}"').classes("w-full wm-card q-pa-none")
    return made
