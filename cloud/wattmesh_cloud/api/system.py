"""The cloud process itself: health, gateways, ingest, audit, and Prometheus's text."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse
from wattmesh_a2a.envelope import Address
from wattmesh_a2a.topics import Topics

from wattmesh_cloud import audit as chain
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, Admin, HostReader, Limit, Reader
from wattmesh_cloud.view import CloudView

Facts = Callable[[], dict[str, Any]]


def system_routes(view: CloudView, facts: Facts, audit: Path) -> APIRouter:
    """The routes. ``facts`` gives what only the composition root knows; ``audit`` is the log's file."""
    routes = APIRouter(tags=["system"], responses=PROBLEMS)

    @routes.get("/health")
    async def get_health() -> m.Health:
        """Whether the cloud works, and its time. Asks nobody who they are."""
        return m.Health(status="ok", time_ns=view.clock.utc_ns())

    @routes.get("/gateways")
    async def list_gateways(who: Reader) -> list[m.GatewayRow]:
        """The own sites' gateways."""
        return [_gateway(view, site) for site in who.visible(view.site_ids())]

    @routes.get("/system")
    async def get_system(who: HostReader) -> m.System:
        """Ingest, backlog, versions, addresses."""
        address = Address(view.market.address.org, view.market.address.unit, "ingest")
        known = facts()
        return m.System(
            version=importlib.metadata.version("wattmesh"),
            time_ns=view.clock.utc_ns(),
            ingest=dict(view.ingest.counts),
            dead_letters=int(known.get("dead_letters", 0)),
            messages=dict(known.get("messages", {})),
            lake_files=int(known.get("lake_files", 0)),
            a2a_address=str(address),
            a2a_card=Topics().discovery(address),
            openadr=known.get("openadr"),
            public_url=known.get("public_url"),
        )

    @routes.get("/audit")
    async def list_audit(
        who: Admin, limit: Limit = 100, before: Annotated[int | None, Query(ge=0, le=2**53)] = None
    ) -> list[m.AuditRow]:
        """Who did what, newest first; read on with `before` set to the last row's sequence."""
        return await asyncio.to_thread(_audit_rows, audit, limit, before)

    @routes.get("/audit/verdict")
    async def verify_audit(who: Admin) -> m.AuditVerdict:
        """Whether the log's chain is whole."""
        verdict = await asyncio.to_thread(lambda: chain.verify(audit.read_bytes()))
        return m.AuditVerdict(entries=verdict.entries, last_hash=verdict.last_hash, fault=verdict.fault)

    return routes


def metrics_routes(view: CloudView) -> APIRouter:
    """Prometheus's text, at the place where it looks."""
    routes = APIRouter(tags=["system"], responses=PROBLEMS)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def get_metrics(who: HostReader) -> str:
        """Figures for Prometheus; give it a token of a viewer."""
        return metrics_text(view)

    return routes


def metrics_text(view: CloudView) -> str:
    """All figures in Prometheus's text format."""
    out: list[str] = []

    def family(name: str, kind: str, about: str, rows: Sequence[tuple[str, float]]) -> None:
        if rows:
            out.append(f"# HELP {name} {about}")
            out.append(f"# TYPE {name} {kind}")
            out.extend(f"{name}{labels} {value}" for labels, value in rows)

    for name, value in sorted(view.ingest.counts.items()):
        family(f"wattmesh_ingest_{name}_total", "counter", "Since the process began.", [("", value)])
    sites = view.site_ids()
    family(
        "wattmesh_site_online", "gauge", "1 while the gateway is connected.",
        [(f'{{site="{site}"}}', int(site in view.online)) for site in sites],
    )  # fmt: skip
    for key, unit in (("grid_w", "watts"), ("pv_w", "watts"), ("battery_w", "watts"), ("load_w", "watts"),
                      ("soc_percent", "percent"), ("frequency_hz", "hertz")):  # fmt: skip
        newest = [(site, live.flows.get(key)) for site in sites if (live := view.live.sites.get(site)) is not None]
        known = [(f'{{site="{site}"}}', number) for site, number in newest if number is not None]
        family(f"wattmesh_site_{key.rpartition('_')[0]}_{unit}", "gauge", "Newest reading; positive into it.", known)
    standing = [(site, view.alarms.of(site)) for site in sites]
    family(
        "wattmesh_site_alarms", "gauge", "Alarms that stand.",
        [
            (f'{{site="{site}",severity="{severity}"}}', sum(one.alarm.severity == severity for one in alarms))
            for site, alarms in standing
            for severity in ("critical", "warning")
        ],
    )  # fmt: skip
    health = [(site, one) for site, one in sorted(view.health.items())]
    for field, about in (("batches_pending", "Batches that wait at the gateway."), ("resident_mb", "Memory, MB."),
                         ("cycle_overrun_max_ms", "Longest overrun of a control cycle, ms.")):  # fmt: skip
        rows = [(f'{{site="{site}"}}', getattr(one, field)) for site, one in health]
        family(f"wattmesh_gateway_{field}", "gauge", about, rows)
    snapshot: Any = view.market.snapshot()
    for name in ("trades", "slots_cleared", "slots_settled"):
        family(f"wattmesh_market_{name}", "gauge", "Of the area, in memory.", [("", snapshot[name])])
    engine = view.market.engine
    family("wattmesh_market_halted", "gauge", "1 while no orders are taken.", [("", int(engine.halted is not None))])
    family("wattmesh_market_ledger_sum_units", "gauge", "Zero, always.", [("", engine.ledger.total())])
    family(
        "wattmesh_market_rejects_total", "counter", "Refused orders by reason.",
        [(f'{{reason="{reason}"}}', count) for reason, count in sorted(engine.rejects.items())],
    )  # fmt: skip
    return "\n".join(out) + "\n"


def _gateway(view: CloudView, site: str) -> m.GatewayRow:
    health, announced = view.health.get(site), view.announcements.get(site) or {}
    names = (
        "resident_mb",
        "cycles",
        "cycle_overrun_max_ms",
        "batches_pending",
        "commands_sent",
        "commands_applied",
        "time_ns",
    )
    return m.GatewayRow.model_validate(
        {
            "site_id": site,
            "online": site in view.online,
            "software": announced.get("software"),
            **{name: None if health is None else getattr(health, name) for name in names},
        }
    )


def _audit_rows(path: Path, limit: int, before: int | None) -> list[m.AuditRow]:
    """Reads from the start, a line at a time: the log is small against the rest, and nothing of it is held."""
    newest: deque[m.AuditRow] = deque(maxlen=limit)
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry = json.loads(line)
            if before is not None and entry["sequence"] >= before:
                break
            newest.append(m.AuditRow.model_validate(entry))
    return list(newest)[::-1]
