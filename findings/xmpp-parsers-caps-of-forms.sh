#!/usr/bin/env bash
# xmpp-parsers 0.23.0 (Rust): the fields of an extended disco#info form are hashed in the order in which they came.
#
# Expected (XEP-0115, section 5.1, step 7): the fields of a form are sorted by "var", so that two orders have one hash. Section 5.4: a
#   form whose FORM_TYPE is not hidden is ignored.
# Seen: two orders of the same fields have two hashes. A form without a hidden FORM_TYPE is hashed with an empty type. A
#   client that names its operating system and version in another order than the alphabet's is never verified.
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
use xmpp_parsers::{caps, disco::DiscoInfoResult};

fn text(form_type: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|f| format!("<field var='{f}'><value>1</value></field>")).collect();
    let query = format!(
        "<query xmlns='http://jabber.org/protocol/disco#info'><identity category='client' type='pc'/>\
         <x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' {form_type}><value>u:x</value></field>{fields}</x></query>"
    );
    let info = DiscoInfoResult::try_from(query.parse::<minidom::Element>().unwrap()).unwrap();
    String::from_utf8(caps::compute_disco(&info)).unwrap()
}

fn main() {
    let hidden = "type='hidden'";
    let (sorted, other) = (text(hidden, &["os", "software"]), text(hidden, &["software", "os"]));
    println!("os, software:       {sorted}\nsoftware, os:       {other}");
    assert_eq!(sorted, "client/pc//<u:x<os<1<software<1<");
    assert_eq!(other, "client/pc//<u:x<software<1<os<1<");
    let ignored = text("type='text-single'", &["os"]);
    println!("type not hidden:    {ignored}");
    assert_eq!(ignored, "client/pc//<<os<1<");
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml" --target-dir "${FINDINGS_TARGET:-$dir/target}"
