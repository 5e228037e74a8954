"""Values by subscription: what is granted, dead bands, and a subscription that dies is never taken for one that is quiet."""

import asyncio
import math

import pytest
from asyncua import ua
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.server.monitored_item_service import MonitoredItemService
from asyncua.server.subscription_service import SubscriptionService
from opcua_site import Device, answers, no_new_tasks, numbered, template_data, until
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home

PACE = {"sampling_ms": 20, "publishing_ms": 20}


def told(points, **pace):
    return template_data(points, subscription=PACE | pace)


def banded(count, band=1.0):
    return [point | {"dead_band": band} for point in numbered(count)]


async def polled(driver, name, value):
    """Poll until a point has a value."""

    async def there():
        assert await driver.poll()
        return as_mapping(driver)[name][0] == value

    await until(there)


async def test_changes_are_told_without_a_read(tmp_path):
    async with Device(tmp_path, told(numbered(5))) as device:
        await device.show(p1=1.0)
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        assert as_mapping(driver)["p1"] == (1.0, Quality.GOOD)
        assert (driver.audit.delivered, driver.audit.accounted) == (5, 5)
        device.server.reads.clear()
        await device.show(p1=2.0, p4=-4.0)
        await polled(driver, "p4", -4.0)
        await polled(driver, "p1", 2.0)
        assert driver.source_times_ns[1] == device.clock.utc_ns()
        assert device.server.reads == []


async def test_no_task_outlives_a_subscription_even_where_the_server_is_gone(tmp_path):
    async with Device(tmp_path, told(numbered(2))) as device:
        with no_new_tasks():
            first, second = device.driver(), device.driver()
            await first.connect()
            await second.connect()
            await first.close()
            await device.server.stop()
            await until(lambda: second._session._client.uaclient.protocol.is_closed)
            assert not await second.poll()
            await second.close()


async def test_what_the_server_grants_is_read_back_and_said_where_it_differs(tmp_path, monkeypatch, caplog):
    create, common = SubscriptionService.create_subscription, MonitoredItemService._make_monitored_item_common

    async def slower(service, params, *args, **kwargs):
        params.RequestedPublishingInterval = 50.0
        return await create(service, params, *args, **kwargs)

    def coarser(service, params):
        result, data = common(service, params)
        result.RevisedSamplingInterval = (
            250.0 if data.client_handle == 3 else params.RequestedParameters.SamplingInterval
        )
        result.RevisedQueueSize = 1
        return result, data

    monkeypatch.setattr(SubscriptionService, "create_subscription", slower)
    monkeypatch.setattr(MonitoredItemService, "_make_monitored_item_common", coarser)
    async with Device(tmp_path, told(numbered(3), queue_size=5)) as device:
        driver = device.driver()
        await driver.connect()
        granted = driver.granted
        assert granted.publishing_ms == 50.0
        assert dict(granted.sampling_ms) == {0: 20.0, 1: 250.0, 2: 20.0}
        assert dict(granted.queue_size) == {0: 1, 1: 1, 2: 1}
        assert granted.heartbeat
        assert granted.lifetime_count * granted.publishing_ms >= 60_000
        assert (
            "the server grants publishing every 50 ms instead of 20; sampling every 250 ms instead of 20 for 1 of 3 points; "
            "a queue of 1 instead of 5 for 3 of 3 points"
        ) in caplog.text


async def test_the_server_keeps_the_dead_band(tmp_path):
    async with Device(tmp_path, told(banded(2))) as device:
        await device.show(p1=10.0)
        driver = device.driver()
        await driver.connect()
        await device.show(p1=10.5)
        await device.show(p1=12.0)
        await polled(driver, "p1", 12.0)
        assert driver.counters["inside_dead_band"] <= 2, "only first values, which the connect had read before"
        assert not driver.granted.no_server_dead_band


@pytest.mark.parametrize("server", ["ignores", "refuses"])
async def test_the_dead_band_is_ours_where_the_server_keeps_none(tmp_path, monkeypatch, server, caplog):
    if server == "ignores":
        monkeypatch.setattr(MonitoredItemService, "_is_deadband_exceeded", lambda *_: True)
    else:
        create = MonitoredItemService._create_data_change_monitored_item

        async def refuse(service, params):
            if type(params.RequestedParameters.Filter).__name__ == "DataChangeFilter":
                status = ua.StatusCode(ua.StatusCodes.BadMonitoredItemFilterUnsupported)
                return ua.MonitoredItemCreateResult(StatusCode=status)
            return await create(service, params)

        monkeypatch.setattr(MonitoredItemService, "_create_data_change_monitored_item", refuse)
    async with Device(tmp_path, told(banded(2))) as device:
        await device.show(p1=10.0)
        driver = device.driver()
        await driver.connect()
        before = driver.counters["inside_dead_band"]
        await device.show(p1=10.9)
        await until(lambda: driver.counters["inside_dead_band"] > before)
        await polled(driver, "p1", 10.0)
        await device.show(p1=11.1)
        await polled(driver, "p1", 11.1)
        assert driver.granted.no_server_dead_band == (frozenset() if server == "ignores" else {0, 1})
        assert ("no dead band at the server for 2 points" in caplog.text) == (server == "refuses")


