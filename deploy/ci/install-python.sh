#!/usr/bin/env bash
# Makes the Python environment of the independent clients in FOLDER, with the pinned packages: install-python.sh FOLDER
set -euo pipefail

folder=$1
requirements="$(dirname "$0")/../../tests/peers/requirements.txt"
stamp="$folder/.installed"
cmp -s "$requirements" "$stamp" && exit 0

echo "Making $folder"
python3 -m venv --clear "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$requirements" </dev/null
cp "$requirements" "$stamp"
