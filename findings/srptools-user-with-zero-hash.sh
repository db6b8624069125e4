#!/usr/bin/env bash
# srptools 2.0.0 (Python): about one user in 256 has a proof that no other SRP library computes.
#
# Expected (RFC 2945, section 3): the proof hashes H(user) as the hash function gives it, 20 octets for SHA-1.
# Seen: the hash becomes a number and loses its leading zero octets before it is hashed again. For a name whose SHA-1
#   begins with a zero octet, 19 octets are hashed: that user can never log in at another library, all others can.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    srptools==2.0.0

PYTHONPATH=$dir python3 - <<'PYTHON'
import hashlib
from srptools import SRPContext, SRPClientSession, SRPServerSession
from srptools.constants import PRIME_1024, PRIME_1024_GEN


def digest(*parts):
    return hashlib.sha1(b"".join(parts)).digest()


def proofs(name, salt=b"\x55" * 8):
    context = SRPContext(name, "password123")
    verifier = context.get_common_password_verifier(context.get_common_password_hash(salt))
    # Fixed private values whose public values begin with no zero octet.
    server = SRPServerSession(SRPContext(name), password_verifier=f"{verifier:x}", private="77" * 32)
    client = SRPClientSession(context, private="66" * 32)
    client.process(server.public, salt.hex())
    prime, generator = bytes.fromhex(PRIME_1024), bytes([int(PRIME_1024_GEN, 16)])
    mixed = bytes(a ^ b for a, b in zip(digest(prime), digest(generator)))
    rest = [salt, *map(bytes.fromhex, (client.public, server.public, client.key))]
    whole = digest(name.encode())
    return client.key_proof, digest(mixed, whole, *rest).hex(), digest(mixed, whole.lstrip(b"\0"), *rest).hex()


names = [f"user{n}" for n in range(600)]
zero = next(name for name in names if digest(name.encode())[0] == 0)
for name in ("user1", zero):
    own, whole, stripped = proofs(name)
    print(name, "srptools:", own[:12], "RFC 2945:", whole[:12], "without zero octets:", stripped[:12])
own, whole, _ = proofs("user1")
assert own == whole
own, whole, stripped = proofs(zero)
assert own != whole and own == stripped
PYTHON
