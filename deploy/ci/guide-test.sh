#!/usr/bin/env bash
# Runs the commands of "Prosody in five minutes" and "ejabberd in five minutes" in docs/MIGRATION.md, as they stand there, with Debian's
# servers and their stock configurations: guide-test.sh PROGRAMS VENV
# After each step, two users look for proxies, and one sends bytes through the proxy that the step is about.
# Each server runs in namespaces of its own, over copies of /etc, /usr and /var, so the machine stays as it is. Needs root.
set -euo pipefail

bytes=1000000

fail() {
    echo "error: guide-test.sh: $*" >&2
    exit 1
}

# Makes a machine as Debian's installer leaves it, with an address, the names that an operator has in DNS, and the server.
make_machine() {
    # Everything that is written goes to memory.
    mount -t tmpfs tmpfs "$work/memory"
    for directory in etc usr var; do
        mkdir "$work/memory/$directory" "$work/memory/$directory.work"
        mount -t overlay overlay \
            -o "lowerdir=/$directory,upperdir=$work/memory/$directory,workdir=$work/memory/$directory.work" "/$directory"
    done
    mount -t tmpfs -o mode=755 tmpfs /run
    ip link set lo up
    ip address add 192.0.2.10/32 dev lo
    hostname machine
    printf '%s\n' '127.0.0.1 localhost' '127.0.1.1 machine' \
        '192.0.2.10 example.org proxy.example.org xtls.example.org' >/etc/hosts
    # Only what the page starts runs, and as its unit says.
    command_is /usr/sbin/policy-rc.d 'exit 101'
    install -m 755 deploy/ci/systemctl.py /usr/bin/systemctl
    command_is /usr/bin/sudo 'exec "$@"'
    # `make deb-test` tries the package. Here it brings the same files and runs the same script.
    command_is /usr/bin/apt "[ \"\$*\" = 'install ./fingerpost_*.deb' ] && exec '$work/package'"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=example.org \
        -addext subjectAltName=DNS:example.org -keyout "$work/key.pem" -out "$work/ca.pem" 2>/dev/null
    "make_$server"
    cp "$configuration" "$work/before"
    systemctl start "$server"
}

command_is() {
    rm -f "$1"
    printf '#!/bin/sh\n%s\n' "$2" >"$1"
    chmod 755 "$1"
}

