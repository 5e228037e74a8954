# Sourced by scripts/demo and scripts/test: makes .venv and keeps it in step with pyproject.toml and the kernels.
# usage: prepare_environment "EXTRA,EXTRA"    (from the repository's root; nothing is fetched when nothing has changed)

say() { printf 'wattmesh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

find_python() {
  local candidate
  for candidate in "${WATTMESH_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and was not found (Debian, Raspberry Pi OS: sudo apt install python3 python3-venv python3-dev)"
}

check_compiler() {  # the frequency kernel is C; without a compiler nothing would be half-installed
  local python=$1 compiler
  compiler=$("$python" -c 'import os, sysconfig; print((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0])')
  command -v "$compiler" >/dev/null || command -v cc >/dev/null ||
    fail "no C compiler found, and the frequency kernel needs one (Debian, Raspberry Pi OS: sudo apt install build-essential)"
  [ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    fail "Python's C headers are missing (Debian, Raspberry Pi OS: sudo apt install python3-dev)"
}

digest() { cat "$@" | sha256sum | cut -c1-16; }

prepare_environment() {
  local extras=$1 python venv=.venv wanted built
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || exit 2
    check_compiler "$python"
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv" 2>/dev/null || {
      rm -rf "$venv"
      fail "python3 -m venv does not work here (Debian, Raspberry Pi OS: sudo apt install python3-venv)"
    }
  fi
  mkdir -p "$venv/wattmesh"
  wanted=$(digest pyproject.toml)
  local extra missing=
  for extra in ${extras//,/ }; do
    [ "$(cat "$venv/wattmesh/extra-$extra" 2>/dev/null)" = "$wanted" ] || missing=1
  done
  # shellcheck disable=SC2046  # no file name of ours has a space
  built=$(digest setup.py pyproject.toml $(find a2a drivers edge cloud simulators backtest -name '*.pyx' -o -name '*.pxd' | LC_ALL=C sort))
  if [ -n "$missing" ]; then
    check_compiler "$venv/bin/python"
    say "installing wattmesh[$extras] (the first time takes a minute or two)"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "setuptools>=77" "cython>=3.1" wheel ||
      fail "pip could not install the build tools; the lines above say why (no network?)"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[$extras]" ||
      fail "pip could not install wattmesh[$extras]; the lines above say why"
    for extra in ${extras//,/ }; do printf '%s\n' "$wanted" >"$venv/wattmesh/extra-$extra"; done
    printf '%s\n' "$built" >"$venv/wattmesh/built"
  elif [ "$(cat "$venv/wattmesh/built" 2>/dev/null)" != "$built" ]; then
    check_compiler "$venv/bin/python"
    say "building the kernels"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e . ||
      fail "the kernels did not build; the lines above say why"
    printf '%s\n' "$built" >"$venv/wattmesh/built"
  fi
}
