#!/usr/bin/env bash
# Creates a Python environment in DIRECTORY with pinned packages: install-python.sh DIRECTORY [REQUIREMENTS]
# By default they are those of the independent clients.
set -euo pipefail

directory=$1
requirements=${2:-$(dirname "$0")/../../tests/peers/requirements.txt}
stamp="$directory/.installed"
cmp -s "$requirements" "$stamp" && exit 0

echo "Making $directory"
python3 -m venv --clear "$directory"
"$directory/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$requirements" </dev/null
cp "$requirements" "$stamp"
