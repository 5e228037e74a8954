#!/bin/sh
# Builds the Greengrass component: one zip of wheels an architecture, and the recipe with the version and the bucket filled in.
#
#   ./build.sh OUT BUCKET WHEELS_AMD64 WHEELS_AARCH64
#
# WHEELS_*: folders with the wattmesh wheel of that architecture and those that it needs: scripts/wheels OUT x86_64 aarch64
# Nothing is sent anywhere; upload OUT's zips to s3://BUCKET/io.wattmesh.Gateway/VERSION/ and create the component from OUT/recipe.yaml.
set -eu

fail() { printf 'build.sh: %s\n' "$*" >&2; exit 2; }

[ $# -eq 4 ] || fail "usage: build.sh OUT BUCKET WHEELS_AMD64 WHEELS_AARCH64"
OUT=$1 BUCKET=$2
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
case $BUCKET in *[!a-z0-9.-]* | '') fail "$BUCKET is no name of a bucket" ;; esac

VERSION=''
for FOLDER in "$3" "$4"; do
    FOUND=$(ls "$FOLDER"/wattmesh-*.whl 2>/dev/null | sed -n 's#.*/wattmesh-\([0-9][0-9.]*\)-.*#\1#p' | sort -u)
    [ -n "$FOUND" ] || fail "$FOLDER holds no wattmesh-*.whl"
    [ "$(printf '%s\n' "$FOUND" | wc -l)" = 1 ] || fail "$FOLDER holds more than one version of wattmesh"
    [ -z "$VERSION" ] || [ "$VERSION" = "$FOUND" ] || fail "versions differ: $VERSION and $FOUND"
    VERSION=$FOUND
done
case $(cd "$3" && ls wattmesh-*.whl) in *x86_64* | *any.whl*) ;; *) fail "$3 is not for x86_64" ;; esac
case $(cd "$4" && ls wattmesh-*.whl) in *aarch64* | *any.whl*) ;; *) fail "$4 is not for aarch64" ;; esac

mkdir -p "$OUT"
python3 - "$OUT" "$3" "$4" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

out = Path(sys.argv[1])
for name, folder in (("amd64", sys.argv[2]), ("aarch64", sys.argv[3])):
    with zipfile.ZipFile(out / f"wattmesh-{name}.zip", "w", zipfile.ZIP_STORED) as archive:
        for wheel in sorted(Path(folder).glob("*.whl")):  # fixed order and time: the same wheels give the same bytes
            archive.writestr(zipfile.ZipInfo(f"wheels/{wheel.name}", (1980, 1, 1, 0, 0, 0)), wheel.read_bytes())
PYTHON
sed -e "s#@VERSION@#$VERSION#g" -e "s#s3://BUCKET/#s3://$BUCKET/#g" "$HERE/recipe.yaml" >"$OUT/recipe.yaml"
printf '%s\n' "$OUT/recipe.yaml is version $VERSION"