async def test_a_drift_that_the_server_never_tells_is_read_within_a_minute(tmp_path):
    async with Device(tmp_path, told(banded(2))) as device:
        await device.show(p1=10.0)
        driver = device.driver()
        await driver.connect()
        for step in range(30):  # this server compares with the last sample, so it tells none of them
            await device.show(p1=10.0 + 0.1 * step)
        await asyncio.sleep(0.1)
        assert await driver.poll()
        assert as_mapping(driver)["p1"][0] == 10.0
        driver._subscription.beat_at += 60
        device.now_s += 60
        assert await driver.poll()
        assert as_mapping(driver)["p1"][0] == pytest.approx(12.9)


async def test_a_subscription_that_stalls_makes_all_bad_and_is_made_anew(tmp_path, caplog):
    async with Device(tmp_path, told(numbered(3))) as device:
        driver = device.driver()
        await driver.connect()
        first = driver._subscription
        device.server.faults.frozen = True
        await device.show(p1=5.0)
        device.now_s += 4.9
        assert await driver.poll(), "not yet"
        device.now_s += 0.2
        assert not await driver.poll()
        assert set(driver.qualities) == {Quality.BAD}
        assert all(math.isnan(value) for value in driver.values)
        assert "gave no sign of life for 5.1 s" in caplog.text
        await answers(device, driver)
        assert driver._subscription is not first
        assert as_mapping(driver)["p1"] == (5.0, Quality.GOOD)


