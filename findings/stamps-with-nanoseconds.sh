#!/usr/bin/env bash
# slixmpp 1.17.0 and aioxmpp 0.13.3: a stamp with more than six digits of a second cannot be read.
#
# Expected (XEP-0082, sections 2 and 3.2; XML Schema's dateTime): the fraction of a second may have any number of digits. Libraries
#   with a finer clock write seven (.NET) or nine (Rust).
# Seen: both raise ValueError from seven digits on. Six digits are read. In a delay element or a registry's answer one
#   digit decides whether the stanza can be used.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    slixmpp==1.17.0 aioxmpp==0.13.3 pytz==2026.6 tzlocal==5.4.5

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
from aioxmpp.xso import DateTime
from slixmpp.plugins import xep_0082

readers = {"slixmpp": xep_0082.parse, "aioxmpp": DateTime().parse}
for name, read in readers.items():
    for digits in ("123456", "1234567", "123456789"):
        stamp = f"2026-11-28T10:00:00.{digits}Z"
        try:
            seen = read(stamp).microsecond
        except ValueError as error:
            seen = "ValueError"
        print(name, stamp, seen)
        assert seen == (123456 if len(digits) == 6 else "ValueError")
PYTHON
