"""Alarms: something a person should know of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How soon a person should look."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A condition that began, and when it ended."""

    id: str
    site_id: str
    asset_id: str | None
    severity: Severity
    text: str
    raised_ns: int
    cleared_ns: int | None = None
