"""Every SunSpec model of the data folder, encoded by pysunspec2 and read by our driver; and our simulated devices scanned by it."""

import asyncio
import random
from importlib import resources

import pytest
import sunspec2.device
import sunspec2.modbus.client
from register_link import Registers, driver, template
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.modbus.sunspec import TYPES, counters_of, model_definition, place_of
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.plant.data import FIRST_NS

MODELS = sorted(
    int(file.name.removeprefix("model_").removesuffix(".json"))
    for file in (resources.files("firmware_configs") / "sunspec").iterdir()
    if file.name.startswith("model_")
)
REPEATED = 2
LIMITS = {
    "int16": (-32767, 32767), "uint16": (0, 65534), "acc16": (1, 65535), "enum16": (0, 65534), "bitfield16": (0, 65534),
    "int32": (-(2**31) + 1, 2**31 - 1), "uint32": (0, 2**32 - 2), "acc32": (1, 2**32 - 1), "enum32": (0, 2**32 - 2),
    "bitfield32": (0, 2**31 - 1), "int64": (-(2**53), 2**53), "uint64": (0, 2**53), "acc64": (1, 2**53),
}  # fmt: skip


def content_of(model, chance):
    """Values of every point, groups twice, and the names under which we read them."""
    definition = model_definition(model)
    counters = set(counters_of(model))
    named = []

    def fill(group, path, prefix):
        found = {}
        for point in group["points"]:
            name, kind = point["name"], point["type"]
            if name in {"ID", "L"} and not path:
                continue
            if kind == "sunssf":
                found[name] = chance.choice([-3, -1, 0, 2])
            elif name in counters and not path:
                found[name] = REPEATED
                named.append((path, name, prefix))
            elif kind in LIMITS:
                found[name] = chance.randint(*LIMITS[kind])
                named.append((path, name, prefix))
            elif kind == "float32":
                found[name] = chance.randint(-1000, 1000) / 4
                named.append((path, name, prefix))
        for inner in group.get("groups", []):
            count = inner.get("count", 1)
            times = count if isinstance(count, int) and count > 0 else REPEATED
            made = []
            for index in range(times):
                step = f"{inner['name']}[{index}]"
                made.append(fill(inner, f"{path}.{step}" if path else step, f"{prefix}{inner['name']}{index}_"))
            found[inner["name"]] = made if not (isinstance(count, int) and count == 1) else made[0]
        return found

    data = fill(definition, "", "")
    return {"ID": model} | data, named


def reading(model, named):
    """A template that reads every number of a model."""
    points, keys = [], {}
    for number, (path, name, _) in enumerate(named):
        key = "active_power_w" if number == 0 else f"p{number}"
        wide = {"minimum": -1e30, "maximum": 1e30}
        points.append({"id": key, "model": model, "point": name, **wide} | ({"group": path} if path else {}))
        keys[key] = (path, name)
    return template(points, protocol="sunspec"), keys


def value_in(model, path, name):
    """What pysunspec2 says of a point, scaled."""
    group = model
    for step in path.split(".") if path else []:
        label, index = step[:-1].split("[")
        inner = group.groups[label]
        group = inner[int(index)] if isinstance(inner, list) else inner
    return group.points[name].cvalue


@pytest.mark.parametrize("model", MODELS)
async def test_every_point_of_every_model_reads_as_another_library_wrote_it(model):
    chance = random.Random(model)
    data, named = content_of(model, chance)
    if not named:
        assert all(point["type"] not in TYPES for point in model_definition(model)["points"][2:])
        return
    theirs = sunspec2.device.Model(model, data=data)
    body = theirs.get_mb()
    words = [int.from_bytes(body[at : at + 2], "big") for at in range(0, len(body), 2)]
    words[0], words[1] = model, len(words) - 2
    chain = [0x5375, 0x6E53, 1, 2, 7, 7, *words, 0xFFFF, 0] if model != 1 else [0x5375, 0x6E53, *words, 0xFFFF, 0]
    made_template, keys = reading(model, named)
    made = driver(Registers(dict(enumerate(chain, 40000))), made_template)
    assert await made.poll()
    compared = 0
    for key, (path, name) in keys.items():
        wanted = value_in(theirs, path, name)
        value, quality = as_mapping(made)[key]
        assert quality == Quality.GOOD, (path, name)
        assert value == pytest.approx(wanted, rel=1e-12), (path, name)
        compared += 1
    assert compared == len(named)


