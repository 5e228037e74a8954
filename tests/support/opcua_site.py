"""OPC UA devices for tests: templates made up on the spot, a server, drivers on one loop, and certificates."""

import asyncio
import contextlib
import copy
import datetime as dt
import ipaddress
from pathlib import Path

import yaml
from asyncua.server.internal_server import InternalServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from wattmesh_a2a.clock import ManualClock
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import Template
from wattmesh_simulators.demo_fleet import free_ports
from wattmesh_simulators.opcua_server import OpcUaServer

NAMESPACE = "urn:test:device"
_standard_nodes = {}
_CHANGED_IN_PLACE = {2254, 2255, 2256, 2260}
"""ServerArray, NamespaceArray, ServerStatus and its BuildInfo."""
_make_standard_nodes = InternalServer.load_standard_address_space


async def _standard_nodes_once(server, shelf_file=None):
    """Making the standard's thousands of nodes takes asyncua more than a second of CPU: tests make them once and copy them."""
    if not _standard_nodes:
        await _make_standard_nodes(server, shelf_file)
        _standard_nodes.update(_copied(server.aspace._nodes))
        return
    server.aspace._nodes.update(_copied(_standard_nodes))


def _copied(nodes):
    """What a server changes is copied: nodes, their references, the holders of their values, and values that change in place."""
    made = {}
    for node_id, node in nodes.items():
        made[node_id] = one = copy.copy(node)
        one.references = list(node.references)
        one.attributes = {}
        for name, held in node.attributes.items():
            one.attributes[name] = fresh = copy.copy(held)
            fresh.datachange_callbacks = {}
            if node_id.Identifier in _CHANGED_IN_PLACE:
                fresh.value = copy.deepcopy(held.value)
    return made


InternalServer.load_standard_address_space = _standard_nodes_once


_USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True, key_cert_sign=True,
    key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def template_data(points, settings=(), **fields):
    """A load with these points; the first is its power."""
    return {
        "template": 1, "id": "test_load", "kind": "load", "manufacturer": "Test", "products": ["test"], "protocol": "opcua",
        "namespace": NAMESPACE, "points": list(points), "settings": list(settings), "sources": ["test"], **fields,
    }  # fmt: skip


def numbered(count):
    """``active_power_w`` and as many more points as make ``count``."""
    names = ["active_power_w", *(f"p{index}" for index in range(1, count))]
    return [{"id": name, "node": f"s=Load.{name}", "type": "double"} for name in names]


class Device:
    """A server of a template, and drivers to it."""

    def __init__(self, folder, data, **server):
        self.values = {}
        self.written = {}
        self.clock = ManualClock()
        self.now_s = 1000.0
        """The drivers' real time, moved by tests."""
        self.template = Template.model_validate(data)
        file = folder / f"{id(self)}.yaml"
        file.write_text(yaml.safe_dump(data))
        self.server = OpcUaServer(str(file), lambda: self.values, self.written.__setitem__, clock=self.clock, **server)
        (self.port,) = free_ports(1)
        self.drivers = []

    def driver(self, template=None, host="127.0.0.1", **connection):
        url = f"opc.tcp://{host}:{self.port}/"
        driver = create_driver(
            "dev",
            template or self.template,
            ConnectionModel(url=url, **connection),
            self.clock,
            monotonic=lambda: self.now_s,
        )
        self.drivers.append(driver)
        return driver

    async def __aenter__(self):
        await self.server.start(self.port)
        return self

    async def __aexit__(self, *_):
        for driver in self.drivers:
            await driver.close()
        await self.server.stop()

    async def show(self, **values):
        self.values.update(values)
        await self.server.refresh()


async def until(done, seconds=10.0):
    """Wait for a condition, which may be a coroutine function; fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while True:
            found = done()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


async def answers(device, driver):
    """Poll until the driver has connected again, whose pauses the test skips."""

    async def there():
        device.now_s += 60
        return await driver.poll()

    await until(there)


@contextlib.contextmanager
def no_new_tasks():
    """What a client begins inside has ended at its end; servers of the same loop have their own pace."""
    before = asyncio.all_tasks()
    yield
    left = [
        task for task in asyncio.all_tasks() - before if "asyncua/server" not in task.get_coro().cr_code.co_filename
    ]
    assert not left, left


class Certificates:
    """Certificates in a folder; keys are made once, as making them is slow."""

    _keys: dict[str, rsa.RSAPrivateKey] = {}

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: dict[str, x509.Certificate] = {}

    def key(self, name):
        if name not in self._keys:
            self._keys[name] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return self._keys[name]

    def make(self, name, *, uri=None, host="127.0.0.1", issuer=None, ca=False, first=2020, last=2040, usage=True):
        """Makes ``name.der``, ``name.pem`` and their keys ``name.key.der`` and ``name.key.pem``; gives the folder's paths."""
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        names = [x509.IPAddress(ipaddress.ip_address(host))]
        if uri is not None:
            names.append(x509.UniformResourceIdentifier(uri))
        key = self.key(name)
        signer = issuer or name
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.made[issuer].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime(first, 1, 1, tzinfo=dt.UTC))
            .not_valid_after(dt.datetime(last, 1, 1, tzinfo=dt.UTC))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key(signer).public_key()), critical=False
            )
            .add_extension(
                x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
        )
        if usage:
            builder = builder.add_extension(_USAGE, critical=True)
        certificate = builder.sign(self.key(signer), hashes.SHA256())
        self.made[name] = certificate
        for encoding, suffix in ((Encoding.DER, "der"), (Encoding.PEM, "pem")):
            (self.folder / f"{name}.{suffix}").write_bytes(certificate.public_bytes(encoding))
            content = key.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
            (self.folder / f"{name}.key.{suffix}").write_bytes(content)
        return self.folder / f"{name}.der"
