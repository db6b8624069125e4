#!/usr/bin/env bash
# xmpp-parsers 0.23.0 (Rust): a message of a type that it does not know cannot be read at all.
#
# Expected (RFC 6121, section 5.2.2): an application that does not understand the type of a message treats it as "normal".
# Seen: an error, so the body is lost. A receiver that is built on it, such as tokio-xmpp, drops the message.
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
use xmpp_parsers::message::Message;

fn main() {
    let read = |type_: &str| {
        let text = format!("<message xmlns='jabber:client' from='a@example.org' type='{type_}'><body>hello</body></message>");
        Message::try_from(text.parse::<minidom::Element>().unwrap())
    };
    let unknown = read("announcement");
    println!("type announcement: {:?}", unknown.as_ref().err());
    assert!(unknown.is_err());
    assert_eq!(read("normal").unwrap().bodies.len(), 1);
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml" --target-dir "${FINDINGS_TARGET:-$dir/target}"
