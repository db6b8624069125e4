#!/usr/bin/env bash
# Brings the test environment up, sends files both ways across its two servers, kills and starts each part in turn, and
# takes all of it down again. No image is pulled: see deploy/base-image.sh.
#   test.sh PROGRAMS [--keep]    PROGRAMS: the directory with fingerpost and xtls; --keep: leave it running, try nothing
# FINGERPOST_COMPOSE names the compose to use: see deploy/engine.sh. What goes on inside is asked of the engine.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/engine.sh
programs=$1
keep=${2:-}
begun=$SECONDS

find_compose
start_engine target
$FINGERPOST_COMPOSE version 2>/dev/null | grep -i 'compose.* version'
parts() { $engine ps --all --filter label=com.docker.compose.project=$project --format '{{.Names}}'; }
if [ "$keep" != --keep ]; then
    finish() {
        status=$?
        trap - EXIT
        if [ $status -ne 0 ]; then
            echo "FAILED (status $status); the last lines of each part:"
            for part in $(parts); do
                $engine logs --tail 8 "$part" 2>&1 | sed "s/^/$part: /" || true
            done
        fi
        compose_down >/dev/null 2>&1 || true
        stop_engine
        exit $status
    }
    trap finish EXIT
    trap 'exit 1' TERM INT
fi

# podman-compose 1.0.3 ends with status 0 whatever its commands ended with; it prints theirs.
logged() {
    local log=target/compose-$1.log
    compose "$@" >"$log" 2>&1 && ! grep -q '^exit code: [^0]' "$log" || { tail -30 "$log"; exit 1; }
}

FINGERPOST_BASE=$(deploy/base-image.sh)
export FINGERPOST_BASE FINGERPOST_RUST=$FINGERPOST_BASE
deploy/compose/secrets.sh
mkdir -p target/image
cp "$programs/fingerpost" "$programs/xtls" target/image/
[ "$programs" != target/debug ] || strip target/image/*
echo "Building the images"
logged build
compose_down >/dev/null 2>&1 || true
echo "Starting, $((SECONDS - begun)) s"
logged up --detach --no-build
[ "$keep" != --keep ] || { echo "It runs: make compose-down ends it"; exit; }

inside() {
    local part
    part=$(container "$1")
    $engine exec "$part" "${@:2}" </dev/null
}

# until_true SECONDS WHAT COMMAND...
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >target/compose-try.log 2>&1; do
        if [ $SECONDS -ge $end ]; then
            cat target/compose-try.log
            echo "error: not in time: $what"
            return 1
        fi
        sleep 1
    done
}

serial=0
# transfer FROM TO JID: a new file arrives as it was sent.
transfer() {
    local from=$1 to=$2 jid=$3 name sent arrived
    serial=$((serial + 1))
    name=letter-$serial
    inside "$from" sh -c "head -c 1000000 /dev/urandom >/tmp/$name"
    until_true 100 "a file from $from to $to" \
        inside "$from" env XTLS_HOME=/home/user/xtls xtls send "$jid" /tmp/$name
    sent=$(inside "$from" sha256sum /tmp/$name | cut -d' ' -f1)
    arrived=$(inside "$to" sha256sum /home/user/received/$name | cut -d' ' -f1)
    [ -n "$sent" ] && [ "$sent" = "$arrived" ] || { echo "error: $name differs"; return 1; }
}
both_ways() {
    transfer alice bob bob@capulet.test
    transfer bob alice alice@montague.test
    echo "ok      files both ways$1, $((SECONDS - begun)) s"
}
ready() { until_true 60 "$1 is ready" inside "$1" fingerpost-ready; }
says() {
    local answer
    ! answer=$(inside "$1" fingerpost-ready) && [[ $answer == *"$2"* ]]
}
# unready SERVICE TEXT: /readyz says no, and why.
unready() {
    until_true 30 "$1 says: $2" says "$1" "$2"
    echo "ok      $1 is not ready: $2"
}
kill_part() { $engine kill --signal KILL "$(container "$1")" >/dev/null; }
again() { $engine start "$(container "$1")" >/dev/null; }
scraped() {
    inside prometheus promtool query instant http://127.0.0.1:9090 'sum(up{job="fingerpost"})' | grep -q '=> 2 '
}

until_true 60 "both users listen" eval 'inside alice test -e /home/user/registered && inside bob test -e /home/user/registered'
for part in $(parts); do
    [ "$($engine exec "$part" id -u)" -ne 0 ] || { echo "error: $part runs as root"; exit 1; }
    $engine exec "$part" grep -q '^[^ ]* / [^ ]* ro[, ]' /proc/mounts || { echo "error: $part can write to its system"; exit 1; }
done
echo "ok      every part runs as an ordinary user, on a read-only root file system"
both_ways ""
tls=$($engine logs "$(container prosody)" 2>&1 | grep -cE "(Incoming|Outgoing) s2s connection .*capulet.test.* complete" || true)
[ "$tls" -ge 2 ] || { echo "error: no secured connections between the servers"; exit 1; }
until_true 30 "Prometheus scrapes both" scraped
echo "ok      the servers are connected over TLS with checked certificates; Prometheus scrapes both"

for pair in prosody:fingerpost-montague ejabberd:fingerpost-capulet; do
    server=${pair%:*} component=${pair#*:}
    kill_part $server
    unready $component "link to the XMPP server is down"
    again $server
    ready $component
    both_ways ", $server killed and started"
done

kill_part postgres
unready fingerpost-montague "database"
unready fingerpost-capulet "database"
again postgres
ready fingerpost-montague
ready fingerpost-capulet
both_ways ", postgres killed and started"

for component in fingerpost-montague fingerpost-capulet; do
    kill_part $component
    other=fingerpost-capulet
    [ $component != $other ] || other=fingerpost-montague
    ready $other
    again $component
    ready $component
    both_ways ", $component killed and started"
done

for user in alice bob; do
    kill_part $user
    again $user
    both_ways ", $user killed and started"
done

kill_part prometheus
both_ways ", prometheus killed"
again prometheus
until_true 60 "Prometheus scrapes both again" scraped

# Alerts and dashboard, asked of this Prometheus.
inside prometheus promtool check config /etc/prometheus/prometheus.yml
inside prometheus promtool test rules /etc/prometheus/alerts_test.yml
sleep 10
python3 deploy/grafana/queries.py $engine exec "$(container prometheus)" promtool query instant http://127.0.0.1:9090
echo "ok      alerts and the dashboard's queries, $((SECONDS - begun)) s"
echo "all passed in $((SECONDS - begun)) s"
