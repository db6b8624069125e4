#!/usr/bin/env bash
# Builds both programs for a target so that the same commit gives the same bytes in every directory:
#   programs.sh TARGET      x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu or x86_64-unknown-linux-musl
# Prints the directory of the programs. For this machine's own architecture xtask is there too: it writes the manual pages.
set -euo pipefail
target=$1
cd "$(dirname "$0")/../.."

. deploy/release/settings.sh

packages=(--package fingerpost --package fingerpost-xtls)
case $target in
    x86_64-unknown-linux-gnu) packages+=(--package xtask) ;;
    x86_64-unknown-linux-musl) ;;
    aarch64-unknown-linux-gnu)
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc ;;
    *) echo "error: $target: expected a target of those in programs.sh" >&2; exit 2 ;;
esac
cargo build --release --locked --bins --target "$target" "${packages[@]}" >&2
echo "$CARGO_TARGET_DIR/$target/release"
