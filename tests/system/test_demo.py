"""The demo as a newcomer runs it: real processes, real sockets, real data; and what happens when processes are killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

WATTMESH = str(Path(sys.executable).with_name("wattmesh"))


def run_demo(folder: Path, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
    command = [WATTMESH, "demo", "--state", str(folder / "demo"), "--http-port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    if expect is not None:
        logs = "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in (folder / "demo/logs").glob("*.log")
        )
        assert done.returncode == expect, f"{done.stdout}\n{done.stderr}\n{logs}"
    return done


def left_behind(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Eight simulated hours of three homes over the evening, with a gateway and the cloud killed on the way."""
    folder = tmp_path_factory.mktemp("killed")
    report = folder / "r.json"
    run_demo(
        folder, "--days", "0.3333333", "--homes", "3", "--start", "2022-09-01T20:00:00+00:00", "--report", str(report),
        "--kill", "home-2@5400", "--kill", "cloud@9000", "--kill", "home-1@16000", "--kill", "cloud@21000",
        expect=None,
    )  # fmt: skip
    assert report.exists(), [log.read_text()[-1500:] for log in (folder / "demo/logs").glob("*.log")]
    return folder, json.loads(report.read_text())


def test_nothing_measured_is_lost_when_processes_are_killed(killed):
    _, report = killed
    assert report["processes"]["home-2"]["starts"] == 2
    assert report["processes"]["cloud"]["starts"] == 3
    assert report["records"]["measured"] > 100_000
    assert report["records"]["lost"] == 0
    for site in report["sites"].values():
        assert site["records"]["stored"] == site["records"]["measured"]


def test_no_trade_is_doubled_and_the_ledger_balances(killed):
    _, report = killed
    market = report["market"]
    assert market["ledger_sum_units"] == 0
    assert market["slots_settled"] > 0
    assert market["trades"] == market["trades_distinct"]
    assert not market["commitments_that_differ"]


def test_the_page_is_written_and_nothing_is_left_behind(killed):
    folder, report = killed
    page = (folder / "r.html").read_text()
    assert "Power of the whole fleet" in page
    assert f"{report['records']['measured']:,}" in page
    assert left_behind(folder) == []


def test_a_healthy_run_meets_every_check(tmp_path):
    report = tmp_path / "r.json"
    run_demo(tmp_path, "--days", "1", "--homes", "2", "--report", str(report))
    data = json.loads(report.read_text())
    assert data["met"] is True
    assert data["records"]["lost"] == 0
    assert data["fleet"]["cost"]["wattmesh"] < data["fleet"]["cost"]["self_consumption"]
    assert data["fleet"]["cost"]["wattmesh"] < data["fleet"]["cost"]["no_battery"]
    assert left_behind(tmp_path) == []


def test_a_taken_port_is_one_clear_line_and_nothing_starts_half(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_demo(tmp_path, "--http-port", str(port), "--homes", "1", expect=2)
    assert str(port) in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert left_behind(tmp_path) == []


def test_an_unreachable_broker_is_one_clear_line(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        done = run_demo(tmp_path, "--broker", f"mqtt://127.0.0.1:{port}", "--homes", "1", expect=2)
    assert f"no broker answers at mqtt://127.0.0.1:{port}" in done.stderr


def test_a_folder_that_no_demo_made_is_never_emptied(tmp_path):
    precious = tmp_path / "demo" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    done = run_demo(tmp_path, "--days", "1", expect=2)
    assert "no demo made" in done.stderr
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--report", "r.json"], "--report needs --days"),
        (["--days", "0"], "above 0"),
        (["--speed", "0.5"], "--speed takes max or a number from 1 on"),
        (["--start", "1999-01-01"], "recorded year"),
        (["--kill", "cloud"], "NAME@SECONDS"),
    ],
)
def test_wrong_options_say_what_is_allowed(tmp_path, arguments, text):
    assert text in run_demo(tmp_path, *arguments, expect=2).stderr
