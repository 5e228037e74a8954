"""A release is tried in a process of its own before it runs, watched, and taken back; the owner's software always stays."""

import os
import sys
import zipfile
from pathlib import Path

import pytest
import wattmesh_a2a
from wattmesh_a2a.errors import ConfigurationError, ConflictError
from wattmesh_edge.releases import VARIABLE, Releases

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "firmware_configs" / "sites" / "home-1.yaml"
PACKAGES = ("a2a/wattmesh_a2a", "drivers/wattmesh_drivers", "edge/wattmesh_edge", "firmware_configs")


def wheel(path, version, edit=lambda name, content: content):
    """A wheel of this very working tree under another version."""
    with zipfile.ZipFile(path, "w") as archive:
        for package in PACKAGES:
            for file in sorted((ROOT / package).rglob("*")):
                if not file.is_file() or file.suffix in {".pyc", ".c"}:
                    continue
                name = str(file.relative_to((ROOT / package).parent))
                content = file.read_bytes()
                if name == "wattmesh_a2a/__init__.py":
                    content = content.replace(wattmesh_a2a.__version__.encode(), version.encode())
                archive.writestr(name, edit(name, content))
    return path


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "releases", EXAMPLE, running="")


def test_a_release_that_checks_this_site_is_tried_and_then_stays(releases, tmp_path):
    releases.stage("9.1.0", wheel(tmp_path / "good.whl", "9.1.0"))
    assert (releases.trial, releases.wanted()) == ("9.1.0", "9.1.0")
    taken = Releases(tmp_path / "releases", EXAMPLE, running="9.1.0")
    taken.enter([])  # it is that already: nothing is replaced
    taken.accept()
    again = Releases(tmp_path / "releases", EXAMPLE, running="")
    assert again.wanted() == "9.1.0"
    assert again.history() == [("9.1.0", "on trial"), ("9.1.0", "good")]
    with pytest.raises(ConflictError, match=r"9\.0\.9 is not newer than 9\.1\.0"):
        again.stage("9.0.9", tmp_path / "good.whl")


def test_a_process_that_dies_in_a_trial_is_the_old_software_again(releases, tmp_path):
    releases.stage("9.1.0", wheel(tmp_path / "good.whl", "9.1.0"))
    Releases(tmp_path / "releases", EXAMPLE, running="9.1.0").enter([])
    # killed here; the service manager starts the installed software
    again = Releases(tmp_path / "releases", EXAMPLE, running="")
    assert again.wanted() == ""
    assert again.history()[-1] == ("9.1.0", "taken back: the gateway ended while it was on trial")


def test_another_installed_software_is_the_owner_s_word(releases, tmp_path, caplog):
    releases.stage("9.1.0", wheel(tmp_path / "good.whl", "9.1.0"))
    Releases(tmp_path / "releases", EXAMPLE, running="9.1.0").accept()
    newer = Releases(tmp_path / "releases", EXAMPLE, running="", installed="9.2.0")
    assert newer.wanted() == ""
    assert "the installed software is 9.2.0 now" in caplog.text


@pytest.mark.parametrize(
    ("version", "edit", "reason"),
    [
        (
            "9.1.0",
            lambda n, c: b"raise ImportError('glibc')" if n == "wattmesh_edge/gateway.py" else c,
            "ImportError: glibc",
        ),
        (
            "9.1.0",
            lambda n, c: c.replace(b"    devices: tuple", b"    gadgets: tuple"),
            "cannot run",
        ),
        (
            "9.1.0",
            lambda n, c: c.replace(b"9.1.0", b"9.0.0") if n == "wattmesh_a2a/__init__.py" else c,
            "another software",
        ),
        ("nine", lambda n, c: c, "no version"),
        ("0.0.1", lambda n, c: c, "not newer"),
    ],
    ids=["import", "site", "version", "number", "older"],
)
def test_what_cannot_work_here_never_runs(releases, tmp_path, version, edit, reason):
    path = wheel(tmp_path / "bad.whl", version, edit)
    with pytest.raises((ConfigurationError, ConflictError), match=reason):
        releases.stage(version, path)
    assert (releases.trial, releases.wanted()) == ("", "")
    assert not (tmp_path / "releases" / version).exists()


@pytest.mark.parametrize("name", ["../outside.py", "/etc/outside.py", "a/../../outside.py", "..\\outside.py"])
def test_a_wheel_does_not_write_outside(releases, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ConfigurationError, match="leads outside"):
        releases.stage("9.1.0", tmp_path / "evil.whl")
    assert not list(tmp_path.rglob("outside.py"))
    (tmp_path / "none.whl").write_bytes(b"no zip")
    with pytest.raises(ConfigurationError, match="not a zip"):
        releases.stage("9.1.0", tmp_path / "none.whl")


def test_the_process_becomes_the_release_with_its_own_arguments(releases, tmp_path, monkeypatch):
    releases.stage("9.1.0", wheel(tmp_path / "good.whl", "9.1.0"))
    seen = []

    def replaced(program, arguments, environment):
        seen.append((program, arguments, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", replaced)
    with pytest.raises(SystemExit):
        releases.enter(["gateway", "run", "x.yaml"])
    ((program, arguments, environment),) = seen
    assert program == sys.executable
    assert arguments[-3:] == ["gateway", "run", "x.yaml"]
    assert environment[VARIABLE] == "9.1.0"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "releases" / "9.1.0")
