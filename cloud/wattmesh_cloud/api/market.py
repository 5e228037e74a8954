"""The market: what everybody may know of it, and the own accounts, orders and trades."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from wattmesh_a2a.market import MONEY_UNITS_PER_CURRENCY_UNIT, Order, Side
from wattmesh_a2a.messages import OrderResult

from wattmesh_cloud.access.model import Principal
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import (
    EXPORTS,
    PROBLEMS,
    After,
    AsFormat,
    End,
    Format,
    Limit,
    Reader,
    Start,
    Trader,
    in_format,
    known_site,
    page,
)
from wattmesh_cloud.market.analytics import concentration, efficiency, results
from wattmesh_cloud.market.engine import MarketEngine
from wattmesh_cloud.market.marketdata import area_index_ticks, market_data, product_data
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.view import CloudView

_MOST_ORDERS = 2000

Area = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="A market area; the first where left out")
]


def market_routes(view: CloudView) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/market", tags=["market"], responses=PROBLEMS)

    @routes.get("/areas")
    async def list_areas(who: Reader) -> list[str]:
        """Market areas; the other routes take one as `area`, and the first of these where it is left out."""
        return list(view.markets.areas)

    @routes.get("")
    async def get_market(who: Reader, area: Area = None) -> m.MarketSummary:
        """The area's figures and rules."""
        market = view.markets.area(area)
        config = market.config
        return m.MarketSummary.model_validate(
            {
                **market.snapshot(),
                "gate_open_s": config.gate_open_s,
                "gate_close_s": config.gate_close_s,
                "slot_s": config.slot_s,
            }
        )

    @routes.get("/products")
    async def list_products(who: Reader, area: Area = None) -> list[m.Product]:
        """Depth, prices and volume of all open products; a call's book is sealed."""
        data = market_data(view.markets.area(area).engine, view.clock.utc_ns())
        return [m.Product.model_validate(asdict(one)) for one in data.products]

    @routes.get("/depth")
    async def get_depth(
        who: Reader,
        slot_ns: Annotated[int, Query(ge=0, le=2**62)],
        levels: Annotated[int, Query(ge=1, le=100)] = 10,
        area: Area = None,
    ) -> m.Product:
        """One product."""
        engine = view.markets.area(area).engine
        slot = engine.slots.get(slot_ns)
        if slot is None:
            raise HTTPException(404, f"nobody has ordered for slot {slot_ns}")
        return m.Product.model_validate(asdict(product_data(engine, slot, view.clock.utc_ns(), levels)))

    @routes.get("/slots", response_model=m.Page[m.SlotRow], responses=EXPORTS)
    async def list_slots(
        who: Reader, limit: Limit = 96, after: After = None, area: Area = None, how: AsFormat = Format.JSON
    ) -> Any:
        """Cleared slots, newest first."""
        name = view.markets.area(area).config.area
        found, more = await page(view, Table.MARKET_DATA, f"{name}#slots", limit, after)
        rows = [m.SlotRow.model_validate({**one.data, "time_ns": one.time_ns}) for one in found]
        return await in_format(rows, how, f"{name}-slots") or m.Page(rows=rows, next=more)

    @routes.get("/trades", response_model=m.Page[m.TradeRow], responses=EXPORTS)
    async def list_trades(
        who: Reader, limit: Limit = 100, after: After = None, start_ns: Start = 0, end_ns: End = 2**62,
        area: Area = None, how: AsFormat = Format.JSON,
    ) -> Any:  # fmt: skip
        """Trades, newest delivery first; names of other tenants are left out."""
        name = view.markets.area(area).config.area
        found, more = await page(
            view, Table.TRADE_DATA, f"{name}#trades", limit, after, start_ns=start_ns, end_ns=end_ns
        )
        rows = [_trade(who, one) for one in found]
        return await in_format(rows, how, f"{name}-trades") or m.Page(rows=rows, next=more)

    @routes.get("/candles", response_model=m.Page[m.CandleRow], responses=EXPORTS)
    async def list_candles(
        who: Reader, limit: Limit = 96, after: After = None, area: Area = None, how: AsFormat = Format.JSON
    ) -> Any:
        """Candles of 5 minutes of closed products, newest first."""
        name = view.markets.area(area).config.area
        found, more = await page(view, Table.MARKET_DATA, f"{name}#ohlcv", limit, after)
        rows = [
            m.CandleRow.model_validate({**one.data, "time_ns": one.time_ns, "slot_start_ns": int(one.id)})
            for one in found
        ]
        return await in_format(rows, how, f"{name}-candles") or m.Page(rows=rows, next=more)

    @routes.get("/index")
    async def get_index(who: Reader, start_ns: Start, end_ns: End, area: Area = None) -> m.MarketIndex:
        """Mean price of all trades for deliveries in a window, weighted with energy; none without trades."""
        ticks = area_index_ticks(view.markets.area(area).engine, start_ns, end_ns)
        return m.MarketIndex(index_ticks=ticks, start_ns=start_ns, end_ns=end_ns)

    @routes.get("/analytics")
    async def get_analytics(who: Reader, area: Area = None) -> m.MarketAnalytics:
        """Own results, concentration, welfare against the best possible."""
        return await asyncio.to_thread(_analytics, view.markets.area(area).engine, who)

    _account_routes(routes, view)
    return routes


