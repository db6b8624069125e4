#!/usr/bin/env bash
# Tests the slixmpp plugin, first alone and then with `fingerpost` and `xtls` on Prosody and ejabberd: python-test.sh PYTHON PROGRAMS
set -euo pipefail
python=$(realpath -s "$1")
FINGERPOST_PROGRAMS=$(realpath "$2")
export FINGERPOST_PROGRAMS PYTHONDONTWRITEBYTECODE=1
cd "$(dirname "$0")/../../python"
export PYTHONPATH=$PWD
timeout 120 "$python" -m unittest discover -s tests

# Both servers at the same time: most of a test is waiting.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
timeout 600 "$python" tests/e2e.py Ejabberd >"$log" 2>&1 &
other=$!
status=0
timeout 600 "$python" tests/e2e.py Prosody || status=$?
wait $other || status=$?
cat "$log"
exit $status
