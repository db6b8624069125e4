#!/usr/bin/env bash
# Checks licences, bans and sources of all dependencies, and advisories if their database can be fetched: deny.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

version=0.20.2
# Built without optimisation: it runs for seconds and would otherwise compile for many minutes. Where it cannot be built,
# or not in a quarter of an hour, nothing is checked, and this is no reason to hold anything up.
if ! cargo deny --version >/dev/null 2>&1 &&
    ! timeout 900 cargo install cargo-deny --version $version --locked --debug --quiet </dev/null; then
    echo "note: cargo-deny cannot be installed here: licences, bans, sources and advisories were NOT checked"
    exit 0
fi

cargo deny --log-level error check bans licenses sources
cargo deny --log-level error --config deny.toml --manifest-path bindings/Cargo.toml check bans licenses sources
if timeout 60 cargo deny --log-level error fetch db >/dev/null 2>&1 </dev/null; then
    cargo deny --log-level error check --disable-fetch advisories
else
    echo "note: the advisory database cannot be fetched from here: advisories were NOT checked"
fi
