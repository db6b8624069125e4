#!/usr/bin/env bash
# slixmpp 1.17.0 and aioxmpp 0.13.3: an address whose domain ends with a dot is another address.
#
# Expected (RFC 7622, section 3.2): the final dot is stripped before addresses are compared or a stanza is routed.
# Seen: it stays. Prosody strips it, so an answer comes from an address that the library takes for somebody else.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    slixmpp==1.17.0 aioxmpp==0.13.3 pytz==2026.6 tzlocal==5.4.5

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import aioxmpp
import slixmpp

for name, read in (("slixmpp", slixmpp.JID), ("aioxmpp", aioxmpp.JID.fromstr)):
    dotted, plain = read("a@example.org."), read("a@example.org")
    print(f"{name}: {dotted} and {plain} are equal: {dotted == plain}")
    assert dotted != plain and str(dotted) == "a@example.org."
    assert read("a@EXAMPLE.org") == plain
PYTHON
