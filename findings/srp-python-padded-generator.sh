#!/usr/bin/env bash
# srp 1.0.22 and srptools 2.0.0 (Python): the same group, hash and password, and no log-in between the two.
#
# Expected (RFC 2945, section 3): the client's proof is M = H(H(N) XOR H(g) | H(user) | salt | A | B | K). RFC 5054 pads g
#   in the multiplier k = H(N | PAD(g)) only.
# Seen: after rfc5054_enable() srp pads g in the proof too. Both libraries compute the same session key K, and the proofs
#   differ, so each refuses the other although the password is right.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    srp==1.0.22 srptools==2.0.0 six==1.17.0

PYTHONPATH=$dir python3 - <<'PYTHON'
import hashlib
import srp._pysrp as srp
from srptools import SRPContext, SRPServerSession
from srptools.constants import PRIME_2048, PRIME_2048_GEN


def digest(*parts):
    return hashlib.sha1(b"".join(parts)).digest()


def octets(number):
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


srp.rfc5054_enable()
context = SRPContext("alice", "password123", prime=PRIME_2048, generator=PRIME_2048_GEN, hash_func=hashlib.sha1)
_, verifier, salt = context.get_user_data_triplet()
server = SRPServerSession(
    SRPContext("alice", prime=PRIME_2048, generator=PRIME_2048_GEN, hash_func=hashlib.sha1), password_verifier=verifier
)
user = srp.User("alice", "password123", hash_alg=srp.SHA1, ng_type=srp.NG_2048)
_, a_public = user.start_authentication()
salt, b_public = bytes.fromhex(salt), bytes.fromhex(server.public)
proof = user.process_challenge(salt, b_public)
server.process(a_public.hex(), salt.hex())

prime, generator, key = bytes.fromhex(PRIME_2048), octets(int(PRIME_2048_GEN, 16)), user.K


def proof_with(g):
    mixed = bytes(a ^ b for a, b in zip(digest(prime), digest(g)))
    return digest(mixed, digest(b"alice"), salt, a_public, b_public, key)


print("session key of srp:     ", key.hex())
print("session key of srptools:", server.key)
print("proof of srp:     ", proof.hex())
print("proof of srptools:", server.key_proof)
assert key.hex() == server.key
assert server.key_proof == proof_with(generator).hex(), "srptools follows RFC 2945"
assert proof == proof_with(generator.rjust(len(prime), b"\0")), "srp pads g"
assert not server.verify_proof(proof.hex())
PYTHON
