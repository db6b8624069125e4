#!/usr/bin/env bash
# slixmpp 1.17.0: BLAKE2b has names of its own, and a program that asks for the standard one gets a KeyError.
#
# Expected (XEP-0300, section 3, table 1): the functions are called "blake2b-256" and "blake2b-512".
# Seen: they are known as "BLAKE2b256" and "BLAKE2b512" and written so into the "algo" attribute, where no other library finds them.
#   The SHA-2 and SHA-3 names are the standard's.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    slixmpp==1.17.0

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import pathlib
import tempfile

from slixmpp import ClientXMPP

client = ClientXMPP("a@example.org", "")
client.register_plugin("xep_0300")
with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory, "file")
    file.write_bytes(b"abc")
    for name in ("sha3-256", "blake2b-256", "BLAKE2b256", "blake2b-512", "BLAKE2b512"):
        try:
            seen = client["xep_0300"].compute_hash(file, function=name)["algo"]
        except KeyError as error:
            seen = f"KeyError {error}"
        print(f"{name}: {seen}")
        assert (seen == name) == (not name.startswith("blake2b-"))
PYTHON
