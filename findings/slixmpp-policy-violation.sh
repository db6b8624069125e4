#!/usr/bin/env bash
# slixmpp 1.17.0: the error condition policy-violation is read as no condition at all.
#
# Expected (RFC 6120, section 8.3.3.12): policy-violation is one of the 22 defined conditions; servers send it when a stanza is too
#   large or sent too fast.
# Seen: the condition is an empty text, so the program cannot tell a rate limit from anything else. All the others are read.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    slixmpp==1.17.0

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import xml.etree.ElementTree as ET

from slixmpp.stanza import Iq

CONDITIONS = (
    "bad-request conflict feature-not-implemented forbidden gone internal-server-error item-not-found jid-malformed "
    "not-acceptable not-allowed not-authorized policy-violation recipient-unavailable redirect registration-required "
    "remote-server-not-found remote-server-timeout resource-constraint service-unavailable subscription-required "
    "undefined-condition unexpected-request"
).split()
unread = []
for condition in CONDITIONS:
    text = (
        "<iq xmlns='jabber:client' type='error' id='1'><error type='wait'>"
        f"<{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
    )
    if Iq(xml=ET.fromstring(text))["error"]["condition"] != condition:
        unread.append(condition)
print(len(CONDITIONS), "conditions, not read:", unread)
assert unread == ["policy-violation"]
PYTHON
