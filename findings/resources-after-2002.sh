#!/usr/bin/env bash
# slixmpp 1.17.0, aioxmpp 0.13.3 and nbxmpp 7.4.0: a capital sharp s in a resource is an address for one of them only.
#
# Expected (RFC 7622, section 3.4; RFC 8265, section 4.2): a resource may have any printable character that the Unicode version
#   of the day assigns. "ẞ" (U+1E9E) has been a letter since 2008.
# Seen: slixmpp and aioxmpp prepare with the tables of Unicode 3.2 (2002) and raise an error, so no stanza from such an
#   address can be read. nbxmpp takes it. Of every resource with a character younger than 2002 the peers disagree.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    slixmpp==1.17.0 aioxmpp==0.13.3 pytz==2026.6 tzlocal==5.4.5 packaging==26.4 idna==3.20 precis-i18n==1.1.2
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" --no-deps \
    nbxmpp==7.4.0
# GLib serves its network code only. A stand-in spares the build of PyGObject.
mkdir "$dir/gi"
cat >"$dir/gi/__init__.py" <<'PYTHON'
import sys
from unittest.mock import MagicMock

require_version = MagicMock()
repository = sys.modules["gi.repository"] = MagicMock()
repository.GLib.MAJOR_VERSION, repository.GLib.MINOR_VERSION, repository.GLib.MICRO_VERSION = 2, 80, 0
PYTHON

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import aioxmpp
import slixmpp
from nbxmpp.protocol import JID

readers = {"slixmpp": slixmpp.JID, "aioxmpp": aioxmpp.JID.fromstr, "nbxmpp": JID.from_string}
for name, read in readers.items():
    for address in ("a@example.org/GROSS", "a@example.org/GROẞ"):
        try:
            seen = str(read(address))
        except ValueError as error:
            seen = f"{type(error).__name__}: {error}"
        print(f"{name}: {address} -> {seen}")
        assert (seen == address) == (name == "nbxmpp" or "ẞ" not in address)
PYTHON
