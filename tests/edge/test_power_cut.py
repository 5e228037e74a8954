"""The power of the disk is cut: what was told to be durable is there, once. A killed process shows none of this."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def disk(tmp_path):
    """A folder, on a machine that can mount an image of a file system."""
    image, place = tmp_path / "try.img", tmp_path / "try"
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    place.mkdir()
    image.touch()
    os.truncate(image, 8 * 2**20)
    for command in (["mkfs.ext4", "-q", "-F", image], ["mount", "-o", "loop", image, place], ["umount", place]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"{command[0]} does not work here: no loop devices")
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def test_what_was_told_to_be_durable_outlives_power_cuts(disk):
    script = Path(__file__).parents[1] / "support" / "power_cuts.py"
    for what in ("outbox", "journal"):
        folder = disk / what
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, str(script), what, str(folder), "40", "11"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        assert found["cuts"] == 40
        assert found["told"] > 40, "something was at stake"
        assert (found["lost"], found["doubled"]) == (0, 0), what
