"""Build of the Cython kernels; everything else is declared in pyproject.toml.

A missing C compiler is one clear line and never a silent, slow install: the gateway's reflex has no interpreted
stand-in that could keep its deadlines.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = {
    "wattmesh_edge.reflex.estimators": "edge/wattmesh_edge/reflex/estimators.pyx",
    "wattmesh_edge.reflex.decide": "edge/wattmesh_edge/reflex/decide.pyx",
    "wattmesh_edge.reflex.wire": "edge/wattmesh_edge/reflex/wire.pyx",
    "wattmesh_edge.reflex.kernel": "edge/wattmesh_edge/reflex/kernel.pyx",
    "wattmesh_a2a.columnar": "a2a/wattmesh_a2a/columnar.pyx",
    "wattmesh_drivers.decode": "drivers/wattmesh_drivers/decode.pyx",
    "wattmesh_cloud.market.book": "cloud/wattmesh_cloud/market/book.pyx",
}

if sys.maxsize < 2**32:  # a 32-bit gateway runs no market, and the book wants 128-bit products
    del KERNELS["wattmesh_cloud.market.book"]


def compiler_is_missing() -> bool:
    """Whether the compiler that Python was built for (or $CC) cannot be found on PATH."""
    import os

    command = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(command) is None and shutil.which("cc") is None


building = {"build_ext", "bdist_wheel", "editable_wheel", "install", "develop", "build"} & set(sys.argv)
if building and compiler_is_missing():
    raise SystemExit(
        "wattmesh: no C compiler found, and the frequency kernel needs one. "
        "Install it (Debian, Raspberry Pi OS: sudo apt install build-essential python3-dev) and run this again."
    )

setup(
    ext_modules=cythonize(
        [
            Extension(name, [path], extra_compile_args=["-O3", "-fno-math-errno"], libraries=["m", "pthread"])
            for name, path in KERNELS.items()
            if Path(path).exists()
        ],
        language_level=3,
        compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False},
        include_path=["edge", "drivers", "cloud", "a2a"],
        build_dir="build",
    ),
)
