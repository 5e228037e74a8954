"""Wheels as a site gets them: built, installed by the script without a network, run, and taken away again.

Long: it compiles the kernels, for both architectures where Debian's cross compiler and QEMU are at hand.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {"estimators", "decide", "wire", "kernel", "decode", "book", "columnar"}
PROGRAM = "import sys; from wattmesh_a2a.cli import main; sys.exit(main())"
pytestmark = pytest.mark.long
cross = pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None or shutil.which("qemu-aarch64-static") is None,
    reason="gcc-aarch64-linux-gnu and qemu-user-static are not installed",
)


def run(*command, **more):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=900, **more)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    wanted = ["x86_64"] if os.uname().machine == "x86_64" else ["aarch64"]
    if shutil.which("aarch64-linux-gnu-gcc") and wanted == ["x86_64"]:
        wanted.append("aarch64")
    run(ROOT / "scripts" / "wheels", folder, *wanted, cwd=ROOT)
    return folder


def kernels_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {Path(name).name.split(".")[0] for name in archive.namelist() if name.endswith(".so")}


@pytest.mark.timeout(1200)
def test_the_install_script_makes_a_gateway_that_checks_its_site_and_goes_without_a_trace(wheels, tmp_path):
    here = wheels / os.uname().machine
    (wheel,) = here.glob("wattmesh-*.whl")
    assert "manylinux" in wheel.name
    assert kernels_of(wheel) == KERNELS
    root, site, key = tmp_path / "root", ROOT / "firmware_configs" / "sites" / "home-1.yaml", tmp_path / "home-1.key"
    root.mkdir()
    key.write_text("0" * 64)
    script = ROOT / "edge" / "systemd" / "install.sh"
    environment = {"PATH": "/usr/bin:/bin", "DESTDIR": str(root), "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    run("/bin/sh", script, "install", here, site, key, env=environment)
    python = root / "opt/wattmesh/venv/bin/python"
    clean = {"PATH": "/usr/bin:/bin"}
    where = run(python, "-c", "import wattmesh_edge.reflex.kernel as k; print(k.__file__)", env=clean, cwd=tmp_path)
    assert where.startswith(str(root)), "from the wheel, not from the working tree"
    listed = run(python, "-m", "pip", "list", "--format=freeze", env=clean, cwd=tmp_path).lower()
    for heavy in ("boto3", "numpy", "fastapi", "asyncua"):
        assert f"\n{heavy}==" not in listed, "a gateway stays light"
    checked = run(python, "-c", PROGRAM, "gateway", "check", root / "etc/wattmesh/home-1.yaml", env=clean, cwd=tmp_path)
    assert "home-1" in checked
    run("/bin/sh", script, "uninstall", "--purge", env=environment)
    assert [one for one in root.rglob("*") if one.is_file()] == []


@cross
@pytest.mark.timeout(1200)
def test_the_aarch64_kernels_pass_their_own_tests_under_emulation(wheels, tmp_path):
    (wheel,) = (wheels / "aarch64").glob("wattmesh-*.whl")
    assert kernels_of(wheel) == KERNELS
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    debs, target, site = tmp_path / "debs", tmp_path / "root", tmp_path / "site"
    debs.mkdir()
    names = [
        f"python{version}-minimal",
        f"libpython{version}-minimal",
        f"libpython{version}-stdlib",
        "libc6",
        "libexpat1",
        "zlib1g",
    ]
    names += ["libssl3", "libsqlite3-0", "libffi8", "libgcc-s1", "libstdc++6", "libbz2-1.0", "liblzma5", "libuuid1"]
    fetched = subprocess.run(
        ["apt-get", "download", "-qq", *(f"{one}:arm64" for one in names)],
        cwd=debs,
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"Debian's arm64 packages could not be fetched: {fetched.stderr[-200:]}")
    for deb in debs.glob("*.deb"):
        run("dpkg-deb", "-x", deb, target)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        site,
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
    ]
    pip += ["--python-version", version, "--disable-pip-version-check"]
    pip += [
        f"--platform={tag}_aarch64" for tag in ("manylinux2014", "manylinux_2_28", "manylinux_2_31", "manylinux_2_36")
    ]
    run(*pip, "--no-deps", *sorted((wheels / "aarch64").glob("*.whl")))
    run(*pip, "pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "numpy", "psutil")
    work = tmp_path / "work"
    for name in ("tests/drivers", "tests/reflex", "tests/support", "firmware_configs"):
        shutil.copytree(ROOT / name, work / name)
    shutil.copy(ROOT / "pyproject.toml", work)
    told = run(
        "qemu-aarch64-static", "-E", f"PYTHONPATH={site}", "-L", target, target / f"usr/bin/python{version}", "-m", "pytest", "-q",
        "--noconftest", "-p", "no:cacheprovider", "tests/drivers/test_decode.py", "tests/reflex/test_kernel.py",
        "tests/reflex/test_estimators.py", cwd=work,
    )  # fmt: skip
    assert " passed" in told
    assert "failed" not in told
