"""Live data as server-sent events: made once a change for all who look, sent to each within its own rights.

Topics: ``fleet`` (rows of the sites that changed), ``site:ID`` (all points of a site), ``frequency`` (samples of 10 Hz or more),
``market`` (open products). A viewer that is too slow misses steps and then gets everything anew; none makes another wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import StreamingResponse

from wattmesh_cloud.access.door import Access
from wattmesh_cloud.access.model import Principal
from wattmesh_cloud.api.deps import PROBLEMS, Reader, known_site
from wattmesh_cloud.frequency_live import FrequencyLive
from wattmesh_cloud.market.marketdata import market_data
from wattmesh_cloud.view import CloudView

TICK_S = 0.2
_SLOW_EVERY = 5
"""Ticks between two looks at what changes slowly: the clock, states without a new reading, the market."""
_VIEWERS = 500
_WAITING = 32
_CHECK_S = 15.0

Topic = Annotated[
    list[Annotated[str, Query(pattern=r"^(fleet|frequency|market|site:[A-Za-z0-9_.-]{1,64})$")]],
    Query(min_length=1, max_length=10, description="fleet, frequency, market, site:ID", examples=[["fleet"]]),
]


@dataclass(slots=True, eq=False)
class _Viewer:
    who: Principal
    topics: frozenset[str]
    queue: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(_WAITING))
    behind: bool = True
    """Needs everything, not the changes."""


class LiveHub:
    """See the module. Works only while somebody looks."""

    def __init__(self, view: CloudView, frequency: FrequencyLive) -> None:
        self._view, self._frequency = view, frequency
        self._viewers: set[_Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._times: dict[str, int] = {}
        self._frequency_at: dict[str, int] = {}
        self._tick = 0

    @property
    def watching(self) -> int:
        """How many look."""
        return len(self._viewers)

    def wants_frequency(self) -> bool:
        """Whether somebody looks at the frequency."""
        return any("frequency" in viewer.topics for viewer in self._viewers)

    def sites_wanted(self) -> frozenset[str]:
        """Sites somebody has open."""
        return frozenset(topic[5:] for viewer in self._viewers for topic in viewer.topics if topic.startswith("site:"))

    def join(self, who: Principal, topics: frozenset[str]) -> _Viewer:
        """Look; raises 503 where too many do."""
        if len(self._viewers) >= _VIEWERS:
            raise HTTPException(503, "too many viewers; close some pages", {"Retry-After": "10"})
        viewer = _Viewer(who, topics)
        self._viewers.add(viewer)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="live")
        return viewer

    def leave(self, viewer: _Viewer) -> None:
        """Look no more."""
        self._viewers.discard(viewer)

    async def _run(self) -> None:
        while self._viewers:
            self._tick += 1
            self.step(slow=self._tick % _SLOW_EVERY == 0)
            await asyncio.sleep(TICK_S)

    def step(self, *, slow: bool) -> None:
        """Send what is new since the last step."""
        changed = self._changes(slow=slow)
        cache: dict[tuple[object, ...], bytes] = {}
        samples = self._frequency.since(self._frequency_at) if self.wants_frequency() else {}
        for viewer in list(self._viewers):
            if viewer.behind:
                viewer.behind = False
                self._send_all(viewer, cache)
            else:
                self._send_changes(viewer, changed, cache, slow=slow)
            if "frequency" in viewer.topics and samples:
                self._put(viewer, cache, ("frequency", viewer.who.sites), lambda v=viewer: _event(
                    "frequency", {site: rows for site, rows in samples.items() if v.who.sees(site)}
                ))  # fmt: skip

    def _changes(self, *, slow: bool) -> frozenset[str]:
        view, changed = self._view, set()
        for site in view.site_ids() if slow else list(view.live.sites):
            live = view.live.sites.get(site)
            time_ns = live.time_ns if live is not None else 0
            if slow or time_ns != self._times.get(site):
                self._times[site] = time_ns
                row = view.site(site)
                if row != self._rows.get(site):
                    self._rows[site] = row
                    changed.add(site)
        return frozenset(changed)

    def _send_all(self, viewer: _Viewer, cache: dict[tuple[object, ...], bytes]) -> None:
        if not self._rows:
            self._changes(slow=True)
        everything = frozenset(self._rows)
        self._send_changes(viewer, everything, cache, slow=True, first=True)

    def _send_changes(
        self, viewer: _Viewer, changed: frozenset[str], cache: dict[tuple[object, ...], bytes], *, slow: bool,
        first: bool = False,
    ) -> None:  # fmt: skip
        who = viewer.who
        if "fleet" in viewer.topics and (changed or slow):
            self._put(
                viewer, cache, ("fleet", first, who.sites), lambda: _event("fleet", self._fleet(who, changed, first))
            )
        if "market" in viewer.topics and slow:
            self._put(viewer, cache, ("market",), lambda: _event("market", self._market()))
        for topic in viewer.topics:
            site = topic[5:] if topic.startswith("site:") else None
            if site is not None and site in changed:
                self._put(viewer, cache, ("site", site), lambda s=site: _event("site", self._site(s)))

    def _put(
        self,
        viewer: _Viewer,
        cache: dict[tuple[object, ...], bytes],
        key: tuple[object, ...],
        make: Callable[..., bytes],
    ) -> None:
        if key not in cache:
            cache[key] = make()
        try:
            viewer.queue.put_nowait(cache[key])
        except asyncio.QueueFull:
            while not viewer.queue.empty():
                viewer.queue.get_nowait()
            viewer.behind = True

    def _fleet(self, who: Principal, changed: frozenset[str], first: bool) -> dict[str, Any]:
        grid = self._view.grid
        values = list(grid.frequency.values())
        return {
            "time_ns": self._view.clock.utc_ns(),
            "all": first,
            "sites": [_short(self._rows[site]) for site in sorted(changed) if who.sees(site)],
            "grid": {
                "status": str(grid.status),
                "reason": grid.status_reason,
                "frequency_hz": sum(values) / len(values) if values else None,
            },
            "records": self._view.ingest.counts["records"],
            "halted": self._view.market.engine.halted,
        }

    def _site(self, site: str) -> dict[str, Any]:
        live = self._view.live.sites.get(site)
        return {**self._rows[site], "points": {} if live is None else live.points}

    def _market(self) -> dict[str, Any]:
        return asdict(market_data(self._view.market.engine, self._view.clock.utc_ns()))


def live_routes(view: CloudView, hub: LiveHub, access: Access) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["live"], responses=PROBLEMS)

    @routes.get(
        "/live",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events"}},
    )
    async def get_live(request: Request, who: Reader, topic: Topic) -> StreamingResponse:
        """Live data as server-sent events named as the topics are; `expired` as the last one where the session is over."""
        for one in topic:
            if one.startswith("site:"):
                known_site(view, who, one[5:])
        viewer = hub.join(who, frozenset(topic))

        async def events() -> AsyncIterator[bytes]:
            checked = asyncio.get_running_loop().time()
            try:
                yield b"retry: 2000\n\n"
                while not await request.is_disconnected():
                    try:
                        async with asyncio.timeout(_CHECK_S):
                            event = await viewer.queue.get()
                    except TimeoutError:
                        event = b": still here\n\n"
                    yield event
                    now = asyncio.get_running_loop().time()
                    if now - checked >= _CHECK_S:
                        checked = now
                        if who.session is not None and not access.store.still_open(who.session):
                            yield _event("expired", {})
                            return
            finally:
                hub.leave(viewer)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return routes


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row with as many digits as anybody reads."""
    flows = {name: None if value is None else round(value, 3) for name, value in row["flows"].items()}
    return {**row, "flows": flows}
