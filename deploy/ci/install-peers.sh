#!/usr/bin/env bash
# Installs from Debian the missing dependencies of the demo and the tests:
#   install-peers.sh [cc] [chromium] [debhelper] [debootstrap] [openssl] [tmux] [gnupg] [sequoia] [gnutls] [prosody] [ejabberd] [postgresql]
#                    [python] [nbxmpp] [qxmpp] [relays] [dns] [nat64] [lan] [pyopenssl] [gajim] [clients] [xep] [systemd] [release] [pkg-config] [valgrind] [strace]
# A server that is installed here is not left running and is not started at boot: we start our own, on loopback.
set -euo pipefail

missing=()
servers=()
foreign=
for what in "$@"; do
    case $what in
        cc) command -v cc >/dev/null || missing+=(build-essential) ;;
        chromium) command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core) ;;
        debhelper) command -v dh >/dev/null || missing+=(debhelper) ;;
        debootstrap) command -v debootstrap >/dev/null || missing+=(debootstrap) ;;
        openssl) command -v openssl >/dev/null || missing+=(openssl) ;;
        tmux) command -v tmux >/dev/null || missing+=(tmux) ;;
        gnupg) command -v gpg >/dev/null || missing+=(gnupg) ;;
        sequoia) command -v sq >/dev/null || missing+=(sq) ;;
        gnutls) command -v gnutls-serv >/dev/null || missing+=(gnutls-bin) ;;
        prosody) command -v prosody >/dev/null || { missing+=(prosody); servers+=(prosody); } ;;
        ejabberd) [ -e /usr/sbin/ejabberdctl ] || { missing+=(ejabberd); servers+=(ejabberd); } ;;
        postgresql) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null \
            || { missing+=(postgresql); servers+=(postgresql); }
            [ -x /usr/sbin/pgbouncer ] || { missing+=(pgbouncer); servers+=(pgbouncer); } ;;
        python) python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv) ;;
        nbxmpp) /usr/bin/python3 -c 'import nbxmpp.client' 2>/dev/null \
            || missing+=(python3-nbxmpp gir1.2-soup-3.0 glib-networking) ;;
        qxmpp) { command -v g++ && command -v pkg-config && pkg-config --exists qxmpp; } >/dev/null \
            || missing+=(g++ pkg-config libqxmpp-dev) ;;
        relays) command -v haproxy >/dev/null || { missing+=(haproxy); servers+=(haproxy); }
            command -v socat >/dev/null || missing+=(socat)
            command -v curl >/dev/null || missing+=(curl)
            /usr/bin/python3 -c 'import socks' 2>/dev/null || missing+=(python3-socks)
            command -v nft >/dev/null || missing+=(nftables)
            command -v ip >/dev/null || missing+=(iproute2) ;;
        dns) command -v dnsmasq >/dev/null || [ -x /usr/sbin/dnsmasq ] || missing+=(dnsmasq-base) ;;
        nat64) command -v tayga >/dev/null || { missing+=(tayga); servers+=(tayga); } ;;
        lan) command -v avahi-daemon >/dev/null || { missing+=(avahi-daemon); servers+=(avahi-daemon); }
            command -v avahi-browse >/dev/null || missing+=(avahi-utils)
            command -v dbus-daemon >/dev/null || missing+=(dbus-daemon)
            { command -v pkg-config && pkg-config --exists purple; } >/dev/null \
                || missing+=(pkg-config libpurple-dev libpurple0) ;;
        pyopenssl) /usr/bin/python3 -c 'import OpenSSL, cryptography, gi' 2>/dev/null || missing+=(python3-openssl python3-gi) ;;
        gajim) command -v gajim >/dev/null || missing+=(gajim)
            command -v xvfb-run >/dev/null || missing+=(xvfb xauth fonts-dejavu-core)
            command -v dbus-run-session >/dev/null || missing+=(dbus) ;;
        clients) for client in gajim poezio profanity; do
                command -v $client >/dev/null || missing+=($client)
            done
            command -v dino-im >/dev/null || missing+=(dino-im)
            command -v pidgin >/dev/null || missing+=(pidgin)
            command -v psi-plus >/dev/null || missing+=(psi-plus)
            command -v xvfb-run >/dev/null || missing+=(xvfb xauth fonts-dejavu-core)
            command -v xdotool >/dev/null || missing+=(xdotool)
            command -v import >/dev/null || missing+=(imagemagick)
            command -v dbus-run-session >/dev/null || missing+=(dbus)
            /usr/bin/python3 -c 'import dbus' 2>/dev/null || missing+=(python3-dbus) ;;
        strace) command -v strace >/dev/null || missing+=(strace) ;;
        xep) command -v xmllint >/dev/null || missing+=(libxml2-utils)
            command -v xsltproc >/dev/null || missing+=(xsltproc) ;;
        systemd) command -v systemd-analyze >/dev/null || missing+=(systemd) ;;
        pkg-config) command -v pkg-config >/dev/null || missing+=(pkg-config) ;;
        valgrind) command -v valgrind >/dev/null || missing+=(valgrind) ;;
        release) command -v aarch64-linux-gnu-gcc >/dev/null || missing+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
            command -v musl-gcc >/dev/null || missing+=(musl-tools)
            command -v apt-ftparchive >/dev/null || missing+=(apt-utils)
            command -v gpg >/dev/null || missing+=(gnupg)
            command -v skopeo >/dev/null || missing+=(skopeo)
            command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
            # What the programs for arm64 link against: dpkg-shlibdeps reads their packages.
            dpkg --print-foreign-architectures | grep -qx arm64 || foreign=arm64
            dpkg-query -W libc6:arm64 >/dev/null 2>&1 || missing+=(libc6:arm64 libgcc-s1:arm64) ;;
        *) echo "install-peers.sh: unknown: $what" >&2; exit 2 ;;
    esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "Installing from Debian: ${missing[*]}"
command -v apt-get >/dev/null || { echo "error: no apt-get here; install these yourself: ${missing[*]}" >&2; exit 1; }
root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "error: neither root nor sudo; install these yourself: ${missing[*]}" >&2; exit 1; }
    root=(sudo)
fi

# Debian asks this script whether a newly installed service may start; 101 is no.
policy=/usr/sbin/policy-rc.d
guarded=
if [ ${#servers[@]} -gt 0 ] && [ ! -e $policy ]; then
    trap '[ -z "$guarded" ] || "${root[@]}" rm -f $policy' EXIT
    guarded=yes
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee $policy >/dev/null
    "${root[@]}" chmod 755 $policy
fi

install() {
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" </dev/null
}
[ -z "$foreign" ] || "${root[@]}" dpkg --add-architecture "$foreign"
"${root[@]}" apt-get update -qq </dev/null
install

for server in "${servers[@]}"; do
    if [ -d /run/systemd/system ]; then
        echo "Keeping the system's $server from starting at boot"
        "${root[@]}" systemctl disable --quiet --now "$server" || true
    fi
done
