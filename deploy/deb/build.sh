#!/usr/bin/env bash
# Builds the programs and their Debian package.
#   build.sh PROFILE REVISION OUT
# PROFILE debug takes the programs of the tests, for a quick try: they are built without the compiler's hardening flags.
set -euo pipefail
profile=$1 revision=$2
mkdir -p "$3"
out=$(realpath "$3")
cd "$(dirname "$0")/../.."

if [ "$profile" = debug ]; then
    cargo build --locked --workspace --bins --tests
else
    # For the libraries in C; Rust's own flags are as strict by default. xtask writes the manual pages: no second build for them.
    CFLAGS=$(DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-buildflags --get CFLAGS) \
        cargo build --release --locked --bins --package fingerpost --package fingerpost-xtls --package xtask
fi

files=target/package-files
rm -rf "$files"
"target/$profile/xtask" package "$files"
deploy/deb/pack.sh "target/$profile" "$files" "$(dpkg --print-architecture)" "$revision" "$out"
