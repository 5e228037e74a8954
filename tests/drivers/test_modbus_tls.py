"""Modbus Security (TLS): who is trusted, and what a certificate that does not work says."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.devices import Quality
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.template import load_template
from wattmesh_simulators.device import SimulatedDevice
from wattmesh_simulators.modbus_server import _TcpConnection

NOW = datetime.now(tz=UTC)


class Authority:
    """Makes certificates into a folder."""

    def __init__(self, folder, name="ca"):
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key.public_key(), None, authority=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def _sign(self, name, public, host, *, authority=False, days=(-1, 1)):
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + timedelta(days=days[0]))
            .not_valid_after(NOW + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name, host="127.0.0.1", **more):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), host, **more)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths


@pytest.fixture
async def serve():
    running = []

    async def start(certificate, key, *, clients=None):
        device = SimulatedDevice("eastron_sdm630", ManualClock())
        await device.serve()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _TcpConnection(device.server), "127.0.0.1", 0, ssl=context)
        running.append((server, device))
        return server.sockets[0].getsockname()[1]

    yield start
    for server, device in running:
        server.close()
        await device.stop()
        await server.wait_closed()


def driver(port, **tls):
    where = ConnectionModel(host="127.0.0.1", port=port, tls=tls)
    return create_driver("d", load_template("eastron_sdm630"), where, ManualClock())


async def test_a_trusted_device_is_read(serve, tmp_path):
    authority = Authority(tmp_path)
    made = driver(await serve(*authority.issue("meter")), ca=authority.path)
    await made.connect()
    assert await made.poll()
    assert set(made.qualities) == {Quality.GOOD}
    await made.close()


async def test_a_device_that_asks_for_our_certificate_gets_it_and_nobody_else_is_let_in(serve, tmp_path):
    authority = Authority(tmp_path)
    port = await serve(*authority.issue("meter"), clients=authority.path)
    ours = authority.issue("gateway")
    made = driver(port, ca=authority.path, certificate=ours[0], key=ours[1])
    await made.connect()
    assert await made.poll()
    await made.close()
    stranger = driver(port, ca=authority.path)
    with pytest.raises((UnavailableError, ConfigurationError)):
        await stranger.connect()
    assert not await stranger.poll()
    await stranger.close()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("another authority", "its certificate is refused: .*(self.signed|unable to get)"),
        ("another host", "its certificate is refused: .*mismatch"),
        ("expired", "its certificate is refused: .*expired"),
    ],
)
async def test_a_device_that_is_not_trusted_is_one_clear_error(serve, tmp_path, what, told):
    authority = Authority(tmp_path)
    other = Authority(tmp_path, "other")
    certificate = {
        "another authority": lambda: other.issue("meter"),
        "another host": lambda: authority.issue("meter", host="127.0.0.2"),
        "expired": lambda: authority.issue("meter", days=(-3, -2)),
    }[what]()
    made = driver(await serve(*certificate), ca=authority.path)
    with pytest.raises(ConfigurationError, match=told):
        await made.connect()
    assert not await made.poll()
    await made.close()


async def test_a_server_that_speaks_no_tls_is_not_read(tmp_path):
    authority = Authority(tmp_path)
    device = SimulatedDevice("eastron_sdm630", ManualClock())
    await device.serve()
    made = driver(device.server.port, ca=authority.path)
    with pytest.raises(UnavailableError):
        await made.connect()
    await made.close()
    await device.stop()


@pytest.mark.parametrize("field", ["ca", "certificate"])
async def test_files_that_do_not_work_are_one_line_with_the_cause(tmp_path, field):
    authority = Authority(tmp_path)
    (tmp_path / "none.pem").write_text("nothing")
    tls = {"ca": authority.path, "certificate": None, "key": None} | {field: tmp_path / "none.pem"}
    made = driver(1, **tls)
    with pytest.raises(ConfigurationError, match=rf"tls\.{field}: .*none\.pem") as caught:
        await made.connect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"host": "h", "serial": "/dev/x"}, "one way"),
        ({"serial": "/dev/x", "tls": {"ca": "x"}}, "tls goes with host"),
        ({"host": "h", "framing": "rtu", "tls": {"ca": "x"}}, "tls goes with host"),
        ({"url": "opc.tcp://h", "proxy_port": 1502}, "proxy_port goes with Modbus"),
        ({"url": "opc.tcp://h", "user": "me"}, "user and password_file"),
    ],
)
def test_connections_that_cannot_be(fields, told):
    with pytest.raises(ValueError, match=told):
        ConnectionModel.model_validate(fields)
