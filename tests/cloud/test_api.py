"""The HTTP API over a small cloud: what it shows, and what it says to a wrong question."""

from array import array
from types import SimpleNamespace

import httpx
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.telemetry import ColumnBatch
from wattmesh_cloud.agents.config import AgentsConfig
from wattmesh_cloud.agents.looks import Sources
from wattmesh_cloud.agents.service import AgentsService
from wattmesh_cloud.api import create_api
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.forecasting.config import ForecastingConfig
from wattmesh_cloud.forecasting.service import ForecastingService
from wattmesh_cloud.grid.config import GridConfig
from wattmesh_cloud.grid.service import GridService
from wattmesh_cloud.ingest import Ingest
from wattmesh_cloud.live import LiveView
from wattmesh_cloud.market.areas import Markets
from wattmesh_cloud.store.base import Item, Table
from wattmesh_cloud.view import CloudView

SLOT = 900 * NS_PER_S


@pytest.fixture
def view(store, messenger, clock, make_config, tmp_path):
    """A cloud whose services stand and do not run."""
    common = (store, messenger, clock, tmp_path, "demo")
    forecasting = ForecastingService(ForecastingConfig(), *common)
    markets = Markets([make_config()], *common)

    async def pay(*what) -> None: ...

    return CloudView(
        clock=clock,
        store=store,
        live=LiveView(),
        ingest=Ingest(store, messenger, clock, "demo"),
        market=markets.first,
        markets=markets,
        forecasting=forecasting,
        grid=GridService(GridConfig(), *common, forecasts=lambda: forecasting.latest, pay=pay),
        strategy=AgentsService(
            AgentsConfig(),
            Sources(market_config=make_config(), forecasts=lambda: forecasting.latest),
            *common,
            audit=AuditLog(tmp_path / "audit.log"),
        ),
    )


@pytest.fixture
async def client(view):
    transport = httpx.ASGITransport(app=create_api(view))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def get(client):
    async def ask(path, **parameters):
        answer = await client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask


@pytest.fixture
def sampled(view, clock):
    """A minute of samples of ann's meter, battery and inverter: stored, and live."""
    names = (
        "meter.active_power_w", "meter.energy_import_wh", "meter.frequency_hz",
        "battery.active_power_w", "battery.soc_percent", "pv.active_power_w", "pv.energy_produced_wh",
    )  # fmt: skip
    rows = 6
    values = [
        [1000.0] * rows,
        [5.0] * rows,
        [60.0] * rows,
        [-500.0] * rows,
        [40.0] * rows,
        [-200.0] * rows,
        [9.0] * rows,
    ]
    batch = ColumnBatch(
        site_id="ann",
        session="s",
        stream="points",
        sequence=1,
        columns=names,
        times_ns=array("q", [clock.utc_ns() + row * 10 * NS_PER_S for row in range(rows)]),
        values=tuple(array("d", column) for column in values),
        qualities=tuple(bytes(rows) for _ in names),
    )
    view.store.append([batch], {})
    view.live.on_columns(batch)
    return batch


async def test_health(get, clock):
    assert await get("health") == {"status": "ok", "time_ns": clock.utc_ns(), "records": 0}


async def test_sites_that_may_trade_were_announced_or_have_data(get, view, sampled):
    view.announcements["new"] = {"site_id": "new"}
    view.online.add("ann")
    sites = {site["id"]: site for site in await get("sites")}
    assert sorted(sites) == ["ann", "bob", "cem", "new"]
    assert (sites["ann"]["online"], sites["bob"]["online"], sites["bob"]["live"]) == (True, False, None)
    assert sites["new"]["announcement"] == {"site_id": "new"}


async def test_one_site_with_its_flows(get, sampled):
    site = await get("sites/ann")
    assert site["live"]["flows"] == {
        "grid_w": 1000.0, "pv_w": -200.0, "battery_w": -500.0, "load_w": 1700.0, "soc_percent": 40.0, "frequency_hz": 60.0,
    }  # fmt: skip
    assert [row["grid_w"] for row in await get("sites/ann/recent")] == [1000.0]


async def test_a_bad_quality_is_null_and_makes_no_load_up(get, view, sampled):
    later = [time + 60 * NS_PER_S for time in sampled.times_ns]
    broken = ColumnBatch(
        **{
            **{name: getattr(sampled, name) for name in ColumnBatch.__slots__},
            "sequence": 2,
            "times_ns": array("q", later),
            "qualities": (b"\2" * 6, *sampled.qualities[1:]),
        }
    )
    view.live.on_columns(broken)
    flows = (await get("sites/ann"))["live"]["flows"]
    assert (flows["grid_w"], flows["load_w"], flows["pv_w"]) == (None, None, -200.0)
    view.live.on_columns(sampled)
    assert (await get("sites/ann"))["live"]["time_ns"] == later[-1], "a backlog does not overwrite newer values"


async def test_series_with_and_without_a_step(get, sampled, clock):
    window = {
        "column": ["meter.active_power_w", "none.such"],
        "start_ns": clock.utc_ns(),
        "end_ns": clock.utc_ns() + SLOT,
    }
    raw, nothing = await get("sites/ann/series", **window)
    assert (raw["column"], len(raw["times_ns"]), set(raw["values"])) == ("meter.active_power_w", 6, {1000.0})
    assert nothing["values"] == []
    (mean, _) = await get("sites/ann/series", **window, step_s=60)
    assert (mean["times_ns"], mean["values"]) == ([clock.utc_ns()], [1000.0])


