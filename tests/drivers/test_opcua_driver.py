"""The OPC UA driver reads and writes a simulated server."""

import asyncio
import math
import struct
import time
from array import array

import pytest
from asyncua import ua
from asyncua.client.ua_client import UaClient
from asyncua.server.internal_session import InternalSession
from opcua_site import NAMESPACE, Device, answers, no_new_tasks, numbered, template_data
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied, Failed
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.opcua.nodes import Element, parse_path
from wattmesh_drivers.template import Template, load_template
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.opcua_server import OpcUaServer
from wattmesh_simulators.plant.physics import Home


@pytest.fixture
async def battery():
    home, clock = Home("b05", 40.0, lambda: 60.0), ManualClock()
    server = OpcUaServer(
        "wattmesh_opcua_battery", lambda: home.quantities("battery"), lambda n, v: home.write(n, v, clock.utc_ns())
    )
    (port,) = free_ports(1)
    await server.start(port)
    url = ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}/")
    driver = create_driver("battery", load_template("wattmesh_opcua_battery"), url, clock, rated_power_w=5000)
    yield driver, home, server
    await driver.close()
    await server.stop()


async def test_values_and_writes_pass(battery):
    driver, home, server = battery
    await driver.connect()
    assert await driver.poll()
    assert as_mapping(driver)["soc_percent"] == (pytest.approx(40.0), Quality.GOOD)
    assert await driver.control("active_power_w", -1200.0) == Applied(value=-1200.0)
    assert home.setpoint.value == -1200.0
    assert home.setpoint.timeout_s == 60
    home.step(10**18, 10.0)
    await server.refresh()
    await driver.poll()
    assert as_mapping(driver)["active_power_w"][0] == pytest.approx(-1200.0)


async def test_a_server_that_is_gone_leaves_bad_quality(battery):
    driver, _, server = battery
    await driver.connect()
    assert await driver.poll()
    await server.stop()
    assert not await driver.poll()
    assert set(driver.qualities) == {Quality.BAD}


async def test_no_task_is_left_behind(tmp_path):
    async with Device(tmp_path, template_data(numbered(3))) as device:
        driver = device.driver()
        with no_new_tasks():
            await driver.connect()
            assert await driver.poll()
            await driver.close()
            (port,) = free_ports(1)
            absent = create_driver(
                "a", device.template, ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}"), device.clock
            )
            with pytest.raises(UnavailableError):
                await absent.connect()


PATHS = template_data(
    [
        {"id": "active_power_w", "path": "Load/Power", "type": "float"},
        {"id": "vendor_w", "path": "Load/{http://vendor.test/types/}Power", "type": "int32", "scale": 0.5},
        {"id": "odd_w", "path": "Load/Power&/Phase&&A", "type": "double", "sign": -1, "offset": 3},
        {"id": "plain_w", "node": "i=4711", "type": "uint16"},
        {"id": "text_w", "node": "s=With;semicolon=1", "type": "double"},
        {"id": "total_w", "sum": {"plain_w": 1, "text_w": 2}},
    ],
    [{"id": "wish_w", "path": "Load/Wish", "type": "double"}],
)


async def test_points_are_found_by_node_and_by_browse_path_whatever_the_namespaces_index(tmp_path, monkeypatch):
    calls = []
    translate = InternalSession.translate_browsepaths_to_nodeids

    async def counted(session, params):
        if session.external:
            calls.append(len(params))
        return await translate(session, params)

    monkeypatch.setattr(InternalSession, "translate_browsepaths_to_nodeids", counted)
    async with Device(tmp_path, PATHS) as device:
        driver = device.driver()
        shown = {"active_power_w": 1.5, "vendor_w": 20.5, "odd_w": -7.0, "plain_w": 7.0, "text_w": 2.25}
        await device.show(**shown)
        await driver.connect()
        assert await driver.poll()
        assert {name: value for name, (value, _) in as_mapping(driver).items()} == shown | {"total_w": 11.5}
        assert set(driver.qualities) == {Quality.GOOD}
        assert calls == [4], "one call translates all paths"
        before = dict(driver._nodes)

        start = device.server._secure

        async def other_indices(server):
            await server.register_namespace("urn:another")
            await start(server)

        device.server._secure = other_indices
        await device.server.restart()
        await device.show()
        assert not await driver.poll()
        await answers(device, driver)
        assert driver._nodes["plain_w"] != before["plain_w"]
        assert {name: value for name, (value, _) in as_mapping(driver).items()} == shown | {"total_w": 11.5}
        assert calls == [4, 4], "and again after each connect"


