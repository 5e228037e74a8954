"""The HTTP API over a small cloud: what it shows, and what it says to a wrong question."""

import io
from array import array
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pyarrow.parquet
import pytest
from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.codec import message_to_json
from wattmesh_a2a.plans import PlannedLoad, SitePlan
from wattmesh_a2a.telemetry import ColumnBatch
from wattmesh_cloud.api.deps import as_csv
from wattmesh_cloud.store.base import Item, Table

SLOT = 900 * NS_PER_S
ANNOUNCED = {"site_id": "new", "time_zone": "UTC", "import_limit_w": 12_000.0, "assets": [], "agents": ["producer"]}


@pytest.fixture
async def client(api, token):
    transport = httpx.ASGITransport(app=api)
    headers = {"Authorization": f"Bearer {token()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
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
    assert await get("health") == {"status": "ok", "time_ns": clock.utc_ns()}


async def test_sites_that_may_trade_were_announced_or_have_data(get, view, sampled):
    view.on_presence("new", ANNOUNCED)
    view.on_presence("ann", {**ANNOUNCED, "site_id": "ann"})
    sites = {site["id"]: site for site in (await get("sites"))["rows"]}
    assert sorted(sites) == ["ann", "bob", "cem", "new"]
    assert [sites[name]["state"] for name in sorted(sites)] == ["ok", "away", "away", "stale"]
    assert sites["new"]["problem"] == "no reading yet"
    assert (await get("sites/new"))["import_limit_w"] == 12_000.0


async def test_sites_come_in_pages(get):
    first = await get("sites", limit=2)
    assert ([row["id"] for row in first["rows"]], first["next"]) == (["ann", "bob"], "bob")
    second = await get("sites", limit=2, after=first["next"])
    assert ([row["id"] for row in second["rows"]], second["next"]) == (["cem"], None)


async def test_problems_are_told_worst_first(get, view, sampled, clock):
    view.on_presence("ann", ANNOUNCED)
    assert (await get("sites/ann"))["state"] == "ok"
    await clock.advance(300)
    assert (await get("sites/ann"))["problem"] == "no reading for 4 min"
    view.on_presence("ann", None)
    await clock.advance(7200)
    assert (await get("sites/ann"))["problem"] == "away for 2 h"
    raised = Alarm(id="a", site_id="ann", asset_id="battery", severity=Severity.CRITICAL, text="it burns", raised_ns=5)
    view.alarms.on_record("ann", raised)
    assert (await get("sites/ann"))["problem"] == "it burns"
    view.alarms.on_record("ann", replace(raised, cleared_ns=9))
    assert (await get("sites/ann"))["state"] == "away"


async def test_one_site_with_its_flows(get, sampled):
    site = await get("sites/ann")
    assert site["flows"] == {
        "grid_w": 1000.0, "pv_w": -200.0, "battery_w": -500.0, "load_w": 1700.0, "soc_percent": 40.0, "frequency_hz": 60.0,
    }  # fmt: skip
    assert [row["grid_w"] for row in await get("sites/ann/flows")] == [1000.0]
    assert {one["id"]: one["points"] for one in await get("sites/ann/assets")}["battery"]["soc_percent"] == 40.0


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
    flows = (await get("sites/ann"))["flows"]
    assert (flows["grid_w"], flows["load_w"], flows["pv_w"]) == (None, None, -200.0)
    view.live.on_columns(sampled)
    assert (await get("sites/ann"))["time_ns"] == later[-1], "a backlog does not overwrite newer values"


async def test_series_with_and_without_a_step(get, sampled, clock):
    window = {
        "column": ["meter.active_power_w", "none.such"],
        "start_ns": clock.utc_ns(),
        "end_ns": clock.utc_ns() + SLOT,
    }
    raw, nothing = await get("sites/ann/readings", **window)
    assert (raw["column"], len(raw["times_ns"]), set(raw["values"])) == ("meter.active_power_w", 6, {1000.0})
    assert nothing["values"] == []
    (mean, _) = await get("sites/ann/readings", **window, step_s=60)
    assert (mean["times_ns"], mean["values"]) == ([clock.utc_ns()], [1000.0])


async def test_rows_come_newest_first_and_in_pages(get, view, make_interval):
    rows = [
        Item(
            partition="ann",
            time_ns=number // 2 * SLOT,
            id=f"interval{number % 2}",
            data={**message_to_json(make_interval("ann", number // 2 * SLOT)), "load_wh": number},
        )
        for number in range(10)
    ]
    view.store.put(Table.CONSUMER_METRICS, rows)
    everything = [row["load_wh"] for row in (await get("sites/ann/intervals", limit=10))["rows"]]
    assert sorted(everything, reverse=True)[::2] == sorted(everything[::2], reverse=True)
    found, after = [], None
    while True:
        page = await get("sites/ann/intervals", limit=3, **({"after": after} if after else {}))
        found += [row["load_wh"] for row in page["rows"]]
        after = page["next"]
        if after is None:
            break
    assert found == everything, "rows of one time may stand on two pages: none is lost, none comes twice"


async def test_rows_as_csv_and_parquet(client, view, make_interval):
    view.store.put(
        Table.CONSUMER_METRICS,
        [Item(partition="ann", time_ns=SLOT, id="interval", data=message_to_json(make_interval("ann", SLOT)))],
    )
    text = await client.get("/api/v1/sites/ann/intervals?format=csv")
    assert text.headers["content-type"] == "text/csv; charset=utf-8"
    assert text.headers["content-disposition"] == 'attachment; filename="ann-intervals.csv"'
    head, row = text.text.splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["slot_start_ns"] == str(SLOT)
    file = await client.get("/api/v1/sites/ann/intervals?format=parquet")
    table = pyarrow.parquet.read_table(io.BytesIO(file.content))
    assert table.to_pylist()[0]["slot_start_ns"] == SLOT
    assert (await client.get("/api/v1/sites/ann/intervals?format=xml")).status_code == 422


async def test_readings_as_csv_stand_by_time(client, sampled, clock):
    window = f"column=meter.active_power_w&column=battery.soc_percent&start_ns={clock.utc_ns()}&end_ns={clock.utc_ns() + SLOT}"
    answer = await client.get(f"/api/v1/sites/ann/readings?{window}&format=csv")
    lines = answer.text.splitlines()
    assert lines[0] == "time_ns,meter.active_power_w,battery.soc_percent"
    assert lines[1] == f"{clock.utc_ns()},1000.0,40.0"
    assert len(lines) == 7


def test_a_cell_that_looks_like_a_formula_is_defused():
    rows = [{"a": "=1+1", "b": "@x", "c": -5, "d": None, "e": ["x", "y"]}]
    assert as_csv(rows, ["a", "b", "c", "d", "e"]) == "a,b,c,d,e\n'=1+1,'@x,-5,,x; y\n"


async def test_forecasts_market_grid_and_agents(get, view, make_interval, clock):
    assert await get("sites/ann/forecasts") == []
    for back in range(1, 97):
        view.forecasting.on_record("ann", make_interval("ann", clock.utc_ns() - back * SLOT))
    view.forecasting.latest["ann"] = {one.quantity: one for one in view.forecasting.forecast("ann", clock.utc_ns())}
    forecasts = {one["quantity"]: one for one in await get("sites/ann/forecasts")}
    assert len(forecasts["load_wh"]["values"]) == 192
    plan = await get("sites/ann/plan", slots=4)
    assert [one["committed_wh"] for one in plan["slots"]] == [None] * 4
    assert {one["price_ticks"] for one in plan["slots"]} == {3000}
    assert plan["slots"][0]["load_wh"] == pytest.approx(500, rel=0.1)
    assert (await get("market"))["ledger_sum_units"] == 0
    assert [one["participant"] for one in await get("market/positions")] == ["ann", "bob", "cem"]
    assert (await get("grid"))["status"] == "normal"
    assert {one["id"] for one in await get("agents")} >= {"forecasting", "market-supervisor", "grid-optimisation"}


async def test_the_plan_that_a_gateway_has_taken(get, view, clock):
    plan = await get("sites/ann/plan", slots=1)
    assert (plan["taken"], plan["unplanned"]) == (None, None)
    day = (0,) * 96
    made = SitePlan(
        site_id="ann", issued_ns=clock.utc_ns(), expires_ns=clock.utc_ns() + SLOT, start_ns=clock.utc_ns(), slot_s=900,
        grid_w=(-1200, *day[1:]), battery_w=(800, *day[1:]), stored_wh=(2000, *day[1:]), min_grid_w=day, max_grid_w=day,
        loads=(PlannedLoad(device="wallbox", power_w=(7000, *day[1:])),), reasons=("load: gap",),
    )  # fmt: skip
    view.plans, view.unplanned = {"ann": made}, {"ann": "no state of charge"}
    plan = await get("sites/ann/plan", slots=1)
    taken = plan["taken"]
    assert (taken["grid_w"][0], taken["battery_w"][0], taken["stored_wh"][0]) == (-1200, 800, 2000)
    assert (len(taken["grid_w"]), taken["expires_ns"] - taken["issued_ns"]) == (96, SLOT)
    assert taken["loads"][0] == {"device": "wallbox", "power_w": [7000, *day[1:]]}
    assert (taken["reasons"], plan["unplanned"]) == (["load: gap"], "no state of charge")
    assert (await get("sites/bob/plan", slots=1))["taken"] is None


async def test_market_data_of_an_open_product(client, get, view, make_order, clock):
    slot = clock.utc_ns() + 4 * SLOT
    order = make_order("ann", "buy", 100, 2000, slot_ns=slot)
    view.market.engine.place("ann", [order], clock.utc_ns())
    (product,) = await get("market/products")
    assert (product["status"], product["bids"], product["index_ticks"]) == ("call", [], None), "a call's book is sealed"
    assert (await get("market/depth", slot_ns=slot))["status"] == "call"
    assert (await client.get("/api/v1/market/depth?slot_ns=5")).status_code == 404
    assert (await get("market/candles"))["rows"] == []
    assert (await get("market/index", start_ns=0, end_ns=2**62))["index_ticks"] is None
    assert (await get("market/analytics"))["efficiency"] is None
    (own,) = await get("market/orders")
    assert (own["client_order_id"], own["quantity_wh"], own["status"]) == (order.client_order_id, 100, "accepted")


async def test_orders_by_hand_pass_the_markets_own_limits(client, view, clock):
    slot = clock.utc_ns() + 4 * SLOT
    wanted = {"client_order_id": "desk-1", "side": "buy", "quantity_wh": 100, "price_ticks": 2000}
    body = {
        "site_id": "ann",
        "slot_start_ns": slot,
        "orders": [wanted, {**wanted, "client_order_id": "big", "quantity_wh": 9_000_000}],
    }
    answer = await client.post("/api/v1/market/orders", json=body)
    assert [(one["client_order_id"], one["status"]) for one in answer.json()] == [
        ("desk-1", "accepted"),
        ("big", "rejected"),
    ]
    assert answer.json()[1]["reason"]
    again = await client.post("/api/v1/market/orders", json=body)
    assert again.json()[0]["status"] == "accepted"
    assert len(view.market.engine.open[slot].entries) == 1, "the same order again changes nothing"
    gone = await client.post("/api/v1/market/orders/cancel", json={"site_id": "ann", "slot_start_ns": slot})
    assert [one["status"] for one in gone.json()] == ["cancelled"]


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
    ["", "/flows", "/decisions", "/intervals", "/settlements", "/forecasts", "/plan", "/alarms", "/frequency",
     "/readings?column=a.b&start_ns=0&end_ns=9"],
)  # fmt: skip
async def test_an_unknown_site_is_404_and_names_the_known_ones(client, path):
    answer = await client.get(f"/api/v1/sites/eve{path}")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "there is no site 'eve'; there are: ann, bob, cem"}


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("start_ns=0&end_ns=9", "column: Field required"),
        ("column=a.b&end_ns=9", "start_ns: Field required"),
        ("column=a.b&start_ns=-1&end_ns=9", "start_ns: Input should be greater than or equal to 0"),
        ("column=a.b&start_ns=0&end_ns=soon", "end_ns: Input should be a valid integer"),
        ("column=a.b&start_ns=0&end_ns=9&step_s=0", "step_s: Input should be greater than or equal to 1"),
        ("column=ab&start_ns=0&end_ns=9", "column.0: String should match pattern"),
        ("&".join(["column=a.b"] * 21) + "&start_ns=0&end_ns=9", "column: List should have at most 20 items"),
    ],
)
async def test_a_wrong_field_is_422_and_named(client, query, text):
    answer = await client.get(f"/api/v1/sites/ann/readings?{query}")
    assert answer.status_code == 422
    assert text in answer.json()["detail"]


