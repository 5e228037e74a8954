"""E-mail of an alarm, by the standard library's client."""

from __future__ import annotations

import smtplib
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

from wattmesh_a2a.alarms import Alarm
from wattmesh_a2a.errors import ConfigurationError, UnavailableError

from wattmesh_cloud.notifications.config import MailModel

_TIMEOUT_S = 15.0


def letter(model: MailModel, alarm: Alarm, now_s: float, link: str | None) -> EmailMessage:
    """The message; line ends in an alarm's text cannot make headers."""
    over = alarm.cleared_ns is not None
    text = " ".join(alarm.text.split())
    message = EmailMessage()
    message["From"], message["To"] = model.sender, ", ".join(model.to)
    message["Subject"] = f"[{alarm.severity}{', over' if over else ''}] {alarm.site_id}: {text}"[:180]
    message["Date"] = format_datetime(datetime.fromtimestamp(now_s, tz=UTC))
    message["Message-ID"] = make_msgid(domain=model.sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    raised = datetime.fromtimestamp(alarm.raised_ns / 1e9, tz=UTC)
    lines = [
        text,
        "",
        f"Site: {alarm.site_id}",
        f"Asset: {alarm.asset_id or '-'}",
        f"Severity: {alarm.severity}",
        f"Since: {raised:%Y-%m-%d %H:%M:%S} UTC",
        *(
            [f"Over: {datetime.fromtimestamp(alarm.cleared_ns / 1e9, tz=UTC):%Y-%m-%d %H:%M:%S} UTC"]
            if alarm.cleared_ns
            else []
        ),
        *(["", link] if link else []),
    ]
    message.set_content("\n".join(lines))
    return message


def send(model: MailModel, password: str | None, message: EmailMessage) -> None:
    """Hand a message to the server; blocks.

    Raises:
        ConfigurationError: The server refuses us or the message for good.
        UnavailableError: It does not take it now.
    """
    context = ssl.create_default_context()
    try:
        if model.tls == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(model.server, model.port, timeout=_TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(model.server, model.port, timeout=_TIMEOUT_S)
        with server:
            if model.tls == "starttls":
                server.starttls(context=context)
            if model.user is not None:
                server.login(model.user, password or "")
            server.send_message(message)
    except (smtplib.SMTPAuthenticationError, smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused) as error:
        raise ConfigurationError(f"{model.server} refuses: {type(error).__name__}") from error
    except smtplib.SMTPResponseException as error:
        if 500 <= error.smtp_code < 600:
            raise ConfigurationError(f"{model.server} refuses: {error.smtp_code}") from error
        raise UnavailableError(f"{model.server}: {error.smtp_code}") from error
    except (OSError, smtplib.SMTPException) as error:
        raise UnavailableError(f"{model.server}: {type(error).__name__}") from error
