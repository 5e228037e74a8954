"""The driver against a server of another make: node-opcua, in a process of its own."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from opcua_site import Certificates, until
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.control import Applied
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_drivers.driver import as_mapping
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import Template
from wattmesh_simulators.demo_fleet import free_ports

ROOT = Path(__file__).parents[2]
MODULES = Path(os.environ.get("WATTMESH_NODE_PEERS", ROOT / ".wattmesh" / "node")) / "node_modules"
TYPES = {"double": 1.5, "float": 2.5, "boolean": 1.0, "int16": -3.0, "uint16": 4.0, "int32": -5.0, "uint32": 6.0,
         "int64": -7.0, "uint64": 8.0}  # fmt: skip
WRITTEN = {"double": -0.25, "float": 0.5, "boolean": 0.0, "int16": -300.0, "uint16": 65535.0, "int32": -70000.0,
           "uint32": 4e9, "int64": -(2.0**40), "uint64": 2.0**50}  # fmt: skip


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Its port, its certificate, and a way to set its values."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the OPC UA peer node-opcua is not tested")
    if not (MODULES / "node-opcua").is_dir():
        pytest.skip(
            f"node-opcua is not in {MODULES}: npm install node-opcua there, or name its folder in WATTMESH_NODE_PEERS"
        )
    (port,) = free_ports(1)
    script = Path(__file__).with_name("opcua_peer.cjs")
    with subprocess.Popen(
        [node, str(script), str(port), str(tmp_path_factory.mktemp("pki"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"NODE_PATH": str(MODULES)},
    ) as process:
        try:
            line = process.stdout.readline()
            while line and not line.startswith("{"):
                line = process.stdout.readline()
            assert line, "node-opcua did not start"
            process.certificate = Path(json.loads(line)["certificate"])
            process.port = port
            yield process
            process.stdin.close()
            process.wait(timeout=20)
        finally:
            process.kill()


def set_value(peer, name, value):
    peer.stdin.write(f"{name} {value}\n")
    peer.stdin.flush()


def template(**fields):
    points = [{"id": "active_power_w", "path": "Load/{urn:test:other}Power", "type": "double"}]
    points += [{"id": f"{name}_x", "path": f"Load/{name}", "type": name} for name in list(TYPES)[:4]]
    points += [{"id": f"{name}_x", "node": f"s=Load.{name}", "type": name} for name in list(TYPES)[4:]]
    points += [
        {"id": f"{name}_x", "node": f"s=Load.{name}", "type": "double"} for name in ("doubtful", "broken", "absent")
    ]
    settings = [{"id": f"{name}_set", "node": f"s=Load.{name}", "type": name} for name in TYPES]
    controls = {
        f"set_{name}": {"steps": [{"setting": f"{name}_set", "value": "target"}], "readback": f"{name}_set",
                        "minimum": -1e18, "maximum": 1e18} for name in TYPES
    }  # fmt: skip
    return Template.model_validate(
        {
            "template": 1, "id": "peer", "kind": "load", "manufacturer": "node-opcua", "products": ["x"], "protocol": "opcua",
            "namespace": "urn:test:device", "points": points, "settings": settings, "controls": controls, "sources": ["test"],
            "connection": {"timeout_ms": 5000}, **fields,
        }
    )  # fmt: skip


@pytest.fixture
async def made():
    drivers = []

    def make(peer, model, **connection):
        url = ConnectionModel(url=f"opc.tcp://127.0.0.1:{peer.port}", **connection)
        drivers.append(create_driver("peer", model, url, ManualClock(time.time_ns())))
        return drivers[-1]

    yield make
    for driver in drivers:
        await driver.close()


async def test_values_of_all_types_by_node_and_path_in_chunks(peer, made):
    driver = made(peer, template())
    await driver.connect()
    assert driver._session.limits == {"read": 7, "monitor": 5, "translate": 3}
    assert await driver.poll()
    found = as_mapping(driver)
    assert found["active_power_w"] == (77.5, Quality.GOOD)
    assert {name: found[f"{name}_x"] for name in TYPES} == {
        name: (value, Quality.GOOD) for name, value in TYPES.items()
    }
    assert found["doubtful_x"] == (9.0, Quality.UNCERTAIN)
    assert found["broken_x"][1] == found["absent_x"][1] == Quality.BAD
    assert dict(driver.audit.missing) == {"absent_x": "BadNodeIdUnknown"}
    assert driver.audit.accounted == driver.audit.points == 13
    assert driver.source_times_ns[0] > 1_600_000_000 * 10**9


async def test_every_type_is_written_and_read_back(peer, made):
    driver = made(peer, template())
    await driver.connect()
    for values in (WRITTEN, TYPES):
        for name, value in values.items():
            assert await driver.control(f"set_{name}", value) == Applied(value=value)
        assert await driver.poll()
        assert {name: as_mapping(driver)[f"{name}_x"][0] for name in TYPES} == values


async def test_a_subscription_and_what_was_granted(peer, made, caplog):
    model = template(subscription={"sampling_ms": 20, "publishing_ms": 60, "queue_size": 1})
    points = [
        point.model_copy(update={"dead_band": 5.0}) if point.id == "active_power_w" else point for point in model.points
    ]
    driver = made(peer, model.model_copy(update={"points": tuple(points)}))
    await driver.connect()
    assert driver.granted.heartbeat
    assert driver.granted.publishing_ms == 60
    assert min(driver.granted.sampling_ms.values()) >= 20
    assert max(driver.granted.sampling_ms.values()) > 20
    assert "sampling every" in caplog.text
    assert not driver.granted.no_server_dead_band
    assert (driver.audit.delivered, driver.audit.accounted) == (12, 13)
    for value, shown in ((79.0, 77.5), (90.0, 90.0), (77.5, 77.5)):
        set_value(peer, "power", value)

        async def there(shown=shown):
            assert await driver.poll()
            return as_mapping(driver)["active_power_w"] == (shown, Quality.GOOD)

        await until(there)
    before = driver._subscription.beat_at
    await until(lambda: driver._subscription.beat_at > before)


async def test_secured_with_user_and_password(peer, made, tmp_path):
    certificates = Certificates(tmp_path)
    certificates.make("client", uri="urn:test:gateway")
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    password.write_text("pass\n")
    wrong.write_text("no")
    trust = (peer.certificate,)
    for policy in ("Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"):
        for mode in ("sign", "sign_and_encrypt"):
            security = {
                "policy": policy, "mode": mode, "certificate": tmp_path / "client.der", "key": tmp_path / "client.key.der",
                "trust": trust,
            }  # fmt: skip
            driver = made(peer, template(), security=security, user="operator", password_file=password)
            await driver.connect()
            assert await driver.poll()
            assert as_mapping(driver)["int64_x"][0] == -7.0
    with pytest.raises(ConfigurationError, match="refuses the user 'operator' or its password"):
        await made(peer, template(), security=security, user="operator", password_file=wrong).connect()
    security["trust"] = (tmp_path / "client.der",)
    with pytest.raises(ConfigurationError, match="the server's certificate is not trusted"):
        await made(peer, template(), security=security).connect()
    security["trust"] = trust
    security["certificate"] = certificates.make("client", uri="urn:test:gateway", usage=False)
    with pytest.raises(
        ConfigurationError, match="refuses our secure channel; make sure that it trusts our certificate"
    ):
        await made(peer, template(), security=security).connect()