make_prosody() {
    configuration=/etc/prosody/prosody.cfg.lua old=proxy.example.org:5000
    stock
    rm -rf /etc/prosody/conf.d/* /etc/prosody/certs/* /var/lib/prosody/* /var/log/prosody/*
    ln -s ../conf.avail/localhost.cfg.lua /etc/prosody/conf.d/
    install -o root -g prosody -m 640 "$work/key.pem" /etc/prosody/certs/example.org.key
    install -o root -g prosody -m 640 "$work/ca.pem" /etc/prosody/certs/example.org.crt
    python3 deploy/ci/doc_blocks.py before prosody docs/MIGRATION.md >"$work/lines"
    [ -s "$work/lines" ] || fail "docs/MIGRATION.md does not show the state before, for Prosody"
    cat "$work/lines" >>$configuration
}

make_ejabberd() {
    # Without `ip` and `hostname` it uses the address of the machine's name, which Debian's installer puts into /etc/hosts.
    configuration=/etc/ejabberd/ejabberd.yml old=127.0.1.1:7777
    stock
    rm -rf /etc/ejabberd/modules.d/*/ /var/lib/ejabberd/* /var/log/ejabberd/*
    # This file is the answer of the package to the operator's name of the host, and not a conffile.
    rm $configuration
    ucf --purge $configuration
    echo 'ejabberd ejabberd/hostname string example.org' | debconf-set-selections
    DEBIAN_FRONTEND=noninteractive dpkg-reconfigure ejabberd
    [ -s $configuration ] || fail "the package did not write $configuration"
    cat "$work/key.pem" "$work/ca.pem" >/etc/ejabberd/ejabberd.pem
    # The stock file has the module as a comment. The operator has removed the marks, and has what the page shows.
    sed -i '/^  ## mod_proxy65:/,/max_connections:/s/## //' $configuration
    python3 deploy/ci/doc_blocks.py before ejabberd docs/MIGRATION.md >"$work/lines"
    sed -n '/^modules:/p; /^  mod_proxy65:/,/max_connections:/p' $configuration | diff "$work/lines" - ||
        fail "docs/MIGRATION.md does not show the stock lines of mod_proxy65 as the state before, for ejabberd"
}

# Puts the package's own conffiles in place: those of the machine may have been edited.
stock() {
    [ ! -d "$work/stock" ] || cp -a "$work/stock/." /
    if changed=$(dpkg -V "$server" | grep ' c '); then fail "$server: not as the package has them: $changed"; fi
}

register() {
    case $server in
        prosody) prosodyctl register "$1" example.org "$1s-password" ;;
        ejabberd) ejabberdctl register "$1" example.org "$1s-password" ;;
    esac
}

# step NUMBER WHAT: runs a step in this shell, as in an operator's terminal, and compares its output with the page.
step() {
    doing="step $1 ($2)" begun=$SECONDS
    # shellcheck disable=SC1090
    . "$work/steps/$1.sh" >"$work/log" 2>&1 </dev/null
    if [ -e "$work/steps/$1.shows" ]; then
        while IFS= read -r line; do
            grep -qF -- "$line" "$work/log" || fail "$server: $doing does not show: $line"
        done <"$work/steps/$1.shows"
    fi
    echo "ok      $server: $doing, $((SECONDS - begun)) s"
}

# see WHAT PROXY FOUND...: users find the proxies FOUND and no other, and bytes go through PROXY. The sender closes its connection
# after the last byte: until then Prosody 0.12.3 may keep the last bytes.
see() {
    doing=$1 begun=$SECONDS
    local proxy=$2 address=$old
    [ "$proxy" = proxy.example.org ] || address=xtls.example.org:7625
    shift 2
    "$venv/bin/python" tests/peers/s5b.py "{\"server\": {\"host\": \"192.0.2.10\", \"port\": 5222, \"ca\": \"$work/ca.pem\"},
        \"component\": \"$proxy\", \"bytes\": $bytes, \"sender_closes\": true, \"timeout\": 60, \"users\": {
        \"alice\": {\"jid\": \"alice@example.org\", \"password\": \"alices-password\"},
        \"bob\": {\"jid\": \"bob@example.org\", \"password\": \"bobs-password\"}}}" >"$work/log" 2>&1 </dev/null || true
    sed -n 's/^report: //p' "$work/log" | python3 -c '
import json, sys
report, address, found = json.load(sys.stdin), sys.argv[1], sorted(sys.argv[2:])
sys.exit((report["found"], ":".join(report["proxy"])) != (found, address) or report["sent"] != report["received"])' "$address" "$@" ||
        fail "$server: $doing: expected the proxies $*, and a transfer through $proxy at $address"
    echo "ok      $server: $doing: found $*, sent through $address, $((SECONDS - begun)) s"
}

# Nothing of Fingerpost's may be lost on the way back.
kept() { (cd / && sha256sum etc/fingerpost/* && fingerpost --config /etc/fingerpost/config.toml keys list); }

test_guide() {
    trap '[ $? -eq 0 ] || { echo "FAILED: $server: $doing"; cat "$work/log"; tail -n 20 /run/units/*.log; }' EXIT
    doing="a machine with $server"
    make_machine >"$work/log" 2>&1
    register alice >"$work/log" 2>&1
    register bob >"$work/log" 2>&1
    echo "ok      $doing, $SECONDS s"
    python3 deploy/ci/doc_blocks.py guide "$server" "$work/steps" docs/MIGRATION.md
    [ "$(find "$work/steps" -name '*.sh' | wc -l)" -eq 5 ] || fail "docs/MIGRATION.md: expected 5 steps for $server"

    see "the old proxy" proxy.example.org proxy.example.org
    step 1 "install and check"
    step 2 "attach"
    before=$(kept)
    see "both proxies, the old one" proxy.example.org proxy.example.org xtls.example.org
    step 3 "switch the old proxy off"
    see "Fingerpost only" xtls.example.org xtls.example.org
    # A moment after the users have all bytes, the transfer ends and counts.
    timeout 60 sh -c 'until curl -fsS http://127.0.0.1:7626/metrics | grep -x "fingerpost_transfers_active 0" >/dev/null; do :; done'
    step 4 "see the transfer"
    moved=$(sed -n 's/^fingerpost_transfers_bytes_total //p' "$work/log")
    [ "$moved" -ge $bytes ] || fail "$server: the metric says $moved bytes"
    step 5 "back"
    see "the old proxy again" proxy.example.org proxy.example.org
    diff "$work/before" "$configuration" || fail "$server: $configuration is not as it was"
    [ "$(kept)" = "$before" ] || fail "$server: files of Fingerpost have changed"
    step 2 "forth again"
    step 3 "forth again"
    see "Fingerpost only, again" xtls.example.org xtls.example.org
    [ "$(kept)" = "$before" ] || fail "$server: files of Fingerpost have changed"
}

if [ "$1" = --in-namespaces ]; then
    server=$2 work=$3 venv=$4
    test_guide
    exit
fi

if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "needs root, for namespaces"
    exec sudo "$0" "$@"
fi
programs=$(realpath "$1") venv=$(realpath "$2")
cd "$(dirname "$0")/../.."
begun=$SECONDS
declare -A jobs=()
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
# The servers' users read there.
chmod 755 "$work"
"$programs/xtask" package "$work/files"
for server in prosody ejabberd; do
    directory=$work/$server
    mkdir "$directory" "$directory/memory"
    cat >"$directory/package" <<EOF
#!/bin/sh
set -e
install -t /usr/bin '$programs/fingerpost' '$programs/xtls'
install -D -m 644 '$work/files/config.toml' /etc/fingerpost/config.toml
install -m 644 deploy/systemd/fingerpost.service /usr/lib/systemd/system
sh deploy/deb/postinst configure
systemctl start fingerpost
EOF
    chmod 755 "$directory/package"
    if dpkg -V $server | grep -q ' c '; then
        # The network is here, and not in the namespaces.
        (cd "$directory" && apt-get download -qq "$server=$(dpkg-query -W -f '${Version}' $server)" &&
            dpkg-deb -x ${server}_*.deb files) || fail "$server: its configuration was edited, and its package cannot be had"
        mkdir "$directory/stock"
        mv "$directory/files/etc" "$directory/stock/"
    fi
done
# Each server has its own network, so both run at once.
for server in prosody ejabberd; do
    unshare --mount --net --uts --pid --fork --mount-proc --kill-child \
        deploy/ci/guide-test.sh --in-namespaces $server "$work/$server" "$venv" >"$work/$server.log" 2>&1 &
    jobs[$!]=$server
done
failed=()
for job in "${!jobs[@]}"; do
    wait "$job" || failed+=("${jobs[$job]}")
    cat "$work/${jobs[$job]}.log"
done
[ ${#failed[@]} -eq 0 ] || fail "${failed[*]}"
echo "the guide works for Prosody and ejabberd, $((SECONDS - begun)) s"
