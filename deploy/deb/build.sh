#!/usr/bin/env bash
# Builds the programs and their Debian package.
#   build.sh PROFILE REVISION OUT
# PROFILE debug takes the programs of the tests, for a quick try: they are built without the compiler's hardening flags.
set -euo pipefail
profile=$1 revision=$2
mkdir -p "$3"
out=$(realpath "$3")
cd "$(dirname "$0")/../.."

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ "$(dpkg-parsechangelog --file deploy/deb/changelog --show-field Version)" = "$version-1" ] ||
    { echo "error: deploy/deb/changelog: expected an entry for $version-1" >&2; exit 1; }

if [ "$profile" = debug ]; then
    cargo build --locked --workspace --bins --tests
else
    # For the libraries in C; Rust's own flags are as strict by default. xtask writes the manual pages: no second build for them.
    CFLAGS=$(DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-buildflags --get CFLAGS) \
        cargo build --release --locked --bins --package fingerpost --package fingerpost-xtls --package xtask
fi

work=target/package
rm -rf "$work"
"target/$profile/xtask" package "$work/files"
mkdir "$work/debian"
cp deploy/deb/{control,rules,copyright,postinst,postrm} deploy/systemd/fingerpost.service "$work/debian/"
cp deploy/deb/lintian-overrides "$work/debian/fingerpost.lintian-overrides"
cp deploy/systemd/socket/fingerpost-socks5.socket "$work/debian/fingerpost.fingerpost-socks5.socket"
sed "1s/($version-1)/($version-$revision)/" deploy/deb/changelog >"$work/debian/changelog"
export PROGRAMS=$PWD/target/$profile FILES=$PWD/$work/files SOURCE=$PWD OUT=$out DEB_RULES_REQUIRES_ROOT=no
cd "$work"
rm -f "$out"/fingerpost_*.deb
debian/rules binary