@pytest.mark.parametrize(
    ("path", "elements"),
    [
        ("A/B", [(NAMESPACE, "A"), (NAMESPACE, "B")]),
        ("{http://a/b/}A/B", [("http://a/b/", "A"), (NAMESPACE, "B")]),
        ("A&/B/C&&&{", [(NAMESPACE, "A/B"), (NAMESPACE, "C&{")]),
    ],
)
def test_browse_paths_are_parsed(path, elements):
    assert parse_path(path, NAMESPACE) == tuple(Element(*element) for element in elements)


@pytest.mark.parametrize("path", ["", "/A", "A//B", "A/", "{}A", "{urn:x}", "A{B", "{urn:x"])
def test_a_browse_path_that_cannot_be_read_is_refused(path):
    with pytest.raises(ConfigurationError, match="browse path"):
        parse_path(path, NAMESPACE)


@pytest.mark.parametrize("node", ["Load.Power", "ns=2;s=Power", "i=abc", "s=", "x=1"])
def test_a_node_id_that_cannot_be_read_is_refused(node):
    template = Template.model_validate(template_data([{"id": "active_power_w", "node": node, "type": "double"}]))
    with pytest.raises(ConfigurationError, match=r"^d: the node id"):
        create_driver("d", template, ConnectionModel(url="opc.tcp://127.0.0.1:1"), ManualClock())


@pytest.mark.parametrize("url", ["http://x", "opc.tcp://", "opc.tcp://x:port", "opc.tcp://user:secret@127.0.0.1:4840"])
def test_a_url_that_is_none_or_carries_a_password_is_refused(url):
    with pytest.raises(ConfigurationError) as error:
        create_driver("d", Template.model_validate(template_data(numbered(1))), ConnectionModel(url=url), ManualClock())
    assert "secret" not in str(error.value)


async def test_reads_are_cut_as_the_server_asks(tmp_path):
    async with Device(tmp_path, template_data(numbered(20)), limits={"MaxNodesPerRead": 7}) as device:
        driver = device.driver()
        await device.show(**{f"p{index}": float(index) for index in range(1, 20)})
        await driver.connect()
        device.server.reads.clear()
        assert await driver.poll()
        assert device.server.reads == [7, 7, 6]
        assert list(driver.values) == [0.0, *map(float, range(1, 20))]


async def test_another_namespace_is_said_with_those_that_there_are(tmp_path):
    async with Device(tmp_path, template_data(numbered(2))) as device:
        other = device.template.model_copy(update={"namespace": "urn:somewhere:else"})
        with pytest.raises(ConfigurationError, match=rf"no namespace 'urn:somewhere:else'; it has: .*{NAMESPACE}"):
            await device.driver(other).connect()


