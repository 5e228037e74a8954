"""What halts a market, as the running services trigger it: operator, prices, old forecasts, the grid."""

import pytest
from wattmesh_a2a.clock import NS_PER_S, ManualClock
from wattmesh_a2a.forecast import Forecast
from wattmesh_a2a.grid import GridStatus
from wattmesh_a2a.market import Order, RejectReason, Side
from wattmesh_a2a.messages import OrderCancel, OrderPlace
from wattmesh_cloud.app import Cloud
from wattmesh_cloud.config import load_cloud

NOW = 19_676 * 86_400 * NS_PER_S
SLOT = NOW + 4 * 900 * NS_PER_S
FILE = """version: 1
org: demo
state: state
broker: mqtt://127.0.0.1:1883
keys: keys
planning: {enabled: false}
market:
  area: north
  mechanism: continuous
  halt_in_grid_emergency: true
  halt_without_forecast_s: 7200
  halt_move: 0.10
  tariff: {feed_in_price: 0.05, default_price: 0.30}
  participants:
    - {id: ann, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}
    - {id: bob, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}
areas:
  - area: south
    mechanism: continuous
    tariff: {feed_in_price: 0.05, default_price: 0.30}
    participants:
      - {id: dan, import_limit_w: 8000, export_limit_w: 4000, credit_limit: 100.0}
"""


@pytest.fixture
def cloud(tmp_path):
    (tmp_path / "keys").mkdir()
    file = tmp_path / "cloud.yaml"
    file.write_text(FILE)
    made = Cloud(load_cloud(file), ManualClock(NOW))
    made.forecasting.latest["ann"] = {"pv_wh": forecast(NOW)}
    yield made
    made.markets.close()
    made.strategy.close()
    made.audit.close()
    made.dead.close()
    made.store.close()


def forecast(issued_ns):
    return Forecast(
        site_id="ann", quantity="pv_wh", issued_ns=issued_ns, start_ns=issued_ns, slot_s=900, levels=(0.5,), values=((1.0,),),
        model="test",
    )  # fmt: skip


async def place(market, who, side, name, price=2000):
    order = Order(
        client_order_id=name, participant_id=who, area_id=market.config.area, slot_start_ns=SLOT, side=side,
        quantity_wh=100, price_ticks=price,
    )  # fmt: skip
    message = OrderPlace(participant_id=who, area_id=market.config.area, orders=(order,))
    (result,) = await market._commit_message("place", message, NOW)
    return result


async def test_the_grids_emergency_halts_areas_that_ask_for_it_and_its_end_lifts_it(cloud):
    north, south = cloud.markets.area("north"), cloud.markets.area("south")
    cloud.grid.declare(GridStatus.ALERT, "frequency")
    await north._guarded(NOW)
    assert (await place(north, "ann", Side.BUY, "a1")).reason is None, "an alert is no emergency"
    cloud.grid.declare(GridStatus.EMERGENCY, "a line is lost")
    for market in (north, south):
        await market._guarded(NOW)
    refused = await place(north, "ann", Side.BUY, "a2")
    assert (refused.reason, refused.detail) == (RejectReason.HALTED, "grid emergency: a line is lost")
    assert (await place(south, "dan", Side.BUY, "d1")).reason is None, "its rules do not ask for it"
    await north.halt("the operator, too")
    cloud.grid.declare(GridStatus.NORMAL, "")
    await north._guarded(NOW)
    assert (await place(north, "ann", Side.BUY, "a3")).detail == "the operator, too"
    message = OrderCancel(participant_id="ann", area_id="north")
    assert len(await north._commit_message("cancel", message, NOW)) == 1, "whoever wants out may"
    await north.resume()
    assert (await place(north, "ann", Side.BUY, "a4")).reason is None
    whats = [entry["what"] for entry in north._journal.entries()]
    assert whats == ["rules", "place", "halt", "place", "halt", "resume", "place", "cancel", "resume", "place"]


async def test_old_forecasts_halt_and_a_new_one_lifts_it(cloud):
    north = cloud.markets.area("north")
    await north._guarded(NOW + 7200 * NS_PER_S)
    assert north.engine.halted is None
    await north._guarded(NOW + 7201 * NS_PER_S)
    assert north.engine.halted == "no forecast in 7200 s"
    cloud.forecasting.latest["dan"] = {"pv_wh": forecast(NOW + 7200 * NS_PER_S)}
    await north._guarded(NOW + 7202 * NS_PER_S)
    assert north.engine.halted is not None, "a forecast for another area's site does not help this one"
    cloud.forecasting.latest["bob"] = {"pv_wh": forecast(NOW + 7200 * NS_PER_S)}
    await north._guarded(NOW + 7203 * NS_PER_S)
    assert north.engine.halted is None


async def test_a_price_that_runs_away_halts_its_product_alone(cloud):
    north = cloud.markets.area("north")
    await place(north, "ann", Side.BUY, "a1", 2000)
    await place(north, "bob", Side.SELL, "b1", 2000)
    await place(north, "ann", Side.BUY, "a2", 3001)
    assert (await place(north, "bob", Side.SELL, "b2", 3001)).reason is None
    refused = await place(north, "ann", Side.BUY, "a3", 3001)
    assert (refused.reason, refused.detail) == (RejectReason.HALTED, "the product's price moved too fast")
    assert north.engine.halted is None
    later = OrderPlace(
        participant_id="ann", area_id="north",
        orders=(Order(client_order_id="a4", participant_id="ann", area_id="north", slot_start_ns=SLOT + 900 * NS_PER_S,
                      side=Side.BUY, quantity_wh=100, price_ticks=3001),),
    )  # fmt: skip
    (other,) = await north._commit_message("place", later, NOW)
    assert other.reason is None, "another product goes on"
    order = later.orders[0]
    again = OrderPlace(participant_id="ann", area_id="north", orders=(
        Order(client_order_id="a5", participant_id="ann", area_id="north", slot_start_ns=SLOT, side=order.side,
              quantity_wh=100, price_ticks=3001),))  # fmt: skip
    (result,) = await north._commit_message("place", again, NOW + 121 * NS_PER_S)
    assert result.reason is None, "after its pause"
