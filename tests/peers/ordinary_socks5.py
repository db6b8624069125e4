"""Ordinary SOCKS5 clients as the two sides of a transfer: they send ports other than 0. Setting `proxy`, a host and a port."""

import asyncio

from peer import Peer, main
from socks5 import activate, dst_addr

PYSOCKS = """
import socks, sys, threading
made = socks.socksocket()
made.set_proxy(socks.SOCKS5, sys.argv[1], int(sys.argv[2]), rdns=True)
made.connect((sys.argv[3], 443))
def out():
    while got := made.recv(4096):
        sys.stdout.buffer.write(got)
        sys.stdout.buffer.flush()
threading.Thread(target=out, daemon=True).start()
for line in sys.stdin.buffer:
    made.sendall(line)
"""


def command(name, address, port, host):
    proxy = f"{address}:{port}"
    return {
        "curl": ["curl", "-sS", "--no-buffer", "--socks5-hostname", proxy, f"telnet://{host}:23"],
        # Debian's own Python has its package.
        "PySocks": ["/usr/bin/python3", "-c", PYSOCKS, address, str(port), host],
    }[name]


async def exchange(sides):
    """Sends lines both ways until each side has received one; returns the first ones.

    curl's telnet reads from the network only in the moment after it has read from its input, so one line is not enough.
    """
    first = [asyncio.ensure_future(side.stdout.readline()) for side in sides]
    while not all(line.done() for line in first):
        for side in sides:
            side.stdin.write(b"a line\n")
        await asyncio.wait(first, timeout=0.1, return_when=asyncio.ALL_COMPLETED)
    return [line.result().decode() for line in first]


async def story(settings):
    component, (address, port) = settings["component"], settings["proxy"]
    alice = await Peer(settings, "alice", "ordinary").login()
    bob = await Peer(settings, "bob", "ordinary").login()
    a, b = str(alice.boundjid), str(bob.boundjid)
    report = {}
    for one, two in (("curl", "PySocks"), ("PySocks", "curl")):
        host = dst_addr(one, a, b)
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        sides = [
            await asyncio.create_subprocess_exec(*command(name, address, port, host), **pipes) for name in (one, two)
        ]
        # They do not say when they are connected.
        early = ("item-not-found", "not-allowed", "resource-constraint")
        while (activated := await activate(alice, component, one, b)) in early:
            if any(side.returncode is not None for side in sides):
                break
            await asyncio.sleep(0.1)
        if activated != "result":
            raise RuntimeError(f"not activated: {activated}")
        words = await exchange(sides)
        for side in sides:
            if side.returncode is None:
                side.kill()
            await side.wait()
        report[f"{one} {two}"] = [activated, *words]
    return report


if __name__ == "__main__":
    main(story)