async def test_rows_come_newest_first_and_as_many_as_asked(get, view):
    tables = {
        "sites/ann/intervals": (Table.CONSUMER_METRICS, "ann"),
        "sites/ann/settlements": (Table.TRADE_DATA, "ann#settlements"),
        "sites/ann/decisions": (Table.PRODUCER_METRICS, "ann#decisions"),
        "market/slots": (Table.MARKET_DATA, "area-1#slots"),
        "market/trades": (Table.TRADE_DATA, "area-1#trades"),
    }
    for path, (table, partition) in tables.items():
        items = [Item(partition=partition, time_ns=time, id="x", data={"n": time}) for time in range(5)]
        view.store.put(table, items)
        assert await get(path, limit=2) == [{"time_ns": 4, "id": "x", "n": 4}, {"time_ns": 3, "id": "x", "n": 3}]


async def test_forecasts_market_grid_and_agents(get, view, make_interval, clock):
    assert await get("sites/ann/forecasts") == {}
    for back in range(1, 97):
        view.forecasting.on_record("ann", make_interval("ann", clock.utc_ns() - back * SLOT))
    view.forecasting.latest["ann"] = {one.quantity: one for one in view.forecasting.forecast("ann", clock.utc_ns())}
    forecasts = await get("sites/ann/forecasts")
    assert len(forecasts["load_wh"]["values"]) == 192
    market = await get("market")
    assert (market["ledger_sum_units"], sorted(market["participants"])) == (0, ["ann", "bob", "cem"])
    assert (await get("grid"))["status"] == "normal"
    assert (await get("agents"))["forecasting"]["sites"] == ["ann"]


async def test_market_data_of_an_open_product(client, get, view, make_order, clock):
    slot = clock.utc_ns() + 4 * SLOT
    order = make_order("ann", "buy", 100, 2000, slot_ns=slot)
    view.market.engine.place("ann", [order], clock.utc_ns())
    assert (await get("market/status"))["products"] == {str(slot): "call"}
    (product,) = (await get("market/data"))["products"]
    assert (product["bids"], product["index_ticks"]) == ([], None), "a call's book is sealed"
    assert (await get("market/depth", slot_ns=slot))["status"] == "call"
    assert (await client.get("/api/v1/market/depth?slot_ns=5")).status_code == 404
    assert await get("market/ohlcv") == []
    assert (await get("market/index", start_ns=0, end_ns=2**62))["index_ticks"] is None
    assert (await get("market/analytics"))["efficiency"] is None


async def test_metrics_as_prometheus_text(client, view):
    view.ingest.counts["records"] = 7
    view.online.add("ann")
    lines = (await client.get("/metrics")).text.splitlines()
    assert "wattmesh_ingest_records_total 7" in lines
    assert 'wattmesh_site_online{site="ann"} 1' in lines
    assert 'wattmesh_site_online{site="bob"} 0' in lines
    assert "wattmesh_market_trades 0" in lines
    assert "wattmesh_market_halted 0" in lines
    view.market.engine.rejects["bad_price"] += 2
    assert 'wattmesh_market_rejects_total{reason="bad_price"} 2' in (await client.get("/metrics")).text.splitlines()


@pytest.mark.parametrize(
    "path",
    ["", "/recent", "/decisions", "/intervals", "/settlements", "/forecasts", "/series?column=a.b&start_ns=0&end_ns=9"],
)
async def test_an_unknown_site_is_404_and_names_the_known_ones(client, path):
    answer = await client.get(f"/api/v1/sites/eve{path}")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "there is no site 'eve'; there are: ann, bob, cem"}


@pytest.mark.parametrize(
    ("query", "field", "text"),
    [
        ("start_ns=0&end_ns=9", "column", "Field required"),
        ("column=a.b&end_ns=9", "start_ns", "Field required"),
        ("column=a.b&start_ns=-1&end_ns=9", "start_ns", "greater than or equal to 0"),
        ("column=a.b&start_ns=0&end_ns=soon", "end_ns", "valid integer"),
        ("column=a.b&start_ns=0&end_ns=9&step_s=0", "step_s", "greater than or equal to 1"),
        ("&".join(["column=a.b"] * 21) + "&start_ns=0&end_ns=9", "column", "at most 20 items"),
    ],
)
async def test_a_wrong_field_is_422_and_named(client, query, field, text):
    answer = await client.get(f"/api/v1/sites/ann/series?{query}")
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert detail["loc"] == ["query", field]
    assert text in detail["msg"]


@pytest.mark.parametrize(("start", "end"), [(9, 9), (9, 8), (0, 401 * 86_400 * NS_PER_S)])
async def test_an_impossible_window_is_422_and_explained(client, start, end):
    answer = await client.get(f"/api/v1/sites/ann/series?column=a.b&start_ns={start}&end_ns={end}")
    assert answer.status_code == 422
    assert answer.json() == {"detail": "end_ns has to be after start_ns, by at most 400 days"}


@pytest.mark.parametrize("limit", ["0", "5001", "all"])
async def test_a_limit_has_bounds(client, limit):
    assert (await client.get(f"/api/v1/market/trades?limit={limit}")).status_code == 422


async def test_it_can_only_be_read(client):
    for path in ("sites", "market", "grid"):
        assert (await client.post(f"/api/v1/{path}", json={})).status_code == 405


async def test_the_console_may_be_missing_but_not_broken(view, monkeypatch, caplog):
    import builtins

    from wattmesh_cloud.app import Cloud

    real, missing = builtins.__import__, "nicegui"

    def without(name, *rest, **more):
        if name == "wattmesh_cloud.console":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    server = Cloud._http_server(SimpleNamespace(view=view))
    assert "pip install 'wattmesh[console]'" in caplog.text
    assert server.config.app is not None
    missing = "wattmesh_cloud.console.pagse"
    with pytest.raises(ModuleNotFoundError, match="pagse"):
        Cloud._http_server(SimpleNamespace(view=view))
