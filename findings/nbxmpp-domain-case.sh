#!/usr/bin/env bash
# nbxmpp 7.4.0 (the library of Gajim): two spellings of one domain are two addresses.
#
# Expected (RFC 7622, section 3.2): the domainpart is compared without regard to case: it is prepared by mapping
#   upper case to lower case first (section 3.2.2). "a@Example.ORG" and "a@example.org" are one address.
# Seen: the domain stays as it was written, ASCII or not, while the localpart is mapped. The addresses differ, and so does
#   the hash of a SOCKS5 bytestream (XEP-0065, section 5.3.2) between a peer that maps and one that does not.
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

for upper, lower in (("A@Example.ORG", "a@example.org"), ("A@BÜCHER.example", "a@bücher.example")):
    jid = JID.from_string(upper)
    print(upper, "->", jid, "equal to", lower, "->", jid == JID.from_string(lower))
    assert str(jid) == "a" + upper[1:] and jid != JID.from_string(lower)
assert JID.from_string("ALICE@example.org") == JID.from_string("alice@example.org")
PYTHON
