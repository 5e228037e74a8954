"""The Grafana dashboard asks for figures that Prometheus is really given."""

import json
import re
from pathlib import Path

from wattmesh_a2a.alarms import Alarm, Severity
from wattmesh_a2a.messages import GatewayStatus
from wattmesh_cloud.api.system import metrics_text

DASHBOARD = Path(__file__).parents[2] / "cloud" / "infra" / "grafana.json"


def test_every_query_names_a_figure_that_is_there(view):
    from wattmesh_cloud.live import SiteLive

    flows = {"grid_w": 1.0, "pv_w": -1.0, "battery_w": 0.0, "load_w": 2.0, "soc_percent": 50.0, "frequency_hz": 60.0}
    view.live.sites["ann"] = SiteLive(time_ns=5, flows=flows)
    view.health["ann"] = GatewayStatus(
        site_id="ann", session="s", time_ns=5, cycles=1, cycle_overrun_max_ms=0.0, records_measured=1, batches_pending=0,
        commands_sent=0, commands_applied=0, commands_expired=0, frequency_hz=60.0, rocof_hz_per_s=0.0, frequency_events=0,
        resident_mb=50.0, cpu_s=1.0, plan_source="plan",
    )  # fmt: skip
    view.alarms.on_record(
        "ann", Alarm(id="a", site_id="ann", asset_id=None, severity=Severity.WARNING, text="x", raised_ns=1)
    )
    view.ingest.counts["records"] = 1
    view.market.engine.rejects["bad_price"] += 1
    given = {line.split("{")[0].split(" ")[0] for line in metrics_text(view).splitlines() if not line.startswith("#")}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name for one in panels for target in one["targets"] for name in re.findall(r"wattmesh_\w+", target["expr"])
    }
    assert len(asked) > 10
    assert asked <= given
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels]
    assert len(places) == len(set(places))
