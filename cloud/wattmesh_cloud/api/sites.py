"""Sites: what they are, do, did, expect and decided."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi import Path as InPath

from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import (
    EXPORTS,
    MOST_SAMPLES,
    NS,
    PROBLEMS,
    After,
    AsFormat,
    End,
    Format,
    Limit,
    Reader,
    Start,
    in_format,
    known_site,
    page,
    table_response,
    window,
)
from wattmesh_cloud.forecasting.service import median_of
from wattmesh_cloud.frequency_live import FrequencyLive
from wattmesh_cloud.observer import SiteObserver
from wattmesh_cloud.store.base import Item, Series, Table
from wattmesh_cloud.view import CloudView

_AMOUNTS = ("trade_units", "residual_units", "fee_units", "levy_units", "imbalance_units", "flexibility_units")

Column = Annotated[
    list[Annotated[str, Query(pattern=r"^[A-Za-z0-9_.-]{1,100}\.[A-Za-z0-9_-]{1,100}$")]],
    Query(min_length=1, max_length=20, description="asset.point", examples=[["battery.active_power_w"]]),
]
Step = Annotated[
    int | None, Query(ge=1, le=86_400, description="Seconds: means of aligned steps; left out: as measured")
]
EventId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_.:-]{1,150}$")]
SitesAfter = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="`next` of the page before")]


def site_routes(view: CloudView, observer: SiteObserver | None, frequency: FrequencyLive) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["sites"], responses=PROBLEMS)

    @routes.get("/sites")
    async def list_sites(who: Reader, limit: Limit = 500, after: SitesAfter = None) -> m.Page[m.SiteRow]:
        """Sites by name with what they do now; `state` says which want somebody's eyes."""
        names = [name for name in who.visible(view.site_ids()) if after is None or name > after]
        rows = [m.SiteRow.model_validate(view.site(name)) for name in names[:limit]]
        return m.Page(rows=rows, next=names[limit - 1] if len(names) > limit else None)

    @routes.get("/sites/{site_id}")
    async def get_site(who: Reader, site_id: m.SiteName) -> m.SiteDetail:
        """One site with its assets and their newest values."""
        return m.SiteDetail.model_validate(view.detail(known_site(view, who, site_id)))

    @routes.get("/sites/{site_id}/assets")
    async def list_assets(who: Reader, site_id: m.SiteName) -> list[m.Asset]:
        """Its devices with their newest values."""
        return [m.Asset.model_validate(one) for one in view.detail(known_site(view, who, site_id))["assets"]]

    @routes.get("/sites/{site_id}/flows")
    async def list_flows(who: Reader, site_id: m.SiteName) -> list[m.FlowRow]:
        """Its power flows of the last hour or so, from memory, oldest first."""
        return [m.FlowRow.model_validate(row) for row in view.recent(known_site(view, who, site_id))]

    @routes.get("/sites/{site_id}/readings", response_model=list[m.Reading], responses=EXPORTS)
    async def list_readings(
        who: Reader, site_id: m.SiteName, column: Column, start_ns: Start, end_ns: End, step_s: Step = None,
        how: AsFormat = Format.JSON,
    ) -> Any:  # fmt: skip
        """Stored samples of some points, oldest first, at most 20,000 of each; with a step, means of good values."""
        site_id = known_site(view, who, site_id)
        window(start_ns, end_ns)
        rows = await asyncio.to_thread(view.series, site_id, column, start_ns, end_ns, step_s)
        if how is Format.JSON:
            return [_reading(one) for one in rows]
        return await table_response(await asyncio.to_thread(_by_time, rows), ["time_ns", *column], how, site_id)

    @routes.get("/sites/{site_id}/forecasts")
    async def list_forecasts(who: Reader, site_id: m.SiteName) -> list[m.ForecastAnswer]:
        """The newest forecasts, with their quantiles."""
        latest = view.forecasting.latest.get(known_site(view, who, site_id), {})
        return [m.ForecastAnswer.model_validate(_plain(one)) for _, one in sorted(latest.items())]

    @routes.get("/sites/{site_id}/plan")
    async def get_plan(who: Reader, site_id: m.SiteName, slots: Annotated[int, Query(ge=1, le=192)] = 96) -> m.Plan:
        """Its coming slots: commitments, prices, expected load and production; and the plan that its gateway has taken."""
        return await asyncio.to_thread(_plan, view, known_site(view, who, site_id), slots)

    _history_routes(routes, view)
    _observed_routes(routes, view, observer, frequency)
    return routes