async def test_after_a_restart_every_node_is_accounted_for(tmp_path, caplog):
    async with Device(tmp_path, template_data(numbered(10))) as device:
        driver = device.driver()
        await device.show(**{f"p{index}": float(index) for index in range(1, 10)})
        await driver.connect()
        assert (driver.audit.delivered, driver.audit.accounted, dict(driver.audit.missing)) == (10, 10, {})
        device.server.faults.missing = {"p2", "p5", "p9"}
        await device.server.restart()
        assert not await driver.poll()
        assert set(driver.qualities) == {Quality.BAD}
        caplog.clear()
        await answers(device, driver)
        bad = {
            name
            for name, (value, quality) in as_mapping(driver).items()
            if quality == Quality.BAD and math.isnan(value)
        }
        assert bad == {"p2", "p5", "p9"}
        assert (driver.audit.delivered, driver.audit.accounted, driver.audit.points) == (7, 10, 10)
        assert driver.counters["accounted"] == 10
        (line,) = [record.getMessage() for record in caplog.records if "missing" in record.getMessage()]
        assert "3 of 10 nodes are missing" in line
        assert all(f"{name} (BadNodeIdUnknown)" in line for name in bad)
        device.now_s += 60
        caplog.clear()
        assert await driver.poll()
        assert not caplog.records, "named once"
        device.server.faults.missing = set()
        await device.server.restart()
        await driver.poll()
        await answers(device, driver)
        assert set(driver.qualities) == {Quality.GOOD}
        assert driver.audit.delivered == 10
        assert "all nodes are there again" in caplog.text


