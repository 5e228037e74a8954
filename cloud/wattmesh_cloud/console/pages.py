"""The pages. Each builds its frame once and refreshes values by a timer that ends with the viewer's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nicegui import ui

from wattmesh_cloud.console import frame as f
from wattmesh_cloud.live import KEY_POINTS
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.view import CloudView

BLUE, AMBER, GREEN, GREY, RED = "#2f7fd6", "#d08a00", "#1f9d61", "#8894a3", "#d1483f"
_FLOWS = (("Grid", "grid_w"), ("PV", "pv_w"), ("Battery", "battery_w"), ("Load", "load_w"))


def register(view: CloudView) -> None:
    """Make the pages; called once a process."""

    @ui.page("/")
    def fleet() -> None:
        _fleet(view)

    @ui.page("/site/{site_id}")
    async def site(site_id: str) -> None:
        await _site(view, site_id)

    @ui.page("/market")
    async def market() -> None:
        await _market(view)

    @ui.page("/grid")
    async def grid() -> None:
        await _grid(view)

    @ui.page("/agents")
    async def agents() -> None:
        await _agents(view)

    @ui.page("/system")
    def system() -> None:
        _system(view)


async def _items(view: CloudView, table: Table, partition: str, limit: int) -> list[Item]:
    return await asyncio.to_thread(view.items, table, partition, limit)


# -- fleet


def _fleet(view: CloudView) -> None:
    with f.frame(view, "Fleet", "/"):
        with ui.element("div").classes("wm-tiles"):
            tiles = [
                f.tile(name) for name in ("Grid exchange", "Production", "Load", "Frequency", "Sites online", "Records")
            ]
        holder = ui.element("div").classes("wm-grid")
        cards: dict[str, Callable[[], None]] = {}

        def refresh() -> None:
            overview = view.overview()
            flows = [one["flows"] or {} for one in overview["sites"].values()]
            grid_hz = overview["grid"]["frequency_hz"]
            online = sum(one["online"] for one in overview["sites"].values())
            texts = [
                f.power(_total(flows, "grid_w")),
                f.power(_total(flows, "pv_w", -1.0)),
                f.power(_total(flows, "load_w")),
                f.number(grid_hz, 3, "Hz"),
                f"{online} of {len(overview['sites'])}",
                f"{overview['records']:,}",
            ]
            for label, text in zip(tiles, texts, strict=True):
                label.set_text(text)
            # Problems first: sites that are away stand before the others.
            for name in sorted(overview["sites"], key=lambda one: (overview["sites"][one]["online"], one)):
                if name not in cards:
                    with holder:
                        cards[name] = _site_card(view, name)
                cards[name]()

        refresh()
        ui.timer(1.0, refresh)


def _total(flows: list[dict[str, Any]], key: str, sign: float = 1.0) -> float | None:
    known = [one[key] for one in flows if one.get(key) is not None]
    return sign * sum(known) if known else None


def _site_card(view: CloudView, name: str) -> Callable[[], None]:
    with ui.element("article").classes("wm-card"):
        with ui.row().classes("w-full items-center justify-between no-wrap"):
            ui.link(name, f"/site/{name}").classes("text-weight-bold text-subtitle1").style("color:inherit")
            state = ui.label().classes("text-caption")
        with ui.element("div").classes("wm-flow q-mt-sm"):
            values = {}
            for title, key in _FLOWS:
                ui.element("span").classes("wm-soft").props(f'innerHTML="{title}"')
                values[key] = ui.label().classes("wm-num").style("text-align:right")
        soc = (
            ui.linear_progress(0.0, show_value=False, size="10px")
            .classes("q-mt-sm")
            .props('aria-label="State of charge"')
        )
        charge = ui.label().classes("text-caption wm-soft")
        follows = ui.label().classes("text-caption wm-soft")

    def refresh() -> None:
        site = view.site(name)
        flows = (site["live"] or {}).get("flows") or {}
        online = site["online"]
        state.set_text("online" if online else "away")
        state.classes(replace=f"text-caption {'wm-good' if online else 'wm-bad'}")
        for key, label in values.items():
            label.set_text(_flow_text(key, flows.get(key)))
        percent = flows.get("soc_percent")
        soc.set_value((percent or 0) / 100)
        charge.set_text(f"Charge {f.number(percent, 0, '%')}")
        health = site["health"]
        follows.set_text(f"Follows: {health['plan_source']}" if health else "Waiting for the gateway's first status")

    return refresh


def _flow_text(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key == "grid_w":
        return f"{'import' if value >= 0 else 'export'} {f.power(abs(value))}"
    if key == "battery_w" and abs(value) >= 1:
        return f"{'charging' if value > 0 else 'discharging'} {f.power(abs(value))}"
    return f.power(abs(value))


# -- site


async def _site(view: CloudView, site_id: str) -> None:
    with f.frame(view, f"Site {site_id}" if site_id in view.site_ids() else "Unknown site", "/"):
        if site_id not in view.site_ids():
            ui.label(f"There is no site {site_id!r}. The sites are listed on the Fleet page.").classes("wm-bad")
            ui.link("Back to the fleet", "/")
            return
        with ui.element("div").classes("wm-tiles"):
            tiles = {
                key: f.tile(title) for title, key in (*_FLOWS, ("Charge", "soc_percent"), ("Frequency", "frequency_hz"))
            }
        with ui.element("section").classes("wm-card w-full"):
            f.heading("Power, last batches")
            recent = f.line_chart(
                [{"name": "Grid", "colour": BLUE}, {"name": "PV", "colour": AMBER}, {"name": "Battery", "colour": GREEN},
                 {"name": "Load", "colour": GREY}], "kW",
            )  # fmt: skip
        with ui.element("section").classes("wm-card w-full"):
            f.heading("Forecast of the coming day: load and production, with the range from 10 to 90 %")
            fan = f.line_chart(
                [{"name": "Load", "colour": GREY}, {"name": "Load 10 %", "colour": GREY, "more": _faint()},
                 {"name": "Load 90 %", "colour": GREY, "more": _faint()}, {"name": "PV", "colour": AMBER},
                 {"name": "PV 10 %", "colour": AMBER, "more": _faint()}, {"name": "PV 90 %", "colour": AMBER, "more": _faint()}],
                "kW",
            )  # fmt: skip
        f.heading("Why this power? The arbiter's last decisions")
        columns = (("time", "Time"), ("asset_id", "Asset"), ("target", "Power"), ("decided_by", "Decided by"),
                   ("limited_by", "Limited by"))  # fmt: skip
        decisions = f.table(columns, [], "No decision has come in yet")
        tz = f.zone(view)

        def refresh() -> None:
            flows = (view.site(site_id)["live"] or {}).get("flows") or {}
            for key, label in tiles.items():
                value = flows.get(key)
                text = (
                    f.number(value, 0, "%") if key == "soc_percent" else f.number(value, 3, "Hz")
                    if key == "frequency_hz" else _flow_text(key, value)
                )  # fmt: skip
                label.set_text(text)
            rows = view.recent(site_id)[-360:]
            labels = [f.when(row["time_ns"], tz) for row in rows]
            f.fill(recent, labels, [[_kw(row.get(key)) for row in rows] for key in KEY_POINTS[:4]])

        async def refresh_slowly() -> None:
            rows = await _items(view, Table.PRODUCER_METRICS, f"{site_id}#decisions", 40)
            decisions.rows = [
                {**row.data, "time": f.when(row.time_ns, tz, full=True), "target": f.power(_as_float(row.data["target_w"])),
                 "limited_by": row.data["limited_by"] or "–"}
                for row in rows
            ]  # fmt: skip
            _fill_forecast(view, site_id, fan, tz)

        refresh()
        await refresh_slowly()
        ui.timer(1.0, refresh)
        ui.timer(10.0, refresh_slowly)


def _faint() -> dict[str, Any]:
    return {"lineStyle": {"width": 1, "type": "dotted"}}


def _kw(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _as_float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _fill_forecast(view: CloudView, site_id: str, chart: ui.echart, tz: Any) -> None:
    forecasts = view.forecasting.latest.get(site_id, {})
    if "load_wh" not in forecasts or "pv_wh" not in forecasts:
        return
    load, pv = forecasts["load_wh"], forecasts["pv_wh"]
    count = min(96, len(load.values))
    labels = [f.when(load.start_ns + index * load.slot_s * 10**9, tz) for index in range(count)]
    columns = []
    for one in (load, pv):
        factor = 3.6 / one.slot_s
        for level in (len(one.levels) // 2, 0, len(one.levels) - 1):
            columns.append([row[level] * factor for row in one.values[:count]])
    f.fill(chart, labels, columns)


# -- market


async def _market(view: CloudView) -> None:
    tz = f.zone(view)
    with f.frame(view, f"Market area {view.market.config.area}", "/market"):
        with ui.element("div").classes("wm-tiles"):
            titles = ("Trades", "Volume", "Slots cleared", "Slots settled", "Ledger sum", "Status")
            tiles = [f.tile(title) for title in titles]
        with ui.element("section").classes("wm-card w-full"):
            f.heading("Clearing price and volume of each slot")
            chart = f.line_chart(
                [{"name": "Price, ct/kWh", "colour": BLUE, "more": {"showSymbol": True, "connectNulls": False}},
                 {"name": "Volume, kWh", "colour": GREEN, "type": "bar"}], "",
            )  # fmt: skip
        f.heading("Participants")
        columns = (("site", "Site"), ("bought", "Imported"), ("sold", "Exported"), ("trades", "Trades"),
                   ("retail", "Paid to retailer"), ("market", "Paid for trades"), ("flex", "Demand response"),
                   ("cost", "Balance"))  # fmt: skip
        people = f.table(columns, [], "Nobody takes part yet")
        f.heading("Last trades")
        trade_columns = (("id", "Trade"), ("slot", "Delivery"), ("buyer_id", "Buyer"), ("seller_id", "Seller"),
                         ("energy", "Energy"), ("price", "Price"))  # fmt: skip
        trades = f.table(trade_columns, [], "No trade yet: they come when one home has surplus and another needs it")

        async def refresh() -> None:
            snapshot: Any = view.market.snapshot()
            texts = [
                str(snapshot["trades"]),
                f"{snapshot['volume_wh'] / 1000:.2f} kWh",
                str(snapshot["slots_cleared"]),
                str(snapshot["slots_settled"]),
                str(snapshot["ledger_sum_units"]),
                snapshot["halted"] or "open",
            ]
            for label, text in zip(tiles, texts, strict=True):
                label.set_text(text)
            people.rows = [
                _participant(name, row, snapshot["currency"]) for name, row in snapshot["participants"].items()
            ]
            area = view.market.config.area
            slots = (await _items(view, Table.MARKET_DATA, f"{area}#slots", 96))[::-1]
            prices = [row.data["price_ticks"] for row in slots]
            f.fill(
                chart,
                [f.when(row.time_ns, tz) for row in slots],
                [[None if p is None else p / 100 for p in prices], [row.data["volume_wh"] / 1000 for row in slots]],  # type: ignore[operator]
            )
            rows: list[Any] = await _items(view, Table.TRADE_DATA, f"{area}#trades", 50)
            trades.rows = [
                {**row.data, "id": row.id, "slot": f.when(row.time_ns, tz), "energy": f"{row.data['quantity_wh']} Wh",
                 "price": f"{row.data['price_ticks'] / 100:.2f} ct/kWh"}
                for row in rows
            ]  # fmt: skip

        await refresh()
        ui.timer(5.0, refresh)


def _participant(name: str, row: Any, currency: str) -> dict[str, Any]:
    return {
        "site": name,
        "bought": f"{row['imported_wh'] / 1000:.1f} kWh",
        "sold": f"{row['exported_wh'] / 1000:.1f} kWh",
        "trades": row["trades"],
        "retail": f"{row['paid_retail']:.2f} {currency}",
        "market": f"{row['paid_trades']:.2f} {currency}",
        "flex": f"{row['received_flexibility']:.2f} {currency}",
        "cost": f"{-row['cost'] + 0.0:.2f} {currency}",
    }


# -- grid


async def _grid(view: CloudView) -> None:
    tz = f.zone(view)
    with f.frame(view, "Grid and demand response", "/grid"):
        with ui.element("div").classes("wm-tiles"):
            tiles = [f.tile(title) for title in ("Frequency", "Status", "Frequency events")]
        with ui.element("section").classes("wm-card w-full"):
            f.heading("Frequency as the gateways see it")
            chart = f.line_chart([{"name": "Frequency", "colour": BLUE}], "Hz")
        f.heading("Frequency events")
        columns = (("time", "Time"), ("site", "Site"), ("kind", "Event"), ("extreme", "Extreme"), ("response", "Response"),
                   ("took", "Detection to write"))  # fmt: skip
        events = f.table(columns, [], "No event: the frequency has stayed inside its band")
        f.heading("Demand response")
        dr_columns = (("id", "Event"), ("window", "Window"), ("target", "Asked for"), ("dispatched", "Dispatched"),
                      ("delivered", "Delivered"), ("state", "State"))  # fmt: skip
        responses = f.table(dr_columns, [], "No event planned: the forecast shows no peak yet")
        trace: list[tuple[str, float]] = []

        def refresh() -> None:
            snapshot: Any = view.grid.snapshot()
            tiles[0].set_text(f.number(snapshot["frequency_hz"], 3, "Hz"))
            tiles[1].set_text(snapshot["status"])
            tiles[2].set_text(str(snapshot["frequency_events"]))
            if snapshot["frequency_hz"] is not None:
                trace.append((f.when(view.clock.utc_ns(), tz, full=True)[-8:], snapshot["frequency_hz"]))
                del trace[:-300]
            f.fill(chart, [label for label, _ in trace], [[value for _, value in trace]])
            responses.rows = [_response(row, tz) for row in snapshot["demand_response"][::-1]]

        async def refresh_slowly() -> None:
            rows: list[Any] = []
            for site in view.site_ids():
                rows += await _items(view, Table.GRID_METRICS, f"{site}#frequency", 20)
            rows.sort(key=lambda row: -row.time_ns)
            events.rows = [
                {"time": f"{f.when(row.time_ns, tz, full=True)} {row.data['site_id']}", "site": row.data["site_id"],
                 "kind": str(row.data["kind"]).replace("_", " "), "extreme": f.number(row.data["extreme_frequency_hz"], 3, "Hz"),
                 "response": f.power(row.data["response_w"]),
                 "took": f.number(_ms(row.data["detection_to_write_ns"]), 2, "ms")}
                for row in rows[:60]
            ]  # fmt: skip

        refresh()
        await refresh_slowly()
        ui.timer(1.0, refresh)
        ui.timer(10.0, refresh_slowly)


def _ms(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


def _response(row: Any, tz: Any) -> dict[str, Any]:
    return {
        "id": row["id"],
        "window": f"{f.when(row['start_ns'], tz)} to {f.when(row['end_ns'], tz)[4:]}",
        "target": f.power(row["target_w"]),
        "dispatched": f.power(sum(row["dispatched_w"].values())),
        "delivered": f"{sum(row['delivered_wh'].values())} Wh",
        "state": row["state"],
    }


# -- agents


async def _agents(view: CloudView) -> None:
    tz = f.zone(view)
    with f.frame(view, "Agents", "/agents"):
        ui.label(
            "What the cloud's agents decided and why. All of them run on their policies; no model is connected."
        ).classes("wm-soft")
        with ui.element("div").classes("wm-tiles"):
            tiles = [
                f.tile(title)
                for title in ("Forecasts issued", "Mean error, load", "Mean error, PV", "Proposals refused")
            ]
        columns = (
            ("time", "Time"),
            ("agent", "Agent"),
            ("site", "Site"),
            ("rationale", "Why"),
            ("limit", "Import limit"),
        )
        rows_table = f.table(columns, [], "No decision yet: the first ones come at the next full hour", page=20)

        async def refresh() -> None:
            forecasting: Any = view.forecasting.snapshot()
            errors = forecasting["mean_error_wh"]
            texts = [
                str(forecasting["issued"]),
                f.number(errors.get("load_wh"), 0, "Wh a slot"),
                f.number(errors.get("pv_wh"), 0, "Wh a slot"),
                str(view.strategy.refused),
            ]
            for label, text in zip(tiles, texts, strict=True):
                label.set_text(text)
            rows: list[Any] = await _items(view, Table.MARKET_DATA, "agents#decisions", 100)
            rows_table.rows = [
                {"time": f"{f.when(row.time_ns, tz)} {row.data['site']}", "agent": row.data["agent"], "site": row.data["site"],
                 "rationale": row.data["rationale"], "limit": f.power(row.data["peak_limit_w"])}
                for row in rows
            ]  # fmt: skip

        await refresh()
        ui.timer(5.0, refresh)


# -- system


def _system(view: CloudView) -> None:
    with f.frame(view, "System", "/system"):
        with ui.element("div").classes("wm-tiles"):
            titles = ("Batches stored", "Records stored", "Duplicates", "Invalid frames", "Unanswered acknowledgements")
            tiles = [f.tile(title) for title in titles]
        f.heading("Gateways")
        columns = (("site", "Site"), ("state", "State"), ("memory", "Memory"), ("cycles", "Cycles"), ("overrun", "Overrun"),
                   ("pending", "Batches waiting"), ("commands", "Commands"), ("software", "Software"))  # fmt: skip
        gateways = f.table(columns, [], "No gateway has been seen yet: start one with wattmesh gateway run SITE.yaml")

        def refresh() -> None:
            counts = view.ingest.counts
            names = ("batches", "records", "duplicates", "invalid", "acks_unanswered")
            for label, name in zip(tiles, names, strict=True):
                label.set_text(f"{counts[name]:,}")
            gateways.rows = [_gateway(view, site) for site in view.site_ids()]

        refresh()
        ui.timer(2.0, refresh)


def _gateway(view: CloudView, site: str) -> dict[str, Any]:
    health, announcement = view.health.get(site), view.announcements.get(site)
    return {
        "site": site,
        "state": "online" if site in view.online else "away",
        "memory": f.number(health.resident_mb if health else None, 0, "MB"),
        "cycles": f"{health.cycles:,}" if health else "–",
        "overrun": f.number(health.cycle_overrun_max_ms if health else None, 0, "ms"),
        "pending": str(health.batches_pending) if health else "–",
        "commands": f"{health.commands_applied:,} of {health.commands_sent:,}" if health else "–",
        "software": announcement["software"] if announcement else "–",
    }
