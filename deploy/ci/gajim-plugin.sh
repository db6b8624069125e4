#!/usr/bin/env bash
# Writes the plugin for Gajim, with the protocol in it, as an archive that Gajim installs; the same files give the same bytes:
#   gajim-plugin.sh FILE.zip
set -euo pipefail
file=$(realpath -m "$1")
mkdir -p "$(dirname "$file")"
cd "$(dirname "$0")/../../gajim"
python3 - "$file" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as archive:
    # Gajim takes the plugin's name from the entry of its directory.
    archive.writestr(zipfile.ZipInfo("fingerpost/"), "")
    # The link to the protocol's package is followed.
    for directory in (Path("fingerpost"), Path("fingerpost/fingerpost_core")):
        for path in sorted(directory.iterdir()):
            if path.suffix in (".py", ".json") or path.name == "py.typed":
                entry = zipfile.ZipInfo(str(path))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
PYTHON
