"""The HTTP API, version 1: read-only for now, bounded in rows, JSON and server-sent events."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from wattmesh_a2a.market import Side

from wattmesh_cloud.market.analytics import concentration, efficiency, results
from wattmesh_cloud.market.marketdata import area_index_ticks, market_data, product_data
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView

_ROWS = 5000
_NS = 1_000_000_000
_SPAN_NS = 400 * 86_400 * _NS

SiteId = Annotated[str, "The site's name"]


def create_api(view: CloudView) -> FastAPI:
    """The application over a running cloud."""
    app = FastAPI(title="WattMesh", version="1", docs_url="/api/docs", openapi_url="/api/openapi.json", redoc_url=None)

    def known(site_id: str) -> str:
        if site_id not in view.site_ids():
            raise HTTPException(404, f"there is no site {site_id!r}; there are: {', '.join(view.site_ids())}")
        return site_id

    @app.get("/api/v1/health")
    async def health() -> dict[str, Any]:
        """Whether the cloud works, and its time."""
        return {"status": "ok", "time_ns": view.clock.utc_ns(), "records": view.ingest.counts["records"]}

    @app.get("/api/v1/sites")
    async def sites() -> list[dict[str, Any]]:
        """All sites with what they do now."""
        return [view.site(site) for site in view.site_ids()]

    @app.get("/api/v1/sites/{site_id}")
    async def site(site_id: SiteId) -> dict[str, Any]:
        """One site."""
        return view.site(known(site_id))

    @app.get("/api/v1/sites/{site_id}/recent")
    async def recent(site_id: SiteId) -> list[dict[str, Any]]:
        """Its power flows of the last hour or so, from memory."""
        return view.recent(known(site_id))

    @app.get("/api/v1/sites/{site_id}/series")
    async def series(
        site_id: SiteId,
        column: Annotated[list[str], Query(min_length=1, max_length=20, description="asset.point")],
        start_ns: Annotated[int, Query(ge=0)],
        end_ns: Annotated[int, Query(ge=0, le=2**62)],
        step_s: Annotated[int | None, Query(ge=1, le=86_400)] = None,
    ) -> list[dict[str, Any]]:
        """Stored samples of some points; with a step, means."""
        if not start_ns < end_ns or end_ns - start_ns > _SPAN_NS:
            raise HTTPException(422, "end_ns has to be after start_ns, by at most 400 days")
        rows = await asyncio.to_thread(view.series, known(site_id), column, start_ns, end_ns, step_s)
        return [
            {
                "column": one.column,
                "times_ns": list(one.times_ns[-_ROWS:]),
                "values": [None if math.isnan(value) else value for value in one.values[-_ROWS:]],
            }
            for one in rows
        ]

    @app.get("/api/v1/sites/{site_id}/decisions")
    async def decisions(site_id: SiteId, limit: Annotated[int, Query(ge=1, le=_ROWS)] = 100) -> list[dict[str, Any]]:
        """What the arbiter decided, newest first."""
        return await _rows(view, Table.PRODUCER_METRICS, f"{known(site_id)}#decisions", limit)

    @app.get("/api/v1/sites/{site_id}/intervals")
    async def intervals(site_id: SiteId, limit: Annotated[int, Query(ge=1, le=_ROWS)] = 96) -> list[dict[str, Any]]:
        """Metered energy a slot, newest first."""
        return await _rows(view, Table.CONSUMER_METRICS, known(site_id), limit)

    @app.get("/api/v1/sites/{site_id}/settlements")
    async def settlements(site_id: SiteId, limit: Annotated[int, Query(ge=1, le=_ROWS)] = 96) -> list[dict[str, Any]]:
        """What was settled, newest first."""
        return await _rows(view, Table.TRADE_DATA, f"{known(site_id)}#settlements", limit)

    @app.get("/api/v1/sites/{site_id}/forecasts")
    async def forecasts(site_id: SiteId) -> dict[str, Any]:
        """The newest forecasts."""
        latest = view.forecasting.latest.get(known(site_id), {})
        return {
            name: {"issued_ns": one.issued_ns, "start_ns": one.start_ns, "levels": one.levels, "values": one.values}
            for name, one in latest.items()
        }

    @app.get("/api/v1/market")
    async def market() -> dict[str, Any]:
        """The area's figures."""
        return view.market.snapshot()

    @app.get("/api/v1/market/slots")
    async def slots(limit: Annotated[int, Query(ge=1, le=_ROWS)] = 96) -> list[dict[str, Any]]:
        """Cleared slots, newest first."""
        return await _rows(view, Table.MARKET_DATA, f"{view.market.config.area}#slots", limit)

    @app.get("/api/v1/market/trades")
    async def trades(limit: Annotated[int, Query(ge=1, le=_ROWS)] = 100) -> list[dict[str, Any]]:
        """Trades, newest first."""
        return await _rows(view, Table.TRADE_DATA, f"{view.market.config.area}#trades", limit)

    @app.get("/api/v1/market/status")
    async def market_status() -> dict[str, Any]:
        """Whether orders are taken, and what each open product does."""
        data = market_data(view.market.engine, view.clock.utc_ns())
        return {
            "area": data.area_id,
            "halted": data.halted,
            "products": {str(one.slot_start_ns): one.status for one in data.products},
        }

    @app.get("/api/v1/market/data")
    async def market_products() -> dict[str, Any]:
        """Depth, prices and volume of all open products; a call's book is sealed."""
        return asdict(market_data(view.market.engine, view.clock.utc_ns()))

    @app.get("/api/v1/market/depth")
    async def market_depth(
        slot_ns: Annotated[int, Query(ge=0, le=2**62)], levels: Annotated[int, Query(ge=1, le=100)] = 10
    ) -> dict[str, Any]:
        """One product."""
        slot = view.market.engine.slots.get(slot_ns)
        if slot is None:
            raise HTTPException(404, f"nobody has ordered for slot {slot_ns}")
        return asdict(product_data(view.market.engine, slot, view.clock.utc_ns(), levels))

    @app.get("/api/v1/market/ohlcv")
    async def market_candles(limit: Annotated[int, Query(ge=1, le=_ROWS)] = 96) -> list[dict[str, Any]]:
        """Candles of 5 minutes of closed products, newest first; ``id`` is the product's start."""
        return await _rows(view, Table.MARKET_DATA, f"{view.market.config.area}#ohlcv", limit)

    @app.get("/api/v1/market/index")
    async def market_index(
        start_ns: Annotated[int, Query(ge=0)], end_ns: Annotated[int, Query(ge=0, le=2**62)]
    ) -> dict[str, Any]:
        """Mean price of all trades for deliveries in a window, weighted with energy; none without trades."""
        ticks = area_index_ticks(view.market.engine, start_ns, end_ns)
        return {"index_ticks": ticks, "start_ns": start_ns, "end_ns": end_ns}

    @app.get("/api/v1/market/analytics")
    async def market_analytics() -> dict[str, Any]:
        """Participants' results, concentration, welfare against the best possible."""
        engine = view.market.engine
        trades = list(engine.trades.values())
        return {
            "results": {name: asdict(one) for name, one in results(engine).items()},
            "sellers": asdict(concentration(trades, Side.SELL)),
            "buyers": asdict(concentration(trades, Side.BUY)),
            "efficiency": efficiency(engine),
        }

    @app.get("/api/v1/grid")
    async def grid() -> dict[str, Any]:
        """Frequency, status and demand response."""
        return view.grid.snapshot()

    @app.get("/api/v1/agents")
    async def agents() -> dict[str, Any]:
        """What the cloud's agents last did."""
        return {"forecasting": view.forecasting.snapshot(), "strategy": view.strategy.snapshot()}

    @app.get("/api/v1/registry")
    async def registry(
        online: bool | None = None,
        takes: Annotated[str | None, Query(max_length=200, description="a type of request")] = None,
        limit: Annotated[int, Query(ge=1, le=_ROWS)] = _ROWS,
    ) -> list[dict[str, Any]]:
        """Every agent that has shown a card: version, what it takes, whether it is there, when it was last heard."""
        return view.agents(online=online, takes=takes, limit=limit)

    @app.get("/api/v1/live")
    async def live(request: Request) -> StreamingResponse:
        """The overview once a second, as server-sent events."""

        async def events() -> AsyncIterator[str]:
            while not await request.is_disconnected():
                yield f"data: {json.dumps(view.overview())}\n\n"
                await asyncio.sleep(1.0)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Prometheus text."""
        lines = [f"wattmesh_ingest_{name}_total {value}" for name, value in sorted(view.ingest.counts.items())]
        lines += [f'wattmesh_site_online{{site="{site}"}} {int(site in view.online)}' for site in view.site_ids()]
        snapshot = view.market.snapshot()
        lines += [f"wattmesh_market_{name} {snapshot[name]}" for name in ("trades", "slots_cleared", "slots_settled")]
        engine = view.market.engine
        lines.append(f"wattmesh_market_halted {int(engine.halted is not None)}")
        lines.append(f"wattmesh_market_ledger_sum_units {engine.ledger.total()}")
        lines += [
            f'wattmesh_market_rejects_total{{reason="{reason}"}} {count}'
            for reason, count in sorted(engine.rejects.items())
        ]
        return "\n".join(lines) + "\n"

    return app


async def _rows(view: CloudView, table: Table, partition: str, limit: int) -> list[dict[str, Any]]:
    items = await asyncio.to_thread(view.items, table, partition, limit)
    return [{"time_ns": item.time_ns, "id": item.id, **item.data} for item in items]