@pytest.mark.parametrize("base", [40000, 0, 50000])
async def test_the_map_is_found_at_each_of_its_three_bases(base):
    words = [0x5375, 0x6E53, 1, 2, 7, 7, 103, 50, *range(50), 0xFFFF, 0]
    made = driver(
        Registers(dict(enumerate(words, base))),
        template([{"id": "active_power_w", "model": 103, "point": "St"}], protocol="sunspec"),
    )
    assert await made.poll()
    assert as_mapping(made)["active_power_w"][1] == Quality.GOOD


def test_repetitions_that_a_device_does_not_have_are_none_and_wrong_paths_are_told():
    counts = {"NPt": 2, "NCrvSet": 2}
    assert place_of(707, 0, "V", group="Crv[1].MayTrip.Pt[1]", counts=counts) is not None
    assert place_of(707, 0, "V", group="Crv[2].MayTrip.Pt[1]", counts=counts) is None
    assert place_of(707, 0, "V", group="Crv[1].MayTrip.Pt[2]", counts=counts) is None
    for group, told in (
        ("Crv[0].Nothing", "no group 'Nothing'"),
        ("Crv[x]", "write it like"),
        ("Crv[0].MayTrip[1].Pt", "only 1 times"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            place_of(707, 0, "V", group=group, counts=counts)
    with pytest.raises(ConfigurationError, match="does not say how often"):
        place_of(707, 0, "V", group="Crv[1].MustTrip.Pt[0]")


@pytest.mark.parametrize("name", ["sunspec_inverter", "sunspec_battery", "sunspec_meter_203", "solaredge_inverter"])
async def test_another_library_scans_our_simulated_devices_and_reads_the_same(name):
    clock = ManualClock(FIRST_NS + 13 * 3600 * 10**9)
    device = SimulatedDevice(name, clock)
    await device.serve()
    await device.step()

    def scan():
        client = sunspec2.modbus.client.SunSpecModbusClientDeviceTCP(
            slave_id=1, ipaddr="127.0.0.1", ipport=device.server.port
        )
        try:
            client.scan()
            return {number: models[0] for number, models in client.models.items() if isinstance(number, int)}
        finally:
            client.close()

    try:
        models = await asyncio.get_running_loop().run_in_executor(None, scan)
        truth = device.home.quantities(device.kind)
        compared = 0
        for point in device.data["points"]:
            if "model" not in point or point["id"] not in truth:
                continue
            group = models[point["model"]]
            if "group" in point:
                group = group.groups[point["group"]][point.get("index", 0)]
            found = group.points[point["point"]]
            step = 10.0 ** (found.sf_value or 0)
            assert found.cvalue * point.get("sign", 1) == pytest.approx(truth[point["id"]], abs=0.51 * step + 1e-9), (
                point["id"]
            )
            compared += 1
        assert compared >= 14
        assert models[1].Mn.value == device.data.get("makes", ["WattMesh"])[0]
    finally:
        await device.stop()


async def test_a_control_of_the_700_models_reverts_as_the_standard_says():
    """704 WSet with its reversion timer: our driver writes, another library sees it, the device falls back by itself."""
    from wattmesh_drivers.factory import ConnectionModel, create_driver
    from wattmesh_drivers.template import load_template

    clock = ManualClock(FIRST_NS + 13 * 3600 * 10**9)
    device = SimulatedDevice("sunspec_battery", clock)
    await device.serve()
    where = ConnectionModel(host="127.0.0.1", port=device.server.port)
    made = create_driver("d", load_template("sunspec_battery"), where, clock, rated_power_w=5000)

    def control():
        client = sunspec2.modbus.client.SunSpecModbusClientDeviceTCP(
            slave_id=1, ipaddr="127.0.0.1", ipport=device.server.port
        )
        try:
            client.scan()
            model = client.models[704][0]
            return model.WSet.cvalue, model.WSetEna.value, model.WSetMod.value, model.WSetRvrtTms.value
        finally:
            client.close()

    try:
        await made.connect()
        await made.control("active_power_w", 1500)
        assert await asyncio.get_running_loop().run_in_executor(None, control) == (-1500.0, 1, 1, 60)
        assert device.home.battery.active_w == 1500
        await clock.advance(59)
        await device.step()
        assert device.home.battery.active_w == 1500
        await clock.advance(3)
        await device.step()
        assert device.home.battery.active_w == 0
    finally:
        await made.close()
        await device.stop()
