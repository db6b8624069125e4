#!/usr/bin/env bash
# aioxmpp 0.13.3: a data form with a field of an unknown type cannot be read.
#
# Expected (XEP-0004, section 3.3, table 2): a field type that is not understood is taken for "text-single".
# Seen: AttributeError, which is not one of the library's parse errors. One new type in a form of thirty fields hides the other 29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" \
    aioxmpp==0.13.3 pytz==2026.6 tzlocal==5.4.5

PYTHONPATH=$dir python3 -W ignore - <<'PYTHON'
import io

import aioxmpp.forms
import aioxmpp.xml


def read(kind):
    form = (
        "<x xmlns='jabber:x:data' type='form'><field var='a' type='text-single'/>"
        f"<field var='b' type='{kind}'/></x>"
    )
    try:
        return [field.var for field in aioxmpp.xml.read_single_xso(io.BytesIO(form.encode()), aioxmpp.forms.Data).fields]
    except AttributeError as error:
        return f"AttributeError: {error}"


for kind in ("text-private", "date"):
    print(f"{kind}: {read(kind)}")
assert read("text-private") == ["a", "b"]
assert isinstance(read("date"), str)
PYTHON
