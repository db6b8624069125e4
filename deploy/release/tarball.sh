#!/usr/bin/env bash
# Packs static programs with their manual pages and completions; the same programs give the same bytes:
#   tarball.sh PROGRAMS FILES TARGET OUT      FILES is the directory that `xtask package` has written
set -euo pipefail
programs=$1 files=$2 target=$3
out=$(realpath "$4")
cd "$(dirname "$0")/../.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
epoch=$(git log -1 --format=%ct)
name=fingerpost-$version-$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -D -t "$work/$name" "$programs/fingerpost" "$programs/xtls"
install -m 644 -t "$work/$name" README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$files/config.toml"
for kind in man bash zsh fish; do
    install -D -m 644 -t "$work/$name/$kind" "$files/$kind"/*
done
tar -C "$work" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=gnu --mode=u+rwX,go=rX -c "$name" |
    gzip -n -9 >"$out/$name.tar.gz"