@pytest.mark.parametrize(("start", "end"), [(9, 9), (9, 8), (0, 401 * 86_400 * NS_PER_S)])
async def test_an_impossible_window_is_422_and_explained(client, start, end):
    answer = await client.get(f"/api/v1/sites/ann/readings?column=a.b&start_ns={start}&end_ns={end}")
    assert answer.status_code == 422
    assert answer.json() == {"detail": "end_ns has to be after start_ns, by at most 400 days"}


@pytest.mark.parametrize("limit", ["0", "5001", "all"])
async def test_a_limit_has_bounds(client, limit):
    assert (await client.get(f"/api/v1/market/trades?limit={limit}")).status_code == 422


@pytest.mark.parametrize("after", ["x", "5", "5.9999999", "99999999999999999999.0", "5.999999"])
async def test_a_cursor_that_is_none_of_ours_is_422(client, after):
    assert (await client.get(f"/api/v1/market/trades?after={after}")).status_code == 422


async def test_the_console_may_be_missing_but_not_broken(services, monkeypatch, caplog):
    import builtins

    from wattmesh_cloud.app import Cloud

    real, missing = builtins.__import__, "jinja2"

    def without(name, *rest, **more):
        if name == "wattmesh_cloud.console":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest, **more)

    cloud = SimpleNamespace(
        _services=lambda: services,
        _config=SimpleNamespace(
            model=SimpleNamespace(http=SimpleNamespace(certificate=None, key=None, public_url=None))
        ),
    )
    monkeypatch.setattr(builtins, "__import__", without)
    server = Cloud._http_server(cloud)
    assert "pip install 'wattmesh[console]'" in caplog.text
    assert server.config.app is not None
    missing = "wattmesh_cloud.console.pagse"
    with pytest.raises(ModuleNotFoundError, match="pagse"):
        Cloud._http_server(cloud)
