"""Many streams of one user whose readers stand still, and one of another user that moves: settings `proxy`, `pages` and `pairs`."""

import asyncio
import re
import socket
import urllib.request

from peer import Peer, main
from socks5 import activate, dst_addr

MOVED = 8 << 20


def connect(settings, host):
    made = socket.socket()
    # A reader that stands still holds little.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    made.connect(tuple(settings["proxy"]))
    made.sendall(b"\5\1\0\5\1\0\3" + bytes([len(host)]) + host.encode() + b"\0\0")
    reply = b""
    while len(reply) < 9 + len(host):
        reply += made.recv(9 + len(host) - len(reply))
    if reply[3]:
        raise RuntimeError(f"refused with {reply[3]}")
    return made


def metric(settings, name):
    page = urllib.request.urlopen(f"http://127.0.0.1:{settings['pages']}/metrics").read().decode()
    return int(re.search(rf"^fingerpost_{name} (\d+)$", page, re.M)[1])


def fill(made):
    """Writes until nothing more is accepted."""
    made.setblocking(False)
    try:
        while True:
            made.send(bytes(65536))
    except BlockingIOError:
        pass


def move(one, two):
    """How many of the sent bytes arrive."""
    one.setblocking(False)
    sent = got = 0
    while got < MOVED:
        try:
            while sent < MOVED:
                sent += one.send(bytes(min(65536, MOVED - sent)))
        except BlockingIOError:
            pass
        got += len(two.recv(65536))
    return got


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "still").login()
    bob = await Peer(settings, "bob", "still").login()
    carol = await Peer(settings, "carol", "still").login()
    a, b, c = (str(peer.boundjid) for peer in (alice, bob, carol))

    async def pair(peer, own, sid, target):
        host = dst_addr(sid, own, target)
        both = [connect(settings, host) for _ in "ab"]
        if await activate(peer, component, sid, target) != "result":
            raise RuntimeError("not activated")
        return both

    still = [await pair(alice, a, f"still {number}", b) for number in range(settings["pairs"])]
    busy = 0
    for _ in range(20):
        for both in still:
            for side in both:
                fill(side)
        await asyncio.sleep(0.1)
        busy = max(busy, metric(settings, "pipes_busy"))
    one, two = await pair(carol, c, "moves", b)
    loop = asyncio.get_running_loop()
    before = metric(settings, "pipes_taken_total")
    moved = await loop.run_in_executor(None, move, one, two)
    return {"busy": busy, "moved": moved, "taken": metric(settings, "pipes_taken_total") - before}


if __name__ == "__main__":
    main(story)
