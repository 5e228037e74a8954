"""The runtime's zip: the same bytes each time, and it starts as AgentCore starts it."""

import hashlib
import subprocess
import sys
import zipfile

import pytest
from wattmesh_cloud.agents.package import build
from wattmesh_cloud.agents.roster import ROSTER


def test_the_zip_is_the_same_twice_and_starts_where_the_template_says(tmp_path):
    hashes = set()
    for name in ("a.zip", "b.zip"):
        build(tmp_path / name, ())
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        assert "wattmesh_cloud/agents/agentcore.py" in names
        assert {f"wattmesh_cloud/agents/{agent.folder}/instructions.md" for agent in ROSTER.values()} <= names
        assert not [name for name in names if name.endswith((".so", ".pyc"))]
        archive.extractall(tmp_path / "code")
    pytest.importorskip("strands", reason="the extra agentcore is not installed")
    pytest.importorskip("bedrock_agentcore", reason="the extra agentcore is not installed")
    # Started as the runtime starts it: the file, from the zip alone; without its environment it says what is missing.
    clean = [path for path in sys.path if path.endswith("site-packages")]
    done = subprocess.run(
        [sys.executable, "wattmesh_cloud/agents/agentcore.py"], cwd=tmp_path / "code", capture_output=True, text=True,
        env={"PYTHONPATH": ":".join(clean), "PATH": "/usr/bin:/bin"}, check=False, timeout=60,
    )  # fmt: skip
    assert "WATTMESH_AGENT" in done.stderr, done.stderr
