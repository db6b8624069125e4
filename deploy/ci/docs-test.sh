#!/usr/bin/env bash
# Checks that every block of commands in the documentation is marked, and runs those marked `run`, each in a new directory:
# docs-test.sh PROGRAMS
set -euo pipefail
programs=$(realpath "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 deploy/ci/doc_blocks.py check README.md CONTRIBUTING.md docs/*.md examples/bot/README.md
python3 deploy/ci/doc_blocks.py scripts "$work/blocks" README.md CONTRIBUTING.md docs/*.md
count=0
for script in "$work"/blocks/*.here; do
    [ -e "$script" ] || continue
    directory=$(mktemp -d -p "$work")
    (cd "$directory" && HOME=$directory PATH="$programs:$PATH" timeout 60 bash -euo pipefail "$script" >log 2>&1 </dev/null) ||
        { sed -n 1p "$script"; cat "$directory/log"; exit 1; }
    count=$((count + 1))
done
[ $count -gt 0 ]
echo "$count blocks of commands ran"
