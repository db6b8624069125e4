#!/usr/bin/env bash
# Makes the Debian package of programs that are built already:
#   pack.sh PROGRAMS FILES ARCHITECTURE REVISION OUT      FILES is the directory that `xtask package` has written
set -euo pipefail
PROGRAMS=$(realpath "$1") FILES=$(realpath "$2") architecture=$3 revision=$4
mkdir -p "$5"
OUT=$(realpath "$5")
cd "$(dirname "$0")/../.."
SOURCE=$PWD

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ "$(dpkg-parsechangelog --file deploy/deb/changelog --show-field Version)" = "$version-1" ] ||
    { echo "error: deploy/deb/changelog: expected an entry for $version-1" >&2; exit 1; }

work=target/package-$architecture
rm -rf "$work"
mkdir -p "$work/debian"
cp deploy/deb/{control,rules,copyright,postinst,postrm} deploy/systemd/fingerpost.service "$work/debian/"
cp deploy/deb/lintian-overrides "$work/debian/fingerpost.lintian-overrides"
cp deploy/systemd/socket/fingerpost-socks5.socket "$work/debian/fingerpost.fingerpost-socks5.socket"
sed "1s/($version-1)/($version-$revision)/" deploy/deb/changelog >"$work/debian/changelog"
export PROGRAMS FILES SOURCE OUT DEB_RULES_REQUIRES_ROOT=no
cd "$work"
rm -f "$OUT"/fingerpost_*_"$architecture".deb
dpkg-architecture --force --host-arch "$architecture" --command debian/rules binary
