#!/usr/bin/env bash
# Measures one stream of the libraries in Rust, C and Python, in turns: bindings-bench.sh VENV PROGRAMS ROUNDS
# VENV is an environment with maturin, PROGRAMS the directory of `fingerpost` and `xtls`. CARGO_TARGET_DIR is where all is built.
set -euo pipefail
venv=$(realpath -s "$1")
FINGERPOST_PROGRAMS=$(realpath "$2")
rounds=$3
export FINGERPOST_PROGRAMS PYTHONDONTWRITEBYTECODE=1
cd "$(dirname "$0")/../../bindings"
export FINGERPOST_BENCH=$CARGO_TARGET_DIR/bindings-bench
wheels=$FINGERPOST_BENCH/wheels
prefix=$FINGERPOST_BENCH/c
rm -rf "$FINGERPOST_BENCH"
mkdir "$FINGERPOST_BENCH"

cargo build --release --locked -p fingerpost-c -p fingerpost-bindings --lib --example stream
cp "$CARGO_TARGET_DIR/release/examples/stream" "$FINGERPOST_BENCH/"
c/install.sh "$CARGO_TARGET_DIR/release" "$prefix"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
# shellcheck disable=SC2046
cc -O2 bench/stream.c -o "$FINGERPOST_BENCH/stream_c" $(pkg-config --cflags --libs fingerpost) "-Wl,-rpath,$prefix/lib"
"$venv/bin/maturin" build --quiet --release --locked -m python/Cargo.toml --out "$wheels"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --force-reinstall --no-deps --no-index "$wheels"/*.whl
"$venv/bin/python" bench/run.py "$rounds" 1024
