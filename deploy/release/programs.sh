#!/usr/bin/env bash
# Builds both programs for a target so that the same commit gives the same bytes in every directory:
#   programs.sh TARGET      x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu or x86_64-unknown-linux-musl
# Prints the directory of the programs. For this machine's own architecture xtask is there too: it writes the manual pages.
set -euo pipefail
target=$1
cd "$(dirname "$0")/../.."

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/dist}
export SOURCE_DATE_EPOCH CARGO_TARGET_DIR CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_STRIP=symbols

# Where the files lie must not be in the programs: messages of panics and `assert` name files.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
maps=("$PWD=/fingerpost" "$CARGO_TARGET_DIR=/target" "$cargo_home=/cargo" "$(rustc --print sysroot)=/rust")
rust=() c=()
for map in "${maps[@]}"; do
    rust+=("--remap-path-prefix=$map")
    c+=("-ffile-prefix-map=$map")
done
IFS=$'\x1f'
export CARGO_ENCODED_RUSTFLAGS="${rust[*]}"
IFS=' '

packages=(--package fingerpost --package fingerpost-xtls)
case $target in
    x86_64-unknown-linux-gnu) architecture=amd64 packages+=(--package xtask) ;;
    x86_64-unknown-linux-musl) architecture=amd64 ;;
    aarch64-unknown-linux-gnu) architecture=arm64
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc ;;
    *) echo "error: $target: expected a target of those in programs.sh" >&2; exit 2 ;;
esac
# For the libraries in C, Debian's hardening; Rust's own flags are as strict by default. Debug information is stripped anyway.
hardening=$(DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-architecture --force --host-arch "$architecture" \
    --command dpkg-buildflags --get CFLAGS)
export "CFLAGS_${target//-/_}=$hardening -g0 ${c[*]}"

cargo build --release --locked --bins --target "$target" "${packages[@]}" >&2
echo "$CARGO_TARGET_DIR/$target/release"
