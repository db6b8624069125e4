#!/usr/bin/env python3
"""Says where components have connected to, by the records of watch.sh: outgoing.py RECORDS

It fails if a component began a connection to anything but its XMPP server and its database, as its configuration names them, or opened
a socket from which datagrams can be sent to a network.
"""

import os
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

# strace writes each system call of a thread in a line, or in two if another thread's call came between.
CONNECT = re.compile(r"connect\(\d+, \{sa_family=(AF_\w+)(.*)")
SOCKET = re.compile(r"socket\((AF_\w+), ([A-Z_|0-9]+)")
PORT = re.compile(r"htons\((\d+)\)")
ADDRESS = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
# A socket in the file system or to the kernel leads to no other machine.
LOCAL = {"AF_UNIX", "AF_NETLINK", "AF_UNSPEC"}


Endpoint = tuple[str, int]


def endpoint(text: str) -> Endpoint:
    """Splits host:port."""
    host, _, port = text.strip().rpartition(":")
    return host.strip("[]"), int(port)


def configured(record: Path) -> dict[str, list[Endpoint]]:
    """Returns the servers and the database that a component was told; no database if that is a file."""
    settings = tomllib.loads((record / "fingerpost.toml").read_text())
    environment = dict(line.split("=", 1) for line in (record / "environment").read_text().splitlines() if "=" in line)
    servers = environment.get("FINGERPOST_COMPONENT__SERVER") or settings.get("component", {}).get("server", "127.0.0.1:5347")
    url = urlsplit(environment.get("FINGERPOST_DATABASE__URL") or settings.get("database", {}).get("url", "sqlite:"))
    databases = [(unquote(url.hostname or ""), url.port or 5432)] if url.scheme.startswith("postgres") else []
    return {"server": [endpoint(server) for server in servers.split(",")], "database": databases}


def same(address: Endpoint, told: Endpoint) -> bool:
    """Tells whether a connection went to the place that was told."""
    names = {"localhost": {"127.0.0.1", "::1"}}.get(told[0], {told[0]})
    return address[1] == told[1] and address[0] in names


def main() -> int:
    records = sorted(Path(sys.argv[1]).iterdir())
    counts = {"server": 0, "database": 0, "local": 0}
    faults = []
    for record in records:
        arguments = (record / "arguments").read_text().splitlines()
        if not (record / "calls").exists():
            faults.append(f"{record.name}: fingerpost {' '.join(arguments)}: nothing was recorded")
            continue
        places = None
        for line in (record / "calls").read_text(errors="replace").splitlines():
            if found := CONNECT.search(line):
                family, rest = found.groups()
                if family in LOCAL:
                    counts["local"] += 1
                    continue
                port, host = PORT.search(rest), ADDRESS.search(rest)
                places = places or configured(record)
                address = (host[1], int(port[1])) if host and port else None
                name = next((name for name, told in places.items() if address and any(same(address, one) for one in told)), None)
                if name:
                    counts[name] += 1
                else:
                    faults.append(f"{record.name}: it is told {places}, and called {line}")
            elif (found := SOCKET.search(line)) and found[1] not in LOCAL and "SOCK_STREAM" not in found[2]:
                faults.append(f"{record.name}: it opened a socket for datagrams: {line}")
    print(f"{len(records)} components: {counts}")
    for fault in faults:
        print(fault, file=sys.stderr)
    if not counts["server"]:
        print("no connection to a server was recorded", file=sys.stderr)
        return 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
