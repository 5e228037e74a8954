"""Reports: figures by hand, files that open, at their time, each tenant's own."""

import json

import httpx
import pytest
from wattmesh_a2a.clock import NS_PER_S
from wattmesh_a2a.codec import message_to_json
from wattmesh_a2a.errors import InvalidMessageError
from wattmesh_cloud.reports.figures import EACH_WAY, _Battery, build, span_of
from wattmesh_cloud.reports.service import ReportService, ReportsModel
from wattmesh_cloud.store.base import Item, Table

DAY = 86_400 * NS_PER_S
SLOT = 900 * NS_PER_S
MIDNIGHT = 19_676 * DAY
DATE = "2023-11-15"


@pytest.fixture
def metered(view, make_interval):
    """Ann: four quarter hours of a day, one of them incomplete."""
    rows = [
        make_interval("ann", MIDNIGHT, import_wh=1000, load_wh=1000),
        make_interval("ann", MIDNIGHT + SLOT, import_wh=0, export_wh=500, load_wh=200, pv_wh=700),
        make_interval("ann", MIDNIGHT + 2 * SLOT, import_wh=100, load_wh=400, battery_discharge_wh=300),
        make_interval("ann", MIDNIGHT + 3 * SLOT, import_wh=9999, load_wh=9999, complete=False),
    ]
    items = [Item(partition="ann", time_ns=one.slot_start_ns, id="interval", data=message_to_json(one)) for one in rows]
    view.store.put(Table.CONSUMER_METRICS, items)
    return view


async def test_figures_are_those_of_the_slots(metered, clock):
    await clock.advance(86_400)
    (ann,) = build(metered, "day", DATE, ["ann"], title="x").sites
    assert (ann.slots, ann.expected_slots, ann.availability) == (3, 96, 3 / 96)
    assert (ann.import_wh, ann.export_wh, ann.load_wh, ann.pv_wh) == (1100, 500, 1600, 700)
    assert (ann.peak_import_w, ann.peak_ns) == (4000, MIDNIGHT)
    # 0.30 and 0.05 a kWh: import 1.1 kWh, export 0.5 kWh; without battery 1.0 + 0.4 in, 0.5 out
    assert ann.cost == pytest.approx(1.1 * 0.30 - 0.5 * 0.05)
    assert ann.cost_no_battery == pytest.approx(1.4 * 0.30 - 0.5 * 0.05)
    assert ann.cost_self_consumption == ann.cost_no_battery, "no battery is announced: the two baselines are one"


async def test_settled_slots_count_as_they_were_settled(metered, clock):
    amounts = dict.fromkeys(("trade_units", "fee_units", "levy_units", "imbalance_units"), 0)
    data = {**amounts, "residual_units": 2_000_000, "flexibility_units": -500_000}
    metered.store.put(
        Table.TRADE_DATA, [Item(partition="ann#settlements", time_ns=MIDNIGHT, id="settlement", data=data)]
    )
    (ann,) = build(metered, "day", DATE, ["ann"], title="x").sites
    assert (ann.settled_slots, ann.flexibility) == (1, pytest.approx(0.05))
    assert ann.cost == pytest.approx(0.2 - 0.05 - 0.5 * 0.05 + 0.1 * 0.30)


def test_the_baselines_battery_keeps_its_energy():
    battery = _Battery(power_w=4000.0, energy_wh=2000.0, stored_wh=1000.0)
    assert battery.after(-600.0, 900) == 0.0
    assert battery.stored_wh == pytest.approx(1000 + 600 * EACH_WAY)
    assert battery.after(-5000.0, 900) == pytest.approx(-5000 + min(1000, (1000 - 600 * EACH_WAY) / EACH_WAY))
    assert battery.stored_wh <= 2000.0
    given = 5000 - battery.after(5000.0, 900)
    assert given == pytest.approx(1000.0), "no more than its power"
    assert 0 <= battery.stored_wh


@pytest.mark.parametrize(
    ("period", "day", "days", "first"),
    [
        ("day", "2023-11-15", 1, 15),
        ("week", "2023-11-15", 7, 13),
        ("month", "2023-11-15", 30, 1),
        ("month", "2024-02-29", 29, 1),
    ],
)
def test_spans(period, day, days, first):
    from datetime import UTC, datetime

    start, end = span_of(period, day, UTC)
    assert (end - start) // DAY == days
    assert datetime.fromtimestamp(start / NS_PER_S, tz=UTC).day == first


@pytest.mark.parametrize("day", ["2023-02-30", "0001-01-01", "9999-12-31", "soon"])
def test_no_such_day(day):
    from datetime import UTC

    with pytest.raises(InvalidMessageError, match="is no day"):
        span_of("day", day, UTC)


async def test_the_page_and_the_files(api, token, metered, services, clock, background):
    await clock.advance(86_400)
    background(services.jobs.run())
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"Authorization": f"Bearer {token('viewer', 'acme')}"}
    ) as client:
        figures = (await client.get(f"/api/v1/reports/figures?period=day&start={DATE}")).json()
        assert [one["site_id"] for one in figures["sites"]] == ["ann"], "a tenant's report has its own sites alone"
        assert (await client.get(f"/api/v1/reports/figures?period=day&start={DATE}&site_id=bob")).status_code == 404
        job = (await client.post("/api/v1/reports", json={"period": "day", "start": DATE})).json()
        while job["state"] in {"waiting", "running"}:
            job = (await client.get(f"/api/v1/jobs/{job['id']}")).json()
        assert job["state"] == "done", job["detail"]
        files = {name.rpartition(".")[2]: name for name in job["files"]}
        assert set(files) == {"pdf", "csv", "json"}
        pdf = await client.get(f"/api/v1/jobs/{job['id']}/files/{files['pdf']}")
        assert pdf.content.startswith(b"%PDF-")
        assert (await client.get(f"/api/v1/jobs/{job['id']}/files/..%2Faudit.log")).status_code in {404, 422}
        other = {"Authorization": f"Bearer {token('viewer')}"}
        assert (await client.get(f"/api/v1/jobs/{job['id']}", headers=other)).status_code == 200, "the host sees all"
        wrong = await client.post("/api/v1/reports", json={"period": "day", "start": "2023-02-30"})
        assert (wrong.status_code, "is no day" in wrong.json()["detail"]) == (422, True)


async def test_reports_are_written_when_their_period_is_over(metered, tmp_path, clock):
    service = ReportService(
        ReportsModel(schedule=("day", "month")), metered, tmp_path / "reports", {"acme": frozenset({"ann"})}, clock
    )
    await clock.advance(86_400 + 2 * 3600)
    assert service.write_due() == [], "meters may be late: three hours are waited"
    await clock.advance(2 * 3600)
    made = service.write_due()
    assert sorted(path.relative_to(tmp_path / "reports").as_posix() for path in made) == [
        f"acme/day-{DATE}.pdf", f"fleet/day-{DATE}.pdf",
    ]  # fmt: skip
    assert service.write_due() == [], "each once"
    (kept,) = service.kept("acme")
    assert service.file("acme", kept.name).read_bytes().startswith(b"%PDF-")
    assert (
        json.loads(service.file("acme", kept.name.replace(".pdf", ".json")).read_text())["sites"][0]["site_id"] == "ann"
    )
    assert service.file("acme", "../fleet/x.pdf") is None


def test_an_empty_period_is_a_report_that_says_so(view, tmp_path):
    from wattmesh_cloud.reports.document import write_pdf

    write_pdf(build(view, "month", DATE, ["ann"], title="<b>&"), tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF-")
