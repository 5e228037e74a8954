"""A report as a PDF with its plots, by ReportLab: vectors, selectable text, no browser and no system library."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from html import escape
from pathlib import Path
from zoneinfo import ZoneInfo

from reportlab.graphics.charts.barcharts import VerticalBarChart
from reportlab.graphics.charts.legends import Legend
from reportlab.graphics.shapes import Drawing, String
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from wattmesh_cloud.reports.figures import BASELINES, Bar, Figures, SiteFigures

_INK, _SOFT, _LINE = colors.HexColor("#17212b"), colors.HexColor("#51606f"), colors.HexColor("#d9e0e7")
_LOAD, _PV, _IMPORT = colors.HexColor("#7a4fb5"), colors.HexColor("#a86400"), colors.HexColor("#0b62b8")
_GREEN = colors.HexColor("#0b7a4b")
_styles = getSampleStyleSheet()
_TITLE = ParagraphStyle("t", parent=_styles["Title"], alignment=0, fontSize=18, textColor=_INK, spaceAfter=2)
_HEAD = ParagraphStyle("h", parent=_styles["Heading2"], fontSize=12, textColor=_INK, spaceBefore=10, spaceAfter=4)
_TEXT = ParagraphStyle("p", parent=_styles["Normal"], fontSize=9, leading=12.5, textColor=_INK)
_NOTE = ParagraphStyle("n", parent=_TEXT, fontSize=8, leading=11, textColor=_SOFT)
_WIDTH = A4[0] - 36 * mm


def write_pdf(figures: Figures, path: Path) -> None:
    """Write the report; whole or not at all."""
    zone = ZoneInfo(figures.time_zone)
    draft = path.with_suffix(".draft")
    document = SimpleDocTemplate(
        str(draft), pagesize=A4, leftMargin=18 * mm, rightMargin=18 * mm, topMargin=16 * mm, bottomMargin=16 * mm,
        title=figures.title, author="WattMesh", subject=f"Report of a {figures.period}",
    )  # fmt: skip
    document.build(_story(figures, zone), onFirstPage=_footer, onLaterPages=_footer)
    draft.replace(path)


def write_csv(figures: Figures, path: Path) -> None:
    """The sites' figures as a table."""
    rows = figures.plain()["sites"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["site_id"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _story(figures: Figures, zone: tzinfo) -> list[Flowable]:
    sites, money = figures.sites, figures.currency
    total = _total(sites)
    first, last = _day(figures.start_ns, zone), _day(figures.end_ns - 1, zone)
    saved = total.cost_no_battery - total.cost
    against = total.cost_self_consumption - total.cost
    story: list[Flowable] = [
        Paragraph(escape(figures.title), _TITLE),
        Paragraph(f"{first} to {last}, times in {escape(figures.time_zone)}; {len(sites)} sites", _NOTE),
        Spacer(1, 4 * mm),
        Paragraph(
            f"Energy cost {total.cost:,.2f} {money}: <b>{_signed(saved)} {money} saved</b> against no battery "
            f"({total.cost_no_battery:,.2f}), {_signed(against)} against plain self-consumption "
            f"({total.cost_self_consumption:,.2f}). Highest import of a site {total.peak_import_w / 1000:.2f} kW "
            f"(without battery {total.peak_no_battery_w / 1000:.2f} kW). Measured whole: {total.availability:.1%} of the "
            "quarter hours.",
            _TEXT,
        ),
        Paragraph("Energy", _HEAD),
        _energy_plot(figures.bars, zone, figures.period),
        Paragraph("Cost against the baselines", _HEAD),
        _cost_plot(total, money),
        Paragraph("Sites", _HEAD),
        _site_table(sites, money, zone),
        Paragraph("Trades, flexibility and response evidence", _HEAD),
        _evidence_table(sites, money),
    ]
    if figures.demand_response:
        story += [Paragraph("Demand response", _HEAD), _response_table(figures, zone)]
    story += [Spacer(1, 5 * mm)]
    story += [
        Paragraph(f"Baseline <b>{name.replace('_', ' ')}</b>: {text}.", _NOTE) for name, text in BASELINES.items()
    ]
    story.append(
        Paragraph(
            "Costs are settlements where a slot is settled, else metered energy at the retailer's prices. Energy that is still "
            "stored at the end is not valued. Incomplete quarter hours count nowhere but in the availability.", _NOTE,
        )
    )  # fmt: skip
    return story


def _energy_plot(bars: Sequence[Bar], zone: tzinfo, period: str) -> Drawing:
    drawing = Drawing(_WIDTH, 150)
    if not bars:
        drawing.add(String(4, 70, "No metered energy in this period.", fontSize=9, fillColor=_SOFT))
        return drawing
    chart = VerticalBarChart()
    chart.x, chart.y, chart.width, chart.height = 34, 24, _WIDTH - 40, 100
    chart.data = [
        [one.load_wh / 1000 for one in bars],
        [one.pv_wh / 1000 for one in bars],
        [one.import_wh / 1000 for one in bars],
    ]
    every = max(1, len(bars) // 12)
    form = "%H:%M" if period == "day" else "%d %b"
    chart.categoryAxis.categoryNames = [
        _when(one.time_ns, zone, form) if index % every == 0 else "" for index, one in enumerate(bars)
    ]
    _axes(chart, [_LOAD, _PV, _IMPORT])
    drawing.add(chart)
    drawing.add(String(4, 138, "kWh", fontSize=7, fillColor=_SOFT))
    drawing.add(_legend([("Load", _LOAD), ("Production", _PV), ("Import", _IMPORT)], _WIDTH - 200, 144))
    return drawing


def _cost_plot(total: SiteFigures, money: str) -> Drawing:
    drawing = Drawing(_WIDTH, 120)
    chart = VerticalBarChart()
    chart.x, chart.y, chart.width, chart.height = 34, 20, 260, 84
    chart.data = [[total.cost_no_battery, total.cost_self_consumption, total.cost]]
    chart.categoryAxis.categoryNames = ["no battery", "self-consumption", "as settled"]
    _axes(chart, [_GREEN])
    chart.barLabelFormat = "%.2f"
    chart.barLabels.fontSize = 7
    chart.barLabels.nudge = 7
    drawing.add(chart)
    drawing.add(String(4, 110, money, fontSize=7, fillColor=_SOFT))
    return drawing


def _axes(chart: VerticalBarChart, fills: Sequence[colors.Color]) -> None:
    chart.groupSpacing, chart.barSpacing = 3, 0.5
    for index, fill in enumerate(fills):
        chart.bars[index].fillColor = fill
        chart.bars[index].strokeColor = None
    for axis in (chart.categoryAxis, chart.valueAxis):
        axis.labels.fontSize = 7
        axis.labels.fillColor = _SOFT
        axis.strokeColor = _LINE
    chart.valueAxis.valueMin = min(0.0, min((min(row) for row in chart.data if row), default=0.0))
    chart.valueAxis.visibleGrid = True
    chart.valueAxis.gridStrokeColor = _LINE


def _legend(pairs: Sequence[tuple[str, colors.Color]], x: float, y: float) -> Legend:
    legend = Legend()
    legend.x, legend.y, legend.alignment, legend.columnMaximum = x, y, "right", 1
    legend.fontSize, legend.dx, legend.dy, legend.deltax = 7, 6, 6, 60
    legend.colorNamePairs = [(color, name) for name, color in pairs]
    legend.strokeColor = None
    return legend


def _site_table(sites: Sequence[SiteFigures], money: str, zone: tzinfo) -> Table:
    head = ["Site", "Load kWh", "PV kWh", "Import kWh", "Export kWh", f"Cost {money}", "No battery", "Self-cons.", "Peak kW",
            "at", "Whole"]  # fmt: skip
    rows = [
        [one.site_id[:18], *(f"{value / 1000:,.1f}" for value in (one.load_wh, one.pv_wh, one.import_wh, one.export_wh)),
         f"{one.cost:,.2f}", f"{one.cost_no_battery:,.2f}", f"{one.cost_self_consumption:,.2f}",
         f"{one.peak_import_w / 1000:.2f}", "" if one.peak_ns is None else _when(one.peak_ns, zone, "%d %b %H:%M"),
         f"{one.availability:.1%}"]
        for one in sites
    ]  # fmt: skip
    return _table([head, *rows])


def _evidence_table(sites: Sequence[SiteFigures], money: str) -> Table:
    head = ["Site", "Trades", "Traded kWh", "Mean ct/kWh", f"Flexibility {money}", "Frequency events", "Answered",
            "Detection to write, median", "Largest response kW", "Alarms"]  # fmt: skip
    rows = [
        [one.site_id[:18], str(one.trades), f"{one.traded_wh / 1000:,.2f}",
         "–" if one.trade_price_ticks is None else f"{one.trade_price_ticks / 100:.2f}", f"{one.flexibility:,.2f}",
         str(one.frequency_events), str(one.answered_events),
         "–" if one.detection_to_write_ms is None else f"{one.detection_to_write_ms:.2f} ms",
         f"{one.largest_response_w / 1000:.2f}", str(one.alarms)]
        for one in sites
    ]  # fmt: skip
    return _table([head, *rows])


def _response_table(figures: Figures, zone: tzinfo) -> Table:
    rows = [
        [
            one["id"][:40],
            _when(one["start_ns"], zone, "%d %b %H:%M"),
            one["state"],
            f"{one['dispatched_w'] / 1000:.2f}",
            f"{one['delivered_wh'] / 1000:.2f}",
        ]
        for one in figures.demand_response
    ]
    return _table([["Event", "Start", "State", "Dispatched kW", "Delivered kWh"], *rows])


def _table(rows: list[list[str]]) -> Table:
    cell = ParagraphStyle("c", parent=_TEXT, fontSize=7, leading=8.5, textColor=_SOFT)
    table = Table([[Paragraph(escape(text), cell) for text in rows[0]], *rows[1:]], repeatRows=1, hAlign="LEFT")
    table.setStyle(
        TableStyle(
            [
                ("FONTSIZE", (0, 1), (-1, -1), 7.5),
                ("TEXTCOLOR", (0, 1), (-1, -1), _INK),
                ("ALIGN", (1, 1), (-1, -1), "RIGHT"),
                ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        )
    )
    return table


def _total(sites: Sequence[SiteFigures]) -> SiteFigures:
    total = SiteFigures(site_id="all")
    for one in sites:
        for name in ("slots", "expected_slots", "cost", "cost_no_battery", "cost_self_consumption"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.peak_import_w = max(total.peak_import_w, one.peak_import_w)
        total.peak_no_battery_w = max(total.peak_no_battery_w, one.peak_no_battery_w)
    return total


def _footer(canvas: object, document: object) -> None:
    canvas.setFont("Helvetica", 7)  # type: ignore[attr-defined]  # ReportLab's canvas
    canvas.setFillColor(_SOFT)  # type: ignore[attr-defined]
    canvas.drawString(18 * mm, 9 * mm, "WattMesh")  # type: ignore[attr-defined]
    canvas.drawRightString(A4[0] - 18 * mm, 9 * mm, f"page {document.page}")  # type: ignore[attr-defined]


def _when(time_ns: int, zone: tzinfo, form: str) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000_000, tz=UTC).astimezone(zone).strftime(form)


def _day(time_ns: int, zone: tzinfo) -> str:
    return _when(time_ns, zone, "%d %B %Y")


def _signed(value: float) -> str:
    return f"{value:,.2f}" if value >= 0 else f"−{-value:,.2f}"
