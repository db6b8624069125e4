#!/usr/bin/env bash
# Tests the slixmpp plugin, and the parts of the plugin for Gajim, first alone, then with `fingerpost` and `xtls` on Prosody and ejabberd, then the bot of examples/bot:
#   python-test.sh PYTHON PROGRAMS
set -euo pipefail
python=$(realpath -s "$1")
FINGERPOST_PROGRAMS=$(realpath "$2")
export FINGERPOST_PROGRAMS PYTHONDONTWRITEBYTECODE=1
cd "$(dirname "$0")/../../python"
export PYTHONPATH=$PWD
timeout 120 "$python" -m unittest discover -s tests
# With the libraries of the distribution, where Gajim is: the protocol again, and the plugin for Gajim without Gajim.
timeout 120 /usr/bin/python3 -m unittest discover -s ../gajim/tests
timeout 120 /usr/bin/python3 -m unittest tests/test_session.py

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
