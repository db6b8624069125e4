#!/usr/bin/env bash
# xmpp-parsers 0.23.0 (Rust): a data form that is a table is read as an empty form.
#
# Expected (XEP-0004, section 3.4): the result of a search or of a command may have one "reported" element with the columns
#   and an "item" for each row. Section 3: a form may have several "instructions".
# Seen: the columns and all rows are dropped without an error; the form has no fields. A second "instructions" is an error and
#   the whole form is lost.
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
use xmpp_parsers::data_forms::DataForm;

fn read(inside: &str) -> Result<DataForm, xmpp_parsers::Error> {
    let form = format!("<x xmlns='jabber:x:data' type='result'>{inside}</x>");
    form.parse::<minidom::Element>().unwrap().try_into().map_err(Into::into)
}

fn main() {
    let table = "<reported><field var='key' label='Key' type='text-single'/></reported>\
                 <item><field var='key'><value>one</value></field></item>\
                 <item><field var='key'><value>two</value></field></item>";
    let form = read(table).unwrap();
    println!("a table of two rows: {} fields", form.fields.len());
    assert!(form.fields.is_empty());
    assert!(!minidom::Element::from(form).children().any(|c| c.name() == "item"));
    let two = read("<instructions>a</instructions><instructions>b</instructions>");
    println!("two instructions: {:?}", two.as_ref().err());
    assert!(two.is_err() && read("<instructions>a</instructions>").is_ok());
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml" --target-dir "${FINDINGS_TARGET:-$dir/target}"
