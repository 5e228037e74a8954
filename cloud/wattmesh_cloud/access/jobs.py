"""Longer work: one after the other, with progress, and files as results. A bounded number is kept."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattmesh_a2a.clock import Clock
from wattmesh_a2a.errors import ConflictError, WattmeshError

from wattmesh_cloud.access.model import Principal

log = logging.getLogger(__name__)

_KEPT = 200
_WAITING = 20

Progress = Callable[[float, str], None]
Work = Callable[[Path, Progress], Awaitable[None]]
"""Writes its files into a folder and tells how far it is."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One piece of work."""

    id: str
    kind: str
    tenant: str
    asked_by: str
    asked_ns: int
    state: str = "waiting"
    progress: float = 0.0
    detail: str = ""
    files: list[str] = field(default_factory=list)
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Jobs:
    """See the module.

    Args:
        folder: Gets a folder a job; what an earlier process left there is removed.
        clock: The fleet's.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        shutil.rmtree(folder, ignore_errors=True)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._queue: asyncio.Queue[tuple[Job, Work]] = asyncio.Queue(_WAITING)

    def ask(self, who: Principal, kind: str, work: Work) -> Job:
        """Queue work; raises :class:`ConflictError` where too much waits."""
        job = Job(
            id=secrets.token_hex(8), kind=kind, tenant=who.tenant, asked_by=who.actor, asked_ns=self._clock.utc_ns()
        )
        try:
            self._queue.put_nowait((job, work))
        except asyncio.QueueFull:
            raise ConflictError(f"{_WAITING} jobs wait already; try again when some are done") from None
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT:
            identity, _ = self._jobs.popitem(last=False)
            shutil.rmtree(self._folder / identity, ignore_errors=True)
        return job

    def list(self, who: Principal) -> list[Job]:
        """The tenant's, newest first."""
        return [one for one in reversed(self._jobs.values()) if who.host or one.tenant == who.tenant]

    def get(self, who: Principal, identity: str) -> Job | None:
        """One of the tenant's."""
        job = self._jobs.get(identity)
        return job if job is not None and (who.host or job.tenant == who.tenant) else None

    def file(self, job: Job, name: str) -> Path | None:
        """A result's path."""
        return self._folder / job.id / name if name in job.files and re.fullmatch(r"[\w.-]+", name) else None

    async def run(self) -> None:
        """Work, for ever."""
        while True:
            job, work = await self._queue.get()
            folder = self._folder / job.id
            folder.mkdir(parents=True, exist_ok=True)
            job.state = "running"

            def progress(share: float, detail: str, job: Job = job) -> None:
                job.progress, job.detail = min(max(share, job.progress), 1.0), detail[:200]

            try:
                await work(folder, progress)
            except (WattmeshError, OSError, ValueError) as error:
                job.state, job.detail = "failed", str(error)[:300]
                log.warning("job %s (%s) failed: %s", job.id, job.kind, error)
            else:
                job.state, job.progress = "done", 1.0
                job.files = sorted(path.name for path in folder.iterdir())
