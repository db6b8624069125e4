#!/usr/bin/env bash
# slixmpp 1.17.0 and aioxmpp 0.13.3: a disco#info form whose FORM_TYPE is not hidden is hashed.
#
# Expected (XEP-0115, section 5.4, step 3): such a form is ignored, and processing continues without it.
# Seen: both hash it, each in another way. So the hash of a client that follows the XEP is taken for a forged one.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    aioxmpp==0.13.3 slixmpp==1.17.0 pytz==2026.6 tzlocal==5.4.5

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import io
import xml.etree.ElementTree as ET

import aioxmpp.disco.xso
import aioxmpp.forms
import aioxmpp.xml
from aioxmpp.entitycaps import caps115
from slixmpp import ClientXMPP
from slixmpp.plugins.xep_0030 import DiscoInfo

client = ClientXMPP("a@example.org", "")
client.register_plugin("xep_0115")


def hashes(form):
    query = (
        "<query xmlns='http://jabber.org/protocol/disco#info'>"
        f"<identity category='client' type='pc'/><feature var='u:a'/>{form}</query>"
    )
    info = aioxmpp.xml.read_single_xso(io.BytesIO(query.encode()), aioxmpp.disco.xso.InfoQuery)
    return {
        "aioxmpp": caps115.hash_query(info, "sha1"),
        "slixmpp": client["xep_0115"].generate_verstring(DiscoInfo(xml=ET.fromstring(query)), "sha-1"),
    }


FORM = (
    "<x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' type='text-single'><value>u:x</value></field>"
    "<field var='os' type='text-single'><value>linux</value></field></x>"
)
without, visible = hashes(""), hashes(FORM)
for name in without:
    print(f"{name}: without the form {without[name]}, with it {visible[name]}")
    assert without[name] != visible[name]
assert without["aioxmpp"] == without["slixmpp"]
PYTHON
