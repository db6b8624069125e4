#!/usr/bin/env bash
# nbxmpp 7.4.0 (the library of Gajim; 4.2.2 in Debian 12, too): of two requests with a timeout, the second one times out at once.
#
# Expected: `send_stanza(iq, callback=..., timeout=30)` calls back without an answer after 30 seconds.
# Seen: only the first request gets a moment as its deadline. While it waits, the timeouts of others stay numbers of seconds, which
#   the check of each second compares with the monotonic clock. So they have passed as soon as the machine has run for longer.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$dir" --no-deps \
    nbxmpp==7.4.0 packaging==26.4 idna==3.20 precis-i18n==1.1.2
# GLib serves its timer only, which is called by hand. A stand-in spares the build of PyGObject.
mkdir "$dir/gi"
cat >"$dir/gi/__init__.py" <<'PYTHON'
import sys
from unittest.mock import MagicMock

require_version = MagicMock()
repository = sys.modules["gi.repository"] = MagicMock()
repository.GLib.MAJOR_VERSION, repository.GLib.MINOR_VERSION, repository.GLib.MICRO_VERSION = 2, 80, 0
PYTHON

PYTHONPATH=$dir python3 - <<'PYTHON'
import time
from unittest.mock import MagicMock

from nbxmpp.dispatcher import StanzaDispatcher

assert time.monotonic() > 30, "the machine has just started"
dispatcher = StanzaDispatcher.__new__(StanzaDispatcher)
dispatcher._client, dispatcher._log, dispatcher._timeout_id, dispatcher._id_callbacks = None, MagicMock(), None, {}
late = []
for name in ("first", "second"):
    dispatcher.add_callback_for_id(name, lambda client, stanza, name=name: late.append(name), 30, None)
dispatcher._timeout_check()
print("timed out at once, of two requests with 30 seconds:", late)
assert late == ["second"]
PYTHON
