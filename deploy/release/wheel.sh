#!/usr/bin/env bash
# Builds the library's Python wheel for amd64, so that the same commit gives the same bytes in every directory: wheel.sh OUT PYTHON
# PYTHON is an interpreter beside which maturin is installed. As root: it mounts this directory on /mnt for itself alone.
set -euo pipefail
out=$(realpath "$1") python=$(realpath -s "$2")
cd "$(dirname "$0")/../.."
if [ "$PWD" != /mnt ]; then
    make --no-print-directory bindings/Cargo.lock >&2
    # The crates are outside of the workspace in bindings/, so cargo puts their directories into the names of symbols.
    exec unshare --mount bash -c 'mount --bind "$PWD" /mnt && cd /mnt && exec deploy/release/wheel.sh "$@"' - "$out" "$python"
fi
target=x86_64-unknown-linux-gnu
. deploy/release/settings.sh
"$(dirname "$python")/maturin" build --release --locked --target "$target" --manifest-path bindings/python/Cargo.toml --out "$out" >&2
