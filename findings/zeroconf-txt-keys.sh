#!/usr/bin/env bash
# zeroconf 0.154.0 (Python): the keys of a TXT record are compared with case, and one without a name is kept.
#
# Expected (RFC 6763, section 6.4): case is ignored in keys; of a key that comes twice the first counts; an item that begins with "="
#   is ignored. Section 6.1: a record with nothing but an empty string has no keys. XEP-0174 keeps a user's status there.
# Seen: "Status" and "status" are two keys, so a reader that looks for "status" gets the second value. "=x" and the empty record
#   both give a key with an empty name.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    zeroconf==0.154.0 ifaddr==0.2.0

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
from zeroconf import ServiceInfo


def keys(*items):
    record = b"".join(bytes([len(item)]) + item for item in items)
    service = ServiceInfo("_presence._tcp.local.", "a@host._presence._tcp.local.", port=5298, properties=record)
    return service.properties


for items, seen in (
    ((b"Status=avail", b"status=dnd"), {b"Status": b"avail", b"status": b"dnd"}),
    ((b"status=avail", b"status=dnd"), {b"status": b"avail"}),
    ((b"=x", b"txtvers=1"), {b"": b"x", b"txtvers": b"1"}),
    ((b"",), {b"": None}),
):
    print(items, "->", keys(*items))
    assert keys(*items) == seen
PYTHON
