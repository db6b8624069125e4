#!/usr/bin/env bash
# Makes the image that all others stand on, without an image registry: a minimal Debian by debootstrap, of the same
# release and from the same package archive as this machine's.
#   base-image.sh [--force]     makes fingerpost-base:RELEASE if it is not there yet, and prints its name
set -euo pipefail
cd "$(dirname "$0")"
. ./engine.sh

. /etc/os-release
release=${VERSION_CODENAME:?"/etc/os-release names no release: this needs Debian"}
image=fingerpost-base:$release
start_engine >&2
if [ "${1:-}" != --force ] && $engine image inspect "$image" >/dev/null 2>&1; then
    echo "$image"
    exit
fi
[ "$(id -u)" -eq 0 ] || { echo "error: debootstrap must be run as root" >&2; exit 1; }
command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >&2 </dev/null

# Where this machine gets its packages from; the image gets them from there too.
sources=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v release="$release" '$3 == "main" && $2 ~ "^" release "(-updates|-security)?$"' | sort -u)
archive=$(awk -v release="$release" '$2 == release { print $1; exit }' <<<"$sources")
[ -n "$archive" ] || { echo "error: apt knows no archive of $release: run apt-get update" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
echo "Making $image by debootstrap" >&2
debootstrap --variant=minbase --include=ca-certificates "$release" "$root" "$archive" >"$root.log" 2>&1 ||
    { tail -20 "$root.log" >&2; exit 1; }
rm -f "$root.log"
awk '{ print "deb " $0 }' <<<"$sources" >"$root/etc/apt/sources.list"
# An archive that is kept as of some day is valid for longer than its own lists say.
apt-config dump | grep -E '^Acquire::Check-(Valid-Until|Date) ' >"$root/etc/apt/apt.conf.d/90archive" || true
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root/var/log/"*.log
tar -C "$root" -c . | $engine import --change 'CMD ["bash"]' - "$image" >/dev/null
echo "$image"
