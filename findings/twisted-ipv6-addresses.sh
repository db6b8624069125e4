#!/usr/bin/env bash
# Twisted 26.10.0 (the addresses of wokkel and Tx-XMPP): an address at an IPv6 literal is refused.
#
# Expected (RFC 7622, section 3.2): a domainpart is an IPv6 literal in brackets, an IPv4 address, or a domain name.
# Seen: InvalidFormat, "Invalid character in hostname", so no stanza from a server that is known by its IPv6 address can be
#   handled. An IPv4 address is taken.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    Twisted==26.10.0 six==1.17.0

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
from twisted.words.protocols.jabber.jid import JID, InvalidFormat


def read(address):
    try:
        return JID(address).full()
    except InvalidFormat as error:
        return f"InvalidFormat: {error}"


for address, seen in (
    ("a@[2001:db8::1]/r", "InvalidFormat: Invalid character in hostname"),
    ("a@192.0.2.1/r", "a@192.0.2.1/r"),
):
    print(address, "->", read(address))
    assert read(address) == seen
PYTHON
