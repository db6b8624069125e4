#!/usr/bin/env python3
"""Asks a Prometheus every query of the dashboard, through a command that takes one query: queries.py COMMAND...

Each must be valid and find something, unless its panel's description begins with "Empty"."""

import json
import pathlib
import subprocess
import sys


def main(command):
    dashboard = json.loads((pathlib.Path(__file__).parent / "fingerpost.json").read_text())
    asked, empty, bad = 0, 0, []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            done = subprocess.run([*command, query], capture_output=True, text=True, stdin=subprocess.DEVNULL)
            asked += 1
            if done.returncode != 0:
                bad.append(f"{panel['title']}: {query}: {done.stdout}{done.stderr}")
            elif "=>" not in done.stdout:
                empty += 1
                if not panel.get("description", "").startswith("Empty"):
                    bad.append(f"{panel['title']}: nothing found for {query}")
    print(f"{asked} queries, {empty} of them empty as their panels say" if not bad else "\n".join(bad))
    return 1 if bad or not asked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
