"""Crowds at the SOCKS5 port, over real sockets, with a fake XMPP user for activations.

Settings: proxy (host and port), pid (the component's), pairs (idle pairs), stalled (pairs whose reader stops), sessions
(short ones), garbage.
"""

import asyncio
import os
import random
import resource
import socket

from peer import TIMEOUT, Peer, main
from socks5 import activate, connect, dst_addr


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid):
    """The component's resident memory, KiB."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


async def pair(settings, alice, target, sid):
    host = dst_addr(sid, alice.boundjid, target)
    ends = await asyncio.gather(connect(settings, host), connect(settings, host))
    done = await activate(alice, settings["component"], sid, target)
    if done != "result":
        raise RuntimeError(f"{sid}: {done}")
    return ends


async def echo(ends, text):
    ends[0][1].write(text)
    return await asyncio.wait_for(ends[1][0].readexactly(len(text)), TIMEOUT) == text


def close(ends):
    for _, writer, _ in ends:
        # Reset, so that the port is free again at once.
        linger = b"\x01\0\0\0\0\0\0\0"
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()


async def many(settings, alice, target, count, at_once, what):
    """Does `what` with `count` pairs, some at once."""
    limit = asyncio.Semaphore(at_once)

    async def one(n):
        async with limit:
            return await what(await pair(settings, alice, target, f"{what.__name__}{n}"))

    return await asyncio.gather(*(one(n) for n in range(count)))


def rude(settings):
    """A connection that never finishes its handshake: nothing, half a greeting, a wrong method, HTTP, half a request, noise."""
    made = socket.create_connection(settings["proxy"])
    made.setblocking(False)
    made.send(random.choice([
        b"", b"\x05", b"\x05\x02\x01\x02", b"GET / HTTP/1.1\r\n\r\n", b"\x05\x01\x00\x05\x01\x00\x03\x28abc",
        os.urandom(64),
    ]) or b"\x05")  # fmt: skip
    return made


def is_open(made):
    try:
        while made.recv(64):
            pass
        return False
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def fill(ends):
    """Writes until nothing more is accepted; returns how much that was."""
    writer, sent = ends[0][1], 0
    while sent < 1 << 28:
        writer.write(bytes(1 << 16))
        sent += 1 << 16
        try:
            await asyncio.wait_for(writer.drain(), 2)
        except asyncio.TimeoutError:
            break
    return sent


async def read_all(ends, count):
    left = count
    while left > 0:
        got = await asyncio.wait_for(ends[1][0].read(min(left, 1 << 18)), TIMEOUT)
        if not got:
            break
        left -= len(got)
    return left == 0


async def story(settings):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    alice = await Peer(settings, "alice", "crowd").login()
    target, pid = "bob@example.test/crowd", settings["pid"]
    report = {}

    async def keep(ends):
        return ends

    async def short(ends):
        right = await echo(ends, b"hello")
        close(ends)
        return right

    # Warm up, then measure what short sessions leave: the fewest that were open between them.
    await many(settings, alice, target, 50, 25, short)
    before = descriptors(pid)
    right = await many(settings, alice, target, settings["sessions"], 50, short)
    report["short"] = [sum(right), settings["sessions"]]
    for _ in range(600):
        if descriptors(pid) <= before:
            break
        await asyncio.sleep(0.1)
    report["descriptors left"] = descriptors(pid) - before

    # Garbage does not block a good pair: the pair is served while the crowd is still connected.
    crowd = [rude(settings) for _ in range(settings["garbage"])]
    ends = await pair(settings, alice, target, "good")
    report["in the crowd"] = await echo(ends, b"hello")
    report["crowd was there"] = any(is_open(made) for made in crowd)
    close(ends)
    for made in crowd:
        made.close()

    # Readers that stop also stop their writers, and the component holds few of the bytes between.
    stalled = await many(settings, alice, target, settings["stalled"], 8, keep)
    base = memory(pid)
    sent = await asyncio.gather(*(fill(ends) for ends in stalled))
    report["most sent to a stalled reader"] = max(sent)
    report["bytes per stalled pair"] = (memory(pid) - base) * 1024 // len(stalled)
    right = await asyncio.gather(*(read_all(ends, n) for ends, n in zip(stalled, sent)))
    report["whole"] = sum(right)
    for ends in stalled:
        close(ends)

    # Idle pairs, each of which still works.
    base = memory(pid)
    pairs = await many(settings, alice, target, settings["pairs"], 50, keep)
    report["idle"] = len(pairs)
    report["bytes per idle pair"] = (memory(pid) - base) * 1024 // len(pairs)
    report["alive"] = await echo(pairs[0], b"first") and await echo(pairs[-1], b"last")
    # A peer that is killed takes its other side along.
    close(pairs[0][:1])
    try:
        report["broken"] = len(await asyncio.wait_for(pairs[0][1][0].read(), TIMEOUT))
    except ConnectionResetError:
        report["broken"] = 0
    for ends in pairs[1:]:
        close(ends)
    return report


main(story)
