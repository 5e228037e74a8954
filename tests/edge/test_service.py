"""What the service manager, Prometheus and a browser are told, and what the unit and the install script promise."""

import asyncio
import configparser
import json
import os
import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest
from wattmesh_a2a.devices import Quality
from wattmesh_edge.history import MINUTE_NS, History
from wattmesh_edge.image import BatteryImage, SiteImage, Value
from wattmesh_edge.local import LocalServer, metrics_text, page
from wattmesh_edge.service import ServiceManager

SYSTEMD = Path(__file__).parents[2] / "edge" / "systemd"


def test_only_a_complete_cycle_feeds_the_watchdog_and_the_first_makes_ready(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(2)
        service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "15000000"})
        assert service.watchdog_s == 15
        service.status("starting")
        service.healthy("works")
        service.healthy("works")
        service.stopping()
        told = [manager.recv(500).decode() for _ in range(4)]
        assert told == [
            "STATUS=starting",
            "WATCHDOG=1\nREADY=1\nSTATUS=works",
            "WATCHDOG=1",
            "STOPPING=1\nSTATUS=leaving the site safe",
        ]
        service.close()


def test_without_a_service_manager_nobody_is_told():
    service = ServiceManager({})
    service.healthy("works")
    gone = ServiceManager({"NOTIFY_SOCKET": "/nowhere/at/all"})
    gone.healthy("works")
    gone.close()


