"""The functions' zip holds all that the handlers import, and nothing of this machine's Python beside boto3."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LENT = ("boto3", "botocore", "s3transfer", "jmespath", "urllib3", "dateutil", "six")
"""What Lambda's own run time brings."""
HANDLERS = (
    "telemetry",
    "lake",
    "weather_forecast",
    "historical_data",
    "trading_api",
    "grid_management",
    "energy_trading_actions",
)


@pytest.mark.long  # fetches wheels
@pytest.mark.timeout(280)
def test_the_handlers_start_from_the_zip_alone(tmp_path):
    pytest.importorskip("boto3")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    made = subprocess.run(
        [ROOT / "scripts" / "lambda-package", tmp_path / "code.zip", os.uname().machine, version],
        env={**os.environ, "WATTMESH_PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode and "could not be fetched" in made.stderr:
        pytest.skip(made.stderr.splitlines()[-1])
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        archive.extractall(tmp_path / "code")
    lent = tmp_path / "lent"
    lent.mkdir()
    for name in LENT:
        origin = Path(importlib.util.find_spec(name).origin)
        place = origin.parent if origin.name == "__init__.py" else origin
        (lent / place.name).symlink_to(place)
    look = (
        "import sys; sys.path[:0] = sys.argv[1:]; from wattmesh_cloud.tools import lambdas;"
        f"print([callable(getattr(lambdas, name)) for name in {HANDLERS!r}]);"
        "import wattmesh_cloud.store.dynamodb, wattmesh_cloud.lake.s3"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", look, str(tmp_path / "code"), str(lent)],
        env={"AWS_DEFAULT_REGION": "eu-central-1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([True] * len(HANDLERS))
    names = {path.name for path in (tmp_path / "code").iterdir()}
    assert {"wattmesh_a2a", "wattmesh_cloud", "numpy", "pydantic", "yaml", "tzdata"} <= names
    assert not {"boto3", "pyarrow", "duckdb", "fastapi"} & names
