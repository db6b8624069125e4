#!/usr/bin/env bash
# Installs the C library that was built in DIRECTORY (target/release or target/debug): install.sh DIRECTORY PREFIX
# DESTDIR is put before PREFIX, for packages.
set -euo pipefail
built=$(realpath "$1")
prefix=$2
here=$(dirname "$(realpath "$0")")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml" | head -1)
to=${DESTDIR:-}$prefix
install -d "$to/include" "$to/lib/pkgconfig"
install -m 644 "$here/include/fingerpost.h" "$to/include/"
install -m 755 "$built/libfingerpost_c.so" "$to/lib/libfingerpost.so.$version"
ln -sf "libfingerpost.so.$version" "$to/lib/libfingerpost.so.0"
ln -sf libfingerpost.so.0 "$to/lib/libfingerpost.so"
install -m 644 "$built/libfingerpost_c.a" "$to/lib/libfingerpost.a"
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" -e "s|@STATIC_LIBS@|-lgcc_s -lutil -lrt -lpthread -lm -ldl|" \
    "$here/fingerpost.pc.in" >"$to/lib/pkgconfig/fingerpost.pc"
