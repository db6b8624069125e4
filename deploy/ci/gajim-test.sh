#!/usr/bin/env bash
# Tests the plugin for Gajim with `fingerpost` and `xtls`, in network namespaces of their own: gajim-test.sh PYTHON PROGRAMS
# FINGERPOST_TEST_DEBIAN=trixie takes the Gajim of Debian 13, in a root that trixie.sh makes in target/trixie-gajim.
# FINGERPOST_WRITE_SCREENSHOTS=1 writes the screenshots of docs/.
set -euo pipefail
python=$(realpath -s "$1")
FINGERPOST_PROGRAMS=$(realpath "$2")
export FINGERPOST_PROGRAMS PYTHONDONTWRITEBYTECODE=1
cd "$(dirname "$0")/../.."
[ "$(id -u)" -eq 0 ] || { echo "error: network namespaces need root" >&2; exit 1; }

case ${FINGERPOST_TEST_DEBIAN:-} in
    '') ;;
    trixie)
        root=target/trixie-gajim
        deploy/ci/trixie.sh $root gajim python3-openssl xvfb xauth dbus fonts-dejavu-core librsvg2-common
        # The protocol, and the parts without Gajim and GTK, with its libraries.
        for test in python/tests/test_session.py gajim/tests/test_parts.py; do
            timeout 300 deploy/ci/in-root.sh $root "$PWD" env PYTHONPATH="$PWD/python" /usr/bin/python3 "$PWD/$test"
        done
        ;;
    *) echo "error: FINGERPOST_TEST_DEBIAN: expected trixie or nothing, found $FINGERPOST_TEST_DEBIAN" >&2; exit 1 ;;
esac

# a ── hub ── b: the hub has an address in both networks, and forwards nothing.
hub=gajim-$$-hub
export FINGERPOST_NETNS_A=gajim-$$-a FINGERPOST_NETNS_B=gajim-$$-b
trap 'for name in $hub $FINGERPOST_NETNS_A $FINGERPOST_NETNS_B; do ip netns delete "$name" 2>/dev/null || true; done' EXIT
for name in $hub $FINGERPOST_NETNS_A $FINGERPOST_NETNS_B; do
    ip netns add "$name"
    ip -n "$name" link set lo up
done
# A new namespace takes this setting from the machine.
ip netns exec $hub sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'
number=0
for name in $FINGERPOST_NETNS_A $FINGERPOST_NETNS_B; do
    number=$((number + 1))
    ip -n $hub link add to-$number type veth peer name eth0 netns "$name"
    ip -n $hub address add 10.77.$number.1/24 dev to-$number
    ip -n $hub link set to-$number up
    ip -n "$name" address add 10.77.$number.2/24 dev eth0
    ip -n "$name" link set eth0 up
    # Gajim logs in only where there seems to be a way to everywhere.
    ip -n "$name" route add default via 10.77.$number.1
done

timeout 900 ip netns exec $hub "$python" gajim/tests/e2e.py "${@:3}"