async def get(port, path, *, host="127.0.0.1", method="GET"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body.decode()


async def test_the_local_server_reads_only_and_only_for_loopback_names():
    def broken(_query):
        raise ZeroDivisionError

    server = LocalServer({"/": page, "/broken": broken})
    await server.start("127.0.0.1", 0)
    try:
        status, body = await get(server.port, "/")
        assert status == 200
        assert "<!doctype html>" in body
        assert "http://" not in body.replace("http://www.w3.org/2000/svg", ""), (
            "the page fetches nothing from elsewhere"
        )
        assert (await get(server.port, "/", host="evil.example"))[0] == 403
        assert (await get(server.port, "/", method="POST"))[0] == 405
        assert (await get(server.port, "/nothing"))[0] == 404
        assert (await get(server.port, "/broken"))[0] == 500
        assert (await get(server.port, "/"))[0] == 200, "and goes on"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert await reader.read() == b"", "a request that is too long is dropped"
        writer.close()
    finally:
        await server.stop()


def test_metrics_are_in_prometheus_text_format():
    kind, body = metrics_text(
        [
            ("a_watts", "gauge", "Power.", {"of": 'x"y\n'}, 1.5),
            ("a_watts", "gauge", "Power.", {"of": "z"}, None),
            ("b_total", "counter", "Things.", {}, 3),
        ]
    )
    assert kind.startswith("text/plain; version=0.0.4")
    assert body.decode().splitlines() == [
        "# HELP a_watts Power.", "# TYPE a_watts gauge", 'a_watts{of="x\\"y\\n"} 1.5',
        "# HELP b_total Things.", "# TYPE b_total counter", "b_total 3",
    ]  # fmt: skip


def image(time_ns, grid_w):
    grid = None if grid_w is None else Value(value=grid_w, quality=Quality.GOOD)
    return SiteImage(
        time_ns=time_ns, monotonic_ns=time_ns, grid_power_w=grid, pv_power_w=-100.0, frequency_hz=50.0,
        batteries={"b": BatteryImage(active_power_w=0.0, soc_percent=40.0)},
    )  # fmt: skip


def test_history_is_means_of_minutes_and_unknown_is_not_zero(tmp_path):
    db = sqlite3.connect(tmp_path / "db")
    history = History(db)
    for second in range(0, 150, 30):
        history.note(image(second * 10**9, None if second < 60 else float(second)))
    rows = history.between(0, 10 * MINUTE_NS)
    assert [(row.time_ns // MINUTE_NS, row.grid_w, row.pv_w) for row in rows] == [(0, None, -100.0), (1, 75.0, -100.0)]
    history.flush()
    db.commit()
    (hour,) = History(db).between(0, 60 * MINUTE_NS, 60 * MINUTE_NS)
    assert (hour.grid_w, hour.soc_percent) == (75.0, 40.0)


def test_the_unit_is_closed_and_its_watchdog_is_on():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(SYSTEMD / "wattmesh-gateway@.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) <= 30
    assert service["Restart"] == "always"
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces", "MemoryDenyWriteExecute"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert int(service["LimitRTPRIO"]) > 0
    assert "LimitMEMLOCK" in service
    assert int(service["TimeoutStopSec"]) >= 30, "the last cycle, the safe state and the drain fit"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path):
    unit = tmp_path / "wattmesh-gateway@.service"
    unit.write_text((SYSTEMD / unit.name).read_text().replace("@PREFIX@/bin/wattmesh", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    newer = ("RestartSteps", "RestartMaxDelaySec")  # of systemd 254; older ones ignore them
    told = [line for line in done.stderr.splitlines() if unit.name in line and not any(name in line for name in newer)]
    assert told == []


@pytest.fixture
def wheels(tmp_path):
    """A wheel in name only and a Python that makes venvs without a network: what the script does with them is under test."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "wattmesh-0.1.0-py3-none-any.whl").write_text("")
    python = tmp_path / "python3"
    python.write_text(
        '#!/bin/sh\nif [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin"; printf "#!/bin/sh\\nexit 0\\n" > "$3/bin/python";'
        ' chmod +x "$3/bin/python"; fi\nexit 0\n'
    )
    python.chmod(0o755)
    (tmp_path / "site.yaml").write_text("version: 1\nsite: home-9\n")
    return folder


def script(tmp_path, *arguments):
    environment = {**os.environ, "DESTDIR": str(tmp_path / "root"), "PYTHON": str(tmp_path / "python3")}
    return subprocess.run(
        ["/bin/sh", str(SYSTEMD / "install.sh"), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_install_script_installs_twice_and_can_be_undone(tmp_path, wheels):
    root, site = tmp_path / "root", tmp_path / "site.yaml"
    root.mkdir()
    (root / "etc").mkdir()
    (root / "etc" / "others").write_text("not ours")
    assert "home-9" in script(tmp_path, "plan", wheels, site).stdout
    assert not (root / "opt").exists(), "a plan changes nothing"
    for _ in range(2):
        done = script(tmp_path, "install", wheels, site)
        assert done.returncode == 0, done.stderr
    unit = (root / "etc/systemd/system/wattmesh-gateway@.service").read_text()
    assert "@PREFIX@" not in unit
    assert (root / "opt/wattmesh/bin/wattmesh").stat().st_mode & 0o111
    (root / "etc/wattmesh/home-9.yaml").write_text("changed by the owner")
    assert script(tmp_path, "install", wheels, site).returncode == 0
    assert (root / "etc/wattmesh/home-9.yaml").read_text() == "changed by the owner"
    assert script(tmp_path, "uninstall").returncode == 0
    assert (root / "etc/wattmesh/home-9.yaml").exists()
    assert not (root / "opt/wattmesh").exists()
    assert script(tmp_path, "uninstall").returncode == 2, "and says that there is nothing"
    script(tmp_path, "install", wheels, site)
    assert script(tmp_path, "uninstall", "--purge").returncode == 0
    left = sorted(str(one.relative_to(root)) for one in root.rglob("*") if one.is_file())
    assert left == ["etc/others"]


def test_the_install_script_says_what_is_wrong(tmp_path, wheels):
    assert "no wattmesh-*.whl" in script(tmp_path, "install", tmp_path, tmp_path / "site.yaml").stderr
    (tmp_path / "bad.yaml").write_text("version: 1\n")
    assert "names no site" in script(tmp_path, "install", wheels, tmp_path / "bad.yaml").stderr


def test_json_log_lines_are_objects():
    import logging

    from wattmesh_edge.cli import JsonLines

    record = logging.LogRecord("x", logging.WARNING, "f", 1, "a %s\nb", ("c",), None)
    fields = json.loads(JsonLines("home-1").format(record))
    assert (fields["text"], fields["level"], fields["site"]) == ("a c\nb", "warning", "home-1")