async def test_nodes_that_appear_and_vanish_while_connected_are_noticed(tmp_path, caplog):
    async with Device(tmp_path, template_data(numbered(3))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        node = device.server._server.get_node(next(v.node.nodeid for v in device.server._points if v.name == "p2"))
        await device.server._server.delete_nodes([node])
        await driver.poll()
        assert await driver.poll()
        assert list(driver.audit.missing) == ["p2"]
        assert [Quality(q) for q in driver.qualities] == [Quality.GOOD, Quality.GOOD, Quality.BAD]


async def test_a_server_without_any_of_the_nodes_is_a_wrong_template(tmp_path):
    async with Device(tmp_path, template_data(numbered(3))) as device:
        device.server.faults.missing = {"active_power_w", "p1", "p2"}
        await device.server.restart()
        with pytest.raises(ConfigurationError, match="none of the 3 nodes: active_power_w"):
            await device.driver().connect()


async def test_a_missing_setting_is_named_and_cannot_be_written(tmp_path, caplog):
    controls = {"target_w": {"steps": [{"setting": "wish_w", "value": "target"}], "minimum": -10, "maximum": 10}}
    data = template_data(numbered(2), [{"id": "wish_w", "node": "s=Load.Wish", "type": "double"}], controls=controls)
    async with Device(tmp_path, data) as device:
        device.server.faults.missing = {"wish_w"}
        await device.server.restart()
        driver = device.driver()
        await driver.connect()
        assert "wish_w (BadNodeIdUnknown)" in caplog.text
        outcome = await driver.control("target_w", 1.0)
        assert isinstance(outcome, Failed)
        assert not outcome.retryable
        assert "lacks the setting wish_w" in outcome.reason


async def test_status_becomes_quality_and_times_are_the_servers(tmp_path):
    async with Device(tmp_path, template_data(numbered(5))) as device:
        driver = device.driver()
        await device.show(p1=1.0, p2=2.0, p3=3.0, p4=4.0)
        device.server.faults.status = {
            "p1": ua.StatusCodes.UncertainLastUsableValue,
            "p2": ua.StatusCodes.BadSensorFailure,
            "p3": ua.StatusCodes.GoodClamped,
        }
        stamped = device.clock.utc_ns()
        await device.show()
        device.clock.utc_offset_ns += 5_000_000_000
        await driver.connect()
        server = device.server._server
        (p4,) = (v.node for v in device.server._points if v.name == "p4")
        await server.write_attribute_value(p4.nodeid, ua.DataValue(ua.Variant(4.0, ua.VariantType.Double)))
        assert await driver.poll()
        found = as_mapping(driver)
        assert found["p1"] == (1.0, Quality.UNCERTAIN)
        assert found["p3"] == (3.0, Quality.GOOD)
        assert found["p2"][1] == Quality.BAD
        assert math.isnan(found["p2"][0])
        assert list(driver.source_times_ns[:4]) == [stamped] * 4
        assert driver.source_times_ns[4] == device.clock.utc_ns(), "neither source nor server time: ours"
        assert driver.known_times_ns == array("q", [device.clock.utc_ns()] * 5)
        server.set_force_server_timestamp(True)
        (result,) = await server.iserver.isession.read(
            ua.ReadParameters(NodesToRead=[ua.ReadValueId(NodeId=p4.nodeid, AttributeId=ua.AttributeIds.Value)])
        )
        told = ua.DataValue(result.Value, ServerTimestamp=ua.win_epoch_to_datetime(133_000_000_000_000_000))
        await server.write_attribute_value(p4.nodeid, told)
        assert await driver.poll()
        assert driver.source_times_ns[4] == (133_000_000_000_000_000 - 116_444_736_000_000_000) * 100


@pytest.mark.parametrize("filetime", [0, 2_650_467_743_990_000_000])
async def test_a_time_that_means_none_is_not_taken(tmp_path, filetime):
    async with Device(tmp_path, template_data(numbered(1))) as device:
        driver = device.driver()
        node = device.server._points[0].node.nodeid
        value = ua.DataValue(ua.Variant(1.0), SourceTimestamp=ua.win_epoch_to_datetime(filetime))
        await device.server._server.write_attribute_value(node, value)
        await driver.connect()
        assert await driver.poll()
        assert driver.source_times_ns[0] == device.clock.utc_ns()


@pytest.mark.parametrize("value", [math.nan, math.inf, "much", [1.0, 2.0]])
async def test_what_is_no_number_is_bad(tmp_path, value):
    async with Device(tmp_path, template_data(numbered(2))) as device:
        driver = device.driver()
        point = device.server._points[1].node
        kind = ua.VariantType.String if isinstance(value, str) else ua.VariantType.Double
        device.server._server.iserver.aspace._nodes[point.nodeid].attributes[
            ua.AttributeIds.Value
        ].value = ua.DataValue(ua.Variant(value, kind))
        await driver.connect()
        assert await driver.poll()
        assert [Quality(q) for q in driver.qualities] == [Quality.GOOD, Quality.BAD]


TYPES = {
    "double": (-1e300, 1e300), "float": (-3.4e38, 3.4e38), "boolean": (0, 1), "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1), "int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1024), "uint64": (0, 2**64 - 2048),
}  # fmt: skip
ALL_TYPES = template_data(
    [{"id": "active_power_w", "node": "s=Load.Power", "type": "double"}]
    + [{"id": f"{name}_x", "node": f"s=Load.{name}", "type": name} for name in TYPES],
    [{"id": f"{name}_set", "node": f"s=Load.{name}", "type": name} for name in TYPES],
    controls={f"set_{name}": {"steps": [{"setting": f"{name}_set", "value": "target"}], "readback": f"{name}_set",
                              "minimum": -1e308, "maximum": 1e308} for name in TYPES},
)  # fmt: skip


async def test_every_type_is_written_and_read_back_and_what_does_not_fit_is_never_sent(tmp_path):
    async with Device(tmp_path, ALL_TYPES) as device:
        driver = device.driver()
        await driver.connect()
        for name, (low, high) in TYPES.items():
            for value in (low, high):
                assert await driver.control(f"set_{name}", float(value)) == Applied(value=float(value))
                assert device.written[f"{name}_set"] == pytest.approx(float(value))
                await driver.poll()
                assert as_mapping(driver)[f"{name}_x"][0] == pytest.approx(float(value))
            device.written.clear()
            beyond = [math.nan, math.inf, -math.inf]
            if name != "double":
                beyond += [low * 1.01 - 1.0, high * 1.01 + 1.0]
            for value in beyond:
                with pytest.raises(ConfigurationError, match=f"does not fit {name}"):
                    await driver._write(driver.template.setting(f"{name}_set"), value)
            assert not device.written


