#!/usr/bin/env bash
# Tries the package as a new operator would, on a new machine: a container with systemd, Debian's Prosody, and the
# commands of the README, word for word. Then upgrade, removal and purge, and what the unit may do.
#   test.sh PACKAGE NEWER     two .deb files, NEWER of a later version or revision
set -euo pipefail
package=$(realpath "$1") newer=$(realpath "$2")
cd "$(dirname "$0")/../.."
. deploy/engine.sh
name=fingerpost-deb-test-$$
begun=$SECONDS
directory=$(mktemp -d)

start_engine target
finish() {
    status=$?
    trap - EXIT
    if [ $status -ne 0 ]; then
        echo "FAILED (status $status)"
        docker exec $name journalctl --no-pager -n 40 -u fingerpost -u prosody 2>&1 || docker logs $name 2>&1 | tail -20 || true
    fi
    docker rm -f $name >/dev/null 2>&1 || true
    rm -rf "$directory"
    stop_engine
    exit $status
}
trap finish EXIT
trap 'exit 1' TERM INT

base=$(deploy/base-image.sh)
echo "Building the image of a new machine"
docker build --quiet --build-arg BASE="$base" -t fingerpost-test/machine -f deploy/deb/test.Dockerfile deploy/.. \
    >target/deb-image.log 2>&1 || { tail -30 target/deb-image.log; exit 1; }

# Systemd manages a part of the tree of control groups: its own with version 2, the machine's with version 1.
groups=(--cgroupns=private)
[ -e /sys/fs/cgroup/cgroup.controllers ] || groups=(--cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:rw)
# What systemd needs to set up the sandboxes of its units; less than --privileged, which not every machine can give.
rights=(--cap-add SYS_ADMIN --cap-add SYS_PTRACE --cap-add NET_ADMIN
    --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined)
docker run --detach --name $name --hostname machine --network none "${rights[@]}" "${groups[@]}" \
    --tmpfs /run --tmpfs /run/lock --tmpfs /tmp:exec fingerpost-test/machine >/dev/null
on() { docker exec "$@" </dev/null; }
# as USER COMMAND...
as() { on -u "$1" -w "/home/$1" -e "HOME=/home/$1" -e "XTLS_PASSWORD=${1}s-password" $name "${@:2}"; }
for _ in $(seq 60); do
    state=$(on $name systemctl is-system-running 2>/dev/null || true)
    case $state in running | degraded) break ;; esac
    sleep 1
done
case $state in running | degraded) ;; *) echo "error: systemd does not run: $state"; exit 1 ;; esac
# As on a machine: without it, the credentials that systemd mounts for a unit do not reach the unit, and it uses the file in /etc.
on $name mount --make-rshared /
on $name sh -c 'echo 127.0.0.1 machine example.org xtls.example.org >>/etc/hosts'
on $name prosodyctl register alice example.org alices-password
on $name prosodyctl register bob example.org bobs-password
# Debian's new files: a package lies in the operator's directory, and a letter in Alice's.
docker cp "$package" $name:/home/operator/ >/dev/null
docker cp "$newer" $name:/root/newer.deb >/dev/null
on $name sh -c 'head -c 5000000 /dev/urandom >/home/alice/letter.pdf && chown alice /home/alice/letter.pdf'
ok() { echo "ok      $1, $((SECONDS - begun)) s"; }
ok "a new machine"

