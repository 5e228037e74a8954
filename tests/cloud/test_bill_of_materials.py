"""The release's bill of materials names what is installed, with versions and licences."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long  # goes through every file of the environment
@pytest.mark.timeout(200)
def test_what_is_installed_is_in_the_bill(tmp_path):
    pytest.importorskip("cyclonedx_py")
    target = tmp_path / "bill.json"
    command = [
        sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"),
        "--mc-type", "application", "--output-format", "JSON", "--output-reproducible", "--output-file", str(target),
        sys.executable,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    bill = json.loads(target.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "wattmesh"
    parts = {one["name"].lower(): one for one in bill["components"]}
    for name in ("paho-mqtt", "pydantic", "numpy", "pyarrow"):
        assert parts[name]["version"] == version(name)
        assert parts[name]["purl"].startswith(f"pkg:pypi/{name}@")
        assert parts[name].get("licenses"), name


def test_the_release_makes_a_bill_of_each_profile():
    script = (ROOT / "scripts" / "bill-of-materials").read_text()
    assert "cyclonedx-py environment" in script
    extras = set((ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n"))
    for profile in ("edge", "pki", "opcua", "cloud", "console", "aws", "mcp", "optimise"):
        assert profile in script
        assert any(line.startswith(f"{profile} = ") for line in extras), profile
