#!/usr/bin/env bash
# nbxmpp 7.4.0 (the library of Gajim): an address at an IPv6 literal loses its brackets and is another address then.
#
# Expected (RFC 7622, section 3.2; RFC 3986, section 3.2.2): an IPv6 literal stands in brackets, "a@[2001:db8::1]/r". What is
#   read and written again is the same address.
# Seen: the brackets go when the address is read and do not come back when it is written: "a@2001:db8::1/r", which the
#   grammar does not have. So a stanza to a server that is known by its IPv6 address carries no valid "to".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" --no-deps \
    nbxmpp==7.4.0 packaging==26.4 idna==3.20 precis-i18n==1.1.2
# GLib serves its network code only. A stand-in spares the build of PyGObject.
mkdir "$dir/gi"
cat >"$dir/gi/__init__.py" <<'PYTHON'
import sys
from unittest.mock import MagicMock

require_version = MagicMock()
repository = sys.modules["gi.repository"] = MagicMock()
repository.GLib.MAJOR_VERSION, repository.GLib.MINOR_VERSION, repository.GLib.MICRO_VERSION = 2, 80, 0
PYTHON

PYTHONPATH=$dir python3 - <<'PYTHON'
from nbxmpp.protocol import JID

sent = "a@[2001:db8::1]/r"
jid = JID.from_string(sent)
print(sent, "->", jid)
assert jid.domain == "2001:db8::1" and str(jid) == "a@2001:db8::1/r"
# An IPv4 literal survives.
assert str(JID.from_string("a@192.0.2.1/r")) == "a@192.0.2.1/r"
PYTHON
