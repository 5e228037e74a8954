"""Secured channels and logins: what works, and one clear line for each thing that does not."""

import logging

import pytest
from asyncua import ua
from asyncua.client.client import Client
from asyncua.client.ua_client import UaClient
from opcua_site import Certificates, Device, numbered, template_data
from wattmesh_a2a.clock import ManualClock
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_drivers.factory import ConnectionModel, create_driver
from wattmesh_drivers.opcua.session import Session
from wattmesh_drivers.template import Template
from wattmesh_simulators.opcua_server import OpcUaSecurity

SERVER_URI, CLIENT_URI = "urn:test:server", "urn:test:gateway"


@pytest.fixture
def certificates(tmp_path):
    folder = tmp_path / "certificates"
    folder.mkdir()
    made = Certificates(folder)
    made.make("server", uri=SERVER_URI)
    made.make("client", uri=CLIENT_URI)
    return made


def secured(certificates, name="server", **options):
    folder = certificates.folder
    return {
        "security": OpcUaSecurity(
            certificate=folder / f"{name}.der", key=folder / f"{name}.key.der", application_uri=SERVER_URI, **options
        )
    }


def ours(certificates, **fields):
    folder = certificates.folder
    return {
        "certificate": folder / "client.pem", "key": folder / "client.key.pem", "trust": (folder / "server.der",), **fields
    }  # fmt: skip


async def refused(device, match, **connection):
    """One line that says why, and is not worth trying again by itself."""
    with pytest.raises(ConfigurationError, match=match) as error:
        await device.driver(**connection).connect()
    assert "\n" not in str(error.value)
    return str(error.value)


async def test_every_policy_in_every_mode(tmp_path, certificates):
    async with Device(tmp_path, template_data(numbered(3)), **secured(certificates)) as device:
        await device.show(p1=1.25)
        for policy in ("Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"):
            for mode in ("sign", "sign_and_encrypt"):
                driver = device.driver(security=ours(certificates, policy=policy, mode=mode))
                await driver.connect()
                assert await driver.poll()
                assert driver.values[1] == 1.25
                client = driver._session._client
                assert client.security_policy.URI.replace("_", "").endswith(policy)
                assert client.security_policy.Mode == {
                    "sign": ua.MessageSecurityMode.Sign, "sign_and_encrypt": ua.MessageSecurityMode.SignAndEncrypt
                }[mode]  # fmt: skip
                assert client.application_uri == CLIENT_URI
                device.now_s += 3000
                assert await driver.poll(), "over a renewed channel as well"
                assert await driver.poll()


async def test_a_server_that_is_not_trusted_is_sent_nothing(tmp_path, certificates, monkeypatch):
    certificates.make("other", uri=SERVER_URI)
    password = tmp_path / "password"
    password.write_text("very secret\n")
    sent = []
    for name in ("create_session", "activate_session"):

        async def spy(client, *args, name=name, **kwargs):
            sent.append(name)

        monkeypatch.setattr(Client, name, spy)
    async with Device(
        tmp_path, template_data(numbered(1)), **secured(certificates), users={"me": "very secret"}
    ) as device:
        security = ours(certificates, trust=(certificates.folder / "other.der",))
        line = await refused(
            device, "certificate is not trusted: CN=server, SHA-256 ([0-9a-f]{2}:){31}[0-9a-f]{2}; if this is the device",
            security=security, user="me", password_file=password,
        )  # fmt: skip
        assert f"put its certificate into {certificates.folder / 'other.der'}" in line
        assert sent == []


async def test_an_authority_vouches_for_a_servers_certificate_and_host(tmp_path, certificates):
    certificates.make("authority", ca=True)
    certificates.make("between", ca=True, issuer="authority")
    certificates.make("server", uri=SERVER_URI, issuer="authority")
    folder = tmp_path / "trust"
    folder.mkdir()
    (folder / "authority.pem").write_bytes((certificates.folder / "authority.pem").read_bytes())
    (folder / "notes.txt").write_text("not a certificate")
    async with Device(tmp_path, template_data(numbered(2)), **secured(certificates)) as device:
        driver = device.driver(security=ours(certificates, trust=(folder,)))
        await driver.connect()
        assert await driver.poll()
    certificates.make("server", uri=SERVER_URI, issuer="authority", host="192.0.2.7")
    async with Device(tmp_path, template_data(numbered(2)), **secured(certificates)) as device:
        await refused(
            device, "signed by a trusted one, and is not for the host 127.0.0.1: CN=server",
            security=ours(certificates, trust=(folder,)),
        )  # fmt: skip