async def test_a_heartbeat_keeps_a_subscription_alive_whose_values_stand_still(tmp_path):
    async with Device(tmp_path, told(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        for _ in range(2):
            beat = driver._subscription.beat_at
            device.now_s += 4
            await until(lambda beat=beat: driver._subscription.beat_at > beat)
            assert await driver.poll()
        assert driver.known_times_ns[0] == device.clock.utc_ns()
        assert driver.source_times_ns[0] <= device.clock.utc_ns()


async def test_where_the_servers_clock_cannot_be_watched_its_publishing_is_the_sign_of_life(
    tmp_path, monkeypatch, caplog
):
    create = MonitoredItemService._create_data_change_monitored_item

    async def no_clock(service, params):
        if params.ItemToMonitor.NodeId == ua.NodeId(2258):
            return ua.MonitoredItemCreateResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown))
        return await create(service, params)

    monkeypatch.setattr(MonitoredItemService, "_create_data_change_monitored_item", no_clock)
    async with Device(tmp_path, told(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        assert "clock cannot be watched" in caplog.text
        device.now_s += 4
        await until(lambda: driver._subscription.beat_at == device.now_s)
        assert await driver.poll()


async def test_a_subscription_that_the_server_ends_is_dead_at_once(tmp_path, caplog):
    async with Device(tmp_path, told(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        (subscription,) = device.server._server.iserver.subscription_service.subscriptions.values()
        await subscription.enqueue_statuschange(ua.StatusCode(ua.StatusCodes.BadTimeout))
        await until(lambda: driver._subscription.ended is not None)
        assert not await driver.poll()
        assert set(driver.qualities) == {Quality.BAD}
        assert "its subscription ended (BadTimeout)" in caplog.text


async def test_after_a_restart_every_item_is_accounted_for(tmp_path, caplog):
    async with Device(tmp_path, told(numbered(10))) as device:
        await device.show(**{f"p{index}": float(index) for index in range(1, 10)})
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        device.server.faults.missing = {"p1", "p2", "p3"}
        await device.server.restart()
        assert not await driver.poll()
        caplog.clear()
        await answers(device, driver)
        found = as_mapping(driver)
        assert {name for name, (_, quality) in found.items() if quality == Quality.BAD} == {"p1", "p2", "p3"}
        assert (driver.audit.delivered, driver.audit.accounted, driver.audit.points) == (7, 10, 10)
        (line,) = [record.getMessage() for record in caplog.records if "missing" in record.getMessage()]
        assert "3 of 10 nodes are missing, the others go on: p1 (BadNodeIdUnknown), p2" in line
        await device.show(p9=-9.0)
        await polled(driver, "p9", -9.0)


async def test_an_item_that_is_refused_is_bad_although_its_node_can_be_read(tmp_path, monkeypatch):
    create = MonitoredItemService._create_data_change_monitored_item

    async def full(service, params):
        if params.RequestedParameters.ClientHandle == 4:
            return ua.MonitoredItemCreateResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadTooManyMonitoredItems))
        return await create(service, params)

    monkeypatch.setattr(MonitoredItemService, "_create_data_change_monitored_item", full)
    async with Device(tmp_path, told(numbered(4))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        assert dict(driver.audit.missing) == {"p2": "BadTooManyMonitoredItems"}
        assert (driver.audit.delivered, driver.audit.accounted) == (3, 4)
        assert driver.qualities[2] == Quality.BAD
        monkeypatch.undo()
        driver._subscription.beat_at += 60
        device.now_s += 60
        assert await driver.poll(), "it is asked for again"
        assert driver.audit.delivered == 4
        await device.show(p2=2.0)
        await polled(driver, "p2", 2.0)


async def test_items_are_made_in_parts_that_the_server_takes(tmp_path, monkeypatch):
    create, sizes = SubscriptionService.create_monitored_items, []

    async def counted(service, params):
        sizes.append(len(params.ItemsToCreate))
        return await create(service, params)

    monkeypatch.setattr(SubscriptionService, "create_monitored_items", counted)
    async with Device(tmp_path, told(numbered(20)), limits={"MaxMonitoredItemsPerCall": 8}) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        assert sizes == [1, 8, 8, 4]
        assert driver.audit.delivered == 20


async def test_what_a_lost_notification_said_is_read(tmp_path, monkeypatch):
    pop = InternalSubscription._pop_publish_result
    lose = []

    def losing(subscription):
        if lose and subscription._triggered_datachanges:
            lose.clear()
            pop(subscription)
        return pop(subscription)

    monkeypatch.setattr(InternalSubscription, "_pop_publish_result", losing)
    async with Device(tmp_path, told(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        await until(lambda: driver._subscription._next_sequence is not None)
        await asyncio.sleep(0.1)
        assert await driver.poll()
        assert driver.counters["lost_notifications"] == 0
        lose.append(True)
        await device.show(p1=3.0)
        await polled(driver, "p1", 3.0)
        assert driver.counters["lost_notifications"] >= 1


async def test_status_is_told_as_well(tmp_path):
    points = numbered(3)
    points[1]["dead_band"] = 1.0  # a status passes a dead band
    async with Device(tmp_path, told(points)) as device:
        await device.show(p1=1.0, p2=2.0)
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        device.server.faults.status = {
            "p1": ua.StatusCodes.UncertainSensorNotAccurate,
            "p2": ua.StatusCodes.BadOutOfService,
        }
        await device.show(p1=9.0, p2=9.0)

        async def there():
            assert await driver.poll()
            return list(driver.qualities) == [Quality.GOOD, Quality.UNCERTAIN, Quality.BAD]

        await until(there)
        assert as_mapping(driver)["p1"][0] == 9.0


async def test_notifications_go_on_over_a_renewed_channel(tmp_path):
    async with Device(tmp_path, told(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        device.now_s += 3000
        driver._subscription.beat_at += 3000
        assert await driver.poll()
        first = driver._subscription
        for value in (2.0, 3.0):
            await device.show(p1=value)
            await polled(driver, "p1", value)
        assert driver._subscription is first


async def test_the_template_that_subscribes_is_told_of_the_plant(tmp_path):
    home = Home("b05", 40.0, lambda: 60.0)
    server = OpcUaServer("wattmesh_opcua_meter", lambda: home.quantities("meter"), lambda _n, _v: None)
    (port,) = free_ports(1)
    await server.start(port)
    url = ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}")
    driver = create_driver("meter", load_template("wattmesh_opcua_meter"), url, ManualClock())
    try:
        await driver.connect()
        home.step(10**18, 3600.0)
        await server.refresh()
        wanted = home.quantities("meter")

        async def there():
            assert await driver.poll()
            found = as_mapping(driver)
            return all(
                quality == Quality.GOOD and value == pytest.approx(wanted[name], rel=1e-6, abs=6.0)
                for name, (value, quality) in found.items()
            )

        await until(there)
        assert driver.audit.accounted == driver.audit.points == 10
        assert driver.granted.publishing_ms == 250
    finally:
        await driver.close()
        await server.stop()


async def test_a_node_that_vanishes_and_comes_back_is_watched_again(tmp_path):
    async with Device(tmp_path, told(numbered(3))) as device:
        await device.show(p2=1.0)
        driver = device.driver()
        await driver.connect()
        server, place = device.server._server, next(i for i, v in enumerate(device.server._points) if v.name == "p2")
        gone = device.server._points.pop(place)
        parent = await gone.node.get_parent()
        name = await gone.node.read_browse_name()
        await server.delete_nodes([gone.node])

        async def later(quality):
            device.now_s += 60
            driver._subscription.beat_at += 60
            assert await driver.poll()
            return driver.qualities[2] == quality

        await until(lambda: later(Quality.BAD))
        assert list(driver.audit.missing) == ["p2"]
        assert driver.audit.accounted == 3
        gone.node = await parent.add_variable(gone.node.nodeid, name, gone.raw(5.0))
        device.server._points.append(gone)
        await until(lambda: later(Quality.GOOD))
        await device.show(p2=6.0)
        await polled(driver, "p2", 6.0)
