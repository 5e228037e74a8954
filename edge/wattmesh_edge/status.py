"""``wattmesh gateway status``: how a site does now, from its own page's state; else what it told last, and when that was."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_edge.config import Site

_WITHIN_S = 3.0


def live_state(site: Site) -> dict[str, Any] | None:
    """What the running gateway shows at ``/api/now``; none where it does not run, or shows no page."""
    local = site.model.local
    if local is None or not local.port:
        return None
    host = f"[{local.host}]" if ":" in local.host else local.host
    try:
        with urllib.request.urlopen(f"http://{host}:{local.port}/api/now", timeout=_WITHIN_S) as answer:
            found = json.load(answer)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("site") == site.model.site else None


def last_report(site: Site) -> tuple[float, dict[str, Any]]:
    """Unix time and content of the report on disk.

    Raises:
        ConfigurationError: There is none yet, or it cannot be read.
    """
    path = site.state / "report.json"
    try:
        return path.stat().st_mtime, json.loads(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} does not exist: the gateway has not run yet") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def status_lines(site: Site) -> list[str]:
    """The state as text, live where that can be had."""
    state = live_state(site)
    if state is not None:
        return _live(state)
    moment, report = last_report(site)
    why = "does not run" if site.model.local is not None else "shows no page (local: {port: …} in the site file)"
    told = datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="seconds")
    totals, records = report.get("totals", {}), report.get("records", {})
    lines = [f"{site.model.site} {why}; what it told last, at {told}:"]
    lines.append(f"  cycles {totals.get('cycles', 0)}, setpoints applied {totals.get('commands_applied', 0)}")
    lines.append(f"  batches that wait for the cloud {report.get('batches_pending', 0)}")
    lines += [f"  {name.replace('.', ' ')} {value}" for name, value in sorted(records.items()) if "segment" not in name]
    return lines


def _live(state: dict[str, Any]) -> list[str]:
    def watt(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.0f} W"

    now = state["now"]
    lines = [
        f"{state['site']}: {'healthy' if state['healthy'] else 'NOT healthy'}, cloud {'there' if state['cloud'] else 'away'}",
        f"  grid {watt(now['grid_w'])}{' (estimated)' if now['estimated'] else ''}, PV {watt(now['pv_w'])}, "
        f"battery {watt(now['battery_w'])}, load {watt(now['load_w'])}"
        + ("" if now["soc_percent"] is None else f", charge {now['soc_percent']:.0f} %"),
    ]
    for one in state["devices"]:
        lines.append(f"  {one['id']}: {'answers' if one['answers'] else 'DOES NOT ANSWER'} ({one['template']})")
    for one in state["decisions"]:
        limit = f", limited by {one['limit']}" if one["limit"] else ""
        lines.append(f"  {one['asset']}: {watt(one['target_w'])} by {one['by']}{limit} ({one['outcome']})")
    lines += [f"  {one['severity'].upper()}: {one['text']}" for one in state["alarms"]]
    return lines
