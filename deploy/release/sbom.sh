#!/usr/bin/env bash
# Writes what each program is made of as CycloneDX: sbom.sh SOURCE.tar.gz OUT
set -euo pipefail
source=$(realpath "$1") out=$(realpath "$2")
# Also keeps the tool from numbering each file at random.
SOURCE_DATE_EPOCH=$(git -C "$(dirname "$0")" log -1 --format=%ct)
export SOURCE_DATE_EPOCH
version=$(basename "$source" .tar.gz)
version=${version#fingerpost-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$work" -xzf "$source"
cd "$work/fingerpost-$version"
cargo cyclonedx --quiet --format json --spec-version 1.5 --all --target x86_64-unknown-linux-gnu
# The tool names the directory of the sources, which is a temporary one here.
sed "s|$PWD|/fingerpost|g" fingerpost.cdx.json >"$out/fingerpost-$version.cdx.json"
sed "s|$PWD|/fingerpost|g" crates/xtls/fingerpost-xtls.cdx.json >"$out/xtls-$version.cdx.json"
