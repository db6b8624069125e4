#!/usr/bin/env python3
"""docs/CONFIGURATION.md from the annotated default that the program prints (src/config/default.toml).

configuration.py write|check"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/CONFIGURATION.md"
HEAD = """# Configuration

`make docs` writes this page from `src/config/default.toml`. Do not edit it. `fingerpost config` prints the same text as a file.
[INDEX.md](INDEX.md#words) explains the special words.
Precedence: environment, then file, then default. In the environment a list is written with commas. No setting has a flag:
`--config FILE` only names the file.
"""


def render():
    out, notes = [HEAD], []
    for line in (ROOT / "src/config/default.toml").read_text().splitlines():
        setting = re.match(r"^(# )?([a-z0-9_]+) = (.+)$", line)
        if section := re.match(r"^\[(\w+)\]$", line):
            name = section[1]
            out.append(f"\n## [{name}]\n\n| setting | default | environment | what |\n|---|---|---|---|")
        elif setting:
            optional, key, value = setting.groups()
            what = " ".join(notes).replace("|", "\\|") or "as above"
            value = value.replace("|", "\\|")
            shown = f"none; such as `{value}`" if optional else f"`{value}`"
            out.append(f"| `{key}` | {shown} | `FINGERPOST_{name.upper()}__{key.upper()}` | {what} |")
            notes = []
        elif line.startswith("#"):
            notes.append(line.lstrip("# "))
        elif notes and len(out) == 1:
            out.append("\n".join(notes))
            notes = []
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(render())
    elif PAGE.read_text() != render():
        sys.exit("docs/CONFIGURATION.md is stale: make docs")
