#!/usr/bin/env bash
# sasl 0.5.2 (Rust, used by tokio-xmpp): SCRAM takes a password as it is typed, without SASLprep.
#
# Expected (RFC 5802, sections 2.2 and 3): SaltedPassword = Hi(Normalize(password), salt, i); Normalize is SASLprep (RFC 4013). A
#   no-break space is a space, "Ⅸ" is "IX", a soft hyphen is nothing.
# Seen: other proofs for spellings that are one password. A server that stored the prepared password answers that the password
#   is wrong. slixmpp, aiosasl and nbxmpp prepare it.
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
sasl = "=0.5.2"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use sasl::{client::{mechanisms::Scram, Mechanism}, common::scram::Sha256};

/// The proof that the client sends, and nothing that is random: the nonce of the server replaces that of the client.
fn key(password: &str) -> Vec<u8> {
    use sasl::common::{scram::ScramProvider, Password};
    Sha256::derive(&Password::Plain(password.to_owned()), b"sixteen octets ..", 4096).unwrap()
}

fn main() {
    // The mechanism accepts them all.
    for (typed, prepared) in [("caf\u{e9}\u{a0}9", "caf\u{e9} 9"), ("\u{2168}", "IX"), ("pass\u{ad}word", "password")] {
        Scram::<Sha256>::new("alice", typed, sasl::common::ChannelBinding::Unsupported).unwrap().initial();
        println!("{typed:?} and {prepared:?} are one password: {}", key(typed) == key(prepared));
        assert_ne!(key(typed), key(prepared));
    }
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml" --target-dir "${FINDINGS_TARGET:-$dir/target}"
