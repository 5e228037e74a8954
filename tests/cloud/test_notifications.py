"""Alarms told outside: webhooks that are signed and go nowhere they must not, e-mail against a local server, retries."""

import base64
import hashlib
import hmac
import json
from email import message_from_bytes

import pytest
from aiosmtpd.controller import Controller
from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.errors import ConfigurationError, UnavailableError
from wattmesh_cloud.notifications import webhook
from wattmesh_cloud.notifications.config import NotificationsModel, WebhookModel
from wattmesh_cloud.notifications.service import Notifications

ALARM = Alarm(
    id="a1", site_id="home-1", asset_id="battery", severity=Severity.WARNING, text="it is\r\nBcc: everybody@example.org warm",
    raised_ns=1_700_000_000 * 10**9,
)  # fmt: skip


@pytest.mark.parametrize(
    ("address", "private", "loopback", "allowed"),
    [
        ("93.184.216.34", False, False, True),
        ("2606:2800:220:1::1", False, False, True),
        ("127.0.0.1", True, False, False),
        ("127.0.0.1", False, True, True),
        ("::1", True, False, False),
        ("::ffff:127.0.0.1", True, False, False),
        ("10.0.0.5", False, False, False),
        ("10.0.0.5", True, False, True),
        ("192.168.1.1", False, False, False),
        ("100.64.0.1", False, False, False),
        ("fd00::1", False, False, False),
        ("169.254.169.254", True, True, False),
        ("::ffff:169.254.169.254", True, True, False),
        ("fe80::1", True, True, False),
        ("0.0.0.0", True, True, False),
        ("224.0.0.1", True, True, False),
    ],
)
def test_where_a_webhook_may_go(address, private, loopback, allowed):
    assert (webhook.forbidden(address, private=private, loopback=loopback) is None) is allowed


async def test_a_name_that_leads_inside_is_not_talked_to(tmp_path):
    async def inside(host, port):
        return ["93.184.216.34", "169.254.169.254"]

    model = WebhookModel(url="https://hooks.example.org/x", secret=tmp_path / "s")
    with pytest.raises(ConfigurationError, match=r"169\.254\.169\.254 is not talked to"):
        await webhook.post(model, b"key", "id", 5, b"{}", resolver=inside)


async def test_plain_text_leaves_the_machine_nowhere(tmp_path):
    async def outside(host, port):
        return ["93.184.216.34"]

    model = WebhookModel(url="http://hooks.example.org/x", secret=tmp_path / "s")
    with pytest.raises(ConfigurationError, match="has to be https"):
        await webhook.post(model, b"key", "id", 5, b"{}", resolver=outside)


@pytest.fixture
def make(tmp_path, real):
    made = []

    def build(**section):
        (tmp_path / "secret").write_text("a key of the receiver\n")
        model = NotificationsModel.model_validate(section)
        made.append(Notifications(model, tmp_path / "notifications.sqlite", real, "https://console.example.org"))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def secret(tmp_path):
    return str(tmp_path / "secret")


class Receiver:
    """A loopback HTTP server that answers as told and keeps what it got."""

    def __init__(self):
        self.got, self.answers = [], []

    async def serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:] if line)
        }
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((head.split(" ")[1], headers, body))
        status = self.answers.pop(0) if self.answers else 204
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver():
    import asyncio

    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/alarms"
    yield made
    server.close()
    await server.wait_closed()


async def test_a_webhook_is_signed_delivered_once_and_says_when_it_is_over(make, secret, receiver):
    told = make(webhooks=[{"url": receiver.url, "secret": secret, "loopback": True}])
    told.on_alarm(ALARM)
    await told.deliver()
    await told.deliver()
    ((path, headers, body),) = receiver.got
    content = json.loads(body)
    assert (path, content["type"], content["data"]["site_id"]) == ("/alarms", "alarm.raised", "home-1")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    right = base64.b64encode(hmac.new(b"a key of the receiver", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{right}"
    assert told.counts == {"delivered": 1, "given_up": 0}


async def test_a_receiver_that_is_away_is_tried_again_and_one_that_refuses_is_not(make, secret, receiver, real, caplog):
    receiver.answers = [503, 302, 204, 410]
    told = make(webhooks=[{"url": receiver.url, "secret": secret, "loopback": True}])
    told.on_alarm(ALARM)
    for wait in (0, 4, 2, 31):
        await real.advance(wait)
        await told.deliver()
    assert len(receiver.got) == 3, "a redirection is not followed, and nothing is tried before its time"
    assert (told.waiting(), told.counts["delivered"]) == (0, 1)
    assert caplog.text.count("does not take alarms now") == 1
    told.on_alarm(ALARM)
    await told.deliver()
    assert (told.waiting(), told.counts["given_up"]) == (0, 1)


async def test_only_what_somebody_wants(make, secret, receiver):
    told = make(
        webhooks=[{"url": receiver.url, "secret": secret, "loopback": True, "least": "critical", "sites": ["home-2"]}]
    )
    told.on_alarm(ALARM)
    assert told.waiting() == 0


async def test_what_waits_survives_a_restart(make, secret, receiver, real):
    receiver.answers = [500]
    first = make(webhooks=[{"url": receiver.url, "secret": secret, "loopback": True}])
    first.on_alarm(ALARM)
    await first.deliver()
    second = make(webhooks=[{"url": receiver.url, "secret": secret, "loopback": True}])
    await real.advance(6)
    await second.deliver()
    assert len(receiver.got) == 2


class Inbox:
    def __init__(self):
        self.letters = []

    async def handle_DATA(self, server, session, envelope):
        self.letters.append(envelope)
        return "250 fine"


@pytest.fixture
def inbox(free_port):
    handler = Inbox()
    controller = Controller(handler, hostname="127.0.0.1", port=free_port)
    controller.start()
    handler.port = free_port
    yield handler
    controller.stop()


async def test_a_letter_arrives_and_its_text_makes_no_headers(make, inbox):
    told = make(
        mail=[
            {
                "server": "127.0.0.1",
                "port": inbox.port,
                "tls": "none",
                "sender": "fleet@example.org",
                "to": ["ann@example.org"],
            }
        ]
    )
    told.on_alarm(ALARM)
    await told.deliver()
    (envelope,) = inbox.letters
    letter = message_from_bytes(envelope.content)
    assert envelope.rcpt_tos == ["ann@example.org"]
    assert letter["Bcc"] is None
    assert letter["Subject"].replace("\r\n", "").startswith("[warning] home-1: it is Bcc: everybody@example.org warm")
    assert "https://console.example.org/site/home-1" in letter.get_payload()


async def test_a_server_that_is_away_is_tried_again(make, free_port):
    told = make(
        mail=[
            {
                "server": "127.0.0.1",
                "port": free_port,
                "tls": "none",
                "sender": "a@example.org",
                "to": ["b@example.org"],
            }
        ]
    )
    told.on_alarm(ALARM)
    await told.deliver()
    assert told.waiting() == 1


def test_a_missing_secret_is_said_at_once(tmp_path, real):
    model = NotificationsModel.model_validate(
        {"webhooks": [{"url": "https://x.example", "secret": str(tmp_path / "none")}]}
    )
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Notifications(model, tmp_path / "n.sqlite", real)


def test_errors_are_typed():
    assert UnavailableError("x").retryable
    assert not ConfigurationError("x").retryable