def _observed_routes(
    routes: APIRouter, view: CloudView, observer: SiteObserver | None, frequency: FrequencyLive
) -> None:
    def observing() -> SiteObserver:
        if observer is None:
            raise HTTPException(503, "no gateway can be asked here")
        return observer

    @routes.get("/sites/{site_id}/frequency/live")
    async def get_frequency_samples(who: Reader, site_id: m.SiteName) -> m.FrequencySamplesAnswer:
        """The last samples that came while somebody looked; `/live?topic=frequency` begins them."""
        site_id = known_site(view, who, site_id)
        return m.FrequencySamplesAnswer(site_id=site_id, rows=frequency.recent(site_id))

    @routes.get("/sites/{site_id}/frequency/{event_id}/trace")
    async def get_event_trace(who: Reader, site_id: m.SiteName, event_id: EventId) -> m.EventTrace:
        """What the gateway kept around an event, thinned for a plot; asked of the gateway now."""
        site_id = known_site(view, who, site_id)
        return m.EventTrace.model_validate(await observing().trace(site_id, event_id))

    @routes.get("/sites/{site_id}/devices")
    async def list_devices(who: Reader, site_id: m.SiteName) -> list[m.DeviceRow]:
        """Its devices as their drivers see them; asked of the gateway now."""
        site_id = known_site(view, who, site_id)
        return [m.DeviceRow.model_validate(one) for one in (await observing().devices(site_id)).devices]


def _history_routes(routes: APIRouter, view: CloudView) -> None:
    @routes.get("/sites/{site_id}/decisions", response_model=m.Page[m.DecisionRow], responses=EXPORTS)
    async def list_decisions(
        who: Reader, site_id: m.SiteName, limit: Limit = 100, after: After = None, start_ns: Start = 0, end_ns: End = 2**62,
        how: AsFormat = Format.JSON,
    ) -> Any:  # fmt: skip
        """What the arbiter decided and why, newest first."""
        site_id = known_site(view, who, site_id)
        found, more = await page(
            view, Table.PRODUCER_METRICS, f"{site_id}#decisions", limit, after, start_ns=start_ns, end_ns=end_ns
        )
        rows = [m.DecisionRow.model_validate({**item.data, "site_id": site_id}) for item in found]
        return await in_format(rows, how, f"{site_id}-decisions") or m.Page(rows=rows, next=more)

    @routes.get("/sites/{site_id}/intervals", response_model=m.Page[m.IntervalRow], responses=EXPORTS)
    async def list_intervals(
        who: Reader, site_id: m.SiteName, limit: Limit = 96, after: After = None, start_ns: Start = 0, end_ns: End = 2**62,
        how: AsFormat = Format.JSON,
    ) -> Any:  # fmt: skip
        """Metered energy a slot, newest first."""
        site_id = known_site(view, who, site_id)
        found, more = await page(view, Table.CONSUMER_METRICS, site_id, limit, after, start_ns=start_ns, end_ns=end_ns)
        rows = [m.IntervalRow.model_validate(item.data) for item in found]
        return await in_format(rows, how, f"{site_id}-intervals") or m.Page(rows=rows, next=more)

    @routes.get("/sites/{site_id}/settlements", response_model=m.Page[m.SettlementRow], responses=EXPORTS)
    async def list_settlements(
        who: Reader, site_id: m.SiteName, limit: Limit = 96, after: After = None, start_ns: Start = 0, end_ns: End = 2**62,
        how: AsFormat = Format.JSON,
    ) -> Any:  # fmt: skip
        """Its statement: money of each settled slot, newest first."""
        site_id = known_site(view, who, site_id)
        found, more = await page(
            view, Table.TRADE_DATA, f"{site_id}#settlements", limit, after, start_ns=start_ns, end_ns=end_ns
        )
        rows = [_settlement(site_id, item) for item in found]
        return await in_format(rows, how, f"{site_id}-statement") or m.Page(rows=rows, next=more)

    @routes.get("/sites/{site_id}/alarms")
    async def list_site_alarms(
        who: Reader, site_id: m.SiteName, limit: Limit = 100, after: After = None
    ) -> m.Page[m.AlarmRow]:
        """Its alarms, standing and past, newest first."""
        site_id = known_site(view, who, site_id)
        found, more = await page(view, Table.GRID_METRICS, f"{site_id}#alarms", limit, after)
        seen = {one.alarm.id: one.acknowledged_by for one in view.alarms.of(site_id)}
        return m.Page(
            rows=[m.AlarmRow.model_validate({**one.data, "acknowledged_by": seen.get(one.id)}) for one in found],
            next=more,
        )

    @routes.get("/sites/{site_id}/frequency", response_model=m.Page[m.FrequencyEventRow], responses=EXPORTS)
    async def list_site_frequency_events(
        who: Reader, site_id: m.SiteName, limit: Limit = 50, after: After = None, how: AsFormat = Format.JSON
    ) -> Any:
        """What its reflex saw and did, newest first."""
        site_id = known_site(view, who, site_id)
        found, more = await page(view, Table.GRID_METRICS, f"{site_id}#frequency", limit, after)
        rows = [m.FrequencyEventRow.model_validate(item.data) for item in found]
        return await in_format(rows, how, f"{site_id}-frequency") or m.Page(rows=rows, next=more)

    @routes.get("/alarms")
    async def list_alarms(who: Reader) -> list[m.AlarmRow]:
        """Alarms that stand at the own sites, the worst first."""
        standing = [one for site in who.visible(view.site_ids()) for one in view.alarms.of(site)]
        rank = {"critical": 0, "warning": 1, "info": 2}
        standing.sort(key=lambda one: (rank[one.alarm.severity], -one.alarm.raised_ns))
        return [
            m.AlarmRow.model_validate({**asdict(one.alarm), "acknowledged_by": one.acknowledged_by})
            for one in standing[:1000]
        ]

    @routes.get("/frequency/events")
    async def list_frequency_events(who: Reader, limit: Limit = 50) -> list[m.FrequencyEventRow]:
        """Events of all own sites, newest first."""
        found: list[Item] = []
        for site in who.visible(view.site_ids()):
            found += await asyncio.to_thread(view.items, Table.GRID_METRICS, f"{site}#frequency", limit)
        found.sort(key=lambda item: -item.time_ns)
        return [m.FrequencyEventRow.model_validate(item.data) for item in found[:limit]]


