"""The proxy's rules, checked at sockets: setting `proxy`, a host and a port."""

import asyncio
import socket

from peer import TIMEOUT, Peer, main
from socks5 import activate, connect, dst_addr


async def story(settings):
    component = settings["component"]
    alice = await Peer(settings, "alice", "rules").login()
    bob = await Peer(settings, "bob", "rules").login()
    a, b = str(alice.boundjid), str(bob.boundjid)
    report = {"unknown": await activate(alice, component, "no-such-sid", b)}

    host = dst_addr("one", a, b)
    reader, writer, _ = await connect(settings, host)
    writer.write(b"early ")
    report["one side"] = await activate(alice, component, "one", b)
    other_reader, other_writer, _ = await connect(settings, host)
    report["third"] = (await connect(settings, host))[2]
    report["not the requester"] = await activate(bob, component, "one", a)
    try:
        early = await asyncio.wait_for(other_reader.read(100), 0.3)
        report["before activation"] = early.decode()
    except asyncio.TimeoutError:
        report["before activation"] = ""
    report["both sides"] = await activate(alice, component, "one", b)
    report["twice"] = await activate(alice, component, "one", b)

    # Half-close: the end of one direction comes after its last byte, and the other direction continues.
    writer.write(b"last")
    writer.write_eof()
    report["forward"] = (await asyncio.wait_for(other_reader.read(), TIMEOUT)).decode()
    other_writer.write(b"answer")
    other_writer.write_eof()
    report["backward"] = (await asyncio.wait_for(reader.read(), TIMEOUT)).decode()

    # The hash is free again.
    again = [await connect(settings, host) for _ in range(2)]
    report["reuse"] = await activate(alice, component, "one", b)

    # A peer that breaks takes the other along.
    broken = again[0][1].get_extra_info("socket")
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    again[0][1].transport.abort()
    try:
        report["broken"] = (await asyncio.wait_for(again[1][0].read(), TIMEOUT)).decode()
    except ConnectionResetError:
        report["broken"] = ""
    return report


main(story)