async def test_a_device_that_is_trusted_vouches_for_no_other(tmp_path, certificates):
    certificates.make("device")
    certificates.make("server", uri=SERVER_URI, issuer="device")
    async with Device(tmp_path, template_data(numbered(2)), **secured(certificates)) as device:
        await refused(
            device, "is not trusted", security=ours(certificates, trust=(certificates.folder / "device.der",))
        )


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [(2020, 2021, "expired on 2021-01-01 00:00 UTC"), (2039, 2040, "is valid only from 2039")],
)
async def test_a_certificate_whose_time_is_not_now_is_refused_although_it_is_trusted(
    tmp_path, certificates, first, last, text
):
    certificates.make("server", uri=SERVER_URI, first=first, last=last)
    async with Device(tmp_path, template_data(numbered(1)), **secured(certificates)) as device:
        await refused(device, f"the server's certificate {text}.*CN=server", security=ours(certificates))
        certificates.make("server", uri=SERVER_URI)
        certificates.make("client", uri=CLIENT_URI, first=first, last=last)
        await refused(device, f"our certificate .*client.pem {text}", security=ours(certificates))


async def test_a_server_that_refuses_our_certificate(tmp_path, certificates):
    certificates.make("friend", uri="urn:test:friend")
    trusted = secured(certificates, clients=(certificates.folder / "friend.der",))
    async with Device(tmp_path, template_data(numbered(1)), **trusted) as device:
        await refused(
            device, r"refuses our security \(BadCertificateUntrusted\); make our certificate .*client.pem trusted at the server",
            security=ours(certificates),
        )  # fmt: skip


async def test_a_server_that_shows_a_certificate_without_holding_its_key(tmp_path, certificates, monkeypatch):
    create, activated = UaClient.create_session, []

    async def forged(client, parameters):
        response = await create(client, parameters)
        response.ServerSignature.Signature = bytes(256)
        return response

    async def activate(*_args, **_kwargs):
        activated.append(True)

    monkeypatch.setattr(UaClient, "create_session", forged)
    monkeypatch.setattr(Client, "activate_session", activate)
    async with Device(tmp_path, template_data(numbered(1)), **secured(certificates)) as device:
        await refused(device, "does not hold the key of the certificate that it shows", security=ours(certificates))
    assert not activated


async def test_a_policy_that_the_server_has_not_is_said_with_those_it_has(tmp_path, certificates):
    async with Device(tmp_path, template_data(numbered(1))) as device:
        await refused(
            device,
            "no endpoint with Basic256Sha256 and sign_and_encrypt; it offers None/None_",
            security=ours(certificates),
        )
    async with Device(tmp_path, template_data(numbered(1)), **secured(certificates)) as device:
        await refused(device, "it may ask for connection.security")


async def test_user_and_password(tmp_path, certificates, caplog):
    caplog.set_level(logging.DEBUG)
    password = tmp_path / "password"
    password.write_text("pässwörd-9d2\n")
    users = {"operator": "pässwörd-9d2"}
    async with Device(tmp_path, template_data(numbered(2)), **secured(certificates), users=users) as device:
        for mode in ("sign", "sign_and_encrypt"):
            driver = device.driver(security=ours(certificates, mode=mode), user="operator", password_file=password)
            await driver.connect()
            assert await driver.poll()
        security = ours(certificates)
        await refused(device, "refuses a login without a name", security=security)
        wrong = tmp_path / "wrong"
        wrong.write_text("hunter2-7c1")
        line = await refused(
            device, r"refuses the user 'operator' or its password \(BadUserAccessDenied\)",
            security=security, user="operator", password_file=wrong,
        )  # fmt: skip
        assert "hunter2" not in line
        await refused(device, "refuses the user 'nobody'", security=security, user="nobody", password_file=password)
        absent = tmp_path / "absent"
        await refused(
            device, r"password file .*absent cannot be read \(No such file", security=security, user="operator",
            password_file=absent,
        )  # fmt: skip
    assert "wörd-9d2" not in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_password_goes_unsecured_to_this_machine_only(tmp_path):
    password = tmp_path / "password"
    password.write_text("secret")
    async with Device(tmp_path, template_data(numbered(2)), users={"me": "secret"}) as device:
        driver = device.driver(user="me", password_file=password)
        await driver.connect()
        assert await driver.poll()
    away = ConnectionModel(url="opc.tcp://192.0.2.1:4840", user="me", password_file=password)
    with pytest.raises(ConfigurationError, match="a login needs security"):
        create_driver("d", Template.model_validate(template_data(numbered(1))), away, ManualClock())


