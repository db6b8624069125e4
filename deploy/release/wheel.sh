#!/usr/bin/env bash
# Builds the library's Python wheel for amd64, so that the same commit gives the same bytes in every directory: wheel.sh OUT PYTHON
# PYTHON is an interpreter beside which maturin is installed.
set -euo pipefail
out=$(realpath "$1") maturin=$(dirname "$2")/maturin
cd "$(dirname "$0")/../.."
target=x86_64-unknown-linux-gnu
make --no-print-directory bindings/Cargo.lock >&2
. deploy/release/settings.sh
"$maturin" build --release --locked --target "$target" --manifest-path bindings/python/Cargo.toml --out "$out" >&2
