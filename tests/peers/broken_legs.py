"""Peers of SOCKS5 bytestreams that break in every way: reports what the other side still gets, and how its stream ends."""

import asyncio
import fcntl
import socket
import struct
import termios
import time

from peer import Peer, main
from socks5 import activate, dst_addr

SENT = 3_000_000
# More than all buffers on the path hold, so it has to be read and dropped.
CHATTER = 24 << 20


def connect(settings, host, buffer=None, port=0):
    """A connection for a hash, without asyncio between us and the kernel."""
    made = socket.socket()
    if buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.settimeout(60)
    made.connect(tuple(settings["proxy"]))
    made.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big"))
    reply = b""
    while len(reply) < 2 + 5 + len(host) + 2:
        reply += made.recv(1)
    if reply[3] != 0 or reply[-2:] != port.to_bytes(2, "big"):
        raise RuntimeError(f"refused: {reply}")
    return made


def acknowledge(made):
    """Waits until the kernel at the other end has everything."""
    while struct.unpack("i", fcntl.ioctl(made, termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        time.sleep(0.001)


def reset(made):
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


def half_close(made):
    made.shutdown(socket.SHUT_WR)
    acknowledge(made)
    made.close()


def read_all(made):
    """The bytes until the end, and the kind of end."""
    got = bytearray()
    try:
        while part := made.recv(1 << 18):
            got += part
    except ConnectionResetError:
        return bytes(got), "reset"
    return bytes(got), "end"


def one(settings, pair, leave, chatter):
    a, b = pair
    data = bytes(range(251)) * (SENT // 251 + 1)
    data = data[:SENT]
    a.sendall(data)
    acknowledge(a)
    leave(a)
    if chatter:
        b.sendall(bytes(chatter))
    got, end = read_all(b)
    b.close()
    return [len(got), got == data, end]


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "broken").login()
    bob = await Peer(settings, "bob", "broken").login()
    a, b = str(alice.boundjid), str(bob.boundjid)
    loop = asyncio.get_running_loop()
    report, number = {}, 0
    for name, leave in [("close", lambda s: s.close()), ("half-close", half_close), ("reset", reset)]:
        for chatter in (0, 1, CHATTER):
            sid = f"broken{number}"
            number += 1
            host = dst_addr(sid, a, b)
            # The port has no meaning.
            pair = connect(settings, host, port=number), connect(settings, host, buffer=16384)
            if await activate(alice, component, sid, b) != "result":
                raise RuntimeError("not activated")
            report[f"{name} {chatter}"] = await loop.run_in_executor(None, one, settings, pair, leave, chatter)
    return report


if __name__ == "__main__":
    main(story)
