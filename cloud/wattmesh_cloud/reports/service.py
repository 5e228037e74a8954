"""Reports at their time: when a day, a week or a month is over, its PDF is written for each tenant; kept, bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.errors import WattmeshError

from wattmesh_cloud.access.model import HOST_TENANT
from wattmesh_cloud.reports.figures import build, span_of
from wattmesh_cloud.store.base import Table
from wattmesh_cloud.view import CloudView

log = logging.getLogger(__name__)

_LOOK_NS = 900 * NS_PER_S
_AFTER_NS = 3 * 3600 * NS_PER_S
"""Real meters may settle late: a report is written three hours after its period."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,120}\.(pdf|json)")


class ReportsModel(StrictModel):
    """Which reports are written by themselves."""

    schedule: tuple[Literal["day", "week", "month"], ...] = ()
    keep: int = Field(default=400, ge=1, le=10_000, description="files of a tenant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A report that was written."""

    name: str
    bytes: int
    written_s: float


class ReportService:
    """See the module.

    Args:
        model: The section of the file.
        view: Where the figures come from.
        folder: Gets a folder a tenant.
        tenants: Their sites; the host's are all.
        clock: The fleet's.
    """

    def __init__(
        self, model: ReportsModel, view: CloudView, folder: Path, tenants: Mapping[str, frozenset[str]], clock: Clock
    ) -> None:
        self._model, self._view, self._folder, self._tenants, self._clock = model, view, folder, tenants, clock

    async def run(self) -> None:
        """Look every quarter of an hour, for ever."""
        with self._clock.runner():
            while True:
                try:
                    await asyncio.to_thread(self.write_due)
                except (WattmeshError, OSError) as error:
                    log.error("scheduled reports are behind: %s", error)
                await self._clock.sleep_until_ns(self._clock.monotonic_ns() + _LOOK_NS)

    def write_due(self) -> list[Path]:
        """Write what is due and not there; blocks."""
        made = []
        zone = self._view.market.engine.tariff.zone()
        now = self._clock.utc_ns()
        local = datetime.fromtimestamp((now - _AFTER_NS) // NS_PER_S, tz=UTC).astimezone(zone)
        for period in self._model.schedule:
            start_today, _ = span_of(period, local.date().isoformat(), zone)
            before = datetime.fromtimestamp(start_today // NS_PER_S, tz=UTC).astimezone(zone) - timedelta(hours=1)
            day = before.date().isoformat()
            start, _ = span_of(period, day, zone)
            if not self._began_before(start):
                continue
            for tenant in (HOST_TENANT, *sorted(self._tenants)):
                path = self._path(tenant, period, start)
                if not path.exists():
                    made.append(self._write(tenant, period, day, path))
        return made

    def _began_before(self, start_ns: int) -> bool:
        """Whether anything was metered in the period: a new fleet gets no empty reports."""
        end = start_ns + 86_400 * NS_PER_S
        return any(
            self._view.store.query(Table.CONSUMER_METRICS, site, start_ns, end, limit=1)
            for site in self._view.site_ids()
        )

    def _path(self, tenant: str, period: str, start_ns: int) -> Path:
        zone = self._view.market.engine.tariff.zone()
        first = datetime.fromtimestamp(start_ns // NS_PER_S, tz=UTC).astimezone(zone)
        return self._folder / tenant / f"{period}-{first:%Y-%m-%d}.pdf"

    def _write(self, tenant: str, period: str, day: str, path: Path) -> Path:
        from wattmesh_cloud.reports.document import write_pdf

        own = self._tenants.get(tenant)
        sites = [site for site in self._view.site_ids() if own is None or site in own]
        figures = build(self._view, period, day, sites, title=f"{tenant}: report of a {period}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pdf(figures, path)
        path.with_suffix(".json").write_text(json.dumps(figures.plain()), encoding="utf-8")
        files = sorted(path.parent.glob("*.pdf"), key=lambda one: one.stat().st_mtime)
        for old in files[: -self._model.keep]:
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
        return path

    def kept(self, tenant: str) -> list[Kept]:
        """A tenant's, newest first."""
        found = [path for path in (self._folder / tenant).glob("*.pdf") if path.is_file()]
        rows = [Kept(name=path.name, bytes=path.stat().st_size, written_s=path.stat().st_mtime) for path in found]
        return sorted(rows, key=lambda one: one.name, reverse=True)

    def file(self, tenant: str, name: str) -> Path | None:
        """One of a tenant's files."""
        path = self._folder / tenant / name
        return path if _NAME.fullmatch(name) and path.is_file() else None
