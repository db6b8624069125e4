#!/usr/bin/env bash
# aioxmpp 0.13.3 and slixmpp 1.17.0: a client whose name has an "&" has two capabilities hashes.
#
# Expected (XEP-0115, section 5.1): the name is hashed as it is, "R&D", whatever it looks like inside of XML.
# Seen: aioxmpp escapes it again and hashes "R&amp;D"; slixmpp does not. Each takes the other's hash for a forged one. The same
#   goes for a name, feature or form value with ">".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    aioxmpp==0.13.3 slixmpp==1.17.0 pytz==2026.6 tzlocal==5.4.5

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import base64
import hashlib
import io
import xml.etree.ElementTree as ET

import aioxmpp.disco.xso
import aioxmpp.xml
from aioxmpp.entitycaps import caps115
from slixmpp import ClientXMPP
from slixmpp.plugins.xep_0030 import DiscoInfo

client = ClientXMPP("a@example.org", "")
client.register_plugin("xep_0115")


def hashes(name):
    query = (
        "<query xmlns='http://jabber.org/protocol/disco#info'>"
        f"<identity category='client' type='pc' name='{name}'/><feature var='u:a'/></query>"
    )
    info = aioxmpp.xml.read_single_xso(io.BytesIO(query.encode()), aioxmpp.disco.xso.InfoQuery)
    return caps115.hash_query(info, "sha1"), client["xep_0115"].generate_verstring(DiscoInfo(xml=ET.fromstring(query)), "sha-1")


def by_section_5_1(name):
    return base64.b64encode(hashlib.sha1(f"client/pc//{name}<u:a<".encode()).digest()).decode()


for written, name in (("R&amp;D phone", "R&D phone"), ("RD phone", "RD phone")):
    by_aioxmpp, by_slixmpp = hashes(written)
    print(f"{name!r}: aioxmpp {by_aioxmpp} slixmpp {by_slixmpp} by section 5.1 {by_section_5_1(name)}")
    assert by_slixmpp == by_section_5_1(name)
    assert (by_aioxmpp == by_slixmpp) == ("&" not in name)
assert hashes("R&amp;D phone")[0] == by_section_5_1("R&amp;D phone")
PYTHON
