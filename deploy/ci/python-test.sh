#!/usr/bin/env bash
# Tests the slixmpp plugin, first alone and then with `fingerpost` and `xtls` on Prosody and ejabberd: python-test.sh PYTHON PROGRAMS
set -euo pipefail
python=$(realpath -s "$1")
FINGERPOST_PROGRAMS=$(realpath "$2")
export FINGERPOST_PROGRAMS PYTHONDONTWRITEBYTECODE=1
cd "$(dirname "$0")/../../python"
export PYTHONPATH=$PWD
timeout 120 "$python" -m unittest discover -s tests
timeout 600 "$python" tests/e2e.py