async def test_a_password_that_a_server_wants_in_clear_text_is_not_sent(tmp_path, certificates, monkeypatch):
    password = tmp_path / "password"
    password.write_text("secret")
    clear = ua.UserTokenPolicy(
        PolicyId="username", TokenType=ua.UserTokenType.UserName,
        SecurityPolicyUri="http://opcfoundation.org/UA/SecurityPolicy#None",
    )  # fmt: skip
    monkeypatch.setattr(Client, "server_policy", lambda *_: clear)
    monkeypatch.setattr("wattmesh_drivers.opcua.session.is_loopback", lambda _: False)
    async with Device(tmp_path, template_data(numbered(1)), **secured(certificates), users={"me": "secret"}) as device:
        login = {"user": "me", "password_file": password}
        await refused(device, "wants the password unencrypted", security=ours(certificates, mode="sign"), **login)
        await device.driver(security=ours(certificates, mode="sign_and_encrypt"), **login).connect()


async def test_a_user_certificate(tmp_path, certificates):
    folder = certificates.folder
    user = certificates.make("user")
    certificates.make("stranger")
    async with Device(
        tmp_path, template_data(numbered(2)), **secured(certificates), user_certificates=[user]
    ) as device:
        for mode in ("sign", "sign_and_encrypt"):
            driver = device.driver(
                security=ours(certificates, mode=mode),
                user_certificate=folder / "user.pem",
                user_key=folder / "user.key.pem",
            )
            await driver.connect()
            assert await driver.poll()
        await refused(
            device, r"refuses the user certificate .*stranger.der \(BadUserAccessDenied\)", security=ours(certificates),
            user_certificate=folder / "stranger.der", user_key=folder / "stranger.key.der",
        )  # fmt: skip


FILES = {
    "absent": ({"certificate": "nowhere.pem"}, r"certificate .*nowhere.pem cannot be read \(No such file"),
    "no certificate": ({"certificate": "client.key.pem"}, "client.key.pem is no certificate in DER or PEM"),
    "rubbish": ({"certificate": "rubbish"}, "rubbish is no certificate"),
    "no key": ({"key": "rubbish"}, "rubbish is no private key"),
    "another's key": ({"key": "server.key.der"}, "server.key.der is not that of the certificate .*client.pem"),
    "locked key": ({"key": "locked.pem"}, "the key .*locked.pem has a password"),
    "no name": ({"certificate": "nameless.der", "key": "nameless.key.der"}, "CN=nameless.* has no URI"),
    "weak": ({"certificate": "weak.der", "key": "weak.key.der"}, "is no RSA key of 2048 bits or more"),
    "no trust": ({"trust": ("nowhere",)}, r"trust list .*nowhere cannot be read"),
    "bad trust": ({"trust": ("rubbish",)}, "rubbish is no certificate"),
}


async def test_each_file_that_does_not_work_is_one_line(tmp_path, certificates):
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    folder = certificates.folder
    (folder / "rubbish").write_bytes(b"\x30\x03rubbish")
    locked = certificates.key("client").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (folder / "locked.pem").write_bytes(locked)
    certificates.make("nameless")
    certificates._keys["weak"] = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    certificates.make("weak", uri=CLIENT_URI)
    async with Device(tmp_path, template_data(numbered(1)), **secured(certificates)) as device:
        for fields, match in FILES.values():
            changed = {
                name: tuple(folder / one for one in value) if isinstance(value, tuple) else folder / value
                for name, value in fields.items()
            }
            await refused(device, match, security=ours(certificates) | changed)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
async def test_a_password_file_that_holds_none(tmp_path, content):
    file = tmp_path / "password"
    file.write_bytes(content)
    async with Device(tmp_path, template_data(numbered(1)), users={"me": "x"}) as device:
        await refused(device, "the password file .* is (empty|no text)", user="me", password_file=file)


def test_the_hosts_that_need_no_security():
    options = {"timeout_s": 1.0, "security": None, "utc_ns": lambda: 0, "monotonic": lambda: 0.0}
    from wattmesh_drivers.opcua.security import Login

    login = Login(user="me")
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]"):
        Session(f"opc.tcp://{host}:4840", login=login, **options)
    for host in ("localhost.example", "10.0.0.1", "[2001:db8::1]", "127.0.0.1.example"):
        with pytest.raises(ConfigurationError):
            Session(f"opc.tcp://{host}:4840", login=login, **options)


def test_two_ways_to_log_in_are_one_too_many(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        ConnectionModel(
            url="opc.tcp://x", user="me", password_file=tmp_path, user_certificate=tmp_path, user_key=tmp_path
        )