def _account_routes(routes: APIRouter, view: CloudView) -> None:
    @routes.get("/positions")
    async def list_positions(who: Reader, area: Area = None) -> list[m.PositionRow]:
        """Accounts and exposure of the own participants."""
        market = view.markets.area(area)
        figures: Any = market.snapshot()["participants"]
        limits = {one.id: one.credit_limit for one in market.config.participants}
        return [
            m.PositionRow.model_validate({**row, "participant": name, "credit_limit": limits[name]})
            for name, row in figures.items()
            if who.sees(name) and name in limits
        ]

    @routes.get("/orders")
    async def list_orders(who: Reader, limit: Limit = 200, area: Area = None) -> list[m.OrderRow]:
        """Own orders of all products that are open, the nearest delivery first."""
        found: list[m.OrderRow] = []
        products = view.markets.area(area).engine.open
        for start in sorted(products):
            for entry in list(products[start].entries.values()):
                order = entry.order
                if who.sees(order.participant_id):
                    found.append(
                        m.OrderRow(
                            client_order_id=order.client_order_id,
                            participant_id=order.participant_id,
                            slot_start_ns=start,
                            side=order.side,
                            quantity_wh=order.quantity_wh,
                            price_ticks=order.price_ticks,
                            filled_wh=entry.filled_wh,
                            status=str(entry.status),
                        )
                    )
                if len(found) >= min(limit, _MOST_ORDERS):
                    return found
        return found

    @routes.post("/orders")
    async def place_orders(who: Trader, wanted: m.PlaceOrders) -> list[m.OrderOutcome]:
        """Place orders for a site; one word an order, by the market's own limits. Again with the same ids: where they stand."""
        site = known_site(view, who, wanted.site_id)
        market = view.markets.of_participant(site)
        orders = tuple(
            Order(
                client_order_id=one.client_order_id,
                participant_id=site,
                area_id=market.config.area,
                slot_start_ns=wanted.slot_start_ns,
                side=one.side,
                quantity_wh=one.quantity_wh,
                price_ticks=one.price_ticks,
            )
            for one in wanted.orders
        )
        return _outcomes(await market.place(site, orders))

    @routes.post("/orders/cancel")
    async def cancel_orders(who: Trader, wanted: m.CancelOrders) -> list[m.OrderOutcome]:
        """Take a site's open orders of a slot back."""
        site = known_site(view, who, wanted.site_id)
        return _outcomes(
            await view.markets.of_participant(site).cancel(site, wanted.slot_start_ns, tuple(wanted.client_order_ids))
        )


def _outcomes(found: list[OrderResult]) -> list[m.OrderOutcome]:
    return [
        m.OrderOutcome(
            client_order_id=one.client_order_id,
            status=str(one.status),
            reason=None if one.reason is None else str(one.reason),
            detail=one.detail,
            filled_wh=one.filled_wh,
            open_wh=one.open_wh,
        )
        for one in found
    ]


def _trade(who: Principal, item: Item) -> m.TradeRow:
    data = dict(item.data)
    for side in ("buyer_id", "seller_id"):
        if not who.sees(str(data[side])):
            data[side] = None
    return m.TradeRow.model_validate({**data, "id": item.id, "time_ns": item.time_ns})


def _analytics(engine: MarketEngine, who: Principal) -> m.MarketAnalytics:
    trades = list(engine.trades.values())

    def told(side: Side) -> m.Concentration:
        found = asdict(concentration(trades, side))
        if found["largest"] is not None and not who.sees(found["largest"]):
            found["largest"] = None
        return m.Concentration.model_validate(found)

    return m.MarketAnalytics(
        results={
            name: m.ParticipantResult.model_validate(asdict(one))
            for name, one in results(engine).items()
            if who.sees(name)
        },
        sellers=told(Side.SELL),
        buyers=told(Side.BUY),
        efficiency=efficiency(engine),
    )


def money(units: float) -> float:
    """Units of the ledger in the currency's unit."""
    return units / MONEY_UNITS_PER_CURRENCY_UNIT
