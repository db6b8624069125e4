#!/usr/bin/env bash
# socksio 1.0.0: a SOCKS5 reply that names a domain is read past its end.
#
# Expected (RFC 1928, section 6; XEP-0065, section 5.3.2): a reply of address type 3 has one octet of length, then that many
#   octets of name, then the port. A proxy of XEP-0065 answers with the hash that it was asked for, 40 octets. Bytes
#   after the port belong to the stream.
# Seen: the length octet becomes the first character of the name. If stream bytes come in the same read, they are taken
#   into the name and the port, and the stream loses them without an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    socksio==1.0.0

PYTHONPATH=$dir python3 - <<'PYTHON'
import hashlib
from socksio import socks5

HASH = hashlib.sha1(b"sid" + b"alice@example.org/a" + b"bob@example.org/b").hexdigest()
REPLY = b"\x05\x00\x00\x03" + bytes([len(HASH)]) + HASH.encode() + b"\x00\x00"


def read(data):
    connection = socks5.SOCKS5Connection()
    connection.send(socks5.SOCKS5AuthMethodsRequest([socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]))
    connection.data_to_send()
    connection.receive_data(b"\x05\x00")
    connection.send(socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (HASH, 0)))
    connection.data_to_send()
    return connection.receive_data(data)


alone = read(REPLY)
print("reply alone:      ", repr(alone.addr), alone.port)
assert alone.addr == chr(len(HASH)) + HASH and alone.port == 0

followed = read(REPLY + b"<?xml")
print("reply and 5 bytes:", repr(followed.addr), followed.port)
assert followed.addr.endswith(HASH + "\x00\x00<?x") and followed.port == int.from_bytes(b"ml", "big")
PYTHON
