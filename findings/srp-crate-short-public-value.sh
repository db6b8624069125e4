#!/usr/bin/env bash
# srp 0.6.0 (Rust): about one session in 128 gets another secret than any peer that follows RFC 5054.
#
# Expected (RFC 5054, section 2.6): u = SHA1(PAD(A) | PAD(B)); both public values are padded to the length of the prime.
# Seen: A and B are hashed without their leading zero octets, though the multiplier k is padded as the RFC says. With
#   the RFC's own values (appendix B) the secret is right; with a value whose first octet is zero it is not, and the
#   log-in fails as if the password were wrong.
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
srp = "=0.6.0"
sha1 = "=0.10.6"
num-bigint = "=0.4.6"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use num_bigint::BigUint;
use sha1::{Digest, Sha1};
use srp::{client::SrpClient, groups::G_1024, server::SrpServer};

/// The secret of the server by RFC 5054: (A * v^u) ^ b, with u over the padded values.
fn expected(a_pub: &BigUint, b_pub: &BigUint, verifier: &BigUint, b: &BigUint) -> Vec<u8> {
    let pad = |n: &BigUint| {
        let bytes = n.to_bytes_be();
        [vec![0; 128 - bytes.len()], bytes].concat()
    };
    let u = BigUint::from_bytes_be(&Sha1::digest([pad(a_pub), pad(b_pub)].concat()));
    (a_pub * verifier.modpow(&u, &G_1024.n)).modpow(b, &G_1024.n).to_bytes_be()
}

fn main() {
    let (user, password, salt) = (b"alice", b"password123", b"0123456789abcdef");
    let client = SrpClient::<Sha1>::new(&G_1024);
    let server = SrpServer::<Sha1>::new(&G_1024);
    let verifier = client.compute_verifier(user, password, salt);
    let b = BigUint::from(987_654_321u64).pow(20);
    let b_pub = server.compute_public_ephemeral(&b.to_bytes_be(), &verifier);
    // The first private value with a short public value, and the one after it.
    let private = |n: u32| BigUint::from(n).pow(20).to_bytes_be();
    let short = (100_000..).find(|n| client.compute_public_ephemeral(&private(*n)).len() < 128).unwrap();
    for n in [short, short + 1] {
        let a_pub = BigUint::from_bytes_be(&client.compute_public_ephemeral(&private(n)));
        let reply = client.process_reply(&private(n), user, password, salt, &b_pub).unwrap();
        let right = expected(&a_pub, &BigUint::from_bytes_be(&b_pub), &BigUint::from_bytes_be(&verifier), &b);
        let octets = a_pub.to_bytes_be().len();
        println!("A has {octets} octets: the secret is that of RFC 5054: {}", reply.key() == right);
        assert_eq!(reply.key() == right, n != short);
    }
    assert!(b_pub.len() == 128);
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml" --target-dir "$dir/target"