def _reading(one: Series) -> m.Reading:
    values = [None if math.isnan(value) else value for value in one.values[-MOST_SAMPLES:]]
    return m.Reading(column=one.column, times_ns=list(one.times_ns[-MOST_SAMPLES:]), values=values)


def _by_time(rows: Sequence[Series]) -> list[dict[str, Any]]:
    """One row a time, one column a point."""
    table: dict[int, dict[str, Any]] = {}
    for one in rows:
        for time, value in zip(one.times_ns[-MOST_SAMPLES:], one.values[-MOST_SAMPLES:], strict=True):
            table.setdefault(time, {"time_ns": time} | {other.column: None for other in rows})[one.column] = (
                None if math.isnan(value) else value
            )
    return [table[time] for time in sorted(table)]


def _settlement(site_id: str, item: Item) -> m.SettlementRow:
    data: Any = item.data
    total = sum(int(data[name]) for name in _AMOUNTS)
    return m.SettlementRow.model_validate(
        {**data, "participant_id": site_id, "time_ns": item.time_ns, "total_units": total}
    )


def _plan(view: CloudView, site_id: str, count: int) -> m.Plan:
    engine, slot_ns = view.market.engine, view.market.config.slot_s * NS
    now = view.clock.utc_ns()
    first = now - now % slot_ns
    forecasts = view.forecasting.latest.get(site_id, {})
    rows = []
    for start in range(first, first + count * slot_ns, slot_ns):
        slot = engine.slots.get(start)
        mine = slot.trades_of.get(site_id, ()) if slot is not None else ()
        net = sum(one.quantity_wh if one.buyer_id == site_id else -one.quantity_wh for one in mine)
        expected = {
            name: median_of(forecasts[name], start) if name in forecasts else None for name in ("load_wh", "pv_wh")
        }
        rows.append(
            m.PlanSlot(
                start_ns=start,
                committed_wh=net if mine else None,
                price_ticks=engine.tariff.import_price_ticks(start),
                **expected,
            )
        )
    health = view.health.get(site_id)
    taken = view.plans.get(site_id)
    return m.Plan(
        site_id=site_id,
        source=health.plan_source if health is not None else None,
        slots=rows,
        taken=m.TakenPlan.model_validate(taken) if taken is not None else None,
        unplanned=view.unplanned.get(site_id),
    )


def _plain(one: object) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}  # type: ignore[attr-defined]  # our slotted dataclasses
