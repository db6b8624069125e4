#!/usr/bin/env bash
# Tests the slixmpp plugin, first alone, then with `fingerpost` and `xtls` on Prosody and ejabberd, then the bot of examples/bot:
#   python-test.sh PYTHON PROGRAMS
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
timeout 600 "$python" tests/e2e_bot.py || status=$?
exit $status