async def test_a_refused_write_is_final_and_a_busy_device_is_not(tmp_path, monkeypatch):
    data = template_data(
        numbered(2), [{"id": "wish_w", "node": "s=Load.Wish", "type": "double"}],
        controls={"target_w": {"steps": [{"setting": "wish_w", "value": "target"}], "minimum": -10, "maximum": 10}},
    )  # fmt: skip
    async with Device(tmp_path, data) as device:
        driver = device.driver()
        await driver.connect()
        (node_id,) = device.server._settings
        await device.server._server.get_node(node_id).set_read_only()
        outcome = await driver.control("target_w", 1.0)
        assert outcome == Failed(reason=outcome.reason, retryable=False)
        assert "refuses to write ns=2;s=Load.Wish (BadUserAccessDenied)" in outcome.reason

        async def busy(session, params):
            return [ua.StatusCode(ua.StatusCodes.BadResourceUnavailable) for _ in params.NodesToWrite]

        monkeypatch.setattr(InternalSession, "write", busy)
        outcome = await driver.control("target_w", 2.0)
        assert isinstance(outcome, Failed)
        assert outcome.retryable
        assert await driver.poll(), "the connection is sound"
        monkeypatch.undo()
        await device.server.stop()
        outcome = await driver.control("target_w", 3.0)
        assert isinstance(outcome, Failed)
        assert outcome.retryable


async def test_the_channel_is_renewed_before_its_time(tmp_path):
    async with Device(tmp_path, template_data(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        protocol = driver._session._client.uaclient.protocol
        before = protocol._connection.security_token.TokenId
        device.now_s += 3000
        assert await driver.poll()
        assert await driver.poll()
        assert protocol._connection.security_token.TokenId != before
        assert driver._session._client.uaclient.protocol is protocol


async def test_a_server_that_stops_answering_holds_up_a_poll_for_one_time_out(tmp_path, monkeypatch):
    go_on = asyncio.Event()
    read = InternalSession.read

    async def stuck(session, params):
        if session.external:
            await go_on.wait()
        return await read(session, params)

    async with Device(tmp_path, template_data(numbered(2))) as device:
        driver = device.driver(timeout_ms=200)
        with no_new_tasks():
            await driver.connect()
            monkeypatch.setattr(InternalSession, "read", stuck)
            began = time.monotonic()
            assert not await driver.poll()
            assert time.monotonic() - began < 0.39
            assert set(driver.qualities) == {Quality.BAD}
            await driver.close()
        go_on.set()


async def test_what_listens_and_says_nothing_is_away(tmp_path):
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    template = Template.model_validate(template_data(numbered(1)))
    driver = create_driver(
        "d", template, ConnectionModel(url=f"opc.tcp://127.0.0.1:{port}", timeout_ms=100), ManualClock()
    )
    with no_new_tasks(), pytest.raises(UnavailableError, match="no answer in time"):
        await driver.connect()
    server.close()
    await driver.close()


@pytest.mark.parametrize(
    "fault",
    [OSError("gone"), TimeoutError(), ua.UaError("odd"), ua.uaerrors.BadSessionIdInvalid(), struct.error("short"),
     IndexError(), TypeError(), ValueError(), []],
    ids=lambda fault: type(fault).__name__,
)  # fmt: skip
async def test_whatever_a_server_answers_a_poll_never_raises(tmp_path, monkeypatch, fault):
    async def odd(_client, _params):
        if isinstance(fault, Exception):
            raise fault
        return fault

    async with Device(tmp_path, template_data(numbered(2))) as device:
        driver = device.driver()
        await driver.connect()
        assert await driver.poll()
        monkeypatch.setattr(UaClient, "read", odd)
        assert not await driver.poll()
        assert set(driver.qualities) == {Quality.BAD}
        monkeypatch.undo()
        await answers(device, driver)
        assert set(driver.qualities) == {Quality.GOOD}