# The README, as it is.
python3 deploy/ci/doc_blocks.py scripts "$directory" README.md
steps=$SECONDS
for script in "$directory"/*; do
    kind=${script##*.} who=${script##*.}
    who=${who%-background}
    [ "$kind" != here ] || continue
    docker cp "$script" $name:/var/tmp/step >/dev/null
    echo "        $who: $(sed -n 1p "$script" | cut -c3-)"
    if [ "$kind" != "$who" ]; then
        as "$who" bash -e /var/tmp/step >"$directory.$who.log" 2>&1 &
        # Bob is ready when he says so.
        for _ in $(seq 30); do grep -q listening "$directory.$who.log" && break; sleep 1; done
    else
        as "$who" bash -e /var/tmp/step >"$directory.log" 2>&1 || { cat "$directory.log"; [ ! -e "$directory.bob.log" ] || cat "$directory.bob.log"; exit 1; }
    fi
done
took=$((SECONDS - steps))
[ $took -lt 300 ] || { echo "error: the steps of the README took $took s"; exit 1; }
[ "$(on $name sha256sum </dev/null /home/alice/letter.pdf | cut -d' ' -f1)" = \
    "$(on $name sha256sum /home/bob/Received/letter.pdf | cut -d' ' -f1)" ] || { echo "error: the file differs"; exit 1; }
ok "the steps of the README: from apt install to a file that has arrived in $took s"

# What the unit may do.
exposure=$(on $name systemd-analyze security --offline=yes /usr/lib/systemd/system/fingerpost.service |
    sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
awk -v figure="$exposure" 'BEGIN { exit !(figure != "" && figure < 2.0) }' || { echo "error: exposure $exposure"; exit 1; }
ok "systemd-analyze security: $exposure"
pid=$(on $name systemctl show --value -p MainPID fingerpost)
on $name systemctl show fingerpost -p Type,WatchdogUSec,NotifyAccess,ActiveState | tr '\n' ' ' && echo
caps=$(on $name sh -c "grep -h ^Cap /proc/$pid/status" | awk '$2 !~ /^0+$/')
[ -z "$caps" ] || { echo "error: it has capabilities: $caps"; exit 1; }
# Every directory that the service's user may write to, as its process sees the file system; processes and devices aside. There
# it may run hardly anything: the shell looks by itself.
writable=$(on $name find / \( -path /proc -o -path /sys -o -path /dev \) -prune -o -type d -print |
    docker exec -i $name nsenter -t "$pid" -m -S "$(on $name id -u fingerpost)" -G "$(on $name id -g fingerpost)" -- \
        sh -c 'while read -r directory; do if [ -w "$directory" ]; then echo "$directory"; fi; done' | sort | tr '\n' ' ')
[ "$writable" = "/tmp /var/lib/fingerpost /var/tmp " ] || { echo "error: it may write to: $writable"; exit 1; }
[ "$(on $name stat -c %U:%G:%a /etc/fingerpost/secret)" = root:fingerpost:640 ] || { echo "error: rights of the secret"; exit 1; }
on $name sh -c 'systemctl reload fingerpost && systemctl is-active --quiet fingerpost && journalctl -u fingerpost | grep -q "configuration reloaded"'
ok "no capability; it may write to /var/lib/fingerpost and to temporary directories of its own only"

# The socket unit: connections that come while it is stopped wait.
on $name sh -c 'systemctl stop fingerpost && systemctl start fingerpost-socks5.socket && systemctl start fingerpost'
on $name bash -ec '
    systemctl stop fingerpost 2>/dev/null
    exec 3<>/dev/tcp/127.0.0.1/7625 && printf "\5\1\0" >&3
    systemctl start fingerpost
    [ "$(head -c 2 <&3 | od -An -tx1 | tr -d " ")" = 0500 ]'
on $name sh -c 'systemctl stop fingerpost fingerpost-socks5.socket && systemctl start fingerpost'
ok "a connection made while it was stopped was served after the start"

# Upgrade: data, configuration and secret stay, and so does a stream that is running.
until_true() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done; as alice cat pipe.log; as bob cat pipe.log; return 1; }
as bob bash -c 'xtls pipe --listen >piped 2>pipe.log; echo $? >pipe.status' &
until_true as bob grep listening pipe.log
as alice bash -c '{ echo before; until [ -e /var/tmp/upgraded ]; do sleep 0.2; done; echo after; } | xtls pipe bob@example.org 2>pipe.log; echo $? >pipe.status' &
until_true as bob grep before piped
keys=$(on $name fingerpost keys list)
[ -n "$keys" ] || { echo "error: no keys before the upgrade"; exit 1; }
on $name sh -c 'echo "# mine" >>/etc/fingerpost/config.toml'
before=$(on $name sha256sum /etc/fingerpost/secret)
on $name apt-get install -qq /root/newer.deb >"$directory.log" 2>&1 || { cat "$directory.log"; exit 1; }
[ "$(on $name fingerpost keys list)" = "$keys" ] || { echo "error: the keys changed"; exit 1; }
[ "$(on $name sha256sum /etc/fingerpost/secret)" = "$before" ] || { echo "error: the secret changed"; exit 1; }
on $name grep -q '^# mine' /etc/fingerpost/config.toml
[ "$(on $name systemctl is-active fingerpost)" = active ]
[ "$(on $name systemctl show --value -p MainPID fingerpost)" != "$pid" ] || { echo "error: the old program still runs"; exit 1; }
on $name sh -c 'dpkg-query -W -f "\${Version}\n" fingerpost'
! as bob grep after piped || { echo "error: the stream was not running"; exit 1; }
on $name touch /var/tmp/upgraded
for who in alice bob; do
    until_true as $who test -s pipe.status
    as $who bash -c '[ "$(cat pipe.status)" = 0 ] || { cat pipe.log; exit 1; }'
done
[ "$(as bob cat piped)" = $'before\nafter' ] || { as bob cat piped pipe.log; echo "error: the stream did not survive"; exit 1; }
ok "upgrade: keys, configuration and secret stay, the new program runs, and a running stream went on"

on $name apt-get remove -qq fingerpost >"$directory.log" 2>&1 || { cat "$directory.log"; exit 1; }
! on $name systemctl is-active --quiet fingerpost || { echo "error: it runs after removal"; exit 1; }
on $name test -e /var/lib/fingerpost/fingerpost.db -a -e /etc/fingerpost/config.toml -a ! -e /usr/bin/fingerpost
ok "removed: the program is gone, data and configuration stay"
on $name apt-get purge -qq fingerpost >"$directory.log" 2>&1 || { cat "$directory.log"; exit 1; }
left=$(on $name sh -c 'find / -xdev -name "*fingerpost*" ! -path "/proc/*" ! -path "/home/*" ! -path "/var/log/journal/*" ! -path "/var/lib/dpkg/*" ! -path "/tmp/*" ! -path "/root/*" ! -path "/sys/*"; getent passwd fingerpost' || true)
[ -z "$left" ] || { echo "error: left after purge: $left"; exit 1; }
ok "purged: nothing is left"

on $name lintian --fail-on warning --allow-root /root/newer.deb || { echo "error: lintian"; exit 1; }
ok "lintian"
echo "all passed in $((SECONDS - begun)) s"
