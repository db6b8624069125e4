#!/usr/bin/env bash
# Makes a Debian 13 root with packages: trixie.sh [ROOT [PACKAGE...]]; by default target/trixie with its Prosody and ejabberd.
# Does nothing if ROOT is complete. The packages come from where this machine's apt takes its own.
set -euo pipefail
cd "$(dirname "$0")/../.."

suite=trixie
root=${1:-target/$suite}
packages=("${@:2}")
[ ${#packages[@]} -gt 0 ] || packages=(prosody prosody-modules ejabberd)
stamp=.fingerpost-packages
[ "$(cat "$root/$stamp" 2>/dev/null)" = "$suite ${packages[*]}" ] && exit 0
[ "$(id -u)" -eq 0 ] || { echo "error: trixie.sh: making a Debian root takes root" >&2; exit 1; }

# Two runs at once would share the directory in the making.
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9
[ "$(cat "$root/$stamp" 2>/dev/null)" = "$suite ${packages[*]}" ] && exit 0

deploy/ci/install-peers.sh debootstrap
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e /usr/share/debootstrap/scripts/$suite ] ||
    { echo "error: trixie.sh: this debootstrap does not know $suite; a newer one does" >&2; exit 1; }

# The archive of the main suite: the label tells it from that of security updates and from third parties.
uris() {
    apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian|//p' | sort -u
}
mirror=$(uris | head -n 1)
if [ -z "$mirror" ]; then
    # The label is known once the lists are there.
    apt-get update -qq </dev/null
    mirror=$(uris | head -n 1)
fi
[ -n "$mirror" ] || { echo "error: trixie.sh: apt knows no Debian archive; add one to its sources" >&2; exit 1; }

echo "Making a Debian 13 with ${packages[*]} in $root (minutes, once)"
new=$root.new
# Nothing is mounted beneath it: what this script mounts is in a namespace of its own.
rm -rf --one-file-system "$new"
log=$root.log
if ! debootstrap --variant=minbase --keyring="$keyring" "$suite" "$new" "$mirror" >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    [ ! -e "$new/debootstrap/debootstrap.log" ] || tail -n 20 "$new/debootstrap/debootstrap.log" >&2
    echo "error: trixie.sh: debootstrap failed" >&2
    exit 1
fi
# No service starts in there: the tests start their own.
printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
chmod 755 "$new/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$new/etc/resolv.conf"
if ! unshare --mount --propagation private sh -euc '
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    export DEBIAN_FRONTEND=noninteractive
    chroot "$0" apt-get update -qq
    chroot "$0" apt-get install -y -qq --no-install-recommends "$@"
    chroot "$0" apt-get clean
' "$new" "${packages[@]}" >>"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "error: trixie.sh: installing ${packages[*]} failed; see $log" >&2
    exit 1
fi
rm -rf "$new"/var/lib/apt/lists/*
echo "$suite ${packages[*]}" >"$new/$stamp"
rm -rf --one-file-system "$root"
mv "$new" "$root"
for package in "${packages[@]}"; do
    chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' "$package"
done
