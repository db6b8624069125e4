"""Peers in another network that vanish: settings `proxy`, `network` and `device`. Reports how the other side's streams end."""

import asyncio
import socket
import subprocess
import sys

from broken_legs import acknowledge, connect
from peer import Peer, main
from socks5 import activate, dst_addr

# The program there: connects for a hash, says so, reads nothing and never ends.
THERE = """
import socket, sys, time
made = socket.create_connection((sys.argv[1], int(sys.argv[2])))
host = sys.argv[3].encode()
made.sendall(b"\\5\\1\\0\\5\\1\\0\\3" + bytes([len(host)]) + host + b"\\0\\0")
reply = b""
while len(reply) < 9 + len(host):
    reply += made.recv(1)
print(reply[3], flush=True)
time.sleep(600)
"""


def end(made):
    made.settimeout(120)
    try:
        return "end" if made.recv(1) == b"" else "data"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "nothing"


async def story(settings):
    component, (address, port) = settings["component"], settings["proxy"]
    alice = await Peer(settings, "alice", "vanishing").login()
    bob = await Peer(settings, "bob", "vanishing").login()
    a, b = str(alice.boundjid), str(bob.boundjid)
    streams, there = {}, []
    for name in ("idle", "half-closed", "in flight"):
        host = dst_addr(name, a, b)
        command = ["ip", "netns", "exec", settings["network"], sys.executable, "-c", THERE, address, str(port), host]
        peer = subprocess.Popen(command, stdout=subprocess.PIPE)
        there.append(peer)
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(None, peer.stdout.readline) != b"0\n":
            raise RuntimeError("not connected")
        streams[name] = connect(settings, host)
        if await activate(alice, component, name, b) != "result":
            raise RuntimeError("not activated")
    streams["half-closed"].shutdown(socket.SHUT_WR)
    acknowledge(streams["half-closed"])
    subprocess.run(["ip", "-n", settings["network"], "link", "set", settings["device"], "down"], check=True)
    streams["in flight"].sendall(bytes(100_000))
    ends = await asyncio.gather(*(loop.run_in_executor(None, end, made) for made in streams.values()))
    for peer in there:
        peer.kill()
    return dict(zip(streams, ends))


if __name__ == "__main__":
    main(story)
