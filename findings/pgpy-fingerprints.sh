#!/usr/bin/env bash
# PGPy 0.6.0: a fingerprint in lower case is another fingerprint, and one with blanks is the same but not found.
#
# Expected (RFC 4880, section 12.2): a fingerprint is 20 octets; case and blanks belong to its display. Objects that are equal have equal
#   hashes (Python's data model).
# Seen: a fingerprint is equal to its text with blanks, but a set or a table of known keys does not find that text; in lower case, as
#   some lists and links write it, it is not equal at all.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    PGPy==0.6.0 cryptography==50.0.2 pyasn1==0.6.5

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
from pgpy.constants import EllipticCurveOID, HashAlgorithm, KeyFlags, PubKeyAlgorithm
from pgpy import PGPUID, PGPKey

key = PGPKey.new(PubKeyAlgorithm.EdDSA, EllipticCurveOID.Ed25519)
key.add_uid(PGPUID.new("alice"), usage={KeyFlags.Sign}, hashes=[HashAlgorithm.SHA256])
own = key.fingerprint
plain = str(own)
spaced = " ".join(plain[i : i + 4] for i in range(0, 40, 4))
for text in (plain, spaced, plain.lower()):
    print(f"{text}: equal {own == text}, found in a set {text in {own}}")
assert own == plain and plain in {own}
assert own == spaced and spaced not in {own}
assert (own == plain.lower()) == (not any(c.isalpha() for c in plain))
PYTHON
