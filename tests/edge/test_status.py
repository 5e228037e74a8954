"""What an owner is told at the command line: now where the gateway runs, and else what it told last and when."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_edge.cli import gateway, why
from wattmesh_edge.config import load_site
from wattmesh_edge.local import LocalServer, as_json
from wattmesh_edge.status import status_lines

EXAMPLE = Path(__file__).parents[2] / "firmware_configs" / "sites" / "home-1.yaml"
NOW = {
    "site": "home-1", "healthy": False, "cloud": False,
    "now": {"grid_w": 812.4, "estimated": True, "pv_w": None, "battery_w": -500.0, "load_w": 1312.0, "soc_percent": 41.0},
    "devices": [{"id": "meter", "template": "sunspec_meter_203", "answers": False}],
    "decisions": [{"asset": "battery", "target_w": -500.0, "by": "consumer:plan", "limit": "rated power", "outcome": "Failed"}],
    "alarms": [{"severity": "critical", "text": "string 2 is 0"}],
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "home-1.yaml"
    path.write_text(EXAMPLE.read_text())
    return path


async def test_the_running_gateway_is_asked(file, capsys):
    server = LocalServer({"/api/now": lambda _: as_json(NOW)})
    await server.start("127.0.0.1", 0)
    file.write_text(file.read_text() + f"\nlocal: {{port: {server.port}}}\n")
    try:
        assert await asyncio.to_thread(gateway, ["status", str(file)]) == 0
    finally:
        await server.stop()
    assert capsys.readouterr().out.splitlines() == [
        "home-1: NOT healthy, cloud away",
        "  grid 812 W (estimated), PV unknown, battery -500 W, load 1312 W, charge 41 %",
        "  meter: DOES NOT ANSWER (sunspec_meter_203)",
        "  battery: -500 W by consumer:plan, limited by rated power (Failed)",
        "  CRITICAL: string 2 is 0",
    ]


def test_one_that_does_not_run_has_told_something_once(file, tmp_path, capsys):
    with pytest.raises(ConfigurationError, match="the gateway has not run yet"):
        gateway(["status", str(file)])
    site = load_site(file)
    site.state.mkdir(parents=True)
    report = site.state / "report.json"
    report.write_text(
        json.dumps(
            {"totals": {"cycles": 7, "commands_applied": 3}, "batches_pending": 2, "records": {"measured.points": 9}}
        )
    )
    os.utime(report, (0, 0))
    lines = status_lines(site)
    assert "shows no page" in lines[0]
    assert "1970-01-01T00:00:00+00:00" in lines[0]
    assert lines[1:] == [
        "  cycles 7, setpoints applied 3",
        "  batches that wait for the cloud 2",
        "  measured points 9",
    ]
    file.write_text(file.read_text() + "\nlocal: {port: 9}\n")
    assert "does not run" in status_lines(load_site(file))[0]
    assert gateway(["status", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["totals"]["cycles"] == 7
    report.write_text("{torn")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        gateway(["status", str(file)])


def test_why_without_a_time_is_now(file):
    with pytest.raises(ConfigurationError, match="has not run yet"):
        why([str(file)])
