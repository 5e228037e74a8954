"""The notifications section of the cloud's file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Address = Annotated[str, Field(pattern=r"^[^@\s<>,;]{1,64}@[A-Za-z0-9.-]{1,190}$")]


class Filter(StrictModel):
    """Which alarms somebody wants."""

    least: Literal["info", "warning", "critical"] = "warning"
    sites: tuple[SiteName, ...] = Field(default=(), description="empty for every site")


class WebhookModel(Filter):
    """A program that is told by HTTP POST."""

    url: str = Field(
        pattern=r"^https?://", max_length=500, description="https; http only for a loopback receiver in a test"
    )
    secret: Path
    """A file with the key that messages are signed by (Standard Webhooks)."""
    private: bool = False
    """Whether the receiver may be on a private network. Never loopback or link-local, but where ``loopback`` says so."""
    loopback: bool = False


class MailModel(Filter):
    """People who are told by e-mail."""

    server: str = Field(min_length=1, max_length=200)
    port: int = Field(default=587, ge=1, le=65535)
    tls: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password: Path | None = None
    sender: Address
    to: tuple[Address, ...] = Field(min_length=1, max_length=50)


class NotificationsModel(StrictModel):
    """Who is told of alarms."""

    webhooks: tuple[WebhookModel, ...] = Field(default=(), max_length=20)
    mail: tuple[MailModel, ...] = Field(default=(), max_length=20)
