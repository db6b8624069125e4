#!/usr/bin/env bash
# Creates the Python environment of the independent clients in DIRECTORY, with the pinned packages: install-python.sh DIRECTORY
set -euo pipefail

directory=$1
requirements="$(dirname "$0")/../../tests/peers/requirements.txt"
stamp="$directory/.installed"
cmp -s "$requirements" "$stamp" && exit 0

echo "Making $directory"
python3 -m venv --clear "$directory"
"$directory/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$requirements" </dev/null
cp "$requirements" "$stamp"
