#!/usr/bin/env bash
# xmpppy 0.7.4: an "@" in the resource of an address without a localpart moves the domain.
#
# Expected (RFC 7622, section 3.1 and 3.4): the resource begins at the first "/" and may contain "@". So the
#   address "proxy.example/relay@1" is the resource "relay@1" of the domain "proxy.example".
# Seen: the library looks for "@" first. It reads the localpart "proxy.example/relay" of the domain "1". Components and
#   servers have addresses without a localpart, so a stanza from one of them gets another sender.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    xmpppy==0.7.4 six==1.17.0

PYTHONPATH=$dir python3 - <<'PYTHON'
from xmpp.protocol import JID, Message

jid = JID("proxy.example/relay@1")
print("localpart:", jid.getNode(), "domain:", jid.getDomain(), "resource:", repr(jid.getResource()))
assert (jid.getNode(), jid.getDomain(), jid.getResource()) == ("proxy.example/relay", "1", "")

sender = Message(frm="proxy.example/relay@1").getFrom()
print("sender without resource:", sender.getStripped())
assert sender.getStripped() == "proxy.example/relay@1"

# With a localpart the same resource is read as it should be.
assert JID("alice@proxy.example/relay@1").getResource() == "relay@1"
PYTHON
