#!/usr/bin/env bash
# Writes the source tarball and the Python package of the last commit: source.sh OUT PYTHON
# PYTHON is an interpreter that has hatchling. The same commit gives the same bytes.
set -euo pipefail
out=$(realpath "$1") python=$2
cd "$(dirname "$0")/../.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH PYTHONDONTWRITEBYTECODE=1

git archive --format=tar --prefix="fingerpost-$version/" HEAD | gzip -n -9 >"$out/fingerpost-$version.tar.gz"

# From the tarball: what git does not know cannot get into the package.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$work" -xzf "$out/fingerpost-$version.tar.gz"
(umask 022 && cd "$work/fingerpost-$version/python" && "$python" - "$out" <<'PYTHON'
import sys
from hatchling import build

for make in (build.build_sdist, build.build_wheel):
    make(sys.argv[1])
PYTHON
)
