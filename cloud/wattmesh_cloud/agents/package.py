"""The zip that AgentCore Runtime starts: our packages and their dependencies for arm64 and Python 3.13, the same bytes each time.

python -m wattmesh_cloud.agents.package OUT.zip
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from wattmesh_a2a.errors import UnavailableError

PACKAGES = ("wattmesh_a2a", "wattmesh_cloud")
REQUIREMENTS = (
    "strands-agents>=1.60,<2",
    "bedrock-agentcore>=1.25,<2",
    "pydantic>=2.10,<3",
    "pyyaml>=6.0",
    "numpy>=1.26",
)
PLATFORM, PYTHON = "manylinux2014_aarch64", "3.13"
MOST_BYTES = 250_000_000
"""Zipped, of a runtime's code."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_OURS = frozenset({".py", ".md", ".yaml", ".json", ".typed"})
"""Compiled kernels are for another machine, and no agent needs one."""


def build(out: Path, requirements: tuple[str, ...] = REQUIREMENTS) -> int:
    """Write the zip; how many files are in it.

    Raises:
        UnavailableError: pip cannot get the dependencies for that platform, or the zip is too large.
    """
    with TemporaryDirectory() as folder:
        if requirements:
            _install(Path(folder), requirements)
        files = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}
        for name in PACKAGES:
            root = Path(str(resources.files(name)))
            for path in root.rglob("*"):
                if path.is_file() and path.suffix in _OURS and "__pycache__" not in path.parts:
                    files[f"{name}/{path.relative_to(root)}"] = path
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                info = zipfile.ZipInfo(name, _EPOCH)
                info.external_attr = 0o644 << 16
                archive.writestr(info, files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    if out.stat().st_size > MOST_BYTES:
        raise UnavailableError(
            f"{out} has {out.stat().st_size / 1e6:.0f} MB; a runtime takes {MOST_BYTES / 1e6:.0f} MB"
        )
    return len(files)


def _install(folder: Path, requirements: tuple[str, ...]) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    platform = ["--platform", PLATFORM, "--python-version", PYTHON, "--only-binary=:all:", *requirements]
    done = subprocess.run([*command, *platform], capture_output=True, text=True, check=False)  # noqa: S603 - our own list
    if done.returncode:
        raise UnavailableError(f"pip: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Build the agents' code for AgentCore Runtime.")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    count = build(arguments.out)
    print(f"{arguments.out}: {count} files, {arguments.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
