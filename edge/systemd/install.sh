#!/bin/sh
# Installs a WattMesh gateway on Raspberry Pi OS (or any Debian with systemd), or takes it away again.
#
#   sudo ./install.sh install WHEELS SITE.yaml [KEYFILE]   WHEELS: a folder with the wattmesh wheel and those that it needs
#   sudo ./install.sh uninstall [--purge]                  --purge: also configuration, keys and what was measured
#   ./install.sh plan WHEELS SITE.yaml                     what install would do; changes nothing
#
# Everything that it makes is listed in /opt/wattmesh/.installed and nothing else is ever removed. No network is used.
# DESTDIR puts it all under another root and leaves users and services alone: for tests and images.
set -eu

ROOT=${DESTDIR:-}
PREFIX=/opt/wattmesh
CONFIG=/etc/wattmesh
STATE=/var/lib/wattmesh
UNIT=/etc/systemd/system/wattmesh-gateway@.service
USER_NAME=wattmesh
PYTHON=${PYTHON:-python3}
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 2; }

site_name() { sed -n 's/^site:[[:space:]]*\([A-Za-z0-9_.-]\{1,64\}\).*/\1/p' "$1" | head -n 1; }

check_arguments() {
    [ -d "$1" ] || fail "$1 is no folder of wheels"
    ls "$1"/wattmesh-*.whl >/dev/null 2>&1 || fail "$1 holds no wattmesh-*.whl; build one with: pip wheel '.[edge]' -w $1"
    [ -f "$2" ] || fail "$2 does not exist"
    NAME=$(site_name "$2")
    [ -n "$NAME" ] || fail "$2 names no site (site: NAME)"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$PYTHON is older than 3.11"
}

plan() {
    check_arguments "$@"
    say "user $USER_NAME (system, no login, group dialout)"
    say "venv $ROOT$PREFIX/venv from $1"
    say "site $ROOT$CONFIG/$NAME.yaml"
    say "state $ROOT$STATE"
    say "unit $ROOT$UNIT, enabled and started as wattmesh-gateway@$NAME"
}

install_all() {
    check_arguments "$@"
    [ -n "$ROOT" ] || [ "$(id -u)" = 0 ] || fail "install needs root (sudo)"
    WHEELS=$1 SITE=$2 KEY=${3:-}
    if [ -z "$ROOT" ] && ! id "$USER_NAME" >/dev/null 2>&1; then
        useradd --system --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin --groups dialout "$USER_NAME"
        MADE_USER=1
    fi
    mkdir -p "$ROOT$PREFIX" "$ROOT$CONFIG/keys" "$ROOT$STATE" "$ROOT$(dirname "$UNIT")"
    # A new venv beside the old one, put in its place only when it works: a failed upgrade leaves the old one running.
    rm -rf "$ROOT$PREFIX/venv.new"
    "$PYTHON" -m venv "$ROOT$PREFIX/venv.new"
    "$ROOT$PREFIX/venv.new/bin/python" -m pip install --quiet --no-index --find-links "$WHEELS" 'wattmesh[edge]'
    "$ROOT$PREFIX/venv.new/bin/python" -c 'import wattmesh_edge.gateway'
    rm -rf "$ROOT$PREFIX/venv.old"
    [ ! -d "$ROOT$PREFIX/venv" ] || mv "$ROOT$PREFIX/venv" "$ROOT$PREFIX/venv.old"
    mv "$ROOT$PREFIX/venv.new" "$ROOT$PREFIX/venv"
    # Scripts of a venv name the path that it was made at; this one does not.
    mkdir -p "$ROOT$PREFIX/bin"
    cat >"$ROOT$PREFIX/bin/wattmesh" <<SCRIPT
#!/bin/sh
exec $PREFIX/venv/bin/python -c 'import sys; from wattmesh_a2a.cli import main; sys.exit(main())' "\$@"
SCRIPT
    chmod 755 "$ROOT$PREFIX/bin/wattmesh"
    # One that is there is the owner's. The unit may write to its state folder alone.
    [ -f "$ROOT$CONFIG/$NAME.yaml" ] || sed "s#^state:.*#state: $STATE/$NAME#" "$SITE" >"$ROOT$CONFIG/$NAME.yaml"
    [ -z "$KEY" ] || [ -f "$ROOT$CONFIG/keys/$(basename "$KEY")" ] || cp "$KEY" "$ROOT$CONFIG/keys/"
    chmod 750 "$ROOT$CONFIG" "$ROOT$CONFIG/keys" "$ROOT$STATE"
    sed "s#@PREFIX@#$PREFIX#" "$HERE/wattmesh-gateway@.service" >"$ROOT$UNIT"
    if [ -n "${MADE_USER:-}" ]; then say user >>"$ROOT$PREFIX/.installed"; fi
    grep -qsx "site $NAME" "$ROOT$PREFIX/.installed" || say "site $NAME" >>"$ROOT$PREFIX/.installed"
    if [ -z "$ROOT" ]; then
        chown -R root:$USER_NAME "$CONFIG"
        find "$CONFIG" -type f -exec chmod 640 {} +
        chown -R $USER_NAME:$USER_NAME "$STATE"
        systemctl daemon-reload
        systemctl enable "wattmesh-gateway@$NAME"
        systemctl restart "wattmesh-gateway@$NAME"
    fi
    say "installed; see: systemctl status wattmesh-gateway@$NAME"
}

uninstall() {
    LIST=$ROOT$PREFIX/.installed
    [ -f "$LIST" ] || fail "nothing was installed by this script ($LIST does not exist)"
    [ -n "$ROOT" ] || [ "$(id -u)" = 0 ] || fail "uninstall needs root (sudo)"
    if [ -z "$ROOT" ]; then
        sed -n 's/^site //p' "$LIST" | while read -r NAME; do systemctl disable --now "wattmesh-gateway@$NAME" || true; done
    fi
    rm -f "$ROOT$UNIT"
    [ -n "$ROOT" ] || systemctl daemon-reload
    if [ "${1:-}" = --purge ]; then
        rm -rf "$ROOT$CONFIG" "$ROOT$STATE"
        if [ -z "$ROOT" ] && grep -qx user "$LIST"; then userdel "$USER_NAME" || true; fi
    else
        say "kept: $ROOT$CONFIG and $ROOT$STATE (configuration, keys, what was measured); --purge takes them too"
    fi
    rm -rf "$ROOT$PREFIX"
    say "removed"
}

case ${1:-} in
    plan) [ $# -ge 3 ] || fail "plan needs WHEELS and SITE.yaml"; shift; plan "$@" ;;
    install) [ $# -ge 3 ] || fail "install needs WHEELS and SITE.yaml"; shift; install_all "$@" ;;
    uninstall) shift; uninstall "$@" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
