"""The simulated OPC UA battery, asked by asyncua's client."""

import pytest
from asyncua import Client, ua


@pytest.fixture
async def battery(run_fleet, make_model, free_port):
    model = make_model(battery="wattmesh_opcua_battery", battery_port=free_port)
    async with (
        run_fleet(model) as (fleet, clock),
        Client(f"opc.tcp://127.0.0.1:{free_port}/") as client,
    ):
        space = await client.get_namespace_index("urn:wattmesh:battery")
        yield fleet.homes["h"], clock, lambda name: client.get_node(ua.NodeId(f"Battery.{name}", space))


async def test_values_follow_the_plant(battery):
    home, clock, node = battery
    assert await node("StateOfCharge").read_value() == pytest.approx(50.0)
    home.write("setpoint_w", 4000.0, clock.utc_ns())
    await clock.advance(60)
    assert await node("ActivePower").read_value() == 4000.0
    assert await node("StateOfCharge").read_value() == pytest.approx(home.battery.soc_percent)
    assert await node("EnergyCharged").read_value() == pytest.approx(home.battery.charged_wh)


async def test_a_written_setpoint_acts_and_falls_back_where_all_can_see_it(battery):
    home, clock, node = battery
    await node("SetpointTimeout").write_value(ua.Variant(60, ua.VariantType.UInt32))
    await node("Setpoint").write_value(ua.Variant(-2500.0, ua.VariantType.Double))
    assert home.battery.active_w == -2500.0
    assert await node("Setpoint").read_value() == -2500.0
    await clock.advance(60)
    assert home.battery.discharged_wh == pytest.approx(2500 / 60)
    await clock.advance(10)
    assert home.battery.active_w == 0.0
    assert await node("Setpoint").read_value() == 0.0


async def test_a_wrong_type_or_a_measurement_is_refused_and_what_is_no_number_has_no_effect(battery):
    home, clock, node = battery
    for name, value in (
        ("Setpoint", ua.Variant("much", ua.VariantType.String)),
        ("Setpoint", ua.Variant(5, ua.VariantType.Int32)),
        ("StateOfCharge", ua.Variant(100.0, ua.VariantType.Double)),
    ):
        with pytest.raises(ua.UaStatusCodeError):
            await node(name).write_value(value)
    await node("Setpoint").write_value(ua.Variant(float("nan"), ua.VariantType.Double))
    assert home.writes == 0
    await clock.advance(10)
    assert await node("Setpoint").read_value() == 0.0
