#!/usr/bin/env bash
# Tests the libraries for Python and C with real servers and `xtls`: bindings-test.sh VENV PROGRAMS
# VENV is an environment with maturin, PROGRAMS the directory of `fingerpost` and `xtls`. CARGO_TARGET_DIR is where both are built.
set -euo pipefail
venv=$(realpath -s "$1")
FINGERPOST_PROGRAMS=$(realpath "$2")
export FINGERPOST_PROGRAMS PYTHONDONTWRITEBYTECODE=1 PROPTEST_RNG_SEED=1
cd "$(dirname "$0")/../../bindings"

# Without the Python crate, which maturin builds with settings of its own.
cargo test --locked -p fingerpost-bindings -p fingerpost-c --no-run --message-format=json >"$CARGO_TARGET_DIR/bindings-tests.json"
cargo test --locked -p fingerpost-bindings -p fingerpost-c
# A test alone leaves the C library among the dependencies. With the tests among the targets nothing is built twice.
cargo build --locked -p fingerpost-bindings -p fingerpost-c --lib --tests
FINGERPOST_RANDOM_CALLS=$(python3 - "$CARGO_TARGET_DIR/bindings-tests.json" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "random_calls":
        print(message["executable"])
PY
)
export FINGERPOST_RANDOM_CALLS FINGERPOST_HELLO=$CARGO_TARGET_DIR/debug/examples/hello

rm -rf "$CARGO_TARGET_DIR/bindings-c" "$CARGO_TARGET_DIR/wheels"
c/install.sh "$CARGO_TARGET_DIR/debug" "$CARGO_TARGET_DIR/bindings-c"
export FINGERPOST_C=$CARGO_TARGET_DIR/bindings-c

"$venv/bin/maturin" build --quiet --locked -m python/Cargo.toml --out "$CARGO_TARGET_DIR/wheels"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --force-reinstall --no-deps --no-index \
    "$CARGO_TARGET_DIR"/wheels/fingerpost-*.whl

timeout 600 "$venv/bin/python" c/tests/test_examples.py
timeout 600 "$venv/bin/python" python/tests/test_fingerpost.py
timeout 600 "$venv/bin/python" hello/test_pages.py
