#!/usr/bin/env bash
# xmpp-parsers 0.23.0 (Rust): a client with "nick" and "nick+notify" gets another capabilities hash than with any other library.
#
# Expected (XEP-0115, section 5.1): features are sorted, then each is followed by "<". A feature comes before a longer one that
#   begins with it.
# Seen: "<" is appended before the sort. "+" (0x2b) sorts before "<" (0x3c), so "…/nick+notify" comes before "…/nick". The
#   same happens with "#", "-", ".", "/", ":" and digits. Nearly every client that uses personal events has such a pair;
#   its hash is then refused, and each of its contacts asks for its features again.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2021"

[dependencies]
minidom = "=0.19.0"
xmpp-parsers = "=0.23.0"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use xmpp_parsers::{caps, disco::DiscoInfoResult, hashes::Algo};

fn hash(features: &[&str]) -> (String, String) {
    let features: String = features.iter().map(|f| format!("<feature var='{f}'/>")).collect();
    let query = format!(
        "<query xmlns='http://jabber.org/protocol/disco#info'><identity category='client' type='pc'/>{features}</query>"
    );
    let info = DiscoInfoResult::try_from(query.parse::<minidom::Element>().unwrap()).unwrap();
    let text = caps::compute_disco(&info);
    let hash = caps::hash_caps(&text, Algo::Sha_1).unwrap().to_base64();
    (String::from_utf8(text).unwrap(), hash)
}

fn main() {
    // By section 5.1: printf %s TEXT | openssl dgst -sha1 -binary | openssl base64
    let (text, seen) = hash(&["http://jabber.org/protocol/nick", "http://jabber.org/protocol/nick+notify"]);
    println!("{text}\n{seen}");
    assert_eq!(text, "client/pc//<http://jabber.org/protocol/nick+notify<http://jabber.org/protocol/nick<");
    assert_ne!(seen, "3w7jo0rjmhZQcxDmHyIeMb4cL8M=");
    // Two features that do not begin alike are in the right order.
    let (text, seen) = hash(&["u:b", "u:a"]);
    println!("{text}\n{seen}");
    assert_eq!(seen, "3aAd1mPtUbZLtGs7KJw9LpbVCMM=");
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml" --target-dir "${FINDINGS_TARGET:-$dir/target}"
